/* SPDX-License-Identifier: MIT */
/*
 * The slow path: what happens when no free run is long enough.
 *
 * A window is a stretch of address space, free or without pages, long enough for the block. The one
 * that lacks fewest pages is chosen and filled: with spare pages, with new ones, with pages of the
 * shortest free runs elsewhere. A page taken elsewhere is mapped at its new place first (it may be
 * mapped twice) and unmapped from the old one when nothing can fail any more, so that a failure
 * leaves everything as it was.
 */
#include "alloc/arena_internal.h"

#include <assert.h>
#include <errno.h>

struct window {
    bool found;
    uint32_t start, end;
    uint32_t missing; /* pages to be mapped */
    uint32_t gap;     /* pages of the whole gap it lies in */
};

/* One attempt after the other at the same need. */
struct attempt {
    uint32_t count; /* pages */
    int stream;
    struct window window;
    bool device_full; /* the source had no page to give, whatever the budget says */
    bool map_failed;  /* nor memory for its own tables */
};

struct gap {
    struct run *first;
    uint32_t start, end;
};

/* Places [first, end). */
struct page_range {
    uint32_t first, end;
};

/* ---- Single pages ---- */

uint64_t pages_creatable(const struct arena *arena)
{
    uint64_t reserved = arena_reserved(arena) + arena->claimed;
    uint64_t pages = arena->pages_mapped + arena->pages_spare;
    uint64_t affordable;

    if (reserved >= arena->budget || pages >= arena->page_count)
        return 0;
    affordable = (arena->budget - reserved) / arena->page_bytes;
    return affordable < arena->page_count - pages ? affordable : arena->page_count - pages;
}

int page_create(struct arena *arena)
{
    page_handle page;
    int code;

    if (pages_creatable(arena) == 0)
        return -ENOMEM;
    code = arena->source->ops->create(arena->source, &page);
    if (code != 0)
        return code;
    arena->spare[arena->pages_spare++] = page;
    arena->counters.pages_created++;
    assert(arena_reserved(arena) <= arena->budget);
    account_reserved(arena);
    return 0;
}

void page_release_spare(struct arena *arena)
{
    arena->source->ops->release(arena->source, arena->spare[--arena->pages_spare]);
    arena->counters.pages_released++;
}

static void page_bury(struct arena *arena, uint32_t page)
{
    run_cut(arena, page, 1);
    run_set(arena, page, 1, RUN_DEAD);
    arena->dead_pages++;
}

int pages_retry_dead(struct arena *arena)
{
    for (struct run *run = &arena->runs[0]; run && arena->dead_pages > 0;
         run = run_next(arena, run)) {
        int code;

        if (run->state != RUN_DEAD)
            continue;
        code = arena->source->ops->unmap(arena->source, page_address(arena, run->first));
        if (code != 0)
            return code;
        arena->dead_pages--;
        run->state = RUN_INSIDE;
        run = run_insert_hole(arena, run->first, 1);
    }
    return 0;
}

uint64_t pages_free(struct arena *arena, uint8_t owner)
{
    uint64_t pages = 0;

    for (struct run *run = index_first(arena, owner); run; run = index_next(arena, run))
        pages += run->count;
    return pages;
}

/* Unmaps up to `limit` pages from the end of a run and releases them. */
static int64_t give_back_run(struct arena *arena, struct run *run, uint64_t limit)
{
    uint32_t first = run->first, end = run_end(run), page = end;
    int code = 0;

    while (page > first && end - page < limit) {
        code = arena->source->ops->unmap(arena->source, page_address(arena, page - 1));
        if (code != 0)
            break;
        page--;
        arena->source->ops->release(arena->source, arena->pages[page]);
        arena->counters.pages_released++;
        arena->pages_mapped--;
    }
    if (page < end) {
        run_cut(arena, page, end - page);
        (void)run_insert_hole(arena, page, end - page);
    }
    return code != 0 ? code : (int64_t)(end - page);
}

int64_t pages_give_back(struct arena *arena, uint64_t limit)
{
    uint64_t given = 0;

    while (given < limit) {
        struct run *run = index_first(arena, OWNER_ANY);
        int64_t count = run ? give_back_run(arena, run, limit - given) : 0;

        if (count <= 0)
            return count < 0 ? count : (int64_t)given;
        given += (uint64_t)count;
    }
    return (int64_t)given;
}

/* ---- Choosing a window ---- */

static uint32_t count_missing(struct arena *arena, const struct gap *gap, uint32_t start,
                              uint32_t end)
{
    uint32_t missing = 0;

    for (struct run *run = gap->first; run && run->first < end; run = run_next(arena, run)) {
        uint32_t low = start > run->first ? start : run->first;
        uint32_t high = end < run_end(run) ? end : run_end(run);

        if (run->state == RUN_HOLE && high > low)
            missing += high - low;
    }
    return missing;
}

static void consider(struct arena *arena, struct attempt *attempt, const struct gap *gap,
                     uint32_t start)
{
    struct window *best = &attempt->window;
    struct window window = {.found = true, .start = start, .gap = gap->end - gap->start};

    if (start < gap->start || start > gap->end || gap->end - start < attempt->count)
        return;
    window.end = start + attempt->count;
    window.missing = count_missing(arena, gap, window.start, window.end);
    if (!best->found || window.missing < best->missing ||
        (window.missing == best->missing && window.gap < best->gap))
        *best = window;
}

static void search_gap(struct arena *arena, struct attempt *attempt, const struct gap *gap)
{
    if (gap->end - gap->start < attempt->count)
        return;
    for (struct run *run = gap->first; run && run->first < gap->end; run = run_next(arena, run)) {
        consider(arena, attempt, gap, run->first);
        /* In front of a free run, so that the block ends within it. */
        if (run->state == RUN_FREE && run_end(run) >= attempt->count)
            consider(arena, attempt, gap, run_end(run) - attempt->count);
    }
}

static void find_window(struct arena *arena, struct attempt *attempt)
{
    struct run *run = &arena->runs[0];

    attempt->window = (struct window){0};
    while (run) {
        struct gap gap = {run, run->first, run->first};

        while (run && (run->state == RUN_HOLE || run_is_open_to(run, attempt->stream))) {
            gap.end = run_end(run);
            run = run_next(arena, run);
        }
        if (gap.end > gap.start)
            search_gap(arena, attempt, &gap);
        else
            run = run_next(arena, run);
    }
}

/* ---- Filling it ---- */

/* The part of a free run that the window does not cover; of two parts, the later. */
static struct page_range pages_outside(const struct run *run, const struct window *window)
{
    struct page_range range = {run->first, run_end(run)};

    if (range.first >= window->end || range.end <= window->start)
        return range;
    if (range.end > window->end)
        range.first = window->end;
    else
        range.end = window->start > range.first ? window->start : range.first;
    return range;
}

/* Lists up to `limit` pages of free runs, shortest runs first, in arena->moves. */
static uint32_t collect_moves(struct arena *arena, const struct window *window, uint32_t limit)
{
    uint32_t count = 0;

    for (struct run *run = index_first(arena, OWNER_ANY); run && count < limit;
         run = index_next(arena, run)) {
        struct page_range range = pages_outside(run, window);

        while (range.end > range.first && count < limit)
            arena->moves[count++] = --range.end;
    }
    return count;
}

/* Lists the window's missing pages in address order in arena->targets. */
static void collect_targets(struct arena *arena, const struct window *window)
{
    uint32_t at = window->start, count = 0;

    while (arena->runs[at].state == RUN_INSIDE)
        at--;
    while (at < window->end) {
        const struct run *run = &arena->runs[at];
        uint32_t page = at > window->start ? at : window->start;

        at = run_end(run);
        for (; run->state == RUN_HOLE && page < at && page < window->end; page++)
            arena->targets[count++] = page;
    }
    assert(count == window->missing);
}

/* How many targets from number `i` on follow each other in address space. */
static uint32_t target_span(const struct arena *arena, uint32_t i, uint32_t count)
{
    uint32_t span = 1;

    while (i + span < count && arena->targets[i + span] == arena->targets[i] + span)
        span++;
    return span;
}

/* The page that goes to target i: of the spare stack while it lasts, then of the moves. New pages
 * go in the order they were made: the host's then make one mapping for its system. */
static page_handle page_for_target(const struct arena *arena, uint32_t i, uint32_t from_spare)
{
    if (i < from_spare)
        return arena->spare[arena->pages_spare - from_spare + i];
    return arena->pages[arena->moves[i - from_spare]];
}

static int set_targets_access(struct arena *arena, uint32_t count)
{
    int code = 0;

    for (uint32_t i = 0, span; i < count && code == 0; i += span) {
        span = target_span(arena, i, count);
        code = arena->source->ops->set_access(arena->source, page_address(arena, arena->targets[i]),
                                              span * arena->page_bytes);
    }
    return code;
}

/* Maps all targets or none. */
static int map_targets(struct arena *arena, uint32_t count, uint32_t from_spare)
{
    const struct page_source_ops *ops = arena->source->ops;
    uint32_t mapped = 0;
    int code = 0;

    while (mapped < count && code == 0) {
        code = ops->map(arena->source, page_address(arena, arena->targets[mapped]),
                        page_for_target(arena, mapped, from_spare));
        mapped += code == 0;
    }
    if (code == 0)
        code = set_targets_access(arena, count);
    while (code != 0 && mapped > 0) {
        mapped--;
        if (ops->unmap(arena->source, page_address(arena, arena->targets[mapped])) != 0)
            page_bury(arena, arena->targets[mapped]);
    }
    return code;
}

/* The targets are mapped: takes the pages from where they were, and makes the targets free runs. */
static void commit_targets(struct arena *arena, uint32_t count, uint32_t from_spare)
{
    for (uint32_t i = 0; i < count; i++)
        arena->pages[arena->targets[i]] = page_for_target(arena, i, from_spare);
    arena->pages_spare -= from_spare;
    arena->pages_mapped += from_spare;
    for (uint32_t i = 0; i < count - from_spare; i++) {
        uint32_t place = arena->moves[i];

        if (arena->source->ops->unmap(arena->source, page_address(arena, place)) != 0) {
            page_bury(arena, place);
            continue;
        }
        run_cut(arena, place, 1);
        (void)run_insert_hole(arena, place, 1);
    }
    for (uint32_t i = 0, span; i < count; i += span) {
        uint32_t first = arena->targets[i];

        span = target_span(arena, i, count);
        run_cut(arena, first, span);
        (void)run_insert_free(arena, first, span, OWNER_ANY, 0);
    }
}

/* Makes spare pages within the budget until there are `wanted`. */
static int grow_spare(struct arena *arena, struct attempt *attempt, uint64_t wanted)
{
    while (arena->pages_spare < wanted && pages_creatable(arena) > 0 && !attempt->device_full) {
        int code = page_create(arena);

        if (code == -ENOMEM)
            attempt->device_full = true;
        else if (code != 0)
            return code;
    }
    return 0;
}

static uint64_t pages_to_come(const struct arena *arena, const struct attempt *attempt)
{
    return arena->pages_spare + (attempt->device_full ? 0 : pages_creatable(arena));
}

/* -ENOMEM: there aren't pages enough, and nothing has changed. */
static int fill_window(struct arena *arena, struct attempt *attempt)
{
    const struct window *window = &attempt->window;
    uint64_t spare_before = arena->pages_spare;
    uint32_t from_spare = 0, moves = 0;
    uint32_t dead_before = arena->dead_pages;
    int code;

    if (window->missing > pages_to_come(arena, attempt) + collect_moves(arena, window, UINT32_MAX))
        return -ENOMEM;
    code = grow_spare(arena, attempt, window->missing);
    if (code == 0) {
        from_spare =
            arena->pages_spare < window->missing ? (uint32_t)arena->pages_spare : window->missing;
        moves = collect_moves(arena, window, window->missing - from_spare);
        code = from_spare + moves < window->missing ? -ENOMEM : 0;
    }
    if (code == 0) {
        collect_targets(arena, window);
        code = map_targets(arena, window->missing, from_spare);
        attempt->map_failed = code == -ENOMEM;
        attempt->device_full |= code == -ENOMEM;
    }
    if (code != 0) {
        /* A page still mapped somewhere would go on costing memory: it is kept instead. */
        while (arena->pages_spare > spare_before && arena->dead_pages == dead_before)
            page_release_spare(arena);
        return code;
    }
    commit_targets(arena, window->missing, from_spare);
    arena->counters.merges += moves > 0;
    arena->counters.pages_moved += moves;
    return 0;
}

/* Pages that waiting for fences would make available. */
static uint64_t pages_pending(struct arena *arena)
{
    uint64_t pages = 0;

    for (int stream = 0; stream < ARENA_STREAMS; stream++)
        pages += pages_free(arena, (uint8_t)(1 + stream));
    return pages;
}

/* Bytes that no waiting can provide. */
static uint64_t shortfall_bytes(struct arena *arena, const struct attempt *attempt)
{
    const struct window *window = &attempt->window;
    uint64_t pending = pages_pending(arena), held;

    if (!window->found)
        return pending > 0 ? 0 : attempt->count * arena->page_bytes;
    held = pending + pages_to_come(arena, attempt) + collect_moves(arena, window, UINT32_MAX);
    if (window->missing > held)
        return (window->missing - held) * arena->page_bytes;
    /* Pages would do, but they can't be mapped: what is mapped must do. */
    return attempt->map_failed ? attempt->count * arena->page_bytes : 0;
}

static int make_window(struct arena *arena, struct attempt *attempt)
{
    int code = -ENOMEM;

    find_window(arena, attempt);
    if (attempt->window.found && attempt->window.missing == 0)
        code = 0;
    else if (attempt->window.found)
        code = fill_window(arena, attempt);
    if (code == 0)
        run_cut(arena, attempt->window.start, attempt->count);
    return code;
}

/* Whether so many pages fit at all, were nothing else there. */
static bool is_possible(const struct arena *arena, uint32_t count)
{
    return arena->budget > arena->charged &&
           (arena->budget - arena->charged) >> arena->page_shift >= count;
}

/* After a try that lacked memory: whether another may do better. 1, 0, or the source's error. */
static int make_room(struct arena *arena, struct attempt *attempt, bool was_full)
{
    uint64_t short_bytes;

    /* What was created in vain has been released again, and moving pages is another way. */
    if (attempt->device_full && !was_full)
        return 1;
    short_bytes = shortfall_bytes(arena, attempt);
    if (short_bytes > 0 && arena_evict(arena, short_bytes)) {
        attempt->device_full = false;
        return 1;
    }
    return fences_wait(arena);
}

int run_obtain(struct arena *arena, uint32_t count, int stream, uint32_t *first)
{
    struct attempt attempt = {.count = count, .stream = stream};
    int code;

    *first = run_take_fit(arena, count, stream);
    if (*first != NO_PAGE)
        return 0;
    arena->counters.misses++;
    arena->device_full = false;
    if (!is_possible(arena, count))
        return -ENOMEM;
    do {
        bool was_full = attempt.device_full;

        (void)pages_retry_dead(arena);
        code = fences_poll(arena);
        if (code != 0)
            return code;
        *first = run_take_fit(arena, count, stream);
        if (*first != NO_PAGE)
            return 0;
        code = make_window(arena, &attempt);
        if (code == 0)
            *first = attempt.window.start;
        if (code != -ENOMEM)
            return code;
        code = make_room(arena, &attempt, was_full);
    } while (code > 0);
    arena->device_full = attempt.device_full;
    return code < 0 ? code : -ENOMEM;
}
