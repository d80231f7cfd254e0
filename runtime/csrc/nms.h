/* The part of suppression that starts from keys in order. */
#ifndef BXS_NMS_H
#define BXS_NMS_H

#include "boxseg.h"

#define BXS_FLOAT_MAX 3.402823466e38f

/* Boxes kept so far. */
typedef struct bxs_kept bxs_kept;

/* Where the box and the class of an index are. */
typedef struct {
    const float *boxes;      /* rows of 4 */
    const uint32_t *classes; /* of each row, which is the index; or NULL: then the row is
                                index / columns and the class index % columns */
    uint32_t columns;
} bxs_pairs;

size_t bxs_kept_size(size_t capacity, uint32_t class_count);
bxs_kept *bxs_kept_open(void *memory, size_t capacity, uint32_t class_count, double iou_threshold,
                        bxs_simd level);

/* Visits n sorted keys and keeps up to `room` boxes. The keys of those that it keeps are moved to
 * the front; returns how many there are. The capacity holds over all visits. */
size_t bxs_kept_visit(bxs_kept *kept, const bxs_pairs *pairs, uint64_t *keys, size_t n,
                      size_t room);

/* Whether all sides are finite and none is empty. */
static inline int bxs_box_is_valid(const float box[4]) {
    for (int i = 0; i < 4; i++) {
        if (!(box[i] >= -BXS_FLOAT_MAX && box[i] <= BXS_FLOAT_MAX)) {
            return 0;
        }
    }
    return box[2] > box[0] && box[3] > box[1];
}

#endif
