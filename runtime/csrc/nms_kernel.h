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
        const uint32_t lane = bxs_trailing_zeros(doubt);
        const float box[4] = {c->x1[lane], c->y1[lane], c->x2[lane], c->y2[lane]};
        if (iou(box, v->box, c->area[lane] + v->area) > kept->threshold) {
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

/* Compares a box with BXS_LANES others; see `suppresses`. */
#define COMPARE_WITH(box, box_area)                                                                \
    const F32 width = F32_MAX(F32_MIN(x2, (box)[2] - zero) - F32_MAX(x1, (box)[0] - zero), zero);  \
    const F32 height = F32_MAX(F32_MIN(y2, (box)[3] - zero) - F32_MAX(y1, (box)[1] - zero), zero); \
    const F32 inter = width * height;                                                              \
    const F32 either = area + (box_area) - inter;                                                  \
    const I32 is_above = inter > kept->next_threshold * either;                                    \
    const I32 is_near = inter >= kept->threshold * either

/* Visits all boxes of a class, BXS_LANES at once: first all of them against each kept one, then one
 * another. So nearly no branch depends on the boxes. */
static void BXS_NAMED(keep_of_class)(const bxs_kept *kept, const members *all, size_t room,
                                     uint8_t *is_kept) {
    const F32 zero = {0};
    size_t count = 0;
    for (size_t first = 0; first < all->n && count < room; first += BXS_LANES) {
        const size_t rest = all->n - first;
        const uint32_t lanes = (uint32_t)(rest < BXS_LANES ? rest : BXS_LANES);
        float *boxes = all->boxes + 4 * first, *areas = all->areas + first;
        F32 columns[4];
        F32_COLUMNS(boxes, columns);
        const F32 x1 = columns[0], y1 = columns[1], x2 = columns[2], y2 = columns[3];
        const F32 area = (x2 - x1) * (y2 - y1);
        memcpy(areas, &area, sizeof area);
        I32 above = {0}, near = {0};
        for (size_t i = 0; i < count; i++) {
            COMPARE_WITH(all->boxes + 4 * i, all->areas[i]);
            above |= is_above;
            near |= is_near;
        }
        const F32 most = zero + BXS_FLOAT_MAX;
        const uint32_t valid = BITS((x1 >= -most) & (x2 <= most) & (x1 < x2) & (y1 >= -most) &
                                    (y2 <= most) & (y1 < y2)) &
                               ((1u << lanes) - 1);
        uint32_t left = valid & ~BITS(above);
        uint32_t doubt = left & BITS(near);
        for (uint32_t lane = 0; lane < lanes; lane++) {
            COMPARE_WITH(boxes + 4 * lane, areas[lane]);
            const uint32_t later = valid & (~1u << lane);
            const uint32_t beaten = BITS(is_above) & later;
            doubt |= BITS(is_near) & later & ~beaten;
            left &= ~(beaten & (0u - (left >> lane & 1)));
        }
        if (doubt != 0) {
            left = keep_in_doubt(kept, all, count, first, valid);
        }
        for (uint32_t lane = 0; lane < lanes; lane++) {
            const uint32_t stays = left >> lane & 1;
            memcpy(all->boxes + 4 * count, boxes + 4 * lane, 4 * sizeof(float));
            all->areas[count] = areas[lane];
            is_kept[all->ranks[first + lane]] = (uint8_t)stays;
            count += stays;
        }
    }
}

#undef COMPARE_WITH
