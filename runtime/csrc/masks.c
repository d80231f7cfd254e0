/* Kept candidates in, instances out. */
#include "arena.h"
#include "boxseg.h"
#include "deadline.h"
#include "grid.h"
#include "mask_head.h"
#include "order.h"
#include "surface.h"

/* What one call needs, taken from the scratch in this order. */
typedef struct {
    const bxs_model *model;
    const bxs_mask_inputs *inputs;
    const bxs_letterbox *map;
    bxs_raster raster;
    bxs_head head;
    float *logits;
} workplace;

static size_t grid_cells(const bxs_model *model, const bxs_letterbox *map) {
    return (size_t)(map->height / model->mask_stride) * (map->width / model->mask_stride);
}

size_t bxs_masks_scratch_size(const bxs_model *model, const bxs_letterbox *map) {
    if (model == NULL || map == NULL || bxs_model_check(model) != BXS_OK ||
        !bxs_map_is_valid(map, model->mask_stride)) {
        return 0;
    }
    return bxs_scratch_total(bxs_piece(bxs_raster_size(map->frame_height, map->frame_width,
                                                       map->height / model->mask_stride)) +
                             bxs_piece(grid_cells(model, map) * sizeof(float)) +
                             bxs_piece(bxs_head_size(model)) +
                             2 * bxs_piece(model->max_det * sizeof(uint64_t)) +
                             bxs_piece(model->max_det * sizeof(bxs_instance)));
}

/* One instance with its text; *is_kept tells whether its final score passes. */
static bxs_status make_instance(const workplace *place, const bxs_candidate *candidate,
                                double confidence, bxs_instance *instance, int *is_kept, char *text,
                                size_t room) {
    const bxs_model *model = place->model;
    *is_kept = 0;
    /* the final score is at most this, whatever the mask is */
    double most = (double)candidate->score0;
    most = model->final_score == BXS_FINAL_SCORE0 ? most : sqrt(most);
    if (!((double)(float)most > confidence)) {
        return BXS_OK;
    }
    bxs_cut cut;
    bxs_status status = bxs_cut_box(candidate->box, place->map, model->mask_stride, &cut);
    if (status != BXS_OK) {
        return status;
    }
    if (candidate->slot >= place->inputs->slots || candidate->level >= model->levels) {
        return BXS_ERROR_SIZE;
    }
    bxs_head_run(&place->head, place->inputs, candidate, cut.cells, place->logits);
    bxs_surface surface = {place->logits, cut.cells, place->inputs->rows, place->inputs->columns,
                           model->mask_stride};
    instance->mask_score = bxs_surface_score(&surface, cut.input_box, place->head.level);
    instance->score0 = candidate->score0;
    instance->score = model->final_score == BXS_FINAL_SCORE0
                          ? candidate->score0
                          : (float)sqrt((double)candidate->score0 * (double)instance->mask_score);
    if (!((double)instance->score > confidence)) {
        return BXS_OK;
    }
    for (int i = 0; i < 4; i++) {
        instance->box[i] = cut.frame_box[i];
    }
    instance->class_index = candidate->class_index;
    instance->index = candidate->index;
    size_t length = 0;
    status = bxs_surface_text(&surface, &place->raster, place->map, cut.pixels, text, room, &length,
                              &instance->area);
    instance->text_length = length;
    *is_kept = 1;
    return status;
}

/* Orders instances by final score, then by candidate index. */
static void order(bxs_instance *instances, size_t n, uint64_t *keys, uint64_t *spare,
                  bxs_instance *copy) {
    /* insertion by candidate index makes equal scores fall in the right order, because the keys
     * break ties by position */
    for (size_t i = 1; i < n; i++) {
        bxs_instance moving = instances[i];
        size_t at = i;
        while (at > 0 && instances[at - 1].index > moving.index) {
            instances[at] = instances[at - 1];
            at--;
        }
        instances[at] = moving;
    }
    for (size_t i = 0; i < n; i++) {
        keys[i] = bxs_key(instances[i].score, (uint32_t)i);
        copy[i] = instances[i];
    }
    bxs_sort_keys(keys, spare, n);
    for (size_t i = 0; i < n; i++) {
        instances[i] = copy[bxs_key_index(keys[i])];
    }
}

static bxs_status check(const bxs_model *model, const bxs_mask_inputs *inputs,
                        const bxs_letterbox *map, size_t n, double confidence, size_t scratch_size,
                        size_t room) {
    size_t needed = bxs_masks_scratch_size(model, map);
    if (needed == 0) {
        return bxs_model_check(model) != BXS_OK ? BXS_ERROR_MODEL : BXS_ERROR_SIZE;
    }
    if (scratch_size < needed) {
        return BXS_ERROR_SCRATCH;
    }
    if (inputs->rows != map->height / model->mask_stride ||
        inputs->columns != map->width / model->mask_stride || n > model->max_det) {
        return BXS_ERROR_SIZE;
    }
    if (confidence != confidence) {
        return BXS_ERROR_VALUE;
    }
    return room < n ? BXS_ERROR_ROOM : BXS_OK;
}

bxs_status bxs_masks(const bxs_model *model, const bxs_mask_inputs *inputs,
                     const bxs_letterbox *map, const bxs_candidate *candidates, size_t n,
                     double confidence, const bxs_deadline *deadline, void *scratch,
                     size_t scratch_size, bxs_instance *instances, size_t room, size_t *n_instances,
                     char *text, size_t text_room, size_t *text_size) {
    if (model == NULL || inputs == NULL || map == NULL || scratch == NULL || n_instances == NULL ||
        text_size == NULL || !bxs_head_has_inputs(inputs) ||
        (n > 0 && (candidates == NULL || instances == NULL || text == NULL))) {
        return BXS_ERROR_NULL;
    }
    bxs_status status = check(model, inputs, map, n, confidence, scratch_size, room);
    if (status != BXS_OK) {
        return status;
    }
    bxs_arena arena = bxs_arena_open(scratch);
    workplace place;
    place.model = model;
    place.inputs = inputs;
    place.map = map;
    const bxs_region whole = {0, 0, map->frame_width, map->frame_height};
    void *memory =
        bxs_arena_take(&arena, bxs_raster_size(map->frame_height, map->frame_width, inputs->rows));
    place.head = bxs_head_open(model, bxs_arena_take(&arena, bxs_head_size(model)));
    place.raster = bxs_raster_open(map, model->mask_stride, inputs->rows, inputs->columns, whole,
                                   place.head.level, memory);
    place.logits = (float *)bxs_arena_take(&arena, grid_cells(model, map) * sizeof(float));
    uint64_t *keys = (uint64_t *)bxs_arena_take(&arena, model->max_det * sizeof(uint64_t));
    uint64_t *spare = (uint64_t *)bxs_arena_take(&arena, model->max_det * sizeof(uint64_t));
    bxs_instance *copy =
        (bxs_instance *)bxs_arena_take(&arena, model->max_det * sizeof(bxs_instance));
    size_t count = 0;
    size_t used = 0;
    for (size_t i = 0; i < n; i++) {
        if (bxs_expired(deadline)) {
            status = BXS_ERROR_DEADLINE;
            break;
        }
        if (i + 1 < n) {
            bxs_head_expect(&place.head, inputs, &candidates[i + 1]);
        }
        int is_kept;
        bxs_instance *instance = &instances[count];
        status = make_instance(&place, &candidates[i], confidence, instance, &is_kept, text + used,
                               text_room - used);
        if (status != BXS_OK) {
            return status;
        }
        if (is_kept) {
            instance->text_offset = used;
            used += (size_t)instance->text_length;
            count++;
        }
    }
    order(instances, count, keys, spare, copy);
    *n_instances = count;
    *text_size = used;
    return status;
}
