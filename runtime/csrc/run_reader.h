/* Reads COCO's compressed counts. */
#ifndef BXS_RUN_READER_H
#define BXS_RUN_READER_H

#include "boxseg.h"

/* Reads counts one after the other. */
typedef struct {
    const char *text;
    size_t length, at;
    int64_t previous[2];
    uint32_t counts;
} run_reader;

/* The next run's pixels, or -1 if the text is malformed. */
static inline int64_t run_reader_count(run_reader *r) {
    int64_t value = 0;
    int64_t weight = 1;
    for (int groups = 0; groups < 9; groups++) {
        if (r->at == r->length) {
            return -1;
        }
        int group = r->text[r->at++] - 48;
        if (group < 0 || group > 63) {
            return -1;
        }
        value += (group & 0x1f) * weight;
        weight *= 32;
        if ((group & 0x20) == 0) {
            value -= group & 0x10 ? weight : 0;
            value += r->counts > 2 ? r->previous[1] : 0;
            r->previous[1] = r->previous[0];
            r->previous[0] = value;
            r->counts += r->counts < 3;
            return value < 0 ? -1 : value;
        }
    }
    return -1;
}

/* A walk over the runs that are on. */
typedef struct {
    run_reader reader;
    uint64_t pixels;      /* of the mask */
    uint64_t first, last; /* of the run */
} run_walk;

static inline run_walk run_walk_open(const char *text, size_t length, uint32_t height,
                                     uint32_t width) {
    const run_walk walk = {{text, length, 0, {0, 0}, 0}, (uint64_t)height * width, 0, 0};
    return walk;
}

/* Finds the next run that is on and not empty. 1 if there is one, 0 at the end, -1 if the text is
 * not that of a mask of this size. */
static inline int run_walk_next(run_walk *walk) {
    run_reader *r = &walk->reader;
    while (r->at < r->length) {
        const int64_t off = run_reader_count(r);
        if (off < 0 || (uint64_t)off > walk->pixels - walk->last) {
            return -1;
        }
        walk->first = walk->last + (uint64_t)off;
        walk->last = walk->first;
        if (r->at == r->length) {
            break;
        }
        const int64_t on = run_reader_count(r);
        if (on < 0 || (uint64_t)on > walk->pixels - walk->first) {
            return -1;
        }
        walk->last += (uint64_t)on;
        if (on > 0) {
            return 1;
        }
    }
    return walk->last == walk->pixels ? 0 : -1;
}

#endif
