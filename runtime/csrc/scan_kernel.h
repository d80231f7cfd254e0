/* Reading the logits and scoring the few that matter; compiled per level, see simd.h. */

/* Finds the values in from <= i < to that are at least `bound`, until there may be no room for
 * another block; returns how far it came. */
static size_t BXS_NAMED(find)(const float *values, size_t from, size_t to, float bound,
                              hits *found) {
    size_t i = from;
    found->n = 0;
    /* a block is four cache lines */
    for (; i < to && (uintptr_t)(values + i) % 64 != 0; i++) {
        add_hit(found, values, i, bound);
    }
    for (; i + BLOCK <= to && found->n + BLOCK <= MAX_HITS; i += BLOCK) {
        I32 any = {0};
        for (size_t j = 0; j < BLOCK; j += BXS_LANES) {
            F32 part;
            memcpy(&part, values + i + j, sizeof part);
            any |= part >= bound;
        }
        if (BITS(any) == 0) {
            continue;
        }
        uint64_t bits = 0;
        for (size_t j = 0; j < BLOCK; j += BXS_LANES) {
            F32 part;
            memcpy(&part, values + i + j, sizeof part);
            bits |= (uint64_t)BITS(part >= bound) << j;
        }
        for (; bits != 0; bits &= bits - 1) {
            add_hit(found, values, i + bxs_trailing_zeros(bits), bound);
        }
    }
    for (; i < to && to - i < BLOCK && found->n < MAX_HITS; i++) {
        add_hit(found, values, i, bound);
    }
    return i;
}

/* Turns limited logits into probabilities. */
static void BXS_NAMED(sigmoids)(double *values, size_t n) {
    for (size_t i = 0; i < n; i++) {
        values[i] = bxs_sigmoid_limited(values[i]);
    }
}
