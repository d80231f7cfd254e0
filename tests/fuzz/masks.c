/* Mask head, mask score and run-length text: any parameters, features and boxes; the levels agree
 * and every text is that of a mask of the frame. */
#include "fuzz_input.h"

typedef struct {
    bxs_instance *instances;
    char *text;
    size_t n, size;
} answer;

static bxs_status find(bxs_model model, bxs_simd simd, const bxs_mask_inputs *inputs,
                       const bxs_letterbox *map, const bxs_candidate *candidates, size_t n,
                       size_t text_room, answer *out) {
    model.simd = simd;
    size_t size = bxs_masks_scratch_size(&model, map);
    void *scratch = make_room(size);
    out->instances = (bxs_instance *)make_room(n * sizeof(bxs_instance));
    memset(out->instances, 0, n * sizeof(bxs_instance));
    out->text = (char *)make_room(text_room);
    bxs_status status = bxs_masks(&model, inputs, map, candidates, n, 0.0, NULL, scratch, size,
                                  out->instances, n, &out->n, out->text, text_room, &out->size);
    free(scratch);
    return status;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    fuzz_input from = {bytes, size, 0, 0};
    const bxs_model model = take_model(&from);
    const bxs_letterbox map = take_map(&from);
    const uint32_t rows = map.height / 8, columns = map.width / 8;
    const size_t count = bxs_parameter_count(&model);
    const size_t slots = take_range(&from, 1, 5);
    float *parameters = take_floats(&from, count * slots);
    float *features = take_floats(&from, (size_t)model.mask_channels * rows * columns);
    const int kind = take_byte(&from) % 4, by_slot = kind & 1;
    float *logits = kind == 3 ? take_floats(&from, slots * rows * columns) : NULL;
    const bxs_mask_inputs inputs = {
        parameters, by_slot ? 1 : slots, by_slot ? count : 1, slots, features, rows, columns,
        logits};
    bxs_candidate candidates[8];
    memset(candidates, 0, sizeof candidates);
    size_t n = take_range(&from, 0, model.max_det < 8 ? model.max_det : 8);
    for (size_t i = 0; i < n; i++) {
        for (int side = 0; side < 4; side++) {
            candidates[i].box[side] = take_float(&from);
        }
        candidates[i].score0 = (float)take_range(&from, 1, 255) / 255.0f;
        candidates[i].index = (uint32_t)i;
        candidates[i].slot =
            take_byte(&from) % 16 == 15 ? take_word(&from) : take_byte(&from) % (uint32_t)slots;
        candidates[i].level =
            take_byte(&from) % 16 == 15 ? take_word(&from) : take_byte(&from) % model.levels;
        candidates[i].x = take_float(&from);
        candidates[i].y = take_float(&from);
    }
    size_t room = n * bxs_surface_text_size(&map, rows);
    if (take_byte(&from) == 7) {
        room /= 64; /* may be too small */
    }
    answer plain, best;
    bxs_status status = find(model, BXS_SIMD_PORTABLE, &inputs, &map, candidates, n, room, &plain);
    bxs_status other = find(model, BXS_SIMD_BEST, &inputs, &map, candidates, n, room, &best);
    fuzz_require(status == other, "levels agree on the status");
    if (status == BXS_OK) {
        fuzz_require(plain.n == best.n && plain.size == best.size &&
                         memcmp(plain.text, best.text, plain.size) == 0 &&
                         memcmp(plain.instances, best.instances, n * sizeof(bxs_instance)) == 0,
                     "levels agree");
    }
    for (size_t i = 0; status == BXS_OK && i < plain.n; i++) {
        const bxs_instance *one = &plain.instances[i];
        uint32_t area;
        bxs_region box;
        fuzz_require(bxs_rle_measure(plain.text + one->text_offset, (size_t)one->text_length,
                                     map.frame_height, map.frame_width, &area, &box) == BXS_OK,
                     "the text is a mask's");
        fuzz_require(area == one->area, "area");
        fuzz_require(one->mask_score >= 0.0f && one->mask_score <= 1.0f, "mask score");
    }
    free(parameters);
    free(features);
    free(logits);
    free(plain.instances);
    free(plain.text);
    free(best.instances);
    free(best.text);
    return 0;
}
