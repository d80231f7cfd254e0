/* Letterbox and bilinear resize of bytes.
 *
 * Integer arithmetic: weights of 11 bits per axis, products of at most 30 bits, one rounding. */
#include <math.h>
#include <string.h>

#include "arena.h"
#include "boxseg.h"
#include "platform.h"
#include "simd.h"

#define WEIGHT_BITS 11
#define WEIGHT_ONE (1 << WEIGHT_BITS)
/* Output pixels are taken in blocks of at most this many. */
#define MOST_LANES 16
/* Bytes that are read for a pixel and its right neighbour, 6 of them used. */
#define PAIR_BYTES 16

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "pixels are taken apart and put together as little-endian words"
#endif

/* One output row. The table of weights holds, in the order of the kernel's lanes, the weight of the
 * left pixel in the lower 16 bits and of its right neighbour in the upper ones. */
typedef struct {
    const uint8_t *upper, *lower; /* source rows, 3 bytes per pixel */
    const uint32_t *offsets;      /* byte of the left pixel, by output pixel, in whole blocks */
    const int32_t *weights;       /* 4 per output pixel, in whole blocks */
    const int32_t *orders; /* the same: where the pixel's bytes are in what is loaded for it */
    int is_close;          /* whether one load serves two pixels */
    int32_t weight;        /* of the lower row */
    uint32_t width;        /* output pixels */
    int is_half;           /* the frame is twice as high and wide as the content */
} letterbox_row;

/* Multiples of 1 / 65536 that take luma and chroma to R, G, B. */
typedef struct {
    int32_t black, luma, v_red, u_green, v_green, u_blue;
} yuv_factors;

/* A source row: bytes Y with U V of two pixels each, or, where chroma is NULL, bytes Y U Y V. */
typedef struct {
    const uint8_t *luma, *chroma;
} yuv_row;

#define BXS_KERNEL "letterbox_kernel.h"
#include "simd_levels.h"

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

/* ---------------------------------------------------------------- rows of a frame */

/* Gives source rows of 3 bytes per pixel: the frame's own where all bytes that are read with a row
 * lie in the frame, else copies. Two copies are kept, because two rows make one output row and
 * neighbouring output rows share them. */
typedef struct {
    const bxs_frame *frame;
    const uint8_t *chroma;
    size_t chroma_stride;
    yuv_factors factors;
    bxs_simd level;
    uint8_t *copies[2];
    uint32_t held[2]; /* which rows they are */
} frame_reader;

static size_t copy_size(uint32_t width) {
    return (size_t)width * 3 - 3 + PAIR_BYTES;
}

static uint8_t limit(int32_t sum) {
    return (uint8_t)(sum < 0 ? 0 : sum >> 16 > 255 ? 255 : sum >> 16);
}

/* The whole row: blocks of pixels, then the rest one by one. */
static void convert_row(const frame_reader *from, const yuv_row *row, uint8_t *out) {
    const yuv_factors *by = &from->factors;
    const uint32_t width = from->frame->width;
    uint32_t x = BXS_AT_LEVEL(from->level, convert_yuv)(row, by, width, out);
    for (; x < width; x++) {
        const size_t pair = x / 2;
        const uint8_t *luma = row->chroma == NULL ? row->luma + 2 * (size_t)x : row->luma + x;
        const uint8_t *u = row->chroma == NULL ? row->luma + 4 * pair + 1 : row->chroma + 2 * pair;
        const uint8_t *v = row->chroma == NULL ? u + 2 : u + 1;
        const int32_t y = (*luma - by->black) * by->luma + (1 << 15);
        out[(size_t)x * 3] = limit(y + (*v - 128) * by->v_red);
        out[(size_t)x * 3 + 1] = limit(y - (*u - 128) * by->u_green - (*v - 128) * by->v_green);
        out[(size_t)x * 3 + 2] = limit(y + (*u - 128) * by->u_blue);
    }
}

static const uint8_t *read_row(frame_reader *from, uint32_t y) {
    const bxs_frame *frame = from->frame;
    const uint8_t *row = frame->data + (size_t)y * frame->row_stride;
    const int is_rgb = frame->format == BXS_RGB8 || frame->format == BXS_BGR8;
    if (is_rgb && (size_t)y * frame->row_stride + copy_size(frame->width) <= frame->size) {
        return row;
    }
    uint8_t *copy = from->copies[y % 2];
    if (from->held[y % 2] == y) {
        return copy;
    }
    from->held[y % 2] = y;
    if (is_rgb) {
        memcpy(copy, row, (size_t)frame->width * 3);
    } else if (frame->format == BXS_MONO8) {
        for (uint32_t x = 0; x < frame->width; x++) {
            copy[(size_t)x * 3] = copy[(size_t)x * 3 + 1] = copy[(size_t)x * 3 + 2] = row[x];
        }
    } else if (frame->format == BXS_YUYV) {
        const yuv_row parts = {row, NULL};
        convert_row(from, &parts, copy);
    } else {
        const yuv_row parts = {row, from->chroma + (size_t)(y / 2) * from->chroma_stride};
        convert_row(from, &parts, copy);
    }
    return copy;
}

static int find_factors(bxs_yuv rule, yuv_factors *factors) {
    /* 65536 * 255 / 219 and 65536 * 255 / 224 * (2 - 2 Kr) and so on for the limited range, without
     * the first quotients for the full range; Kr = 0.299, Kb = 0.114 and Kr = 0.2126, Kb = 0.0722
     */
    static const yuv_factors all[4] = {
        {16, 76309, 104597, 25675, 53279, 132201},
        {0, 65536, 91881, 22553, 46802, 116130},
        {16, 76309, 117489, 13975, 34925, 138438},
        {0, 65536, 103206, 12276, 30679, 121609},
    };
    if ((unsigned)rule > BXS_BT709_FULL) {
        return 0;
    }
    *factors = all[rule];
    return 1;
}

/* Checks a frame's buffers and prepares to read it. */
static bxs_status open_frame(const bxs_frame *frame, frame_reader *from) {
    const size_t width = frame->width;
    const size_t pairs = (width + 1) / 2;
    size_t row_bytes;
    memset(from, 0, sizeof *from);
    from->frame = frame;
    from->held[0] = from->held[1] = UINT32_MAX;
    switch (frame->format) {
    case BXS_RGB8:
    case BXS_BGR8:
        row_bytes = width * 3;
        break;
    case BXS_MONO8:
    case BXS_NV12:
        row_bytes = width;
        break;
    case BXS_YUYV:
        row_bytes = pairs * 4;
        break;
    default:
        return BXS_ERROR_FORMAT;
    }
    bxs_status status = check_rows(frame->size, frame->row_stride, frame->height, row_bytes);
    if (status != BXS_OK || (frame->format != BXS_NV12 && frame->format != BXS_YUYV)) {
        return status;
    }
    if (!find_factors(frame->yuv, &from->factors)) {
        return BXS_ERROR_VALUE;
    }
    if (frame->format == BXS_YUYV) {
        return BXS_OK;
    }
    size_t chroma_size = frame->chroma_size;
    from->chroma = frame->chroma;
    from->chroma_stride = frame->chroma_stride;
    if (frame->chroma == NULL) {
        if (frame->size / frame->height < frame->row_stride) {
            return BXS_ERROR_STRIDE;
        }
        const size_t luma_size = frame->row_stride * frame->height;
        from->chroma = frame->data + luma_size;
        from->chroma_stride = frame->row_stride;
        chroma_size = frame->size - luma_size;
    }
    return check_rows(chroma_size, from->chroma_stride, (frame->height + 1) / 2, pairs * 2);
}

/* ---------------------------------------------------------------- letterbox */

/* Everything between the arguments and the rows. */
typedef struct {
    frame_reader from;
    letterbox_row row;
    const bxs_letterbox *map;
    bxs_simd level;
} letterboxing;

static size_t whole_blocks(uint32_t width) {
    return ((size_t)width + MOST_LANES - 1) / MOST_LANES * MOST_LANES;
}

size_t bxs_letterbox_scratch_size(const bxs_letterbox *map) {
    if (map == NULL || !map_is_valid(map)) {
        return 0;
    }
    const size_t pixels = whole_blocks(map->content_width);
    return bxs_scratch_total(2 * bxs_piece(copy_size(map->frame_width)) +
                             bxs_piece(pixels * sizeof(uint32_t)) +
                             2 * bxs_piece(pixels * 4 * sizeof(int32_t)));
}

/* Where the four lanes of a pixel are in its block. */
static uint32_t lane_of(uint32_t in_block, uint32_t lanes) {
    return lanes == 16 ? in_block % 8 / 2 * 16 + in_block / 8 * 8 + in_block % 2 * 4 : 4 * in_block;
}

/* Pixels behind the last one repeat it. Tells whether the bytes of two pixels side by side can be
 * loaded at once. */
static int fill_tables(const bxs_letterbox *map, uint32_t lanes, uint32_t *offsets,
                       int32_t *weights, int32_t *orders) {
    const uint32_t pixels = (map->content_width + lanes - 1) / lanes * lanes;
    int is_close = 1;
    for (uint32_t x = 0; x < pixels; x++) {
        const uint32_t wanted = x < map->content_width ? x : map->content_width - 1;
        const tap across = tap_at(wanted, map->frame_width, map->content_width);
        int32_t *at = weights + 4 * (size_t)(x / lanes * lanes) + lane_of(x % lanes, lanes);
        offsets[x] = across.first * 3;
        for (int lane = 0; lane < 4; lane++) {
            at[lane] = across.weight << 16 | (WEIGHT_ONE - across.weight);
        }
        is_close &= x % 2 == 0 || offsets[x] - offsets[x - 1] <= PAIR_BYTES - 6;
    }
    for (uint32_t x = 0; x < pixels; x++) {
        /* the bytes r R g G b B as lanes of 16 bits, the others 0 */
        const uint32_t start = is_close ? offsets[x] - offsets[x - x % 2] : 0;
        int32_t *at = orders + 4 * (size_t)(x / lanes * lanes) + lane_of(x % lanes, lanes);
        for (uint32_t c = 0; c < 3; c++) {
            at[c] = (int32_t)(0x80038000u + (start + c) * 0x10001u);
        }
        at[3] = -1;
    }
    return is_close;
}

static bxs_status open_letterbox(const bxs_frame *frame, const bxs_letterbox *map, bxs_simd simd,
                                 void *scratch, size_t scratch_size, letterboxing *work) {
    if (!map_is_valid(map) || frame->height != map->frame_height ||
        frame->width != map->frame_width) {
        return BXS_ERROR_SIZE;
    }
    bxs_status status = open_frame(frame, &work->from);
    if (status != BXS_OK) {
        return status;
    }
    work->map = map;
    work->level = bxs_simd_level(simd);
    if (work->level == BXS_SIMD_BEST) {
        return BXS_ERROR_VALUE;
    }
    if (scratch_size < bxs_letterbox_scratch_size(map)) {
        return BXS_ERROR_SCRATCH;
    }
    bxs_arena arena = bxs_arena_open(scratch);
    for (int i = 0; i < 2; i++) {
        work->from.copies[i] = (uint8_t *)bxs_arena_take(&arena, copy_size(map->frame_width));
        /* read with the last pixel, but not used */
        memset(work->from.copies[i] + (size_t)map->frame_width * 3, 0, PAIR_BYTES - 3);
    }
    const size_t pixels = whole_blocks(map->content_width);
    uint32_t *offsets = (uint32_t *)bxs_arena_take(&arena, pixels * sizeof(uint32_t));
    int32_t *weights = (int32_t *)bxs_arena_take(&arena, pixels * 4 * sizeof(int32_t));
    int32_t *orders = (int32_t *)bxs_arena_take(&arena, pixels * 4 * sizeof(int32_t));
    work->row.is_close =
        fill_tables(map, BXS_AT_LEVEL(work->level, letterbox_lanes)(), offsets, weights, orders);
    work->from.level = work->level;
    work->row.offsets = offsets;
    work->row.weights = weights;
    work->row.orders = orders;
    work->row.width = map->content_width;
    work->row.is_half =
        map->frame_width == 2 * map->content_width && map->frame_height == 2 * map->content_height;
    return BXS_OK;
}

static const letterbox_row *prepare_row(letterboxing *work, uint32_t y) {
    const tap down = tap_at(y, work->map->frame_height, work->map->content_height);
    work->row.weight = down.weight;
    work->row.upper = read_row(&work->from, down.first);
    work->row.lower = down.weight == 0 ? work->row.upper : read_row(&work->from, down.second);
    return &work->row;
}

static void pad_bytes(const bxs_letterbox *map, const uint8_t padding[3], uint8_t *out) {
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

bxs_status bxs_letterbox_rgb8(const bxs_frame *frame, const bxs_letterbox *map,
                              const uint8_t padding[3], bxs_simd simd, void *scratch,
                              size_t scratch_size, uint8_t *out, size_t room) {
    letterboxing work;
    if (frame == NULL || map == NULL || scratch == NULL || out == NULL || frame->data == NULL) {
        return BXS_ERROR_NULL;
    }
    bxs_status status = open_letterbox(frame, map, simd, scratch, scratch_size, &work);
    if (status != BXS_OK) {
        return status;
    }
    const size_t row_bytes = (size_t)map->width * 3;
    if (room / row_bytes < map->height) {
        return BXS_ERROR_ROOM;
    }
    for (uint32_t y = 0; y < map->content_height; y++) {
        BXS_AT_LEVEL(work.level, letterbox_bytes)
        (prepare_row(&work, y), frame->format == BXS_BGR8, out + y * row_bytes);
    }
    if (padding != NULL) {
        pad_bytes(map, padding, out);
    }
    return BXS_OK;
}

static void pad_floats(const bxs_letterbox *map, bxs_simd level, float value, float *plane) {
    const size_t right = map->width - map->content_width;
    for (uint32_t y = 0; y < map->content_height && right > 0; y++) {
        float *row = plane + (size_t)y * map->width + map->content_width;
        BXS_AT_LEVEL(level, fill)(row, right, value);
    }
    const size_t below = (size_t)(map->height - map->content_height) * map->width;
    BXS_AT_LEVEL(level, fill)(plane + (size_t)map->content_height * map->width, below, value);
}

bxs_status bxs_letterbox_f32(const bxs_frame *frame, const bxs_letterbox *map,
                             const uint8_t padding[3], const float mean[3], const float std[3],
                             bxs_simd simd, void *scratch, size_t scratch_size, float *out,
                             size_t room) {
    letterboxing work;
    if (frame == NULL || map == NULL || mean == NULL || std == NULL || scratch == NULL ||
        out == NULL || frame->data == NULL) {
        return BXS_ERROR_NULL;
    }
    bxs_status status = open_letterbox(frame, map, simd, scratch, scratch_size, &work);
    if (status != BXS_OK) {
        return status;
    }
    const size_t plane = (size_t)map->height * map->width;
    if (room / 3 < plane) {
        return BXS_ERROR_ROOM;
    }
    /* by byte of the frame's pixel: a BGR frame fills the planes in the other order */
    float means[3], scales[3];
    float *planes[3];
    for (int c = 0; c < 3; c++) {
        const int channel = frame->format == BXS_BGR8 ? 2 - c : c;
        if (!(fabsf(mean[channel]) <= 1e9f) || !(std[channel] >= 1e-9f) ||
            !(std[channel] <= 1e9f)) {
            return BXS_ERROR_VALUE;
        }
        means[c] = mean[channel];
        scales[c] = 1.0f / std[channel];
        planes[c] = out + (size_t)channel * plane;
    }
    for (uint32_t y = 0; y < map->content_height; y++) {
        const size_t start = (size_t)y * map->width;
        float *const rows[3] = {planes[0] + start, planes[1] + start, planes[2] + start};
        BXS_AT_LEVEL(work.level, letterbox_floats)(prepare_row(&work, y), means, scales, rows);
    }
    for (int channel = 0; channel < 3 && padding != NULL; channel++) {
        const float value = ((float)padding[channel] - mean[channel]) * (1.0f / std[channel]);
        pad_floats(map, work.level, value, out + (size_t)channel * plane);
    }
    return BXS_OK;
}

/* ---------------------------------------------------------------- resize */

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
