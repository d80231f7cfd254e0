/* The one place for what is not plain C11. */
#ifndef BXS_PLATFORM_H
#define BXS_PLATFORM_H

#if defined(__GNUC__) || defined(__clang__)
#define BXS_RESTRICT __restrict__
#define BXS_NOINLINE __attribute__((noinline))
#elif defined(_MSC_VER)
#define BXS_RESTRICT __restrict
#else
#define BXS_RESTRICT
#endif

#endif
