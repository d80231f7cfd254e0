/* Where frame pixels lie between the cells of the mask grid. */
#ifndef BXS_GRID_H
#define BXS_GRID_H

#include "boxseg.h"

#include <math.h>

/* Cells per frame pixel along an axis. */
static inline double bxs_grid_scale(uint32_t content_side, uint32_t frame_side, uint32_t stride) {
    return (double)content_side / (double)frame_side / (double)stride;
}

/* Centre of a frame pixel in cells, where cell i has its centre at i; clamped to the grid. */
static inline double bxs_grid_position(uint32_t pixel, double scale, uint32_t cells) {
    double position = ((double)pixel + 0.5) * scale - 0.5;
    double last = (double)(cells - 1);
    return position < 0.0 ? 0.0 : position > last ? last : position;
}

/* The same for a coordinate in input pixels. */
static inline double bxs_input_position(double coordinate, uint32_t stride, uint32_t cells) {
    double position = coordinate / (double)stride - 0.5;
    double last = (double)(cells - 1);
    return position < 0.0 ? 0.0 : position > last ? last : position;
}

/* Between two values of one sign this has that sign, and it is monotone in the weight, also after
 * rounding: each product is. */
static inline float bxs_mix(float a, float b, float weight) {
    return a * (1.0f - weight) + b * weight;
}

/* A map, a stride and the grid's size that belong together. */
static inline int bxs_map_is_valid(const bxs_letterbox *map, uint32_t stride) {
    return map->frame_height >= 1 && map->frame_width >= 1 && map->frame_height <= BXS_MAX_SIDE &&
           map->frame_width <= BXS_MAX_SIDE && map->height <= BXS_MAX_SIDE &&
           map->width <= BXS_MAX_SIDE && map->content_height >= 1 && map->content_width >= 1 &&
           map->content_height <= map->height && map->content_width <= map->width && stride >= 1 &&
           map->height / stride >= 1 && map->width / stride >= 1;
}

#endif
