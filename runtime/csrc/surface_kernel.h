/* Where a surface changes its sign, and its probabilities; compiled per level, see simd.h. */

static inline F32 BXS_NAMED(load)(const float *from) {
    F32 vector;
    memcpy(&vector, from, sizeof vector);
    return vector;
}

/* bxs_mix of cells by the weights of several frame columns. */
static inline F32 BXS_NAMED(across)(const change_block *block, uint32_t row, F32 weight) {
    return block->left[row] * (1.0f - weight) + block->right[row] * weight;
}

static inline I32 BXS_NAMED(is_on)(F32 above, F32 below, F32 weight) {
    return above * (1.0f - weight) + below * weight > 0.0f;
}

/* Bit i of the words tells whether cell i is on. There is one word more than that needs, and bits
 * from `count` on are 0. */
static void BXS_NAMED(signs)(const float *cells, uint32_t count, uint64_t *words) {
    uint32_t from = 0;
    for (; from < count; from += 64) {
        const uint32_t n = count - from < 64 ? count - from : 64;
        uint64_t bits = 0;
        uint32_t i = 0;
        for (; i + BXS_LANES <= n; i += BXS_LANES) {
            bits |= (uint64_t)BITS(BXS_NAMED(load)(cells + from + i) > 0.0f) << i;
        }
        if (i < n && count >= BXS_LANES) {
            /* the last vector again takes some that are done */
            const uint64_t last = BITS(BXS_NAMED(load)(cells + from + n - BXS_LANES) > 0.0f);
            bits |= n >= BXS_LANES ? last << (n - BXS_LANES) : last >> (BXS_LANES - n);
        } else {
            for (; i < n; i++) {
                bits |= (uint64_t)(cells[from + i] > 0.0f) << i;
            }
        }
        words[from / 64] = bits;
    }
    words[from / 64] = 0;
}

/* Moves y to the first of the frame rows first..last where the surface has the sign of `below`. */
static BXS_NOINLINE void BXS_NAMED(confirm)(const float *down, F32 above, F32 below, int32_t first,
                                            int32_t last, uint32_t turning, int32_t *rows) {
    const I32 end_on = below > 0.0f;
    I32 y;
    memcpy(&y, rows, sizeof y);
    for (;;) {
        const F32 here = F32_AT(down, y);
        const F32 before = F32_AT(down - 1, y);
        const I32 later = (BXS_NAMED(is_on)(above, below, here) ^ end_on) & (y < last);
        const I32 sooner = ~(BXS_NAMED(is_on)(above, below, before) ^ end_on) & (y > first);
        if ((BITS(later | sooner) & turning) == 0) {
            break;
        }
        y += sooner - later;
    }
    memcpy(rows, &y, sizeof y);
}

/* The changes of up to LANES frame columns between the same two columns of cells.
 *
 * Along a frame column the surface is monotone between two rows of cells, so it crosses zero at
 * most once there. Where the four corners have one sign it does not. Elsewhere the straight line
 * through two cells tells where it does, to less than SURE of a pixel: opposite signs do not cancel
 * in the difference of two cells, so rounding moves the zero by no more than 2^-22 cells, and the
 * numbers here are below 2^15 pixels with 2^-9 for the last bit. Pixels closer to the zero than
 * that are asked by their own formula. */
static void BXS_NAMED(changes)(const change_block *block, uint32_t *BXS_RESTRICT changes,
                               uint32_t *BXS_RESTRICT counts) {
    const F32 weight = BXS_NAMED(load)(block->across);
    const uint32_t wanted = (1u << block->columns) - 1;
    memset(counts, 0, block->columns * sizeof *counts);
    const F32 top = BXS_NAMED(across)(block, 0, weight);
    for (uint32_t bits = BITS(top > 0.0f) & wanted; bits != 0; bits &= bits - 1) {
        const uint32_t l = bxs_trailing_zeros(bits);
        changes[l * block->room] = 0;
        counts[l] = 1;
    }
    for (uint32_t word = 0; 64 * word + 1 < block->rows; word++) {
        for (uint64_t mixed = block->mixed[word]; mixed != 0; mixed &= mixed - 1) {
            const uint32_t i = 64 * word + bxs_trailing_zeros(mixed);
            const F32 above = BXS_NAMED(across)(block, i, weight);
            const F32 below = BXS_NAMED(across)(block, i + 1, weight);
            const uint32_t turning = BITS((above > 0.0f) ^ (below > 0.0f)) & wanted;
            if (turning == 0) {
                continue;
            }
            const int32_t first = block->starts[i], last = block->starts[i + 1];
            const F32 zero = above / (above - below) * block->per_cell +
                             (block->guess + (float)i * block->per_cell);
            const I32 ceiling = __builtin_convertvector(zero, I32);
            const F32 rest = zero - __builtin_convertvector(ceiling, F32);
            const uint32_t sure = BITS((rest > block->sure) & (rest < 1.0f - block->sure));
            const F32 limited =
                F32_MIN(F32_MAX(__builtin_convertvector(ceiling, F32), (float)first - (F32){0}),
                        (float)last - (F32){0});
            const I32 y = __builtin_convertvector(limited, I32);
            int32_t rows[BXS_LANES];
            memcpy(rows, &y, sizeof rows);
            if ((turning & ~sure) != 0) {
                BXS_NAMED(confirm)(block->down, above, below, first, last, turning, rows);
            }
            for (uint32_t bits = turning; bits != 0; bits &= bits - 1) {
                const uint32_t l = bxs_trailing_zeros(bits);
                changes[l * block->room + counts[l]++] = (uint32_t)rows[l];
            }
        }
    }
}

/* Weights of the lower cell at `count` pixels from `first` on, and the cells. */
static void BXS_NAMED(places)(uint32_t first, uint32_t count, double scale, uint32_t cells,
                              float *BXS_RESTRICT weights, int32_t *BXS_RESTRICT lower) {
    const double last = (double)(cells - 1);
    for (uint32_t i = 0; i < count; i++) {
        double position = ((double)(int32_t)(first + i) + 0.5) * scale - 0.5;
        position = position > 0.0 ? position : 0.0;
        position = position < last ? position : last;
        lower[i] = (int32_t)position;
        weights[i] = (float)(position - (double)lower[i]);
    }
}

/* Writes whole lines around the caches: what is larger than they are would have to be read into
 * them before it is written. */
static inline void BXS_NAMED(put_lines)(uint8_t *to, const uint8_t *from, size_t lines) {
    for (const uint8_t *end = from + LINE * lines; from < end; from += LINE, to += LINE) {
        for (size_t i = 0; i < LINE; i += sizeof(U8)) {
            U8 bytes;
            memcpy(&bytes, from + i, sizeof bytes);
            U8_PUT(to + i, bytes);
        }
    }
}

static void BXS_NAMED(put_zeros)(uint8_t *to, size_t lines) {
    const U8 zero = {0};
    for (uint8_t *end = to + LINE * lines; to < end; to += sizeof zero) {
        U8_PUT(to, zero);
    }
}

/* Adds bytes; LINE more than these are read. */
static void BXS_NAMED(stream)(byte_stream *out, const uint8_t *from, size_t size) {
    memcpy(out->line + out->held, from, LINE);
    if (out->held + size < LINE) {
        out->held += size;
        return;
    }
    const size_t used = LINE - out->held;
    if (out->foreign != 0) {
        memcpy(out->to + out->foreign, out->line + out->foreign, LINE - out->foreign);
        out->foreign = 0;
    } else {
        BXS_NAMED(put_lines)(out->to, out->line, 1);
    }
    const size_t lines = (size - used) / LINE;
    BXS_NAMED(put_lines)(out->to + LINE, from + used, lines);
    out->to += LINE * (lines + 1);
    out->held = size - used - LINE * lines;
    memcpy(out->line, from + size - out->held, LINE);
}

/* exp(-z) for 0 <= z <= 80 with an error below 2e-7 of the value, as bxs_exp. */
static inline F32 BXS_NAMED(decay)(F32 z) {
    const float shift = 12582912.0f; /* 1.5 * 2^23 */
    const F32 shifted = z * -1.44269504f + shift;
    const F32 k = shifted - shift;
    const F32 r = (-z - k * 0.693359375f) + k * 2.12194440e-4f;
    F32 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (F32)((U32)((I32)shifted + 127) << 23);
}

/* The sum of sigmoid(z) * 2^24 over the cells that are on, and how many those are. The values are
 * integers, so the order of the sum does not matter. */
static void BXS_NAMED(probabilities)(const float *cells, size_t rows, uint32_t columns,
                                     size_t stride, uint64_t *sum, uint64_t *count) {
    const uint32_t steps = (uint32_t)((rows + BXS_LANES - 1) / BXS_LANES);
    I32 low = {0}, high = {0}, on = {0};
    uint32_t added = 0;
    for (uint32_t x = 0; x < columns; x++, cells += stride) {
        for (size_t y = 0; y < rows; y += BXS_LANES) {
            F32 z = {0};
            if (y + BXS_LANES <= rows) {
                z = BXS_NAMED(load)(cells + y);
            } else {
                memcpy(&z, cells + y, (rows - y) * sizeof *cells);
            }
            const I32 is_on = z > 0.0f;
            const F32 limited = F32_MIN(F32_MAX(z, (F32){0}), 80.0f - (F32){0});
            const F32 p = 16777216.0f / (1.0f + BXS_NAMED(decay)(limited));
            const I32 value = __builtin_convertvector(p, I32) & is_on;
            low += value & 0xfff;
            high += value >> 12;
            on -= is_on;
        }
        added += steps;
        /* a lane of `low` holds 2^19 values */
        if (added >= 1u << 18 || x + 1 == columns) {
            for (int l = 0; l < BXS_LANES; l++) {
                *sum += (uint64_t)(uint32_t)low[l] + ((uint64_t)(uint32_t)high[l] << 12);
                *count += (uint32_t)on[l];
            }
            low = high = on = (I32){0};
            added = 0;
        }
    }
}
