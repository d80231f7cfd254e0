/* Greedy suppression against the kept boxes of the same class. */
#include "nms.h"

#include "arena.h"
#include "order.h"
#include "platform.h"
#include "simd.h"

#include <math.h>

#define LANES 16
#define NONE UINT32_MAX

/* Kept boxes of one class, one array per coordinate. Unused lanes hold an empty box far away. */
typedef struct {
    float x1[LANES], y1[LANES], x2[LANES], y2[LANES], area[LANES];
    uint32_t used;
    uint32_t next; /* an older, full chunk of the class */
} chunk;

struct bxs_kept {
    uint32_t *newest; /* per class */
    chunk *chunks;
    uint32_t chunk_count;
    float threshold; /* the largest float that is <= the double threshold */
};

/* A float is > the double threshold exactly if it is > the threshold rounded down to a float. */
static float rounded_down(double value) {
    float rounded = (float)value;
    return (double)rounded > value ? nextafterf(rounded, -1.0f) : rounded;
}

static size_t chunk_capacity(size_t capacity, uint32_t class_count) {
    return capacity / LANES + (capacity < class_count ? capacity : class_count) + 1;
}

size_t bxs_kept_size(size_t capacity, uint32_t class_count) {
    return bxs_piece(sizeof(bxs_kept)) + bxs_piece(class_count * sizeof(uint32_t)) +
           bxs_piece(chunk_capacity(capacity, class_count) * sizeof(chunk));
}

bxs_kept *bxs_kept_open(void *memory, size_t capacity, uint32_t class_count, double iou_threshold) {
    bxs_arena arena = bxs_arena_open(memory);
    bxs_kept *kept = (bxs_kept *)bxs_arena_take(&arena, sizeof(bxs_kept));
    kept->newest = (uint32_t *)bxs_arena_take(&arena, class_count * sizeof(uint32_t));
    kept->chunks =
        (chunk *)bxs_arena_take(&arena, chunk_capacity(capacity, class_count) * sizeof(chunk));
    kept->chunk_count = 0;
    kept->threshold = rounded_down(iou_threshold);
    for (uint32_t i = 0; i < class_count; i++) {
        kept->newest[i] = NONE;
    }
    return kept;
}

/* Whether the IoU with any lane is above the threshold. */
static int chunk_suppresses(const chunk *BXS_RESTRICT c, const float box[4], float area,
                            float threshold) {
    const float x1 = box[0], y1 = box[1], x2 = box[2], y2 = box[3];
    int hits = 0;
    for (int i = 0; i < LANES; i++) {
        float left = c->x1[i] > x1 ? c->x1[i] : x1;
        float top = c->y1[i] > y1 ? c->y1[i] : y1;
        float right = c->x2[i] < x2 ? c->x2[i] : x2;
        float bottom = c->y2[i] < y2 ? c->y2[i] : y2;
        float width = right - left;
        float height = bottom - top;
        width = width > 0.0f ? width : 0.0f;
        height = height > 0.0f ? height : 0.0f;
        float inter = width * height;
        hits |= inter / (c->area[i] + area - inter) > threshold;
    }
    return hits;
}

static void empty_chunk(chunk *c, uint32_t next) {
    for (int i = 0; i < LANES; i++) {
        c->x1[i] = c->y1[i] = 3e38f;
        c->x2[i] = c->y2[i] = -3e38f;
        c->area[i] = 1.0f;
    }
    c->used = 0;
    c->next = next;
}

int bxs_kept_offer(bxs_kept *kept, const float box[4], uint32_t class_index) {
    float area = (box[2] - box[0]) * (box[3] - box[1]);
    uint32_t newest = kept->newest[class_index];
    for (uint32_t i = newest; i != NONE; i = kept->chunks[i].next) {
        if (chunk_suppresses(&kept->chunks[i], box, area, kept->threshold)) {
            return 0;
        }
    }
    if (newest == NONE || kept->chunks[newest].used == LANES) {
        empty_chunk(&kept->chunks[kept->chunk_count], newest);
        newest = kept->newest[class_index] = kept->chunk_count++;
    }
    chunk *c = &kept->chunks[newest];
    c->x1[c->used] = box[0];
    c->y1[c->used] = box[1];
    c->x2[c->used] = box[2];
    c->y2[c->used] = box[3];
    c->area[c->used] = area;
    c->used++;
    return 1;
}

size_t bxs_nms_scratch_size(size_t n, uint32_t class_count) {
    if (n > UINT32_MAX / 2 || class_count < 1 || class_count > BXS_MAX_CLASSES) {
        return 0;
    }
    return bxs_scratch_total(2 * bxs_piece(n * sizeof(uint64_t)) +
                             bxs_scratch_total(bxs_kept_size(n, class_count)));
}

bxs_status bxs_nms(const float *boxes, const float *scores, const uint32_t *classes, size_t n,
                   uint32_t class_count, double iou_threshold, float score_threshold,
                   size_t max_keep, bxs_simd simd, void *scratch, size_t scratch_size,
                   uint32_t *keep, size_t *n_keep) {
    if (n_keep == NULL) {
        return BXS_ERROR_NULL;
    }
    *n_keep = 0;
    if (n == 0) {
        return BXS_OK;
    }
    if (boxes == NULL || scores == NULL || scratch == NULL || keep == NULL) {
        return BXS_ERROR_NULL;
    }
    size_t needed = bxs_nms_scratch_size(n, class_count);
    if (needed == 0) {
        return BXS_ERROR_SIZE;
    }
    if (scratch_size < needed) {
        return BXS_ERROR_SCRATCH;
    }
    const bxs_simd level = bxs_simd_level(simd);
    if (!(iou_threshold >= 0.0 && iou_threshold <= 1.0) || score_threshold != score_threshold ||
        level == BXS_SIMD_BEST) {
        return BXS_ERROR_VALUE;
    }
    bxs_arena arena = bxs_arena_open(scratch);
    uint64_t *keys = (uint64_t *)bxs_arena_take(&arena, n * sizeof(uint64_t));
    uint64_t *spare = (uint64_t *)bxs_arena_take(&arena, n * sizeof(uint64_t));
    size_t count = 0;
    for (size_t i = 0; i < n; i++) {
        if (classes != NULL && classes[i] >= class_count) {
            return BXS_ERROR_VALUE;
        }
        if (scores[i] > score_threshold && scores[i] <= 3.402823466e38f &&
            bxs_box_is_valid(boxes + 4 * i)) {
            keys[count++] = bxs_key(scores[i], (uint32_t)i);
        }
    }
    bxs_sort_keys(keys, spare, count);
    bxs_kept *kept = bxs_kept_open(arena.next, n, class_count, iou_threshold);
    for (size_t i = 0; i < count && *n_keep < max_keep; i++) {
        uint32_t index = bxs_key_index(keys[i]);
        if (bxs_kept_offer(kept, boxes + 4 * (size_t)index, classes ? classes[index] : 0)) {
            keep[(*n_keep)++] = index;
        }
    }
    return BXS_OK;
}
