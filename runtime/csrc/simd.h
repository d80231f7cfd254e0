/* Vectors, and the choice between instruction sets. Compiler extensions are used here and in
 * platform.h only.
 *
 * A kernel is written once, in a file x_kernel.h whose functions are `static` and have names made
 * by BXS_NAMED, for vectors F32, I32, ... of BXS_LANES 32-bit lanes. Its user compiles it for every
 * level and calls one of them:
 *
 *     #define BXS_KERNEL "x_kernel.h"
 *     #include "simd_levels.h"
 *     ...
 *     BXS_AT_LEVEL(level, x)(arguments);
 *
 * with `level` from bxs_simd_level. Where AVX-512 gains nothing over AVX2, it uses the same code:
 *
 *     #define BXS_KERNEL_UP_TO_AVX2
 *     #define BXS_KERNEL "x_kernel.h"
 *     #include "simd_levels.h"
 *     ...
 *     BXS_UP_TO_AVX2(level, x)(arguments);
 *
 * Vectors have the operators of C, lane by lane; a comparison
 * gives -1 or 0 in an integer lane. They never pass the border of a kernel file, because only
 * there the compiler has registers for them. */
#ifndef BXS_SIMD_H
#define BXS_SIMD_H

#include "boxseg.h"

#include <string.h>

#if !defined(__GNUC__)
#error "boxseg needs the vector extensions of GCC or clang"
#endif

#if defined(__x86_64__)
#define BXS_X86 1
#include <immintrin.h>
#else
#define BXS_X86 0
#endif

#define BXS_VECTOR_TYPES(bytes)                                                                    \
    typedef float bxs_f32_##bytes __attribute__((vector_size(bytes)));                             \
    typedef double bxs_f64_##bytes __attribute__((vector_size(bytes)));                            \
    typedef int32_t bxs_i32_##bytes __attribute__((vector_size(bytes)));                           \
    typedef uint32_t bxs_u32_##bytes __attribute__((vector_size(bytes)));                          \
    typedef int64_t bxs_i64_##bytes __attribute__((vector_size(bytes)));                           \
    typedef uint16_t bxs_u16_##bytes __attribute__((vector_size(bytes)));                          \
    typedef uint8_t bxs_u8_##bytes __attribute__((vector_size(bytes)))

BXS_VECTOR_TYPES(16);
BXS_VECTOR_TYPES(32);
BXS_VECTOR_TYPES(64);

/* Lanes of two vectors by number, 0..3 of the first and 4..7 of the second. */
#if defined(__clang__) || __GNUC__ >= 12
#define BXS_SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define BXS_SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, (bxs_i32_16){i, j, k, l})
#endif

/* Writes the columns of 4 x 4 numbers as rows; `width` and `height` lie between two rows. */
static inline void bxs_transpose_4(const float *from, size_t width, float *to, size_t height) {
    bxs_f32_16 a, b, c, d;
    memcpy(&a, from, sizeof a);
    memcpy(&b, from + width, sizeof b);
    memcpy(&c, from + 2 * width, sizeof c);
    memcpy(&d, from + 3 * width, sizeof d);
    const bxs_f32_16 ab_low = BXS_SHUFFLE(a, b, 0, 4, 1, 5);
    const bxs_f32_16 ab_high = BXS_SHUFFLE(a, b, 2, 6, 3, 7);
    const bxs_f32_16 cd_low = BXS_SHUFFLE(c, d, 0, 4, 1, 5);
    const bxs_f32_16 cd_high = BXS_SHUFFLE(c, d, 2, 6, 3, 7);
    a = BXS_SHUFFLE(ab_low, cd_low, 0, 1, 4, 5);
    b = BXS_SHUFFLE(ab_low, cd_low, 2, 3, 6, 7);
    c = BXS_SHUFFLE(ab_high, cd_high, 0, 1, 4, 5);
    d = BXS_SHUFFLE(ab_high, cd_high, 2, 3, 6, 7);
    memcpy(to, &a, sizeof a);
    memcpy(to + height, &b, sizeof b);
    memcpy(to + 2 * height, &c, sizeof c);
    memcpy(to + 3 * height, &d, sizeof d);
}

/* What has no operator; a kernel calls it F32_MIN and F32_MAX, and up to AVX2 BITS, F32_AT,
 * F32_COLUMNS and U8_PUT.
 *   min   a < b ? a : b in each lane
 *   max   a > b ? a : b in each lane
 *   bits  the sign bits of all lanes, the first lane lowest
 *   at    from[i] in each lane
 *   columns  columns of as many rows of 4 numbers as there are lanes
 *   put   stores bytes at an aligned place, around the caches where it can; bxs_put_end() behind
 *         them makes them visible to other threads */
static inline bxs_f32_16 bxs_at_16(const float *from, bxs_i32_16 i) {
    const bxs_f32_16 found = {from[i[0]], from[i[1]], from[i[2]], from[i[3]]};
    return found;
}

static inline void bxs_columns_16(const float *rows, bxs_f32_16 columns[4]) {
    float numbers[16];
    bxs_transpose_4(rows, 4, numbers, 4);
    memcpy(columns, numbers, sizeof numbers);
}

#if BXS_X86

static inline bxs_f32_16 bxs_min_16(bxs_f32_16 a, bxs_f32_16 b) {
    return (bxs_f32_16)_mm_min_ps((__m128)a, (__m128)b);
}

static inline bxs_f32_16 bxs_max_16(bxs_f32_16 a, bxs_f32_16 b) {
    return (bxs_f32_16)_mm_max_ps((__m128)a, (__m128)b);
}

static inline uint32_t bxs_bits_16(bxs_i32_16 a) {
    return (uint32_t)_mm_movemask_ps((__m128)a);
}

static inline void bxs_put_16(uint8_t *to, bxs_u8_16 a) {
    _mm_stream_si128((__m128i *)(void *)to, (__m128i)a);
}

static inline void bxs_put_end(void) {
    _mm_sfence();
}

#define BXS_WITH(names) static inline __attribute__((target(names)))

BXS_WITH("avx2") void bxs_put_32(uint8_t *to, bxs_u8_32 a) {
    _mm256_stream_si256((__m256i *)(void *)to, (__m256i)a);
}

BXS_WITH("avx2") bxs_f32_32 bxs_min_32(bxs_f32_32 a, bxs_f32_32 b) {
    return (bxs_f32_32)_mm256_min_ps((__m256)a, (__m256)b);
}

BXS_WITH("avx2") bxs_f32_32 bxs_max_32(bxs_f32_32 a, bxs_f32_32 b) {
    return (bxs_f32_32)_mm256_max_ps((__m256)a, (__m256)b);
}

BXS_WITH("avx2") uint32_t bxs_bits_32(bxs_i32_32 a) {
    return (uint32_t)_mm256_movemask_ps((__m256)a);
}

BXS_WITH("avx2") bxs_f32_32 bxs_at_32(const float *from, bxs_i32_32 i) {
    return (bxs_f32_32)_mm256_i32gather_ps(from, (__m256i)i, 4);
}

BXS_WITH("avx2") void bxs_columns_32(const float *rows, bxs_f32_32 columns[4]) {
    bxs_f32_16 low[4], high[4];
    bxs_columns_16(rows, low);
    bxs_columns_16(rows + 16, high);
    for (int i = 0; i < 4; i++) {
        columns[i] = (bxs_f32_32)_mm256_set_m128((__m128)high[i], (__m128)low[i]);
    }
}

BXS_WITH("avx512f") bxs_f32_64 bxs_min_64(bxs_f32_64 a, bxs_f32_64 b) {
    return (bxs_f32_64)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b);
}

BXS_WITH("avx512f") bxs_f32_64 bxs_max_64(bxs_f32_64 a, bxs_f32_64 b) {
    return (bxs_f32_64)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
}

#undef BXS_WITH

#else

static inline void bxs_put_16(uint8_t *to, bxs_u8_16 a) {
    memcpy(to, &a, sizeof a);
}

static inline void bxs_put_end(void) {
}

static inline bxs_f32_16 bxs_min_16(bxs_f32_16 a, bxs_f32_16 b) {
    const bxs_i32_16 less = a < b;
    return (bxs_f32_16)(((bxs_i32_16)a & less) | ((bxs_i32_16)b & ~less));
}

static inline bxs_f32_16 bxs_max_16(bxs_f32_16 a, bxs_f32_16 b) {
    const bxs_i32_16 more = a > b;
    return (bxs_f32_16)(((bxs_i32_16)a & more) | ((bxs_i32_16)b & ~more));
}

static inline uint32_t bxs_bits_16(bxs_i32_16 a) {
    uint32_t bits = 0;
    for (int i = 0; i < 4; i++) {
        bits |= (uint32_t)(a[i] < 0) << i;
    }
    return bits;
}

#endif

/* Functions between BEGIN and END may use the instruction set. */
/* clang-format off */
#if defined(__clang__)
#define BXS_TARGET_AVX2_BEGIN                                                                      \
    _Pragma("clang attribute push(__attribute__((target(\"avx2,fma,bmi,bmi2\"))), apply_to = function)")
#define BXS_TARGET_AVX512_BEGIN                                                                    \
    _Pragma("clang attribute push(__attribute__((target(\"avx2,fma,bmi,bmi2,avx512f,avx512bw,avx512cd,avx512dq,avx512vl\"))), apply_to = function)")
#define BXS_TARGET_END _Pragma("clang attribute pop")
#else
#define BXS_TARGET_AVX2_BEGIN                                                                      \
    _Pragma("GCC push_options")                                                                    \
    _Pragma("GCC target(\"avx2,fma,bmi,bmi2\")")
#define BXS_TARGET_AVX512_BEGIN                                                                    \
    _Pragma("GCC push_options")                                                                    \
    _Pragma("GCC target(\"avx2,fma,bmi,bmi2,avx512f,avx512bw,avx512cd,avx512dq,avx512vl\")")
#define BXS_TARGET_END _Pragma("GCC pop_options")
#endif
/* clang-format on */

#if BXS_X86
#define BXS_AT_LEVEL(level, function)                                                              \
    ((level) == BXS_SIMD_AVX512 ? function##_avx512                                                \
     : (level) == BXS_SIMD_AVX2 ? function##_avx2                                                  \
                                : function##_portable)
#define BXS_UP_TO_AVX2(level, function)                                                            \
    ((level) >= BXS_SIMD_AVX2 ? function##_avx2 : function##_portable)
#else
#define BXS_AT_LEVEL(level, function) ((void)(level), function##_portable)
#define BXS_UP_TO_AVX2 BXS_AT_LEVEL
#endif

    /* The level to use, or BXS_SIMD_BEST if there is no such level on this machine. */
    bxs_simd bxs_simd_level(bxs_simd wanted);

#endif
