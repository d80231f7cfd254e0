/* Run-length text: any text for any size; what is accepted survives decoding and encoding. */
#include "fuzz_input.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    if (size < 2) {
        return 0;
    }
    const uint32_t height = bytes[0] % 70u, width = bytes[1] % 70u;
    const char *text = (const char *)bytes + 2;
    const size_t length = size - 2;
    uint32_t area = 0;
    bxs_region box;
    bxs_status status = bxs_rle_measure(text, length, height, width, &area, &box);
    const bxs_region window = {0, 0, width, height};
    const size_t pixels = (size_t)height * width;
    uint8_t *mask = (uint8_t *)make_room(pixels),
            *bits = (uint8_t *)make_room((width + 7) / 8 * height);
    memset(mask, 0, pixels);
    bxs_status drawn = bxs_rle_bytes(text, length, height, width, window, mask, pixels);
    fuzz_require((status == BXS_OK) == (drawn == BXS_OK), "measure and bytes agree");
    bxs_rle_bits(text, length, height, width, window, bits, (width + 7) / 8 * height);
    if (status == BXS_OK) {
        size_t on = 0, written, room = bxs_rle_text_size(height, width);
        for (size_t i = 0; i < pixels; i++) {
            on += mask[i];
        }
        fuzz_require(on == area, "area");
        char *again = (char *)make_room(room);
        uint32_t same;
        fuzz_require(bxs_rle_encode(mask, height, width, again, room, &written, &same) == BXS_OK,
                     "a mask can be encoded");
        fuzz_require(same == area, "area of the encoded mask");
        uint8_t *painted = (uint8_t *)make_room(pixels);
        memset(painted, 0, pixels);
        fuzz_require(bxs_rle_paint(again, written, height, width, window, 1, painted, width,
                                   pixels) == BXS_OK,
                     "what was encoded can be painted");
        fuzz_require(memcmp(mask, painted, pixels) == 0, "pixels");
        free(painted);
        free(again);
        size_t scratch_size = bxs_rle_polygons_scratch_size(&box);
        size_t points = bxs_rle_point_count(&box), n_points, n_rings;
        void *scratch = make_room(scratch_size);
        float *corners = (float *)make_room(points * 2 * sizeof(float));
        uint32_t *ends = (uint32_t *)make_room(points / 4 * sizeof(uint32_t));
        bxs_rle_polygons(text, length, height, width, box, scratch, scratch_size, corners, points,
                         ends, points / 4, &n_points, &n_rings);
        free(scratch);
        free(corners);
        free(ends);
    }
    free(mask);
    free(bits);
    return 0;
}
