/* SPDX-License-Identifier: MIT */
/*
 * The ring that blocks pass through which do not stay: which block goes where, and when.
 *
 * A stretch of memory with two slots, one from its start on and one up to its end: blocks that
 * follow each other lie in it side by side where both fit, and one after the other where they
 * don't. Pure decisions, without memory or a device: the offload engine (offload.h) carries them
 * out, and the schedule (schedule.h) asks how long that takes.
 */
#ifndef FLUXFS_ENGINE_RING_H
#define FLUXFS_ENGINE_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { RING_SLOTS = 2 };

#define RING_EMPTY ((size_t)-1)

/* `count` blocks are used in order; stays[i]: block i does not pass through the ring. */
struct ring {
    size_t count;
    const bool *stays;
    const uint64_t *bytes;   /* of each block */
    uint64_t size_bytes;     /* at least as long as each that passes */
    bool wrap;               /* the blocks will be used again after the last one */
    size_t held[RING_SLOTS]; /* the block in each slot, or RING_EMPTY */
};

struct ring ring_empty(size_t count, const bool *stays, const uint64_t *bytes, uint64_t size_bytes);

/* The slot that block j is in, or −1. */
int ring_slot(const struct ring *ring, size_t j);

/* Where block j begins in a slot. */
uint64_t ring_offset(const struct ring *ring, int slot, size_t j);

/* While block i is in use: the slot for block j, which takes the place of blocks that will be used
 * last, but not before `least` others; −1 if there is none. Block i itself is never given up. */
int ring_find(const struct ring *ring, size_t i, size_t j, size_t least);

/* Block j takes the slot, and what it overlaps is gone. */
void ring_put(struct ring *ring, int slot, size_t j);

/* While block i is in use: the next block that a slot should be filled with, and that slot; nothing
 * is given up for it that is used before it. False: there is none. */
bool ring_next(const struct ring *ring, size_t i, size_t *j, int *slot);

#endif
