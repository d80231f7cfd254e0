/* What lies around the engine, in buffers that change with the frame's size only. */
#ifndef PIPELINE_H
#define PIPELINE_H

#include <boxseg.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { MOST_OUTPUTS = 7 };

typedef struct {
    char *json; /* the file's metadata */
    size_t json_size;
    bxs_metadata metadata; /* of the form dense or topk */
    const char *const *output_names;
    int outputs;       /* of the graph, in the order of their names */
    bxs_letterbox map; /* of the last frame */
    uint8_t *input;    /* map.height x map.width x 3, RGB */
    void *scratch;
    size_t input_size, scratch_size, text_size;
    bxs_candidate *candidates;
    bxs_instance *instances; /* the answer, n of them */
    size_t n;
    char *text; /* their masks */
    char reason[160];
} pipeline;

/* What may be wrong with a model, for whoever opens it. */
#define PIPELINE_FOREIGN                                                                           \
    "was not exported by boxseg: it has no metadata; write one with boxseg export"
#define PIPELINE_UNFIT "the metadata do not fit this output of the graph; export the model again"

/* These give NULL, or the reason why not; a reason may stand in the pipeline itself. */
const char *pipeline_confidence(const char *word, double *confidence); /* from 0 to 1 */
const char *pipeline_open(pipeline *of, const char *json, size_t json_size);
void pipeline_close(pipeline *of);

/* Letterboxes a frame into `input`. */
const char *pipeline_letterbox(pipeline *of, const bxs_frame *frame);

/* Numbers of an output for this input, batch 1, and whether they are int32_t, not float. */
size_t pipeline_output_size(const pipeline *of, int output);
int pipeline_output_is_integer(const pipeline *of, int output);

/* Finds the instances; `outputs` point to the graph's answer. `deadline` may be NULL; when it
 * passes, the best instances up to then are the answer. */
const char *pipeline_answer(pipeline *of, const void *const outputs[], double confidence,
                            const bxs_deadline *deadline);

/* Writes the answer as a COCO file like `boxseg predict --save-json`. */
const char *pipeline_write_json(const pipeline *of, const char *path, const char *image_name);

#ifdef __cplusplus
}
#endif

#endif
