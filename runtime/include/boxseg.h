/* boxseg.h: camera frame to instances, in plain C.
 *
 * Ownership: the caller owns every buffer; nothing here allocates or frees. Pointers are used only
 *            during the call that receives them.
 * Threads:   no global state and no threads inside; calls may run in parallel on disjoint outputs
 *            and scratch. Const inputs may be shared.
 * Errors:    every function that can fail returns a bxs_status; on error, outputs are unspecified
 *            (BXS_ERROR_DEADLINE is the exception).
 * Scratch:   a function that needs working memory has a ..._scratch_size() beside it, which gives
 *            the bytes for its arguments (0 when they are not valid). Scratch may have any
 *            alignment, and holds nothing between calls. What is enough for large sizes is enough
 *            for smaller ones, so one buffer made at start serves a camera whose size changes.
 * Numbers:   results are the same bits on every machine with IEEE-754 floats and on every SIMD
 *            level: no fast-math, no contraction, own exponential. Compile with -ffp-contract=off.
 * Layout:    images are rows of interleaved bytes, top row first, with a stride in bytes. Boxes are
 *            x1, y1, x2, y2 in pixels, pixel (x, y) covers [x, x + 1) by [y, y + 1) and its centre
 *            is (x + 0.5, y + 0.5).
 *
 * Sections, in the order of use: errors, limits, letterbox, model, metadata, candidates,
 * suppression, masks, run-length text. A frame costs bxs_letterbox_rgb8, the engine,
 * bxs_select_dense and bxs_masks.
 */
#ifndef BOXSEG_H
#define BOXSEG_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define BXS_VERSION_MAJOR 0
#define BXS_VERSION_MINOR 1
#define BXS_VERSION_PATCH 0

#if defined(_WIN32)
#define BXS_API __declspec(dllexport)
#elif defined(__GNUC__)
#define BXS_API __attribute__((visibility("default")))
#else
#define BXS_API
#endif

/* ---------------------------------------------------------------- errors */

/* One list yields the codes and their names. */
#define BXS_LIST_STATUS(X)                                                                         \
    X(BXS_OK, "ok")                                                                                \
    X(BXS_ERROR_NULL, "a required pointer is NULL")                                                \
    X(BXS_ERROR_SIZE, "a width, height or count is zero, too large or inconsistent")               \
    X(BXS_ERROR_STRIDE, "a row stride is smaller than its row, or the buffer ends inside a row")   \
    X(BXS_ERROR_FORMAT, "the pixel format is unknown or not supported here")                       \
    X(BXS_ERROR_VALUE, "a number is not finite or outside its range")                              \
    X(BXS_ERROR_MODEL, "the model description is inconsistent")                                    \
    X(BXS_ERROR_SCRATCH, "the scratch buffer is smaller than the scratch size")                    \
    X(BXS_ERROR_ROOM, "an output buffer is too small")                                             \
    X(BXS_ERROR_TEXT, "the run-length text is malformed")                                          \
    X(BXS_ERROR_DEADLINE, "the deadline passed before the work was complete")                      \
    X(BXS_ERROR_METADATA, "the metadata is not JSON, or a key is missing or wrong")

typedef enum {
#define BXS_STATUS_CODE(code, meaning) code,
    BXS_LIST_STATUS(BXS_STATUS_CODE)
#undef BXS_STATUS_CODE
        BXS_STATUS_COUNT
} bxs_status;

/* Name of a code, for example "BXS_ERROR_SIZE"; "BXS_UNKNOWN" for any other number. */
BXS_API const char *bxs_status_name(bxs_status status);
/* The same as a sentence without a full stop. */
BXS_API const char *bxs_status_meaning(bxs_status status);

/* ---------------------------------------------------------------- limits */

/* Instruction sets. The level that a function is given is a choice for tests and benchmarks:
 * everybody else leaves it at BXS_SIMD_BEST. All levels give the same bits. A level that the
 * machine lacks is BXS_ERROR_VALUE. */
typedef enum {
    BXS_SIMD_BEST = 0,     /* bxs_simd_best() */
    BXS_SIMD_PORTABLE = 1, /* vectors of 128 bits, which SSE2 and NEON have */
    BXS_SIMD_AVX2 = 2,     /* with FMA, BMI1 and BMI2 */
    BXS_SIMD_AVX512 = 3    /* F, BW, CD, DQ and VL, and what AVX2 has */
} bxs_simd;

/* The highest level that this processor and its operating system run. */
BXS_API bxs_simd bxs_simd_best(void);
/* "best", "portable", "avx2" or "avx512"; "unknown" for any other number. */
BXS_API const char *bxs_simd_name(bxs_simd level);

/* A limit in time; the clock is the caller's. Functions that take one ask `expired` some
 * microseconds of work apart, and stop when it does not answer 0. They then return
 * BXS_ERROR_DEADLINE, and what is complete by then is valid: their outputs and counts hold it.
 * NULL instead of a bxs_deadline is no limit. */
typedef struct {
    int (*expired)(void *context);
    void *context; /* given to `expired` */
} bxs_deadline;

/* ---------------------------------------------------------------- letterbox */

/* Longest side of a frame or of an input, in pixels. */
#define BXS_MAX_SIDE 32768u

typedef enum {
    BXS_RGB8 = 0,  /* 3 bytes per pixel */
    BXS_BGR8 = 1,  /* 3 bytes per pixel */
    BXS_MONO8 = 2, /* 1 byte per pixel, becomes three equal channels */
    BXS_NV12 = 3,  /* 1 byte Y per pixel; in a second plane 2 bytes U V for 2 x 2 pixels */
    BXS_YUYV = 4   /* 4 bytes Y U Y V for 2 pixels side by side */
} bxs_pixel_format;

/* How NV12 and YUYV become R, G, B. With y = Y - 16, scale 255 / 219 and chroma scale 255 / 224 for
 * the limited range, and y = Y, both scales 1 for the full one, and u = U - 128, v = V - 128:
 *
 *     R = scale * y + chroma scale * (2 - 2 Kr) * v
 *     B = scale * y + chroma scale * (2 - 2 Kb) * u
 *     G = scale * y - chroma scale * ((2 - 2 Kb) * Kb * u + (2 - 2 Kr) * Kr * v) / (1 - Kr - Kb)
 *
 * rounded to the nearest and limited to 0..255, in integers with factors of 1 / 65536. Kr, Kb are
 * 0.299, 0.114 for BT.601 and 0.2126, 0.0722 for BT.709. Every pixel takes the chroma of its own
 * 2 x 2 or 2 x 1 pixels, without interpolation; at an odd width or height the last chroma sample
 * serves one column or row. The frame is resized after that, as RGB. */
typedef enum {
    BXS_BT601_LIMITED = 0, /* what most cameras give */
    BXS_BT601_FULL = 1,
    BXS_BT709_LIMITED = 2,
    BXS_BT709_FULL = 3
} bxs_yuv;

/* A camera frame that the caller owns. Zero what a format does not need. */
typedef struct {
    const uint8_t *data; /* first byte of the top row */
    size_t size;         /* bytes from data on; the last row needs no padding behind it */
    size_t row_stride;   /* bytes from one row to the next, at least a row's own bytes; of YUYV
                            these are 4 for an odd last pixel too */
    uint32_t height;     /* pixels, 1..BXS_MAX_SIDE */
    uint32_t width;
    bxs_pixel_format format;
    bxs_yuv yuv; /* NV12 and YUYV only, as is all below NV12 only */
    /* The plane of U V: (height + 1) / 2 rows of (width + 1) / 2 pairs. NULL if it follows the rows
     * of Y, at data + row_stride * height, with their stride and counted in size. */
    const uint8_t *chroma;
    size_t chroma_size;
    size_t chroma_stride;
} bxs_frame;

/* Where a frame lies in the input. The content sits at the top left, padding at the right and at
 * the bottom. Per axis the map is input = frame * content / frame_side, on pixel edges, so the
 * centre of frame pixel x lies at (x + 0.5) * content_width / frame_width. */
typedef struct {
    uint32_t frame_height, frame_width;
    uint32_t content_height, content_width; /* the resized frame, 1..height and 1..width */
    uint32_t height, width;                 /* the input with its padding */
} bxs_letterbox;

/* Fits a frame inside height x width: r = min(height / frame_height, width / frame_width), and the
 * content is round(side * r), halves up, at least 1. */
BXS_API bxs_status bxs_letterbox_fit(uint32_t frame_height, uint32_t frame_width, uint32_t height,
                                     uint32_t width, bxs_letterbox *map);

/* Gives the shorter side `short_side` pixels unless the longer one would pass `long_side`, which
 * then decides; pads to the next multiple of `divisor` (at least 1). */
BXS_API bxs_status bxs_letterbox_short_long(uint32_t frame_height, uint32_t frame_width,
                                            uint32_t short_side, uint32_t long_side,
                                            uint32_t divisor, bxs_letterbox *map);

/* Resizes a frame to its content size, as RGB bytes, and pads it.
 *
 * Bilinear with half-pixel centres and clamped borders, without smoothing before reduction. The
 * weights are rounded to 1/2048 per axis and the result once, to the nearest grey level, so a
 * frame that keeps its size is copied exactly.
 *
 *   frame     as described above; its size must be the map's frame size
 *   padding   R, G, B of the pixels outside the content; NULL leaves them as they are, for a buffer
 *             that a former call with this map has padded
 *   simd      BXS_SIMD_BEST, or the level to use
 *   scratch   bxs_letterbox_scratch_size(map) bytes
 *   out       height x width x 3 bytes, rows without gaps; room is its capacity in bytes */
BXS_API size_t bxs_letterbox_scratch_size(const bxs_letterbox *map);
BXS_API bxs_status bxs_letterbox_rgb8(const bxs_frame *frame, const bxs_letterbox *map,
                                      const uint8_t padding[3], bxs_simd simd, void *scratch,
                                      size_t scratch_size, uint8_t *out, size_t room);

/* The same pixels as floats, planes R, G, B of height x width: (byte - mean) * (1 / std) by
 * channel, each of the three operations rounded to float; the padding, too.
 *
 *   mean, std   R, G, B in grey levels, 0..255; mean within +-1e9, std in 1e-9..1e9
 *   out         room is its capacity in floats, at least 3 * height * width */
BXS_API bxs_status bxs_letterbox_f32(const bxs_frame *frame, const bxs_letterbox *map,
                                     const uint8_t padding[3], const float mean[3],
                                     const float std[3], bxs_simd simd, void *scratch,
                                     size_t scratch_size, float *out, size_t room);

/* Resizes an image of 1 to 4 interleaved channels by the same rule, without padding.
 *
 *   data, size, row_stride   height x width x channels bytes, as in bxs_frame
 *   scratch                  bxs_resize_scratch_size(channels, new_width) bytes
 *   out                      new_height x new_width x channels bytes, rows without gaps */
BXS_API size_t bxs_resize_scratch_size(uint32_t channels, uint32_t new_width);
BXS_API bxs_status bxs_resize_u8(const uint8_t *data, size_t size, size_t row_stride,
                                 uint32_t height, uint32_t width, uint32_t channels,
                                 uint32_t new_height, uint32_t new_width, void *scratch,
                                 size_t scratch_size, uint8_t *out, size_t room);

/* ---------------------------------------------------------------- model */

#define BXS_MAX_LEVELS 8u
#define BXS_MAX_LAYERS 8u
/* Widest input or layer of the mask head. */
#define BXS_MAX_WIDTH 512u
#define BXS_MAX_CLASSES 65535u
#define BXS_MAX_CANDIDATES 1000000u

typedef enum {
    BXS_SCORE0_SQRT_CLS_QUALITY = 0, /* sqrt(sigmoid(class) * sigmoid(quality)) */
    BXS_SCORE0_CLS = 1               /* sigmoid(class) */
} bxs_score0_rule;

typedef enum {
    BXS_FINAL_SCORE0 = 0,          /* score0 */
    BXS_FINAL_SQRT_SCORE0_MASK = 1 /* sqrt(score0 * mask score) */
} bxs_final_rule;

/* What a deployed file's metadata says about its outputs. */
typedef struct {
    uint32_t classes;                        /* C, 1..BXS_MAX_CLASSES */
    uint32_t levels;                         /* pyramid levels, 1..BXS_MAX_LEVELS, finest first */
    uint32_t strides[BXS_MAX_LEVELS];        /* input pixels per location */
    float coordinate_scales[BXS_MAX_LEVELS]; /* input pixels per unit of relative coordinate */
    uint32_t mask_channels;                  /* M, channels of the mask features */
    uint32_t mask_stride;                    /* input pixels per cell of the mask features */
    uint32_t layers;                         /* of the dynamic head, 1..BXS_MAX_LAYERS */
    uint32_t layer_widths[BXS_MAX_LAYERS];   /* outputs of each layer; the last is 1 */
    uint32_t relative_coordinates;           /* 1: two coordinates precede the features; 0: none */
    bxs_score0_rule score0;
    bxs_final_rule final_score;
    double candidate_score; /* a candidate needs score0 > this, [0, 1) */
    double nms_iou;         /* a box is suppressed at IoU > this, [0, 1] */
    uint32_t candidates;    /* K, best pairs that go to suppression, 1..BXS_MAX_CANDIDATES */
    uint32_t max_det;       /* instances after suppression, 1..K */
    bxs_simd simd;          /* BXS_SIMD_BEST, or the level that this model's functions use */
    uint32_t reserved[7];   /* zero */
} bxs_model;

/* BXS_OK; BXS_ERROR_MODEL when a field is outside its range; BXS_ERROR_VALUE when the machine lacks
 * the SIMD level. */
BXS_API bxs_status bxs_model_check(const bxs_model *model);

/* P, parameters of one instance: for n inputs a layer of width w has w rows of n weights; all
 * layers' weights come first, then all biases. 169 and 233 are common. 0 for an invalid model. */
BXS_API size_t bxs_parameter_count(const bxs_model *model);

/* L, locations of an input of height x width: ceil(height / stride) x ceil(width / stride) per
 * level, rows first, levels in order. 0 for an invalid model or side. */
BXS_API size_t bxs_location_count(const bxs_model *model, uint32_t height, uint32_t width);

/* ---------------------------------------------------------------- metadata */

/* A deployed file describes itself in JSON: the value of the key "boxseg" in the metadata of an
 * ONNX file and in the rt_info of an OpenVINO model. */

typedef enum {
    BXS_FORM_DENSE = 0, /* outputs of every location */
    BXS_FORM_TOPK = 1,  /* outputs of the K best pairs */
    BXS_FORM_GRAPH = 2  /* the same with mask logits instead of parameters */
} bxs_form;

typedef enum {
    BXS_SIZE_FIT = 0,       /* bxs_letterbox_fit of height, width */
    BXS_SIZE_SHORT_LONG = 1 /* bxs_letterbox_short_long of short_side, long_side, divisor */
} bxs_size_rule;

/* What the engine computes in. */
typedef enum {
    BXS_PRECISION_FP32 = 0,
    BXS_PRECISION_FP16 = 1,
    BXS_PRECISION_BF16 = 2,
    BXS_PRECISION_INT8 = 3
} bxs_precision;

/* What a program needs of it; the sides of the rule that is not the file's are zero. */
typedef struct {
    bxs_model model;
    bxs_form form;
    bxs_precision precision;
    bxs_size_rule size_rule;
    uint32_t height, width;
    uint32_t short_side, long_side;
    uint32_t divisor;
    uint8_t padding[3]; /* R, G, B */
} bxs_metadata;

/* Reads and checks the JSON, UTF-8 without a final zero.
 *
 *   wrong   NULL, or gets a constant string: on BXS_ERROR_METADATA the key that is missing or out
 *           of its range, such as "head.layer_widths", or "json" where the text is not JSON;
 *           otherwise ""
 * Unknown keys are ignored and of equal keys the last one counts. Numbers are read to the nearest
 * double, whatever the locale; one that is needed may have 19 digits and 27 of them after the
 * point. Nesting may be 64 deep. */
BXS_API bxs_status bxs_metadata_read(const char *text, size_t size, bxs_metadata *metadata,
                                     const char **wrong);

/* Where a frame lies in the file's input, by its size rule. */
BXS_API bxs_status bxs_metadata_letterbox(const bxs_metadata *metadata, uint32_t frame_height,
                                          uint32_t frame_width, bxs_letterbox *map);

/* Name and data set id of a class, from a text that bxs_metadata_read has accepted.
 *
 *   class_index   0..C-1, BXS_ERROR_VALUE beyond
 *   name          room bytes of UTF-8 without a final zero; BXS_ERROR_ROOM if it is longer. Half of
 *                 a surrogate pair becomes U+FFFD
 * Cost: one read of the text. */
BXS_API bxs_status bxs_metadata_class(const char *text, size_t size, uint32_t class_index,
                                      char *name, size_t room, size_t *length, uint64_t *id);

/* ---------------------------------------------------------------- candidates */

/* The dense form of a graph's output, one image of a batch. */
typedef struct {
    const float *class_logits;   /* L x C */
    const float *quality_logits; /* L; may be NULL if score0 needs none */
    const float *boxes;          /* L x 4, input pixels */
    size_t locations;            /* L */
} bxs_dense;

/* The forms topk and graph: the graph has chosen and scored the pairs; one image of a batch. Its
 * parameters or mask logits are rows too (see bxs_mask_inputs). Rows may come in any order; those
 * whose score is not above candidate_score are padding and not looked at further. */
typedef struct {
    const float *scores;    /* rows: score0 */
    const int32_t *labels;  /* rows: class, 0..C-1 */
    const float *boxes;     /* rows x 4, input pixels */
    const float *locations; /* rows x 2: x and y in input pixels, as in bxs_candidate */
    const int32_t *levels;  /* rows: pyramid level, 0..levels-1 */
    size_t rows;            /* at most K */
} bxs_topk;

/* One (location, class) pair. */
typedef struct {
    float box[4];         /* as predicted, input pixels */
    float score0;         /* (0, 1] */
    uint32_t class_index; /* 0..C-1 */
    uint32_t index;       /* location * C + class: breaks ties, lower first */
    uint32_t slot;        /* whose parameters or logits belong to it: the location in the dense
                             form, else the row */
    uint32_t level;       /* pyramid level, 0..levels-1 */
    float x, y;           /* the location in input pixels, column * stride + stride / 2 (floor) */
} bxs_candidate;

/* Finds the best K candidates over all levels and classes.
 *
 * A pair is one if both its logits are finite, score0 > candidate_score, and its box is finite, not
 * empty (x2 > x1, y2 > y1) and not wholly outside the content of the map. score0 is computed in
 * double and rounded to float, and the float is compared and ordered.
 *
 *   map         content and input size; L must be bxs_location_count of its height and width
 *   scratch     bxs_scan_scratch_size(model) bytes
 *   candidates  room for K; ordered by score0, highest first, then by index
 *   n           how many there are
 * Cost: one read of the class logits; for each pair whose class alone would pass, two exponentials;
 * a sort of 2 K keys for every K candidates better than those before. */
BXS_API size_t bxs_scan_scratch_size(const bxs_model *model);
BXS_API bxs_status bxs_scan_dense(const bxs_model *model, const bxs_dense *dense,
                                  const bxs_letterbox *map, void *scratch, size_t scratch_size,
                                  bxs_candidate *candidates, size_t room, size_t *n);

/* bxs_scan_dense, then suppression per class, then the best max_det; the same order.
 *
 *   deadline  NULL or a limit in time; the best boxes up to then are complete
 *   scratch   bxs_select_scratch_size(model) bytes
 *   kept      room for max_det */
BXS_API size_t bxs_select_scratch_size(const bxs_model *model);
BXS_API bxs_status bxs_select_dense(const bxs_model *model, const bxs_dense *dense,
                                    const bxs_letterbox *map, const bxs_deadline *deadline,
                                    void *scratch, size_t scratch_size, bxs_candidate *kept,
                                    size_t room, size_t *n);

/* The same for the forms topk and graph; scores are taken as they are. A row that passes but has a
 * label, level or location that does not exist is BXS_ERROR_VALUE.
 *
 *   scratch   bxs_select_topk_scratch_size(model) bytes */
BXS_API size_t bxs_select_topk_scratch_size(const bxs_model *model);
BXS_API bxs_status bxs_select_topk(const bxs_model *model, const bxs_topk *topk,
                                   const bxs_letterbox *map, const bxs_deadline *deadline,
                                   void *scratch, size_t scratch_size, bxs_candidate *kept,
                                   size_t room, size_t *n);

/* ---------------------------------------------------------------- suppression */

/* Greedy non-maximum suppression within each class.
 *
 * Boxes with a non-finite or empty side (x2 <= x1, y2 <= y1) or a score that is not finite and
 * above score_threshold are rejected at entry: they are not kept and suppress nothing. The others
 * are visited by score, highest first, ties by lower index; a box is dropped if its IoU with a kept
 * box of its class is > iou_threshold. IoU is computed in float, inter / (a + b - inter), and
 * compared with the double threshold; coordinates are not offset by class.
 *
 *   boxes      n x 4
 *   scores     n
 *   classes    n values below class_count, or NULL when all boxes are of one class
 *   max_keep   stop after this many
 *   simd       BXS_SIMD_BEST, or the level to use
 *   scratch    bxs_nms_scratch_size(n, class_count) bytes; class_count 1 when classes is NULL
 *   keep       indices of the kept boxes in the order of visit; room for min(n, max_keep)
 *   n_keep     how many there are; 0 when n is 0, and then the arrays may be NULL
 * Cost: grows as n where thresholds are 0.05 or more. Scores are sorted in blocks, highest first,
 * until max_keep are kept. */
BXS_API size_t bxs_nms_scratch_size(size_t n, uint32_t class_count);
BXS_API bxs_status bxs_nms(const float *boxes, const float *scores, const uint32_t *classes,
                           size_t n, uint32_t class_count, double iou_threshold,
                           float score_threshold, size_t max_keep, bxs_simd simd, void *scratch,
                           size_t scratch_size, uint32_t *keep, size_t *n_keep);

/* ---------------------------------------------------------------- masks */

/* What the mask head reads: one image of a batch. */
typedef struct {
    const float
        *parameters; /* value p of slot s is parameters[p * parameter_stride + s * slot_stride] */
    size_t parameter_stride; /* floats; L in the dense form, 1 in the topk form */
    size_t slot_stride;      /* floats; 1 in the dense form, P in the topk form */
    size_t slots;            /* L or K */
    const float *features;   /* M x rows x columns */
    uint32_t rows, columns;  /* height and width of the input over mask_stride */
    /* The form graph, which has run the head itself: slots x rows x columns. Parameters and
     * features are not read then and may be NULL, as this is in the other forms. */
    const float *logits;
} bxs_mask_inputs;

/* Cells x0 <= x < x1, y0 <= y < y1 of the grid. */
typedef struct {
    uint32_t x0, y0, x1, y1;
} bxs_region;

/* A rectangle of mask logits. Cell (x, y) of the grid has its centre at (x + 0.5) * stride,
 * (y + 0.5) * stride in input pixels; the mask is the bilinear surface through the cells, with the
 * borders of the whole grid repeated, and a pixel is on where the surface is > 0. */
typedef struct {
    const float *logits; /* columns one after the other: [(x - x0) * (y1 - y0) + (y - y0)] */
    bxs_region region;
    uint32_t rows, columns; /* of the whole grid */
    uint32_t stride;
} bxs_surface;

/* Where an instance is cut. */
typedef struct {
    float input_box[4]; /* the predicted box clipped to the content, input pixels */
    float frame_box[4]; /* the same in frame pixels */
    bxs_region pixels;  /* frame pixels whose centre lies in frame_box (low <= centre < high); an
                           axis on which there is none takes the pixel nearest to the box's centre */
    bxs_region cells;   /* the grid cells that the surface needs at those pixels and in the box */
} bxs_cut;

/* Clips a predicted box and finds its pixels and cells. BXS_ERROR_VALUE if nothing is left. */
BXS_API bxs_status bxs_cut_box(const float box[4], const bxs_letterbox *map, uint32_t mask_stride,
                               bxs_cut *cut);

/* Evaluates the dynamic head of one candidate on some cells, or takes what the graph has evaluated.
 *
 * Per cell: the input is (location - cell centre) / coordinate scale of the level, x then y, if the
 * model has relative coordinates, then the features; layers with a ReLU between them. Sums run in
 * the order bias, input 0, input 1, ... A result that is not a number becomes -1e30, and results
 * are limited to +-1e30; so are those of the form graph.
 *
 *   scratch   bxs_mask_head_scratch_size(model) bytes
 *   logits    (x1 - x0) * (y1 - y0) floats, laid out as in bxs_surface; room in floats */
BXS_API size_t bxs_mask_head_scratch_size(const bxs_model *model);
BXS_API bxs_status bxs_mask_head(const bxs_model *model, const bxs_mask_inputs *inputs,
                                 const bxs_candidate *candidate, bxs_region region, void *scratch,
                                 size_t scratch_size, float *logits, size_t room);

/* Mean of sigmoid(logit) over the cells whose centre lies in the box and whose logit is > 0; 0 if
 * there is no such cell. If no cell's centre lies in the box, the surface at the box's centre is
 * asked instead. `box` is in input pixels, and its cells must be in the surface's region. */
BXS_API float bxs_mask_score(const bxs_surface *surface, const float box[4]);

/* Encodes the pixels of a surface inside a rectangle as run-length text of the whole frame.
 *
 *   pixels    frame pixels, not empty; the cells around them must be in the surface's region
 *   simd      BXS_SIMD_BEST, or the level to use
 *   scratch   bxs_surface_scratch_size(frame height, frame width, grid rows) bytes
 *   text      room bytes, at most bxs_surface_text_size(map, grid rows) are used; no final zero
 *   length    bytes written
 *   area      pixels that are on
 * Exact: the text is that of the mask computed pixel by pixel in float, across before down, with
 * weights from double positions. The cost grows with the outline, not with the area. */
BXS_API size_t bxs_surface_scratch_size(uint32_t frame_height, uint32_t frame_width, uint32_t rows);
BXS_API size_t bxs_surface_text_size(const bxs_letterbox *map, uint32_t rows);
BXS_API bxs_status bxs_surface_rle(const bxs_surface *surface, const bxs_letterbox *map,
                                   bxs_region pixels, bxs_simd simd, void *scratch,
                                   size_t scratch_size, char *text, size_t room, size_t *length,
                                   uint32_t *area);

/* The same pixels as bytes 0 and 1, (y1 - y0) rows of (x1 - x0); room in bytes. */
BXS_API bxs_status bxs_surface_bytes(const bxs_surface *surface, const bxs_letterbox *map,
                                     bxs_region pixels, bxs_simd simd, void *scratch,
                                     size_t scratch_size, uint8_t *out, size_t room);

/* The same pixels as bits, (y1 - y0) rows of ceil((x1 - x0) / 8) bytes: column x of a row is bit
 * x % 8 of byte x / 8, lowest first; bits behind the last column are 0. */
BXS_API bxs_status bxs_surface_bits(const bxs_surface *surface, const bxs_letterbox *map,
                                    bxs_region pixels, bxs_simd simd, void *scratch,
                                    size_t scratch_size, uint8_t *out, size_t room);

/* Finds the outlines of a surface inside a box, as rings of points in frame pixels.
 *
 * The contour runs straight between the places where the surface is 0 on the lines through the
 * cells' centres and along the box, and along the box where the surface is > 0 there. Where the two
 * diagonals of four cells differ in sign, the sign at the saddle decides what is joined. Outer
 * rings have the mask at their right on the screen (clockwise, positive area by the shoelace
 * formula with y downwards), holes at their right too, so they run the other way, and the areas of
 * all rings sum to that of the mask. Rings are closed, without the first point repeated. They come
 * in the order of their topmost left edges that are met row by row, holes among them.
 *
 *   box        x1, y1, x2, y2 in the frame, not empty; its cells must be in the surface's region
 *   scratch    bxs_surface_polygons_scratch_size(&region) bytes
 *   points     x, y; bxs_surface_point_count(&region) points are always enough
 *   ends       per ring, one behind its last point; a quarter of that is always enough
 *   n_points, n_rings   how many there are; also with BXS_ERROR_ROOM, and then so many are needed
 */
BXS_API size_t bxs_surface_point_count(const bxs_region *region);
BXS_API size_t bxs_surface_polygons_scratch_size(const bxs_region *region);
BXS_API bxs_status bxs_surface_polygons(const bxs_surface *surface, const bxs_letterbox *map,
                                        const float box[4], void *scratch, size_t scratch_size,
                                        float *points, size_t point_room, uint32_t *ends,
                                        size_t ring_room, size_t *n_points, size_t *n_rings);

/* One instance of the answer. */
typedef struct {
    float box[4];         /* clipped to the frame, frame pixels */
    float score;          /* final score */
    float score0;         /* detection score */
    float mask_score;     /* [0, 1] */
    uint32_t class_index; /* 0..C-1 */
    uint32_t index;       /* of the candidate */
    uint32_t area;        /* pixels of the mask */
    uint64_t text_offset; /* its run-length text in the text buffer */
    uint64_t text_length;
} bxs_instance;

/* Mask head, scores and run-length masks of the selected candidates, in one call.
 *
 *   candidates, n   from bxs_select_dense; n of 0 gives none
 *   confidence      instances need a final score > this
 *   deadline        NULL or a limit in time, asked before each candidate; the instances of the
 *                   candidates up to then are complete
 *   scratch         bxs_masks_scratch_size(model, map) bytes
 *   instances       room for n; ordered by final score, highest first, then by candidate index
 *   n_instances     how many there are
 *   text            the masks' texts; n * bxs_surface_text_size(map, rows) bytes are always enough,
 *                   BXS_ERROR_ROOM if a smaller one was not
 *   text_size       bytes used */
BXS_API size_t bxs_masks_scratch_size(const bxs_model *model, const bxs_letterbox *map);
BXS_API bxs_status bxs_masks(const bxs_model *model, const bxs_mask_inputs *inputs,
                             const bxs_letterbox *map, const bxs_candidate *candidates, size_t n,
                             double confidence, const bxs_deadline *deadline, void *scratch,
                             size_t scratch_size, bxs_instance *instances, size_t room,
                             size_t *n_instances, char *text, size_t text_room, size_t *text_size);

/* ---------------------------------------------------------------- run-length text */

/* COCO's compressed counts: runs down the columns of a height x width mask, off first, byte for
 * byte what pycocotools writes. Heights and widths are 1..BXS_MAX_SIDE. */

/* Bytes that are enough for any mask of this size. */
BXS_API size_t bxs_rle_text_size(uint32_t height, uint32_t width);

/* Encodes bytes (0 off, others on), rows without gaps; room of at least bxs_rle_text_size cannot
 * fail. */
BXS_API bxs_status bxs_rle_encode(const uint8_t *mask, uint32_t height, uint32_t width, char *text,
                                  size_t room, size_t *length, uint32_t *area);

/* Decodes the pixels of a window as `value`; the others of the window are left as they are, so that
 * masks can be painted over one another. Row y of the window starts at out + (y - y0) * row_stride.
 * BXS_ERROR_TEXT if the text is not that of a mask of this size. */
BXS_API bxs_status bxs_rle_paint(const char *text, size_t length, uint32_t height, uint32_t width,
                                 bxs_region window, uint8_t value, uint8_t *out, size_t row_stride,
                                 size_t room);

/* Counts the pixels that are on, and finds the smallest box around them (all 0 if there is none).
 */
BXS_API bxs_status bxs_rle_measure(const char *text, size_t length, uint32_t height, uint32_t width,
                                   uint32_t *area, bxs_region *box);

/* Draws a window as bytes 0 and 1, (y1 - y0) rows of (x1 - x0). */
BXS_API bxs_status bxs_rle_bytes(const char *text, size_t length, uint32_t height, uint32_t width,
                                 bxs_region window, uint8_t *out, size_t room);

/* Draws a window as bits, laid out as by bxs_surface_bits. */
BXS_API bxs_status bxs_rle_bits(const char *text, size_t length, uint32_t height, uint32_t width,
                                bxs_region window, uint8_t *out, size_t room);

/* The run-length text of one mask. */
typedef struct {
    const char *text;
    size_t length;
} bxs_text;

/* Draws n masks into one picture: 0 is background, i + 1 is mask i. Masks are painted from the last
 * to the first, so where they overlap the first is on top; bxs_masks gives the highest score first.
 *
 *   n           at most 255 or 65535
 *   scratch     bxs_label_image_scratch_size(height, width) bytes, of which as many as the largest
 *               mask's box has pixels are touched
 *   row_stride  pixels from one row to the next, at least width
 *   room        in pixels */
BXS_API size_t bxs_label_image_scratch_size(uint32_t height, uint32_t width);
BXS_API bxs_status bxs_label_image_u8(const bxs_text *masks, size_t n, uint32_t height,
                                      uint32_t width, void *scratch, size_t scratch_size,
                                      uint8_t *out, size_t row_stride, size_t room);
BXS_API bxs_status bxs_label_image_u16(const bxs_text *masks, size_t n, uint32_t height,
                                       uint32_t width, void *scratch, size_t scratch_size,
                                       uint16_t *out, size_t row_stride, size_t room);

/* Finds the outlines of a mask along its pixels' edges, in the form of bxs_surface_polygons: points
 * are the corners, pixels that touch at a corner only are separate, and the areas of all rings sum
 * to the number of pixels.
 *
 *   box        a part of the frame; from bxs_rle_measure it holds the whole mask
 *   scratch    bxs_rle_polygons_scratch_size(&box) bytes
 *   points     bxs_rle_point_count(&box) points are always enough, and a quarter as many ends */
BXS_API size_t bxs_rle_point_count(const bxs_region *box);
BXS_API size_t bxs_rle_polygons_scratch_size(const bxs_region *box);
BXS_API bxs_status bxs_rle_polygons(const char *text, size_t length, uint32_t height,
                                    uint32_t width, bxs_region box, void *scratch,
                                    size_t scratch_size, float *points, size_t point_room,
                                    uint32_t *ends, size_t ring_room, size_t *n_points,
                                    size_t *n_rings);

#ifdef __cplusplus
}
#endif

#endif
