/* From a graph's outputs to the kept candidates. */
#include <math.h>

#include "arena.h"
#include "boxseg.h"
#include "deadline.h"
#include "nms.h"
#include "order.h"
#include "platform.h"
#include "sigmoid.h"
#include "simd.h"

#define POLLED_CANDIDATES 64
#define POLLED_LOGITS ((size_t)1 << 18)
#define BLOCK 64
#define MAX_HITS 512

/* ---------------------------------------------------------------- the best K */

/* The best K keys so far. Room for 2 K: when it is full, the lower half is dropped. */
typedef struct {
    uint64_t *keys, *spare;
    size_t n, k;
    uint64_t beaten; /* keys up to this one cannot be among the best K */
} best;

static size_t best_size(const bxs_model *model) {
    return 2 * bxs_piece(2 * (size_t)model->candidates * sizeof(uint64_t));
}

static best best_open(const bxs_model *model, bxs_arena *arena) {
    const size_t bytes = 2 * (size_t)model->candidates * sizeof(uint64_t);
    best list;
    list.keys = (uint64_t *)bxs_arena_take(arena, bytes);
    list.spare = (uint64_t *)bxs_arena_take(arena, bytes);
    list.n = 0;
    list.k = model->candidates;
    list.beaten = 0;
    return list;
}

static void best_trim(best *list) {
    bxs_sort_keys(list->keys, list->spare, list->n);
    if (list->n > list->k) {
        list->n = list->k;
    }
    if (list->n == list->k) {
        list->beaten = list->keys[list->k - 1];
    }
}

static void best_add(best *list, uint64_t key) {
    list->keys[list->n++] = key;
    if (list->n == 2 * list->k) {
        best_trim(list);
    }
}

/* ---------------------------------------------------------------- the dense form */

/* Pairs whose class logit is high enough, waiting for their score. */
typedef struct {
    uint32_t index[MAX_HITS];
    float value[MAX_HITS];
    size_t n;
} hits;

static inline void add_hit(hits *found, const float *values, size_t i, float bound) {
    if (values[i] >= bound) {
        found->index[found->n] = (uint32_t)i;
        found->value[found->n] = values[i];
        found->n++;
    }
}

#define BXS_KERNEL_UP_TO_AVX2
#define BXS_KERNEL "scan_kernel.h"
#include "simd_levels.h"

/* A logit below which a score of p cannot be reached, a little lowered because it only saves work:
 * the score itself decides. */
static float logit_bound(double p) {
    p *= 1.0 - 1e-6; /* more than the rounding of a score */
    if (p <= 0.0) {
        return -BXS_FLOAT_MAX;
    }
    const double logit = log(p / (1.0 - p));
    return (float)(logit - 1e-4 * (1.0 + fabs(logit)));
}

static int box_meets_content(const float box[4], const bxs_letterbox *map) {
    return bxs_box_is_valid(box) && box[2] > 0.0f && box[3] > 0.0f &&
           box[0] < (float)map->content_width && box[1] < (float)map->content_height;
}

/* Scores the pairs that were found. */
static void score_hits(const bxs_model *model, const bxs_dense *dense, const bxs_letterbox *map,
                       float bound, bxs_simd level, const hits *found, best *list) {
    const int uses_quality = model->score0 == BXS_SCORE0_SQRT_CLS_QUALITY;
    double p[MAX_HITS], q[MAX_HITS];
    uint32_t indices[MAX_HITS];
    size_t n = 0;
    for (size_t i = 0; i < found->n; i++) {
        const uint32_t location = found->index[i] / model->classes;
        /* the quality alone bounds the score as the class does */
        const float quality = uses_quality ? dense->quality_logits[location] : bound;
        if (found->value[i] <= BXS_FLOAT_MAX && quality >= bound && quality <= BXS_FLOAT_MAX) {
            BXS_PREFETCH(dense->boxes + 4 * (size_t)location);
            p[n] = bxs_limited((double)found->value[i]);
            q[n] = bxs_limited((double)quality);
            indices[n++] = found->index[i];
        }
    }
    BXS_UP_TO_AVX2(level, sigmoids)(p, n);
    if (uses_quality) {
        BXS_UP_TO_AVX2(level, sigmoids)(q, n);
    }
    for (size_t i = 0; i < n; i++) {
        const float score0 = (float)(uses_quality ? sqrt(p[i] * q[i]) : p[i]);
        const uint64_t key = bxs_key(score0, indices[i]);
        if ((double)score0 > model->candidate_score && key > list->beaten &&
            box_meets_content(dense->boxes + 4 * (size_t)(indices[i] / model->classes), map)) {
            best_add(list, key);
        }
    }
}

/* Leaves the best keys sorted in the list. */
static bxs_status scan(const bxs_model *model, const bxs_dense *dense, const bxs_letterbox *map,
                       const bxs_deadline *deadline, best *list) {
    const bxs_simd level = bxs_simd_level(model->simd);
    const size_t n = dense->locations * model->classes;
    const int squared = model->score0 == BXS_SCORE0_SQRT_CLS_QUALITY;
    double least = model->candidate_score;
    hits found;
    for (size_t at = 0; at < n;) {
        if (bxs_expired(deadline)) {
            return BXS_ERROR_DEADLINE;
        }
        const float bound = logit_bound(squared ? least * least : least);
        const size_t end = n - at > POLLED_LOGITS ? at + POLLED_LOGITS : n;
        while (at < end) {
            at = BXS_UP_TO_AVX2(level, find)(dense->class_logits, at, end, bound, &found);
            score_hits(model, dense, map, bound, level, &found, list);
        }
        if (list->beaten != 0) {
            least = (double)bxs_key_score(list->beaten);
        }
    }
    best_trim(list);
    return BXS_OK;
}

/* Where location number `slot` is. */
static void place(const bxs_model *model, const bxs_letterbox *map, bxs_candidate *candidate) {
    uint32_t first = 0;
    for (uint32_t level = 0; level < model->levels; level++) {
        uint32_t stride = model->strides[level];
        uint32_t columns = (map->width + stride - 1) / stride;
        uint32_t rows = (map->height + stride - 1) / stride;
        uint32_t offset = candidate->slot - first;
        if (offset < rows * columns) {
            candidate->level = level;
            candidate->x = (float)(offset % columns * stride + stride / 2);
            candidate->y = (float)(offset / columns * stride + stride / 2);
            return;
        }
        first += rows * columns;
    }
}

static bxs_candidate dense_candidate(const bxs_model *model, const bxs_dense *dense,
                                     const bxs_letterbox *map, uint64_t key) {
    bxs_candidate candidate;
    candidate.index = bxs_key_index(key);
    candidate.score0 = bxs_key_score(key);
    candidate.slot = candidate.index / model->classes;
    candidate.class_index = candidate.index % model->classes;
    memcpy(candidate.box, dense->boxes + 4 * (size_t)candidate.slot, sizeof candidate.box);
    place(model, map, &candidate);
    return candidate;
}

static bxs_status check(const bxs_model *model, const bxs_letterbox *map, const void *scratch,
                        const bxs_candidate *out, const size_t *n) {
    if (model == NULL || map == NULL || scratch == NULL || out == NULL || n == NULL) {
        return BXS_ERROR_NULL;
    }
    bxs_status status = bxs_model_check(model);
    if (status != BXS_OK) {
        return status;
    }
    const size_t locations = bxs_location_count(model, map->height, map->width);
    return locations == 0 || (uint64_t)locations * model->classes >= UINT32_MAX ? BXS_ERROR_SIZE
                                                                                : BXS_OK;
}

static bxs_status check_dense(const bxs_model *model, const bxs_dense *dense,
                              const bxs_letterbox *map) {
    if (dense == NULL || dense->class_logits == NULL || dense->boxes == NULL ||
        (dense->quality_logits == NULL && model->score0 != BXS_SCORE0_CLS)) {
        return BXS_ERROR_NULL;
    }
    return dense->locations == bxs_location_count(model, map->height, map->width) ? BXS_OK
                                                                                  : BXS_ERROR_SIZE;
}

size_t bxs_scan_scratch_size(const bxs_model *model) {
    return bxs_model_check(model) == BXS_OK ? bxs_scratch_total(best_size(model)) : 0;
}

bxs_status bxs_scan_dense(const bxs_model *model, const bxs_dense *dense, const bxs_letterbox *map,
                          void *scratch, size_t scratch_size, bxs_candidate *candidates,
                          size_t room, size_t *n) {
    bxs_status status = check(model, map, scratch, candidates, n);
    status = status == BXS_OK ? check_dense(model, dense, map) : status;
    if (status != BXS_OK) {
        return status;
    }
    if (scratch_size < bxs_scan_scratch_size(model)) {
        return BXS_ERROR_SCRATCH;
    }
    bxs_arena arena = bxs_arena_open(scratch);
    best list = best_open(model, &arena);
    scan(model, dense, map, NULL, &list);
    if (room < list.n) {
        return BXS_ERROR_ROOM;
    }
    for (size_t i = 0; i < list.n; i++) {
        candidates[i] = dense_candidate(model, dense, map, list.keys[i]);
    }
    *n = list.n;
    return BXS_OK;
}

/* ---------------------------------------------------------------- selection */

/* Moves the keys of the boxes that survive to the front; `kept` is their number. */
static bxs_status suppress(const bxs_model *model, const bxs_pairs *pairs, uint64_t *keys, size_t n,
                           const bxs_deadline *deadline, void *memory, size_t *kept) {
    bxs_kept *boxes = bxs_kept_open(memory, model->max_det, model->classes, model->nms_iou,
                                    bxs_simd_level(model->simd));
    *kept = 0;
    for (size_t i = 0; i < n && *kept < model->max_det; i += POLLED_CANDIDATES) {
        if (bxs_expired(deadline)) {
            return BXS_ERROR_DEADLINE;
        }
        const size_t part = n - i < POLLED_CANDIDATES ? n - i : POLLED_CANDIDATES;
        const size_t found = bxs_kept_visit(boxes, pairs, keys + i, part, model->max_det - *kept);
        memmove(keys + *kept, keys + i, found * sizeof *keys);
        *kept += found;
    }
    return BXS_OK;
}

static size_t suppress_size(const bxs_model *model) {
    return bxs_scratch_total(bxs_kept_size(model->max_det, model->classes));
}

size_t bxs_select_scratch_size(const bxs_model *model) {
    return bxs_model_check(model) == BXS_OK
               ? bxs_scratch_total(best_size(model) + suppress_size(model))
               : 0;
}

bxs_status bxs_select_dense(const bxs_model *model, const bxs_dense *dense,
                            const bxs_letterbox *map, const bxs_deadline *deadline, void *scratch,
                            size_t scratch_size, bxs_candidate *kept, size_t room, size_t *n) {
    bxs_status status = check(model, map, scratch, kept, n);
    status = status == BXS_OK ? check_dense(model, dense, map) : status;
    if (status != BXS_OK) {
        return status;
    }
    if (scratch_size < bxs_select_scratch_size(model)) {
        return BXS_ERROR_SCRATCH;
    }
    if (room < model->max_det) {
        return BXS_ERROR_ROOM;
    }
    *n = 0;
    bxs_arena arena = bxs_arena_open(scratch);
    best list = best_open(model, &arena);
    status = scan(model, dense, map, deadline, &list);
    if (status != BXS_OK) {
        return status;
    }
    const bxs_pairs pairs = {dense->boxes, NULL, model->classes};
    status = suppress(model, &pairs, list.keys, list.n, deadline, arena.next, n);
    for (size_t i = 0; i < *n; i++) {
        kept[i] = dense_candidate(model, dense, map, list.keys[i]);
    }
    return status;
}

/* ---------------------------------------------------------------- the topk form */

/* The rows that pass, by location * C + class, so that a row's number breaks ties. */
typedef struct {
    uint64_t *keys, *spare;
    float *boxes;
    uint32_t *classes, *rows;
} ranks;

static size_t ranks_size(const bxs_model *model) {
    const size_t k = model->candidates;
    return 2 * bxs_piece(k * sizeof(uint64_t)) + bxs_piece(4 * k * sizeof(float)) +
           2 * bxs_piece(k * sizeof(uint32_t));
}

static ranks ranks_open(const bxs_model *model, bxs_arena *arena) {
    const size_t k = model->candidates;
    ranks order;
    order.keys = (uint64_t *)bxs_arena_take(arena, k * sizeof(uint64_t));
    order.spare = (uint64_t *)bxs_arena_take(arena, k * sizeof(uint64_t));
    order.boxes = (float *)bxs_arena_take(arena, 4 * k * sizeof(float));
    order.classes = (uint32_t *)bxs_arena_take(arena, k * sizeof(uint32_t));
    order.rows = (uint32_t *)bxs_arena_take(arena, k * sizeof(uint32_t));
    return order;
}

/* location * C + class of a row; UINT32_MAX if its label, level or location does not exist. */
static uint32_t pair_index(const bxs_model *model, const bxs_topk *topk, const bxs_letterbox *map,
                           size_t row) {
    const int32_t level = topk->levels[row], label = topk->labels[row];
    const float x = topk->locations[2 * row], y = topk->locations[2 * row + 1];
    if (level < 0 || (uint32_t)level >= model->levels || label < 0 ||
        (uint32_t)label >= model->classes ||
        !(x >= 0.0f && x <= 2.0f * BXS_MAX_SIDE && y >= 0.0f && y <= 2.0f * BXS_MAX_SIDE)) {
        return UINT32_MAX;
    }
    uint32_t first = 0;
    for (uint32_t i = 0; i < (uint32_t)level; i++) {
        first += ((map->height + model->strides[i] - 1) / model->strides[i]) *
                 ((map->width + model->strides[i] - 1) / model->strides[i]);
    }
    const uint32_t stride = model->strides[level];
    const uint32_t columns = (map->width + stride - 1) / stride;
    const uint32_t rows = (map->height + stride - 1) / stride;
    const uint32_t column = (uint32_t)x / stride, line = (uint32_t)y / stride;
    if (column >= columns || line >= rows || x != (float)(column * stride + stride / 2) ||
        y != (float)(line * stride + stride / 2)) {
        return UINT32_MAX;
    }
    return (first + line * columns + column) * model->classes + (uint32_t)label;
}

/* Leaves keys of score and rank, sorted; `n` is their number. */
static bxs_status rank_rows(const bxs_model *model, const bxs_topk *topk, const bxs_letterbox *map,
                            ranks *order, size_t *n) {
    size_t count = 0;
    for (size_t row = 0; row < topk->rows; row++) {
        const float score0 = topk->scores[row];
        if (!((double)score0 > model->candidate_score && score0 <= BXS_FLOAT_MAX) ||
            !box_meets_content(topk->boxes + 4 * row, map)) {
            continue;
        }
        const uint32_t index = pair_index(model, topk, map, row);
        if (index == UINT32_MAX) {
            return BXS_ERROR_VALUE;
        }
        order->keys[count++] = (uint64_t)~index << 32 | (uint32_t)row;
    }
    bxs_sort_keys(order->keys, order->spare, count);
    for (size_t rank = 0; rank < count; rank++) {
        const uint32_t row = (uint32_t)order->keys[rank];
        memcpy(order->boxes + 4 * rank, topk->boxes + 4 * (size_t)row, 4 * sizeof(float));
        order->classes[rank] = (uint32_t)topk->labels[row];
        order->rows[rank] = row;
        order->keys[rank] = bxs_key(topk->scores[row], (uint32_t)rank);
    }
    bxs_sort_keys(order->keys, order->spare, count);
    *n = count;
    return BXS_OK;
}

static bxs_candidate topk_candidate(const bxs_model *model, const bxs_topk *topk,
                                    const bxs_letterbox *map, uint32_t row) {
    bxs_candidate candidate;
    memcpy(candidate.box, topk->boxes + 4 * (size_t)row, sizeof candidate.box);
    candidate.score0 = topk->scores[row];
    candidate.class_index = (uint32_t)topk->labels[row];
    candidate.index = pair_index(model, topk, map, row);
    candidate.slot = row;
    candidate.level = (uint32_t)topk->levels[row];
    candidate.x = topk->locations[2 * (size_t)row];
    candidate.y = topk->locations[2 * (size_t)row + 1];
    return candidate;
}

size_t bxs_select_topk_scratch_size(const bxs_model *model) {
    return bxs_model_check(model) == BXS_OK
               ? bxs_scratch_total(ranks_size(model) + suppress_size(model))
               : 0;
}

bxs_status bxs_select_topk(const bxs_model *model, const bxs_topk *topk, const bxs_letterbox *map,
                           const bxs_deadline *deadline, void *scratch, size_t scratch_size,
                           bxs_candidate *kept, size_t room, size_t *n) {
    bxs_status status = check(model, map, scratch, kept, n);
    if (status != BXS_OK) {
        return status;
    }
    if (topk == NULL || topk->scores == NULL || topk->labels == NULL || topk->boxes == NULL ||
        topk->locations == NULL || topk->levels == NULL) {
        return BXS_ERROR_NULL;
    }
    if (topk->rows > model->candidates) {
        return BXS_ERROR_SIZE;
    }
    if (scratch_size < bxs_select_topk_scratch_size(model)) {
        return BXS_ERROR_SCRATCH;
    }
    if (room < model->max_det) {
        return BXS_ERROR_ROOM;
    }
    *n = 0;
    bxs_arena arena = bxs_arena_open(scratch);
    ranks order = ranks_open(model, &arena);
    size_t count;
    status = rank_rows(model, topk, map, &order, &count);
    if (status != BXS_OK) {
        return status;
    }
    const bxs_pairs pairs = {order.boxes, order.classes, 1};
    status = suppress(model, &pairs, order.keys, count, deadline, arena.next, n);
    for (size_t i = 0; i < *n; i++) {
        kept[i] = topk_candidate(model, topk, map, order.rows[bxs_key_index(order.keys[i])]);
    }
    return status;
}
