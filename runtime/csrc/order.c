/* Radix sort by two digits of the score, the highest in which keys differ, then insertion for the
 * rest; where that takes long because scores cluster, radix sort on all bits. Linear for every
 * input. */
#include "order.h"

#define MAX_BITS 11 /* of a digit */
#define MOVES 4     /* per key, before insertion is given up */

/* Sorts in place, or returns 0 after too many moves. */
static int insertion_sort(uint64_t *keys, size_t n) {
    size_t moves = MOVES * n;
    for (size_t i = 1; i < n; i++) {
        const uint64_t key = keys[i];
        if (keys[i - 1] > key) {
            continue;
        }
        size_t j = i;
        for (; j > 0 && keys[j - 1] < key; j--) {
            keys[j] = keys[j - 1];
        }
        keys[j] = key;
        if (i - j > moves) {
            return 0;
        }
        moves -= i - j;
    }
    return 1;
}

/* Digit of a key's distance from the highest key: the lowest digit comes first. */
static inline size_t digit_of(uint64_t key, uint64_t highest, unsigned int shift, size_t digits) {
    return (size_t)((highest - key) >> shift) & (digits - 1);
}

/* Sorts by one digit and keeps the order of equal ones. */
static void scatter(const uint64_t *from, uint64_t *to, size_t n, uint32_t *counts, size_t digits,
                    uint64_t highest, unsigned int shift) {
    uint32_t total = 0;
    for (size_t digit = 0; digit < digits; digit += 4) { /* four sums that need not wait */
        const uint32_t one = counts[digit], two = one + counts[digit + 1];
        const uint32_t three = two + counts[digit + 2], four = three + counts[digit + 3];
        counts[digit] = total;
        counts[digit + 1] = total + one;
        counts[digit + 2] = total + two;
        counts[digit + 3] = total + three;
        total += four;
    }
    for (size_t i = 0; i < n; i++) {
        to[counts[digit_of(from[i], highest, shift, digits)]++] = from[i];
    }
}

static void radix_sort(uint64_t *keys, uint64_t *spare, size_t n) {
    uint64_t *from = keys;
    uint64_t *to = spare;
    for (unsigned int shift = 0; shift < 64; shift += 8) {
        uint32_t counts[256] = {0};
        for (size_t i = 0; i < n; i++) {
            counts[digit_of(from[i], UINT64_MAX, shift, 256)]++;
        }
        if (counts[digit_of(from[0], UINT64_MAX, shift, 256)] == n) {
            continue; /* a digit that all keys share costs only its count */
        }
        scatter(from, to, n, counts, 256, UINT64_MAX, shift);
        uint64_t *swap = from;
        from = to;
        to = swap;
    }
    if (from != keys) {
        memcpy(keys, from, n * sizeof *keys);
    }
}

void bxs_sort_keys(uint64_t *keys, uint64_t *spare, size_t n) {
    uint32_t low = UINT32_MAX, high = 0;
    for (size_t i = 0; i < n; i++) {
        const uint32_t score = (uint32_t)(keys[i] >> 32);
        low = score < low ? score : low;
        high = score > high ? score : high;
    }
    if (n < 2) {
        return;
    }
    const uint64_t highest = (uint64_t)high << 32 | UINT32_MAX;
    const uint64_t range = highest - ((uint64_t)low << 32);
    uint32_t fine[1 << MAX_BITS], coarse[1 << MAX_BITS];
    unsigned int bits = 4, shift = 32;
    while (bits < MAX_BITS && n >> bits > 4) {
        bits++;
    }
    while (range >> shift >> 2 * bits != 0) {
        shift++;
    }
    const size_t digits = (size_t)1 << bits;
    memset(fine, 0, digits * sizeof *fine);
    memset(coarse, 0, digits * sizeof *coarse);
    for (size_t i = 0; i < n; i++) {
        fine[digit_of(keys[i], highest, shift, digits)]++;
        coarse[digit_of(keys[i], highest, shift + bits, digits)]++;
    }
    scatter(keys, spare, n, fine, digits, highest, shift);
    scatter(spare, keys, n, coarse, digits, highest, shift + bits);
    if (!insertion_sort(keys, n)) {
        radix_sort(keys, spare, n);
    }
}
