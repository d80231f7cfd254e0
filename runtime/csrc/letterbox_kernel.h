/* One output row of the letterbox; see simd.h for how this file is compiled.
 *
 * A pixel is 128 bits, four 32-bit lanes of which the last is unused, until its sums are rounded to
 * bytes. Pixels are taken in blocks of BXS_LANES, which are four vectors of pixels side by side:
 * 128-bit parts 0 and 1 of vector j are pixels 2 j and 2 j + 1, and parts 2 and 3 are those of the
 * block's second half. So one load serves two parts, if what they read lies close enough; the
 * portable vector j is pixel j. */

static uint32_t BXS_NAMED(letterbox_lanes)(void) {
    return BXS_LANES;
}

/* ---------------------------------------------------------------- what has no operator
 *
 *   pairs         the bytes r g b R G B of a pixel and its right neighbour as 16-bit lanes
 *                 r R g G b B, for the parts of one vector; reads PAIR_BYTES at offsets[0] and, as
 *                 far as there are such parts, [1], [8] and [9], or, if these are close, for both
 *                 parts of a half at its first; `order` is where a part's bytes are in them
 *   multiply_add  multiplies 16-bit lanes and adds neighbours to 32 bits
 *   narrow        the sums of a block, rounded, as one vector of bytes
 *   halve         the same from a block of 2 x 2 pixels each, of a frame reduced to half
 *   channel       one channel of that, a lane per pixel
 *   put_bytes     writes it as 3 bytes per pixel */
#if BXS_LANES == 16

#define LOAD_PARTS(row, a, b, c, d)                                                                \
    _mm512_inserti64x4(                                                                            \
        _mm512_castsi256_si512(_mm256_inserti128_si256(                                            \
            _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)((row) + (a)))),               \
            _mm_loadu_si128((const __m128i *)((row) + (b))), 1)),                                  \
        _mm256_inserti128_si256(                                                                   \
            _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)((row) + (c)))),               \
            _mm_loadu_si128((const __m128i *)((row) + (d))), 1),                                   \
        1)

static inline I32 BXS_NAMED(pairs)(const uint8_t *row, const uint32_t *offsets, I32 order,
                                   int is_close) {
    const __m512i bytes =
        is_close ? _mm512_mask_broadcast_i32x4(
                       _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(row + offsets[0]))),
                       0xff00, _mm_loadu_si128((const __m128i *)(row + offsets[8])))
                 : LOAD_PARTS(row, offsets[0], offsets[1], offsets[8], offsets[9]);
    return (I32)_mm512_shuffle_epi8(bytes, (__m512i)order);
}

static inline I32 BXS_NAMED(multiply_add)(I32 a, I32 b) {
    return (I32)_mm512_madd_epi16((__m512i)a, (__m512i)b);
}

/* A part's bytes are r r g g b b . . of pixels 0 and 1, then of pixels 2 and 3. */
static inline I32 BXS_NAMED(narrow)(const I32 sums[4]) {
    /* below 2 ** 16 the sums do not matter: a half is 32 of what remains, times 2 ** 16 */
    const __m512i apart = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, 8, 2, 10, 4, 12, -1, -1, 1, 9, 3, 11, 5, 13, -1, -1));
    const __m512i low = _mm512_mask_blend_epi16(
        0xAAAAAAAAu, _mm512_srli_epi32((__m512i)sums[0], 16), (__m512i)sums[1]);
    const __m512i high = _mm512_mask_blend_epi16(
        0xAAAAAAAAu, _mm512_srli_epi32((__m512i)sums[2], 16), (__m512i)sums[3]);
    const __m512i sixty_fourth = _mm512_set1_epi16(1 << 9);
    /* pixels 0 2 and 4 6 in one part, 1 3 and 5 7 in the next */
    const __m512i mixed = _mm512_packus_epi16(_mm512_mulhrs_epi16(low, sixty_fourth),
                                              _mm512_mulhrs_epi16(high, sixty_fourth));
    return (I32)_mm512_shuffle_epi8(_mm512_permutex_epi64(mixed, 0xd8), apart);
}

static inline I32 BXS_NAMED(halve)(const uint8_t *upper, const uint8_t *lower) {
    const __m512i first =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1));
    const __m512i second = _mm512_broadcast_i32x4(
        _mm_setr_epi8(4, 7, 10, 13, 5, 8, 11, 14, 6, 9, 12, 15, -1, -1, -1, -1));
    const __m512i one = _mm512_set1_epi8(1), fourth = _mm512_set1_epi16(1 << 13);
#define ADD_NEIGHBOURS(row, at, order)                                                             \
    _mm512_maddubs_epi16(                                                                          \
        _mm512_shuffle_epi8(LOAD_PARTS(row, (at), (at) + 24, (at) + 48, (at) + 72), order), one)
    const __m512i low =
        _mm512_add_epi16(ADD_NEIGHBOURS(upper, 0, first), ADD_NEIGHBOURS(lower, 0, first));
    const __m512i high =
        _mm512_add_epi16(ADD_NEIGHBOURS(upper, 8, second), ADD_NEIGHBOURS(lower, 8, second));
#undef ADD_NEIGHBOURS
    return (I32)_mm512_packus_epi16(_mm512_mulhrs_epi16(low, fourth),
                                    _mm512_mulhrs_epi16(high, fourth));
}

static inline I32 BXS_NAMED(channel)(I32 block, int c) {
    const __m512i orders[3] = {_mm512_broadcast_i32x4(_mm_setr_epi8(0, -1, -1, -1, 1, -1, -1, -1, 8,
                                                                    -1, -1, -1, 9, -1, -1, -1)),
                               _mm512_broadcast_i32x4(_mm_setr_epi8(
                                   2, -1, -1, -1, 3, -1, -1, -1, 10, -1, -1, -1, 11, -1, -1, -1)),
                               _mm512_broadcast_i32x4(_mm_setr_epi8(
                                   4, -1, -1, -1, 5, -1, -1, -1, 12, -1, -1, -1, 13, -1, -1, -1))};
    return (I32)_mm512_shuffle_epi8((__m512i)block, orders[c]);
}

static inline void BXS_NAMED(put_bytes)(I32 block, int is_bgr, uint8_t *out) {
    const __m512i order = _mm512_broadcast_i32x4(
        is_bgr ? _mm_setr_epi8(4, 2, 0, 5, 3, 1, 12, 10, 8, 13, 11, 9, -1, -1, -1, -1)
               : _mm_setr_epi8(0, 2, 4, 1, 3, 5, 8, 10, 12, 9, 11, 13, -1, -1, -1, -1));
    const __m512i bytes = _mm512_shuffle_epi8((__m512i)block, order);
    const __m512i together = _mm512_setr_epi32(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 0, 0, 0, 0);
    _mm512_mask_storeu_epi32(out, 0x0fff, _mm512_permutexvar_epi32(together, bytes));
}

#undef LOAD_PARTS

#elif BXS_LANES == 8

#define LOAD_PARTS(row, a, b)                                                                      \
    _mm256_inserti128_si256(                                                                       \
        _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)((row) + (a)))),                   \
        _mm_loadu_si128((const __m128i *)((row) + (b))), 1)

static inline I32 BXS_NAMED(pairs)(const uint8_t *row, const uint32_t *offsets, I32 order,
                                   int is_close) {
    const __m256i bytes =
        is_close ? _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(row + offsets[0])))
                 : LOAD_PARTS(row, offsets[0], offsets[1]);
    return (I32)_mm256_shuffle_epi8(bytes, (__m256i)order);
}

static inline I32 BXS_NAMED(multiply_add)(I32 a, I32 b) {
    return (I32)_mm256_madd_epi16((__m256i)a, (__m256i)b);
}

/* A part's bytes are r r g g b b . . of pixels 0 and 1, then of pixels 2 and 3. */
static inline I32 BXS_NAMED(narrow)(const I32 sums[4]) {
    /* below 2 ** 16 the sums do not matter: a half is 32 of what remains, times 2 ** 16 */
    const __m256i apart = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 8, 2, 10, 4, 12, -1, -1, 1, 9, 3, 11, 5, 13, -1, -1));
    const __m256i low =
        _mm256_blend_epi16(_mm256_srli_epi32((__m256i)sums[0], 16), (__m256i)sums[1], 0xAA);
    const __m256i high =
        _mm256_blend_epi16(_mm256_srli_epi32((__m256i)sums[2], 16), (__m256i)sums[3], 0xAA);
    const __m256i sixty_fourth = _mm256_set1_epi16(1 << 9);
    /* pixels 0 2 and 4 6 in one part, 1 3 and 5 7 in the next */
    const __m256i mixed = _mm256_packus_epi16(_mm256_mulhrs_epi16(low, sixty_fourth),
                                              _mm256_mulhrs_epi16(high, sixty_fourth));
    return (I32)_mm256_shuffle_epi8(_mm256_permute4x64_epi64(mixed, 0xd8), apart);
}

static inline I32 BXS_NAMED(halve)(const uint8_t *upper, const uint8_t *lower) {
    const __m256i first = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1));
    const __m256i second = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(4, 7, 10, 13, 5, 8, 11, 14, 6, 9, 12, 15, -1, -1, -1, -1));
    const __m256i one = _mm256_set1_epi8(1), fourth = _mm256_set1_epi16(1 << 13);
#define ADD_NEIGHBOURS(row, at, order)                                                             \
    _mm256_maddubs_epi16(_mm256_shuffle_epi8(LOAD_PARTS(row, (at), (at) + 24), order), one)
    const __m256i low =
        _mm256_add_epi16(ADD_NEIGHBOURS(upper, 0, first), ADD_NEIGHBOURS(lower, 0, first));
    const __m256i high =
        _mm256_add_epi16(ADD_NEIGHBOURS(upper, 8, second), ADD_NEIGHBOURS(lower, 8, second));
#undef ADD_NEIGHBOURS
    return (I32)_mm256_packus_epi16(_mm256_mulhrs_epi16(low, fourth),
                                    _mm256_mulhrs_epi16(high, fourth));
}

static inline I32 BXS_NAMED(channel)(I32 block, int c) {
    const __m256i orders[3] = {_mm256_broadcastsi128_si256(_mm_setr_epi8(
                                   0, -1, -1, -1, 1, -1, -1, -1, 8, -1, -1, -1, 9, -1, -1, -1)),
                               _mm256_broadcastsi128_si256(_mm_setr_epi8(
                                   2, -1, -1, -1, 3, -1, -1, -1, 10, -1, -1, -1, 11, -1, -1, -1)),
                               _mm256_broadcastsi128_si256(_mm_setr_epi8(
                                   4, -1, -1, -1, 5, -1, -1, -1, 12, -1, -1, -1, 13, -1, -1, -1))};
    return (I32)_mm256_shuffle_epi8((__m256i)block, orders[c]);
}

static inline void BXS_NAMED(put_bytes)(I32 block, int is_bgr, uint8_t *out) {
    const __m256i order = _mm256_broadcastsi128_si256(
        is_bgr ? _mm_setr_epi8(4, 2, 0, 5, 3, 1, 12, 10, 8, 13, 11, 9, -1, -1, -1, -1)
               : _mm_setr_epi8(0, 2, 4, 1, 3, 5, 8, 10, 12, 9, 11, 13, -1, -1, -1, -1));
    const __m256i bytes = _mm256_shuffle_epi8((__m256i)block, order);
    const __m128i second = _mm256_extracti128_si256(bytes, 1);
    /* the last 4 bytes of the first store are written anew */
    _mm_storeu_si128((__m128i *)out, _mm256_castsi256_si128(bytes));
    _mm_storel_epi64((__m128i *)(out + 12), second);
    const int32_t last = _mm_extract_epi32(second, 2);
    memcpy(out + 20, &last, 4);
}

#undef LOAD_PARTS

#else

static inline I32 BXS_NAMED(pairs)(const uint8_t *row, const uint32_t *offsets, I32 order,
                                   int is_close) {
    (void)order;
    (void)is_close;
#if BXS_X86
    const __m128i bytes = _mm_loadl_epi64((const __m128i *)(row + offsets[0]));
    const __m128i words = _mm_unpacklo_epi8(bytes, _mm_setzero_si128());
    return (I32)_mm_unpacklo_epi16(words, _mm_srli_si128(words, 6));
#else
    const uint8_t *at = row + offsets[0];
    const I32 left = {at[0], at[1], at[2], 0};
    const I32 right = {at[3], at[4], at[5], 0};
    return left | right << 16;
#endif
}

static inline I32 BXS_NAMED(multiply_add)(I32 a, I32 b) {
#if BXS_X86
    return (I32)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    return (a & 0xffff) * (b & 0xffff) + (a >> 16) * (b >> 16); /* nothing here is negative */
#endif
}

/* A lane is r g b . of a pixel. */
static inline I32 BXS_NAMED(narrow)(const I32 sums[4]) {
    I32 pixels[4];
    for (int j = 0; j < 4; j++) {
        pixels[j] = (sums[j] + (1 << (2 * WEIGHT_BITS - 1))) >> (2 * WEIGHT_BITS);
    }
#if BXS_X86
    return (I32)_mm_packus_epi16(_mm_packs_epi32((__m128i)pixels[0], (__m128i)pixels[1]),
                                 _mm_packs_epi32((__m128i)pixels[2], (__m128i)pixels[3]));
#else
    I32 block;
    for (int j = 0; j < 4; j++) {
        block[j] = pixels[j][0] | pixels[j][1] << 8 | pixels[j][2] << 16;
    }
    return block;
#endif
}

static inline I32 BXS_NAMED(channel)(I32 block, int c) {
    return block >> 8 * c & 255;
}

static inline void BXS_NAMED(put_bytes)(I32 block, int is_bgr, uint8_t *out) {
    for (int i = 0; i < 12; i++) {
        const int c = is_bgr ? 2 - i % 3 : i % 3;
        out[i] = (uint8_t)(block[i / 3] >> 8 * c);
    }
}

#endif

/* ---------------------------------------------------------------- rows */

/* The block at output pixel x. */
static inline I32 BXS_NAMED(blend)(const letterbox_row *row, uint32_t x, int is_close) {
    const I32 lower_weight = (I32){0} + row->weight;
    const I32 upper_weight = WEIGHT_ONE - lower_weight;
    I32 sums[4];
    for (uint32_t j = 0; j < 4; j++) {
        const uint32_t *offsets = row->offsets + x + (BXS_LANES > 4 ? 2 * j : j);
        const size_t at = 4 * (size_t)x + (size_t)j * BXS_LANES;
        I32 weights, order;
        memcpy(&weights, row->weights + at, sizeof weights);
        memcpy(&order, row->orders + at, sizeof order);
        const I32 upper = BXS_NAMED(multiply_add)(
            BXS_NAMED(pairs)(row->upper, offsets, order, is_close), weights);
        const I32 lower = BXS_NAMED(multiply_add)(
            BXS_NAMED(pairs)(row->lower, offsets, order, is_close), weights);
        sums[j] = upper * upper_weight + lower * lower_weight;
    }
    return BXS_NAMED(narrow)(sums);
}

/* How many pixels can be reduced to half in whole blocks. */
static inline uint32_t BXS_NAMED(halves)(const letterbox_row *row) {
    return BXS_LANES > 4 && row->is_half ? row->width / BXS_LANES * BXS_LANES : 0;
}

static void BXS_NAMED(letterbox_bytes)(const letterbox_row *given, int is_bgr, uint8_t *out) {
    const letterbox_row own = *given, *row = &own; /* what is stored cannot change it */
    uint32_t x = 0;
#if BXS_LANES > 4
    for (; x < BXS_NAMED(halves)(row); x += BXS_LANES) {
        const size_t at = 6 * (size_t)x;
        BXS_NAMED(put_bytes)(BXS_NAMED(halve)(row->upper + at, row->lower + at), is_bgr,
                             out + at / 2);
    }
#endif
    if (row->is_close) {
        for (; row->width - x >= BXS_LANES; x += BXS_LANES) {
            BXS_NAMED(put_bytes)(BXS_NAMED(blend)(row, x, 1), is_bgr, out + 3 * (size_t)x);
        }
    }
    for (; row->width - x >= BXS_LANES; x += BXS_LANES) {
        BXS_NAMED(put_bytes)(BXS_NAMED(blend)(row, x, 0), is_bgr, out + 3 * (size_t)x);
    }
    if (x < row->width) {
        uint8_t last[3 * BXS_LANES];
        BXS_NAMED(put_bytes)(BXS_NAMED(blend)(row, x, row->is_close), is_bgr, last);
        memcpy(out + 3 * (size_t)x, last, 3 * (size_t)(row->width - x));
    }
}

/* What floats are made with, by byte of a pixel. */
typedef struct {
    F32 mean[3], scale[3];
} BXS_NAMED(normal);

static inline F32 BXS_NAMED(normalise)(I32 block, const BXS_NAMED(normal) * by, int c) {
    const F32 bytes = __builtin_convertvector(BXS_NAMED(channel)(block, c), F32);
    return (bytes - by->mean[c]) * by->scale[c];
}

static inline void BXS_NAMED(put_floats)(I32 block, const BXS_NAMED(normal) * by,
                                         float *const planes[3], uint32_t x) {
    for (int c = 0; c < 3; c++) {
        const F32 values = BXS_NAMED(normalise)(block, by, c);
        memcpy(planes[c] + x, &values, sizeof values);
    }
}

/* `planes` take the first, second and third byte of a pixel. */
static void BXS_NAMED(letterbox_floats)(const letterbox_row *given, const float mean[3],
                                        const float scale[3], float *const planes[3]) {
    const letterbox_row own = *given, *row = &own; /* what is stored cannot change it */
    BXS_NAMED(normal) by;
    for (int c = 0; c < 3; c++) {
        by.mean[c] = (F32){0} + mean[c];
        by.scale[c] = (F32){0} + scale[c];
    }
    float *const to[3] = {planes[0], planes[1], planes[2]};
    uint32_t x = 0;
#if BXS_LANES > 4
    for (const uint32_t end = BXS_NAMED(halves)(row); x < end; x += BXS_LANES) {
        const size_t at = 6 * (size_t)x;
        BXS_NAMED(put_floats)(BXS_NAMED(halve)(row->upper + at, row->lower + at), &by, to, x);
    }
#endif
    if (row->is_close) {
        for (; row->width - x >= BXS_LANES; x += BXS_LANES) {
            BXS_NAMED(put_floats)(BXS_NAMED(blend)(row, x, 1), &by, to, x);
        }
    }
    for (; row->width - x >= BXS_LANES; x += BXS_LANES) {
        BXS_NAMED(put_floats)(BXS_NAMED(blend)(row, x, 0), &by, to, x);
    }
    if (x < row->width) {
        const I32 block = BXS_NAMED(blend)(row, x, row->is_close);
        for (int c = 0; c < 3; c++) {
            const F32 values = BXS_NAMED(normalise)(block, &by, c);
            memcpy(planes[c] + x, &values, (row->width - x) * sizeof(float));
        }
    }
}

static void BXS_NAMED(fill)(float *out, size_t n, float value) {
    const F32 values = (F32){0} + value;
    size_t i = 0;
    for (; n - i >= BXS_LANES; i += BXS_LANES) {
        memcpy(out + i, &values, sizeof values);
    }
    for (; i < n; i++) {
        out[i] = value;
    }
}

/* ---------------------------------------------------------------- luma and chroma */

static inline I32 BXS_NAMED(limit)(I32 sums) {
    const I32 bytes = (sums & ~(sums >> 31)) >> 16;
    const I32 is_more = bytes > 255;
    return (bytes & ~is_more) | (255 & is_more);
}

/* Pairs of pixels, BXS_LANES of them, as 6 bytes each. */
static inline void BXS_NAMED(put_yuv)(const yuv_factors *by, const I32 luma[2], I32 u, I32 v,
                                      uint8_t *out) {
    I32 rgb[2];
    u -= 128;
    v -= 128;
    for (int i = 0; i < 2; i++) {
        const I32 y = (luma[i] - by->black) * by->luma + (1 << 15);
        rgb[i] = BXS_NAMED(limit)(y + v * by->v_red) |
                 BXS_NAMED(limit)(y - u * by->u_green - v * by->v_green) << 8 |
                 BXS_NAMED(limit)(y + u * by->u_blue) << 16;
    }
    const I32 first = rgb[0] | rgb[1] << 24;
    const I32 second = rgb[1] >> 8;
    for (int i = 0; i < BXS_LANES; i++) {
        const int32_t four = first[i];
        const uint16_t two = (uint16_t)second[i];
        memcpy(out + 6 * i, &four, 4);
        memcpy(out + 6 * i + 4, &two, 2);
    }
}

typedef uint16_t BXS_NAMED(words) __attribute__((vector_size(2 * BXS_LANES)));

static inline I32 BXS_NAMED(load_words)(const uint8_t *from) {
    BXS_NAMED(words) words;
    memcpy(&words, from, sizeof words);
    return __builtin_convertvector(words, I32);
}

/* Whole blocks of a row as bytes R, G, B; returns how many pixels these are. */
static uint32_t BXS_NAMED(convert_yuv)(const yuv_row *row, const yuv_factors *by, uint32_t width,
                                       uint8_t *out) {
    uint32_t x = 0;
    for (; width - x >= 2 * BXS_LANES; x += 2 * BXS_LANES) {
        I32 luma[2], u, v;
        if (row->chroma == NULL) {
            I32 y_u_y_v;
            memcpy(&y_u_y_v, row->luma + 2 * (size_t)x, sizeof y_u_y_v);
            luma[0] = y_u_y_v & 255;
            luma[1] = y_u_y_v >> 16 & 255;
            u = y_u_y_v >> 8 & 255;
            v = y_u_y_v >> 24 & 255;
        } else {
            const I32 y_y = BXS_NAMED(load_words)(row->luma + x);
            const I32 u_v = BXS_NAMED(load_words)(row->chroma + x);
            luma[0] = y_y & 255;
            luma[1] = y_y >> 8;
            u = u_v & 255;
            v = u_v >> 8;
        }
        BXS_NAMED(put_yuv)(by, luma, u, v, out + 3 * (size_t)x);
    }
    return x;
}
