/* The dynamic mask head of one instance, on the cells that it needs. */
#include "arena.h"
#include "boxseg.h"
#include "platform.h"

#include <string.h>

/* Cells of one row that are computed together. */
#define LANES 16

static float limited(float z) {
    const float limit = 1e30f;
    z = z > -limit ? z : -limit; /* also for NaN */
    return z < limit ? z : limit;
}

/* One layer for LANES cells: out[o] = bias[o] + sum over i of weight[o][i] * in[i]. */
static void layer(const float *BXS_RESTRICT weights, const float *BXS_RESTRICT biases,
                  uint32_t inputs, uint32_t outputs, int has_relu, const float *BXS_RESTRICT in,
                  float *BXS_RESTRICT out) {
    for (uint32_t o = 0; o < outputs; o++) {
        const float *row = weights + (size_t)o * inputs;
        float sum[LANES];
        for (int l = 0; l < LANES; l++) {
            sum[l] = biases[o];
        }
        for (uint32_t i = 0; i < inputs; i++) {
            for (int l = 0; l < LANES; l++) {
                sum[l] += row[i] * in[(size_t)i * LANES + (size_t)l];
            }
        }
        for (int l = 0; l < LANES; l++) {
            out[(size_t)o * LANES + (size_t)l] = has_relu && !(sum[l] > 0.0f) ? 0.0f : sum[l];
        }
    }
}

static uint32_t widest(const bxs_model *model) {
    uint32_t width = model->mask_channels + 2;
    for (uint32_t i = 0; i < model->layers; i++) {
        width = model->layer_widths[i] > width ? model->layer_widths[i] : width;
    }
    return width;
}

size_t bxs_mask_head_scratch_size(const bxs_model *model) {
    if (bxs_model_check(model) != BXS_OK) {
        return 0;
    }
    return bxs_scratch_total(bxs_piece(bxs_parameter_count(model) * sizeof(float)) +
                             2 * bxs_piece((size_t)widest(model) * LANES * sizeof(float)));
}

/* Fills the head's input for `n` cells of row y from column x on; the other lanes repeat zeros. */
static void gather(const bxs_model *model, const bxs_mask_inputs *inputs,
                   const bxs_candidate *candidate, uint32_t x, uint32_t y, uint32_t n, float *in) {
    const uint32_t stride = model->mask_stride;
    if (model->relative_coordinates) {
        const float scale = model->coordinate_scales[candidate->level];
        const float down = (candidate->y - ((float)y + 0.5f) * (float)stride) / scale;
        for (uint32_t l = 0; l < LANES; l++) {
            in[l] = (candidate->x - ((float)(x + l) + 0.5f) * (float)stride) / scale;
            in[LANES + l] = down;
        }
        in += 2 * LANES;
    }
    const float *from = inputs->features + (size_t)y * inputs->columns + x;
    for (uint32_t c = 0; c < model->mask_channels; c++) {
        memcpy(in, from, n * sizeof(float));
        memset(in + n, 0, (LANES - n) * sizeof(float));
        in += LANES;
        from += (size_t)inputs->rows * inputs->columns;
    }
}

/* Runs all layers between the two buffers; returns the one that holds the logits. */
static const float *run_layers(const bxs_model *model, const float *parameters, float *in,
                               float *out) {
    uint32_t inputs = model->mask_channels + 2 * model->relative_coordinates;
    const float *biases = parameters + bxs_parameter_count(model);
    for (uint32_t i = 0; i < model->layers; i++) {
        biases -= model->layer_widths[i];
    }
    for (uint32_t i = 0; i < model->layers; i++) {
        uint32_t outputs = model->layer_widths[i];
        layer(parameters, biases, inputs, outputs, i + 1 < model->layers, in, out);
        parameters += (size_t)inputs * outputs;
        biases += outputs;
        inputs = outputs;
        float *swap = in;
        in = out;
        out = swap;
    }
    return in;
}

bxs_status bxs_mask_head(const bxs_model *model, const bxs_mask_inputs *inputs,
                         const bxs_candidate *candidate, bxs_region region, void *scratch,
                         size_t scratch_size, float *logits, size_t room) {
    if (model == NULL || inputs == NULL || candidate == NULL || scratch == NULL || logits == NULL ||
        inputs->parameters == NULL || inputs->features == NULL) {
        return BXS_ERROR_NULL;
    }
    size_t needed = bxs_mask_head_scratch_size(model);
    if (needed == 0) {
        return BXS_ERROR_MODEL;
    }
    if (scratch_size < needed) {
        return BXS_ERROR_SCRATCH;
    }
    if (region.x0 >= region.x1 || region.y0 >= region.y1 || region.x1 > inputs->columns ||
        region.y1 > inputs->rows || candidate->slot >= inputs->slots ||
        candidate->level >= model->levels) {
        return BXS_ERROR_SIZE;
    }
    size_t rows = region.y1 - region.y0;
    if (room < rows * (region.x1 - region.x0)) {
        return BXS_ERROR_ROOM;
    }
    size_t count = bxs_parameter_count(model);
    bxs_arena arena = bxs_arena_open(scratch);
    float *parameters = (float *)bxs_arena_take(&arena, count * sizeof(float));
    size_t bytes = (size_t)widest(model) * LANES * sizeof(float);
    float *in = (float *)bxs_arena_take(&arena, bytes);
    float *out = (float *)bxs_arena_take(&arena, bytes);
    const float *from = inputs->parameters + candidate->slot * inputs->slot_stride;
    for (size_t p = 0; p < count; p++) {
        parameters[p] = from[p * inputs->parameter_stride];
    }
    for (uint32_t y = region.y0; y < region.y1; y++) {
        for (uint32_t x = region.x0; x < region.x1; x += LANES) {
            uint32_t n = region.x1 - x < LANES ? region.x1 - x : LANES;
            gather(model, inputs, candidate, x, y, n, in);
            const float *z = run_layers(model, parameters, in, out);
            float *to = logits + (size_t)(x - region.x0) * rows + (y - region.y0);
            for (uint32_t l = 0; l < n; l++) {
                to[l * rows] = limited(z[l]);
            }
        }
    }
    return BXS_OK;
}
