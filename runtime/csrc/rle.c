/* COCO's run-length text: encode bytes, decode, measure. */
#include "boxseg.h"
#include "run_text.h"

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

/* Reads counts one after the other. */
typedef struct {
    const char *text;
    size_t length, at;
    int64_t previous[2];
    uint32_t counts;
} reader;

/* The next run's pixels, or -1 if the text is malformed. */
static int64_t read_count(reader *r) {
    int64_t value = 0;
    int64_t weight = 1;
    for (int groups = 0; groups < 9; groups++) {
        if (r->at == r->length) {
            return -1;
        }
        int group = r->text[r->at++] - 48;
        if (group < 0 || group > 63) {
            return -1;
        }
        value += (group & 0x1f) * weight;
        weight *= 32;
        if ((group & 0x20) == 0) {
            value -= group & 0x10 ? weight : 0;
            value += r->counts > 2 ? r->previous[1] : 0;
            r->previous[1] = r->previous[0];
            r->previous[0] = value;
            r->counts += r->counts < 3;
            return value < 0 ? -1 : value;
        }
    }
    return -1;
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
    const uint64_t pixels = (uint64_t)height * width;
    reader r = {text, length, 0, {0, 0}, 0};
    uint64_t at = 0;
    for (uint32_t on = 0; r.at < length; on = !on) {
        int64_t run = read_count(&r);
        if (run < 0 || (uint64_t)run > pixels - at) {
            return BXS_ERROR_TEXT;
        }
        if (on) {
            paint(at, at + (uint64_t)run, height, window, value, out, row_stride);
        }
        at += (uint64_t)run;
    }
    return at == pixels ? BXS_OK : BXS_ERROR_TEXT;
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
    const uint64_t pixels = (uint64_t)height * width;
    reader r = {text, length, 0, {0, 0}, 0};
    bxs_region found = {width, height, 0, 0};
    uint64_t at = 0;
    uint64_t count = 0;
    for (uint32_t on = 0; r.at < length; on = !on) {
        int64_t run = read_count(&r);
        if (run < 0 || (uint64_t)run > pixels - at) {
            return BXS_ERROR_TEXT;
        }
        if (on && run > 0) {
            enclose(at, at + (uint64_t)run, height, &found);
            count += (uint64_t)run;
        }
        at += (uint64_t)run;
    }
    if (at != pixels) {
        return BXS_ERROR_TEXT;
    }
    if (count == 0) {
        found.x0 = found.y0 = 0;
    }
    *area = (uint32_t)count;
    *box = found;
    return BXS_OK;
}
