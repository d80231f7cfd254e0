/* The part of suppression that starts from boxes in order. */
#ifndef BXS_NMS_H
#define BXS_NMS_H

#include "boxseg.h"

/* Boxes kept so far, per class in chunks of columns. */
typedef struct bxs_kept bxs_kept;

size_t bxs_kept_size(size_t capacity, uint32_t class_count);
bxs_kept *bxs_kept_open(void *memory, size_t capacity, uint32_t class_count, double iou_threshold);

/* Adds the box and returns 1, or returns 0 if a kept box of its class suppresses it. */
int bxs_kept_offer(bxs_kept *kept, const float box[4], uint32_t class_index);

/* Whether all sides are finite and none is empty. */
static inline int bxs_box_is_valid(const float box[4]) {
    const float limit = 3.402823466e38f;
    for (int i = 0; i < 4; i++) {
        if (!(box[i] >= -limit && box[i] <= limit)) {
            return 0;
        }
    }
    return box[2] > box[0] && box[3] > box[1];
}

#endif
