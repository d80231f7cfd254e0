/* Compiles the file BXS_KERNEL once per level, or with BXS_KERNEL_UP_TO_AVX2 not for AVX-512; see
 * simd.h. Included once per kernel file, so without a guard. */
#include "simd.h"

#define BXS_NAMED(name) name##_portable
#define BXS_LANES 4
#define F32 bxs_f32_16
#define F64 bxs_f64_16
#define I32 bxs_i32_16
#define U32 bxs_u32_16
#define I64 bxs_i64_16
#define U16 bxs_u16_16
#define U8 bxs_u8_16
#define F32_MIN bxs_min_16
#define F32_MAX bxs_max_16
#define BITS bxs_bits_16
#define F32_AT bxs_at_16
#define F32_COLUMNS bxs_columns_16
#define U8_PUT bxs_put_16
#include BXS_KERNEL
#include "simd_clear.h"

#if BXS_X86

BXS_TARGET_AVX2_BEGIN
#define BXS_NAMED(name) name##_avx2
#define BXS_LANES 8
#define F32 bxs_f32_32
#define F64 bxs_f64_32
#define I32 bxs_i32_32
#define U32 bxs_u32_32
#define I64 bxs_i64_32
#define U16 bxs_u16_32
#define U8 bxs_u8_32
#define F32_MIN bxs_min_32
#define F32_MAX bxs_max_32
#define BITS bxs_bits_32
#define F32_AT bxs_at_32
#define F32_COLUMNS bxs_columns_32
#define U8_PUT bxs_put_32
#include BXS_KERNEL
#include "simd_clear.h"
BXS_TARGET_END

#ifndef BXS_KERNEL_UP_TO_AVX2
BXS_TARGET_AVX512_BEGIN
#define BXS_NAMED(name) name##_avx512
#define BXS_LANES 16
#define F32 bxs_f32_64
#define F64 bxs_f64_64
#define I32 bxs_i32_64
#define U32 bxs_u32_64
#define I64 bxs_i64_64
#define U16 bxs_u16_64
#define U8 bxs_u8_64
#define F32_MIN bxs_min_64
#define F32_MAX bxs_max_64
#include BXS_KERNEL
#include "simd_clear.h"
BXS_TARGET_END
#endif

#endif

#undef BXS_KERNEL
#undef BXS_KERNEL_UP_TO_AVX2
