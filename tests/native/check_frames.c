/* Frames at the edge of what the letterbox takes: the smallest buffers work, smaller ones and other
 * nonsense give their codes. Buffers are exactly as large as they must be, for sanitizers. */
#include <boxseg.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const uint8_t padding[3] = {1, 2, 3};
static const float mean[3] = {1, 2, 3}, std[3] = {4, 5, 6};
static int failures = 0;

static void expect(bxs_status found, bxs_status wanted, const char *what) {
    if (found != wanted) {
        printf("%s: %s, wanted %s\n", what, bxs_status_name(found), bxs_status_name(wanted));
        failures++;
    }
}

static uint8_t *noise(size_t size) {
    uint8_t *bytes = (uint8_t *)malloc(size > 0 ? size : 1);
    uint32_t state = 1;
    for (size_t i = 0; i < size; i++) {
        state = state * 1664525u + 1013904223u;
        bytes[i] = (uint8_t)(state >> 24);
    }
    return bytes;
}

/* Both letterboxes in buffers of exactly the needed size; the bytes go to `out` unless NULL. */
static bxs_status box(const bxs_frame *frame, const bxs_letterbox *map, bxs_simd simd,
                      uint8_t *out) {
    size_t size = bxs_letterbox_scratch_size(map);
    size_t n = (size_t)map->height * map->width * 3;
    void *scratch = malloc(size);
    uint8_t *bytes = (uint8_t *)malloc(n);
    float *floats = (float *)malloc(n * sizeof(float));
    bxs_status status = bxs_letterbox_rgb8(frame, map, padding, simd, scratch, size, bytes, n);
    bxs_status other =
        bxs_letterbox_f32(frame, map, padding, mean, std, simd, scratch, size, floats, n);
    if (status != other) {
        printf("bytes %s, floats %s\n", bxs_status_name(status), bxs_status_name(other));
        failures++;
    }
    if (status == BXS_OK && out != NULL) {
        memcpy(out, bytes, n);
    }
    free(scratch);
    free(bytes);
    free(floats);
    return status;
}

static bxs_frame frame_of(bxs_pixel_format format, uint32_t height, uint32_t width, size_t *size) {
    bxs_frame frame;
    memset(&frame, 0, sizeof frame);
    size_t pairs = (width + 1) / 2;
    frame.format = format;
    frame.height = height;
    frame.width = width;
    frame.row_stride = format == BXS_MONO8  ? width
                       : format == BXS_NV12 ? pairs * 2
                       : format == BXS_YUYV ? pairs * 4
                                            : (size_t)width * 3;
    *size = frame.row_stride * height;
    if (format == BXS_NV12) {
        *size += pairs * 2 * ((height + 1) / 2);
    }
    frame.size = *size;
    frame.data = noise(*size);
    return frame;
}

static void check_sizes(bxs_pixel_format format, uint32_t height, uint32_t width) {
    for (bxs_simd simd = BXS_SIMD_PORTABLE; simd <= bxs_simd_best(); simd = (bxs_simd)(simd + 1)) {
        bxs_letterbox map;
        size_t size;
        bxs_frame frame = frame_of(format, height, width, &size);
        bxs_letterbox_fit(height, width, 40, 50, &map);
        expect(box(&frame, &map, simd, NULL), BXS_OK, "fit");
        bxs_letterbox half = {height, width, (height + 1) / 2, (width + 1) / 2, 64, 64};
        expect(box(&frame, &half, simd, NULL), BXS_OK, "half");
        bxs_letterbox same = {height, width, height, width, height, width};
        expect(box(&frame, &same, simd, NULL), BXS_OK, "same");
        frame.size--;
        expect(box(&frame, &map, simd, NULL), BXS_ERROR_STRIDE, "one byte less");
        frame.size = 0;
        expect(box(&frame, &map, simd, NULL), BXS_ERROR_STRIDE, "no bytes");
        free((void *)frame.data);
    }
}

static void check_chroma_planes(void) {
    size_t size;
    bxs_frame joined = frame_of(BXS_NV12, 9, 13, &size);
    bxs_letterbox map = {9, 13, 9, 13, 9, 13};
    uint8_t expected[9 * 13 * 3], found[9 * 13 * 3];
    expect(box(&joined, &map, BXS_SIMD_BEST, expected), BXS_OK, "joined");
    /* planes of their own, with strides of their own */
    bxs_frame apart = joined;
    uint8_t *luma = noise(9 * 20), *chroma = noise(4 * 31 + 14);
    for (size_t y = 0; y < 9; y++) {
        memcpy(luma + y * 20, joined.data + y * 14, 13);
    }
    for (size_t y = 0; y < 5; y++) {
        memcpy(chroma + y * 31, joined.data + (9 + y) * 14, 14);
    }
    apart.data = luma;
    apart.size = 8 * 20 + 13;
    apart.row_stride = 20;
    apart.chroma = chroma;
    apart.chroma_size = 4 * 31 + 14;
    apart.chroma_stride = 31;
    expect(box(&apart, &map, BXS_SIMD_BEST, found), BXS_OK, "apart");
    if (memcmp(expected, found, sizeof found) != 0) {
        printf("the planes apart give another picture\n");
        failures++;
    }
    apart.chroma_size--;
    expect(box(&apart, &map, BXS_SIMD_BEST, NULL), BXS_ERROR_STRIDE, "less chroma");
    apart.chroma_size++;
    apart.chroma_stride = 13;
    expect(box(&apart, &map, BXS_SIMD_BEST, NULL), BXS_ERROR_STRIDE, "chroma stride");
    free((void *)joined.data);
    free(luma);
    free(chroma);
}

static void check_errors(void) {
    size_t size;
    bxs_frame good = frame_of(BXS_RGB8, 8, 10, &size), frame = good;
    bxs_letterbox map = {8, 10, 8, 10, 16, 16}, wrong = map;
    uint8_t out[16 * 16 * 3];
    float floats[16 * 16 * 3];
    size_t need = bxs_letterbox_scratch_size(&map);
    void *scratch = malloc(need);
#define RUN(frame, map, room)                                                                      \
    bxs_letterbox_rgb8(frame, map, padding, BXS_SIMD_BEST, scratch, need, out, room)
    expect(RUN(&frame, &map, sizeof out), BXS_OK, "good");
    expect(RUN(NULL, &map, sizeof out), BXS_ERROR_NULL, "no frame");
    expect(RUN(&frame, NULL, sizeof out), BXS_ERROR_NULL, "no map");
    expect(RUN(&frame, &map, sizeof out - 1), BXS_ERROR_ROOM, "room");
    expect(bxs_letterbox_rgb8(&frame, &map, padding, BXS_SIMD_BEST, scratch, need - 1, out,
                              sizeof out),
           BXS_ERROR_SCRATCH, "scratch");
    expect(bxs_letterbox_rgb8(&frame, &map, padding, (bxs_simd)9, scratch, need, out, sizeof out),
           BXS_ERROR_VALUE, "level");
    frame.data = NULL;
    expect(RUN(&frame, &map, sizeof out), BXS_ERROR_NULL, "no data");
    frame = good;
    frame.row_stride = 29;
    expect(RUN(&frame, &map, sizeof out), BXS_ERROR_STRIDE, "stride");
    frame.row_stride = SIZE_MAX;
    expect(RUN(&frame, &map, sizeof out), BXS_ERROR_STRIDE, "huge stride");
    frame = good;
    frame.format = (bxs_pixel_format)5;
    expect(RUN(&frame, &map, sizeof out), BXS_ERROR_FORMAT, "format");
    frame.format = BXS_YUYV;
    frame.yuv = (bxs_yuv)4;
    expect(RUN(&frame, &map, sizeof out), BXS_ERROR_VALUE, "rule");
    frame = good;
    frame.height = 7;
    expect(RUN(&frame, &map, sizeof out), BXS_ERROR_SIZE, "another height");
    frame.height = wrong.frame_height = UINT32_MAX;
    expect(RUN(&frame, &wrong, sizeof out), BXS_ERROR_SIZE, "huge height");
    frame.height = wrong.frame_height = 0;
    expect(RUN(&frame, &wrong, sizeof out), BXS_ERROR_SIZE, "no height");
    wrong = map;
    wrong.content_width = 17;
    expect(RUN(&good, &wrong, sizeof out), BXS_ERROR_SIZE, "content beyond the input");
    wrong = map;
    wrong.height = wrong.width = BXS_MAX_SIDE;
    expect(RUN(&good, &wrong, sizeof out), BXS_ERROR_ROOM, "huge input");
    frame = good;
    frame.format = BXS_NV12;
    frame.row_stride = SIZE_MAX / 8 + 1;
    expect(RUN(&frame, &map, sizeof out), BXS_ERROR_STRIDE, "huge stride of NV12");
    const float bad[3] = {1, NAN, 1}, zero[3] = {1, 0, 1};
    expect(bxs_letterbox_f32(&good, &map, padding, bad, std, BXS_SIMD_BEST, scratch, need, floats,
                             16 * 16 * 3),
           BXS_ERROR_VALUE, "mean");
    expect(bxs_letterbox_f32(&good, &map, padding, mean, zero, BXS_SIMD_BEST, scratch, need, floats,
                             16 * 16 * 3),
           BXS_ERROR_VALUE, "std");
    expect(bxs_letterbox_f32(&good, &map, padding, mean, std, BXS_SIMD_BEST, scratch, need, floats,
                             16 * 16 * 3 - 1),
           BXS_ERROR_ROOM, "room of floats");
    free(scratch);
    free((void *)good.data);
}

int main(void) {
    static const uint32_t sizes[8][2] = {{1, 1}, {1, 2},   {2, 1},   {3, 5},
                                         {9, 4}, {16, 32}, {33, 67}, {80, 100}};
    for (int format = BXS_RGB8; format <= BXS_YUYV; format++) {
        for (int i = 0; i < 8; i++) {
            check_sizes((bxs_pixel_format)format, sizes[i][0], sizes[i][1]);
        }
    }
    check_chroma_planes();
    check_errors();
    return failures > 0;
}
