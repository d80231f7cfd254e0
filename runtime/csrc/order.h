/* Sorting of scores with their indices as 64-bit keys. */
#ifndef BXS_ORDER_H
#define BXS_ORDER_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* A key whose descending order is: higher score first, then lower index. Not for NaN. */
static inline uint64_t bxs_key(float score, uint32_t index) {
    uint32_t bits;
    score += 0.0f; /* -0 and 0 are one score */
    memcpy(&bits, &score, sizeof bits);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (uint64_t)bits << 32 | (uint32_t)~index;
}

static inline uint32_t bxs_key_index(uint64_t key) {
    return ~(uint32_t)key;
}

static inline float bxs_key_score(uint64_t key) {
    uint32_t bits = (uint32_t)(key >> 32);
    float score;
    bits = bits & 0x80000000u ? bits & 0x7fffffffu : ~bits;
    memcpy(&score, &bits, sizeof score);
    return score;
}

/* Sorts n keys, highest first; `spare` has room for n. The result is in `keys`. */
void bxs_sort_keys(uint64_t *keys, uint64_t *spare, size_t n);

#endif
