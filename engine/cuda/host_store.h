/* SPDX-License-Identifier: MIT */
/*
 * The host store: pinned copies of weights that pass again and again, ready for the device, so that
 * the link runs at its own rate and not at that of the threads which fill slots.
 *
 * A weight that has passed twice is wanted: one thread in the background copies what is wanted, in
 * that order, as long as the machine has memory to spare. Nothing waits for it.
 */
#ifndef FLUXFS_ENGINE_CUDA_HOST_STORE_H
#define FLUXFS_ENGINE_CUDA_HOST_STORE_H

#include "engine/backend.h"

struct host_store_options {
    void *owner;
    /* Once, on the store's thread, before all else. */
    void (*begin)(void *owner);
    /* Pinned memory, or NULL if there is none. */
    void *(*pin)(void *owner, size_t bytes);
    void (*unpin)(void *owner, void *memory);
    /* How many bytes may be pinned now; asked before each `pin`. */
    uint64_t (*spare)(void *owner);
    size_t chunk_bytes; /* pinned at a time; weights that are larger are not kept */
};

struct host_store;

int host_store_create(struct host_store **store, const struct host_store_options *options,
                      struct error *err);

/* Nobody may still be reading what it gave out. NULL is allowed. */
void host_store_destroy(struct host_store *store);

/* Notes that a lasting weight passes; returns its elements as the device wants them (weights.h), or
 * NULL if it has not been copied. One thread only. */
const void *host_store_find(struct host_store *store, const struct weight_copy *copy);

/* Pinned so far. Any thread. */
uint64_t host_store_bytes(const struct host_store *store);

/* Waits until nothing that is wanted could still be copied (for tests). */
void host_store_settle(struct host_store *store);

/* What this machine can spare: of the memory that could be had without swapping, all but a quarter
 * of the whole and 2 GiB; 0 where that can't be read. */
uint64_t host_memory_spare(void);

#endif
