/* The logistic function, the same bits on every machine. */
#ifndef BXS_SIGMOID_H
#define BXS_SIGMOID_H

#include <stdint.h>
#include <string.h>

/* exp(x) for |x| <= 80 with an error below 1e-15 of the value: the power of two next to it times a
 * Taylor polynomial on |r| <= ln(2) / 2. Branch-free, so that loops over it vectorise. */
static inline double bxs_exp(double x) {
    const double shift = 6755399441055744.0; /* 1.5 * 2^52: adding it rounds to an integer */
    const double shifted = x * 1.4426950408889634074 + shift;
    const double k = shifted - shift;
    const double r = (x - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10;
    double p = 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    uint64_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    /* the low bits of `shifted` are k; the exponent field of 2^k is k + 1023 */
    bits = (bits + 1023u) << 52;
    double power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

/* Limits a logit to +-80, where its probability is within 2e-35 of 0 or equal to 1. */
static inline double bxs_limited(double x) {
    x = x < -80.0 ? -80.0 : x;
    return x > 80.0 ? 80.0 : x;
}

/* 1 / (1 + exp(-x)) for a limited x; loops over it vectorise. */
static inline double bxs_sigmoid_limited(double x) {
    return 1.0 / (1.0 + bxs_exp(-x));
}

/* 1 / (1 + exp(-x)) for every x. */
static inline double bxs_sigmoid(double x) {
    return bxs_sigmoid_limited(bxs_limited(x));
}

#endif
