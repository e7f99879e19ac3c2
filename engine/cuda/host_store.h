/* SPDX-License-Identifier: MIT */
/*
 * The host store: weights that pass again and again, pinned, so that the link runs at its own rate
 * and not at that of the threads which fill slots.
 *
 * What has passed twice without fault is wanted: one thread in the background pins it, in that
 * order, so that what passes in every step comes before what passes once for a picture. Where there
 * is no room for the first that is wanted it waits, and others behind it, until there may be. A
 * large weight that the file holds as the device wants it is pinned where it lies, in the page
 * cache; others are copied. Nothing else waits for that.
 */
#ifndef FLUXFS_ENGINE_CUDA_HOST_STORE_H
#define FLUXFS_ENGINE_CUDA_HOST_STORE_H

#include "engine/backend.h"

struct host_store_options {
    void *owner;
    /* Once, on the store's thread, before all else. */
    void (*begin)(void *owner);
    /* Pinned memory, or NULL if there is none. */
    void *(*allocate)(void *owner, size_t bytes);
    void (*release)(void *owner, void *memory);
    /* Pins whole pages that are only read; false if they can't be. */
    bool (*pin)(void *owner, const void *pages, size_t bytes);
    void (*unpin)(void *owner, const void *pages);
    /* How many bytes may be pinned now, `in_place` of the page cache being pinned already, which
     * systems count as free; asked before each. */
    uint64_t (*spare)(void *owner, uint64_t in_place);
    size_t chunk_bytes;    /* allocated at a time; what is larger is not copied */
    size_t in_place_bytes; /* the least that is pinned where it lies */
    size_t page_bytes;
};

/* A weight's elements as the device wants them (weights.h), in up to three pieces: pages that are
 * pinned where they lie have a copied edge on either side. */
struct host_weight {
    struct {
        const void *data;
        size_t bytes;
    } piece[3];
};

struct host_store;

int host_store_create(struct host_store **store, const struct host_store_options *options,
                      struct error *err);

/* Nobody may still be reading what it gave out. NULL is allowed. */
void host_store_destroy(struct host_store *store);

/* NULL: it is not pinned. Any thread. */
const struct host_weight *host_store_find(struct host_store *store, const struct weight_copy *copy);

/* A lasting weight has passed that the store did not have, and was found to be good. Any thread. */
void host_store_passed(struct host_store *store, const struct weight_copy *copy);

/* Pinned so far. Any thread. */
uint64_t host_store_bytes(const struct host_store *store);

/* Wanted, but not pinned yet. Any thread. */
uint64_t host_store_wanted(struct host_store *store);

/* There may be more to spare than there was. Any thread. */
void host_store_retry(struct host_store *store);

/* Waits until nothing is wanted for which there is room (for tests). */
void host_store_settle(struct host_store *store);

/* What this machine, or its part that is ours, can spare: of the memory that could be had without
 * swapping, all but a quarter of the whole and 2 GiB, and but the `in_place` bytes of it that are
 * pinned; 0 where that can't be read. */
uint64_t host_memory_spare(uint64_t in_place);

#endif
