/* COCO's run-length text: encode bytes, decode, measure. */
#include "boxseg.h"
#include "picture.h"
#include "run_reader.h"
#include "run_text.h"

#include <string.h>

static int size_is_valid(uint32_t height, uint32_t width) {
    return height >= 1 && width >= 1 && height <= BXS_MAX_SIDE && width <= BXS_MAX_SIDE;
}

size_t bxs_rle_text_size(uint32_t height, uint32_t width) {
    if (!size_is_valid(height, width)) {
        return 0;
    }
    uint64_t pixels = (uint64_t)height * width;
    return (size_t)(pixels + 1) * run_text_characters(pixels);
}

bxs_status bxs_rle_encode(const uint8_t *mask, uint32_t height, uint32_t width, char *text,
                          size_t room, size_t *length, uint32_t *area) {
    if (mask == NULL || text == NULL || length == NULL || area == NULL) {
        return BXS_ERROR_NULL;
    }
    if (!size_is_valid(height, width)) {
        return BXS_ERROR_SIZE;
    }
    run_text writer = run_text_open(text, room);
    uint64_t at = 0;
    int is_on = 0;
    for (uint32_t x = 0; x < width; x++) {
        for (uint32_t y = 0; y < height; y++, at++) {
            if ((mask[(size_t)y * width + x] != 0) != is_on) {
                is_on = !is_on;
                run_text_change(&writer, at);
            }
        }
    }
    run_text_close(&writer, at);
    *length = writer.length;
    *area = (uint32_t)writer.area;
    return writer.is_full ? BXS_ERROR_ROOM : BXS_OK;
}

/* Sets the pixels first..last (down the columns) that lie in the window. */
static void paint(uint64_t first, uint64_t last, uint32_t height, bxs_region window, uint8_t value,
                  uint8_t *out, size_t row_stride) {
    uint32_t x = (uint32_t)(first / height);
    uint32_t y = (uint32_t)(first % height);
    uint64_t left = last - first;
    while (left > 0 && x < window.x1) {
        uint64_t in_column = height - y < left ? height - y : left;
        if (x >= window.x0) {
            uint32_t from = y > window.y0 ? y : window.y0;
            uint32_t end = y + (uint32_t)in_column;
            uint32_t to = end < window.y1 ? end : window.y1;
            uint8_t *pixel = out + (x - window.x0);
            for (uint32_t row = from; row < to; row++) {
                pixel[(row - window.y0) * row_stride] = value;
            }
        }
        left -= in_column;
        x++;
        y = 0;
    }
}

bxs_status bxs_rle_paint(const char *text, size_t length, uint32_t height, uint32_t width,
                         bxs_region window, uint8_t value, uint8_t *out, size_t row_stride,
                         size_t room) {
    if (text == NULL || out == NULL) {
        return BXS_ERROR_NULL;
    }
    if (!size_is_valid(height, width) || window.x0 >= window.x1 || window.y0 >= window.y1 ||
        window.x1 > width || window.y1 > height) {
        return BXS_ERROR_SIZE;
    }
    size_t columns = window.x1 - window.x0;
    if (row_stride < columns) {
        return BXS_ERROR_STRIDE;
    }
    if (room < columns || (window.y1 - window.y0 - 1) > (room - columns) / row_stride) {
        return BXS_ERROR_ROOM;
    }
    run_walk walk = run_walk_open(text, length, height, width);
    int found;
    while ((found = run_walk_next(&walk)) > 0) {
        paint(walk.first, walk.last, height, window, value, out, row_stride);
    }
    return found == 0 ? BXS_OK : BXS_ERROR_TEXT;
}

/* Grows the box by the pixels first..last, which are at least one. */
static void enclose(uint64_t first, uint64_t last, uint32_t height, bxs_region *box) {
    uint32_t x0 = (uint32_t)(first / height);
    uint32_t x1 = (uint32_t)((last - 1) / height);
    uint32_t y0 = x0 == x1 ? (uint32_t)(first % height) : 0;
    uint32_t y1 = x0 == x1 ? (uint32_t)((last - 1) % height) : height - 1;
    box->x0 = x0 < box->x0 ? x0 : box->x0;
    box->x1 = x1 + 1 > box->x1 ? x1 + 1 : box->x1;
    box->y0 = y0 < box->y0 ? y0 : box->y0;
    box->y1 = y1 + 1 > box->y1 ? y1 + 1 : box->y1;
}

bxs_status bxs_rle_measure(const char *text, size_t length, uint32_t height, uint32_t width,
                           uint32_t *area, bxs_region *box) {
    if (text == NULL || area == NULL || box == NULL) {
        return BXS_ERROR_NULL;
    }
    if (!size_is_valid(height, width)) {
        return BXS_ERROR_SIZE;
    }
    run_walk walk = run_walk_open(text, length, height, width);
    bxs_region around = {width, height, 0, 0};
    uint64_t count = 0;
    int found;
    while ((found = run_walk_next(&walk)) > 0) {
        enclose(walk.first, walk.last, height, &around);
        count += walk.last - walk.first;
    }
    if (found < 0) {
        return BXS_ERROR_TEXT;
    }
    if (count == 0) {
        around.x0 = around.y0 = 0;
    }
    *area = (uint32_t)count;
    *box = around;
    return BXS_OK;
}

/* A window that is drawn by marking where its columns change. */
typedef struct {
    uint8_t *out;
    size_t stride;
    bxs_region window;
    uint32_t height;         /* of the frame */
    int is_bits;             /* bit x % 8 of byte x / 8 is pixel x; else byte x is */
    uint32_t x0, x1, y0, y1; /* what holds marks, from the window's corner */
} canvas;

static void mark(canvas *to, uint64_t first, uint64_t last) {
    const bxs_region *window = &to->window;
    uint32_t x = (uint32_t)(first / to->height);
    uint32_t y = (uint32_t)(first % to->height);
    uint64_t left = last - first;
    while (left > 0 && x < window->x1) {
        const uint64_t in_column = to->height - y < left ? to->height - y : left;
        const uint32_t end = y + (uint32_t)in_column;
        if (x >= window->x0 && y < window->y1 && end > window->y0) {
            const uint32_t column = x - window->x0;
            const uint32_t from = y > window->y0 ? y - window->y0 : 0;
            const uint32_t until = (end < window->y1 ? end : window->y1) - window->y0;
            uint8_t *top = to->out + (to->is_bits ? column / 8 : column);
            const uint8_t flip = (uint8_t)(to->is_bits ? 1u << column % 8 : 1u);
            top[from * to->stride] ^= flip;
            if (end < window->y1) {
                top[until * to->stride] ^= flip;
            }
            to->x0 = column < to->x0 ? column : to->x0;
            to->x1 = column + 1;
            to->y0 = from < to->y0 ? from : to->y0;
            to->y1 = until > to->y1 ? until : to->y1;
        }
        left -= in_column;
        x++;
        y = 0;
    }
}

bxs_status bxs_rle_draw(const char *text, size_t length, uint32_t height, uint32_t width,
                        bxs_region window, int is_bits, uint8_t *out, size_t stride) {
    const uint32_t rows = window.y1 - window.y0;
    memset(out, 0, rows * stride);
    canvas to = {out, stride, window, height, is_bits, UINT32_MAX, 0, UINT32_MAX, 0};
    run_walk walk = run_walk_open(text, length, height, width);
    int found;
    while ((found = run_walk_next(&walk)) > 0) {
        mark(&to, walk.first, walk.last);
    }
    if (to.x1 > 0) {
        const size_t first = is_bits ? to.x0 / 8 : to.x0;
        const size_t last = is_bits ? ((size_t)to.x1 + 7) / 8 : to.x1;
        const uint32_t end = to.y1 < rows ? to.y1 + 1 : rows; /* the last marks are below */
        bxs_carry_down(out + to.y0 * stride + first, last - first, end - to.y0, stride);
    }
    return found == 0 ? BXS_OK : BXS_ERROR_TEXT;
}

static int window_is_valid(bxs_region window, uint32_t height, uint32_t width) {
    return size_is_valid(height, width) && window.x0 < window.x1 && window.y0 < window.y1 &&
           window.x1 <= width && window.y1 <= height;
}

bxs_status bxs_rle_bytes(const char *text, size_t length, uint32_t height, uint32_t width,
                         bxs_region window, uint8_t *out, size_t room) {
    if (text == NULL || out == NULL) {
        return BXS_ERROR_NULL;
    }
    if (!window_is_valid(window, height, width)) {
        return BXS_ERROR_SIZE;
    }
    const size_t stride = window.x1 - window.x0;
    return room / stride < window.y1 - window.y0
               ? BXS_ERROR_ROOM
               : bxs_rle_draw(text, length, height, width, window, 0, out, stride);
}

bxs_status bxs_rle_bits(const char *text, size_t length, uint32_t height, uint32_t width,
                        bxs_region window, uint8_t *out, size_t room) {
    if (text == NULL || out == NULL) {
        return BXS_ERROR_NULL;
    }
    if (!window_is_valid(window, height, width)) {
        return BXS_ERROR_SIZE;
    }
    const size_t stride = ((size_t)(window.x1 - window.x0) + 7) / 8;
    return room / stride < window.y1 - window.y0
               ? BXS_ERROR_ROOM
               : bxs_rle_draw(text, length, height, width, window, 1, out, stride);
}

/* ---------------------------------------------------------------- label image */

size_t bxs_label_image_scratch_size(uint32_t height, uint32_t width) {
    return size_is_valid(height, width) ? (size_t)height * width : 0;
}

static bxs_status check_labels(const bxs_text *masks, size_t n, size_t most, uint32_t height,
                               uint32_t width, const void *scratch, size_t scratch_size,
                               const void *out, size_t row_stride, size_t room) {
    if (scratch == NULL || out == NULL || (n > 0 && masks == NULL)) {
        return BXS_ERROR_NULL;
    }
    if (!size_is_valid(height, width) || n > most) {
        return BXS_ERROR_SIZE;
    }
    if (scratch_size < bxs_label_image_scratch_size(height, width)) {
        return BXS_ERROR_SCRATCH;
    }
    if (row_stride < width) {
        return BXS_ERROR_STRIDE;
    }
    return room < width || height - 1 > (room - width) / row_stride ? BXS_ERROR_ROOM : BXS_OK;
}

/* Draws a mask into the scratch, as small as it is; *box is empty if it is. */
static bxs_status draw_small(const bxs_text *mask, uint32_t height, uint32_t width,
                             uint8_t *scratch, bxs_region *box) {
    uint32_t area;
    if (mask->text == NULL) {
        return BXS_ERROR_NULL;
    }
    bxs_status status = bxs_rle_measure(mask->text, mask->length, height, width, &area, box);
    return status != BXS_OK || area == 0 ? status
                                         : bxs_rle_draw(mask->text, mask->length, height, width,
                                                        *box, 0, scratch, box->x1 - box->x0);
}

/* The compiler makes vectors of these loops. */
#define LABEL_IMAGE(name, pixel, most)                                                             \
    bxs_status name(const bxs_text *masks, size_t n, uint32_t height, uint32_t width,              \
                    void *scratch, size_t scratch_size, pixel *out, size_t row_stride,             \
                    size_t room) {                                                                 \
        bxs_status status = check_labels(masks, n, most, height, width, scratch, scratch_size,     \
                                         out, row_stride, room);                                   \
        for (size_t y = 0; status == BXS_OK && y < height; y++) {                                  \
            memset(out + y * row_stride, 0, width * sizeof *out);                                  \
        }                                                                                          \
        for (size_t i = n; status == BXS_OK && i-- > 0;) {                                         \
            const uint8_t *BXS_RESTRICT row = (const uint8_t *)scratch;                            \
            bxs_region box;                                                                        \
            status = draw_small(&masks[i], height, width, (uint8_t *)scratch, &box);               \
            const size_t columns = status == BXS_OK ? box.x1 - box.x0 : 0;                         \
            for (uint32_t y = box.y0; columns > 0 && y < box.y1; y++, row += columns) {            \
                pixel *BXS_RESTRICT to = out + y * row_stride + box.x0;                            \
                for (size_t x = 0; x < columns; x++) {                                             \
                    to[x] = row[x] ? (pixel)(i + 1) : to[x];                                       \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
        return status;                                                                             \
    }

LABEL_IMAGE(bxs_label_image_u8, uint8_t, UINT8_MAX)
LABEL_IMAGE(bxs_label_image_u16, uint16_t, UINT16_MAX)
