/* boxseg.h: camera frame to instances, in plain C.
 *
 * Ownership: the caller owns every buffer; nothing here allocates or frees. Pointers are used only
 *            during the call that receives them.
 * Threads:   no global state and no threads inside; calls may run in parallel on disjoint outputs
 *            and scratch. Const inputs may be shared.
 * Errors:    every function that can fail returns a bxs_status; on error, outputs are unspecified.
 * Scratch:   a function that needs working memory has a ..._scratch_size() beside it, which gives
 *            the bytes for its arguments (0 when they are not valid). Scratch may have any
 *            alignment, and holds nothing between calls. What is enough for large sizes is enough
 *            for smaller ones, so one buffer made at start serves a camera whose size changes.
 * Numbers:   results are the same bits on every machine with IEEE-754 floats: no fast-math, no
 *            contraction, own exponential. Compile with -ffp-contract=off.
 * Layout:    images are rows of interleaved bytes, top row first, with a stride in bytes. Boxes are
 *            x1, y1, x2, y2 in pixels, pixel (x, y) covers [x, x + 1) by [y, y + 1) and its centre
 *            is (x + 0.5, y + 0.5).
 *
 * Sections, in the order of use: errors, letterbox.
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
    X(BXS_ERROR_TEXT, "the run-length text is malformed")

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

/* ---------------------------------------------------------------- letterbox */

/* Longest side of a frame or of an input, in pixels. */
#define BXS_MAX_SIDE 32768u

typedef enum {
    BXS_RGB8 = 0, /* 3 bytes per pixel */
    BXS_BGR8 = 1, /* 3 bytes per pixel */
    BXS_MONO8 = 2 /* 1 byte per pixel, becomes three equal channels */
} bxs_pixel_format;

/* A camera frame that the caller owns. */
typedef struct {
    const uint8_t *data; /* first byte of the top row */
    size_t size;         /* bytes from data on; the last row needs no padding behind it */
    size_t row_stride;   /* bytes from one row to the next, at least a row's own bytes */
    uint32_t height;     /* pixels, 1..BXS_MAX_SIDE */
    uint32_t width;
    bxs_pixel_format format;
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
 *   padding   R, G, B of the pixels outside the content
 *   scratch   bxs_letterbox_scratch_size(map) bytes
 *   out       height x width x 3 bytes, rows without gaps; room is its capacity in bytes */
BXS_API size_t bxs_letterbox_scratch_size(const bxs_letterbox *map);
BXS_API bxs_status bxs_letterbox_rgb8(const bxs_frame *frame, const bxs_letterbox *map,
                                      const uint8_t padding[3], void *scratch, size_t scratch_size,
                                      uint8_t *out, size_t room);

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

#ifdef __cplusplus
}
#endif

#endif
