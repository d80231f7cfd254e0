/* Turns a fuzzer's bytes into arguments. When the bytes end they start anew, changed, so that a few
 * of them fill large arrays. */
#ifndef FUZZ_INPUT_H
#define FUZZ_INPUT_H

#include <boxseg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const uint8_t *bytes;
    size_t size, at;
    uint32_t round;
} fuzz_input;

static void fuzz_require(int is_true, const char *what) {
    if (!is_true) {
        fprintf(stderr, "broken promise: %s\n", what);
        abort();
    }
}

static uint8_t take_byte(fuzz_input *from) {
    if (from->size == 0) {
        return 0;
    }
    if (from->at == from->size) {
        from->at = 0;
        from->round += 0x9E3779B9u;
    }
    return (uint8_t)(from->bytes[from->at++] + (from->round >> 24));
}

static uint32_t take_word(fuzz_input *from) {
    uint32_t word = 0;
    for (int i = 0; i < 4; i++) {
        word = word << 8 | take_byte(from);
    }
    return word;
}

/* low..high, both reached */
static uint32_t take_range(fuzz_input *from, uint32_t low, uint32_t high) {
    return low + (high > 255 ? take_word(from) : take_byte(from)) % (high - low + 1);
}

/* Mostly of some size, sometimes any bits: infinite, not a number, tiny. */
static float take_float(fuzz_input *from) {
    uint8_t kind = take_byte(from);
    if (kind == 255) {
        uint32_t bits = take_word(from);
        float any;
        memcpy(&any, &bits, sizeof any);
        return any;
    }
    return ((float)kind - 127.0f) * (float)(1 + take_byte(from)) / 256.0f;
}

/* A buffer of exactly this size, so that the sanitizer sees the first byte behind it. */
static void *make_room(size_t size) {
    void *room = malloc(size > 0 ? size : 1);
    fuzz_require(room != NULL, "memory");
    return room;
}

static float *take_floats(fuzz_input *from, size_t n) {
    float *floats = (float *)make_room(n * sizeof(float));
    for (size_t i = 0; i < n; i++) {
        floats[i] = take_float(from);
    }
    return floats;
}

/* A valid model for inputs of up to 96 x 96. */
static bxs_model take_model(fuzz_input *from) {
    bxs_model model;
    memset(&model, 0, sizeof model);
    model.classes = take_range(from, 1, 4);
    model.levels = take_range(from, 1, 3);
    for (uint32_t i = 0; i < model.levels; i++) {
        model.strides[i] = 8u << i;
        model.coordinate_scales[i] = (float)(8u << i);
    }
    model.mask_channels = take_range(from, 1, 9);
    model.mask_stride = 8;
    model.layers = take_range(from, 1, 3);
    for (uint32_t i = 0; i + 1 < model.layers; i++) {
        model.layer_widths[i] = take_range(from, 1, 10);
    }
    model.layer_widths[model.layers - 1] = 1;
    model.relative_coordinates = take_byte(from) & 1;
    model.score0 = (bxs_score0_rule)(take_byte(from) & 1);
    model.final_score = (bxs_final_rule)(take_byte(from) & 1);
    model.candidate_score = take_byte(from) / 256.0;
    model.nms_iou = take_byte(from) / 255.0;
    model.candidates = take_range(from, 1, 200);
    model.max_det = take_range(from, 1, model.candidates);
    fuzz_require(bxs_model_check(&model) == BXS_OK, "this model is valid");
    return model;
}

static bxs_letterbox take_map(fuzz_input *from) {
    bxs_letterbox map;
    uint32_t frame_height = take_range(from, 1, 255), frame_width = take_range(from, 1, 255);
    bxs_status status = bxs_letterbox_fit(frame_height, frame_width, 32 * take_range(from, 1, 3),
                                          32 * take_range(from, 1, 3), &map);
    fuzz_require(status == BXS_OK, "this map is valid");
    return map;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

#endif
