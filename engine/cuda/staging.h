/* SPDX-License-Identifier: MIT */
/*
 * Staging: weights pass through a ring of pinned slots on their way to the device, filled by a few
 * threads, so that the caller never waits for a copy that it does not need yet.
 *
 * One thread takes commands in the order given and sends. A copy is cut into pieces of at most a
 * slot; filling threads run ahead, each with a piece of its own (weights.h), while the device reads
 * the slots before it. What the host store (host_store.h) has is sent from there, without a slot.
 * What a device offers is a table, so that the tests have one that needs no GPU.
 *
 * A ticket is *issued* when everything queued before it has been given to the device's copy stream;
 * when the stream has come past it, is the device's affair.
 */
#ifndef FLUXFS_ENGINE_CUDA_STAGING_H
#define FLUXFS_ENGINE_CUDA_STAGING_H

#include "engine/backend.h"
#include "engine/cuda/host_store.h"

enum {
    STAGING_SLOTS_MAX = 32,
    STAGING_THREADS_MAX = 16,
    STAGING_HOLDS = 16, /* holds queued and not yet passed on; more wait */
    STAGING_KEPT = -1,  /* in place of a slot: memory of the host store */
};

/* Faults are the device's to keep. All but the first two are called by one thread, in order. */
struct staging_device {
    void *owner;
    /* On each thread, before all else. */
    void (*begin)(void *owner);
    /* On any thread: returns when what was last sent from the slot has been read. */
    void (*slot_wait)(void *owner, int slot);
    /* Queues a copy of pinned memory: the first `bytes` of a slot, or STAGING_KEPT. */
    void (*send)(void *owner, int slot, void *target, const void *source, size_t bytes);
    /* The copy stream waits for a point in the compute stream. */
    void (*hold)(void *owner, uint64_t point);
    /* Marks the present end of the copy stream: for a ticket, or for its time. */
    void (*mark)(void *owner, uint64_t ticket);
    void (*time)(void *owner, uint64_t mark);
    /* This copy holds a number that is not finite. */
    void (*bad_weights)(void *owner, const struct weight_copy *copy);
};

struct staging_options {
    struct staging_device device;
    char *memory; /* slots · slot_bytes, borrowed */
    size_t slot_bytes;
    int slots;                /* 1 … STAGING_SLOTS_MAX */
    int threads;              /* that fill: 1 … STAGING_THREADS_MAX */
    struct host_store *store; /* borrowed, or NULL */
};

struct staging;

int staging_create(struct staging **staging, const struct staging_options *options,
                   struct error *err);

/* Waits until all that was queued is issued. NULL is allowed. */
void staging_destroy(struct staging *staging);

/* The source, and the names in the copy, must stay until a later ticket is issued and passed. */
void staging_copy(struct staging *staging, const struct weight_copy *copy);
void staging_hold(struct staging *staging, uint64_t point);
void staging_time(struct staging *staging, uint64_t mark);

/* Tickets count from 1. */
uint64_t staging_ticket(struct staging *staging);
bool staging_issued(struct staging *staging, uint64_t ticket);
void staging_wait_issued(struct staging *staging, uint64_t ticket);

/* How many elements of a copy, from `first` on, go into one slot: whole grains (weights.h), the
 * last ones of the copy, or 0 when not even a grain fits. */
int64_t staging_piece(const struct weight_copy *copy, int64_t first, size_t slot_bytes);

#endif
