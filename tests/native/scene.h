/* A small model, seeded outputs of a graph and a frame, and everything that the library makes of
 * them as text. Usable from C and C++. */
#ifndef SCENE_H
#define SCENE_H

#include <boxseg.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HEIGHT = 96, WIDTH = 160, FRAME_HEIGHT = 271, FRAME_WIDTH = 423, CLASSES = 3, CHANNELS = 4 };
enum { FRAME_BYTES = FRAME_HEIGHT * FRAME_WIDTH * 3, TEXT_BYTES = 1 << 20 };

typedef struct {
    bxs_model model;
    bxs_letterbox map;
    size_t locations;
    float *class_logits, *quality_logits, *boxes, *parameters, *features;
    uint8_t *frame;
} scene;

static void scene_require(bxs_status status, const char *what) {
    if (status != BXS_OK) {
        fprintf(stderr, "%s: %s\n", what, bxs_status_name(status));
        exit(1);
    }
}

static void *scene_room(size_t size) {
    void *room = malloc(size);
    if (room == NULL) {
        exit(1);
    }
    return room;
}

/* A multiple of 1/65536 in [low, high): the same on every machine. */
static float scene_number(uint32_t *seed, float low, float high) {
    *seed = *seed * 1664525u + 1013904223u;
    return low + (high - low) * ((float)(*seed >> 16) / 65536.0f);
}

static float *scene_numbers(uint32_t *seed, size_t n, float low, float high) {
    float *numbers = (float *)scene_room(n * sizeof(float));
    for (size_t i = 0; i < n; i++) {
        numbers[i] = scene_number(seed, low, high);
    }
    return numbers;
}

static void scene_make_boxes(scene *of, uint32_t *seed) {
    float *box = of->boxes = (float *)scene_room(of->locations * 4 * sizeof(float));
    for (uint32_t level = 0; level < of->model.levels; level++) {
        uint32_t stride = of->model.strides[level];
        for (uint32_t y = 0; y < HEIGHT; y += stride) {
            for (uint32_t x = 0; x < WIDTH; x += stride, box += 4) {
                box[0] = (float)x - scene_number(seed, 0.0f, 50.0f);
                box[1] = (float)y - scene_number(seed, 0.0f, 40.0f);
                box[2] = (float)x + scene_number(seed, 1.0f, 50.0f);
                box[3] = (float)y + scene_number(seed, 1.0f, 40.0f);
            }
        }
    }
}

static scene scene_make(uint32_t seed) {
    static const uint32_t strides[5] = {8, 16, 32, 64, 128};
    scene of;
    memset(&of, 0, sizeof of);
    of.model.classes = CLASSES;
    of.model.levels = 5;
    for (int i = 0; i < 5; i++) {
        of.model.strides[i] = strides[i];
        of.model.coordinate_scales[i] = (float)(8 * strides[i]);
    }
    of.model.mask_channels = CHANNELS;
    of.model.mask_stride = 8;
    of.model.layers = 2;
    of.model.layer_widths[0] = 6;
    of.model.layer_widths[1] = 1;
    of.model.relative_coordinates = 1;
    of.model.score0 = BXS_SCORE0_SQRT_CLS_QUALITY;
    of.model.final_score = BXS_FINAL_SQRT_SCORE0_MASK;
    of.model.candidate_score = 0.2;
    of.model.nms_iou = 0.6;
    of.model.candidates = 300;
    of.model.max_det = 60;
    scene_require(bxs_letterbox_fit(FRAME_HEIGHT, FRAME_WIDTH, HEIGHT, WIDTH, &of.map), "map");
    of.locations = bxs_location_count(&of.model, HEIGHT, WIDTH);
    of.class_logits = scene_numbers(&seed, of.locations * CLASSES, -6.0f, 2.0f);
    of.quality_logits = scene_numbers(&seed, of.locations, -2.0f, 2.0f);
    of.parameters =
        scene_numbers(&seed, of.locations * bxs_parameter_count(&of.model), -1.5f, 1.5f);
    of.features = scene_numbers(&seed, CHANNELS * (HEIGHT / 8) * (WIDTH / 8), -2.0f, 2.0f);
    scene_make_boxes(&of, &seed);
    of.frame = (uint8_t *)scene_room(FRAME_BYTES);
    for (size_t i = 0; i < FRAME_BYTES; i++) {
        of.frame[i] = (uint8_t)scene_number(&seed, 0.0f, 256.0f);
    }
    return of;
}

static void scene_free(scene *of) {
    free(of->class_logits);
    free(of->quality_logits);
    free(of->boxes);
    free(of->parameters);
    free(of->features);
    free(of->frame);
}

static uint64_t scene_hash(const void *bytes, size_t size) {
    const uint8_t *at = (const uint8_t *)bytes;
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < size; i++) {
        hash = (hash ^ at[i]) * 1099511628211u;
    }
    return hash;
}

/* Hashes of the frame, taken for each format, as bytes and as floats. */
static size_t scene_letterbox(const scene *of, char *text) {
    static const uint8_t padding[3] = {124, 116, 104};
    static const float mean[3] = {123.675f, 116.28f, 103.53f}, std[3] = {58.395f, 57.12f, 57.375f};
    static const size_t pixel_bytes[5] = {3, 3, 1, 1, 2};
    const size_t n = HEIGHT * WIDTH * 3;
    size_t used = 0, size = bxs_letterbox_scratch_size(&of->map);
    void *scratch = scene_room(size);
    uint8_t *bytes = (uint8_t *)scene_room(n);
    float *floats = (float *)scene_room(n * sizeof(float));
    for (int format = BXS_RGB8; format <= BXS_YUYV; format++) {
        bxs_frame frame;
        memset(&frame, 0, sizeof frame);
        frame.data = of->frame;
        frame.size = FRAME_BYTES;
        frame.row_stride = (FRAME_WIDTH + 1) * pixel_bytes[format];
        if (format <= BXS_BGR8) {
            frame.row_stride = FRAME_WIDTH * 3;
        }
        frame.height = FRAME_HEIGHT;
        frame.width = FRAME_WIDTH;
        frame.format = (bxs_pixel_format)format;
        scene_require(
            bxs_letterbox_rgb8(&frame, &of->map, padding, BXS_SIMD_BEST, scratch, size, bytes, n),
            "letterbox");
        scene_require(bxs_letterbox_f32(&frame, &of->map, padding, mean, std, BXS_SIMD_BEST,
                                        scratch, size, floats, n),
                      "letterbox of floats");
        used += (size_t)snprintf(text + used, TEXT_BYTES - used, "%016" PRIx64 " %016" PRIx64 "\n",
                                 scene_hash(bytes, n), scene_hash(floats, n * sizeof(float)));
    }
    free(scratch);
    free(bytes);
    free(floats);
    return used;
}

/* The letterboxed frame's hashes and every instance; `text` has TEXT_BYTES. */
static void scene_answer(const scene *of, char *text) {
    const bxs_model *model = &of->model;
    size_t used = scene_letterbox(of, text);

    const bxs_dense dense = {of->class_logits, of->quality_logits, of->boxes, of->locations};
    bxs_candidate kept[64];
    bxs_instance instances[64];
    size_t n, found, text_size;
    size_t size = bxs_select_scratch_size(model);
    void *scratch = scene_room(size);
    scene_require(bxs_select_dense(model, &dense, &of->map, NULL, scratch, size, kept, 64, &n),
                  "select");
    free(scratch);

    const bxs_mask_inputs inputs = {of->parameters, of->locations, 1,         of->locations,
                                    of->features,   HEIGHT / 8,    WIDTH / 8, NULL};
    size_t room = n * bxs_surface_text_size(&of->map, HEIGHT / 8);
    char *runs = (char *)scene_room(room + 1);
    size = bxs_masks_scratch_size(model, &of->map);
    scratch = scene_room(size);
    scene_require(bxs_masks(model, &inputs, &of->map, kept, n, 0.0, NULL, scratch, size, instances,
                            64, &found, runs, room, &text_size),
                  "masks");
    free(scratch);
    for (size_t i = 0; i < found && used < TEXT_BYTES; i++) {
        const bxs_instance *one = &instances[i];
        used += (size_t)snprintf(
            text + used, TEXT_BYTES - used, "%" PRIu32 " %a %a %a  %a %a %a %a  %" PRIu32 " %.*s\n",
            one->class_index, (double)one->score, (double)one->score0, (double)one->mask_score,
            (double)one->box[0], (double)one->box[1], (double)one->box[2], (double)one->box[3],
            one->area, (int)one->text_length, runs + one->text_offset);
    }
    free(runs);
    if (used >= TEXT_BYTES) {
        fprintf(stderr, "the answer is cut short\n");
        exit(1);
    }
}

#endif
