/* SPDX-License-Identifier: MIT */
/*
 * Sequential offload: weights are on the device when they are needed, under a budget.
 *
 * Work is done in passes over a list of blocks. Before a pass the plan (residency.h) decides which
 * blocks stay on the device; the others go through a ring (ring.h). As soon as the work with a
 * block in the ring is queued, the next one that is not there is queued to be copied into its
 * place, behind that work, however many blocks lie between: so copies follow each other without a
 * gap, and the host waits for neither. Blocks of other passes stay as long as nobody needs their
 * memory: the arena asks for it through `offload_evict`.
 */
#ifndef FLUXFS_ENGINE_OFFLOAD_H
#define FLUXFS_ENGINE_OFFLOAD_H

#include "alloc/arena.h"
#include "engine/blocks.h"
#include "engine/ring.h"
#include "engine/timeline.h"

enum { OFFLOAD_LISTS = 8 };

struct offload_stats {
    uint64_t resident, streamed; /* blocks, by the plan of the present pass */
    uint64_t streamed_bytes;     /* of those, in each run of it */
    uint64_t evictions;
};

struct offload {
    struct backend *backend;
    struct arena *arena;
    struct timeline *timeline; /* borrowed, or NULL */
    struct block_list *lists[OFFLOAD_LISTS];
    int components[OFFLOAD_LISTS]; /* whose memory a list's blocks are */
    struct {
        bool *resident; /* [its blocks], owned; NULL: it was not planned yet */
        uint64_t ring_bytes;
    } plans[OFFLOAD_LISTS]; /* each list's last one */
    size_t list_count;

    struct block_list *pass; /* the present one, or NULL */
    int component;
    bool *resident; /* [blocks of the pass]: planned to stay */
    bool *other;    /* work: of another plan */
    bool *stays;    /* the same, and those that are still there from before: not for the ring */
    size_t capacity;
    uint64_t *bytes;        /* [blocks of the pass] */
    uintptr_t ring_address; /* in the arena, 0 if none */
    uint64_t ring_ticket;   /* of the last copy into it */
    uint64_t ring_bytes;
    struct ring ring;
    size_t turn;          /* of the block in use, in the pass … */
    struct block *in_use; /* … which is never evicted */
    uint64_t room;        /* that the plan was made for */
    bool guessed;         /* nothing was measured yet when it was planned */
    bool spare_planned;   /* eviction must leave blocks that are planned to stay */
    struct offload_stats stats;
};

/* All passes' lists must be added before the first pass, in the order in which their blocks may go:
 * the one that runs most often last. The lists are borrowed. */
void offload_init(struct offload *offload, struct backend *backend, struct arena *arena,
                  struct timeline *timeline);
void offload_add(struct offload *offload, struct block_list *list, int component);
void offload_finish(struct offload *offload);

/* Sets a list's least_bytes. 0, or -ENOMEM (of the host). */
int offload_measure(struct block_list *list, uint64_t page_bytes);

/* Plans a pass within `room` bytes of weights, for so many times the computing of late, and makes
 * it the present one. ENOMEM if that is less room than the list's least_bytes, or if the arena has
 * less than that. */
int offload_begin(struct offload *offload, struct block_list *list, uint64_t room, double times,
                  struct error *err);

/* Whether the present pass was planned before anything was measured, and what is known now makes
 * for a better plan. Asked until figures are there, then answered once. */
bool offload_outdated(struct offload *offload);

/* Seconds that a run of the list takes by its last plan, with `room` bytes for weights and so many
 * times the computing of late; 0 if it was not planned or measured, infinite if that is no room. */
double offload_period(const struct offload *offload, const struct block_list *list, uint64_t room,
                      double times);

/* Makes block i of the pass usable by work queued from now on, and starts loading the next ones (if
 * `wrap`, the first after the last). Blocks are to be acquired in order. */
int offload_acquire(struct offload *offload, size_t i, bool wrap, struct error *err);

/* Ends the pass: the ring is given back, residents stay. */
void offload_end(struct offload *offload);

/* The arena's evict callback: frees blocks worth `needed` bytes, those least likely to be used soon
 * first. */
bool offload_evict(void *offload, uint64_t needed_bytes);

/* Ends the pass and forgets everything on the device, e.g. after an error that leaves contents
 * unknown. */
void offload_drop(struct offload *offload);

/* Bytes of weights on the device. */
uint64_t offload_present_bytes(const struct offload *offload);

#endif
