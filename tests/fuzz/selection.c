/* Scan and suppression: any logits, boxes and scores; the levels agree. */
#include "fuzz_input.h"

/* The answer of one level; the room is exactly what the header asks for. */
static size_t select_dense(bxs_model model, bxs_simd simd, const bxs_dense *dense,
                           const bxs_letterbox *map, bxs_candidate *kept) {
    size_t n = 0;
    model.simd = simd;
    size_t size = bxs_select_scratch_size(&model);
    void *scratch = make_room(size);
    bxs_status status =
        bxs_select_dense(&model, dense, map, NULL, scratch, size, kept, model.max_det, &n);
    fuzz_require(status == BXS_OK, "select_dense takes any numbers");
    free(scratch);
    fuzz_require(n <= model.max_det, "max_det");
    for (size_t i = 0; i < n; i++) {
        fuzz_require(kept[i].class_index < model.classes && kept[i].slot < dense->locations,
                     "indices");
        fuzz_require((double)kept[i].score0 > model.candidate_score, "score");
        fuzz_require(i == 0 || kept[i].score0 <= kept[i - 1].score0, "order");
    }
    return n;
}

static void check_dense(fuzz_input *from) {
    const bxs_model model = take_model(from);
    const bxs_letterbox map = take_map(from);
    size_t locations = bxs_location_count(&model, map.height, map.width);
    float *logits = take_floats(from, locations * model.classes);
    float *quality = take_floats(from, locations);
    float *boxes = take_floats(from, locations * 4);
    const bxs_dense dense = {logits, quality, boxes, locations};
    size_t room = model.max_det * sizeof(bxs_candidate);
    bxs_candidate *kept = (bxs_candidate *)make_room(room);
    bxs_candidate *same = (bxs_candidate *)make_room(room);
    memset(kept, 0, room);
    memset(same, 0, room);
    size_t n = select_dense(model, BXS_SIMD_PORTABLE, &dense, &map, kept);
    size_t m = select_dense(model, BXS_SIMD_BEST, &dense, &map, same);
    fuzz_require(n == m && memcmp(kept, same, n * sizeof *kept) == 0, "levels agree");
    free(logits);
    free(quality);
    free(boxes);
    free(kept);
    free(same);
}

static void check_topk(fuzz_input *from) {
    const bxs_model model = take_model(from);
    const bxs_letterbox map = take_map(from);
    size_t rows = take_range(from, 1, model.candidates);
    float *scores = take_floats(from, rows);
    float *boxes = take_floats(from, rows * 4);
    float *locations = take_floats(from, rows * 2);
    int32_t *labels = (int32_t *)make_room(rows * sizeof(int32_t));
    int32_t *levels = (int32_t *)make_room(rows * sizeof(int32_t));
    for (size_t i = 0; i < rows; i++) {
        uint8_t odd = take_byte(from);
        labels[i] = odd == 255 ? (int32_t)take_word(from) : (int32_t)(odd % model.classes);
        levels[i] = odd == 254 ? (int32_t)take_word(from) : (int32_t)(odd % model.levels);
        if (odd < 250) { /* a location that exists */
            int32_t stride = (int32_t)model.strides[levels[i]];
            locations[2 * i] = locations[2 * i + 1] = (float)(stride / 2);
        }
    }
    const bxs_topk topk = {scores, labels, boxes, locations, levels, rows};
    bxs_candidate *kept = (bxs_candidate *)make_room(model.max_det * sizeof *kept);
    size_t size = bxs_select_topk_scratch_size(&model), n = 0;
    void *scratch = make_room(size);
    bxs_status status =
        bxs_select_topk(&model, &topk, &map, NULL, scratch, size, kept, model.max_det, &n);
    fuzz_require(status == BXS_OK || status == BXS_ERROR_VALUE, "select_topk");
    fuzz_require(status != BXS_OK || n <= model.max_det, "max_det");
    free(scratch);
    free(kept);
    free(scores);
    free(boxes);
    free(locations);
    free(labels);
    free(levels);
}

static size_t suppress(const float *boxes, const float *scores, const uint32_t *classes, size_t n,
                       double iou, size_t most, bxs_simd simd, uint32_t *keep) {
    size_t size = bxs_nms_scratch_size(n, 3), kept = 0;
    void *scratch = make_room(size);
    bxs_status status =
        bxs_nms(boxes, scores, classes, n, 3, iou, 0.0f, most, simd, scratch, size, keep, &kept);
    fuzz_require(status == BXS_OK, "nms takes any numbers");
    free(scratch);
    return kept;
}

static void check_nms(fuzz_input *from) {
    size_t n = take_range(from, 0, 1500);
    float *boxes = take_floats(from, 4 * n), *scores = take_floats(from, n);
    uint32_t *classes = (uint32_t *)make_room(n * sizeof(uint32_t));
    for (size_t i = 0; i < n; i++) {
        classes[i] = take_byte(from) % 3u;
    }
    double iou = take_byte(from) / 255.0;
    size_t most = take_range(from, 0, 400);
    size_t room = n < most ? n : most;
    uint32_t *keep = (uint32_t *)make_room(room * sizeof(uint32_t));
    uint32_t *same = (uint32_t *)make_room(room * sizeof(uint32_t));
    size_t kept = suppress(boxes, scores, classes, n, iou, most, BXS_SIMD_PORTABLE, keep);
    size_t other = suppress(boxes, scores, classes, n, iou, most, BXS_SIMD_BEST, same);
    fuzz_require(kept <= room && kept == other && memcmp(keep, same, kept * sizeof(uint32_t)) == 0,
                 "levels agree");
    for (size_t i = 0; i < kept; i++) {
        fuzz_require(keep[i] < n, "indices");
    }
    free(boxes);
    free(scores);
    free(classes);
    free(keep);
    free(same);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    fuzz_input from = {bytes, size, 0, 0};
    switch (take_byte(&from) % 3) {
    case 0:
        check_dense(&from);
        break;
    case 1:
        check_topk(&from);
        break;
    default:
        check_nms(&from);
    }
    return 0;
}
