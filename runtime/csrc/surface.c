/* Cuts instances out and turns mask logits into runs of frame pixels.
 *
 * Along a column of the frame the surface is monotone between two rows of cells, so there is at
 * most one crossing per pair of cells, and a binary search with the pixels' own formula finds it.
 * The result is that of asking every pixel. */
#include "surface.h"

#include "arena.h"
#include "grid.h"
#include "run_text.h"
#include "sigmoid.h"

#include <string.h>

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

float bxs_mask_score(const bxs_surface *surface, const float box[4]) {
    const bxs_region *region = &surface->region;
    uint32_t x0, x1, y0, y1;
    centre_range(box[0], box[2], surface->stride, region->x0, region->x1, &x0, &x1);
    centre_range(box[1], box[3], surface->stride, region->y0, region->y1, &y0, &y1);
    if (x0 == x1 || y0 == y1) {
        float z = sample(surface, ((double)box[0] + (double)box[2]) / 2.0,
                         ((double)box[1] + (double)box[3]) / 2.0);
        return z > 0.0f ? (float)bxs_sigmoid((double)z) : 0.0f;
    }
    double sum = 0.0;
    uint32_t count = 0;
    for (uint32_t x = x0; x < x1; x++) {
        for (uint32_t y = y0; y < y1; y++) {
            float z = logit_at(surface, x, y);
            if (z > 0.0f) {
                sum += bxs_sigmoid((double)z);
                count++;
            }
        }
    }
    return count > 0 ? (float)(sum / (double)count) : 0.0f;
}

/* ---------------------------------------------------------------- runs */

size_t bxs_row_table_size(uint32_t frame_height, uint32_t rows) {
    return bxs_scratch_total(
        bxs_piece(frame_height * sizeof(float)) + bxs_piece(((size_t)rows + 1) * sizeof(uint32_t)) +
        bxs_piece(rows * sizeof(float)) + bxs_piece((2 * (size_t)rows + 4) * sizeof(uint32_t)));
}

bxs_row_table bxs_row_table_open(const bxs_letterbox *map, uint32_t stride, uint32_t rows,
                                 void *memory) {
    bxs_arena arena = bxs_arena_open(memory);
    bxs_row_table table;
    table.weights = (float *)bxs_arena_take(&arena, map->frame_height * sizeof(float));
    table.starts = (uint32_t *)bxs_arena_take(&arena, ((size_t)rows + 1) * sizeof(uint32_t));
    table.column = (float *)bxs_arena_take(&arena, rows * sizeof(float));
    table.changes = (uint32_t *)bxs_arena_take(&arena, (2 * (size_t)rows + 4) * sizeof(uint32_t));
    table.frame_height = map->frame_height;
    table.rows = rows;
    const double scale = bxs_grid_scale(map->content_height, map->frame_height, stride);
    uint32_t known = 0; /* cells whose start is written */
    for (uint32_t y = 0; y < map->frame_height; y++) {
        double position = bxs_grid_position(y, scale, rows);
        uint32_t cell = (uint32_t)position;
        table.weights[y] = (float)(position - (double)cell);
        while (known <= cell) {
            table.starts[known++] = y;
        }
    }
    while (known <= rows) {
        table.starts[known++] = map->frame_height;
    }
    return table;
}

/* First pixel of first..last whose sign is not that of the value a. */
static uint32_t crossing(const float *weights, float a, float b, uint32_t first, uint32_t last) {
    const int starts_on = a > 0.0f;
    while (first < last) {
        uint32_t middle = first + (last - first) / 2;
        if ((bxs_mix(a, b, weights[middle]) > 0.0f) == starts_on) {
            first = middle + 1;
        } else {
            last = middle;
        }
    }
    return first;
}

/* Finds where a frame column changes between off and on inside y0..y1, starting from off; an open
 * run is closed at y1, so the number of changes is even. */
static uint32_t column_changes(const bxs_row_table *table, const float *column, uint32_t y0,
                               uint32_t y1, uint32_t first_cell, uint32_t last_cell) {
    uint32_t *changes = table->changes;
    uint32_t n = 0;
    int on = 0;
    for (uint32_t i = first_cell; i <= last_cell; i++) {
        uint32_t start = table->starts[i] > y0 ? table->starts[i] : y0;
        uint32_t end = table->starts[i + 1] < y1 ? table->starts[i + 1] : y1;
        if (start >= end) {
            continue;
        }
        float a = column[i - first_cell];
        float b = i + 1 < table->rows ? column[i + 1 - first_cell] : a;
        int a_on = a > 0.0f;
        uint32_t turn = a_on == (b > 0.0f) ? end : crossing(table->weights, a, b, start, end);
        if (turn > start && a_on != on) {
            changes[n++] = start;
            on = a_on;
        }
        if (turn < end && a_on == on) {
            changes[n++] = turn;
            on = !a_on;
        }
    }
    if (on) {
        changes[n++] = y1;
    }
    return n;
}

/* The walk over the columns of a rectangle. */
typedef struct {
    const bxs_surface *surface;
    const bxs_row_table *table;
    bxs_region pixels;
    double scale;
    uint32_t first_cell, last_cell;
} walk;

static bxs_status walk_open(walk *w, const bxs_surface *surface, const bxs_letterbox *map,
                            const bxs_row_table *table, bxs_region pixels) {
    const bxs_region *region = &surface->region;
    w->surface = surface;
    w->table = table;
    w->pixels = pixels;
    w->scale = bxs_grid_scale(map->content_width, map->frame_width, surface->stride);
    const double down = bxs_grid_scale(map->content_height, map->frame_height, surface->stride);
    w->first_cell = (uint32_t)bxs_grid_position(pixels.y0, down, surface->rows);
    w->last_cell = (uint32_t)bxs_grid_position(pixels.y1 - 1, down, surface->rows);
    uint32_t below = w->last_cell + 1 < surface->rows ? w->last_cell + 1 : w->last_cell;
    uint32_t left = (uint32_t)bxs_grid_position(pixels.x0, w->scale, surface->columns);
    uint32_t right = (uint32_t)bxs_grid_position(pixels.x1 - 1, w->scale, surface->columns);
    right = right + 1 < surface->columns ? right + 1 : right;
    return left >= region->x0 && right < region->x1 && w->first_cell >= region->y0 &&
                   below < region->y1
               ? BXS_OK
               : BXS_ERROR_SIZE;
}

/* Changes of frame column x, in the table's buffer. */
static uint32_t walk_column(const walk *w, uint32_t x) {
    const bxs_surface *surface = w->surface;
    const bxs_region *region = &surface->region;
    const size_t rows = region->y1 - region->y0;
    double position = bxs_grid_position(x, w->scale, surface->columns);
    uint32_t cell = (uint32_t)position;
    float weight = (float)(position - (double)cell);
    uint32_t next = cell + 1 < surface->columns ? cell + 1 : cell;
    const float *left = surface->logits + (size_t)(cell - region->x0) * rows;
    const float *right = surface->logits + (size_t)(next - region->x0) * rows;
    const size_t offset = w->first_cell - region->y0;
    const size_t count =
        (w->last_cell + 1 < surface->rows ? w->last_cell + 1 : w->last_cell) - w->first_cell + 1;
    float *column = w->table->column;
    for (size_t i = 0; i < count; i++) {
        column[i] = bxs_mix(left[offset + i], right[offset + i], weight);
    }
    return column_changes(w->table, column, w->pixels.y0, w->pixels.y1, w->first_cell,
                          w->last_cell);
}

bxs_status bxs_surface_runs(const bxs_surface *surface, const bxs_letterbox *map,
                            const bxs_row_table *table, bxs_region pixels, char *text, size_t room,
                            size_t *length, uint32_t *area) {
    walk w;
    bxs_status status = walk_open(&w, surface, map, table, pixels);
    if (status != BXS_OK) {
        return status;
    }
    const uint64_t height = map->frame_height;
    run_text writer = run_text_open(text, room);
    run_text_push(&writer, 0, pixels.x0 * height);
    for (uint32_t x = pixels.x0; x < pixels.x1; x++) {
        uint32_t n = walk_column(&w, x);
        uint32_t y = 0;
        for (uint32_t i = 0; i < n; i++) {
            run_text_push(&writer, i & 1, table->changes[i] - y);
            y = table->changes[i];
        }
        run_text_push(&writer, 0, height - y);
    }
    run_text_push(&writer, 0, (map->frame_width - pixels.x1) * height);
    run_text_close(&writer);
    *length = writer.length;
    *area = writer.area;
    return writer.is_full ? BXS_ERROR_ROOM : BXS_OK;
}

static bxs_status check_surface(const bxs_surface *surface, const bxs_letterbox *map,
                                bxs_region pixels, const void *scratch, size_t scratch_size) {
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
    size_t needed = bxs_surface_scratch_size(map->frame_height, map->frame_width, surface->rows);
    return scratch_size < needed ? BXS_ERROR_SCRATCH : BXS_OK;
}

size_t bxs_surface_scratch_size(uint32_t frame_height, uint32_t frame_width, uint32_t rows) {
    if (frame_height < 1 || frame_height > BXS_MAX_SIDE || frame_width < 1 ||
        frame_width > BXS_MAX_SIDE || rows < 1 || rows > BXS_MAX_SIDE) {
        return 0;
    }
    return bxs_row_table_size(frame_height, rows);
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
                           void *scratch, size_t scratch_size, char *text, size_t room,
                           size_t *length, uint32_t *area) {
    if (text == NULL || length == NULL || area == NULL) {
        return BXS_ERROR_NULL;
    }
    bxs_status status = check_surface(surface, map, pixels, scratch, scratch_size);
    if (status != BXS_OK) {
        return status;
    }
    bxs_row_table table = bxs_row_table_open(map, surface->stride, surface->rows, scratch);
    return bxs_surface_runs(surface, map, &table, pixels, text, room, length, area);
}

bxs_status bxs_surface_bytes(const bxs_surface *surface, const bxs_letterbox *map,
                             bxs_region pixels, void *scratch, size_t scratch_size, uint8_t *out,
                             size_t room) {
    if (out == NULL) {
        return BXS_ERROR_NULL;
    }
    bxs_status status = check_surface(surface, map, pixels, scratch, scratch_size);
    if (status != BXS_OK) {
        return status;
    }
    const size_t width = pixels.x1 - pixels.x0;
    const size_t height = pixels.y1 - pixels.y0;
    if (room < width * height) {
        return BXS_ERROR_ROOM;
    }
    bxs_row_table table = bxs_row_table_open(map, surface->stride, surface->rows, scratch);
    walk w;
    status = walk_open(&w, surface, map, &table, pixels);
    if (status != BXS_OK) {
        return status;
    }
    memset(out, 0, width * height);
    for (uint32_t x = pixels.x0; x < pixels.x1; x++) {
        uint32_t n = walk_column(&w, x);
        for (uint32_t i = 0; i < n; i += 2) {
            for (uint32_t y = table.changes[i]; y < table.changes[i + 1]; y++) {
                out[(y - pixels.y0) * width + (x - pixels.x0)] = 1;
            }
        }
    }
    return BXS_OK;
}
