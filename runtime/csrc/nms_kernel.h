/* Collecting scores and testing boxes against the kept ones; compiled per level, see simd.h. */

/* Writes the keys of the scores in low <= score < high, in the order of the scores. */
static size_t BXS_NAMED(collect)(const float *scores, size_t n, float low, float high,
                                 uint64_t *keys) {
    size_t count = 0, i = 0;
    for (; i + 64 <= n; i += 64) {
        uint64_t bits = 0;
        for (size_t j = 0; j < 64; j += BXS_LANES) {
            F32 values;
            memcpy(&values, scores + i + j, sizeof values);
            bits |= (uint64_t)BITS((values >= low) & (values < high)) << j;
        }
        for (; bits != 0; bits &= bits - 1) {
            size_t index = i + bxs_trailing_zeros(bits);
            keys[count++] = bxs_key(scores[index], (uint32_t)index);
        }
    }
    for (; i < n; i++) {
        if (scores[i] >= low && scores[i] < high) {
            keys[count++] = bxs_key(scores[i], (uint32_t)i);
        }
    }
    return count;
}

#if BXS_LANES > CHUNK

/* Wider vectors than a chunk gain nothing here. */
static size_t BXS_NAMED(visit)(bxs_kept *kept, const bxs_pairs *pairs, uint64_t *keys, size_t n,
                               size_t room) {
    return visit_avx2(kept, pairs, keys, n, room);
}

#else

/* Whether a box's IoU with any of the marked lanes is above the threshold t.
 *
 * inter > fl(t' * either), where t' is the float after t, means inter / either > t', because a
 * rounding cannot pass a float: the quotient's float is above t. In the same way
 * inter < fl(t * either) means that it is not. Only in between the quotient is computed. */
static inline int BXS_NAMED(suppresses)(const bxs_kept *kept, const chunk *c, uint32_t marked,
                                        const visitor *v) {
    uint32_t above = 0, doubt = 0;
    for (int i = 0; i < CHUNK; i += BXS_LANES) {
        F32 x1, y1, x2, y2, area;
        memcpy(&x1, c->x1 + i, sizeof x1);
        memcpy(&y1, c->y1 + i, sizeof y1);
        memcpy(&x2, c->x2 + i, sizeof x2);
        memcpy(&y2, c->y2 + i, sizeof y2);
        memcpy(&area, c->area + i, sizeof area);
        const F32 zero = {0};
        F32 width = F32_MAX(F32_MIN(x2, zero + v->box[2]) - F32_MAX(x1, zero + v->box[0]), zero);
        F32 height = F32_MAX(F32_MIN(y2, zero + v->box[3]) - F32_MAX(y1, zero + v->box[1]), zero);
        F32 inter = width * height;
        F32 either = area + v->area - inter;
        above |= BITS(inter > kept->next_threshold * either) << i;
        doubt |= BITS(inter >= kept->threshold * either) << i;
    }
    if ((above & marked) != 0) {
        return 1;
    }
    for (doubt &= marked; doubt != 0; doubt &= doubt - 1) {
        if (iou(c, bxs_trailing_zeros(doubt), v) > kept->threshold) {
            return 1;
        }
    }
    return 0;
}

/* Lanes whose centre is near enough. */
static inline uint32_t BXS_NAMED(near)(const chunk *c, const visitor *v) {
    const I32 magnitude = (I32){0} + 0x7fffffff;
    uint32_t near = 0;
    for (int i = 0; i < CHUNK; i += BXS_LANES) {
        F32 x, y;
        memcpy(&x, c->x + i, sizeof x);
        memcpy(&y, c->y + i, sizeof y);
        F32 dx = (F32)((I32)(x - v->x) & magnitude);
        F32 dy = (F32)((I32)(y - v->y) & magnitude);
        near |= BITS((dx <= v->reach_x) & (dy <= v->reach_y)) << i;
    }
    return near;
}

/* Lanes of a class. */
static inline uint32_t BXS_NAMED(of_class)(const chunk *c, uint32_t class_index) {
    uint32_t lanes = 0;
    for (int i = 0; i < CHUNK; i += BXS_LANES) {
        U32 classes;
        memcpy(&classes, c->class_index + i, sizeof classes);
        lanes |= BITS(classes == class_index) << i;
    }
    return lanes;
}

/* Whether any box of a list of chunks suppresses the visitor. */
static inline int BXS_NAMED(list_suppresses)(const bxs_kept *kept, uint32_t first,
                                             const visitor *v) {
    for (uint32_t i = first; i != NONE; i = kept->links[i].next) {
        const chunk *c = &kept->chunks[i];
        const uint32_t near = BXS_NAMED(near)(c, v);
        if (near != 0 &&
            BXS_NAMED(suppresses)(kept, c, near & BXS_NAMED(of_class)(c, v->class_index), v)) {
            return 1;
        }
    }
    return 0;
}

static BXS_NOINLINE int BXS_NAMED(grid_suppresses)(const bxs_kept *kept, const class_list *list,
                                                   const visitor *v) {
    span x[MAX_SPANS], y[MAX_SPANS];
    size_t columns, rows;
    const size_t n_x =
        find_spans(kept, v->box[0], v->box[2], v->width, kept->reach * v->width, x, &columns);
    const size_t n_y =
        find_spans(kept, v->box[1], v->box[3], v->height, kept->reach * v->height, y, &rows);
    if (3 * columns * rows > list->count / CHUNK) { /* a cell costs about three chunks */
        return BXS_NAMED(list_suppresses)(kept, list->first, v);
    }
    for (size_t i = 0; i < n_x; i++) {
        for (size_t j = 0; j < n_y; j++) {
            for (int32_t column = x[i].low; column <= x[i].high; column++) {
                for (int32_t row = y[j].low; row <= y[j].high; row++) {
                    const uint32_t bucket =
                        *bucket_of(kept, v->class_index, x[i].power, y[j].power, column, row);
                    if (BXS_NAMED(list_suppresses)(kept, bucket, v)) {
                        return 1;
                    }
                }
            }
        }
    }
    return 0;
}

/* Visits sorted keys; see bxs_kept_visit. */
static size_t BXS_NAMED(visit)(bxs_kept *kept, const bxs_pairs *pairs, uint64_t *keys, size_t n,
                               size_t room) {
    size_t count = 0;
    for (size_t i = 0; i < n && count < room; i++) {
        const uint64_t key = keys[i];
        if (i + AHEAD < n) {
            BXS_PREFETCH(box_of(pairs, bxs_key_index(keys[i + AHEAD])));
        }
        visitor v;
        if (!meet(kept, pairs, bxs_key_index(key), &v)) {
            continue;
        }
        const class_list *list = &kept->lists[v.class_index];
        const int uses_grid = list->count >= GRID_FROM && kept->bucket_bits != 0 && v.is_regular;
        if (uses_grid ? BXS_NAMED(grid_suppresses)(kept, list, &v)
                      : BXS_NAMED(list_suppresses)(kept, list->first, &v)) {
            continue;
        }
        append(kept, &v);
        keys[count++] = key;
    }
    return count;
}

#endif
