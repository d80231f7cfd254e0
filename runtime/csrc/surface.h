/* Runs of many surfaces over one frame, with the table of its rows made once. */
#ifndef BXS_SURFACE_H
#define BXS_SURFACE_H

#include "boxseg.h"

typedef struct {
    float *weights;    /* per frame row, of the lower cell */
    uint32_t *starts;  /* per cell, the first frame row that lies at or below its centre */
    float *column;     /* working memory: one column of cells */
    uint32_t *changes; /* working memory: one column's changes */
    uint32_t frame_height;
    uint32_t rows; /* of the whole grid */
} bxs_row_table;

size_t bxs_row_table_size(uint32_t frame_height, uint32_t rows);
bxs_row_table bxs_row_table_open(const bxs_letterbox *map, uint32_t stride, uint32_t rows,
                                 void *memory);

/* bxs_surface_rle without its checks. */
bxs_status bxs_surface_runs(const bxs_surface *surface, const bxs_letterbox *map,
                            const bxs_row_table *table, bxs_region pixels, char *text, size_t room,
                            size_t *length, uint32_t *area);

#endif
