/* Writes COCO's compressed counts as runs arrive. */
#ifndef BXS_RUN_TEXT_H
#define BXS_RUN_TEXT_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    char *text;
    size_t room, length;
    uint64_t run;        /* pixels of the run that is still open */
    int64_t previous[2]; /* the last two counts, the newest first */
    uint32_t counts;     /* counts written so far, up to 3 */
    uint32_t value;      /* of the open run */
    uint32_t is_full;    /* whether the text did not fit */
    uint32_t area;       /* pixels that are on */
} run_text;

static inline run_text run_text_open(char *text, size_t room) {
    run_text writer = {text, room, 0, 0, {0, 0}, 0, 0, 0, 0};
    return writer;
}

/* From the fourth count on, the difference to the count two before is written, in groups of five
 * bits, lowest first, as printable characters; bit 5 says that more follow. */
static inline void run_text_count(run_text *writer) {
    int64_t count = (int64_t)writer->run;
    int64_t rest = writer->counts > 2 ? count - writer->previous[1] : count;
    int more = 1;
    while (more) {
        int group = (int)(rest & 0x1f);
        /* an arithmetic shift, written so that it does not depend on the compiler */
        rest = (rest - group) / 32;
        more = group & 0x10 ? rest != -1 : rest != 0;
        if (writer->length == writer->room) {
            writer->is_full = 1;
            return;
        }
        writer->text[writer->length++] = (char)((more ? group | 0x20 : group) + 48);
    }
    writer->previous[1] = writer->previous[0];
    writer->previous[0] = count;
    writer->counts += writer->counts < 3;
}

static inline void run_text_push(run_text *writer, uint32_t value, uint64_t pixels) {
    if (pixels == 0) {
        return;
    }
    if (value != writer->value) {
        run_text_count(writer);
        writer->value = value;
        writer->run = 0;
    }
    writer->run += pixels;
    writer->area += value ? (uint32_t)pixels : 0;
}

static inline void run_text_close(run_text *writer) {
    run_text_count(writer);
}

/* Characters that one count of a mask of `pixels` pixels can take: the difference of two counts has
 * a sign and as many bits as the number of pixels. */
static inline size_t run_text_characters(uint64_t pixels) {
    size_t bits = 1;
    while (pixels != 0) {
        bits++;
        pixels >>= 1;
    }
    return (bits + 4) / 5;
}

#endif
