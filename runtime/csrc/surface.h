/* The pixels of many surfaces over one frame, with what they share made once. */
#ifndef BXS_SURFACE_H
#define BXS_SURFACE_H

#include "boxseg.h"

/* Where the pixels of a rectangle lie between the cells of the grid, and working memory. */
typedef struct {
    bxs_region pixels;      /* of the frame */
    float *down;            /* per row from pixels.y0 - 1 to pixels.y1: weight of the cell below */
    float *across;          /* per column from pixels.x0 on: weight of the cell to the right */
    int32_t *cells;         /* per column from pixels.x0 on: the cell to the left */
    uint32_t *starts;       /* per row of cells: the first frame row at or below its centres */
    double scale;           /* rows of cells per frame row */
    double column_scale;    /* columns of cells per frame column */
    uint32_t rows, columns; /* of the grid */
    bxs_simd level;
    int32_t *ends;      /* `starts` of one rectangle, counted from its top */
    uint64_t *signs[2]; /* of two columns of cells */
    uint64_t *mixed;    /* where their signs differ */
    uint32_t *changes;  /* of some frame columns */
} bxs_raster;

size_t bxs_raster_size(uint32_t frame_height, uint32_t frame_width, uint32_t rows);
bxs_raster bxs_raster_open(const bxs_letterbox *map, uint32_t stride, uint32_t rows,
                           uint32_t columns, bxs_region pixels, bxs_simd level, void *memory);

/* bxs_surface_rle without its checks; the pixels must be in the raster's. */
bxs_status bxs_surface_text(const bxs_surface *surface, const bxs_raster *raster,
                            const bxs_letterbox *map, bxs_region pixels, char *text, size_t room,
                            size_t *length, uint32_t *area);

/* bxs_mask_score at a level. */
float bxs_surface_score(const bxs_surface *surface, const float box[4], bxs_simd level);

#endif
