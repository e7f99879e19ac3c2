/* SPDX-License-Identifier: MIT */
/*
 * The ring of slots that blocks pass through which do not stay: which block goes where, and when.
 *
 * Pure decisions, without memory or a device: the offload engine (offload.h) carries them out, and
 * the schedule (schedule.h) asks how long that takes.
 */
#ifndef FLUXFS_ENGINE_RING_H
#define FLUXFS_ENGINE_RING_H

#include <stdbool.h>
#include <stddef.h>

enum { RING_SLOTS = 2 };

#define RING_EMPTY ((size_t)-1)

/* `count` blocks are used in order; stays[i]: block i does not pass through the ring. */
struct ring {
    size_t count;
    const bool *stays;
    bool wrap;               /* the blocks will be used again after the last one */
    size_t held[RING_SLOTS]; /* the block in each slot, or RING_EMPTY */
};

struct ring ring_empty(size_t count, const bool *stays);

/* The slot that block j is in, or −1. */
int ring_slot(const struct ring *ring, size_t j);

/* While block i is in use: the slot whose block will be used last, but not before `least` others;
 * −1 if there is none. Never that of block i itself. */
int ring_find(const struct ring *ring, size_t i, size_t least);

/* While block i is in use: the next block that a slot should be filled with, and that slot, which
 * holds nothing that is used before it. False: there is none. */
bool ring_next(const struct ring *ring, size_t i, size_t *j, int *slot);

#endif
