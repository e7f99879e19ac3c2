/* SPDX-License-Identifier: MIT */
/*
 * Every invariant, counted again from the runs alone and compared with what the arena believes.
 */
#include "alloc/arena_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Of a hole only this much of the inside is looked at: holes may be a terabyte long. */
enum { HOLE_INSIDE_LIMIT = 4096 };

struct census {
    struct arena *arena;
    const char *fault;
    uint64_t free_runs[OWNERS];
    uint64_t blocks, allocated, requested, component[ARENA_COMPONENTS];
    uint64_t pages_mapped;
    uint32_t dead_pages, empty_slabs;
};

static bool fail(struct census *census, const char *fault)
{
    if (!census->fault)
        census->fault = fault;
    return false;
}

static bool check_shape(struct census *census, const struct run *run, uint32_t page)
{
    const struct arena *arena = census->arena;
    uint32_t end, inside;

    if (run->state == RUN_INSIDE)
        return fail(census, "a run begins inside another");
    if (run->first != page || run->count == 0 || run->count > arena->page_count - page)
        return fail(census, "a run's length leaves the reservation");
    end = run_end(run);
    if (arena->runs[end - 1].first != page)
        return fail(census, "a run's last page does not name its first");
    inside = end;
    if (run->state == RUN_HOLE && run->count > HOLE_INSIDE_LIMIT)
        inside = page + HOLE_INSIDE_LIMIT;
    for (uint32_t i = page + 1; i < inside; i++) {
        if (arena->runs[i].state != RUN_INSIDE)
            return fail(census, "a run begins inside another");
    }
    return true;
}

static bool check_neighbours(struct census *census, const struct run *run, const struct run *before)
{
    if (!before || run->state != before->state)
        return true;
    if (run->state == RUN_HOLE)
        return fail(census, "two holes side by side");
    if (run->state == RUN_FREE && (run->owner == before->owner || single_stream(census->arena)))
        return fail(census, "two free runs side by side that could be one");
    return true;
}

static void count_block(struct census *census, int component, uint64_t requested,
                        uint64_t allocated)
{
    census->blocks++;
    census->requested += requested;
    census->allocated += allocated;
    census->component[component] += allocated;
    if (requested == 0 || requested > allocated)
        fail(census, "a block shorter than what was asked for");
}

static bool check_listed(struct census *census, const struct slab *slab)
{
    const struct slab *listed = census->arena->slab_lists[slab->stream][slab->slab_class];

    while (listed && listed != slab)
        listed = listed->next;
    if (!listed && slab->vacant_count > 0)
        return fail(census, "a slab with vacancies in no list");
    if (listed && slab->vacant_count == 0)
        return fail(census, "a full slab in the list of vacancies");
    return true;
}

static void check_slab(struct census *census, const struct slab *slab, uint64_t offset,
                       uint64_t bytes)
{
    uint32_t vacant = 0, waiting = 0;

    if (slab->offset != offset || (uint64_t)slab->slot_count * slab->slot_bytes > bytes) {
        fail(census, "a slab is not where its page or slot is");
        return;
    }
    for (uint32_t i = 0; i < slab->slot_count; i++) {
        const struct slot *slot = &slab->slots[i];
        bool bit = slab->vacant[i / 64] >> i % 64 & 1;

        if (bit != (slot->state == SLOT_VACANT))
            fail(census, "a slot's state and its bit disagree");
        vacant += slot->state == SLOT_VACANT;
        waiting += slot->state == SLOT_WAITING;
        if (slot->state == SLOT_USED)
            count_block(census, slot->component, slot->requested_bytes, slab->slot_bytes);
        if (slot->state != SLOT_SLAB)
            continue;
        if (slot->slab->parent != slab)
            fail(census, "a slab in a slot of another than its parent");
        check_slab(census, slot->slab, offset + (uint64_t)i * slab->slot_bytes, slab->slot_bytes);
    }
    census->empty_slabs += vacant == slab->slot_count;
    if (vacant != slab->vacant_count || waiting != slab->waiting_count)
        fail(census, "a slab has lost count of its slots");
    check_listed(census, slab);
}

static void count_run(struct census *census, const struct run *run)
{
    const struct arena *arena = census->arena;
    const struct slab *slab = arena->slabs[run->first];

    if ((slab != NULL) != (run->state == RUN_SLAB))
        fail(census, "a slab's run and the slab disagree");
    else if (slab && run->count == 1)
        check_slab(census, slab, run->first * arena->page_bytes, arena->page_bytes);
    else if (slab)
        fail(census, "a slab of several pages");
    if (run->state == RUN_FREE)
        census->free_runs[run->owner]++;
    else if (run->state == RUN_USED)
        count_block(census, run->component, run->requested_bytes, run->count * arena->page_bytes);
    if (run->state == RUN_DEAD)
        census->dead_pages++;
    else if (run->state != RUN_HOLE)
        census->pages_mapped += run->count;
}

static bool check_runs(struct census *census)
{
    const struct arena *arena = census->arena;
    const struct run *before = NULL;
    uint32_t page = 0;

    while (page < arena->page_count) {
        const struct run *run = &arena->runs[page];

        if (!check_shape(census, run, page) || !check_neighbours(census, run, before))
            return false;
        count_run(census, run);
        before = run;
        page = run_end(run);
    }
    return !census->fault;
}

static bool check_index(struct census *census)
{
    struct arena *arena = census->arena;

    for (int owner = 0; owner < OWNERS; owner++) {
        uint64_t listed = 0;
        uint32_t count = 0;

        for (struct run *run = index_first(arena, (uint8_t)owner); run;
             run = index_next(arena, run)) {
            if (run->state != RUN_FREE || run->owner != owner)
                return fail(census, "an index lists a run that is not its own");
            if (++listed > census->free_runs[owner])
                break;
            if (31 - __builtin_clz(run->count) < 31 - __builtin_clz(count | 1))
                return fail(census, "an index lists a run in a row it does not belong to");
            count = run->count;
            if (owner != OWNER_ANY && run->sequence > arena->streams[owner - 1].open)
                return fail(census, "a free run waits for a fence of the future");
        }
        if (listed != census->free_runs[owner])
            return fail(census, "an index and the free runs disagree");
    }
    return true;
}

static int compare_handles(const void *left, const void *right)
{
    page_handle a = *(const page_handle *)left, b = *(const page_handle *)right;

    return a < b ? -1 : a > b;
}

/* Each page is mapped at one place or spare: no handle occurs twice. */
static int check_pages(struct census *census)
{
    struct arena *arena = census->arena;
    uint64_t count = arena->pages_mapped + arena->pages_spare, filled = 0;
    page_handle *handles = calloc(count + 1, sizeof *handles);

    if (!handles)
        return -ENOMEM;
    for (struct run *run = &arena->runs[0]; run; run = run_next(arena, run)) {
        if (run->state == RUN_HOLE || run->state == RUN_DEAD)
            continue;
        memcpy(handles + filled, arena->pages + run->first, run->count * sizeof *handles);
        filled += run->count;
    }
    memcpy(handles + filled, arena->spare, arena->pages_spare * sizeof *handles);
    qsort(handles, count, sizeof *handles, compare_handles);
    for (uint64_t i = 1; i < count; i++) {
        if (handles[i] == handles[i - 1])
            fail(census, "a page in two places");
    }
    free(handles);
    return 0;
}

static bool check_sums(struct census *census)
{
    const struct arena *arena = census->arena;

    if (census->pages_mapped != arena->pages_mapped)
        return fail(census, "pages mapped were miscounted");
    if (census->dead_pages != arena->dead_pages || census->empty_slabs != arena->empty_slabs)
        return fail(census, "dead pages or empty slabs were miscounted");
    if (census->blocks != arena->counters.blocks)
        return fail(census, "blocks were miscounted");
    if (census->requested + arena->charged != arena->requested ||
        census->allocated + arena->charged != arena->allocated)
        return fail(census, "bytes requested or allocated were miscounted");
    for (int i = 0; i < ARENA_COMPONENTS; i++) {
        if (census->component[i] + arena->charges[i] != arena->counters.component[i])
            return fail(census, "bytes of a component were miscounted");
    }
    if (arena_reserved(arena) > arena->budget && !arena->over_budget)
        return fail(census, "more is reserved than the budget allows");
    return true;
}

int arena_check(struct arena *arena, const char **fault)
{
    struct census census = {.arena = arena};
    int code = 0;

    pthread_mutex_lock(&arena->lock);
    if (check_runs(&census) && check_sums(&census) && check_index(&census))
        code = check_pages(&census);
    pthread_mutex_unlock(&arena->lock);
    if (census.fault && fault)
        *fault = census.fault;
    return census.fault ? -EUCLEAN : code;
}
