#include "pipeline.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define UNWRITABLE "cannot be written; give a file in a folder that is there"

enum { CLASS_LOGITS, QUALITY_LOGITS, DENSE_BOXES, DENSE_PARAMETERS, DENSE_FEATURES, DENSE_OUTPUTS };
static const char *const dense_names[DENSE_OUTPUTS] = {"class_logits", "quality_logits", "boxes",
                                                       "parameters", "mask_features"};

enum { SCORES, LABELS, BOXES, LOCATIONS, LEVELS, PARAMETERS, FEATURES, TOPK_OUTPUTS };
static const char *const topk_names[TOPK_OUTPUTS] = {
    "scores", "labels", "boxes", "locations", "levels", "parameters", "mask_features"};

static const char *reason_of(bxs_status status) {
    return status == BXS_OK ? NULL : bxs_status_meaning(status);
}

/* Makes a buffer anew where it is too small; its content is lost. */
static int grow(void **buffer, size_t *size, size_t wanted) {
    if (wanted <= *size) {
        return 1;
    }
    free(*buffer);
    *buffer = malloc(wanted);
    *size = *buffer == NULL ? 0 : wanted;
    return *buffer != NULL;
}

const char *pipeline_confidence(const char *word, double *confidence) {
    char *end = NULL;
    const double value = strtod(word, &end);
    if (end == word || *end != '\0' || !(value >= 0.0 && value <= 1.0)) {
        return "the confidence must be a number from 0 to 1";
    }
    *confidence = value;
    return NULL;
}

const char *pipeline_open(pipeline *of, const char *json, size_t json_size) {
    memset(of, 0, sizeof *of);
    of->json = (char *)malloc(json_size);
    if (of->json == NULL) {
        return "out of memory";
    }
    memcpy(of->json, json, json_size);
    of->json_size = json_size;
    const char *wrong = NULL;
    bxs_status status = bxs_metadata_read(json, json_size, &of->metadata, &wrong);
    if (status == BXS_ERROR_METADATA) {
        snprintf(of->reason, sizeof of->reason,
                 "%s in the metadata is not what this library reads; export the model again",
                 wrong);
        return of->reason;
    }
    if (status != BXS_OK) {
        return bxs_status_meaning(status);
    }
    if (of->metadata.form == BXS_FORM_GRAPH) {
        return "export it with --form dense: this example reads files of the forms dense and topk, "
               "not graph";
    }
    const int is_dense = of->metadata.form == BXS_FORM_DENSE;
    of->output_names = is_dense ? dense_names : topk_names;
    of->outputs = is_dense ? DENSE_OUTPUTS : TOPK_OUTPUTS;
    of->candidates = (bxs_candidate *)malloc(of->metadata.model.max_det * sizeof *of->candidates);
    of->instances = (bxs_instance *)malloc(of->metadata.model.max_det * sizeof *of->instances);
    return of->candidates == NULL || of->instances == NULL ? "out of memory" : NULL;
}

void pipeline_close(pipeline *of) {
    free(of->json);
    free(of->input);
    free(of->scratch);
    free(of->candidates);
    free(of->instances);
    free(of->text);
    memset(of, 0, sizeof *of);
}

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

/* Makes room for frames of another size. */
static const char *fit(pipeline *of, const bxs_frame *frame) {
    const bxs_model *model = &of->metadata.model;
    const char *reason =
        reason_of(bxs_metadata_letterbox(&of->metadata, frame->height, frame->width, &of->map));
    if (reason != NULL) {
        return reason;
    }
    size_t select = of->metadata.form == BXS_FORM_DENSE ? bxs_select_scratch_size(model)
                                                        : bxs_select_topk_scratch_size(model);
    size_t scratch = larger(bxs_letterbox_scratch_size(&of->map),
                            larger(select, bxs_masks_scratch_size(model, &of->map)));
    /* never reached by far; pages that nothing is written to cost nothing */
    size_t text =
        model->max_det * bxs_surface_text_size(&of->map, of->map.height / model->mask_stride);
    int is_good =
        grow((void **)&of->input, &of->input_size, (size_t)of->map.height * of->map.width * 3) &&
        grow(&of->scratch, &of->scratch_size, scratch) &&
        grow((void **)&of->text, &of->text_size, text);
    return is_good ? NULL : "out of memory";
}

const char *pipeline_letterbox(pipeline *of, const bxs_frame *frame) {
    if (frame->height != of->map.frame_height || frame->width != of->map.frame_width) {
        const char *reason = fit(of, frame);
        if (reason != NULL) {
            of->map.frame_height = 0;
            return reason;
        }
    }
    return reason_of(bxs_letterbox_rgb8(frame, &of->map, of->metadata.padding, BXS_SIMD_BEST,
                                        of->scratch, of->scratch_size, of->input, of->input_size));
}

/* Locations of the form dense; rows of the form topk, which are as many as there are pairs where
 * these are few. */
static size_t slots_of(const pipeline *of) {
    const bxs_model *model = &of->metadata.model;
    const size_t locations = bxs_location_count(model, of->map.height, of->map.width);
    if (of->metadata.form == BXS_FORM_DENSE) {
        return locations;
    }
    const uint64_t pairs = (uint64_t)locations * model->classes;
    return pairs < model->candidates ? (size_t)pairs : model->candidates;
}

static size_t features_of(const pipeline *of) {
    const bxs_model *model = &of->metadata.model;
    return (size_t)model->mask_channels * (of->map.height / model->mask_stride) *
           (of->map.width / model->mask_stride);
}

size_t pipeline_output_size(const pipeline *of, int output) {
    const bxs_model *model = &of->metadata.model;
    const size_t slots = slots_of(of);
    if (of->metadata.form == BXS_FORM_DENSE) {
        const size_t each[] = {model->classes, 1, 4, bxs_parameter_count(model)};
        return output == DENSE_FEATURES ? features_of(of) : slots * each[output];
    }
    const size_t each[] = {1, 1, 4, 2, 1, bxs_parameter_count(model)};
    return output == FEATURES ? features_of(of) : slots * each[output];
}

int pipeline_output_is_integer(const pipeline *of, int output) {
    return of->metadata.form == BXS_FORM_TOPK && (output == LABELS || output == LEVELS);
}

/* Leaves n candidates, and what their masks are made from. */
static bxs_status select_best(pipeline *of, const void *const outputs[],
                              const bxs_deadline *deadline, size_t *n, bxs_mask_inputs *inputs) {
    const bxs_model *model = &of->metadata.model;
    const size_t slots = slots_of(of);
    memset(inputs, 0, sizeof *inputs);
    inputs->slots = slots;
    inputs->rows = of->map.height / model->mask_stride;
    inputs->columns = of->map.width / model->mask_stride;
    if (of->metadata.form == BXS_FORM_DENSE) {
        const bxs_dense dense = {(const float *)outputs[CLASS_LOGITS],
                                 (const float *)outputs[QUALITY_LOGITS],
                                 (const float *)outputs[DENSE_BOXES], slots};
        inputs->parameters = (const float *)outputs[DENSE_PARAMETERS];
        inputs->features = (const float *)outputs[DENSE_FEATURES];
        inputs->parameter_stride = slots; /* values of one location lie L floats apart */
        inputs->slot_stride = 1;
        return bxs_select_dense(model, &dense, &of->map, deadline, of->scratch, of->scratch_size,
                                of->candidates, model->max_det, n);
    }
    const bxs_topk topk = {(const float *)outputs[SCORES],   (const int32_t *)outputs[LABELS],
                           (const float *)outputs[BOXES],    (const float *)outputs[LOCATIONS],
                           (const int32_t *)outputs[LEVELS], slots};
    inputs->parameters = (const float *)outputs[PARAMETERS];
    inputs->features = (const float *)outputs[FEATURES];
    inputs->parameter_stride = 1; /* values of one row lie side by side */
    inputs->slot_stride = bxs_parameter_count(model);
    return bxs_select_topk(model, &topk, &of->map, deadline, of->scratch, of->scratch_size,
                           of->candidates, model->max_det, n);
}

const char *pipeline_answer(pipeline *of, const void *const outputs[], double confidence,
                            const bxs_deadline *deadline) {
    const bxs_model *model = &of->metadata.model;
    bxs_mask_inputs inputs;
    size_t n = 0;
    of->n = 0;
    bxs_status status = select_best(of, outputs, deadline, &n, &inputs);
    if (status != BXS_OK && status != BXS_ERROR_DEADLINE) {
        return bxs_status_meaning(status);
    }
    size_t text_size;
    status = bxs_masks(model, &inputs, &of->map, of->candidates, n, confidence, deadline,
                       of->scratch, of->scratch_size, of->instances, model->max_det, &of->n,
                       of->text, of->text_size, &text_size);
    return status == BXS_ERROR_DEADLINE ? NULL : reason_of(status);
}

/* ---------------------------------------------------------------- answer as JSON */

static void put_string(FILE *file, const char *text, size_t size) {
    fputc('"', file);
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c == '"' || c == '\\') {
            fprintf(file, "\\%c", c);
        } else if (c < 0x20) {
            fprintf(file, "\\u%04x", c);
        } else {
            fputc(c, file);
        }
    }
    fputc('"', file);
}

static const char *put_categories(const pipeline *of, FILE *file) {
    for (uint32_t i = 0; i < of->metadata.model.classes; i++) {
        char name[256];
        size_t length;
        uint64_t id;
        bxs_status status =
            bxs_metadata_class(of->json, of->json_size, i, name, sizeof name, &length, &id);
        if (status != BXS_OK) {
            return bxs_status_meaning(status);
        }
        fprintf(file, "%s{\"id\": %" PRIu64 ", \"name\": ", i > 0 ? ", " : "", id);
        put_string(file, name, length);
        fputc('}', file);
    }
    return NULL;
}

static const char *put_annotation(const pipeline *of, FILE *file, size_t i) {
    const bxs_instance *one = &of->instances[i];
    char name[256];
    size_t length;
    uint64_t id;
    bxs_status status = bxs_metadata_class(of->json, of->json_size, one->class_index, name,
                                           sizeof name, &length, &id);
    if (status != BXS_OK) {
        return bxs_status_meaning(status);
    }
    double width = (double)one->box[2] - (double)one->box[0];
    double height = (double)one->box[3] - (double)one->box[1];
    fprintf(file,
            "%s\n{\"id\": %zu, \"image_id\": 1, \"category_id\": %" PRIu64 ", \"iscrowd\": 0, "
            "\"score\": %.9g, \"bbox\": [%.9g, %.9g, %.17g, %.17g], \"area\": %.17g, "
            "\"segmentation\": {\"size\": [%" PRIu32 ", %" PRIu32 "], \"counts\": ",
            i > 0 ? "," : "", i + 1, id, (double)one->score, (double)one->box[0],
            (double)one->box[1], width, height, width * height, of->map.frame_height,
            of->map.frame_width);
    put_string(file, of->text + one->text_offset, (size_t)one->text_length);
    fputs("}}", file);
    return NULL;
}

const char *pipeline_write_json(const pipeline *of, const char *path, const char *image_name) {
    FILE *file = fopen(path, "w");
    if (file == NULL) {
        return UNWRITABLE;
    }
    fputs("{\"images\": [{\"id\": 1, \"file_name\": ", file);
    put_string(file, image_name, strlen(image_name));
    fprintf(file, ", \"height\": %" PRIu32 ", \"width\": %" PRIu32 "}],\n\"categories\": [",
            of->map.frame_height, of->map.frame_width);
    const char *reason = put_categories(of, file);
    fputs("],\n\"annotations\": [", file);
    for (size_t i = 0; i < of->n && reason == NULL; i++) {
        reason = put_annotation(of, file, i);
    }
    fputs("]}\n", file);
    int is_bad = ferror(file);
    return fclose(file) != 0 || is_bad ? UNWRITABLE : reason;
}
