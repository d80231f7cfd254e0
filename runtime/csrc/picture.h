/* Pictures drawn from the places where columns change. */
#ifndef BXS_PICTURE_H
#define BXS_PICTURE_H

#include "boxseg.h"
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

/* Draws a window of a mask as bytes 0 and 1, or as bits, in rows that lie `stride` bytes apart; all
 * bytes of those rows are set. The window is a part of the frame. */
bxs_status bxs_rle_draw(const char *text, size_t length, uint32_t height, uint32_t width,
                        bxs_region window, int is_bits, uint8_t *out, size_t stride);

#endif
