/* From dense outputs to the kept candidates. */
#include <math.h>

#include "arena.h"
#include "boxseg.h"
#include "deadline.h"
#include "nms.h"
#include "order.h"
#include "sigmoid.h"
#include "simd.h"

#define POLLED_EVERY 64 /* candidates */
#define FINITE_LIMIT 3.402823466e38f

/* The best K keys so far. Room for 2 K: when it is full, the lower half is dropped. */
typedef struct {
    uint64_t *keys, *spare;
    size_t n, k;
    uint64_t beaten; /* keys up to this one cannot be among the best K */
} best;

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
    if (key <= list->beaten) {
        return;
    }
    list->keys[list->n++] = key;
    if (list->n == 2 * list->k) {
        best_trim(list);
    }
}

/* The logit below which a score of p cannot be reached, a little lowered because it only saves
 * work: the score itself decides. */
static float logit_bound(double p) {
    if (p <= 0.0) {
        return -FINITE_LIMIT;
    }
    double logit = log(p / (1.0 - p));
    return (float)(logit - 1e-4 * (1.0 + fabs(logit)));
}

static float score0_of(const bxs_model *model, float class_logit, double quality) {
    double p = bxs_sigmoid((double)class_logit);
    return (float)(model->score0 == BXS_SCORE0_CLS ? p : sqrt(p * quality));
}

/* Whether any class logit reaches the bound; a loop without branches. */
static int any_at_least(const float *logits, uint32_t n, float bound) {
    int any = 0;
    for (uint32_t i = 0; i < n; i++) {
        any |= logits[i] >= bound;
    }
    return any;
}

static int box_meets_content(const float box[4], const bxs_letterbox *map) {
    return bxs_box_is_valid(box) && box[2] > 0.0f && box[3] > 0.0f &&
           box[0] < (float)map->content_width && box[1] < (float)map->content_height;
}

static void scan_locations(const bxs_model *model, const bxs_dense *dense, const bxs_letterbox *map,
                           best *list) {
    const uint32_t classes = model->classes;
    const int uses_quality = model->score0 == BXS_SCORE0_SQRT_CLS_QUALITY;
    const double least = model->candidate_score;
    const float bound = logit_bound(uses_quality ? least * least : least);
    for (size_t location = 0; location < dense->locations; location++) {
        const float *logits = dense->class_logits + location * classes;
        double quality = 1.0;
        if (uses_quality) {
            float logit = dense->quality_logits[location];
            if (!(logit >= bound && logit <= FINITE_LIMIT)) {
                continue;
            }
            if (!any_at_least(logits, classes, bound)) {
                continue;
            }
            quality = bxs_sigmoid((double)logit);
        } else if (!any_at_least(logits, classes, bound)) {
            continue;
        }
        if (!box_meets_content(dense->boxes + 4 * location, map)) {
            continue;
        }
        for (uint32_t c = 0; c < classes; c++) {
            if (!(logits[c] >= bound && logits[c] <= FINITE_LIMIT)) {
                continue;
            }
            float score0 = score0_of(model, logits[c], quality);
            if ((double)score0 > least) {
                best_add(list, bxs_key(score0, (uint32_t)(location * classes + c)));
            }
        }
    }
}

/* Level, column and row of a location. */
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

static bxs_candidate candidate_of(const bxs_model *model, const bxs_dense *dense,
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

static bxs_status check(const bxs_model *model, const bxs_dense *dense, const bxs_letterbox *map,
                        const void *scratch, const bxs_candidate *out, const size_t *n) {
    if (model == NULL || dense == NULL || map == NULL || scratch == NULL || out == NULL ||
        n == NULL || dense->class_logits == NULL || dense->boxes == NULL ||
        (dense->quality_logits == NULL && model->score0 != BXS_SCORE0_CLS)) {
        return BXS_ERROR_NULL;
    }
    bxs_status status = bxs_model_check(model);
    if (status != BXS_OK) {
        return status;
    }
    if (dense->locations == 0 ||
        dense->locations != bxs_location_count(model, map->height, map->width) ||
        (uint64_t)dense->locations * model->classes >= UINT32_MAX) {
        return BXS_ERROR_SIZE;
    }
    return BXS_OK;
}

static size_t list_pieces(const bxs_model *model) {
    return 2 * bxs_piece(2 * (size_t)model->candidates * sizeof(uint64_t));
}

/* Leaves the best keys sorted in the list. */
static void scan(const bxs_model *model, const bxs_dense *dense, const bxs_letterbox *map,
                 bxs_arena *arena, best *list) {
    size_t bytes = 2 * (size_t)model->candidates * sizeof(uint64_t);
    list->keys = (uint64_t *)bxs_arena_take(arena, bytes);
    list->spare = (uint64_t *)bxs_arena_take(arena, bytes);
    list->n = 0;
    list->k = model->candidates;
    list->beaten = 0;
    scan_locations(model, dense, map, list);
    best_trim(list);
}

size_t bxs_scan_scratch_size(const bxs_model *model) {
    return bxs_model_check(model) == BXS_OK ? bxs_scratch_total(list_pieces(model)) : 0;
}

bxs_status bxs_scan_dense(const bxs_model *model, const bxs_dense *dense, const bxs_letterbox *map,
                          void *scratch, size_t scratch_size, bxs_candidate *candidates,
                          size_t room, size_t *n) {
    bxs_status status = check(model, dense, map, scratch, candidates, n);
    if (status != BXS_OK) {
        return status;
    }
    if (scratch_size < bxs_scan_scratch_size(model)) {
        return BXS_ERROR_SCRATCH;
    }
    bxs_arena arena = bxs_arena_open(scratch);
    best list;
    scan(model, dense, map, &arena, &list);
    if (room < list.n) {
        return BXS_ERROR_ROOM;
    }
    for (size_t i = 0; i < list.n; i++) {
        candidates[i] = candidate_of(model, dense, map, list.keys[i]);
    }
    *n = list.n;
    return BXS_OK;
}

size_t bxs_select_scratch_size(const bxs_model *model) {
    if (bxs_model_check(model) != BXS_OK) {
        return 0;
    }
    return bxs_scratch_total(list_pieces(model) +
                             bxs_scratch_total(bxs_kept_size(model->max_det, model->classes)));
}

bxs_status bxs_select_dense(const bxs_model *model, const bxs_dense *dense,
                            const bxs_letterbox *map, const bxs_deadline *deadline, void *scratch,
                            size_t scratch_size, bxs_candidate *kept, size_t room, size_t *n) {
    bxs_status status = check(model, dense, map, scratch, kept, n);
    if (status != BXS_OK) {
        return status;
    }
    if (scratch_size < bxs_select_scratch_size(model)) {
        return BXS_ERROR_SCRATCH;
    }
    if (room < model->max_det) {
        return BXS_ERROR_ROOM;
    }
    bxs_arena arena = bxs_arena_open(scratch);
    best list;
    scan(model, dense, map, &arena, &list);
    const bxs_pairs pairs = {dense->boxes, NULL, model->classes};
    bxs_kept *boxes = bxs_kept_open(arena.next, model->max_det, model->classes, model->nms_iou,
                                    bxs_simd_level(model->simd));
    *n = 0;
    for (size_t i = 0; i < list.n && *n < model->max_det; i += POLLED_EVERY) {
        if (bxs_expired(deadline)) {
            return BXS_ERROR_DEADLINE;
        }
        const size_t part = list.n - i < POLLED_EVERY ? list.n - i : POLLED_EVERY;
        const size_t found =
            bxs_kept_visit(boxes, &pairs, list.keys + i, part, model->max_det - *n);
        for (size_t j = 0; j < found; j++) {
            kept[(*n)++] = candidate_of(model, dense, map, list.keys[i + j]);
        }
    }
    return BXS_OK;
}
