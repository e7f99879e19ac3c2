/* SPDX-License-Identifier: MIT */
/* Budgets, charges, degenerate requests, and what the figures say. */
#include "arena_fixture.h"

#include <errno.h>
#include <string.h>

static int set_budget(struct fixture *fixture, uint64_t pages)
{
    int code = arena_set_budget(fixture->arena, pages * PAGE);

    fixture_check(fixture);
    return code;
}

static void test_shrinking_gives_memory_back(void)
{
    struct fixture fixture = fixture_open_pages(32);
    uintptr_t blocks[8];

    for (int i = 0; i < 8; i++)
        blocks[i] = take(&fixture, 4 * PAGE, 0);
    EXPECT(fixture.fake->live_count == 32 && take(&fixture, PAGE, 0) == 0);
    for (int i = 0; i < 8; i += 2)
        EXPECT(arena_free(fixture.arena, blocks[i], 0) == 0);
    EXPECT(set_budget(&fixture, 20) == 0);
    EXPECT(fixture.fake->live_count == 20, "%" PRIu64, fixture.fake->live_count);
    EXPECT(set_budget(&fixture, 10) == -EAGAIN, "living blocks hold 16 pages");
    EXPECT(fixture.fake->live_count == 16 && stats_of(&fixture).budget == 10 * PAGE);
    EXPECT(take(&fixture, PAGE, 0) == 0, "nothing grows over the budget");
    EXPECT(arena_free(fixture.arena, blocks[1], 0) == 0);
    EXPECT(fixture.fake->live_count == 12, "each free gives back");
    EXPECT(arena_free(fixture.arena, blocks[3], 0) == 0);
    EXPECT(fixture.fake->live_count == 10, "until the budget is met");
    EXPECT(take(&fixture, 2 * PAGE, 0) != 0);
    EXPECT(set_budget(&fixture, 64) == 0);
    EXPECT(take(&fixture, 40 * PAGE, 0) != 0);
    fixture_close(&fixture);
}

/* A burst of everything while the budget jumps: reserved follows whenever blocks permit. */
static void test_budget_in_a_burst(void)
{
    struct fixture fixture = fixture_open_pages(128);
    uintptr_t blocks[64] = {0};
    uint64_t state = 7;

    for (int i = 0; i < 20000; i++) {
        uint64_t dice = (state = state * UINT64_C(6364136223846793005) + 1) >> 33;
        uintptr_t *block = &blocks[dice % 64];
        int stream = (int)(dice / 64 % 3), code = 0;

        if (dice / 256 % 50 == 0) {
            code = arena_set_budget(fixture.arena, (8 + dice / 4096 % 120) * PAGE);
            EXPECT(code == 0 || code == -EAGAIN);
        } else if (*block == 0) {
            *block = take(&fixture, 1 + dice / 4096 % (dice % 2 ? PAGE / 4 : 6 * PAGE), stream);
        } else {
            fake_finish(fixture.fake, stream, 1);
            EXPECT(arena_free(fixture.arena, *block, stream) == 0);
            *block = 0;
        }
        fixture_check(&fixture);
        EXPECT(stats_of(&fixture).reserved == fixture.fake->live_count * PAGE);
        if (code == 0 && dice / 256 % 50 == 0)
            EXPECT(stats_of(&fixture).reserved <= stats_of(&fixture).budget);
        if (test_failures > 0)
            break;
    }
    EXPECT(stats_of(&fixture).failures > 0 && stats_of(&fixture).pages_released > 100);
    fixture_close(&fixture);
}

static void test_charges(void)
{
    struct fixture fixture = fixture_open_pages(16);
    struct arena_stats stats;
    uintptr_t block;

    EXPECT(arena_charge(fixture.arena, 5, 4 * PAGE) == 0);
    EXPECT(take(&fixture, 13 * PAGE, 0) == 0, "the charge is taken from the budget");
    block = take(&fixture, 12 * PAGE, 0);
    EXPECT(block != 0);
    stats = stats_of(&fixture);
    EXPECT(stats.reserved == 16 * PAGE && stats.charged == 4 * PAGE);
    EXPECT(stats.requested == 16 * PAGE && stats.component[5] == 4 * PAGE);
    EXPECT(arena_charge_within(fixture.arena, 5, 6 * PAGE) == -EAGAIN);
    stats = stats_of(&fixture);
    EXPECT(stats.charged == 4 * PAGE && stats.peak_reserved == 16 * PAGE, "as before");
    EXPECT(arena_charge_within(fixture.arena, 5, 4 * PAGE) == 0);
    EXPECT(arena_charge(fixture.arena, 5, 6 * PAGE) == -EAGAIN, "no free page to make room with");
    EXPECT(arena_free(fixture.arena, block, 0) == 0);
    EXPECT(fixture.fake->live_count == 10, "what is over the budget goes back");
    EXPECT(arena_charge(fixture.arena, 5, 0) == 0);
    EXPECT(stats_of(&fixture).charged == 0 && stats_of(&fixture).component[5] == 0);
    EXPECT(arena_charge(fixture.arena, 2, 1) == 0);
    EXPECT(take(&fixture, 16 * PAGE, 0) == 0, "no room for the sixteenth page but a byte");
    EXPECT(take(&fixture, 15 * PAGE, 0) != 0);
    EXPECT(arena_charge(fixture.arena, ARENA_COMPONENTS, 1) == -EINVAL);
    EXPECT(arena_charge(fixture.arena, -1, 1) == -EINVAL);
    fixture_close(&fixture);
}

struct tenant {
    struct fixture *fixture;
    uintptr_t block;
};

static bool leave(void *owner, uint64_t needed_bytes)
{
    struct tenant *tenant = owner;
    struct arena_stats stats = stats_of(tenant->fixture);

    EXPECT(needed_bytes == 4 * PAGE && stats.reserved == stats.budget, "the budget is kept");
    EXPECT(arena_free(tenant->fixture->arena, tenant->block, 0) == 0);
    return true;
}

/* What is to be charged is made room for first. */
static void test_charge_evicts(void)
{
    struct fixture fixture;
    struct tenant tenant = {.fixture = &fixture};
    struct arena_options options = {.budget_bytes = 16 * PAGE,
                                    .reservation_bytes = 64 * PAGE,
                                    .evict = leave,
                                    .owner = &tenant};
    struct arena_stats stats;

    fixture = fixture_open(&options);
    EXPECT(take(&fixture, 10 * PAGE, 0) != 0);
    tenant.block = take(&fixture, 6 * PAGE, 0);
    EXPECT(arena_charge(fixture.arena, 5, 4 * PAGE) == 0);
    stats = stats_of(&fixture);
    EXPECT(stats.evictions == 1 && stats.charged == 4 * PAGE && stats.reserved <= stats.budget);
    EXPECT(stats.peak_requested == 16 * PAGE && stats.peak_reserved == 16 * PAGE);
    EXPECT(take(&fixture, 2 * PAGE, 0) != 0);
    fixture_close(&fixture);
}

static void test_prepare_and_trim(void)
{
    struct fixture fixture = fixture_open_pages(16);
    uint64_t creates;

    EXPECT(arena_prepare(fixture.arena, 12 * PAGE) == 0);
    EXPECT(stats_of(&fixture).pages_spare == 12 && fixture.fake->live_count == 12);
    creates = fixture.fake->creates;
    EXPECT(take(&fixture, 10 * PAGE, 0) != 0);
    EXPECT(fixture.fake->creates == creates, "spare pages are used first");
    fixture_check(&fixture);
    EXPECT(arena_prepare(fixture.arena, 17 * PAGE) == -ENOMEM);
    EXPECT(fixture.fake->live_count == 16);
    EXPECT(arena_trim(fixture.arena) == 6 * PAGE);
    EXPECT(fixture.fake->live_count == 10);
    fixture_close(&fixture);
}

static void test_device_smaller_than_budget(void)
{
    const struct fake_options fake_options = {PAGE, 10 * PAGE, false};
    struct arena_options options = {.budget_bytes = 64 * PAGE};
    struct arena_request request = {.bytes = 11 * PAGE};
    struct arena_shortage shortage;
    struct fixture fixture;
    uintptr_t address = 0;

    EXPECT(fake_pages_create(&fixture.fake, &fake_options) == 0);
    EXPECT(arena_create(&fixture.arena, &fixture.fake->source, &options) == 0);
    EXPECT(arena_alloc(fixture.arena, &request, &address, &shortage) == -ENOMEM);
    EXPECT(shortage.device_full && shortage.reserved_bytes < shortage.budget_bytes);
    EXPECT(fixture.fake->live_count == 0, "what was created for it is released");
    fixture_check(&fixture);
    EXPECT(take(&fixture, 10 * PAGE, 0) != 0);
    fixture_close(&fixture);
}

static void test_degenerate_requests(void)
{
    static const struct arena_request refused[] = {
        {0, 0, 0}, {1, -1, 0}, {1, ARENA_STREAMS, 0}, {1, 0, -1}, {1, 0, ARENA_COMPONENTS},
    };
    static const uint64_t too_long[] = {
        17 * PAGE, 65 * PAGE, UINT64_C(1) << 40, UINT64_MAX / 2, UINT64_MAX - PAGE + 1, UINT64_MAX};
    struct fixture fixture = fixture_open_pages(16);
    struct arena_shortage shortage;
    uintptr_t address = 1, block;

    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        EXPECT(arena_alloc(fixture.arena, &refused[i], &address, NULL) == -EINVAL);
    for (size_t i = 0; i < sizeof too_long / sizeof *too_long; i++) {
        struct arena_request request = {.bytes = too_long[i]};
        EXPECT(arena_alloc(fixture.arena, &request, &address, &shortage) == -ENOMEM);
        EXPECT(shortage.requested_bytes == too_long[i]);
        fixture_check(&fixture);
    }
    EXPECT(address == 1, "outputs are untouched");
    block = take(&fixture, 3 * PAGE, 0);
    EXPECT(arena_free(fixture.arena, 0, 0) == -EINVAL);
    EXPECT(arena_free(fixture.arena, block + 256, 0) == -EINVAL);
    EXPECT(arena_free(fixture.arena, block + PAGE, 0) == -EINVAL);
    EXPECT(arena_free(fixture.arena, block + 3 * PAGE, 0) == -EINVAL);
    EXPECT(arena_free(fixture.arena, UINTPTR_MAX, 0) == -EINVAL);
    EXPECT(arena_free(fixture.arena, block, ARENA_STREAMS) == -EINVAL);
    EXPECT(arena_free(fixture.arena, block, -1) == -EINVAL);
    EXPECT(stats_of(&fixture).blocks == 1);
    block = take(&fixture, 1, 0);
    EXPECT(arena_free(fixture.arena, block + 1, 0) == -EINVAL);
    EXPECT(arena_free(fixture.arena, block + 256, 0) == -EINVAL, "a vacant slot");
    fixture_close(&fixture);
}

static void test_options_refused(void)
{
    static const struct arena_options refused[] = {
        {.budget_bytes = 0},
        {.budget_bytes = PAGE - 1},
        {.budget_bytes = 8 * PAGE, .reservation_bytes = 4 * PAGE},
        {.budget_bytes = PAGE, .reservation_bytes = UINT64_MAX},
    };
    static const uint64_t granules[] = {0, 100, 256, 3 << 20, UINT64_C(1) << 31, UINT64_C(1) << 40};
    const struct fake_options fake_options = {PAGE, UINT64_C(1) << 30, false};
    struct fake_pages *fake;

    EXPECT(fake_pages_create(&fake, &fake_options) == 0);
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        struct arena *arena = NULL;
        EXPECT(arena_create(&arena, &fake->source, &refused[i]) == -EINVAL && !arena, "%zu", i);
    }
    for (size_t i = 0; i < sizeof granules / sizeof *granules; i++) {
        fake->source.granule_bytes = granules[i];
        EXPECT(arena_create(NULL, &fake->source,
                            &(struct arena_options){.budget_bytes = UINT64_C(1) << 40}) == -EINVAL,
               "%" PRIu64, granules[i]);
    }
    arena_destroy(NULL);
    fake_pages_destroy(fake);
}

/* Memory is there, but no stretch of addresses is long enough: an error, not a crash; and merging
 * makes do with the addresses of free runs when they neighbour each other. */
static void test_address_space_exhausted(void)
{
    struct arena_options options = {.budget_bytes = 16 * PAGE, .reservation_bytes = 18 * PAGE};
    struct fixture fixture = fixture_open(&options);
    struct arena_stats stats;
    uintptr_t blocks[16];

    for (int i = 0; i < 16; i++)
        blocks[i] = take(&fixture, PAGE, 0);
    for (int i = 0; i < 16; i += 2)
        EXPECT(arena_free(fixture.arena, blocks[i], 0) == 0);
    EXPECT(take(&fixture, 8 * PAGE, 0) == 0);
    stats = stats_of(&fixture);
    EXPECT(stats.free_bytes == 8 * PAGE && stats.largest_merged_bytes == 2 * PAGE);
    EXPECT(stats.fragmentation_merged == 0.75 && stats.fragmentation == 1 - 1 / 8.0);
    fixture_check(&fixture);
    EXPECT(take(&fixture, 2 * PAGE, 0) != 0, "behind the last block two places are left");
    fixture_check(&fixture);
    for (int i = 1; i < 9; i += 2)
        EXPECT(arena_free(fixture.arena, blocks[i], 0) == 0);
    EXPECT(take(&fixture, 9 * PAGE, 0) != 0);
    fixture_close(&fixture);
}

/* Pages of a gigabyte, and the shortest there may be. */
static void test_page_sizes(void)
{
    static const uint64_t granules[] = {512, 4096, UINT64_C(1) << 30};

    for (size_t i = 0; i < sizeof granules / sizeof *granules; i++) {
        uint64_t granule = granules[i];
        const struct fake_options fake_options = {granule, 64 * granule, false};
        struct arena_options options = {.budget_bytes = 16 * granule};
        struct fixture fixture;
        uintptr_t small, large;

        EXPECT(fake_pages_create(&fixture.fake, &fake_options) == 0);
        EXPECT(arena_create(&fixture.arena, &fixture.fake->source, &options) == 0);
        small = take(&fixture, 1, 0);
        large = take(&fixture, 14 * granule + 1, 0);
        EXPECT(small != 0 && large != 0 && large % granule == 0 && small % ARENA_ALIGNMENT == 0);
        EXPECT(take(&fixture, granule, 0) == 0 && fixture.fake->live_count == 16);
        EXPECT(arena_free(fixture.arena, large, 0) == 0);
        fixture_check(&fixture);
        EXPECT(take(&fixture, granule / 2 + 1, 0) != 0 && take(&fixture, granule / 2, 0) != 0);
        fixture_close(&fixture);
    }
}

static void test_figures(void)
{
    struct fixture fixture = fixture_open_pages(64);
    struct arena_run runs[16];
    struct arena_stats stats;
    uintptr_t a = take(&fixture, 8 * PAGE, 0), b = take(&fixture, 4 * PAGE - 10, 0);
    uintptr_t c = take(&fixture, 4 * PAGE, 0);
    size_t count;

    EXPECT(c != 0 && arena_free(fixture.arena, a, 0) == 0);
    stats = stats_of(&fixture);
    EXPECT(stats.fragmentation == 0 && stats.free_bytes == 8 * PAGE);
    EXPECT(arena_free(fixture.arena, c, 0) == 0);
    stats = stats_of(&fixture);
    EXPECT(stats.requested == 4 * PAGE - 10 && stats.allocated == 4 * PAGE);
    EXPECT(stats.mapped == 16 * PAGE && stats.reserved == 16 * PAGE);
    EXPECT(stats.free_bytes == 12 * PAGE && stats.largest_free_bytes == 8 * PAGE);
    EXPECT(stats.fragmentation > 0.333 && stats.fragmentation < 0.334);
    EXPECT(stats.fragmentation_merged == 0 && stats.largest_merged_bytes == 12 * PAGE);
    EXPECT(stats.peak_requested == 16 * PAGE - 10 && stats.waste > 0 && stats.waste < 0.001);
    count = arena_map(fixture.arena, runs, 16);
    EXPECT(count == 3 && !runs[0].used && runs[0].bytes == 8 * PAGE);
    EXPECT(runs[1].used && runs[1].offset_bytes == 8 * PAGE && runs[1].bytes == 4 * PAGE);
    EXPECT(arena_map(fixture.arena, runs, 1) == 3);
    EXPECT(take(&fixture, 52 * PAGE, 0) != 0);
    arena_reset_peaks(fixture.arena);
    EXPECT(arena_free(fixture.arena, b, 0) == 0);
    EXPECT(stats_of(&fixture).peak_reserved == stats_of(&fixture).reserved);
    fixture_close(&fixture);
}

int main(void)
{
    test_shrinking_gives_memory_back();
    test_budget_in_a_burst();
    test_charges();
    test_charge_evicts();
    test_prepare_and_trim();
    test_device_smaller_than_budget();
    test_degenerate_requests();
    test_options_refused();
    test_address_space_exhausted();
    test_page_sizes();
    test_figures();
    return test_finish();
}
