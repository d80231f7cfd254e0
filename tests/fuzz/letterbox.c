/* Letterbox and resize: any frame description over a buffer of any size; the levels agree. */
#include "fuzz_input.h"

enum { MOST_PIXELS = 40000 };

static bxs_status box(const bxs_frame *frame, const bxs_letterbox *map, bxs_simd simd,
                      uint8_t *bytes, float *floats, size_t room) {
    static const uint8_t padding[3] = {124, 116, 104};
    static const float mean[3] = {123.0f, 116.0f, 103.0f}, std[3] = {58.0f, 57.0f, 1e-3f};
    size_t size = bxs_letterbox_scratch_size(map);
    void *scratch = make_room(size);
    bxs_status status = bxs_letterbox_rgb8(frame, map, padding, simd, scratch, size, bytes, room);
    bxs_status other =
        bxs_letterbox_f32(frame, map, padding, mean, std, simd, scratch, size, floats, room);
    free(scratch);
    fuzz_require(status == other, "bytes and floats agree on the status");
    return status;
}

static uint32_t take_side(fuzz_input *from) {
    uint8_t kind = take_byte(from);
    return kind == 255 ? take_word(from) : kind == 254 ? take_range(from, 0, 40000) : kind;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    fuzz_input from = {bytes, size, 0, 0};
    bxs_frame frame;
    bxs_letterbox map;
    memset(&frame, 0, sizeof frame);
    memset(&map, 0, sizeof map);
    frame.height = take_side(&from);
    frame.width = take_side(&from);
    frame.format = (bxs_pixel_format)(take_byte(&from) % 6);
    frame.yuv = (bxs_yuv)(take_byte(&from) % 5);
    const size_t exact =
        (size_t)(frame.format == BXS_MONO8 || frame.format == BXS_NV12 ? frame.width
                 : frame.format == BXS_YUYV                            ? 2 * frame.width
                                                                       : 3 * frame.width);
    frame.row_stride = take_byte(&from) % 8 == 7 ? take_word(&from) : exact + take_byte(&from) % 9;
    frame.size = take_byte(&from) % 8 == 7 ? take_range(&from, 0, 100000)
                                           : frame.row_stride * ((size_t)frame.height * 3 / 2 + 1);
    if (frame.size > 400000) {
        frame.size = 400000;
    }
    uint8_t *data = (uint8_t *)make_room(frame.size), *chroma = NULL;
    for (size_t i = 0; i < frame.size; i++) {
        data[i] = take_byte(&from);
    }
    frame.data = data;
    if (take_byte(&from) % 4 == 3) {
        frame.chroma_size = take_range(&from, 0, 20000);
        frame.chroma_stride = take_range(&from, 0, 300);
        frame.chroma = chroma = (uint8_t *)make_room(frame.chroma_size);
        memset(chroma, take_byte(&from), frame.chroma_size);
    }
    bxs_status status;
    switch (take_byte(&from) % 4) {
    case 0:
        status =
            bxs_letterbox_fit(frame.height, frame.width, take_side(&from), take_side(&from), &map);
        break;
    case 1:
        status = bxs_letterbox_short_long(frame.height, frame.width, take_side(&from),
                                          take_side(&from), take_side(&from), &map);
        break;
    case 2:
        map.content_height = map.height = frame.height / 2;
        map.content_width = map.width = frame.width / 2;
        status = BXS_OK;
        break;
    default:
        map.content_height = take_side(&from);
        map.content_width = take_side(&from);
        map.height = take_side(&from);
        map.width = take_side(&from);
        status = BXS_OK;
    }
    map.frame_height = frame.height;
    map.frame_width = frame.width;
    if (status == BXS_OK && (uint64_t)map.height * map.width <= MOST_PIXELS) {
        size_t n = (size_t)map.height * map.width * 3;
        uint8_t *plain = (uint8_t *)make_room(n), *best = (uint8_t *)make_room(n);
        float *floats = (float *)make_room(n * sizeof(float));
        float *same = (float *)make_room(n * sizeof(float));
        status = box(&frame, &map, BXS_SIMD_PORTABLE, plain, floats, n);
        fuzz_require(status == box(&frame, &map, BXS_SIMD_BEST, best, same, n), "status");
        if (status == BXS_OK) {
            fuzz_require(memcmp(plain, best, n) == 0, "levels agree on bytes");
            fuzz_require(memcmp(floats, same, n * sizeof(float)) == 0, "levels agree on floats");
        }
        uint32_t channels = take_range(&from, 0, 5);
        size_t scratch_size = bxs_resize_scratch_size(channels, map.content_width);
        void *scratch = make_room(scratch_size);
        bxs_resize_u8(data, frame.size, frame.row_stride, frame.height, frame.width, channels,
                      map.content_height, map.content_width, scratch, scratch_size, plain, n);
        free(scratch);
        free(plain);
        free(best);
        free(floats);
        free(same);
    }
    free(data);
    free(chroma);
    return 0;
}
