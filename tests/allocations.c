/* Counts the allocations of 200 frames of changing size: letterbox, selection, masks.
 *
 * The buffers are made for the largest frame. Every allocator of the C library is replaced by one
 * that counts; glibc's own are behind the names __libc_... */
#include "boxseg.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static size_t allocations;

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *old, size_t size);
void *__libc_memalign(size_t alignment, size_t size);

void *malloc(size_t size) {
    allocations++;
    return __libc_malloc(size);
}
void *calloc(size_t count, size_t size) {
    allocations++;
    return __libc_calloc(count, size);
}
void *realloc(void *old, size_t size) {
    allocations++;
    return __libc_realloc(old, size);
}
void *aligned_alloc(size_t alignment, size_t size) {
    allocations++;
    return __libc_memalign(alignment, size);
}
int posix_memalign(void **out, size_t alignment, size_t size) {
    allocations++;
    *out = __libc_memalign(alignment, size);
    return *out == NULL ? 12 : 0;
}

enum { INPUT = 320, LARGEST_HEIGHT = 1080, LARGEST_WIDTH = 1920, MAX_DET = 100, FRAMES = 200 };

static uint32_t state = 1;

/* A number in [low, high). */
static float any(float low, float high) {
    state = state * 1664525u + 1013904223u;
    return low + (high - low) * (float)(state >> 8) / 16777216.0f;
}

static void *room(size_t size) {
    void *memory = malloc(size);
    if (memory == NULL || size == 0) {
        fprintf(stderr, "no buffer of %zu bytes\n", size);
        exit(1);
    }
    return memory;
}

static void check(bxs_status status) {
    if (status != BXS_OK) {
        fprintf(stderr, "%s\n", bxs_status_name(status));
        exit(1);
    }
}

int main(void) {
    bxs_model model = {.classes = 3,
                       .levels = 3,
                       .strides = {8, 16, 32},
                       .coordinate_scales = {64, 128, 256},
                       .mask_channels = 4,
                       .mask_stride = 8,
                       .layers = 2,
                       .layer_widths = {6, 1},
                       .relative_coordinates = 1,
                       .candidate_score = 0.2,
                       .nms_iou = 0.6,
                       .candidates = 1000,
                       .max_det = MAX_DET};
    check(bxs_model_check(&model));
    bxs_letterbox map;
    check(bxs_letterbox_fit(LARGEST_HEIGHT, LARGEST_WIDTH, INPUT, INPUT, &map));
    const size_t locations = bxs_location_count(&model, INPUT, INPUT);
    const size_t parameters = bxs_parameter_count(&model);
    const uint32_t rows = INPUT / 8;

    const size_t frame_size = (size_t)LARGEST_HEIGHT * LARGEST_WIDTH * 3;
    uint8_t *pixels = room(frame_size), *input = room((size_t)INPUT * INPUT * 3);
    float *logits = room(locations * model.classes * sizeof(float));
    float *quality = room(locations * sizeof(float)), *boxes = room(locations * 4 * sizeof(float));
    float *values = room(locations * parameters * sizeof(float));
    float *features = room((size_t)rows * rows * model.mask_channels * sizeof(float));
    const size_t box_size = bxs_letterbox_scratch_size(&map);
    const size_t select_size = bxs_select_scratch_size(&model);
    const size_t masks_size = bxs_masks_scratch_size(&model, &map);
    const size_t text_size = MAX_DET * bxs_surface_text_size(&map, rows);
    void *box_scratch = room(box_size), *select_scratch = room(select_size);
    void *masks_scratch = room(masks_size);
    char *text = room(text_size);
    bxs_candidate *candidates = room(MAX_DET * sizeof(bxs_candidate));
    bxs_instance *instances = room(MAX_DET * sizeof(bxs_instance));
    for (size_t i = 0; i < frame_size; i++) {
        pixels[i] = (uint8_t)i;
    }
    for (size_t i = 0; i < locations * parameters; i++) {
        values[i] = any(-1, 1);
    }
    for (size_t i = 0; i < (size_t)rows * rows * model.mask_channels; i++) {
        features[i] = any(-2, 2);
    }

    size_t total = 0;
    const size_t before = allocations;
    for (int frame = 0; frame < FRAMES; frame++) {
        for (size_t i = 0; i < locations; i++) {
            for (size_t c = 0; c < model.classes; c++) {
                logits[i * model.classes + c] = any(-8, 1);
            }
            quality[i] = any(-2, 2);
            boxes[4 * i] = any(0, 250);
            boxes[4 * i + 1] = any(0, 250);
            boxes[4 * i + 2] = boxes[4 * i] + any(2, 70);
            boxes[4 * i + 3] = boxes[4 * i + 1] + any(2, 70);
        }
        const uint32_t height = (uint32_t)any(1, LARGEST_HEIGHT);
        const uint32_t width = (uint32_t)any(1, LARGEST_WIDTH);
        const bxs_frame image = {.data = pixels,
                                 .size = frame_size,
                                 .row_stride = (size_t)width * 3,
                                 .height = height,
                                 .width = width,
                                 .format = BXS_BGR8};
        const uint8_t padding[3] = {124, 116, 104};
        check(bxs_letterbox_fit(height, width, INPUT, INPUT, &map));
        check(bxs_letterbox_rgb8(&image, &map, padding, BXS_SIMD_BEST, box_scratch, box_size, input,
                                 (size_t)INPUT * INPUT * 3));
        const bxs_dense dense = {logits, quality, boxes, locations};
        const bxs_mask_inputs inputs = {values,   locations, 1,    locations,
                                        features, rows,      rows, NULL};
        size_t found = 0, drawn = 0, used = 0;
        check(bxs_select_dense(&model, &dense, &map, NULL, select_scratch, select_size, candidates,
                               MAX_DET, &found));
        check(bxs_masks(&model, &inputs, &map, candidates, found, 0.0, NULL, masks_scratch,
                        masks_size, instances, MAX_DET, &drawn, text, text_size, &used));
        total += drawn;
    }
    const size_t after = allocations;
    printf("instances %zu allocations %zu\n", total, after - before);
    return 0;
}
