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
#define MAX_CELLS 61  /* along an axis: more than a threshold of 0.05 asks for */
#define BATCH 32      /* buckets that are asked together */
#define AHEAD 16      /* visits between the request for a box and its use */
#define FEW 512       /* boxes of a class, up to which all are tested against all kept ones */

/* Kept boxes, one array per quantity. The class of an unused lane is NONE. */
typedef struct {
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
 * with those near it: where the list of its class is long, they are looked up in a grid.
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
    /* Of two sides; widened, as the distances below are, by more than the rounding of sides,
     * centres and IoU can be. */
    float least_ratio, most_ratio;
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
    int is_regular; /* no product of its sides overflows or loses digits */
    uint32_t class_index;
} visitor;

static float rounded_down(double value) {
    float rounded = (float)value;
    return (double)rounded > value ? nextafterf(rounded, -1.0f) : rounded;
}

static size_t list_chunks(size_t capacity, uint32_t class_count) {
    return capacity / CHUNK + (capacity < class_count ? capacity : class_count) + 1;
}

/* One bucket for 4 to 8 boxes; none if no class can become large. */
static unsigned int bucket_bits_for(size_t capacity) {
    unsigned int bits = 0;
    while (capacity > 2 * GRID_FROM && capacity >> bits >= 8) {
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
    kept->most_ratio = t < 1e-6 ? INFINITY : (float)(1.0 / t);
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

static inline uint32_t class_of(const bxs_pairs *pairs, uint32_t index) {
    return pairs->classes != NULL ? pairs->classes[index] : index % pairs->columns;
}

/* Reads a box; 0 if it is not valid. */
static inline int meet(const bxs_pairs *pairs, uint32_t index, visitor *v) {
    const float *box = box_of(pairs, index);
    v->class_index = class_of(pairs, index);
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
    v->is_regular = v->area >= 1e-30f && v->area <= 1e30f;
    return 1;
}

/* `areas` is the sum of both. */
static float iou(const float a[4], const float b[4], float areas) {
    const float left = a[0] > b[0] ? a[0] : b[0];
    const float top = a[1] > b[1] ? a[1] : b[1];
    const float right = a[2] < b[2] ? a[2] : b[2];
    const float bottom = a[3] < b[3] ? a[3] : b[3];
    const float width = right > left ? right - left : 0.0f;
    const float height = bottom > top ? bottom - top : 0.0f;
    const float inter = width * height;
    return inter / (areas - inter);
}

static uint32_t new_chunk(bxs_kept *kept, uint32_t next) {
    const uint32_t index = kept->chunk_count++;
    for (int i = 0; i < CHUNK; i++) {
        kept->chunks[index].class_index[i] = NONE;
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

/* Cell that a coordinate lies in: its position in units of cells, rounded by adding 1.5 * 2^52,
 * which leaves a whole number in the low bits. A box's coordinate is less than 2^25 of its sides,
 * and only cells of about its side are asked for: the result fits. */
static inline int32_t cell_of(double coordinate, uint32_t power) {
    const double position = coordinate * power_of_two(125 - 2 * (int)power) + 6755399441055744.0;
    uint64_t bits;
    memcpy(&bits, &position, sizeof bits);
    return (int32_t)(uint32_t)bits;
}

/* The share of a column of cells, of a row and of a class in the number of a bucket. */
static inline uint32_t column_share(int32_t column, uint32_t power) {
    return (uint32_t)column * 0x9e3779b1u + power * 128u * 0xc2b2ae3du;
}

static inline uint32_t row_share(int32_t row, uint32_t power) {
    return (uint32_t)row * 0x85ebca77u + power * 0xc2b2ae3du;
}

static inline uint32_t class_share(uint32_t class_index) {
    return class_index * 0x27d4eb2fu;
}

static inline uint32_t *bucket_of(const bxs_kept *kept, uint32_t shares) {
    return &kept->buckets[shares >> (32 - kept->bucket_bits)];
}

/* Finds the cells along an axis that may hold the centre of a box near enough, and gives the shares
 * of each; returns how many they are, at most MAX_CELLS, or MAX_CELLS for more. */
static inline size_t find_cells(const bxs_kept *kept, float low, float high, float side,
                                uint32_t (*share)(int32_t, uint32_t), uint32_t *shares) {
    const uint32_t first = power_of(side * kept->least_ratio);
    const uint32_t last = power_of(side * kept->most_ratio);
    const double centre = 0.5 * ((double)low + (double)high);
    const double reach = (double)(kept->reach * side);
    size_t n = 0;
    for (uint32_t power = first; power <= last; power += 2) {
        /* two sizes and two cells of each without a branch: mostly there are no more */
        for (uint32_t i = 0; i < 2; i++) {
            const uint32_t of = power + i;
            /* the other box's side is less than 4 times the power */
            const double most =
                kept->reach_of_sum * ((double)side + power_of_two(2 * (int)of - 125));
            const double distance = most < reach ? most : reach;
            const int32_t from = cell_of(centre - distance, of);
            const int32_t end = cell_of(centre + distance, of);
            const uint32_t is_asked = of <= last;
            shares[n] = share(from, of);
            n += is_asked;
            shares[n] = share(end, of);
            n += is_asked & (end != from);
            for (int32_t cell = from + 1; cell < end; cell++) {
                shares[n] = share(cell, of);
                n += is_asked & (n < MAX_CELLS);
            }
            n = n < MAX_CELLS ? n : MAX_CELLS;
        }
    }
    return n;
}

/* Puts lane `from` of a chunk into the grid. */
static void add_to_grid(bxs_kept *kept, const chunk *source, uint32_t from) {
    const float x1 = source->x1[from], x2 = source->x2[from];
    const float y1 = source->y1[from], y2 = source->y2[from];
    const uint32_t power_x = power_of(x2 - x1), power_y = power_of(y2 - y1);
    const int32_t column = cell_of(0.5 * ((double)x1 + (double)x2), power_x);
    const int32_t row = cell_of(0.5 * ((double)y1 + (double)y2), power_y);
    uint32_t *bucket = bucket_of(kept, column_share(column, power_x) + row_share(row, power_y) +
                                           class_share(source->class_index[from]));
    if (*bucket == NONE || kept->links[*bucket].used == CHUNK) {
        *bucket = new_chunk(kept, *bucket);
    }
    chunk *c = &kept->chunks[*bucket];
    const uint32_t lane = kept->links[*bucket].used++;
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

/* ---------------------------------------------------------------- one class after the other */

/* The boxes of a class, best first; CHUNK more of each array may be read and written. */
typedef struct {
    float *boxes; /* rows of 4 */
    float *areas;
    const uint32_t *ranks; /* among the boxes of all classes */
    size_t n;
} members;

static int beats(const bxs_kept *kept, const members *all, size_t a, size_t b) {
    const float areas = all->areas[a] + all->areas[b];
    return iou(all->boxes + 4 * a, all->boxes + 4 * b, areas) > kept->threshold;
}

/* Finds by division which of the boxes from `first` on stay, as bits; `valid` has a bit for each
 * that may, and the kept ones are in front. */
static BXS_NOINLINE uint32_t keep_in_doubt(const bxs_kept *kept, const members *all, size_t count,
                                           size_t first, uint32_t valid) {
    uint32_t left = 0;
    for (uint32_t lane = 0; valid >> lane != 0; lane++) {
        int stays = (int)(valid >> lane & 1);
        for (size_t i = 0; stays && i < count; i++) {
            stays = !beats(kept, all, i, first + lane);
        }
        for (uint32_t i = 0; stays && i < lane; i++) {
            stays = !(left >> i & 1 && beats(kept, all, first + i, first + lane));
        }
        left |= (uint32_t)stays << lane;
    }
    return left;
}

#define BXS_KERNEL_UP_TO_AVX2
#define BXS_KERNEL "nms_kernel.h"
#include "simd_levels.h"

size_t bxs_kept_visit(bxs_kept *kept, const bxs_pairs *pairs, uint64_t *keys, size_t n,
                      size_t room) {
    return BXS_UP_TO_AVX2(kept->level, visit)(kept, pairs, keys, n, room);
}

static size_t by_class_size(size_t n, uint32_t class_count) {
    const size_t room = n + CHUNK;
    return bxs_piece(4 * room * sizeof(float)) + bxs_piece(room * sizeof(float)) +
           bxs_piece(n * sizeof(uint32_t)) +
           bxs_piece((class_count + (size_t)1) * sizeof(uint32_t)) + bxs_piece(n);
}

/* Writes the boxes of sorted keys and their ranks class by class, and where each class ends. */
static BXS_NOINLINE void part_classes(const bxs_pairs *pairs, const uint64_t *keys, size_t n,
                                      uint32_t class_count, float *boxes, uint32_t *ranks,
                                      uint32_t *ends) {
    memset(ends, 0, (class_count + (size_t)1) * sizeof *ends);
    for (size_t i = 0; i < n; i++) {
        const uint32_t index = bxs_key_index(keys[i]);
        BXS_PREFETCH(box_of(pairs, index));
        ends[class_of(pairs, index) + 1]++;
    }
    for (uint32_t i = 1; i < class_count; i++) {
        ends[i] += ends[i - 1]; /* the end of the class before is where this one begins */
    }
    for (size_t i = 0; i < n; i++) {
        const uint32_t index = bxs_key_index(keys[i]);
        const uint32_t at = ends[class_of(pairs, index)]++;
        memcpy(boxes + 4 * (size_t)at, box_of(pairs, index), 4 * sizeof(float));
        ranks[at] = (uint32_t)i;
    }
}

/* Visits sorted keys class by class; writes the indices of the best `room` that are kept, in the
 * order of the keys, and returns how many there are. */
static size_t keep_by_class(bxs_kept *kept, const bxs_pairs *pairs, const uint64_t *keys, size_t n,
                            uint64_t *spare, uint32_t class_count, size_t room, bxs_arena arena,
                            uint32_t *keep) {
    float *boxes = (float *)bxs_arena_take(&arena, 4 * (n + CHUNK) * sizeof(float));
    float *areas = (float *)bxs_arena_take(&arena, (n + CHUNK) * sizeof(float));
    uint32_t *ranks = (uint32_t *)bxs_arena_take(&arena, n * sizeof(uint32_t));
    uint32_t *ends =
        (uint32_t *)bxs_arena_take(&arena, (class_count + (size_t)1) * sizeof(uint32_t));
    uint8_t *is_kept = (uint8_t *)bxs_arena_take(&arena, n);
    memset(is_kept, 0, n);
    part_classes(pairs, keys, n, class_count, boxes, ranks, ends);
    for (uint32_t i = 0, at = 0; i < class_count; at = ends[i++]) {
        const members all = {boxes + 4 * (size_t)at, areas + at, ranks + at, ends[i] - at};
        if (all.n <= FEW) {
            BXS_UP_TO_AVX2(kept->level, keep_of_class)(kept, &all, room, is_kept);
            continue;
        }
        for (size_t j = 0; j < all.n; j++) {
            spare[j] = keys[all.ranks[j]];
        }
        const size_t count = bxs_kept_visit(kept, pairs, spare, all.n, room);
        for (size_t j = 0, k = 0; k < count; j++) {
            const int stays = keys[all.ranks[j]] == spare[k];
            is_kept[all.ranks[j]] = (uint8_t)stays;
            k += (size_t)stays;
        }
    }
    size_t count = 0;
    for (size_t i = 0; i < n && count < room; i++) {
        keep[count] = bxs_key_index(keys[i]);
        count += is_kept[i];
    }
    return count;
}

/* ---------------------------------------------------------------- bxs_nms */

size_t bxs_nms_scratch_size(size_t n, uint32_t class_count) {
    /* a box needs less than 512 bytes */
    if (n > UINT32_MAX / 2 || n > SIZE_MAX / 512 || class_count < 1 ||
        class_count > BXS_MAX_CLASSES) {
        return 0;
    }
    return bxs_scratch_total(2 * bxs_piece(n * sizeof(uint64_t)) + by_class_size(n, class_count) +
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
            BXS_UP_TO_AVX2(level, collect)(chosen, SAMPLES, left.least, INFINITY, left.samples);
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
    if (classes != NULL) {
        size_t i = 0;
        for (; i + 64 <= n; i += 64) { /* with vectors */
            for (size_t j = 0; j < 64; j++) {
                foreign |= classes[i + j] >= class_count;
            }
        }
        for (; i < n; i++) {
            foreign |= classes[i] >= class_count;
        }
    }
    if (foreign) {
        return BXS_ERROR_VALUE;
    }
    const bxs_pairs pairs = {boxes, classes, 1};
    bxs_arena arena = bxs_arena_open(scratch);
    uint64_t *keys = (uint64_t *)bxs_arena_take(&arena, n * sizeof(uint64_t));
    uint64_t *spare = (uint64_t *)bxs_arena_take(&arena, n * sizeof(uint64_t));
    void *memory = bxs_arena_take(&arena, bxs_scratch_total(bxs_kept_size(n, class_count)));
    bxs_kept *kept = bxs_kept_open(memory, n, class_count, iou_threshold, level);
    blocks left = plan_blocks(scores, n, score_threshold, max_keep, level);
    while (*n_keep < max_keep && next_block(&left)) {
        size_t count = BXS_UP_TO_AVX2(level, collect)(scores, n, left.low, left.high, keys);
        bxs_sort_keys(keys, spare, count);
        /* where this block is the only one and most of it is needed */
        if (left.n_samples == 0 && max_keep >= count / 4 && (class_count > 1 || count <= FEW)) {
            *n_keep = keep_by_class(kept, &pairs, keys, count, spare, class_count, max_keep, arena,
                                    keep);
            break;
        }
        count = bxs_kept_visit(kept, &pairs, keys, count, max_keep - *n_keep);
        for (size_t i = 0; i < count; i++) {
            keep[(*n_keep)++] = bxs_key_index(keys[i]);
        }
    }
    return BXS_OK;
}
