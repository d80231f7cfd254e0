/* Cuts instances out and turns mask logits into runs, bits or bytes of frame pixels. What is found
 * is that of asking every pixel, but only pixels next to a change are asked; see
 * surface_kernel.h. */
#include "surface.h"

#include "arena.h"
#include "grid.h"
#include "picture.h"
#include "run_text.h"
#include "sigmoid.h"
#include "simd.h"

#include <string.h>

#define MOST_LANES 8
#define SURE (1.0f / 64.0f)
#define AHEAD 4u                /* columns of cells asked for before they are read */
#define LARGE ((size_t)1 << 18) /* bytes that do not stay in the caches anyway */
#define LINE ((size_t)64)       /* bytes of a cache line */

/* Frame columns that lie between the same two columns of cells. */
typedef struct {
    const float *left, *right; /* the cells, `rows` each */
    uint32_t rows;
    uint32_t columns;      /* 1..LANES */
    const float *across;   /* per frame column, and readable up to LANES */
    const float *down;     /* per frame row of the rectangle, and one before and behind */
    const int32_t *starts; /* per row of cells: the first frame row, counted in the rectangle */
    const uint64_t *mixed; /* bit i: the cells of rows i and i + 1 differ in sign */
    float guess, per_cell; /* one row behind the first row of cells, and frame rows per cell */
    float sure;            /* pixels closer to a zero than this, in rows, are asked */
    size_t room;           /* of one column's changes */
} change_block;

/* Bytes that follow each other in memory. They are written in whole lines, so that rows of any
 * width and place share theirs; the last bytes wait for those behind them. */
typedef struct {
    uint8_t *to;    /* where the line goes */
    size_t foreign; /* bytes at the start of the first line that are not ours */
    size_t held;    /* bytes that are in the line, the foreign ones with them */
    uint8_t line[2 * LINE];
} byte_stream;

#define BXS_KERNEL_UP_TO_AVX2
#define BXS_KERNEL "surface_kernel.h"
#include "simd_levels.h"

/* ---------------------------------------------------------------- the cut */

/* Pixels from `first` to before `last` whose centre lies in low <= centre < high, else the nearest
 * one to the middle. */
static void pixel_range(float low, float high, uint32_t side, uint32_t *first, uint32_t *last) {
    double from = ceil((double)low - 0.5);
    double to = ceil((double)high - 0.5);
    from = from < 0.0 ? 0.0 : from;
    to = to > (double)side ? (double)side : to;
    if (from >= to) {
        double middle = floor(((double)low + (double)high) / 2.0);
        from = middle<0.0 ? 0.0 : middle>(double)(side - 1) ? (double)(side - 1) : middle;
        to = from + 1.0;
    }
    *first = (uint32_t)from;
    *last = (uint32_t)to;
}

/* Cells that the box and the pixels ask for. */
static void cell_range(float low, float high, uint32_t first, uint32_t last, double scale,
                       uint32_t stride, uint32_t cells, uint32_t *x0, uint32_t *x1) {
    double from = bxs_input_position((double)low, stride, cells);
    double to = bxs_input_position((double)high, stride, cells);
    double first_pixel = bxs_grid_position(first, scale, cells);
    double last_pixel = bxs_grid_position(last - 1, scale, cells);
    from = first_pixel < from ? first_pixel : from;
    to = last_pixel > to ? last_pixel : to;
    *x0 = (uint32_t)from;
    *x1 = (uint32_t)to + 2 < cells ? (uint32_t)to + 2 : cells;
}

static float clipped(float value, uint32_t side) {
    return value<0.0f ? 0.0f : value>(float) side ? (float)side : value;
}

bxs_status bxs_cut_box(const float box[4], const bxs_letterbox *map, uint32_t mask_stride,
                       bxs_cut *cut) {
    if (box == NULL || map == NULL || cut == NULL) {
        return BXS_ERROR_NULL;
    }
    if (!bxs_map_is_valid(map, mask_stride)) {
        return BXS_ERROR_SIZE;
    }
    const uint32_t content[2] = {map->content_width, map->content_height};
    const uint32_t frame[2] = {map->frame_width, map->frame_height};
    for (int i = 0; i < 4; i++) {
        cut->input_box[i] = clipped(box[i], content[i % 2]);
        cut->frame_box[i] =
            (float)((double)cut->input_box[i] * (double)frame[i % 2] / (double)content[i % 2]);
    }
    if (!(cut->input_box[2] > cut->input_box[0] && cut->input_box[3] > cut->input_box[1])) {
        return BXS_ERROR_VALUE;
    }
    bxs_region *pixels = &cut->pixels;
    pixel_range(cut->frame_box[0], cut->frame_box[2], frame[0], &pixels->x0, &pixels->x1);
    pixel_range(cut->frame_box[1], cut->frame_box[3], frame[1], &pixels->y0, &pixels->y1);
    cell_range(cut->input_box[0], cut->input_box[2], pixels->x0, pixels->x1,
               bxs_grid_scale(content[0], frame[0], mask_stride), mask_stride,
               map->width / mask_stride, &cut->cells.x0, &cut->cells.x1);
    cell_range(cut->input_box[1], cut->input_box[3], pixels->y0, pixels->y1,
               bxs_grid_scale(content[1], frame[1], mask_stride), mask_stride,
               map->height / mask_stride, &cut->cells.y0, &cut->cells.y1);
    return BXS_OK;
}

/* ---------------------------------------------------------------- mask score */

/* Cells from `first` to before `last` whose centre lies in low <= centre < high. */
static void centre_range(float low, float high, uint32_t stride, uint32_t first, uint32_t last,
                         uint32_t *from, uint32_t *to) {
    *from = first;
    while (*from < last && ((float)*from + 0.5f) * (float)stride < low) {
        (*from)++;
    }
    *to = *from;
    while (*to < last && ((float)*to + 0.5f) * (float)stride < high) {
        (*to)++;
    }
}

static float logit_at(const bxs_surface *surface, uint32_t x, uint32_t y) {
    const bxs_region *region = &surface->region;
    return surface->logits[(size_t)(x - region->x0) * (region->y1 - region->y0) + (y - region->y0)];
}

static float sample(const bxs_surface *surface, double x, double y) {
    double u = bxs_input_position(x, surface->stride, surface->columns);
    double v = bxs_input_position(y, surface->stride, surface->rows);
    uint32_t j = (uint32_t)u, i = (uint32_t)v;
    uint32_t right = j + 1 < surface->columns ? j + 1 : j;
    uint32_t below = i + 1 < surface->rows ? i + 1 : i;
    float across = (float)(u - (double)j), down = (float)(v - (double)i);
    float upper = bxs_mix(logit_at(surface, j, i), logit_at(surface, right, i), across);
    float lower = bxs_mix(logit_at(surface, j, below), logit_at(surface, right, below), across);
    return bxs_mix(upper, lower, down);
}

float bxs_surface_score(const bxs_surface *surface, const float box[4], bxs_simd level) {
    const bxs_region *region = &surface->region;
    uint32_t x0, x1, y0, y1;
    centre_range(box[0], box[2], surface->stride, region->x0, region->x1, &x0, &x1);
    centre_range(box[1], box[3], surface->stride, region->y0, region->y1, &y0, &y1);
    if (x0 == x1 || y0 == y1) {
        float z = sample(surface, ((double)box[0] + (double)box[2]) / 2.0,
                         ((double)box[1] + (double)box[3]) / 2.0);
        return z > 0.0f ? (float)bxs_sigmoid((double)z) : 0.0f;
    }
    const size_t rows = region->y1 - region->y0;
    const float *cells = surface->logits + (x0 - region->x0) * rows + (y0 - region->y0);
    uint64_t sum = 0, count = 0;
    BXS_UP_TO_AVX2(level, probabilities)(cells, y1 - y0, x1 - x0, rows, &sum, &count);
    return count > 0 ? (float)((double)sum / 16777216.0 / (double)count) : 0.0f;
}

float bxs_mask_score(const bxs_surface *surface, const float box[4]) {
    return bxs_surface_score(surface, box, bxs_simd_best());
}

/* ---------------------------------------------------------------- changes */

static size_t sign_words(uint32_t rows) {
    return rows / 64 + 2;
}

/* A column changes once per pair of rows of cells, and where it enters and leaves the rectangle. */
static size_t change_room(uint32_t rows) {
    return (size_t)rows + 2;
}

size_t bxs_raster_size(uint32_t frame_height, uint32_t frame_width, uint32_t rows) {
    return bxs_scratch_total(
        bxs_piece(((size_t)frame_height + 2) * sizeof(float)) +
        bxs_piece(((size_t)frame_width + MOST_LANES) * sizeof(float)) +
        bxs_piece((size_t)(frame_height > frame_width ? frame_height : frame_width) *
                  sizeof(int32_t)) +
        2 * bxs_piece(((size_t)rows + 1) * sizeof(uint32_t)) +
        3 * bxs_piece(sign_words(rows) * sizeof(uint64_t)) +
        bxs_piece(MOST_LANES * change_room(rows) * sizeof(uint32_t)));
}

/* First frame row whose place in the grid is `cell` or below; columns likewise. */
static uint32_t first_pixel(uint32_t cell, double scale, uint32_t rows, uint32_t first,
                            uint32_t last) {
    double guess = ((double)cell + 0.5) / scale - 0.5;
    uint32_t y = guess <= (double)first ? first : guess >= (double)last ? last : (uint32_t)guess;
    while (y > first && bxs_grid_position(y - 1, scale, rows) >= (double)cell) {
        y--;
    }
    while (y < last && bxs_grid_position(y, scale, rows) < (double)cell) {
        y++;
    }
    return y;
}

bxs_raster bxs_raster_open(const bxs_letterbox *map, uint32_t stride, uint32_t rows,
                           uint32_t columns, bxs_region pixels, bxs_simd level, void *memory) {
    bxs_arena arena = bxs_arena_open(memory);
    bxs_raster raster;
    const size_t height = pixels.y1 - pixels.y0;
    const size_t width = pixels.x1 - pixels.x0;
    raster.pixels = pixels;
    raster.down = (float *)bxs_arena_take(&arena, (height + 2) * sizeof(float));
    raster.across = (float *)bxs_arena_take(&arena, (width + MOST_LANES) * sizeof(float));
    raster.cells =
        (int32_t *)bxs_arena_take(&arena, (height > width ? height : width) * sizeof(int32_t));
    raster.starts = (uint32_t *)bxs_arena_take(&arena, ((size_t)rows + 1) * sizeof(uint32_t));
    raster.ends = (int32_t *)bxs_arena_take(&arena, ((size_t)rows + 1) * sizeof(int32_t));
    for (int i = 0; i < 2; i++) {
        raster.signs[i] = (uint64_t *)bxs_arena_take(&arena, sign_words(rows) * sizeof(uint64_t));
    }
    raster.mixed = (uint64_t *)bxs_arena_take(&arena, sign_words(rows) * sizeof(uint64_t));
    raster.changes = (uint32_t *)bxs_arena_take(&arena, 0);
    raster.scale = bxs_grid_scale(map->content_height, map->frame_height, stride);
    raster.column_scale = bxs_grid_scale(map->content_width, map->frame_width, stride);
    raster.rows = rows;
    raster.columns = columns;
    raster.level = level;
    raster.down[0] = raster.down[height + 1] = 0.0f;
    /* the cells of rows are not needed, and those of columns come later to the same place */
    BXS_UP_TO_AVX2(level, places)
    (pixels.y0, (uint32_t)height, raster.scale, rows, raster.down + 1, raster.cells);
    BXS_UP_TO_AVX2(level, places)
    (pixels.x0, (uint32_t)width, raster.column_scale, columns, raster.across, raster.cells);
    memset(raster.across + width, 0, MOST_LANES * sizeof(float));
    const uint32_t first = (uint32_t)bxs_grid_position(pixels.y0, raster.scale, rows);
    const uint32_t last = (uint32_t)bxs_grid_position(pixels.y1 - 1, raster.scale, rows) + 1;
    for (uint32_t i = first; i <= last; i++) {
        raster.starts[i] = first_pixel(i, raster.scale, rows, pixels.y0, pixels.y1);
    }
    return raster;
}

/* The cells that some pixels lie between. */
static bxs_region cells_of(bxs_region pixels, double column_scale, double row_scale,
                           uint32_t columns, uint32_t rows) {
    bxs_region cells;
    cells.x0 = (uint32_t)bxs_grid_position(pixels.x0, column_scale, columns);
    cells.y0 = (uint32_t)bxs_grid_position(pixels.y0, row_scale, rows);
    cells.x1 = (uint32_t)bxs_grid_position(pixels.x1 - 1, column_scale, columns) + 2;
    cells.y1 = (uint32_t)bxs_grid_position(pixels.y1 - 1, row_scale, rows) + 2;
    cells.x1 = cells.x1 < columns ? cells.x1 : columns;
    cells.y1 = cells.y1 < rows ? cells.y1 : rows;
    return cells;
}

static int is_inside(bxs_region part, bxs_region whole) {
    return part.x0 >= whole.x0 && part.y0 >= whole.y0 && part.x1 <= whole.x1 && part.y1 <= whole.y1;
}

/* What is done with the changes of `columns` frame columns from x on: where in the rectangle's rows
 * column l changes is in changes[l * room], counts[l] of them in order. They start from off and end
 * off; two at one row cancel. */
typedef void (*take_changes)(void *context, uint32_t x, uint32_t columns, const uint32_t *changes,
                             const uint32_t *counts, size_t room);

/* Finds the changes of all columns of a rectangle that have any, from left to right. */
static bxs_status find_changes(const bxs_surface *surface, const bxs_raster *raster,
                               bxs_region pixels, take_changes take, void *context) {
    const bxs_region *region = &surface->region;
    const size_t stride = region->y1 - region->y0;
    const uint32_t height = pixels.y1 - pixels.y0;
    const int32_t *cells = raster->cells + (pixels.x0 - raster->pixels.x0);
    const uint32_t width = pixels.x1 - pixels.x0;
    const bxs_region needed =
        cells_of(pixels, raster->column_scale, raster->scale, raster->columns, raster->rows);
    if (!is_inside(needed, *region)) {
        return BXS_ERROR_SIZE;
    }
    const uint32_t top = needed.y0, rows = needed.y1 - needed.y0;
    for (uint32_t i = 0; i < rows; i++) {
        uint32_t start = raster->starts[top + i];
        start = start > pixels.y0 ? start : pixels.y0;
        raster->ends[i] = (int32_t)((start < pixels.y1 ? start : pixels.y1) - pixels.y0);
    }
    change_block block;
    block.rows = rows;
    block.down = raster->down + 1 + (pixels.y0 - raster->pixels.y0);
    block.starts = raster->ends;
    block.mixed = raster->mixed;
    block.per_cell = (float)(1.0 / raster->scale);
    block.guess = (float)(((double)top + 0.5) / raster->scale + 0.5 - (double)pixels.y0);
    block.sure = raster->scale > 1e-4 ? SURE : 1.0f;
    block.room = change_room(rows);
    const uint32_t lanes = raster->level >= BXS_SIMD_AVX2 ? MOST_LANES : 4;
    uint64_t *left_signs = raster->signs[0], *right_signs = raster->signs[1];
    uint32_t known = UINT32_MAX; /* the column of cells whose signs are in right_signs */
    uint32_t counts[MOST_LANES];
    uint32_t end;
    for (uint32_t x = 0; x < width; x = end) {
        const uint32_t cell = (uint32_t)cells[x];
        const uint32_t next = cell + 1 < raster->columns ? cell + 1 : cell;
        for (end = x + 1; end < width && cells[end] == cells[x]; end++) {
        }
        block.left = surface->logits + (cell - region->x0) * stride + (top - region->y0);
        block.right = surface->logits + (next - region->x0) * stride + (top - region->y0);
        if (known == cell) {
            uint64_t *swap = left_signs;
            left_signs = right_signs;
            right_signs = swap;
        } else {
            BXS_UP_TO_AVX2(raster->level, signs)(block.left, rows, left_signs);
        }
        if (next + AHEAD < region->x1) {
            bxs_prefetch(block.right + AHEAD * stride, rows * sizeof(float));
        }
        BXS_UP_TO_AVX2(raster->level, signs)(block.right, rows, right_signs);
        known = next;
        uint64_t any = 0;
        for (uint32_t word = 0; word <= (rows - 1) / 64; word++) {
            const uint64_t l = left_signs[word], r = right_signs[word];
            const uint64_t up = left_signs[word + 1] << 63;
            const uint32_t pairs = rows - 1 - 64 * word; /* that start in this word */
            const uint64_t inside = pairs >= 64 ? UINT64_MAX : ((uint64_t)1 << pairs) - 1;
            raster->mixed[word] =
                ((l ^ (l >> 1 | up)) | (l ^ r) | (r ^ (r >> 1 | right_signs[word + 1] << 63))) &
                inside;
            any |= l | r;
        }
        if (any == 0) {
            continue;
        }
        for (uint32_t from = x; from < end; from += lanes) {
            block.columns = end - from < lanes ? end - from : lanes;
            block.across = raster->across + (pixels.x0 - raster->pixels.x0) + from;
            BXS_UP_TO_AVX2(raster->level, changes)(&block, raster->changes, counts);
            for (uint32_t l = 0; l < block.columns; l++) {
                if (counts[l] % 2 != 0) {
                    raster->changes[l * block.room + counts[l]++] = height;
                }
            }
            take(context, pixels.x0 + from, block.columns, raster->changes, counts, block.room);
        }
    }
    return BXS_OK;
}

/* ---------------------------------------------------------------- runs */

typedef struct {
    run_text writer;
    uint64_t height; /* of the frame */
    uint32_t top;    /* of the rectangle */
} text_context;

static void take_text(void *context, uint32_t x, uint32_t columns, const uint32_t *changes,
                      const uint32_t *counts, size_t room) {
    text_context *to = (text_context *)context;
    run_text writer = to->writer;
    uint64_t at = x * to->height + to->top;
    for (uint32_t l = 0; l < columns; l++) {
        for (uint32_t i = 0; i < counts[l]; i++) {
            run_text_change(&writer, at + changes[l * room + i]);
        }
        at += to->height;
    }
    to->writer = writer;
}

bxs_status bxs_surface_text(const bxs_surface *surface, const bxs_raster *raster,
                            const bxs_letterbox *map, bxs_region pixels, char *text, size_t room,
                            size_t *length, uint32_t *area) {
    text_context to = {run_text_open(text, room), map->frame_height, pixels.y0};
    bxs_status status = find_changes(surface, raster, pixels, take_text, &to);
    if (status != BXS_OK) {
        return status;
    }
    run_text_close(&to.writer, (uint64_t)map->frame_height * map->frame_width);
    *length = to.writer.length;
    *area = (uint32_t)to.writer.area;
    return to.writer.is_full ? BXS_ERROR_ROOM : BXS_OK;
}

/* ---------------------------------------------------------------- pictures */

/* Bits of a rectangle. Changes are marked in them, and then every row takes over the one above. */
typedef struct {
    uint8_t *bits;
    size_t stride;
    bxs_region pixels;
    uint32_t x0, x1, y0, y1; /* what holds marks, from the rectangle's corner */
} bit_context;

static void take_bits(void *context, uint32_t x, uint32_t columns, const uint32_t *changes,
                      const uint32_t *counts, size_t room) {
    bit_context *to = (bit_context *)context;
    const uint32_t height = to->pixels.y1 - to->pixels.y0;
    for (uint32_t l = 0; l < columns; l++) {
        const uint32_t at = x + l - to->pixels.x0;
        for (uint32_t i = 0; i < counts[l]; i++) {
            const uint32_t y = changes[l * room + i];
            to->y0 = y < to->y0 ? y : to->y0;
            to->y1 = y > to->y1 ? y : to->y1;
            if (y < height) {
                to->bits[y * to->stride + at / 8] ^= (uint8_t)(1u << at % 8);
            }
        }
        if (counts[l] > 0) {
            to->x0 = at < to->x0 ? at : to->x0;
            to->x1 = at + 1;
        }
    }
}

static bit_context bit_canvas(uint8_t *bits, size_t stride, bxs_region pixels) {
    bit_context canvas = {bits, stride, pixels, UINT32_MAX, 0, UINT32_MAX, 0};
    memset(bits, 0, stride * (pixels.y1 - pixels.y0));
    return canvas;
}

static size_t bit_stride(bxs_region pixels) {
    return ((size_t)(pixels.x1 - pixels.x0) + 7) / 8;
}

/* The same in whole words. */
static size_t word_stride(uint32_t width) {
    return ((size_t)width + 63) / 64 * 8;
}

/* Marks the changes of a rectangle in bits. *marked is what holds them, from its corner; the row
 * behind it too. */
static bxs_status mark_bits(const bxs_surface *surface, const bxs_raster *raster, bxs_region pixels,
                            uint8_t *bits, bxs_region *marked) {
    const size_t stride = bit_stride(pixels);
    bit_context to = bit_canvas(bits, stride, pixels);
    bxs_status status = find_changes(surface, raster, pixels, take_bits, &to);
    const bxs_region some = {to.x0, to.y0, to.x1, to.y1}, none = {0, 0, 0, 0};
    *marked = to.x1 > 0 ? some : none;
    return status;
}

static bxs_status check_surface(const bxs_surface *surface, const bxs_letterbox *map,
                                bxs_region pixels, bxs_simd level, const void *scratch,
                                size_t scratch_size) {
    if (surface == NULL || map == NULL || scratch == NULL || surface->logits == NULL) {
        return BXS_ERROR_NULL;
    }
    const bxs_region *region = &surface->region;
    if (!bxs_map_is_valid(map, surface->stride) || surface->rows < 1 || surface->columns < 1 ||
        surface->rows > BXS_MAX_SIDE || surface->columns > BXS_MAX_SIDE ||
        region->x0 >= region->x1 || region->y0 >= region->y1 || region->x1 > surface->columns ||
        region->y1 > surface->rows || pixels.x0 >= pixels.x1 || pixels.y0 >= pixels.y1 ||
        pixels.x1 > map->frame_width || pixels.y1 > map->frame_height) {
        return BXS_ERROR_SIZE;
    }
    if (level == BXS_SIMD_BEST) {
        return BXS_ERROR_VALUE;
    }
    size_t needed = bxs_surface_scratch_size(map->frame_height, map->frame_width, surface->rows);
    return scratch_size < needed ? BXS_ERROR_SCRATCH : BXS_OK;
}

size_t bxs_surface_scratch_size(uint32_t frame_height, uint32_t frame_width, uint32_t rows) {
    if (frame_height < 1 || frame_height > BXS_MAX_SIDE || frame_width < 1 ||
        frame_width > BXS_MAX_SIDE || rows < 1 || rows > BXS_MAX_SIDE) {
        return 0;
    }
    /* bytes are drawn as bits first, and then row by row */
    const size_t stride = word_stride(frame_width);
    return bxs_scratch_total(bxs_piece(bxs_raster_size(frame_height, frame_width, rows)) +
                             bxs_piece(stride * frame_height) + bxs_piece(8 * stride + LINE));
}

size_t bxs_surface_text_size(const bxs_letterbox *map, uint32_t rows) {
    if (map == NULL || !bxs_map_is_valid(map, 1) || rows < 1 || rows > BXS_MAX_SIDE) {
        return 0;
    }
    /* a column changes once per pair of cells, and where it enters and leaves the rectangle */
    size_t runs = map->frame_width * ((size_t)rows + 1) + 2;
    return runs * run_text_characters((uint64_t)map->frame_height * map->frame_width);
}

bxs_status bxs_surface_rle(const bxs_surface *surface, const bxs_letterbox *map, bxs_region pixels,
                           bxs_simd simd, void *scratch, size_t scratch_size, char *text,
                           size_t room, size_t *length, uint32_t *area) {
    if (text == NULL || length == NULL || area == NULL) {
        return BXS_ERROR_NULL;
    }
    const bxs_simd level = bxs_simd_level(simd);
    bxs_status status = check_surface(surface, map, pixels, level, scratch, scratch_size);
    if (status != BXS_OK) {
        return status;
    }
    const bxs_raster raster = bxs_raster_open(map, surface->stride, surface->rows, surface->columns,
                                              pixels, level, scratch);
    return bxs_surface_text(surface, &raster, map, pixels, text, room, length, area);
}

bxs_status bxs_surface_bits(const bxs_surface *surface, const bxs_letterbox *map, bxs_region pixels,
                            bxs_simd simd, void *scratch, size_t scratch_size, uint8_t *out,
                            size_t room) {
    if (out == NULL) {
        return BXS_ERROR_NULL;
    }
    const bxs_simd level = bxs_simd_level(simd);
    bxs_status status = check_surface(surface, map, pixels, level, scratch, scratch_size);
    if (status != BXS_OK) {
        return status;
    }
    if (room / bit_stride(pixels) < pixels.y1 - pixels.y0) {
        return BXS_ERROR_ROOM;
    }
    const bxs_raster raster = bxs_raster_open(map, surface->stride, surface->rows, surface->columns,
                                              pixels, level, scratch);
    bxs_region marked;
    status = mark_bits(surface, &raster, pixels, out, &marked);
    if (status == BXS_OK && marked.x1 > 0) {
        const size_t stride = bit_stride(pixels), first = marked.x0 / 8;
        const uint32_t height = pixels.y1 - pixels.y0;
        const uint32_t end = marked.y1 < height ? marked.y1 + 1 : height;
        bxs_carry_down(out + marked.y0 * stride + first, (marked.x1 + 7) / 8 - first,
                       end - marked.y0, stride);
    }
    return status;
}

/* The pixels that a cell which is on has a part in; empty if there is none. `words` has room for
 * the signs of two columns. */
static bxs_region find_pixels(const bxs_surface *surface, bxs_region pixels, double column_scale,
                              double row_scale, bxs_simd level, uint64_t *words) {
    const bxs_region *region = &surface->region, none = {0, 0, 0, 0};
    const uint32_t rows = region->y1 - region->y0;
    uint64_t *column = words, *any = words + sign_words(rows);
    uint32_t x0 = UINT32_MAX, x1 = 0, y0 = 0, y1 = rows;
    memset(any, 0, sign_words(rows) * sizeof *any);
    for (uint32_t x = region->x0; x < region->x1; x++) {
        uint64_t is_on = 0;
        BXS_UP_TO_AVX2(level, signs)
        (surface->logits + (size_t)(x - region->x0) * rows, rows, column);
        for (uint32_t i = 0; i <= (rows - 1) / 64; i++) {
            is_on |= column[i];
            any[i] |= column[i];
        }
        x0 = is_on != 0 && x0 == UINT32_MAX ? x : x0;
        x1 = is_on != 0 ? x : x1;
    }
    if (x0 == UINT32_MAX) {
        return none;
    }
    for (; (any[y0 / 64] >> y0 % 64 & 1) == 0; y0++) {
    }
    for (; (any[(y1 - 1) / 64] >> (y1 - 1) % 64 & 1) == 0; y1--) {
    }
    y0 += region->y0;
    y1 += region->y0 - 1;
    /* a pixel has a part of a cell if it lies less than one cell before or behind it */
    bxs_region found = pixels;
    if (x0 > 0) {
        found.x0 = first_pixel(x0 - 1, column_scale, surface->columns, pixels.x0, pixels.x1);
    }
    if (y0 > 0) {
        found.y0 = first_pixel(y0 - 1, row_scale, surface->rows, pixels.y0, pixels.y1);
    }
    found.x1 = first_pixel(x1 + 1, column_scale, surface->columns, pixels.x0, pixels.x1);
    found.y1 = first_pixel(y1 + 1, row_scale, surface->rows, pixels.y0, pixels.y1);
    return found.x0 < found.x1 && found.y0 < found.y1 ? found : none;
}

/* Lines of zeros that are still to be written. */
typedef struct {
    uint8_t *to;
    size_t lines;
} blank;

/* Writes zeros; of what is large, all but the whole lines. */
static blank blank_between(uint8_t *from, const uint8_t *end, int is_large) {
    const size_t size = (size_t)(end - from), lead = (size_t)(-(uintptr_t)from % LINE);
    blank rest = {from, 0};
    if (!is_large || size < LINE) {
        memset(from, 0, size);
    } else {
        rest.to += lead;
        rest.lines = (size - lead) / LINE;
        memset(from, 0, lead);
        memset(rest.to + LINE * rest.lines, 0, (size - lead) % LINE);
    }
    return rest;
}

static void write_blank(blank *rest, size_t lines, bxs_simd level) {
    lines = lines < rest->lines ? lines : rest->lines;
    BXS_UP_TO_AVX2(level, put_zeros)(rest->to, lines);
    rest->to += LINE * lines;
    rest->lines -= lines;
}

/* Memory is busy with the empty rows while changes are found. */
typedef struct {
    bit_context marks;
    blank above, below;
    size_t share; /* lines for each call */
    bxs_simd level;
} byte_context;

static void take_bytes(void *context, uint32_t x, uint32_t columns, const uint32_t *changes,
                       const uint32_t *counts, size_t room) {
    byte_context *to = (byte_context *)context;
    take_bits(&to->marks, x, columns, changes, counts, room);
    write_blank(to->above.lines > 0 ? &to->above : &to->below, to->share, to->level);
}

/* Changes a row of bytes where bits are marked. */
static void flip_marked(uint8_t *row, const uint8_t *bits, size_t stride) {
    for (size_t i = 0; i < stride; i += 8) {
        uint64_t marks = 0;
        for (size_t byte = 0; byte < 8; byte++) {
            marks |= (uint64_t)bits[i + byte] << 8 * byte;
        }
        for (; marks != 0; marks &= marks - 1) {
            row[8 * i + bxs_trailing_zeros(marks)] ^= 1;
        }
    }
}

bxs_status bxs_surface_bytes(const bxs_surface *surface, const bxs_letterbox *map,
                             bxs_region pixels, bxs_simd simd, void *scratch, size_t scratch_size,
                             uint8_t *out, size_t room) {
    if (out == NULL) {
        return BXS_ERROR_NULL;
    }
    const bxs_simd level = bxs_simd_level(simd);
    bxs_status status = check_surface(surface, map, pixels, level, scratch, scratch_size);
    if (status != BXS_OK) {
        return status;
    }
    const size_t width = pixels.x1 - pixels.x0, height = pixels.y1 - pixels.y0;
    const int is_large = width * height >= LARGE;
    if (room / width < height) {
        return BXS_ERROR_ROOM;
    }
    const double column_scale =
        bxs_grid_scale(map->content_width, map->frame_width, surface->stride);
    const double row_scale =
        bxs_grid_scale(map->content_height, map->frame_height, surface->stride);
    if (!is_inside(cells_of(pixels, column_scale, row_scale, surface->columns, surface->rows),
                   surface->region)) {
        return BXS_ERROR_SIZE;
    }
    bxs_arena arena = bxs_arena_open(scratch);
    void *memory =
        bxs_arena_take(&arena, bxs_raster_size(map->frame_height, map->frame_width, surface->rows));
    const bxs_region inner =
        find_pixels(surface, pixels, column_scale, row_scale, level, (uint64_t *)memory);
    if (inner.x0 == inner.x1) {
        memset(out, 0, width * height);
        return BXS_OK;
    }
    const bxs_raster raster = bxs_raster_open(map, surface->stride, surface->rows, surface->columns,
                                              inner, level, memory);
    const size_t stride = word_stride(inner.x1 - inner.x0);
    const uint32_t rows = inner.y1 - inner.y0;
    uint8_t *bits = (uint8_t *)bxs_arena_take(&arena, stride * rows);
    uint8_t *row = (uint8_t *)bxs_arena_take(&arena, 0);
    uint8_t *first = out + (inner.y0 - pixels.y0) * width, *end = first + rows * width;
    byte_context to;
    to.marks = bit_canvas(bits, stride, inner);
    to.above = blank_between(out, first, is_large);
    to.below = blank_between(end, out + width * height, is_large);
    to.level = level;
    to.share = (to.above.lines + to.below.lines) /
                   (size_t)(raster.cells[inner.x1 - inner.x0 - 1] - raster.cells[0] + 1) +
               1;
    find_changes(surface, &raster, inner, take_bytes, &to);
    write_blank(&to.above, SIZE_MAX, level);
    write_blank(&to.below, SIZE_MAX, level);
    byte_stream stream;
    stream.foreign = stream.held = (uintptr_t)first % LINE;
    stream.to = first - stream.held;
    memset(row, 0, width + LINE);
    for (size_t y = 0; y < rows; y++) {
        flip_marked(row + (inner.x0 - pixels.x0), bits + y * stride, stride);
        if (is_large) {
            BXS_UP_TO_AVX2(level, stream)(&stream, row, width);
        } else {
            memcpy(first + y * width, row, width);
        }
    }
    if (is_large) {
        memcpy(stream.to + stream.foreign, stream.line + stream.foreign,
               stream.held - stream.foreign);
        bxs_put_end();
    }
    return BXS_OK;
}
