/* Greedy suppression against the kept boxes of the same class. */
#include "nms.h"

#include "arena.h"
#include "order.h"
#include "platform.h"
#include "simd.h"

#include <math.h>

#define CHUNK 16
#define NONE UINT32_MAX
#define SAMPLES 256

/* Kept boxes, one array per quantity. The centre of an unused lane is not a number. */
typedef struct {
    float x[CHUNK], y[CHUNK]; /* centres */
    float x1[CHUNK], y1[CHUNK], x2[CHUNK], y2[CHUNK], area[CHUNK];
    uint32_t class_index[CHUNK];
} chunk;

typedef struct {
    uint32_t used;
    uint32_t next;
} link;

/* The chunks of one class, oldest first. */
typedef struct {
    uint32_t first, last, count;
} class_list;

struct bxs_kept {
    class_list *lists;
    chunk *chunks;
    link *links;
    uint32_t chunk_count;
    float threshold; /* the largest float that is <= the double threshold */
    float next_threshold;
    float reach; /* see visitor; per unit of the box's side */
    bxs_simd level;
};

/* A box that is tested against the kept ones.
 *
 * Two boxes whose IoU is above t have an overlap of more than t times the larger side on each
 * axis, so their sides differ by a factor of less than 1 / t and their centres lie less than
 * (1 - t) / (2 t) sides apart. `reach` is this distance, made larger by more than the
 * rounding of centres, sides and IoU can be. */
typedef struct {
    float box[4];
    float area;
    float x, y;
    float reach_x, reach_y;
    uint32_t class_index;
} visitor;

static float rounded_down(double value) {
    float rounded = (float)value;
    return (double)rounded > value ? nextafterf(rounded, -1.0f) : rounded;
}

static size_t chunk_capacity(size_t capacity, uint32_t class_count) {
    return capacity / CHUNK + (capacity < class_count ? capacity : class_count) + 1;
}

size_t bxs_kept_size(size_t capacity, uint32_t class_count) {
    const size_t chunks = chunk_capacity(capacity, class_count);
    return bxs_piece(sizeof(bxs_kept)) + bxs_piece(class_count * sizeof(class_list)) +
           bxs_piece(chunks * sizeof(chunk)) + bxs_piece(chunks * sizeof(link));
}

bxs_kept *bxs_kept_open(void *memory, size_t capacity, uint32_t class_count, double iou_threshold,
                        bxs_simd level) {
    const size_t chunks = chunk_capacity(capacity, class_count);
    bxs_arena arena = bxs_arena_open(memory);
    bxs_kept *kept = (bxs_kept *)bxs_arena_take(&arena, sizeof(bxs_kept));
    kept->lists = (class_list *)bxs_arena_take(&arena, class_count * sizeof(class_list));
    kept->chunks = (chunk *)bxs_arena_take(&arena, chunks * sizeof(chunk));
    kept->links = (link *)bxs_arena_take(&arena, chunks * sizeof(link));
    kept->chunk_count = 0;
    kept->threshold = rounded_down(iou_threshold);
    kept->level = level;
    kept->next_threshold = nextafterf(kept->threshold, 2.0f);
    const double t = iou_threshold * (1.0 - 1e-5);
    kept->reach = t < 1e-6 ? INFINITY : (float)((1.0 - t) / (2.0 * t) * (1.0 + 1e-5));
    for (uint32_t i = 0; i < class_count; i++) {
        kept->lists[i].first = NONE;
        kept->lists[i].last = NONE;
        kept->lists[i].count = 0;
    }
    return kept;
}

static inline int meet(const bxs_kept *kept, const bxs_pairs *pairs, uint32_t index, visitor *v) {
    uint32_t row = index;
    if (pairs->classes != NULL) {
        v->class_index = pairs->classes[index];
    } else {
        row = index / pairs->columns;
        v->class_index = index % pairs->columns;
    }
    const float *box = pairs->boxes + 4 * (size_t)row;
    memcpy(v->box, box, sizeof v->box);
    const float width = box[2] - box[0];
    const float height = box[3] - box[1];
    if (!(width > 0.0f && height > 0.0f && width <= BXS_FLOAT_MAX && height <= BXS_FLOAT_MAX) &&
        !bxs_box_is_valid(box)) {
        return 0;
    }
    v->area = width * height;
    v->x = 0.5f * box[0] + 0.5f * box[2];
    v->y = 0.5f * box[1] + 0.5f * box[3];
    const int regular = v->area >= 1e-30f && v->area <= 1e30f;
    v->reach_x = regular ? kept->reach * width + 5e-7f * (fabsf(box[0]) + fabsf(box[2])) : INFINITY;
    v->reach_y =
        regular ? kept->reach * height + 5e-7f * (fabsf(box[1]) + fabsf(box[3])) : INFINITY;
    return 1;
}

static float iou(const chunk *c, uint32_t lane, const visitor *v) {
    const float left = c->x1[lane] > v->box[0] ? c->x1[lane] : v->box[0];
    const float top = c->y1[lane] > v->box[1] ? c->y1[lane] : v->box[1];
    const float right = c->x2[lane] < v->box[2] ? c->x2[lane] : v->box[2];
    const float bottom = c->y2[lane] < v->box[3] ? c->y2[lane] : v->box[3];
    const float width = right > left ? right - left : 0.0f;
    const float height = bottom > top ? bottom - top : 0.0f;
    const float inter = width * height;
    return inter / (c->area[lane] + v->area - inter);
}

static uint32_t new_chunk(bxs_kept *kept) {
    const uint32_t index = kept->chunk_count++;
    for (int i = 0; i < CHUNK; i++) {
        kept->chunks[index].x[i] = NAN;
    }
    kept->links[index].used = 0;
    kept->links[index].next = NONE;
    return index;
}

static inline void append(bxs_kept *kept, const visitor *v) {
    class_list *list = &kept->lists[v->class_index];
    if (list->last == NONE) {
        list->first = list->last = new_chunk(kept);
    } else if (kept->links[list->last].used == CHUNK) {
        const uint32_t next = new_chunk(kept);
        kept->links[list->last].next = next;
        list->last = next;
    }
    chunk *c = &kept->chunks[list->last];
    const uint32_t lane = kept->links[list->last].used++;
    c->x[lane] = v->x;
    c->y[lane] = v->y;
    c->x1[lane] = v->box[0];
    c->y1[lane] = v->box[1];
    c->x2[lane] = v->box[2];
    c->y2[lane] = v->box[3];
    c->area[lane] = v->area;
    list->count++;
}

#define BXS_KERNEL "nms_kernel.h"
#include "simd_levels.h"

size_t bxs_kept_visit(bxs_kept *kept, const bxs_pairs *pairs, uint64_t *keys, size_t n,
                      size_t room) {
    return BXS_AT_LEVEL(kept->level, visit)(kept, pairs, keys, n, room);
}

size_t bxs_nms_scratch_size(size_t n, uint32_t class_count) {
    if (n > UINT32_MAX / 2 || class_count < 1 || class_count > BXS_MAX_CLASSES) {
        return 0;
    }
    return bxs_scratch_total(2 * bxs_piece(n * sizeof(uint64_t)) +
                             bxs_scratch_total(bxs_kept_size(n, class_count)));
}

/* Scores are visited in blocks, highest first, so that those that are never reached need not be
 * sorted. Samples tell where a block of some size ends; each is twice as large as the one before,
 * which bounds the work also where the samples mislead. */
typedef struct {
    float low, high; /* the block: low <= score < high */
    float least;     /* where all blocks end */
    uint64_t samples[SAMPLES];
    size_t n_samples;
    size_t at;   /* samples in all blocks so far */
    size_t size; /* samples in the next block */
} blocks;

static blocks plan_blocks(const float *scores, size_t n, float score_threshold, size_t max_keep,
                          bxs_simd level) {
    blocks left;
    left.low = INFINITY;
    left.least = nextafterf(score_threshold, INFINITY);
    left.n_samples = 0;
    left.at = 0;
    left.size = 1;
    if (n >= 8 * SAMPLES && max_keep < n / 4) {
        float chosen[SAMPLES];
        uint64_t spare[SAMPLES];
        for (size_t i = 0; i < SAMPLES; i++) {
            chosen[i] = scores[i * (n / SAMPLES)];
        }
        left.n_samples =
            BXS_AT_LEVEL(level, collect)(chosen, SAMPLES, left.least, INFINITY, left.samples);
        bxs_sort_keys(left.samples, spare, left.n_samples);
        left.size += 2 * max_keep / (n / SAMPLES);
    }
    return left;
}

/* 0 if there is no block left. */
static int next_block(blocks *left) {
    if (left->low <= left->least) {
        return 0;
    }
    left->high = left->low;
    left->low = left->least;
    left->at += left->size;
    left->size *= 2;
    if (left->at < left->n_samples) {
        const float score = bxs_key_score(left->samples[left->at]);
        left->low = score < left->high ? score : left->least;
    }
    return 1;
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
    uint32_t foreign = 0;
    for (size_t i = 0; classes != NULL && i < n; i++) {
        foreign |= classes[i] >= class_count;
    }
    if (foreign) {
        return BXS_ERROR_VALUE;
    }
    const bxs_pairs pairs = {boxes, classes, 1};
    bxs_arena arena = bxs_arena_open(scratch);
    uint64_t *keys = (uint64_t *)bxs_arena_take(&arena, n * sizeof(uint64_t));
    uint64_t *spare = (uint64_t *)bxs_arena_take(&arena, n * sizeof(uint64_t));
    bxs_kept *kept = bxs_kept_open(arena.next, n, class_count, iou_threshold, level);
    blocks left = plan_blocks(scores, n, score_threshold, max_keep, level);
    while (*n_keep < max_keep && next_block(&left)) {
        size_t count = BXS_AT_LEVEL(level, collect)(scores, n, left.low, left.high, keys);
        bxs_sort_keys(keys, spare, count);
        count = bxs_kept_visit(kept, &pairs, keys, count, max_keep - *n_keep);
        for (size_t i = 0; i < count; i++) {
            keep[(*n_keep)++] = bxs_key_index(keys[i]);
        }
    }
    return BXS_OK;
}
