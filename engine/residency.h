/* SPDX-License-Identifier: MIT */
/*
 * Which blocks of a pass stay on the device, and which pass through the ring (ring.h).
 *
 * Pure arithmetic, without a device: what there is to decide under a budget is decided here.
 */
#ifndef FLUXFS_ENGINE_RESIDENCY_H
#define FLUXFS_ENGINE_RESIDENCY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Blocks that are used in order again and again, and the memory for them. */
struct residency_case {
    const uint64_t *bytes; /* of each block, as it lies in a slot */
    const uint64_t *held;  /* what it takes where it stays, with rounding */
    size_t count;
    uint64_t room;
    uint64_t page_bytes; /* the ring is rounded up to these */

    /* Seconds to compute with each block, and to copy a byte, as measured; NULL: not yet known. */
    const double *compute_s;
    double copy_byte_s;
    bool in_turn; /* as in schedule.h */
};

struct residency {
    uint64_t resident_bytes; /* held */
    uint64_t ring_bytes;     /* 0 if all stay */
    uint64_t streamed_bytes;
    size_t resident, streamed;
};

/* Sets resident[i]. Blocks that are streamed lie evenly among the others, so that each copy has
 * computing to hide behind; how long the ring is, and whether blocks stay first that hide least
 * themselves, is what takes least time (schedule.h). -ENOMEM if not even the ring fits. */
int residency_plan(const struct residency_case *c, bool *resident, struct residency *plan);

/* An earlier choice, of which blocks are there. */
struct residency_before {
    const bool *resident; /* NULL: there was none */
    uint64_t ring_bytes;
};

/* The same, but what was chosen before stays if it still fits and is hardly slower: to change it
 * loads blocks anew. */
int residency_replan(const struct residency_case *c, const struct residency_before *before,
                     bool *resident, struct residency *plan);

/* Seconds that a run takes with such residents and such a ring; without figures, in units of
 * computing a byte. */
double residency_period(const struct residency_case *c, const bool *resident, uint64_t ring_bytes);

/* The least room for which there is a plan. */
uint64_t residency_least(const struct residency_case *c);

#endif
