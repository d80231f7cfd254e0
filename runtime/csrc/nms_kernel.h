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
        if (bits == UINT64_MAX) {
            for (size_t j = 0; j < 64; j++) {
                keys[count++] = bxs_key(scores[i + j], (uint32_t)(i + j));
            }
            continue;
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

/* Whether a box's IoU with any box of its class in a chunk is above the threshold t.
 *
 * inter > fl(t' * either), where t' is the float after t, means inter / either > t', because a
 * rounding cannot pass a float: the quotient's float is above t. In the same way
 * inter < fl(t * either) means that it is not. Only in between the quotient is computed. */
static inline int BXS_NAMED(suppresses)(const bxs_kept *kept, const chunk *c, const visitor *v) {
    const F32 zero = {0};
    F32 inter[CHUNK / BXS_LANES], either[CHUNK / BXS_LANES];
    uint32_t above = 0, doubt = 0;
    for (int i = 0; i < CHUNK / BXS_LANES; i++) {
        F32 x1, y1, x2, y2, area;
        U32 classes;
        memcpy(&x1, c->x1 + i * BXS_LANES, sizeof x1);
        memcpy(&y1, c->y1 + i * BXS_LANES, sizeof y1);
        memcpy(&x2, c->x2 + i * BXS_LANES, sizeof x2);
        memcpy(&y2, c->y2 + i * BXS_LANES, sizeof y2);
        memcpy(&area, c->area + i * BXS_LANES, sizeof area);
        memcpy(&classes, c->class_index + i * BXS_LANES, sizeof classes);
        F32 width = F32_MAX(F32_MIN(x2, zero + v->box[2]) - F32_MAX(x1, zero + v->box[0]), zero);
        F32 height = F32_MAX(F32_MIN(y2, zero + v->box[3]) - F32_MAX(y1, zero + v->box[1]), zero);
        inter[i] = width * height;
        either[i] = area + v->area - inter[i];
        doubt |= BITS((inter[i] >= kept->threshold * either[i]) & (classes == v->class_index))
                 << i * BXS_LANES;
    }
    if (doubt == 0) {
        return 0;
    }
    for (int i = 0; i < CHUNK / BXS_LANES; i++) {
        above |= BITS(inter[i] > kept->next_threshold * either[i]) << i * BXS_LANES;
    }
    if ((above & doubt) != 0) {
        return 1;
    }
    for (; doubt != 0; doubt &= doubt - 1) {
        if (iou(c, bxs_trailing_zeros(doubt), v) > kept->threshold) {
            return 1;
        }
    }
    return 0;
}

/* Whether any box of a list of chunks suppresses the visitor. */
static inline int BXS_NAMED(list_suppresses)(const bxs_kept *kept, uint32_t first,
                                             const visitor *v) {
    for (uint32_t i = first; i != NONE; i = kept->links[i].next) {
        if (BXS_NAMED(suppresses)(kept, &kept->chunks[i], v)) {
            return 1;
        }
    }
    return 0;
}

static BXS_NOINLINE int BXS_NAMED(grid_suppresses)(const bxs_kept *kept, const class_list *list,
                                                   const visitor *v) {
    uint32_t x[MAX_CELLS + 3], y[MAX_CELLS + 3], found[2 * BATCH];
    const size_t columns = find_cells(kept, v->box[0], v->box[2], v->width, column_share, x);
    const size_t rows = find_cells(kept, v->box[1], v->box[3], v->height, row_share, y);
    const uint32_t class_part = class_share(v->class_index);
    /* a cell costs about three chunks */
    if (3 * columns * rows > list->count / CHUNK || columns == MAX_CELLS || rows == MAX_CELLS) {
        return BXS_NAMED(list_suppresses)(kept, list->first, v);
    }
    for (size_t i = 0, j = 0; i < columns;) {
        /* first all buckets, then the chunks of all and those that are behind them: branches that
         * cannot be foreseen would cost more than the work between them */
        size_t n = 0;
        while (i < columns && n < BATCH) {
            found[n] = *bucket_of(kept, x[i] + y[j] + class_part);
            n += found[n] != NONE;
            j++;
            i += j == rows;
            j = j == rows ? 0 : j;
        }
        for (size_t k = 0; k < n; k++) {
            const uint32_t next = kept->links[found[k]].next;
            if (BXS_NAMED(suppresses)(kept, &kept->chunks[found[k]], v)) {
                return 1;
            }
            if (n == 2 * BATCH) { /* no room left */
                if (BXS_NAMED(list_suppresses)(kept, next, v)) {
                    return 1;
                }
                continue;
            }
            found[n] = next;
            n += next != NONE;
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
        if (!meet(pairs, bxs_key_index(key), &v)) {
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
