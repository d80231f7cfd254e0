/* Outlines of masks: contours of a surface, and edges of pixels.
 *
 * Both walk between points that are on and points that are off, of a lattice with a border that is
 * off, and keep the point that is on at their right. */
#include "arena.h"
#include "boxseg.h"
#include "grid.h"
#include "picture.h"

#include <string.h>

/* A step between two neighbours of the lattice: `on` at the right, `off` at the left. */
typedef struct {
    int32_t on_x, on_y, off_x, off_y;
} crossing;

/* The neighbours ahead, to the right and to the left. */
static crossing ahead(crossing at) {
    const int32_t x = at.on_y - at.off_y, y = at.off_x - at.on_x;
    const crossing next = {at.on_x + x, at.on_y + y, at.off_x + x, at.off_y + y};
    return next;
}

/* Goes on: around the point that is on where the one ahead of it is off, around the point that is
 * off where both ahead are on, else straight. Where the two ahead are the other way round, `joined`
 * tells whether the points that are on belong together. */
static crossing step(crossing at, crossing next, int right_on, int left_on, int joined) {
    if (right_on && !left_on) {
        return next;
    }
    if (left_on && (right_on || joined)) {
        const crossing left = {next.off_x, next.off_y, at.off_x, at.off_y};
        return left;
    }
    const crossing right = {at.on_x, at.on_y, next.on_x, next.on_y};
    return right;
}

static int is_same(crossing a, crossing b) {
    return a.on_x == b.on_x && a.on_y == b.on_y && a.off_x == b.off_x && a.off_y == b.off_y;
}

/* Writes rings, and goes on counting when there is no room. */
typedef struct {
    float *points;
    uint32_t *ends;
    size_t point_room, ring_room, n_points, n_rings;
    size_t first;             /* of the open ring */
    float start[2][2];        /* its first two points */
    float last[2], before[2]; /* its last point and the one before that */
} ring_writer;

static int is_straight(const float a[2], const float b[2], const float c[2]) {
    return (a[0] == b[0] && b[0] == c[0]) || (a[1] == b[1] && b[1] == c[1]);
}

static int is_equal(const float a[2], const float b[2]) {
    return a[0] == b[0] && a[1] == b[1];
}

static void put(ring_writer *to, size_t at, const float point[2]) {
    if (at - to->first < 2) {
        memcpy(to->start[at - to->first], point, sizeof to->start[0]);
    }
    if (at < to->point_room) {
        memcpy(to->points + 2 * at, point, 2 * sizeof *to->points);
    }
}

/* Adds a point, unless it repeats the last; if it goes on along an axis, it replaces the last. */
static void add_point(ring_writer *to, float x, float y) {
    const float point[2] = {x, y};
    const size_t n = to->n_points - to->first;
    if (n > 0 && is_equal(to->last, point)) {
        return;
    }
    if (n > 1 && is_straight(to->before, to->last, point)) {
        to->n_points--;
    } else {
        memcpy(to->before, to->last, sizeof point);
    }
    memcpy(to->last, point, sizeof point);
    put(to, to->n_points++, point);
}

/* Ends a ring; one of fewer than three points has no area and is dropped. */
static void end_ring(ring_writer *to) {
    const size_t n = to->n_points - to->first;
    if (n > 1 && (is_equal(to->last, to->start[0]) ||
                  (n > 2 && is_straight(to->before, to->last, to->start[0])))) {
        to->n_points--;
    } else if (n > 2 && is_straight(to->last, to->start[0], to->start[1])) {
        put(to, to->first, to->last);
        to->n_points--;
    }
    if (to->n_points - to->first < 3) {
        to->n_points = to->first;
        return;
    }
    if (to->n_rings < to->ring_room) {
        to->ends[to->n_rings] = (uint32_t)to->n_points;
    }
    to->n_rings++;
    to->first = to->n_points;
}

static bxs_status finish(const ring_writer *to, size_t *n_points, size_t *n_rings) {
    *n_points = to->n_points;
    *n_rings = to->n_rings;
    return to->n_points > to->point_room || to->n_rings > to->ring_room ? BXS_ERROR_ROOM : BXS_OK;
}

/* ---------------------------------------------------------------- contours */

/* Lines of the lattice along an axis: the box's edges, the cells' centres between them, and a
 * border at either end, which lies on the edge. */
typedef struct {
    float *places;     /* frame pixels */
    double *positions; /* cells */
    int32_t n;
} axis;

static size_t most_lines(uint32_t first, uint32_t last) {
    return (size_t)(last - first) + 4;
}

static int region_is_valid(const bxs_region *region) {
    return region->x0 < region->x1 && region->y0 < region->y1 && region->x1 <= BXS_MAX_SIDE &&
           region->y1 <= BXS_MAX_SIDE;
}

static void add_line(axis *lines, double place, double position, uint32_t cells) {
    const double last = (double)(cells - 1);
    lines->places[lines->n] = (float)place;
    lines->positions[lines->n] = position < 0.0 ? 0.0 : position > last ? last : position;
    lines->n++;
}

/* Fills an axis, or returns 0 if the cells first..last do not reach its ends. */
static int fill_axis(axis *lines, float low, float high, double scale, uint32_t cells,
                     uint32_t first, uint32_t last) {
    const double from = (double)low * scale - 0.5, to = (double)high * scale - 0.5;
    const double end = (double)(cells - 1) < to ? (double)(cells - 1) : to;
    if ((from > 0.0 ? from : 0.0) < (double)first || end > (double)(last - 1)) {
        return 0;
    }
    lines->n = 0;
    add_line(lines, (double)low, from, cells);
    add_line(lines, (double)low, from, cells);
    for (uint32_t cell = first; cell < last; cell++) {
        if ((double)cell > from && (double)cell < to) {
            add_line(lines, ((double)cell + 0.5) / scale, (double)cell, cells);
        }
    }
    add_line(lines, (double)high, to, cells);
    add_line(lines, (double)high, to, cells);
    return 1;
}

typedef struct {
    axis x, y;
    float *values;    /* rows of columns; the border is off */
    uint8_t *is_seen; /* a ring passes between a point and its right neighbour, which is on */
} lattice;

static size_t lattice_index(const lattice *l, int32_t x, int32_t y) {
    return (size_t)y * (size_t)l->x.n + (size_t)x;
}

size_t bxs_surface_point_count(const bxs_region *region) {
    return region == NULL || !region_is_valid(region)
               ? 0
               : 2 * most_lines(region->x0, region->x1) * most_lines(region->y0, region->y1);
}

size_t bxs_surface_polygons_scratch_size(const bxs_region *region) {
    const size_t values = bxs_surface_point_count(region) / 2;
    if (values == 0) {
        return 0;
    }
    const size_t columns = most_lines(region->x0, region->x1);
    const size_t rows = most_lines(region->y0, region->y1);
    return bxs_scratch_total(bxs_piece(values * sizeof(float)) + bxs_piece(values) +
                             bxs_piece(columns * sizeof(float)) + bxs_piece(rows * sizeof(float)) +
                             bxs_piece(columns * sizeof(double)) +
                             bxs_piece(rows * sizeof(double)));
}

/* Takes the lattice's memory; its lines are still to be filled. */
static lattice open_lattice(const bxs_region *region, void *scratch) {
    bxs_arena arena = bxs_arena_open(scratch);
    const size_t values = bxs_surface_point_count(region) / 2;
    const size_t columns = most_lines(region->x0, region->x1);
    const size_t rows = most_lines(region->y0, region->y1);
    lattice l;
    l.values = (float *)bxs_arena_take(&arena, values * sizeof(float));
    l.is_seen = (uint8_t *)bxs_arena_take(&arena, values);
    l.x.places = (float *)bxs_arena_take(&arena, columns * sizeof(float));
    l.y.places = (float *)bxs_arena_take(&arena, rows * sizeof(float));
    l.x.positions = (double *)bxs_arena_take(&arena, columns * sizeof(double));
    l.y.positions = (double *)bxs_arena_take(&arena, rows * sizeof(double));
    return l;
}

/* Within +-1e30; NaN is off. */
static float limited(float value) {
    const float limit = 1e30f;
    value = value > -limit ? value : -limit;
    return value < limit ? value : limit;
}

/* The surface at a place in cells; only the cells that it needs are touched. */
static float value_at(const bxs_surface *surface, double u, double v) {
    const bxs_region *region = &surface->region;
    const size_t rows = region->y1 - region->y0;
    const uint32_t j = (uint32_t)u, i = (uint32_t)v;
    const float across = (float)(u - (double)j), down = (float)(v - (double)i);
    const float *left = surface->logits + (j - region->x0) * rows + (i - region->y0);
    const float *right = across > 0.0f ? left + rows : left;
    const size_t below = down > 0.0f ? 1 : 0;
    const float value = bxs_mix(bxs_mix(left[0], right[0], across),
                                bxs_mix(left[below], right[below], across), down);
    return limited(value);
}

static void fill_values(lattice *l, const bxs_surface *surface) {
    const bxs_region *region = &surface->region;
    const size_t rows = region->y1 - region->y0;
    const int32_t last_x = l->x.n - 3, last_y = l->y.n - 3; /* of the cells; they start at 2 */
    memset(l->is_seen, 0, (size_t)l->x.n * (size_t)l->y.n);
    for (int32_t y = 0; y < l->y.n; y++) {
        float *row = l->values + lattice_index(l, 0, y);
        const int on_edge = y < 2 || y > last_y;
        row[0] = row[l->x.n - 1] = -1.0f;
        if (y == 0 || y == l->y.n - 1) {
            for (int32_t x = 1; x < l->x.n - 1; x++) {
                row[x] = -1.0f;
            }
            continue;
        }
        for (int32_t x = 1; x < l->x.n - 1; x++) {
            if (on_edge || x < 2 || x > last_x) {
                row[x] = value_at(surface, l->x.positions[x], l->y.positions[y]);
            } else {
                const size_t column = (uint32_t)l->x.positions[x] - region->x0;
                row[x] = limited(
                    surface->logits[column * rows + (uint32_t)l->y.positions[y] - region->y0]);
            }
        }
    }
}

/* bxs_mix, and exact where both are the same. */
static float between(float a, float b, float weight) {
    return a == b ? a : bxs_mix(a, b, weight);
}

static void contour_ring(ring_writer *to, const lattice *l, crossing start) {
    crossing at = start;
    do {
        const size_t off_index = lattice_index(l, at.off_x, at.off_y);
        const float on = l->values[lattice_index(l, at.on_x, at.on_y)];
        const float off = l->values[off_index];
        if (at.on_x > at.off_x) {
            l->is_seen[off_index] = 1;
        }
        const float weight = on / (on - off);
        add_point(to, between(l->x.places[at.on_x], l->x.places[at.off_x], weight),
                  between(l->y.places[at.on_y], l->y.places[at.off_y], weight));
        const crossing next = ahead(at);
        const float right = l->values[lattice_index(l, next.on_x, next.on_y)];
        const float left = l->values[lattice_index(l, next.off_x, next.off_y)];
        /* the sign of the bilinear surface at its saddle */
        const int joined = (double)on * (double)left > (double)off * (double)right;
        at = step(at, next, right > 0.0f, left > 0.0f, joined);
    } while (!is_same(at, start));
    end_ring(to);
}

bxs_status bxs_surface_polygons(const bxs_surface *surface, const bxs_letterbox *map,
                                const float box[4], void *scratch, size_t scratch_size,
                                float *points, size_t point_room, uint32_t *ends, size_t ring_room,
                                size_t *n_points, size_t *n_rings) {
    if (surface == NULL || map == NULL || box == NULL || scratch == NULL ||
        surface->logits == NULL || n_points == NULL || n_rings == NULL ||
        (point_room > 0 && points == NULL) || (ring_room > 0 && ends == NULL)) {
        return BXS_ERROR_NULL;
    }
    const bxs_region *region = &surface->region;
    if (!bxs_map_is_valid(map, surface->stride) || !region_is_valid(region) ||
        region->x1 > surface->columns || region->y1 > surface->rows ||
        surface->rows > BXS_MAX_SIDE || surface->columns > BXS_MAX_SIDE) {
        return BXS_ERROR_SIZE;
    }
    if (!(box[0] >= 0.0f && box[1] >= 0.0f && box[2] > box[0] && box[3] > box[1] &&
          box[2] <= (float)map->frame_width && box[3] <= (float)map->frame_height)) {
        return BXS_ERROR_VALUE;
    }
    if (scratch_size < bxs_surface_polygons_scratch_size(region)) {
        return BXS_ERROR_SCRATCH;
    }
    lattice l = open_lattice(region, scratch);
    const double across = bxs_grid_scale(map->content_width, map->frame_width, surface->stride);
    const double down = bxs_grid_scale(map->content_height, map->frame_height, surface->stride);
    if (!fill_axis(&l.x, box[0], box[2], across, surface->columns, region->x0, region->x1) ||
        !fill_axis(&l.y, box[1], box[3], down, surface->rows, region->y0, region->y1)) {
        return BXS_ERROR_SIZE;
    }
    fill_values(&l, surface);
    ring_writer to = {points, ends, point_room, ring_room, 0, 0, 0, {{0}}, {0}, {0}};
    for (int32_t y = 1; y < l.y.n - 1; y++) {
        const float *row = l.values + lattice_index(&l, 0, y);
        for (int32_t x = 0; x < l.x.n - 1; x++) {
            if (!(row[x] > 0.0f) && row[x + 1] > 0.0f && !l.is_seen[lattice_index(&l, x, y)]) {
                const crossing start = {x + 1, y, x, y};
                contour_ring(&to, &l, start);
            }
        }
    }
    return finish(&to, n_points, n_rings);
}

/* ---------------------------------------------------------------- pixel edges */

#define ON 1
#define SEEN 2 /* a ring passes between a pixel and its right neighbour, which is on */

static void pixel_ring(ring_writer *to, uint8_t *pixels, size_t stride, bxs_region box,
                       crossing start) {
    crossing at = start;
    do {
        if (at.on_x > at.off_x) {
            pixels[(size_t)at.off_y * stride + (size_t)at.off_x] |= SEEN;
        }
        const crossing next = ahead(at);
        const int right = pixels[(size_t)next.on_y * stride + (size_t)next.on_x] & ON;
        const int left = pixels[(size_t)next.off_y * stride + (size_t)next.off_x] & ON;
        const crossing after = step(at, next, right, left, 0);
        if (!is_same(after, next)) {
            /* the corner that the four pixels share; the picture has a border of one pixel */
            int32_t x = at.on_x > at.off_x ? at.on_x : at.off_x;
            int32_t y = at.on_y > at.off_y ? at.on_y : at.off_y;
            x = next.on_x > x ? next.on_x : x;
            y = next.on_y > y ? next.on_y : y;
            add_point(to, (float)(x - 1 + (int32_t)box.x0), (float)(y - 1 + (int32_t)box.y0));
        }
        at = after;
    } while (!is_same(at, start));
    end_ring(to);
}

size_t bxs_rle_point_count(const bxs_region *box) {
    return box == NULL || !region_is_valid(box)
               ? 0
               : 2 * ((size_t)(box->x1 - box->x0) + 1) * ((size_t)(box->y1 - box->y0) + 1);
}

size_t bxs_rle_polygons_scratch_size(const bxs_region *box) {
    return box == NULL || !region_is_valid(box)
               ? 0
               : ((size_t)(box->x1 - box->x0) + 2) * ((size_t)(box->y1 - box->y0) + 2);
}

bxs_status bxs_rle_polygons(const char *text, size_t length, uint32_t height, uint32_t width,
                            bxs_region box, void *scratch, size_t scratch_size, float *points,
                            size_t point_room, uint32_t *ends, size_t ring_room, size_t *n_points,
                            size_t *n_rings) {
    if (text == NULL || scratch == NULL || n_points == NULL || n_rings == NULL ||
        (point_room > 0 && points == NULL) || (ring_room > 0 && ends == NULL)) {
        return BXS_ERROR_NULL;
    }
    if (!region_is_valid(&box) || box.x1 > width || box.y1 > height || width > BXS_MAX_SIDE ||
        height > BXS_MAX_SIDE) {
        return BXS_ERROR_SIZE;
    }
    if (scratch_size < bxs_rle_polygons_scratch_size(&box)) {
        return BXS_ERROR_SCRATCH;
    }
    const size_t stride = (size_t)(box.x1 - box.x0) + 2;
    const size_t rows = (size_t)(box.y1 - box.y0) + 2;
    uint8_t *pixels = (uint8_t *)scratch;
    memset(pixels, 0, stride + 1);
    memset(pixels + stride * (rows - 1), 0, stride);
    bxs_status status =
        bxs_rle_draw(text, length, height, width, box, 0, pixels + stride + 1, stride);
    if (status != BXS_OK) {
        return status;
    }
    ring_writer to = {points, ends, point_room, ring_room, 0, 0, 0, {{0}}, {0}, {0}};
    for (size_t y = 1; y + 1 < rows; y++) {
        const uint8_t *row = pixels + y * stride;
        for (size_t x = 0; x + 1 < stride; x++) {
            while (x + 9 < stride && memcmp(row + x, row + x + 1, 8) == 0) {
                x += 8;
            }
            if (row[x] == 0 && (row[x + 1] & ON) != 0) {
                const crossing start = {(int32_t)x + 1, (int32_t)y, (int32_t)x, (int32_t)y};
                pixel_ring(&to, pixels, stride, box, start);
            }
        }
    }
    return finish(&to, n_points, n_rings);
}
