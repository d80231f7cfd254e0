/* Letterbox and bilinear resize of bytes.
 *
 * Integer arithmetic: weights of 11 bits per axis, products of at most 30 bits, one rounding. */
#include <math.h>
#include <string.h>

#include "arena.h"
#include "boxseg.h"
#include "platform.h"

#define WEIGHT_BITS 11
#define WEIGHT_ONE (1 << WEIGHT_BITS)

static int side_is_valid(uint32_t side) {
    return side >= 1 && side <= BXS_MAX_SIDE;
}

static int map_is_valid(const bxs_letterbox *map) {
    return side_is_valid(map->frame_height) && side_is_valid(map->frame_width) &&
           side_is_valid(map->height) && side_is_valid(map->width) && map->content_height >= 1 &&
           map->content_width >= 1 && map->content_height <= map->height &&
           map->content_width <= map->width;
}

/* round(side * ratio), halves up, in 1..limit */
static uint32_t scaled_side(uint32_t side, double ratio, uint32_t limit) {
    double scaled = floor((double)side * ratio + 0.5);
    if (scaled < 1.0) {
        return 1;
    }
    return scaled < (double)limit ? (uint32_t)scaled : limit;
}

bxs_status bxs_letterbox_fit(uint32_t frame_height, uint32_t frame_width, uint32_t height,
                             uint32_t width, bxs_letterbox *map) {
    if (map == NULL) {
        return BXS_ERROR_NULL;
    }
    if (!side_is_valid(frame_height) || !side_is_valid(frame_width) || !side_is_valid(height) ||
        !side_is_valid(width)) {
        return BXS_ERROR_SIZE;
    }
    double down = (double)height / (double)frame_height;
    double across = (double)width / (double)frame_width;
    double ratio = down < across ? down : across;
    map->frame_height = frame_height;
    map->frame_width = frame_width;
    map->content_height = scaled_side(frame_height, ratio, height);
    map->content_width = scaled_side(frame_width, ratio, width);
    map->height = height;
    map->width = width;
    return BXS_OK;
}

bxs_status bxs_letterbox_short_long(uint32_t frame_height, uint32_t frame_width,
                                    uint32_t short_side, uint32_t long_side, uint32_t divisor,
                                    bxs_letterbox *map) {
    if (map == NULL) {
        return BXS_ERROR_NULL;
    }
    if (!side_is_valid(frame_height) || !side_is_valid(frame_width) || !side_is_valid(short_side) ||
        !side_is_valid(long_side) || !side_is_valid(divisor) || short_side > long_side) {
        return BXS_ERROR_SIZE;
    }
    uint32_t shorter = frame_height < frame_width ? frame_height : frame_width;
    uint32_t longer = frame_height < frame_width ? frame_width : frame_height;
    double ratio = (double)short_side / (double)shorter;
    if (ratio * (double)longer > (double)long_side) {
        ratio = (double)long_side / (double)longer;
    }
    map->frame_height = frame_height;
    map->frame_width = frame_width;
    map->content_height = scaled_side(frame_height, ratio, long_side);
    map->content_width = scaled_side(frame_width, ratio, long_side);
    map->height = (map->content_height + divisor - 1) / divisor * divisor;
    map->width = (map->content_width + divisor - 1) / divisor * divisor;
    return map_is_valid(map) ? BXS_OK : BXS_ERROR_SIZE;
}

/* The two source positions of an output position and the weight of the second. */
typedef struct {
    uint32_t first, second;
    int32_t weight;
} tap;

static tap tap_at(uint32_t position, uint32_t old_side, uint32_t new_side) {
    double centre = ((double)position + 0.5) * ((double)old_side / (double)new_side) - 0.5;
    tap result = {0, 0, 0};
    if (centre <= 0.0) {
        return result;
    }
    double lower = floor(centre);
    if (lower >= (double)(old_side - 1)) {
        result.first = result.second = old_side - 1;
        return result;
    }
    result.first = (uint32_t)lower;
    result.weight = (int32_t)floor((centre - lower) * WEIGHT_ONE + 0.5);
    result.second = result.first + 1;
    return result;
}

/* Source of a resize: which byte of a pixel each output channel takes. */
typedef struct {
    const uint8_t *data;
    size_t row_stride;
    uint32_t height, width;
    uint32_t pixel_bytes;
    uint32_t channels;
    uint32_t channel_byte[4];
} source;

/* Weighted sums of one source row, scaled by WEIGHT_ONE. Inlined with constant channels. */
static inline void blend_across(const uint8_t *row, const tap *taps, uint32_t new_width,
                                uint32_t pixel_bytes, uint32_t channels,
                                const uint32_t *channel_byte, int32_t *out) {
    for (uint32_t x = 0; x < new_width; x++) {
        const uint8_t *first = row + (size_t)taps[x].first * pixel_bytes;
        const uint8_t *second = row + (size_t)taps[x].second * pixel_bytes;
        int32_t weight = taps[x].weight;
        for (uint32_t c = 0; c < channels; c++) {
            int32_t a = first[channel_byte[c]];
            int32_t b = second[channel_byte[c]];
            out[(size_t)x * channels + c] = a * WEIGHT_ONE + weight * (b - a);
        }
    }
}

static void blend_row(const source *from, uint32_t y, const tap *taps, uint32_t new_width,
                      int32_t *out) {
    static const uint32_t in_order[4] = {0, 1, 2, 3};
    static const uint32_t reversed[4] = {2, 1, 0, 3};
    const uint8_t *row = from->data + (size_t)y * from->row_stride;
    if (from->pixel_bytes == 3 && from->channels == 3) {
        if (from->channel_byte[0] == 0) {
            blend_across(row, taps, new_width, 3, 3, in_order, out);
        } else {
            blend_across(row, taps, new_width, 3, 3, reversed, out);
        }
    } else {
        blend_across(row, taps, new_width, from->pixel_bytes, from->channels, from->channel_byte,
                     out);
    }
}

static void blend_down(const int32_t *BXS_RESTRICT upper, const int32_t *BXS_RESTRICT lower,
                       int32_t weight, size_t n, uint8_t *BXS_RESTRICT out) {
    const int32_t half = 1 << (2 * WEIGHT_BITS - 1);
    const int32_t rest = WEIGHT_ONE - weight;
    for (size_t i = 0; i < n; i++) {
        out[i] = (uint8_t)((upper[i] * rest + lower[i] * weight + half) >> (2 * WEIGHT_BITS));
    }
}

static size_t resize_pieces(uint32_t channels, uint32_t new_width) {
    return bxs_piece((size_t)new_width * sizeof(tap)) +
           2 * bxs_piece((size_t)new_width * channels * sizeof(int32_t));
}

/* Two blended source rows are kept, because neighbouring output rows mostly share them. */
static void resize(const source *from, uint32_t new_height, uint32_t new_width, void *scratch,
                   uint8_t *out, size_t out_stride) {
    size_t n = (size_t)new_width * from->channels;
    bxs_arena arena = bxs_arena_open(scratch);
    tap *taps = (tap *)bxs_arena_take(&arena, (size_t)new_width * sizeof(tap));
    int32_t *rows[2];
    rows[0] = (int32_t *)bxs_arena_take(&arena, n * sizeof(int32_t));
    rows[1] = (int32_t *)bxs_arena_take(&arena, n * sizeof(int32_t));
    uint32_t held[2] = {UINT32_MAX, UINT32_MAX};
    for (uint32_t x = 0; x < new_width; x++) {
        taps[x] = tap_at(x, from->width, new_width);
    }
    for (uint32_t y = 0; y < new_height; y++) {
        tap vertical = tap_at(y, from->height, new_height);
        if (held[1] == vertical.first) {
            int32_t *row = rows[0];
            rows[0] = rows[1];
            rows[1] = row;
            held[1] = held[0];
            held[0] = vertical.first;
        }
        if (held[0] != vertical.first) {
            blend_row(from, vertical.first, taps, new_width, rows[0]);
            held[0] = vertical.first;
        }
        if (vertical.weight == 0) {
            blend_down(rows[0], rows[0], 0, n, out + y * out_stride);
            continue;
        }
        if (held[1] != vertical.second) {
            blend_row(from, vertical.second, taps, new_width, rows[1]);
            held[1] = vertical.second;
        }
        blend_down(rows[0], rows[1], vertical.weight, n, out + y * out_stride);
    }
}

/* Whether height rows of row_bytes with this stride fit the buffer. */
static bxs_status check_rows(size_t size, size_t row_stride, uint32_t height, size_t row_bytes) {
    if (row_stride < row_bytes || row_bytes > size) {
        return BXS_ERROR_STRIDE;
    }
    if (height > 1 && row_stride > (size - row_bytes) / (height - 1)) {
        return BXS_ERROR_STRIDE;
    }
    return BXS_OK;
}

static void pad(const bxs_letterbox *map, const uint8_t padding[3], uint8_t *out) {
    size_t row_bytes = (size_t)map->width * 3;
    for (uint32_t y = 0; y < map->height; y++) {
        uint8_t *row = out + y * row_bytes;
        uint32_t start = y < map->content_height ? map->content_width : 0;
        if (y > map->content_height) {
            memcpy(row, row - row_bytes, row_bytes);
            continue;
        }
        for (uint32_t x = start; x < map->width; x++) {
            row[(size_t)x * 3] = padding[0];
            row[(size_t)x * 3 + 1] = padding[1];
            row[(size_t)x * 3 + 2] = padding[2];
        }
    }
}

size_t bxs_letterbox_scratch_size(const bxs_letterbox *map) {
    if (map == NULL || !map_is_valid(map)) {
        return 0;
    }
    return bxs_scratch_total(resize_pieces(3, map->content_width));
}

bxs_status bxs_letterbox_rgb8(const bxs_frame *frame, const bxs_letterbox *map,
                              const uint8_t padding[3], void *scratch, size_t scratch_size,
                              uint8_t *out, size_t room) {
    if (frame == NULL || map == NULL || padding == NULL || scratch == NULL || out == NULL ||
        frame->data == NULL) {
        return BXS_ERROR_NULL;
    }
    if (!map_is_valid(map) || frame->height != map->frame_height ||
        frame->width != map->frame_width) {
        return BXS_ERROR_SIZE;
    }
    source from = {frame->data, frame->row_stride, frame->height, frame->width, 3, 3, {0, 1, 2, 3}};
    switch (frame->format) {
    case BXS_RGB8:
        break;
    case BXS_BGR8:
        from.channel_byte[0] = 2;
        from.channel_byte[2] = 0;
        break;
    case BXS_MONO8:
        from.pixel_bytes = 1;
        from.channel_byte[1] = from.channel_byte[2] = 0;
        break;
    default:
        return BXS_ERROR_FORMAT;
    }
    bxs_status status = check_rows(frame->size, frame->row_stride, frame->height,
                                   (size_t)frame->width * from.pixel_bytes);
    if (status != BXS_OK) {
        return status;
    }
    if (scratch_size < bxs_letterbox_scratch_size(map)) {
        return BXS_ERROR_SCRATCH;
    }
    if (room < (size_t)map->height * map->width * 3) {
        return BXS_ERROR_ROOM;
    }
    resize(&from, map->content_height, map->content_width, scratch, out, (size_t)map->width * 3);
    pad(map, padding, out);
    return BXS_OK;
}

size_t bxs_resize_scratch_size(uint32_t channels, uint32_t new_width) {
    if (channels < 1 || channels > 4 || !side_is_valid(new_width)) {
        return 0;
    }
    return bxs_scratch_total(resize_pieces(channels, new_width));
}

bxs_status bxs_resize_u8(const uint8_t *data, size_t size, size_t row_stride, uint32_t height,
                         uint32_t width, uint32_t channels, uint32_t new_height, uint32_t new_width,
                         void *scratch, size_t scratch_size, uint8_t *out, size_t room) {
    if (data == NULL || scratch == NULL || out == NULL) {
        return BXS_ERROR_NULL;
    }
    if (!side_is_valid(height) || !side_is_valid(width) || !side_is_valid(new_height) ||
        !side_is_valid(new_width) || channels < 1 || channels > 4) {
        return BXS_ERROR_SIZE;
    }
    bxs_status status = check_rows(size, row_stride, height, (size_t)width * channels);
    if (status != BXS_OK) {
        return status;
    }
    if (scratch_size < bxs_resize_scratch_size(channels, new_width)) {
        return BXS_ERROR_SCRATCH;
    }
    if (room < (size_t)new_height * new_width * channels) {
        return BXS_ERROR_ROOM;
    }
    source from = {data, row_stride, height, width, channels, channels, {0, 1, 2, 3}};
    resize(&from, new_height, new_width, scratch, out, (size_t)new_width * channels);
    return BXS_OK;
}
