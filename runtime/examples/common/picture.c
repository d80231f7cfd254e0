#include "picture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef HAVE_PNG
#include <png.h>
#endif
#ifdef HAVE_JPEG
#include <jpeglib.h>
#include <setjmp.h>
#endif

#define UNWRITABLE "cannot be written; give a file in a folder that is there"

static const char *make_room(picture *out, uint32_t height, uint32_t width) {
    if (height < 1 || width < 1 || height > BXS_MAX_SIDE || width > BXS_MAX_SIDE) {
        return "the image is empty or too large";
    }
    out->height = height;
    out->width = width;
    out->rgb = (uint8_t *)malloc((size_t)height * width * 3);
    return out->rgb == NULL ? "out of memory" : NULL;
}

/* A number of a PPM header; comments run to the end of their line. */
static int read_ppm_number(FILE *file, uint32_t *number) {
    int c = fgetc(file);
    while (c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == '#') {
        if (c == '#') {
            while (c != '\n' && c != EOF) {
                c = fgetc(file);
            }
        } else {
            c = fgetc(file);
        }
    }
    uint32_t value = 0;
    int digits = 0;
    for (; c >= '0' && c <= '9' && digits < 6; digits++) {
        value = value * 10 + (uint32_t)(c - '0');
        c = fgetc(file);
    }
    *number = value;
    return digits > 0 && (c == ' ' || c == '\t' || c == '\r' || c == '\n');
}

/* Binary PPM (P6) of 8 bits; its first two bytes are read already. */
static const char *read_ppm(FILE *file, picture *out) {
    uint32_t width, height, most;
    if (!read_ppm_number(file, &width) || !read_ppm_number(file, &height) ||
        !read_ppm_number(file, &most) || most != 255) {
        return "not a PPM file of 8 bits";
    }
    const char *reason = make_room(out, height, width);
    if (reason != NULL) {
        return reason;
    }
    size_t size = (size_t)height * width * 3;
    return fread(out->rgb, 1, size, file) == size ? NULL : "the file is cut short";
}

static const char *read_png(const char *path, picture *out) {
#ifdef HAVE_PNG
    png_image image;
    memset(&image, 0, sizeof image);
    image.version = PNG_IMAGE_VERSION;
    if (!png_image_begin_read_from_file(&image, path)) {
        return "not a readable PNG file";
    }
    image.format = PNG_FORMAT_RGB;
    const char *reason = make_room(out, image.height, image.width);
    if (reason == NULL && !png_image_finish_read(&image, NULL, out->rgb, 0, NULL)) {
        reason = "the PNG file is damaged";
    }
    png_image_free(&image);
    return reason;
#else
    (void)path;
    (void)out;
    return "built without libpng (Debian package libpng-dev); use a PPM file";
#endif
}

#ifdef HAVE_JPEG
typedef struct {
    struct jpeg_error_mgr manager;
    jmp_buf back;
} jpeg_failure;

static void fail_jpeg(j_common_ptr state) {
    longjmp(((jpeg_failure *)state->err)->back, 1);
}

static const char *read_jpeg(FILE *file, picture *out) {
    struct jpeg_decompress_struct state;
    jpeg_failure failure;
    const char *volatile reason = NULL;
    state.err = jpeg_std_error(&failure.manager);
    failure.manager.error_exit = fail_jpeg;
    if (setjmp(failure.back) != 0) {
        jpeg_destroy_decompress(&state);
        return "the JPEG file is damaged";
    }
    jpeg_create_decompress(&state);
    jpeg_stdio_src(&state, file);
    jpeg_read_header(&state, TRUE);
    state.out_color_space = JCS_RGB;
    jpeg_start_decompress(&state);
    reason = make_room(out, state.output_height, state.output_width);
    while (reason == NULL && state.output_scanline < state.output_height) {
        JSAMPROW row = out->rgb + (size_t)state.output_scanline * out->width * 3;
        jpeg_read_scanlines(&state, &row, 1);
    }
    jpeg_destroy_decompress(&state);
    return reason;
}
#else
static const char *read_jpeg(FILE *file, picture *out) {
    (void)file;
    (void)out;
    return "built without libjpeg (Debian package libjpeg-dev); use a PPM file";
}
#endif

const char *picture_read(const char *path, picture *out) {
    memset(out, 0, sizeof *out);
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        return "cannot be opened; give a PPM, PNG or JPEG file";
    }
    const char *reason = "neither PPM (P6), PNG nor JPEG; give one of these";
    int first = fgetc(file);
    int second = fgetc(file);
    if (first == 'P' && second == '6') {
        reason = read_ppm(file, out);
    } else if (first == 0x89 && second == 'P') {
        reason = read_png(path, out);
    } else if (first == 0xFF && second == 0xD8) {
        rewind(file);
        reason = read_jpeg(file, out);
    }
    fclose(file);
    if (reason != NULL) {
        picture_close(out);
    }
    return reason;
}

void picture_close(picture *of) {
    free(of->rgb);
    memset(of, 0, sizeof *of);
}

bxs_frame picture_frame(const picture *of) {
    bxs_frame frame;
    memset(&frame, 0, sizeof frame);
    frame.data = of->rgb;
    frame.row_stride = (size_t)of->width * 3;
    frame.size = frame.row_stride * of->height;
    frame.height = of->height;
    frame.width = of->width;
    frame.format = BXS_RGB8;
    return frame;
}

/* ---------------------------------------------------------------- PNG, uncompressed */

/* A file with the running checksum of the chunk that is being written. */
typedef struct {
    FILE *file;
    uint32_t crc;
} png_file;

static void put(png_file *to, const void *bytes, size_t n) {
    const uint8_t *at = (const uint8_t *)bytes;
    for (size_t i = 0; i < n; i++) {
        to->crc ^= at[i];
        for (int bit = 0; bit < 8; bit++) {
            to->crc = (to->crc >> 1) ^ (to->crc & 1 ? 0xEDB88320u : 0u);
        }
    }
    fwrite(bytes, 1, n, to->file);
}

static void put_number(png_file *to, uint32_t number) {
    const uint8_t bytes[4] = {(uint8_t)(number >> 24), (uint8_t)(number >> 16),
                              (uint8_t)(number >> 8), (uint8_t)number};
    put(to, bytes, 4);
}

static void begin_chunk(png_file *to, uint32_t size, const char name[4]) {
    put_number(to, size);
    to->crc = 0xFFFFFFFFu;
    put(to, name, 4);
}

static void end_chunk(png_file *to) {
    put_number(to, ~to->crc);
}

/* One chunk of image data per row: a stored block, or two where the row passes 65535 bytes. */
static void put_row(png_file *to, const uint8_t *row, uint32_t size, int is_first, int is_last,
                    uint32_t adler[2]) {
    const uint8_t filter = 0;
    uint32_t body = size + 1; /* the filter's byte and the row */
    uint32_t blocks = (body + 65534) / 65535;
    begin_chunk(to, body + 5 * blocks + (is_first ? 2 : 0) + (is_last ? 4 : 0), "IDAT");
    if (is_first) {
        put(to, "\x78\x01", 2);
    }
    for (uint32_t done = 0; done < body;) {
        uint32_t n = body - done < 65535 ? body - done : 65535;
        const uint8_t head[5] = {(uint8_t)(is_last && done + n == body), (uint8_t)n,
                                 (uint8_t)(n >> 8), (uint8_t)~n, (uint8_t)(~n >> 8)};
        put(to, head, 5);
        if (done == 0) {
            put(to, &filter, 1);
            put(to, row, n - 1);
        } else {
            put(to, row + done - 1, n);
        }
        done += n;
    }
    adler[1] = (adler[1] + adler[0]) % 65521; /* the filter's byte is 0 */
    for (uint32_t i = 0; i < size; i++) {
        adler[0] = (adler[0] + row[i]) % 65521;
        adler[1] = (adler[1] + adler[0]) % 65521;
    }
    if (is_last) {
        put_number(to, adler[1] << 16 | adler[0]);
    }
    end_chunk(to);
}

const char *picture_write_png(const char *path, const picture *from) {
    png_file to = {fopen(path, "wb"), 0};
    if (to.file == NULL) {
        return UNWRITABLE;
    }
    put(&to, "\x89PNG\r\n\x1a\n", 8);
    begin_chunk(&to, 13, "IHDR");
    put_number(&to, from->width);
    put_number(&to, from->height);
    put(&to, "\x08\x02\x00\x00\x00", 5); /* 8 bits, RGB */
    end_chunk(&to);
    uint32_t adler[2] = {1, 0};
    uint32_t size = from->width * 3;
    for (uint32_t y = 0; y < from->height; y++) {
        put_row(&to, from->rgb + (size_t)y * size, size, y == 0, y + 1 == from->height, adler);
    }
    begin_chunk(&to, 0, "IEND");
    end_chunk(&to);
    int is_bad = ferror(to.file);
    return fclose(to.file) != 0 || is_bad ? UNWRITABLE : NULL;
}

/* ---------------------------------------------------------------- drawing */

static void blend(uint8_t pixel[3], const uint8_t colour[3], unsigned percent) {
    for (int c = 0; c < 3; c++) {
        pixel[c] = (uint8_t)((pixel[c] * (100 - percent) + colour[c] * percent + 50) / 100);
    }
}

static uint32_t pixel_in(float position, uint32_t side) {
    uint32_t pixel = position > 0.0f ? (uint32_t)position : 0;
    return pixel < side ? pixel : side - 1;
}

static void outline(picture *on, const float box[4], const uint8_t colour[3]) {
    uint32_t x0 = pixel_in(box[0], on->width), x1 = pixel_in(box[2], on->width);
    uint32_t y0 = pixel_in(box[1], on->height), y1 = pixel_in(box[3], on->height);
    for (uint32_t x = x0; x <= x1; x++) {
        blend(on->rgb + ((size_t)y0 * on->width + x) * 3, colour, 100);
        blend(on->rgb + ((size_t)y1 * on->width + x) * 3, colour, 100);
    }
    for (uint32_t y = y0; y <= y1; y++) {
        blend(on->rgb + ((size_t)y * on->width + x0) * 3, colour, 100);
        blend(on->rgb + ((size_t)y * on->width + x1) * 3, colour, 100);
    }
}

const char *picture_draw(picture *on, const bxs_instance *instances, size_t n, const char *text) {
    static const uint8_t colours[6][3] = {{255, 87, 51},  {46, 196, 255}, {126, 217, 32},
                                          {214, 76, 255}, {255, 200, 20}, {20, 214, 164}};
    const bxs_region all = {0, 0, on->width, on->height};
    size_t size = (size_t)on->height * on->width;
    uint8_t *mask = (uint8_t *)malloc(size);
    if (mask == NULL) {
        return "out of memory";
    }
    const char *reason = NULL;
    for (size_t i = n; i > 0 && reason == NULL; i--) { /* the best on top */
        const bxs_instance *one = &instances[i - 1];
        const uint8_t *colour = colours[(i - 1) % 6];
        memset(mask, 0, size);
        bxs_status status = bxs_rle_paint(text + one->text_offset, (size_t)one->text_length,
                                          on->height, on->width, all, 1, mask, on->width, size);
        reason = status == BXS_OK ? NULL : bxs_status_meaning(status);
        for (size_t at = 0; at < size && reason == NULL; at++) {
            if (mask[at]) {
                blend(on->rgb + at * 3, colour, 45);
            }
        }
        outline(on, one->box, colour);
    }
    free(mask);
    return reason;
}
