/* SPDX-License-Identifier: MIT */
#include "policy.h"

#include <stdlib.h>

#include "alloc/arena.h"
#include "tests/fake_pages.h"

struct placed {
    uintptr_t address;
    int stream;
};

struct arena_policy {
    struct fake_pages *fake;
    struct arena *arena;
    struct placed *blocks;
};

static void *arena_policy_create(const struct policy_options *policy)
{
    const struct fake_options fake_options = {policy->page_bytes, UINT64_C(1) << 40, false};
    struct arena_options options = {.budget_bytes = policy->budget_bytes,
                                    .reservation_bytes =
                                        (policy->budget_bytes / policy->page_bytes + 1) * 4 *
                                        policy->page_bytes};
    struct arena_policy *state = calloc(1, sizeof *state);

    if (!state || !(state->blocks = calloc(policy->block_count, sizeof *state->blocks)) ||
        fake_pages_create(&state->fake, &fake_options) != 0 ||
        arena_create(&state->arena, &state->fake->source, &options) != 0)
        abort();
    state->fake->instant = true;
    return state;
}

static bool arena_policy_alloc(void *pointer, uint64_t block, uint64_t bytes, int stream)
{
    struct arena_policy *state = pointer;
    struct arena_request request = {bytes, stream % ARENA_STREAMS, 0};

    state->blocks[block].stream = request.stream;
    return arena_alloc(state->arena, &request, &state->blocks[block].address, NULL) == 0;
}

static void arena_policy_free(void *pointer, uint64_t block)
{
    struct arena_policy *state = pointer;

    if (arena_free(state->arena, state->blocks[block].address, state->blocks[block].stream) != 0)
        abort();
}

static void arena_policy_describe(void *pointer, struct policy_state *description)
{
    struct arena_policy *state = pointer;
    struct arena_stats stats;

    arena_stats(state->arena, &stats);
    /* Vacant slots of slabs are held in vain like any free byte. */
    *description = (struct policy_state){
        stats.reserved, stats.peak_reserved, stats.free_bytes + stats.slack_bytes,
        stats.largest_merged_bytes, state->fake->calls + stats.pages_released};
}

static void arena_policy_destroy(void *pointer)
{
    struct arena_policy *state = pointer;

    arena_destroy(state->arena);
    if (state->fake->fault)
        abort();
    fake_pages_destroy(state->fake);
    free(state->blocks);
    free(state);
}

const struct policy policy_arena = {
    "fluxfs",          arena_policy_create,   arena_policy_alloc,
    arena_policy_free, arena_policy_describe, arena_policy_destroy,
};
