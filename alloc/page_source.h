/* SPDX-License-Identifier: MIT */
/*
 * A page source: where physical pages come from and how they appear in address space.
 *
 * The arena (arena.h) is written against this table alone, so that the same allocator runs over
 * host memory (host_pages.h), over a CUDA device (engine/cuda/pages.c) and over a scripted fake in
 * the tests. Functions return 0 or a negative errno: -ENOMEM when memory or address space is
 * exhausted, another one when the device failed. Lengths and addresses are multiples of `granule`.
 */
#ifndef FLUXFS_ALLOC_PAGE_SOURCE_H
#define FLUXFS_ALLOC_PAGE_SOURCE_H

#include <stddef.h>
#include <stdint.h>

/* One physical page of `granule` bytes; what the number means is the source's own affair. */
typedef uint64_t page_handle;

/* A point in a stream's queue of work, passed when everything queued before it has finished. */
typedef uint64_t page_fence;

/* Fences outstanding at a time, at most. */
enum { PAGE_FENCES = 128 };

struct page_source {
    const struct page_source_ops *ops;
    uint64_t granule_bytes; /* power of two; size of a page and of every mapping */
};

struct page_source_ops {
    /* Address space without memory behind it; nothing may be read or written there yet. */
    int (*reserve)(struct page_source *source, uint64_t bytes, uintptr_t *address);
    void (*unreserve)(struct page_source *source, uintptr_t address, uint64_t bytes);

    /* A physical page. It costs memory from here to `release`, mapped or not. */
    int (*create)(struct page_source *source, page_handle *page);
    void (*release)(struct page_source *source, page_handle page);

    /* Show a whole page at an address of a reservation; a page may be mapped at two addresses.
     * A new mapping can't be accessed before `set_access` on a range that covers it. */
    int (*map)(struct page_source *source, uintptr_t address, page_handle page);
    int (*set_access)(struct page_source *source, uintptr_t address, uint64_t bytes);
    int (*unmap)(struct page_source *source, uintptr_t address);

    /* Fences. `record` marks the present end of a stream; `query` returns 1 when passed, 0 when
     * not yet; `wait` returns when passed. A fence stays valid, and counts as outstanding, until it
     * was once seen to pass. Streams are small integers, 0 is the compute stream. */
    int (*fence_record)(struct page_source *source, int stream, page_fence *fence);
    int (*fence_query)(struct page_source *source, page_fence fence);
    int (*fence_wait)(struct page_source *source, page_fence fence);

    /* Free and total physical memory of the device, in bytes, all processes counted. Any thread,
     * while others of these run. */
    int (*memory)(struct page_source *source, uint64_t *free_bytes, uint64_t *total_bytes);

    void (*destroy)(struct page_source *source);
};

#endif
