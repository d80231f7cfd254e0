/* Writes COCO's compressed counts as the mask changes between off and on. */
#ifndef BXS_RUN_TEXT_H
#define BXS_RUN_TEXT_H

#include "platform.h"

#include <stddef.h>
#include <stdint.h>

#define RUN_TEXT_NONE UINT64_MAX

typedef struct {
    char *text;
    size_t room, length;
    uint64_t written;    /* pixels of the counts in the text */
    uint64_t pending;    /* the last change, whose count is not yet in the text, or NONE */
    int64_t previous[2]; /* the last two counts, the newest first */
    uint64_t area;       /* pixels that are on */
    uint32_t counts;     /* counts written so far, up to 4, then 3 and 4 in turn */
    uint32_t is_full;    /* whether the text did not fit */
} run_text;

static inline run_text run_text_open(char *text, size_t room) {
    run_text writer = {text, room, 0, 0, RUN_TEXT_NONE, {0, 0}, 0, 0, 0};
    return writer;
}

/* Groups of five bits, lowest first, as printable characters; bit 5 says that more follow. */
static inline void run_text_number(run_text *writer, int64_t rest) {
    const uint64_t magnitude = (uint64_t)(rest < 0 ? ~rest : rest);
    if (magnitude < 1u << 19 && writer->room - writer->length >= 4) {
        /* up to four groups without a branch */
        const uint32_t bits = 33 - bxs_leading_zeros((uint32_t)magnitude | 1);
        const uint32_t groups = (bits + 4) * 13 >> 6; /* (bits + 4) / 5 */
        const uint32_t more = 0x20202020u & ((1u << 8 * (groups - 1)) - 1);
        const uint32_t low = (uint32_t)rest;
        const uint32_t spread =
            (low & 0x1f) | (low & 0x3e0) << 3 | (low & 0x7c00) << 6 | (low & 0xf8000) << 9;
        const uint32_t characters = (spread | more) + 0x30303030u;
        char *to = writer->text + writer->length;
        to[0] = (char)(characters & 0xff);
        to[1] = (char)(characters >> 8 & 0xff);
        to[2] = (char)(characters >> 16 & 0xff);
        to[3] = (char)(characters >> 24);
        writer->length += groups;
        return;
    }
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
}

/* From the fourth count on, the difference to the count two before is written. */
static inline void run_text_count(run_text *writer, uint64_t end) {
    const int64_t count = (int64_t)(end - writer->written);
    run_text_number(writer, writer->counts > 2 ? count - writer->previous[1] : count);
    writer->area += writer->counts & 1 ? (uint64_t)count : 0;
    writer->previous[1] = writer->previous[0];
    writer->previous[0] = count;
    writer->counts += writer->counts < 4 ? 1u : -1u;
    writer->written = end;
}

/* From pixel `at` on (down the columns) the mask is what it was not before. Changes come in order;
 * two at one pixel cancel. */
static inline void run_text_change(run_text *writer, uint64_t at) {
    if (at == writer->pending) {
        writer->pending = RUN_TEXT_NONE;
        return;
    }
    if (writer->pending != RUN_TEXT_NONE) {
        run_text_count(writer, writer->pending);
    }
    writer->pending = at;
}

static inline void run_text_close(run_text *writer, uint64_t pixels) {
    if (writer->pending != RUN_TEXT_NONE && writer->pending != pixels) {
        run_text_count(writer, writer->pending);
    }
    run_text_count(writer, pixels);
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
