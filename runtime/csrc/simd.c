/* Which instruction sets there are. */
#include "simd.h"

bxs_simd bxs_simd_best(void) {
#if BXS_X86
    if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
          __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2"))) {
        return BXS_SIMD_PORTABLE;
    }
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512vl")
               ? BXS_SIMD_AVX512
               : BXS_SIMD_AVX2;
#else
    return BXS_SIMD_PORTABLE;
#endif
}

const char *bxs_simd_name(bxs_simd level) {
    switch (level) {
    case BXS_SIMD_BEST:
        return "best";
    case BXS_SIMD_PORTABLE:
        return "portable";
    case BXS_SIMD_AVX2:
        return "avx2";
    case BXS_SIMD_AVX512:
        return "avx512";
    default:
        return "unknown";
    }
}

bxs_simd bxs_simd_level(bxs_simd wanted) {
    const bxs_simd best = bxs_simd_best();
    if (wanted == BXS_SIMD_BEST) {
        return best;
    }
    return wanted >= BXS_SIMD_PORTABLE && wanted <= best ? wanted : BXS_SIMD_BEST;
}
