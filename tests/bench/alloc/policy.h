/* SPDX-License-Identifier: MIT */
/*
 * Allocators to compare on one trace: ours, and simulations of how others decide. Blocks are
 * numbered by the caller; no memory is behind them.
 */
#ifndef FLUXFS_TESTS_BENCH_POLICY_H
#define FLUXFS_TESTS_BENCH_POLICY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct policy_state {
    uint64_t reserved_bytes, peak_reserved_bytes;
    uint64_t free_bytes;    /* held and not allocated, wherever */
    uint64_t largest_bytes; /* longest run obtainable without growing */
    uint64_t driver_calls;  /* to take memory, give it back, map, unmap */
};

struct policy_options {
    uint64_t budget_bytes, block_count;
    uint64_t page_bytes; /* of the arena; others round as they do */
};

struct policy {
    const char *name;
    void *(*create)(const struct policy_options *options);
    bool (*alloc)(void *state, uint64_t block, uint64_t bytes, int stream);
    void (*free)(void *state, uint64_t block);
    void (*describe)(void *state, struct policy_state *description);
    void (*destroy)(void *state);
};

/* Freed blocks are kept and serve requests of their own size only; nothing is ever split, and given
 * back never or, with `flush`, when the budget is reached. */
extern const struct policy policy_exact, policy_exact_flush;

/* Segments that are split to the byte (to 512 of them) and coalesced, one pool for all streams, the
 * shortest piece that is long enough; segments wholly free are given back when the budget is
 * reached. */
extern const struct policy policy_best_fit;

/* PyTorch's caching allocator as a model: by default, and with expandable segments. */
extern const struct policy policy_pytorch, policy_pytorch_expandable;

/* The arena of alloc/ over pages without memory. */
extern const struct policy policy_arena;

#endif
