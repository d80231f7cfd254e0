/* Hands out aligned pieces of the caller's scratch buffer. */
#ifndef BXS_ARENA_H
#define BXS_ARENA_H

#include <stddef.h>
#include <stdint.h>

#define BXS_ALIGNMENT ((size_t)64)

/* Bytes that a piece takes, alignment included. */
static inline size_t bxs_piece(size_t bytes) {
    return (bytes + BXS_ALIGNMENT - 1) / BXS_ALIGNMENT * BXS_ALIGNMENT;
}

/* A scratch size counts one alignment more than its pieces, because the buffer starts anywhere. */
static inline size_t bxs_scratch_total(size_t pieces) {
    return pieces + BXS_ALIGNMENT;
}

typedef struct {
    unsigned char *next;
} bxs_arena;

static inline bxs_arena bxs_arena_open(void *scratch) {
    uintptr_t address = (uintptr_t)scratch;
    size_t gap = (BXS_ALIGNMENT - (size_t)(address % BXS_ALIGNMENT)) % BXS_ALIGNMENT;
    bxs_arena arena;
    arena.next = (unsigned char *)scratch + gap;
    return arena;
}

static inline void *bxs_arena_take(bxs_arena *arena, size_t bytes) {
    void *piece = arena->next;
    arena->next += bxs_piece(bytes);
    return piece;
}

#endif
