/* SPDX-License-Identifier: MIT */
/*
 * Inside the arena. Address space is counted in pages and tiled without gaps by runs. Blocks longer
 * than half a page take whole pages, so that every free page can be moved; shorter ones share pages
 * in slabs. Nothing here is kept in the managed memory, which the host may be unable to read.
 *
 * Everything below is guarded by arena.lock, and every function expects it held.
 */
#ifndef FLUXFS_ALLOC_ARENA_INTERNAL_H
#define FLUXFS_ALLOC_ARENA_INTERNAL_H

#include <pthread.h>

#include "alloc/arena.h"

/* Free runs are listed by length, in columns of 1/32 of a power of two: what is found first in a
 * list is at most 3 % longer than the best fit. */
enum { INDEX_ROWS = 28, INDEX_COLUMNS = 32 };

/* Entries of one list looked at for the shortest that fits. */
enum { SEARCH_LIMIT = 8 };

/* Slots in a page, if it were cut into them alone: 2, 3, 4, 6, 8, 12 … at most. */
enum { SLAB_CLASSES = 26, SLOTS_LIMIT = 1 << 13 };

/* Slots of one slab. */
enum { SLAB_SLOTS = 256 };

/* Fences outstanding for each stream; frees beyond that share the next one. */
enum { ARENA_FENCES = 16 };
_Static_assert(ARENA_FENCES *ARENA_STREAMS <= PAGE_FENCES, "more fences than a source has");

#define NO_PAGE UINT32_MAX

enum run_state {
    RUN_INSIDE = 0, /* not the first page of a run */
    RUN_HOLE,       /* address space without pages behind it */
    RUN_FREE,       /* mapped, in the index of its owner */
    RUN_USED,       /* a block */
    RUN_SLAB,       /* one page, see struct slab */
    RUN_DEAD,       /* one page of address space that could not be unmapped; tried again later */
};

/* Who may have a free run: everybody, or a stream (owner − 1) until its fence has passed. */
enum { OWNER_ANY = 0, OWNERS = 1 + ARENA_STREAMS };

/* One for each page of address space; only those of a run's first page (and `first` of its last)
 * mean anything. */
struct run {
    uint32_t first; /* page where this run begins */
    uint32_t count; /* pages */
    union {
        struct {
            uint32_t next, previous; /* RUN_FREE: in its list of the index */
        };
        uint64_t requested_bytes; /* RUN_USED */
    };
    union {
        uint64_t sequence; /* RUN_FREE with an owner: of the last free, see struct stream */
        uint64_t id;       /* RUN_USED: number of the allocation */
    };
    uint8_t state; /* enum run_state */
    uint8_t owner;
    uint8_t component; /* RUN_USED */
};

struct run_index {
    uint32_t rows; /* bit r: columns[r] has bits */
    uint32_t columns[INDEX_ROWS];
    uint32_t heads[INDEX_ROWS][INDEX_COLUMNS]; /* valid where the column's bit is set */
};

/* Frees are numbered in batches: all between two fences bear the same sequence. */
struct stream {
    uint64_t open;   /* sequence of frees from now on; the first is 1 */
    uint64_t passed; /* frees up to this sequence are over */
    unsigned frees;  /* since the last fence */
    unsigned fence_count;
    struct {
        page_fence fence;
        uint64_t sequence;  /* covered by it, with all below */
    } fences[ARENA_FENCES]; /* oldest first */
};

enum slot_state { SLOT_VACANT, SLOT_USED, SLOT_WAITING, SLOT_SLAB };

struct slot {
    union {
        uint64_t id;       /* SLOT_USED: number of the allocation */
        uint64_t sequence; /* SLOT_WAITING: of the free */
        struct slab *slab; /* SLOT_SLAB: cut up further */
    };
    uint32_t requested_bytes;
    uint8_t state;
    uint8_t stream; /* SLOT_WAITING: for this stream's fence */
    uint8_t component;
};

/* Slots of one size for blocks used on one stream, in a page or, if they are small, in a slot of a
 * slab of larger ones: so the many small sizes share a few pages. A slot freed on another stream
 * waits for its fence. */
struct slab {
    struct slab *next, *previous; /* in the list of slabs with vacant slots */
    struct slab *next_waiting;    /* in the list of slabs with waiting slots */
    struct slab *parent;          /* NULL: it has a page of its own */
    uint64_t offset;              /* bytes from the start of the reservation */
    uint32_t slot_bytes, slot_count;
    uint32_t vacant_count, waiting_count;
    uint8_t slab_class, stream;
    uint64_t vacant[SLAB_SLOTS / 64]; /* bit: the slot is vacant */
    struct slot slots[];
};

struct arena {
    pthread_mutex_t lock;
    struct page_source *source; /* the pointer and what options say are constant */
    bool (*evict)(void *owner, uint64_t needed_bytes);
    void *evict_owner;
    struct trace_writer *trace;
    uintptr_t base;
    uint64_t page_bytes;
    unsigned page_shift;
    uint32_t page_count; /* of the reservation */

    /* Tables by page of the reservation, of which only what is used takes memory. */
    struct run *runs;
    page_handle *pages;        /* what is mapped there, if anything is */
    struct slab **slabs;       /* the slab there, or NULL */
    page_handle *spare;        /* a stack of pages mapped nowhere */
    uint32_t *moves, *targets; /* scratch of a remapping: pages taken from, pages mapped to */

    struct run_index index[OWNERS];
    struct slab *slab_lists[ARENA_STREAMS][SLAB_CLASSES];
    struct stream streams[ARENA_STREAMS];
    unsigned streams_seen; /* bit s: stream s has been used */
    struct slab *waiting_slabs;
    uint32_t empty_slabs; /* kept for their class until memory is short */
    uint32_t dead_pages;
    bool over_budget; /* the budget was lowered below what living blocks hold */
    bool device_full; /* the last allocation that failed found no page within the budget */

    uint64_t budget, charged;
    uint64_t claimed; /* about to be charged, once there is room for it */
    uint64_t charges[ARENA_COMPONENTS];
    uint64_t pages_mapped, pages_spare;
    uint64_t allocated, requested; /* charges included */
    uint64_t next_id;
    struct arena_stats counters; /* peaks, component[] and what counts events; the rest is unused */
};

/* ---- run_table.c: runs and the index of free ones ---- */

static inline uint32_t run_end(const struct run *run)
{
    return run->first + run->count;
}

static inline bool single_stream(const struct arena *arena)
{
    return (arena->streams_seen & (arena->streams_seen - 1)) == 0;
}

static inline bool run_is_open_to(const struct run *run, int stream)
{
    return run->state == RUN_FREE && (run->owner == OWNER_ANY || run->owner == 1 + stream);
}

/* The run behind this one in address order, or NULL. */
struct run *run_next(struct arena *arena, const struct run *run);

/* Writes a run into the table; it is in no list. */
struct run *run_set(struct arena *arena, uint32_t first, uint32_t count, enum run_state state);

/* Makes pages free and joins them with free neighbours of the same kind; returns the run they are
 * part of. `sequence` counts only with an owner other than OWNER_ANY. */
struct run *run_insert_free(struct arena *arena, uint32_t first, uint32_t count, uint8_t owner,
                            uint64_t sequence);

/* Makes pages a hole and joins it with neighbouring holes; returns the whole. */
struct run *run_insert_hole(struct arena *arena, uint32_t first, uint32_t count);

/* Cuts [first, first + count) out of the free runs or the hole that cover it; what is left over on
 * both sides stays as it was. The pages belong to no run afterwards. */
void run_cut(struct arena *arena, uint32_t first, uint32_t count);

/* The best fit among free runs open to the stream, cut out: its first page, or NO_PAGE. */
uint32_t run_take_fit(struct arena *arena, uint32_t count, int stream);

/* The first free run of an index, shortest lists first, and the one after it in that order. NULL at
 * the end. */
struct run *index_first(struct arena *arena, uint8_t owner);
struct run *index_next(struct arena *arena, const struct run *run);

/* ---- fences.c ---- */

/* The sequence of a free that happens now. */
uint64_t stream_note_free(struct arena *arena, int stream);

/* Puts a fence behind all frees so far, opens what has passed to everybody, and gives the pages of
 * empty slabs back to the free runs. */
int fences_poll(struct arena *arena);

/* Waits for the oldest fence of some stream. 1: waited; 0: there is none. */
int fences_wait(struct arena *arena);

/* ---- remap.c: pages behind runs ---- */

/* Pages for a stream, cut out of free memory that is found or made, by all means there are. The
 * lock is released while the owner evicts. */
int run_obtain(struct arena *arena, uint32_t count, int stream, uint32_t *first);

static inline uintptr_t page_address(const struct arena *arena, uint32_t page)
{
    return arena->base + page * arena->page_bytes;
}

/* Tries once more to unmap the places that could not be; the source's error if one still can't. A
 * page may only be released after that: a dead place may still show it. */
int pages_retry_dead(struct arena *arena);

/* Creates a spare page. -ENOMEM: not within the budget, or the device has none. */
int page_create(struct arena *arena);
void page_release_spare(struct arena *arena);

/* How many pages the budget and the reservation have room for. */
uint64_t pages_creatable(const struct arena *arena);

/* Unmaps and releases up to `limit` pages of free runs that everybody may have, shortest runs
 * first. Returns how many, or the source's error. */
int64_t pages_give_back(struct arena *arena, uint64_t limit);

/* Pages in the free runs of an owner. */
uint64_t pages_free(struct arena *arena, uint8_t owner);

/* ---- budget.c ---- */

static inline uint64_t arena_reserved(const struct arena *arena)
{
    return (arena->pages_mapped + arena->pages_spare) * arena->page_bytes + arena->charged;
}

/* Gives memory back until reserved fits the budget; `block` allows evictions and waiting. */
int arena_shrink(struct arena *arena, bool block);

/* Calls the owner with the lock released; whether blocks were freed. */
bool arena_evict(struct arena *arena, uint64_t needed_bytes);

/* ---- slab.c ---- */

/* Whether blocks of this size live in slabs. */
static inline bool slab_suits(const struct arena *arena, uint64_t bytes)
{
    return bytes <= arena->page_bytes / 2;
}

/* A block in a slab: its address. */
int slab_alloc(struct arena *arena, const struct arena_request *request, uintptr_t *address);
int slab_free(struct arena *arena, uint64_t offset, int stream);

/* Makes slots vacant whose fences have passed. */
void slab_settle(struct arena *arena);

/* Turns slabs without blocks into free runs. */
void slab_drop_empty(struct arena *arena);

/* Frees the slabs' own memory, in arena_destroy. */
void slab_finish(struct arena *arena);

/* ---- arena_stats.c ---- */

void arena_describe_shortage(struct arena *arena, uint64_t requested_bytes,
                             struct arena_shortage *shortage);
void account_block(struct arena *arena, int component, uint64_t requested, uint64_t allocated);
void account_release(struct arena *arena, int component, uint64_t requested, uint64_t allocated);
void account_reserved(struct arena *arena); /* after reserved has grown */

#endif
