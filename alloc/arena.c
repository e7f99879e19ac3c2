/* SPDX-License-Identifier: MIT */
#include "alloc/arena_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "alloc/trace.h"

enum { MAX_PAGE_BYTES = 1 << 30 };

/* A table that takes memory only where it is written; it starts as zeros. */
static void *table_create(uint64_t count, uint64_t entry_bytes)
{
    void *table;

    if (count > SIZE_MAX / entry_bytes)
        return NULL;
    table = mmap(NULL, count * entry_bytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return table == MAP_FAILED ? NULL : table;
}

static void table_destroy(void *table, uint64_t count, uint64_t entry_bytes)
{
    if (table)
        munmap(table, count * entry_bytes);
}

static void destroy_tables(struct arena *arena)
{
    table_destroy(arena->runs, arena->page_count, sizeof *arena->runs);
    table_destroy(arena->pages, arena->page_count, sizeof *arena->pages);
    table_destroy(arena->slabs, arena->page_count, sizeof *arena->slabs);
    table_destroy(arena->spare, arena->page_count, sizeof *arena->spare);
    table_destroy(arena->moves, arena->page_count, sizeof *arena->moves);
    table_destroy(arena->targets, arena->page_count, sizeof *arena->targets);
}

static int create_tables(struct arena *arena)
{
    arena->runs = table_create(arena->page_count, sizeof *arena->runs);
    arena->pages = table_create(arena->page_count, sizeof *arena->pages);
    arena->slabs = table_create(arena->page_count, sizeof(struct slab *));
    arena->spare = table_create(arena->page_count, sizeof *arena->spare);
    arena->moves = table_create(arena->page_count, sizeof *arena->moves);
    arena->targets = table_create(arena->page_count, sizeof *arena->targets);
    if (arena->runs && arena->pages && arena->slabs && arena->spare && arena->moves &&
        arena->targets)
        return 0;
    destroy_tables(arena);
    return -ENOMEM;
}

/* Reserves what the options ask for; by default as much as is sensible and can be had. */
static int reserve(struct arena *arena, const struct arena_options *options)
{
    const struct page_source_ops *ops = arena->source->ops;
    uint64_t bytes = options->reservation_bytes, least = options->budget_bytes;
    uint64_t limit = (uint64_t)(NO_PAGE - 1) * arena->page_bytes;
    uint64_t device_free, device_total;
    int code;

    if (bytes == 0) {
        code = ops->memory(arena->source, &device_free, &device_total);
        if (code != 0)
            return code;
        bytes = device_total > least ? device_total : least;
        bytes = bytes < limit / 4 ? 4 * bytes : limit;
    } else {
        least = bytes;
    }
    if (bytes > limit || bytes < options->budget_bytes)
        return -EINVAL;
    bytes &= ~(arena->page_bytes - 1);
    code = ops->reserve(arena->source, bytes, &arena->base);
    while (code != 0 && bytes / 2 >= least) {
        bytes = bytes / 2 & ~(arena->page_bytes - 1);
        code = ops->reserve(arena->source, bytes, &arena->base);
    }
    arena->page_count = (uint32_t)(bytes / arena->page_bytes);
    return code;
}

static int init(struct arena *arena, const struct arena_options *options)
{
    uint64_t granule = arena->source->granule_bytes;
    int code;

    if (granule < 2 * ARENA_ALIGNMENT || granule > MAX_PAGE_BYTES ||
        (granule & (granule - 1)) != 0 || options->budget_bytes < granule)
        return -EINVAL;
    arena->page_bytes = granule;
    arena->page_shift = (unsigned)__builtin_ctzll(granule);
    arena->budget = options->budget_bytes;
    arena->evict = options->evict;
    arena->evict_owner = options->owner;
    arena->trace = options->trace;
    for (int i = 0; i < ARENA_STREAMS; i++)
        arena->streams[i].open = 1;
    code = reserve(arena, options);
    if (code != 0)
        return code;
    code = create_tables(arena);
    if (code == 0 && pthread_mutex_init(&arena->lock, NULL) != 0) {
        destroy_tables(arena);
        code = -ENOMEM;
    }
    if (code != 0)
        arena->source->ops->unreserve(arena->source, arena->base,
                                      arena->page_count * arena->page_bytes);
    return code;
}

int arena_create(struct arena **arena, struct page_source *source,
                 const struct arena_options *options)
{
    struct arena *created = calloc(1, sizeof *created);
    int code;

    if (!created)
        return -ENOMEM;
    created->source = source;
    code = init(created, options);
    if (code != 0) {
        free(created);
        return code;
    }
    (void)run_insert_hole(created, 0, created->page_count);
    *arena = created;
    return 0;
}

/* Until no queued work can touch the memory; a device that fails has no work left. */
static void wait_for_device(struct arena *arena)
{
    for (int i = 0; i < ARENA_STREAMS; i++) {
        if (arena->streams_seen & 1U << i)
            (void)stream_note_free(arena, i);
    }
    while (fences_wait(arena) == 1)
        ;
}

static void release_mapped(struct arena *arena)
{
    const struct page_source_ops *ops = arena->source->ops;

    for (struct run *run = &arena->runs[0]; run; run = run_next(arena, run)) {
        if (run->state == RUN_HOLE || run->state == RUN_DEAD)
            continue;
        for (uint32_t page = run->first; page < run_end(run); page++) {
            (void)ops->unmap(arena->source, page_address(arena, page));
            ops->release(arena->source, arena->pages[page]);
        }
    }
}

void arena_destroy(struct arena *arena)
{
    if (!arena)
        return;
    pthread_mutex_lock(&arena->lock);
    wait_for_device(arena);
    (void)pages_retry_dead(arena);
    slab_finish(arena);
    release_mapped(arena);
    while (arena->pages_spare > 0)
        page_release_spare(arena);
    arena->source->ops->unreserve(arena->source, arena->base,
                                  arena->page_count * arena->page_bytes);
    destroy_tables(arena);
    pthread_mutex_unlock(&arena->lock);
    pthread_mutex_destroy(&arena->lock);
    free(arena);
}

static int alloc_large(struct arena *arena, const struct arena_request *request, uintptr_t *address)
{
    struct run *run;
    uint32_t first, count;
    int code;

    /* Where even the whole reservation is too short, nothing need be tried. */
    if (request->bytes > arena->page_count * arena->page_bytes)
        return -ENOMEM;
    count = (uint32_t)((request->bytes + arena->page_bytes - 1) >> arena->page_shift);
    code = run_obtain(arena, count, request->stream, &first);
    if (code != 0)
        return code;
    run = run_set(arena, first, count, RUN_USED);
    run->requested_bytes = request->bytes;
    run->component = (uint8_t)request->component;
    run->id = arena->next_id;
    account_block(arena, request->component, request->bytes, count * arena->page_bytes);
    *address = page_address(arena, first);
    return 0;
}

int arena_alloc(struct arena *arena, const struct arena_request *request, uintptr_t *address,
                struct arena_shortage *shortage)
{
    int code;

    if (request->bytes == 0 || request->stream < 0 || request->stream >= ARENA_STREAMS ||
        request->component < 0 || request->component >= ARENA_COMPONENTS)
        return -EINVAL;
    pthread_mutex_lock(&arena->lock);
    arena->streams_seen |= 1U << request->stream;
    if (slab_suits(arena, request->bytes))
        code = slab_alloc(arena, request, address);
    else
        code = alloc_large(arena, request, address);
    if (code == 0) {
        if (arena->trace)
            trace_write_alloc(arena->trace, arena->next_id, request->bytes, request->stream);
        arena->next_id++;
        arena->counters.allocations++;
        arena->counters.blocks++;
    } else if (code == -ENOMEM) {
        arena->counters.failures++;
        if (shortage)
            arena_describe_shortage(arena, request->bytes, shortage);
    }
    pthread_mutex_unlock(&arena->lock);
    return code;
}

static int free_large(struct arena *arena, uint64_t offset, int stream)
{
    struct run *run = &arena->runs[offset >> arena->page_shift];

    if (run->state != RUN_USED || (offset & (arena->page_bytes - 1)) != 0)
        return -EINVAL;
    account_release(arena, run->component, run->requested_bytes, run->count * arena->page_bytes);
    if (arena->trace)
        trace_write_free(arena->trace, run->id);
    (void)run_insert_free(arena, run->first, run->count, (uint8_t)(1 + stream),
                          stream_note_free(arena, stream));
    return 0;
}

static int free_locked(struct arena *arena, uint64_t offset, int stream)
{
    int code = arena->slabs[offset >> arena->page_shift] ? slab_free(arena, offset, stream)
                                                         : free_large(arena, offset, stream);

    if (code != 0)
        return code;
    arena->counters.frees++;
    arena->counters.blocks--;
    if (arena->over_budget)
        (void)arena_shrink(arena, false);
    return 0;
}

int arena_free(struct arena *arena, uintptr_t address, int stream)
{
    uint64_t offset = address - arena->base; /* below base it wraps to something huge */
    int code;

    if (stream < 0 || stream >= ARENA_STREAMS || offset >= arena->page_count * arena->page_bytes)
        return -EINVAL;
    pthread_mutex_lock(&arena->lock);
    code = free_locked(arena, offset, stream);
    pthread_mutex_unlock(&arena->lock);
    return code;
}

void arena_mark(struct arena *arena, const char *name)
{
    pthread_mutex_lock(&arena->lock);
    if (arena->trace)
        trace_write_mark(arena->trace, name);
    pthread_mutex_unlock(&arena->lock);
}
