/* The dynamic mask head; compiled per level, see simd.h.
 *
 * A region is computed in strips as wide as a vector, in pieces of up to PIECE vectors, layer by
 * layer. A vector holds one row of LANES cells, or, at the right edge, 2 or 4 rows of fewer cells,
 * so that few lanes are idle. */

static inline F32 BXS_NAMED(load)(const float *from) {
    F32 vector;
    memcpy(&vector, from, sizeof vector);
    return vector;
}

/* At least 0, also for NaN. */
static inline F32 BXS_NAMED(positive)(F32 x) {
    return F32_MAX(x, (F32){0});
}

/* Within +-1e30; NaN becomes the lower limit. */
static inline F32 BXS_NAMED(limited)(F32 z) {
    const F32 limit = 1e30f - (F32){0};
    return F32_MIN(F32_MAX(z, -limit), limit);
}

/* The inputs of a layer: input i of vector v starts at cells + i * plane + v * row. */
typedef struct {
    const float *cells;
    size_t plane, row;
    const float *down; /* an input before those, the relative y: LANES floats per vector; or NULL */
} BXS_NAMED(layer_inputs);

/* BLOCK outputs of vectors v and v + 1: start[o] + sum over i of weight[i][o] * input i. The sums
 * are single variables because arrays would not stay in registers. */
static inline void BXS_NAMED(block)(const float *weights, const float *starts, size_t count,
                                    int has_down, int has_relu, BXS_NAMED(layer_inputs) in,
                                    uint32_t v, float *BXS_RESTRICT out) {
    F32 a0 = BXS_NAMED(load)(starts);
    F32 a1 = BXS_NAMED(load)(starts + BXS_LANES);
    F32 a2 = BXS_NAMED(load)(starts + 2 * BXS_LANES);
    F32 a3 = BXS_NAMED(load)(starts + 3 * BXS_LANES);
    F32 b0 = a0, b1 = a1, b2 = a2, b3 = a3;
#define BXS_ADD(a, b)                                                                              \
    a0 += weights[0] * (a);                                                                        \
    b0 += weights[0] * (b);                                                                        \
    a1 += weights[1] * (a);                                                                        \
    b1 += weights[1] * (b);                                                                        \
    a2 += weights[2] * (a);                                                                        \
    b2 += weights[2] * (b);                                                                        \
    a3 += weights[3] * (a);                                                                        \
    b3 += weights[3] * (b);                                                                        \
    weights += BLOCK
    if (has_down) {
        const F32 a = BXS_NAMED(load)(in.down + v * BXS_LANES);
        const F32 b = BXS_NAMED(load)(in.down + (v + 1) * BXS_LANES);
        BXS_ADD(a, b);
    }
    const float *first = in.cells + v * in.row;
    const float *second = first + in.row;
    for (const float *end = weights + BLOCK * count; weights < end;) {
        const F32 a = BXS_NAMED(load)(first), b = BXS_NAMED(load)(second);
        BXS_ADD(a, b);
        first += in.plane;
        second += in.plane;
    }
#undef BXS_ADD
#define BXS_PUT(o, a, b)                                                                           \
    a = has_relu ? BXS_NAMED(positive)(a) : a;                                                     \
    b = has_relu ? BXS_NAMED(positive)(b) : b;                                                     \
    memcpy(out + ((o) * PIECE + v) * BXS_LANES, &a, sizeof a);                                     \
    memcpy(out + ((o) * PIECE + v + 1) * BXS_LANES, &b, sizeof b)
    BXS_PUT(0, a0, b0);
    BXS_PUT(1, a1, b1);
    BXS_PUT(2, a2, b2);
    BXS_PUT(3, a3, b3);
#undef BXS_PUT
}

/* The same for one output. */
static inline void BXS_NAMED(single)(const float *weights, const float *starts, size_t count,
                                     int has_down, int has_relu, BXS_NAMED(layer_inputs) in,
                                     uint32_t v, float *BXS_RESTRICT out) {
    F32 a = BXS_NAMED(load)(starts);
    F32 b = a;
    if (has_down) {
        a += weights[0] * BXS_NAMED(load)(in.down + v * BXS_LANES);
        b += weights[0] * BXS_NAMED(load)(in.down + (v + 1) * BXS_LANES);
        weights++;
    }
    const float *first = in.cells + v * in.row;
    const float *second = first + in.row;
    for (const float *end = weights + count; weights < end; weights++) {
        a += weights[0] * BXS_NAMED(load)(first);
        b += weights[0] * BXS_NAMED(load)(second);
        first += in.plane;
        second += in.plane;
    }
    a = has_relu ? BXS_NAMED(positive)(a) : a;
    b = has_relu ? BXS_NAMED(positive)(b) : b;
    memcpy(out + v * BXS_LANES, &a, sizeof a);
    memcpy(out + (v + 1) * BXS_LANES, &b, sizeof b);
}

/* One layer of `vectors` vectors, an even number. Not inline: what surrounds it would take
 * registers from the sums. */
static BXS_NOINLINE void BXS_NAMED(layer)(const float *weights, const float *starts, size_t count,
                                          uint32_t outputs, int has_relu,
                                          const BXS_NAMED(layer_inputs) * inputs, uint32_t vectors,
                                          float *out) {
    const BXS_NAMED(layer_inputs) in = *inputs;
    const size_t all = count + (in.down != NULL);
    if (outputs == 1) {
        for (uint32_t v = 0; v < vectors; v += 2) {
            BXS_NAMED(single)(weights, starts, count, in.down != NULL, has_relu, in, v, out);
        }
        return;
    }
    for (uint32_t o = 0; o < outputs; o += BLOCK) {
        if (in.down != NULL) {
            for (uint32_t v = 0; v < vectors; v += 2) {
                BXS_NAMED(block)(weights, starts, count, 1, 1, in, v, out);
            }
        } else {
            for (uint32_t v = 0; v < vectors; v += 2) {
                BXS_NAMED(block)(weights, starts, count, 0, 1, in, v, out);
            }
        }
        weights += BLOCK * all;
        starts += BLOCK * BXS_LANES;
        out += BLOCK * PIECE * BXS_LANES;
    }
}

static uint32_t BXS_NAMED(blocked)(uint32_t outputs) {
    return outputs == 1 ? 1 : (outputs + BLOCK - 1) / BLOCK * BLOCK;
}

/* Arranges one instance's parameters for the loops above. */
static void BXS_NAMED(prepare)(const bxs_head *head, const float *from, size_t stride) {
    const bxs_model *model = head->model;
    const uint32_t relative = model->relative_coordinates;
    uint32_t inputs = model->mask_channels + 2 * relative;
    float *weights = head->weights;
    float *starts = head->starts;
    for (uint32_t layer = 0; layer < model->layers; layer++) {
        const uint32_t outputs = model->layer_widths[layer];
        const uint32_t width = outputs == 1 ? 1 : BLOCK;
        const uint32_t first = layer == 0 ? relative : 0;
        for (uint32_t o = 0; first == 1 && o < outputs; o++) {
            head->across[o] = from[(size_t)o * inputs * stride];
        }
        for (uint32_t block = 0; block < outputs; block += width) {
            for (uint32_t i = first; i < inputs; i++) {
                for (uint32_t o = block; o < block + width; o++) {
                    *weights++ = o < outputs ? from[((size_t)o * inputs + i) * stride] : 0.0f;
                }
            }
        }
        from += (size_t)outputs * inputs * stride;
        inputs = outputs;
    }
    for (uint32_t layer = 0; layer < model->layers; layer++) {
        const uint32_t outputs = model->layer_widths[layer];
        for (uint32_t o = 0; o < BXS_NAMED(blocked)(outputs); o++) {
            const F32 start = (o < outputs ? from[o * stride] : 0.0f) - (F32){0};
            memcpy(starts, &start, sizeof start);
            starts += BXS_LANES;
        }
        from += outputs * stride;
    }
}

/* The starts of layer 0 for the cells from column x on: bias + weight * relative x. */
static void BXS_NAMED(start_column)(const bxs_head *head, const bxs_candidate *candidate,
                                    uint32_t x, uint32_t width) {
    const bxs_model *model = head->model;
    float relative[BXS_LANES];
    for (uint32_t l = 0; l < BXS_LANES; l++) {
        const float centre = ((float)(x + l % width) + 0.5f) * (float)model->mask_stride;
        relative[l] = (candidate->x - centre) / model->coordinate_scales[candidate->level];
    }
    const F32 across = BXS_NAMED(load)(relative);
    for (uint32_t o = 0; o < model->layer_widths[0]; o++) {
        const F32 start = BXS_NAMED(load)(head->starts + o * BXS_LANES) + head->across[o] * across;
        memcpy(head->column + o * BXS_LANES, &start, sizeof start);
    }
}

/* A part of a region: columns x to before x + width of rows y to before `end`. */
typedef struct {
    uint32_t x, y, end, vectors;
} BXS_NAMED(piece);

/* The relative y of the piece's vectors; rows from `end` on repeat the last. */
static inline void BXS_NAMED(gather_down)(const bxs_head *head, const bxs_candidate *candidate,
                                          BXS_NAMED(piece) piece, uint32_t width) {
    const bxs_model *model = head->model;
    const uint32_t rows = piece.vectors * (BXS_LANES / width);
    const float stride = (float)model->mask_stride;
    const float scale = model->coordinate_scales[candidate->level];
    float down[4 * PIECE];
    for (uint32_t r = 0; r < rows; r++) {
        const uint32_t row = piece.y + r < piece.end ? piece.y + r : piece.end - 1;
        down[r] = (candidate->y - ((float)(int32_t)row + 0.5f) * stride) / scale;
    }
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t l = 0; l < width; l++) {
            head->down[r * width + l] = down[r];
        }
    }
}

/* The features of the piece's vectors, in the same way. */
static inline void BXS_NAMED(gather)(const bxs_head *head, const bxs_mask_inputs *inputs,
                                     BXS_NAMED(piece) piece, uint32_t width) {
    const uint32_t rows = piece.vectors * (BXS_LANES / width);
    const uint32_t held = inputs->columns < width ? inputs->columns : width;
    const float *plane = inputs->features + (size_t)piece.y * inputs->columns + piece.x;
    float *to = head->front;
    for (uint32_t c = 0; c < head->model->mask_channels; c++) {
        const float *from = plane;
        for (uint32_t r = 0; r < rows; r++) {
            if (held == width) {
                memcpy(to + r * width, from, width * sizeof(float));
            } else {
                memcpy(to + r * width, from, held * sizeof(float));
            }
            from += piece.y + r + 1 < piece.end ? inputs->columns : 0;
        }
        to += PIECE * BXS_LANES;
        plane += (size_t)inputs->rows * inputs->columns;
    }
}

/* All layers; gives the logits of the piece's vectors. */
static const float *BXS_NAMED(layers)(const bxs_head *head, const bxs_mask_inputs *inputs,
                                      const bxs_candidate *candidate, BXS_NAMED(piece) piece,
                                      uint32_t width) {
    const bxs_model *model = head->model;
    BXS_NAMED(layer_inputs) in = {head->front, PIECE * BXS_LANES, BXS_LANES, NULL};
    if (width == BXS_LANES && piece.y + piece.vectors <= piece.end && inputs->columns >= width) {
        in.cells = inputs->features + (size_t)piece.y * inputs->columns + piece.x;
        in.plane = (size_t)inputs->rows * inputs->columns;
        in.row = inputs->columns;
    } else {
        BXS_NAMED(gather)(head, inputs, piece, width);
    }
    const float *starts = head->starts;
    if (model->relative_coordinates) {
        BXS_NAMED(gather_down)(head, candidate, piece, width);
        in.down = head->down;
        starts = head->column;
    }
    const float *weights = head->weights;
    const float *next_starts = head->starts;
    float *out = head->back;
    uint32_t count = model->mask_channels;
    for (uint32_t layer = 0; layer < model->layers; layer++) {
        const uint32_t outputs = model->layer_widths[layer];
        BXS_NAMED(layer)(weights, starts, count, outputs, layer + 1 < model->layers, &in,
                         piece.vectors, out);
        weights += (size_t)BXS_NAMED(blocked)(outputs) * (count + (in.down != NULL));
        next_starts += BXS_NAMED(blocked)(outputs) * BXS_LANES;
        starts = next_starts;
        count = outputs;
        const BXS_NAMED(layer_inputs) next = {out, PIECE * BXS_LANES, BXS_LANES, NULL};
        in = next;
        out = out == head->back ? head->front : head->back;
    }
    return in.cells;
}

/* Puts `rows` rows of `columns` logits, which lie `width` apart, into columns. */
static inline void BXS_NAMED(turn)(const float *from, uint32_t width, uint32_t rows,
                                   uint32_t columns, float *to, size_t height) {
    uint32_t c = 0;
    for (; c + 4 <= columns; c += 4) {
        uint32_t r = 0;
        for (; r + 4 <= rows; r += 4) {
            bxs_transpose_4(from + r * width + c, width, to + c * height + r, height);
        }
        for (; r < rows; r++) {
            for (uint32_t l = c; l < c + 4; l++) {
                to[l * height + r] = from[r * width + l];
            }
        }
    }
    for (; c < columns; c++) {
        for (uint32_t r = 0; r < rows; r++) {
            to[c * height + r] = from[r * width + c];
        }
    }
}

/* `columns` columns of the region, which lie `skip` cells behind the vectors' first at x. */
static inline void BXS_NAMED(strip)(const bxs_head *head, const bxs_mask_inputs *inputs,
                                    const bxs_candidate *candidate, uint32_t x, uint32_t skip,
                                    uint32_t columns, uint32_t width, uint32_t y0, uint32_t y1,
                                    float *logits) {
    const uint32_t rows = BXS_LANES / width;
    if (head->model->relative_coordinates) {
        BXS_NAMED(start_column)(head, candidate, x, width);
    }
    BXS_NAMED(piece) piece = {x, y0, y1, 0};
    for (; piece.y < y1; piece.y += piece.vectors * rows) {
        const uint32_t left = (y1 - piece.y + 2 * rows - 1) / (2 * rows) * 2;
        piece.vectors = left < PIECE ? left : PIECE;
        const float *found = BXS_NAMED(layers)(head, inputs, candidate, piece, width);
        float limited[PIECE * BXS_LANES];
        for (uint32_t v = 0; v < piece.vectors; v++) {
            const F32 z = BXS_NAMED(limited)(BXS_NAMED(load)(found + v * BXS_LANES));
            memcpy(limited + v * BXS_LANES, &z, sizeof z);
        }
        const uint32_t most = piece.vectors * rows;
        BXS_NAMED(turn)(limited + skip, width, y1 - piece.y < most ? y1 - piece.y : most, columns,
                        logits + (piece.y - y0), y1 - y0);
    }
}

static void BXS_NAMED(head)(const bxs_head *head, const bxs_mask_inputs *inputs,
                            const bxs_candidate *candidate, bxs_region region, float *logits) {
    BXS_NAMED(prepare)(head, inputs->parameters + candidate->slot * inputs->slot_stride,
                       inputs->parameter_stride);
    const size_t height = region.y1 - region.y0;
    uint32_t columns;
    for (uint32_t x = region.x0; x < region.x1; x += columns) {
        const uint32_t left = region.x1 - x;
        uint32_t width = BXS_LANES;
        while (width > 4 && (left <= width / 2 || inputs->columns < width)) {
            width /= 2;
        }
        columns = left < width ? left : width;
        /* vectors stay inside the grid */
        const uint32_t most = inputs->columns < width ? 0 : inputs->columns - width;
        const uint32_t start = x < most ? x : most;
        float *to = logits + (x - region.x0) * height;
        if (width == BXS_LANES) {
            BXS_NAMED(strip)(head, inputs, candidate, start, x - start, columns, BXS_LANES,
                             region.y0, region.y1, to);
        } else if (width == 8) {
            BXS_NAMED(strip)(head, inputs, candidate, start, x - start, columns, 8, region.y0,
                             region.y1, to);
        } else {
            BXS_NAMED(strip)(head, inputs, candidate, start, x - start, columns, 4, region.y0,
                             region.y1, to);
        }
    }
}
