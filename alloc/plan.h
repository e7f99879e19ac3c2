/* SPDX-License-Identifier: MIT */
/*
 * Offline placement: buffers whose lifetimes are known beforehand get fixed offsets in one block,
 * such that buffers alive at the same time don't overlap. Finding the shortest such block is
 * NP-hard; this packs greedily in several orders and keeps the best, and says how far from the
 * lower bound that is (usually 0).
 */
#ifndef FLUXFS_ALLOC_PLAN_H
#define FLUXFS_ALLOC_PLAN_H

#include <stddef.h>
#include <stdint.h>

struct plan_buffer {
    uint64_t bytes;               /* 0 is allowed and takes no room */
    uint32_t first_use, last_use; /* steps, both included: first_use ≤ last_use */
};

struct plan_result {
    uint64_t total_bytes;       /* length of the block */
    uint64_t lower_bound_bytes; /* most bytes (aligned) alive at one step: no plan is shorter */
};

/* Sets offsets[i] (multiples of `alignment`, a power of two) for each of `count` buffers. Takes
 * time of the order of count²; deterministic. -EINVAL: a lifetime runs backwards or the alignment
 * is no power of two; -EOVERFLOW: the sizes add up to more than 2⁶³; -ENOMEM. */
int plan_solve(const struct plan_buffer *buffers, size_t count, uint64_t alignment,
               uint64_t *offsets, struct plan_result *result);

enum plan_fault_kind {
    PLAN_SOUND,
    PLAN_LIFETIME,   /* buffer `a` is used last before it is used first */
    PLAN_MISALIGNED, /* buffer `a` */
    PLAN_OUTSIDE,    /* buffer `a` reaches beyond the block */
    PLAN_OVERLAP,    /* buffers `a` and `b` share bytes at a step */
};

struct plan_fault {
    enum plan_fault_kind kind;
    size_t a, b;
};

/* Whether the offsets are sound; shares no code with plan_solve. 0, or -EINVAL with the first fault
 * found in `fault` (may be NULL). */
int plan_validate(const struct plan_buffer *buffers, size_t count, uint64_t alignment,
                  const uint64_t *offsets, uint64_t total_bytes, struct plan_fault *fault);

#endif
