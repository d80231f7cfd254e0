/* Image files for the examples: PPM, and PNG and JPEG where their libraries were found. */
#ifndef PICTURE_H
#define PICTURE_H

#include <boxseg.h>

#ifdef __cplusplus
extern "C" {
#endif

/* RGB bytes, rows without gaps. */
typedef struct {
    uint32_t height, width;
    uint8_t *rgb;
} picture;

/* These give NULL, or the reason why not. A picture that was read is the caller's to close. */
const char *picture_read(const char *path, picture *out);
const char *picture_write_png(const char *path, const picture *from);
void picture_close(picture *of);

/* The frame that a picture is. */
bxs_frame picture_frame(const picture *of);

/* Blends masks into the picture and outlines the boxes; `text` holds the masks of the instances. */
const char *picture_draw(picture *on, const bxs_instance *instances, size_t n, const char *text);

#ifdef __cplusplus
}
#endif

#endif
