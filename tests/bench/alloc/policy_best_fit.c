/* SPDX-License-Identifier: MIT */
#include "policy.h"

#include <stdlib.h>
#include <string.h>

enum { ROUNDING = 512, SEGMENT_ROUNDING = 2 << 20 };

/* A piece of a segment; pieces of one segment are linked in address order. */
struct piece {
    struct piece *before, *after;
    uint64_t bytes;
    bool used;
};

/* Free pieces, shortest first. */
struct pool {
    struct piece **pieces;
    size_t count, capacity;
};

struct best_fit {
    uint64_t budget, reserved, peak, free_bytes, driver_calls;
    struct piece **blocks; /* by block */
    uint64_t block_count;
    struct pool pool;
};

static void *best_fit_create(const struct policy_options *options)
{
    struct best_fit *state = calloc(1, sizeof *state);

    if (!state || !(state->blocks = calloc(options->block_count, sizeof(struct piece *))))
        abort();
    state->budget = options->budget_bytes;
    state->block_count = options->block_count;
    return state;
}

/* The first place whose piece is at least as long. */
static size_t pool_find(const struct pool *pool, uint64_t bytes)
{
    size_t low = 0, high = pool->count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (pool->pieces[middle]->bytes < bytes)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void pool_add(struct best_fit *state, struct piece *piece)
{
    struct pool *pool = &state->pool;
    size_t at = pool_find(pool, piece->bytes);

    if (pool->count == pool->capacity) {
        pool->capacity = pool->capacity > 0 ? 2 * pool->capacity : 64;
        pool->pieces = realloc(pool->pieces, pool->capacity * sizeof(struct piece *));
        if (!pool->pieces)
            abort();
    }
    memmove(&pool->pieces[at + 1], &pool->pieces[at], (pool->count - at) * sizeof(struct piece *));
    pool->pieces[at] = piece;
    pool->count++;
    piece->used = false;
    state->free_bytes += piece->bytes;
}

static void pool_remove(struct best_fit *state, struct piece *piece)
{
    struct pool *pool = &state->pool;
    size_t at = pool_find(pool, piece->bytes);

    while (pool->pieces[at] != piece)
        at++;
    pool->count--;
    memmove(&pool->pieces[at], &pool->pieces[at + 1], (pool->count - at) * sizeof(struct piece *));
    state->free_bytes -= piece->bytes;
}

static void release_free_segments(struct best_fit *state)
{
    struct pool *pool = &state->pool;
    size_t kept = 0;

    for (size_t i = 0; i < pool->count; i++) {
        struct piece *piece = pool->pieces[i];
        if (piece->before || piece->after) {
            pool->pieces[kept++] = piece;
            continue;
        }
        state->reserved -= piece->bytes;
        state->free_bytes -= piece->bytes;
        state->driver_calls++;
        free(piece);
    }
    pool->count = kept;
}

static struct piece *add_segment(struct best_fit *state, uint64_t bytes)
{
    uint64_t segment = (bytes + SEGMENT_ROUNDING - 1) / SEGMENT_ROUNDING * SEGMENT_ROUNDING;
    struct piece *piece;

    if (state->reserved + segment > state->budget)
        release_free_segments(state);
    if (state->reserved + segment > state->budget)
        return NULL;
    state->reserved += segment;
    state->driver_calls++;
    if (state->reserved > state->peak)
        state->peak = state->reserved;
    piece = calloc(1, sizeof *piece);
    if (!piece)
        abort();
    piece->bytes = segment;
    pool_add(state, piece);
    return piece;
}

static void split(struct best_fit *state, struct piece *piece, uint64_t bytes)
{
    struct piece *rest;

    if (piece->bytes == bytes)
        return;
    rest = calloc(1, sizeof *rest);
    if (!rest)
        abort();
    *rest = (struct piece){piece, piece->after, piece->bytes - bytes, false};
    if (piece->after)
        piece->after->before = rest;
    piece->after = rest;
    piece->bytes = bytes;
    pool_add(state, rest);
}

static bool best_fit_alloc(void *state_pointer, uint64_t block, uint64_t bytes, int stream)
{
    struct best_fit *state = state_pointer;
    struct pool *pool = &state->pool;
    struct piece *piece;
    size_t at;

    bytes = (bytes + ROUNDING - 1) / ROUNDING * ROUNDING;
    at = pool_find(pool, bytes);
    piece = at < pool->count ? pool->pieces[at] : add_segment(state, bytes);
    if (!piece)
        return false;
    pool_remove(state, piece);
    piece->used = true;
    split(state, piece, bytes);
    state->blocks[block] = piece;
    return true;
}

/* Takes the piece behind `piece` into it. */
static void absorb(struct piece *piece)
{
    struct piece *gone = piece->after;

    piece->bytes += gone->bytes;
    piece->after = gone->after;
    if (gone->after)
        gone->after->before = piece;
    free(gone);
}

static void best_fit_free(void *state_pointer, uint64_t block)
{
    struct best_fit *state = state_pointer;
    struct piece *piece = state->blocks[block];

    state->blocks[block] = NULL;
    if (piece->after && !piece->after->used) {
        pool_remove(state, piece->after);
        absorb(piece);
    }
    if (piece->before && !piece->before->used) {
        piece = piece->before;
        pool_remove(state, piece);
        absorb(piece);
    }
    pool_add(state, piece);
}

static void best_fit_describe(void *state_pointer, struct policy_state *description)
{
    const struct best_fit *state = state_pointer;
    const struct pool *pool = &state->pool;
    uint64_t largest = pool->count > 0 ? pool->pieces[pool->count - 1]->bytes : 0;

    *description = (struct policy_state){state->reserved, state->peak, state->free_bytes, largest,
                                         state->driver_calls};
}

static void best_fit_destroy(void *state_pointer)
{
    struct best_fit *state = state_pointer;

    for (uint64_t i = 0; i < state->block_count; i++) {
        if (state->blocks[i])
            best_fit_free(state, i);
    }
    release_free_segments(state);
    free(state->pool.pieces);
    free(state->blocks);
    free(state);
}

const struct policy policy_best_fit = {
    "best fit with splitting", best_fit_create,  best_fit_alloc, best_fit_free,
    best_fit_describe,         best_fit_destroy,
};
