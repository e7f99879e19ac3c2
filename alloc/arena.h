/* SPDX-License-Identifier: MIT */
/*
 * An arena: device memory that stays whole, under one hard budget.
 *
 * One reservation of address space; physical pages from a page source (page_source.h) are mapped
 * into it as they are needed. A block never moves while it lives, so its address may be baked into
 * a CUDA graph. Free memory does move: when no free run is long enough, the pages of the smallest
 * ones are mapped together as one longer run, without copying a byte.
 *
 * Words, used with these meanings everywhere:
 *   requested   bytes asked for            allocated  the same with rounding
 *   mapped      allocated and free bytes behind addresses
 *   reserved    physical bytes taken from the source (mapped or spare), and the charges
 *   budget      what reserved never exceeds
 *   run         neighbouring bytes of address space in one state
 *   slack       unused slots of slabs, which only small blocks can use
 *   fragmentation   1 − longest run obtainable without growing ÷ all free bytes held; 0 if none is
 *   waste       1 − peak requested ÷ peak reserved
 *
 * Streams are small integers (0 … ARENA_STREAMS − 1). Memory freed on a stream can be had again on
 * that stream at once, on another when a fence on the first has passed. The stream of a free must
 * be ordered after the stream of the allocation, as it is when the block was used there.
 *
 * All functions may be called from any thread; one mutex guards the whole, and is released while
 * the evict callback runs. Functions return 0 or a negative errno.
 */
#ifndef FLUXFS_ALLOC_ARENA_H
#define FLUXFS_ALLOC_ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "alloc/page_source.h"

enum { ARENA_STREAMS = 8, ARENA_COMPONENTS = 16 };

/* Every address is a multiple of this. */
enum { ARENA_ALIGNMENT = 256 };

struct arena;
struct trace_writer;

struct arena_options {
    uint64_t budget_bytes; /* hard limit of the reserved bytes */
    /* Address space. 0: four times the device's memory, and at least four times the budget. Longer
     * is cheap and makes room to merge in; 1⅛ of the budget is the least that makes sense. */
    uint64_t reservation_bytes;
    /* Asked when memory is short, on the allocating thread: free blocks worth `needed_bytes` by
     * calling arena_free, and tell whether any was freed. Must not allocate from the arena.
     * NULL: nothing can be evicted. */
    bool (*evict)(void *owner, uint64_t needed_bytes);
    void *owner;
    struct trace_writer *trace; /* record every allocation and free there (trace.h), or NULL */
};

struct arena_request {
    uint64_t bytes;
    int stream;    /* on which the block is used first */
    int component; /* whose memory it is: 0 … ARENA_COMPONENTS − 1 */
};

/* Why an allocation failed with -ENOMEM. */
struct arena_shortage {
    uint64_t requested_bytes;
    uint64_t free_bytes;         /* whole pages held and unused, wherever they lie */
    uint64_t largest_free_bytes; /* longest run obtainable, by merging too */
    uint64_t reserved_bytes, budget_bytes;
    double fragmentation; /* after merging */
    bool device_full;     /* the device had no page to give, though the budget has room for one */
};

/* The arena borrows the source, which must outlive it. -EINVAL: the options make no sense (budget
 * below a page, reservation below the budget); else what the source said. */
int arena_create(struct arena **arena, struct page_source *source,
                 const struct arena_options *options);

/* Waits until the device has finished with the memory, then gives everything back, blocks still
 * living included. NULL is allowed. */
void arena_destroy(struct arena *arena);

/* A block of at least `bytes`, uninitialised. On a miss, until one helps: fences that have passed ·
 * spare pages and new ones within the budget · merging free runs · eviction, for what waiting alone
 * can't give · waiting for fences. -ENOMEM: all that failed, or was not tried since not even the
 * whole budget is enough; `shortage` (may be NULL) tells what there is. -EINVAL: no bytes, or a
 * stream or component out of range. Else the source's error, with every mapping as it was before.
 */
int arena_alloc(struct arena *arena, const struct arena_request *request, uintptr_t *address,
                struct arena_shortage *shortage);

/* Bytes that a block of so many takes: whole pages, or if it is short a slot of a page that blocks
 * of about its size share. */
uint64_t arena_footprint(const struct arena *arena, uint64_t bytes);

/* Gives a block back after the work now queued on `stream`. -EINVAL, and nothing happens: no block
 * that lives begins at this address. */
int arena_free(struct arena *arena, uintptr_t address, int stream);

/* Changes the budget and gives memory back until reserved fits: spare pages, free pages, evictions,
 * waiting. -EAGAIN: living blocks hold more than that. The new budget stands; nothing grows, and
 * each free gives back what it can until it is met. */
int arena_set_budget(struct arena *arena, uint64_t bytes);

/* Sets what a component holds outside the arena (driver context, library workspaces): counted as
 * requested and reserved, hence taken from the budget. Returns as arena_set_budget. */
int arena_charge(struct arena *arena, int component, uint64_t bytes);

/* The same, but only within the budget: on failure the charge is what it was. */
int arena_charge_within(struct arena *arena, int component, uint64_t bytes);

/* Creates spare pages until `bytes` are reserved, so that nobody else takes them meanwhile.
 * -ENOMEM: budget or device is too small; what was created stays. */
int arena_prepare(struct arena *arena, uint64_t bytes);

/* Gives every free page back that no queued work can touch; returns how many bytes that were. */
uint64_t arena_trim(struct arena *arena);

struct arena_stats {
    uint64_t budget, reserved, mapped, allocated, requested; /* bytes */
    uint64_t peak_reserved, peak_allocated, peak_requested;
    uint64_t charged;                     /* part of reserved, allocated and requested */
    uint64_t component[ARENA_COMPONENTS]; /* allocated, charges included */
    uint64_t free_bytes;                  /* whole pages held and unused, mapped or spare */
    uint64_t slack_bytes;                 /* unused slots of slabs: only small blocks fit there */
    uint64_t largest_free_bytes;          /* longest mapped free run */
    uint64_t largest_merged_bytes;        /* the same if free pages are mapped together */
    double fragmentation, fragmentation_merged, waste;
    uint64_t page_bytes, pages_mapped, pages_spare;
    uint64_t blocks;                     /* living */
    uint64_t allocations, frees, misses; /* since the start, as are the following */
    uint64_t merges, pages_moved;        /* remappings, and the pages they moved */
    uint64_t evictions, waits, failures; /* callbacks that freed; fences waited for; -ENOMEM */
    uint64_t pages_created, pages_released;
};

void arena_stats(struct arena *arena, struct arena_stats *stats);
void arena_reset_peaks(struct arena *arena); /* peaks start again from the present values */

struct arena_run {
    uint64_t offset_bytes, bytes; /* from the start of the reservation */
    bool used;
    int component; /* if used */
};

/* The mapped memory in address order, neighbours alike joined: up to `capacity` runs; returns how
 * many there are. */
size_t arena_map(struct arena *arena, struct arena_run *runs, size_t capacity);

/* Writes a mark into the trace, if one is recorded. */
void arena_mark(struct arena *arena, const char *name);

/* Verifies every invariant of the arena in time linear in its size. 0, or -EUCLEAN and in `fault`
 * (may be NULL) a static sentence that names the first one broken. For tests. */
int arena_check(struct arena *arena, const char **fault);

#endif
