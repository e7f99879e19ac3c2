/* SPDX-License-Identifier: MIT */
#include "alloc/arena_internal.h"

static void raise_to(uint64_t *peak, uint64_t value)
{
    if (value > *peak)
        *peak = value;
}

void account_block(struct arena *arena, int component, uint64_t requested, uint64_t allocated)
{
    arena->requested += requested;
    arena->allocated += allocated;
    arena->counters.component[component] += allocated;
    raise_to(&arena->counters.peak_requested, arena->requested);
    raise_to(&arena->counters.peak_allocated, arena->allocated);
}

void account_release(struct arena *arena, int component, uint64_t requested, uint64_t allocated)
{
    arena->requested -= requested;
    arena->allocated -= allocated;
    arena->counters.component[component] -= allocated;
}

void account_reserved(struct arena *arena)
{
    raise_to(&arena->counters.peak_reserved, arena_reserved(arena));
}

/* 1 − part ÷ whole. */
static double lacking(uint64_t part, uint64_t whole)
{
    return whole > 0 ? 1.0 - (double)part / (double)whole : 0.0;
}

/* Free runs side by side count as one, whatever fences they wait for. Merged they can be as long as
 * the longest stretch of addresses in which no block lies. */
static void fill_free(struct arena *arena, struct arena_stats *stats)
{
    uint64_t pages = arena->pages_spare, largest = 0, length = 0, stretch = 0, longest_stretch = 0;

    for (struct run *run = &arena->runs[0]; run; run = run_next(arena, run)) {
        const struct slab *slab = run->state == RUN_SLAB ? arena->slabs[run->first] : NULL;
        bool is_free = run->state == RUN_FREE || (slab && slab->vacant_count == slab->slot_count);

        length = is_free ? length + run->count : 0;
        stretch = is_free || run->state == RUN_HOLE ? stretch + run->count : 0;
        pages += is_free ? run->count : 0;
        raise_to(&largest, length);
        raise_to(&longest_stretch, stretch);
    }
    stats->free_bytes = pages * arena->page_bytes;
    stats->slack_bytes = stats->reserved - stats->allocated - stats->free_bytes;
    stats->largest_free_bytes = largest * arena->page_bytes;
    stats->largest_merged_bytes =
        (pages < longest_stretch ? pages : longest_stretch) * arena->page_bytes;
    stats->fragmentation = lacking(stats->largest_free_bytes, stats->free_bytes);
    stats->fragmentation_merged = lacking(stats->largest_merged_bytes, stats->free_bytes);
}

static void fill(struct arena *arena, struct arena_stats *stats)
{
    *stats = arena->counters;
    stats->budget = arena->budget;
    stats->reserved = arena_reserved(arena);
    stats->mapped = arena->pages_mapped * arena->page_bytes;
    stats->allocated = arena->allocated;
    stats->requested = arena->requested;
    stats->charged = arena->charged;
    stats->page_bytes = arena->page_bytes;
    stats->pages_mapped = arena->pages_mapped;
    stats->pages_spare = arena->pages_spare;
    stats->waste = lacking(stats->peak_requested, stats->peak_reserved);
    fill_free(arena, stats);
}

void arena_stats(struct arena *arena, struct arena_stats *stats)
{
    pthread_mutex_lock(&arena->lock);
    fill(arena, stats);
    pthread_mutex_unlock(&arena->lock);
}

void arena_reset_peaks(struct arena *arena)
{
    pthread_mutex_lock(&arena->lock);
    arena->counters.peak_reserved = arena_reserved(arena);
    arena->counters.peak_allocated = arena->allocated;
    arena->counters.peak_requested = arena->requested;
    pthread_mutex_unlock(&arena->lock);
}

void arena_describe_shortage(struct arena *arena, uint64_t requested_bytes,
                             struct arena_shortage *shortage)
{
    struct arena_stats stats;

    fill(arena, &stats);
    *shortage = (struct arena_shortage){
        .requested_bytes = requested_bytes,
        .free_bytes = stats.free_bytes,
        .largest_free_bytes = stats.largest_merged_bytes,
        .reserved_bytes = stats.reserved,
        .budget_bytes = stats.budget,
        .fragmentation = stats.fragmentation_merged,
        .device_full = arena->device_full,
    };
}

/* ---- The map ---- */

struct map_writer {
    struct arena *arena;
    struct arena_run *runs;
    size_t capacity, count;
    struct arena_run last; /* not yet written */
};

static void map_flush(struct map_writer *writer)
{
    if (writer->last.bytes == 0)
        return;
    if (writer->count < writer->capacity)
        writer->runs[writer->count] = writer->last;
    writer->count++;
}

static void map_add(struct map_writer *writer, uint64_t offset, uint64_t bytes, int component)
{
    bool used = component >= 0;
    struct arena_run *last = &writer->last;

    if (bytes == 0)
        return;
    if (last->bytes > 0 && last->offset_bytes + last->bytes == offset && last->used == used &&
        (!used || last->component == component)) {
        last->bytes += bytes;
        return;
    }
    map_flush(writer);
    *last = (struct arena_run){offset, bytes, used, used ? component : 0};
}

static void map_add_slab(struct map_writer *writer, const struct slab *slab, uint64_t bytes)
{
    uint64_t slots_bytes = (uint64_t)slab->slot_count * slab->slot_bytes;

    for (uint32_t i = 0; i < slab->slot_count; i++) {
        const struct slot *slot = &slab->slots[i];
        if (slot->state == SLOT_SLAB)
            map_add_slab(writer, slot->slab, slab->slot_bytes);
        else
            map_add(writer, slab->offset + (uint64_t)i * slab->slot_bytes, slab->slot_bytes,
                    slot->state == SLOT_USED ? slot->component : -1);
    }
    map_add(writer, slab->offset + slots_bytes, bytes - slots_bytes, -1);
}

size_t arena_map(struct arena *arena, struct arena_run *runs, size_t capacity)
{
    struct map_writer writer = {.arena = arena, .runs = runs, .capacity = capacity};

    pthread_mutex_lock(&arena->lock);
    for (struct run *run = &arena->runs[0]; run; run = run_next(arena, run)) {
        uint64_t offset = run->first * arena->page_bytes, bytes = run->count * arena->page_bytes;

        if (run->state == RUN_SLAB)
            map_add_slab(&writer, arena->slabs[run->first], bytes);
        else if (run->state == RUN_USED || run->state == RUN_FREE)
            map_add(&writer, offset, bytes, run->state == RUN_USED ? run->component : -1);
    }
    map_flush(&writer);
    pthread_mutex_unlock(&arena->lock);
    return writer.count;
}
