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
 * with `level` from bxs_simd_level. Vectors have the operators of C, lane by lane; a comparison
 * gives -1 or 0 in an integer lane. They never pass the border of a kernel file, because only
 * there the compiler has registers for them. */
#ifndef BXS_SIMD_H
#define BXS_SIMD_H

#include "boxseg.h"

#include <string.h>

#if !defined(__GNUC__)
#error "boxseg needs the vector extensions of GCC or clang"
#endif

#if defined(__x86_64__) || defined(__i386__)
#define BXS_X86 1
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
#else
#define BXS_AT_LEVEL(level, function) ((void)(level), function##_portable)
#endif

/* The level to use, or BXS_SIMD_BEST if there is no such level on this machine. */
bxs_simd bxs_simd_level(bxs_simd wanted);

#endif
