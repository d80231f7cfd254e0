/* Radix sort: linear for every input, and a digit that all keys share costs only its count. */
#include "order.h"

#define DIGITS 256

void bxs_sort_keys(uint64_t *keys, uint64_t *spare, size_t n) {
    uint64_t *from = keys;
    uint64_t *to = spare;
    for (unsigned int shift = 0; shift < 64; shift += 8) {
        size_t start[DIGITS] = {0};
        for (size_t i = 0; i < n; i++) {
            start[from[i] >> shift & 0xff]++;
        }
        if (n == 0 || start[from[0] >> shift & 0xff] == n) {
            continue;
        }
        size_t total = 0;
        for (size_t digit = DIGITS; digit-- > 0;) {
            size_t count = start[digit];
            start[digit] = total;
            total += count;
        }
        for (size_t i = 0; i < n; i++) {
            to[start[from[i] >> shift & 0xff]++] = from[i];
        }
        uint64_t *swap = from;
        from = to;
        to = swap;
    }
    if (from != keys) {
        memcpy(keys, from, n * sizeof *keys);
    }
}
