/* Checks a model description and derives its counts. */
#include "boxseg.h"
#include "simd.h"

static int widths_are_valid(const bxs_model *model) {
    if (model->layers < 1 || model->layers > BXS_MAX_LAYERS || model->mask_channels < 1 ||
        model->mask_channels > BXS_MAX_WIDTH - 2 || model->relative_coordinates > 1) {
        return 0;
    }
    for (uint32_t i = 0; i < model->layers; i++) {
        if (model->layer_widths[i] < 1 || model->layer_widths[i] > BXS_MAX_WIDTH) {
            return 0;
        }
    }
    return model->layer_widths[model->layers - 1] == 1;
}

static int levels_are_valid(const bxs_model *model) {
    if (model->levels < 1 || model->levels > BXS_MAX_LEVELS || model->mask_stride < 1 ||
        model->mask_stride > BXS_MAX_SIDE) {
        return 0;
    }
    for (uint32_t i = 0; i < model->levels; i++) {
        float scale = model->coordinate_scales[i];
        if (model->strides[i] < 1 || model->strides[i] > BXS_MAX_SIDE || !(scale > 0.0f) ||
            !(scale <= 1e9f)) {
            return 0;
        }
    }
    return 1;
}

bxs_status bxs_model_check(const bxs_model *model) {
    if (model == NULL) {
        return BXS_ERROR_NULL;
    }
    for (size_t i = 0; i < sizeof model->reserved / sizeof model->reserved[0]; i++) {
        if (model->reserved[i] != 0) {
            return BXS_ERROR_MODEL;
        }
    }
    int scores_are_valid =
        (model->score0 == BXS_SCORE0_SQRT_CLS_QUALITY || model->score0 == BXS_SCORE0_CLS) &&
        (model->final_score == BXS_FINAL_SCORE0 ||
         model->final_score == BXS_FINAL_SQRT_SCORE0_MASK) &&
        model->candidate_score >= 0.0 && model->candidate_score < 1.0 && model->nms_iou >= 0.0 &&
        model->nms_iou <= 1.0;
    int counts_are_valid = model->classes >= 1 && model->classes <= BXS_MAX_CLASSES &&
                           model->candidates >= 1 && model->candidates <= BXS_MAX_CANDIDATES &&
                           model->max_det >= 1 && model->max_det <= model->candidates;
    if (!scores_are_valid || !counts_are_valid || !levels_are_valid(model) ||
        !widths_are_valid(model)) {
        return BXS_ERROR_MODEL;
    }
    return bxs_simd_level(model->simd) == BXS_SIMD_BEST ? BXS_ERROR_VALUE : BXS_OK;
}

size_t bxs_parameter_count(const bxs_model *model) {
    if (bxs_model_check(model) != BXS_OK) {
        return 0;
    }
    size_t inputs = (size_t)model->mask_channels + 2 * model->relative_coordinates;
    size_t count = 0;
    for (uint32_t i = 0; i < model->layers; i++) {
        count += (inputs + 1) * model->layer_widths[i];
        inputs = model->layer_widths[i];
    }
    return count;
}

size_t bxs_location_count(const bxs_model *model, uint32_t height, uint32_t width) {
    if (bxs_model_check(model) != BXS_OK || height < 1 || width < 1 || height > BXS_MAX_SIDE ||
        width > BXS_MAX_SIDE) {
        return 0;
    }
    size_t count = 0;
    for (uint32_t i = 0; i < model->levels; i++) {
        uint32_t stride = model->strides[i];
        count += (size_t)((height + stride - 1) / stride) * ((width + stride - 1) / stride);
    }
    return count;
}
