/* The mask head of many instances of one frame, with its checks made once. */
#ifndef BXS_MASK_HEAD_H
#define BXS_MASK_HEAD_H

#include "boxseg.h"

typedef struct {
    const bxs_model *model;
    size_t parameters; /* of one instance */
    bxs_simd level;
    /* one instance's parameters, as the kernel reads them */
    float *weights; /* blocks of outputs, input by input; without the relative x of layer 0 */
    float *across;  /* weights of the relative x, per output of layer 0 */
    float *starts;  /* what sums start with: per output as many copies as there are lanes */
    float *column;  /* the starts of layer 0 at some columns of the grid, relative x included */
    float *front, *back; /* inputs and outputs of a layer */
    float *down;         /* relative y of some vectors of cells */
} bxs_head;

/* Bytes for a model that is valid. */
size_t bxs_head_size(const bxs_model *model);
bxs_head bxs_head_open(const bxs_model *model, void *memory);

/* bxs_mask_head without its checks. */
void bxs_head_run(const bxs_head *head, const bxs_mask_inputs *inputs,
                  const bxs_candidate *candidate, bxs_region region, float *logits);

/* Whether the pointers that one of the forms needs are there. */
int bxs_head_has_inputs(const bxs_mask_inputs *inputs);

/* Asks for a candidate's parameters, which lie far apart in the dense form. */
void bxs_head_expect(const bxs_head *head, const bxs_mask_inputs *inputs,
                     const bxs_candidate *candidate);

#endif
