/* SPDX-License-Identifier: MIT */
#include "alloc/arena_internal.h"

#include <errno.h>

bool arena_evict(struct arena *arena, uint64_t needed_bytes)
{
    uint64_t frees = arena->counters.frees;
    bool freed;

    if (!arena->evict)
        return false;
    pthread_mutex_unlock(&arena->lock);
    freed = arena->evict(arena->evict_owner, needed_bytes);
    pthread_mutex_lock(&arena->lock);
    /* A promise without a free would have us ask for ever. */
    if (!freed || arena->counters.frees == frees)
        return false;
    arena->counters.evictions++;
    return true;
}

static uint64_t pages_over_budget(const struct arena *arena)
{
    uint64_t reserved = arena_reserved(arena) + arena->claimed;

    if (reserved <= arena->budget)
        return 0;
    return (reserved - arena->budget + arena->page_bytes - 1) / arena->page_bytes;
}

static int give_back_at_once(struct arena *arena)
{
    int64_t given;
    int code = 0;

    if (pages_over_budget(arena) > 0)
        code = pages_retry_dead(arena);
    while (code == 0 && pages_over_budget(arena) > 0 && arena->pages_spare > 0)
        page_release_spare(arena);
    if (code != 0 || pages_over_budget(arena) == 0)
        return code;
    code = fences_poll(arena);
    given = pages_give_back(arena, pages_over_budget(arena));
    return code == 0 && given < 0 ? (int)given : code;
}

int arena_shrink(struct arena *arena, bool block)
{
    for (;;) {
        uint64_t over_pages, pending_pages = 0;
        int code = give_back_at_once(arena);

        over_pages = pages_over_budget(arena);
        arena->over_budget = over_pages > 0;
        if (code != 0 || over_pages == 0)
            return code;
        if (!block)
            return -EAGAIN;
        for (int stream = 0; stream < ARENA_STREAMS; stream++)
            pending_pages += pages_free(arena, (uint8_t)(1 + stream));
        if (over_pages > pending_pages &&
            arena_evict(arena, (over_pages - pending_pages) * arena->page_bytes))
            continue;
        code = fences_wait(arena);
        if (code <= 0)
            return code < 0 ? code : -EAGAIN;
    }
}

int arena_set_budget(struct arena *arena, uint64_t bytes)
{
    int code;

    pthread_mutex_lock(&arena->lock);
    arena->budget = bytes;
    code = arena_shrink(arena, true);
    pthread_mutex_unlock(&arena->lock);
    return code;
}

static void charge_set(struct arena *arena, int component, uint64_t bytes)
{
    uint64_t before = arena->charges[component];

    account_release(arena, component, before, before);
    arena->charges[component] = bytes;
    arena->charged += bytes - before;
    account_block(arena, component, bytes, bytes);
}

static int charge(struct arena *arena, int component, uint64_t bytes, bool within)
{
    uint64_t before, more;
    int code;

    if (component < 0 || component >= ARENA_COMPONENTS || bytes > UINT64_C(1) << 62)
        return -EINVAL;
    pthread_mutex_lock(&arena->lock);
    before = arena->charges[component];
    more = bytes > before ? bytes - before : 0;
    if (more == 0)
        charge_set(arena, component, bytes);
    /* First there is room, then it is taken: the budget is kept meanwhile, too. */
    arena->claimed += more;
    code = arena_shrink(arena, true);
    arena->claimed -= more;
    if (more > 0 && (code == 0 || !within))
        charge_set(arena, component, bytes);
    arena->over_budget = pages_over_budget(arena) > 0;
    account_reserved(arena);
    pthread_mutex_unlock(&arena->lock);
    return code;
}

int arena_charge(struct arena *arena, int component, uint64_t bytes)
{
    return charge(arena, component, bytes, false);
}

int arena_charge_within(struct arena *arena, int component, uint64_t bytes)
{
    return charge(arena, component, bytes, true);
}

int arena_prepare(struct arena *arena, uint64_t bytes)
{
    int code = 0;

    pthread_mutex_lock(&arena->lock);
    while (code == 0 && arena_reserved(arena) < bytes)
        code = page_create(arena);
    pthread_mutex_unlock(&arena->lock);
    return code;
}

uint64_t arena_trim(struct arena *arena)
{
    uint64_t before;

    pthread_mutex_lock(&arena->lock);
    before = arena_reserved(arena);
    if (pages_retry_dead(arena) == 0) {
        while (arena->pages_spare > 0)
            page_release_spare(arena);
        /* What can't be unmapped now stays free, for the next time. */
        (void)fences_poll(arena);
        (void)pages_give_back(arena, UINT64_MAX);
    }
    before -= arena_reserved(arena);
    pthread_mutex_unlock(&arena->lock);
    return before;
}
