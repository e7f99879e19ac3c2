/* SPDX-License-Identifier: MIT */
/*
 * The ring that blocks pass through which do not stay: which block goes where, and when.
 *
 * A stretch of memory in which blocks that follow each other lie side by side, as many as fit.
 * Pure decisions, without memory or a device: the offload engine (offload.h) carries them out, and
 * the schedule (schedule.h) asks how long that takes.
 */
#ifndef FLUXFS_ENGINE_RING_H
#define FLUXFS_ENGINE_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { RING_SLOTS = 6 }; /* blocks in it at most */

#define RING_EMPTY ((size_t)-1)

struct ring_slot {
    size_t block; /* or RING_EMPTY */
    uint64_t offset;
};

/* `count` blocks are used in order; stays[i]: block i does not pass through the ring. */
struct ring {
    size_t count;
    const bool *stays;
    const uint64_t *bytes; /* of each block */
    uint64_t size_bytes;   /* at least as long as each that passes */
    bool wrap;             /* the blocks will be used again after the last one */
    uint64_t next;         /* behind the block that was put last */
    struct ring_slot slots[RING_SLOTS];
};

struct ring ring_empty(size_t count, const bool *stays, const uint64_t *bytes, uint64_t size_bytes);

/* The slot that block j is in, or −1. */
int ring_slot(const struct ring *ring, size_t j);

/* While block i is in use: where block j could go: behind the last one, at the start, or elsewhere,
 * in place of blocks that will not be used before `least` others. Block i itself is never given up.
 * False: nowhere. */
bool ring_find(const struct ring *ring, size_t i, size_t j, size_t least, uint64_t *offset);

/* Block j goes there, and what it overlaps is gone. */
void ring_put(struct ring *ring, uint64_t offset, size_t j);

/* While block i is in use: the next block that is to be copied, and where; nothing is given up for
 * it that is used before it. False: there is none. */
bool ring_next(const struct ring *ring, size_t i, size_t *j, uint64_t *offset);

#endif
