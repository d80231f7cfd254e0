/* Pictures drawn from the places where columns change. */
#ifndef BXS_PICTURE_H
#define BXS_PICTURE_H

#include "platform.h"

#include <stddef.h>
#include <stdint.h>

/* Turns marks of where columns change into what the pixels are: every row takes over the one
 * above, changed where it is marked. The compiler makes vectors of it. */
static inline void bxs_carry_down(uint8_t *rect, size_t width, size_t rows, size_t stride) {
    for (size_t y = 1; y < rows; y++) {
        const uint8_t *BXS_RESTRICT above = rect + (y - 1) * stride;
        uint8_t *BXS_RESTRICT row = rect + y * stride;
        for (size_t x = 0; x < width; x++) {
            row[x] ^= above[x];
        }
    }
}

#endif
