/* The one place for what is not plain C11. */
#ifndef BXS_PLATFORM_H
#define BXS_PLATFORM_H

#if defined(__GNUC__) || defined(__clang__)
#define BXS_RESTRICT __restrict__
#define BXS_NOINLINE __attribute__((noinline))
#define BXS_PREFETCH(address) __builtin_prefetch(address)
#else
#error "boxseg needs GCC or clang"
#endif

#include <stddef.h>
#include <stdint.h>

/* Asks for memory that will be read. */
static inline void bxs_prefetch(const void *memory, size_t size) {
    for (size_t i = 0; i < size; i += 64) {
        __builtin_prefetch((const char *)memory + i);
    }
}

/* Of numbers that are not 0. */
static inline uint32_t bxs_leading_zeros(uint32_t x) {
    return (uint32_t)__builtin_clz(x);
}

static inline uint32_t bxs_trailing_zeros(uint64_t x) {
    return (uint32_t)__builtin_ctzll(x);
}

#endif
