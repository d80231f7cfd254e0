/* Greedy suppression against the kept boxes of the same class. */
#include "nms.h"

#include "arena.h"
#include "order.h"
#include "platform.h"
#include "simd.h"

#include <math.h>

#define CHUNK 8
#define NONE UINT32_MAX
#define SAMPLES 256
#define GRID_FROM 256 /* boxes of a class, from which on the grid is faster than its list */
#define MAX_SPANS 8
#define AHEAD 16 /* visits between the request for a box and its use */

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

/* Two boxes whose IoU is above t have an IoU above t on each axis too. There, their sides differ by
 * a factor below 1 / t, and their centres lie less than (1 - t) / (2 + 2 t) of the sum of their
 * sides apart, which is less than (1 - t) / (2 t) of either side. So a box need only be compared
 * with those near it: lane by lane in the list of its class, or, where that is long, in a grid.
 *
 * The grid has cells for each power of 4 that a box's width lies above and each that its height
 * does, as wide and as high as four times these powers; a box is in the cell of its centre. The
 * cells share a number of buckets, which are lists of chunks, so that a chunk may hold any classes.
 */
struct bxs_kept {
    class_list *lists;
    chunk *chunks;
    link *links;
    uint32_t chunk_count;
    float threshold;      /* the largest float that is <= the double threshold */
    float next_threshold; /* the float after it */
    float least_ratio;    /* of two sides; lowered, as the distances below are enlarged, by more
                             than the rounding of sides, centres and IoU can be */
    float reach;          /* distance of centres per side of one box */
    double reach_of_sum;  /* the same per sum of both sides */
    uint32_t *buckets;
    unsigned int bucket_bits; /* 0: no grid */
    int grid_is_open;
    bxs_simd level;
};

/* A box that is tested against the kept ones. */
typedef struct {
    float box[4];
    float width, height, area;
    float x, y; /* centre */
    float reach_x, reach_y;
    int is_regular; /* no product of its sides overflows or loses digits */
    uint32_t class_index;
} visitor;

/* Cells of one size along an axis. */
typedef struct {
    uint32_t power;
    int32_t low, high;
} span;

static float rounded_down(double value) {
    float rounded = (float)value;
    return (double)rounded > value ? nextafterf(rounded, -1.0f) : rounded;
}

static size_t list_chunks(size_t capacity, uint32_t class_count) {
    return capacity / CHUNK + (capacity < class_count ? capacity : class_count) + 1;
}

/* One bucket for 8 to 16 boxes; none if no class can become large. */
static unsigned int bucket_bits_for(size_t capacity) {
    unsigned int bits = 0;
    while (capacity > 2 * GRID_FROM && capacity >> bits >= 16) {
        bits++;
    }
    return bits;
}

static size_t grid_chunks(size_t capacity, unsigned int bucket_bits) {
    return bucket_bits == 0 ? 0 : capacity / CHUNK + ((size_t)1 << bucket_bits);
}

size_t bxs_kept_size(size_t capacity, uint32_t class_count) {
    const unsigned int bits = bucket_bits_for(capacity);
    const size_t chunks = list_chunks(capacity, class_count) + grid_chunks(capacity, bits);
    return bxs_piece(sizeof(bxs_kept)) + bxs_piece(class_count * sizeof(class_list)) +
           bxs_piece(chunks * sizeof(chunk)) + bxs_piece(chunks * sizeof(link)) +
           bxs_piece(sizeof(uint32_t) << bits);
}

bxs_kept *bxs_kept_open(void *memory, size_t capacity, uint32_t class_count, double iou_threshold,
                        bxs_simd level) {
    const unsigned int bits = bucket_bits_for(capacity);
    const size_t chunks = list_chunks(capacity, class_count) + grid_chunks(capacity, bits);
    const double t = iou_threshold * (1.0 - 1e-5);
    bxs_arena arena = bxs_arena_open(memory);
    bxs_kept *kept = (bxs_kept *)bxs_arena_take(&arena, sizeof(bxs_kept));
    kept->lists = (class_list *)bxs_arena_take(&arena, class_count * sizeof(class_list));
    kept->chunks = (chunk *)bxs_arena_take(&arena, chunks * sizeof(chunk));
    kept->links = (link *)bxs_arena_take(&arena, chunks * sizeof(link));
    kept->buckets = (uint32_t *)bxs_arena_take(&arena, sizeof(uint32_t) << bits);
    kept->chunk_count = 0;
    kept->threshold = rounded_down(iou_threshold);
    kept->next_threshold = nextafterf(kept->threshold, 2.0f);
    kept->least_ratio = (float)t;
    kept->reach = t < 1e-6 ? INFINITY : (float)((1.0 - t) / (2.0 * t) * (1.0 + 1e-5));
    kept->reach_of_sum = (1.0 - t) / (2.0 + 2.0 * t) * (1.0 + 1e-5);
    kept->bucket_bits = t < 0.05 ? 0 : bits; /* below, too many cells are near */
    kept->grid_is_open = 0;
    kept->level = level;
    for (uint32_t i = 0; i < class_count; i++) {
        kept->lists[i].first = NONE;
        kept->lists[i].last = NONE;
        kept->lists[i].count = 0;
    }
    return kept;
}

static inline const float *box_of(const bxs_pairs *pairs, uint32_t index) {
    return pairs->boxes + 4 * (size_t)(pairs->classes != NULL ? index : index / pairs->columns);
}

/* Reads a box; 0 if it is not valid. */
static inline int meet(const bxs_kept *kept, const bxs_pairs *pairs, uint32_t index, visitor *v) {
    const float *box = box_of(pairs, index);
    v->class_index = pairs->classes != NULL ? pairs->classes[index] : index % pairs->columns;
    memcpy(v->box, box, sizeof v->box);
    v->width = box[2] - box[0];
    v->height = box[3] - box[1];
    /* the sides of valid boxes are finite, unless they overflow */
    if (!(v->width > 0.0f && v->width <= BXS_FLOAT_MAX && v->height > 0.0f &&
          v->height <= BXS_FLOAT_MAX) &&
        !bxs_box_is_valid(box)) {
        return 0;
    }
    v->area = v->width * v->height;
    v->x = 0.5f * box[0] + 0.5f * box[2];
    v->y = 0.5f * box[1] + 0.5f * box[3];
    v->is_regular = v->area >= 1e-30f && v->area <= 1e30f;
    v->reach_x = v->reach_y = INFINITY;
    if (v->is_regular) {
        v->reach_x = kept->reach * v->width + 5e-7f * (fabsf(box[0]) + fabsf(box[2]));
        v->reach_y = kept->reach * v->height + 5e-7f * (fabsf(box[1]) + fabsf(box[3]));
    }
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

static uint32_t new_chunk(bxs_kept *kept, uint32_t next) {
    const uint32_t index = kept->chunk_count++;
    for (int i = 0; i < CHUNK; i++) {
        kept->chunks[index].x[i] = NAN;
    }
    kept->links[index].used = 0;
    kept->links[index].next = next;
    return index;
}

/* ---------------------------------------------------------------- grid */

/* Power of 4, counted from 2^-127, that a side is at least. */
static inline uint32_t power_of(float side) {
    uint32_t bits;
    memcpy(&bits, &side, sizeof bits);
    return bits >> 24; /* half of the exponent */
}

/* 2^exponent of a normal number. */
static inline double power_of_two(int exponent) {
    const uint64_t bits = (uint64_t)(exponent + 1023) << 52;
    double power;
    memcpy(&power, &bits, sizeof power);
    return power;
}

/* Cell that a coordinate lies in. A box's coordinate is less than 2^25 of its sides, and only cells
 * of about its side are asked for: the result fits. */
static inline int32_t cell_of(double coordinate, uint32_t power) {
    const double position = coordinate * power_of_two(125 - 2 * (int)power);
    const int32_t cell = (int32_t)position;
    return position < (double)cell ? cell - 1 : cell;
}

static inline uint32_t *bucket_of(const bxs_kept *kept, uint32_t class_index, uint32_t power_x,
                                  uint32_t power_y, int32_t column, int32_t row) {
    const uint32_t hash = (uint32_t)column * 0x9e3779b1u + (uint32_t)row * 0x85ebca77u +
                          (power_x * 128u + power_y) * 0xc2b2ae3du + class_index * 0x27d4eb2fu;
    return &kept->buckets[hash >> (32 - kept->bucket_bits)];
}

/* Finds the cells along an axis that may hold the centre of a box near enough. */
static BXS_NOINLINE size_t find_spans(const bxs_kept *kept, float low, float high, float side,
                                      float reach, span spans[MAX_SPANS], size_t *cells) {
    const uint32_t last = power_of(side / kept->least_ratio);
    const double centre = 0.5 * ((double)low + (double)high);
    size_t n = 0;
    *cells = 0;
    for (uint32_t power = power_of(side * kept->least_ratio); power <= last; power++, n++) {
        /* the other box's side is less than 4 times the power */
        const double sum = (double)side + power_of_two(2 * (int)power - 125);
        const double most = kept->reach_of_sum * sum;
        const double distance = most < (double)reach ? most : (double)reach;
        spans[n].power = power;
        spans[n].low = cell_of(centre - distance, power);
        spans[n].high = cell_of(centre + distance, power);
        *cells += (size_t)(spans[n].high - spans[n].low) + 1;
    }
    return n;
}

/* Puts lane `from` of a chunk into the grid. */
static void add_to_grid(bxs_kept *kept, const chunk *source, uint32_t from) {
    const float x1 = source->x1[from], x2 = source->x2[from];
    const float y1 = source->y1[from], y2 = source->y2[from];
    const uint32_t power_x = power_of(x2 - x1), power_y = power_of(y2 - y1);
    uint32_t *bucket = bucket_of(kept, source->class_index[from], power_x, power_y,
                                 cell_of(0.5 * ((double)x1 + (double)x2), power_x),
                                 cell_of(0.5 * ((double)y1 + (double)y2), power_y));
    if (*bucket == NONE || kept->links[*bucket].used == CHUNK) {
        *bucket = new_chunk(kept, *bucket);
    }
    chunk *c = &kept->chunks[*bucket];
    const uint32_t lane = kept->links[*bucket].used++;
    c->x[lane] = source->x[from];
    c->y[lane] = source->y[from];
    c->x1[lane] = x1;
    c->y1[lane] = y1;
    c->x2[lane] = x2;
    c->y2[lane] = y2;
    c->area[lane] = source->area[from];
    c->class_index[lane] = source->class_index[from];
}

/* Puts all boxes of a class into the grid. */
static BXS_NOINLINE void move_to_grid(bxs_kept *kept, const class_list *list) {
    if (!kept->grid_is_open) {
        memset(kept->buckets, 0xff, sizeof(uint32_t) << kept->bucket_bits);
        kept->grid_is_open = 1;
    }
    for (uint32_t i = list->first; i != NONE; i = kept->links[i].next) {
        for (uint32_t lane = 0; lane < kept->links[i].used; lane++) {
            add_to_grid(kept, &kept->chunks[i], lane);
        }
    }
}

/* ---------------------------------------------------------------- visits */

static inline void append(bxs_kept *kept, const visitor *v) {
    class_list *list = &kept->lists[v->class_index];
    if (list->last == NONE) {
        list->first = list->last = new_chunk(kept, NONE);
    } else if (kept->links[list->last].used == CHUNK) {
        const uint32_t next = new_chunk(kept, NONE);
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
    c->class_index[lane] = v->class_index;
    list->count++;
    if (kept->bucket_bits != 0 && list->count > GRID_FROM) {
        add_to_grid(kept, c, lane);
    } else if (kept->bucket_bits != 0 && list->count == GRID_FROM) {
        move_to_grid(kept, list);
    }
}

#define BXS_KERNEL "nms_kernel.h"
#include "simd_levels.h"

size_t bxs_kept_visit(bxs_kept *kept, const bxs_pairs *pairs, uint64_t *keys, size_t n,
                      size_t room) {
    return BXS_AT_LEVEL(kept->level, visit)(kept, pairs, keys, n, room);
}

/* ---------------------------------------------------------------- bxs_nms */

size_t bxs_nms_scratch_size(size_t n, uint32_t class_count) {
    /* a box needs less than 512 bytes */
    if (n > UINT32_MAX / 2 || n > SIZE_MAX / 512 || class_count < 1 ||
        class_count > BXS_MAX_CLASSES) {
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
