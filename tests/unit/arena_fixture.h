/* SPDX-License-Identifier: MIT */
/* An arena over the fake source, and shorthand for tests that tell a story step by step. */
#ifndef FLUXFS_TESTS_ARENA_FIXTURE_H
#define FLUXFS_TESTS_ARENA_FIXTURE_H

#include "tests/fake_pages.h"
#include "tests/test.h"

#include <inttypes.h>

#include "alloc/arena.h"

enum { PAGE = 64 << 10 };

struct fixture {
    struct fake_pages *fake;
    struct arena *arena;
};

__attribute__((unused)) static struct fixture fixture_open(const struct arena_options *options)
{
    const struct fake_options fake_options = {PAGE, UINT64_C(1) << 30, false};
    struct fixture fixture;

    EXPECT(fake_pages_create(&fixture.fake, &fake_options) == 0);
    EXPECT(arena_create(&fixture.arena, &fixture.fake->source, options) == 0);
    return fixture;
}

__attribute__((unused)) static struct fixture fixture_open_pages(uint64_t budget_pages)
{
    struct arena_options options = {.budget_bytes = budget_pages * PAGE,
                                    .reservation_bytes = 4 * budget_pages * PAGE};

    return fixture_open(&options);
}

__attribute__((unused)) static void fixture_check(const struct fixture *fixture)
{
    const char *fault = "none";

    EXPECT(arena_check(fixture->arena, &fault) == 0, "%s", fault);
    EXPECT(!fixture->fake->fault, "%s", fixture->fake->fault);
}

__attribute__((unused)) static void fixture_close(struct fixture *fixture)
{
    fixture_check(fixture);
    arena_destroy(fixture->arena);
    EXPECT(!fixture->fake->fault, "%s", fixture->fake->fault);
    EXPECT(fixture->fake->live_count == 0, "%" PRIu64 " pages leaked", fixture->fake->live_count);
    fake_pages_destroy(fixture->fake);
}

/* The address of a block, or 0. */
__attribute__((unused)) static uintptr_t take(struct fixture *fixture, uint64_t bytes, int stream)
{
    struct arena_request request = {.bytes = bytes, .stream = stream};
    uintptr_t address = 0;

    (void)arena_alloc(fixture->arena, &request, &address, NULL);
    return address;
}

__attribute__((unused)) static struct arena_stats stats_of(const struct fixture *fixture)
{
    struct arena_stats stats;

    arena_stats(fixture->arena, &stats);
    return stats;
}

#endif
