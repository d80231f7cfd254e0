/* The dynamic mask head of one instance, on the cells that it needs. */
#include "mask_head.h"
#include "arena.h"
#include "boxseg.h"
#include "platform.h"
#include "simd.h"

#include <string.h>

/* Lanes of the widest vectors, vectors computed together, and rows that are turned into columns at
 * a time. */
#define MOST_LANES 16
#define BLOCK 4
#define PIECE 16
#define LIMIT 1e30f

#define BXS_KERNEL "mask_head_kernel.h"
#include "simd_levels.h"

/* What a head needs, in floats. */
typedef struct {
    size_t weights, across, starts, activations;
} head_sizes;

static size_t blocked(size_t outputs) {
    return (outputs + BLOCK - 1) / BLOCK * BLOCK;
}

static head_sizes sizes_of(const bxs_model *model) {
    size_t inputs = model->mask_channels + 2;
    size_t widest = inputs;
    head_sizes sizes = {0, blocked(model->layer_widths[0]), 0, 0};
    for (uint32_t i = 0; i < model->layers; i++) {
        const size_t outputs = blocked(model->layer_widths[i]);
        sizes.weights += inputs * outputs;
        sizes.starts += outputs * MOST_LANES;
        widest = outputs > widest ? outputs : widest;
        inputs = outputs;
    }
    sizes.activations = widest * PIECE * MOST_LANES;
    return sizes;
}

size_t bxs_head_size(const bxs_model *model) {
    const head_sizes sizes = sizes_of(model);
    return bxs_scratch_total(bxs_piece(sizes.weights * sizeof(float)) +
                             bxs_piece(sizes.across * sizeof(float)) +
                             bxs_piece(sizes.starts * sizeof(float)) +
                             bxs_piece(sizes.across * MOST_LANES * sizeof(float)) +
                             2 * bxs_piece(sizes.activations * sizeof(float)) +
                             bxs_piece(PIECE * MOST_LANES * sizeof(float)));
}

bxs_head bxs_head_open(const bxs_model *model, void *memory) {
    const head_sizes sizes = sizes_of(model);
    bxs_arena arena = bxs_arena_open(memory);
    bxs_head head;
    head.model = model;
    head.parameters = bxs_parameter_count(model);
    head.level = bxs_simd_level(model->simd);
    head.weights = (float *)bxs_arena_take(&arena, sizes.weights * sizeof(float));
    head.across = (float *)bxs_arena_take(&arena, sizes.across * sizeof(float));
    head.starts = (float *)bxs_arena_take(&arena, sizes.starts * sizeof(float));
    head.column = (float *)bxs_arena_take(&arena, sizes.across * MOST_LANES * sizeof(float));
    head.front = (float *)bxs_arena_take(&arena, sizes.activations * sizeof(float));
    head.back = (float *)bxs_arena_take(&arena, sizes.activations * sizeof(float));
    head.down = (float *)bxs_arena_take(&arena, PIECE * MOST_LANES * sizeof(float));
    return head;
}

/* The form graph: a rectangle of what is there. */
static void take_logits(const bxs_mask_inputs *inputs, const bxs_candidate *candidate,
                        bxs_region region, float *logits) {
    const size_t cells = (size_t)inputs->rows * inputs->columns;
    const float *grid = inputs->logits + candidate->slot * cells;
    for (uint32_t x = region.x0; x < region.x1; x++) {
        for (uint32_t y = region.y0; y < region.y1; y++) {
            const float z = grid[(size_t)y * inputs->columns + x];
            const float high = z > -LIMIT ? z : -LIMIT; /* also for NaN */
            *logits++ = high < LIMIT ? high : LIMIT;
        }
    }
}

void bxs_head_run(const bxs_head *head, const bxs_mask_inputs *inputs,
                  const bxs_candidate *candidate, bxs_region region, float *logits) {
    if (inputs->logits != NULL) {
        take_logits(inputs, candidate, region, logits);
        return;
    }
    BXS_AT_LEVEL(head->level, head)(head, inputs, candidate, region, logits);
}

int bxs_head_has_inputs(const bxs_mask_inputs *inputs) {
    return inputs->logits != NULL || (inputs->parameters != NULL && inputs->features != NULL);
}

void bxs_head_expect(const bxs_head *head, const bxs_mask_inputs *inputs,
                     const bxs_candidate *candidate) {
    if (candidate->slot >= inputs->slots || inputs->logits != NULL) {
        return;
    }
    const float *from = inputs->parameters + candidate->slot * inputs->slot_stride;
    for (size_t p = 0; p < head->parameters; p++) {
        bxs_prefetch(from + p * inputs->parameter_stride, 1);
    }
}

size_t bxs_mask_head_scratch_size(const bxs_model *model) {
    return bxs_model_check(model) == BXS_OK ? bxs_head_size(model) : 0;
}

bxs_status bxs_mask_head(const bxs_model *model, const bxs_mask_inputs *inputs,
                         const bxs_candidate *candidate, bxs_region region, void *scratch,
                         size_t scratch_size, float *logits, size_t room) {
    if (model == NULL || inputs == NULL || candidate == NULL || scratch == NULL || logits == NULL ||
        !bxs_head_has_inputs(inputs)) {
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
    bxs_head head = bxs_head_open(model, scratch);
    bxs_head_run(&head, inputs, candidate, region, logits);
    return BXS_OK;
}
