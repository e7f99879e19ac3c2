/* SPDX-License-Identifier: MIT */
/* Streams, fences, eviction and waiting, told with a clock that the test turns. */
#include "arena_fixture.h"

#include <errno.h>

static void test_same_stream_at_once(void)
{
    struct fixture fixture = fixture_open_pages(16);
    uintptr_t first = take(&fixture, 4 * PAGE, 0), second, small;
    uint64_t calls;

    fake_queue(fixture.fake, 0, first, 4 * PAGE);
    EXPECT(arena_free(fixture.arena, first, 0) == 0);
    second = take(&fixture, 4 * PAGE, 0);
    EXPECT(second == first, "work still queued there is in order with the new owner's");
    small = take(&fixture, 1000, 0);
    EXPECT(arena_free(fixture.arena, small, 0) == 0);
    calls = fixture.fake->calls;
    for (int i = 0; i < 10000; i++) {
        EXPECT(arena_free(fixture.arena, second, 0) == 0);
        second = take(&fixture, (uint64_t)(1 + i % 4) * PAGE, 0);
        small = take(&fixture, 1000, 0);
        EXPECT(arena_free(fixture.arena, small, 0) == 0);
    }
    EXPECT(fixture.fake->calls == calls, "the fast path calls the driver");
    fake_finish(fixture.fake, 0, 1);
    fixture_close(&fixture);
}

static void test_other_stream_after_fence(void)
{
    struct fixture fixture = fixture_open_pages(16);
    uintptr_t first = take(&fixture, 4 * PAGE, 0), second, third;

    fake_queue(fixture.fake, 0, first, 4 * PAGE);
    EXPECT(arena_free(fixture.arena, first, 0) == 0);
    second = take(&fixture, 4 * PAGE, 1);
    EXPECT(second != 0 && second != first);
    EXPECT(fixture.fake->waits == 0, "there was room to grow");
    EXPECT(stats_of(&fixture).reserved == 8 * PAGE);
    fake_finish(fixture.fake, 0, 1);
    third = take(&fixture, 4 * PAGE, 1);
    EXPECT(third == first, "the fence has passed");
    EXPECT(stats_of(&fixture).reserved == 8 * PAGE);
    fixture_close(&fixture);
}

static void test_no_unmap_before_fence(void)
{
    struct fixture fixture = fixture_open_pages(16);
    uintptr_t block = take(&fixture, 10 * PAGE, 2);

    fake_queue(fixture.fake, 2, block, 10 * PAGE);
    EXPECT(arena_free(fixture.arena, block, 2) == 0);
    EXPECT(arena_trim(fixture.arena) == 0, "queued work still uses it");
    EXPECT(fixture.fake->live_count == 10);
    fake_finish(fixture.fake, 2, 1);
    EXPECT(arena_trim(fixture.arena) == 10 * PAGE);
    EXPECT(fixture.fake->live_count == 0);
    fixture_close(&fixture);
}

/* At the budget, with all memory under queued work of another stream: waiting is all that's left.
 */
static void test_wait_before_failure(void)
{
    struct fixture fixture = fixture_open_pages(16);
    uintptr_t block = take(&fixture, 16 * PAGE, 0);

    fake_queue(fixture.fake, 0, block, 16 * PAGE);
    EXPECT(arena_free(fixture.arena, block, 0) == 0);
    EXPECT(take(&fixture, 16 * PAGE, 1) == block);
    EXPECT(fixture.fake->waits == 1 && stats_of(&fixture).waits == 1);
    EXPECT(fixture.fake->done[0] == 1, "it was reused only when the work was done");
    fixture_close(&fixture);
}

static void test_slot_of_another_stream(void)
{
    struct fixture fixture = fixture_open_pages(4);
    uintptr_t blocks[3] = {take(&fixture, PAGE / 2, 0), take(&fixture, PAGE / 2, 0), 0};

    EXPECT(blocks[1] == blocks[0] + PAGE / 2);
    fake_queue(fixture.fake, 1, blocks[0], PAGE / 2);
    EXPECT(arena_free(fixture.arena, blocks[0], 1) == 0);
    EXPECT(arena_free(fixture.arena, blocks[0], 1) == -EINVAL, "freed twice");
    blocks[2] = take(&fixture, PAGE / 2, 0);
    EXPECT(blocks[2] != blocks[0], "stream 1 still uses it");
    fixture_check(&fixture);
    EXPECT(arena_free(fixture.arena, blocks[1], 0) == 0);
    EXPECT(arena_free(fixture.arena, blocks[2], 0) == 0);
    fake_finish(fixture.fake, 1, 1);
    EXPECT(take(&fixture, 4 * PAGE, 0) != 0, "all pages are free again");
    EXPECT(fixture.fake->waits == 0);
    fixture_close(&fixture);
}

/* Two streams share what neighbours each other: free runs of both become one when fences pass. */
static void test_runs_of_two_streams_join(void)
{
    struct fixture fixture = fixture_open_pages(8);
    uintptr_t a = take(&fixture, 4 * PAGE, 0), b = take(&fixture, 4 * PAGE, 1);

    fake_queue(fixture.fake, 0, a, 4 * PAGE);
    fake_queue(fixture.fake, 1, b, 4 * PAGE);
    EXPECT(arena_free(fixture.arena, a, 0) == 0 && arena_free(fixture.arena, b, 1) == 0);
    fixture_check(&fixture);
    fake_finish(fixture.fake, 0, 1);
    fake_finish(fixture.fake, 1, 1);
    EXPECT(take(&fixture, 8 * PAGE, 2) == (a < b ? a : b));
    EXPECT(stats_of(&fixture).merges == 0, "nothing had to be moved");
    fixture_close(&fixture);
}

/* Work is queued on two streams over blocks that live and blocks that are free. */
static void test_destroy_waits(void)
{
    struct fixture fixture = fixture_open_pages(16);
    uintptr_t living = take(&fixture, 4 * PAGE, 0), gone = take(&fixture, 4 * PAGE, 1);

    fake_queue(fixture.fake, 0, living, 4 * PAGE);
    fake_queue(fixture.fake, 1, gone, 4 * PAGE);
    EXPECT(arena_free(fixture.arena, gone, 1) == 0);
    fixture_close(&fixture); /* which looks for unmaps under queued work */
}

/* ---- Eviction ---- */

struct owner {
    struct fixture *fixture;
    uintptr_t blocks[8];
    int count, calls;
    uint64_t asked;
    bool lies;
};

static bool evict(void *pointer, uint64_t needed_bytes)
{
    struct owner *owner = pointer;

    owner->calls++;
    owner->asked = needed_bytes;
    if (owner->lies || owner->count == 0)
        return owner->lies;
    owner->count--;
    fake_queue(owner->fixture->fake, 0, owner->blocks[owner->count], 2 * PAGE);
    return arena_free(owner->fixture->arena, owner->blocks[owner->count], 0) == 0;
}

static void open_owner(struct owner *owner, struct fixture *fixture, int blocks)
{
    struct arena_options options = {
        .budget_bytes = 16 * PAGE, .reservation_bytes = 64 * PAGE, .evict = evict, .owner = owner};

    *fixture = fixture_open(&options);
    *owner = (struct owner){.fixture = fixture};
    while (owner->count < blocks)
        owner->blocks[owner->count++] = take(fixture, 2 * PAGE, 0);
}

static void test_eviction(void)
{
    struct fixture fixture;
    struct owner owner;
    struct arena_request request = {.bytes = 5 * PAGE, .stream = 1};
    struct arena_shortage shortage;
    uintptr_t address = 0;

    open_owner(&owner, &fixture, 8);
    EXPECT(arena_alloc(fixture.arena, &request, &address, &shortage) == 0);
    EXPECT(owner.calls == 3, "%d calls: three blocks of two pages for five", owner.calls);
    EXPECT(owner.asked == PAGE, "asked last for %" PRIu64 ": one page was lacking", owner.asked);
    EXPECT(stats_of(&fixture).evictions == 3);
    EXPECT(fixture.fake->waits > 0, "what was evicted was under queued work");
    request.bytes = 17 * PAGE;
    EXPECT(arena_alloc(fixture.arena, &request, &address, &shortage) == -ENOMEM);
    EXPECT(shortage.requested_bytes == 17 * PAGE && shortage.budget_bytes == 16 * PAGE);
    EXPECT(shortage.free_bytes == PAGE && shortage.largest_free_bytes == PAGE);
    EXPECT(owner.calls == 3, "nothing is evicted for what can never fit");
    request.bytes = 16 * PAGE;
    EXPECT(arena_alloc(fixture.arena, &request, &address, &shortage) == -ENOMEM);
    EXPECT(shortage.free_bytes == 11 * PAGE && shortage.largest_free_bytes == 11 * PAGE);
    EXPECT(owner.count == 0 && !shortage.device_full, "all that can be evicted is tried");
    fixture_close(&fixture);
}

/* The device has pages but no memory for its tables of them: what is mapped already must do. */
static void test_pages_that_cannot_be_mapped(void)
{
    struct fixture fixture;
    struct owner owner;

    open_owner(&owner, &fixture, 7);
    fixture.fake->unmappable = UINT64_MAX;
    EXPECT(take(&fixture, 3 * PAGE, 0) != 0, "14 of 16 pages are used");
    EXPECT(owner.calls == 2 && fixture.fake->live_count == 14, "%d calls, %" PRIu64 " pages",
           owner.calls, fixture.fake->live_count);
    fixture.fake->unmappable = 1;
    EXPECT(take(&fixture, 3 * PAGE, 0) != 0, "a page is moved, or made after all");
    fixture.fake->unmappable = 0;
    fixture_close(&fixture);
}

/* What waiting alone can give is not evicted for. */
static void test_wait_rather_than_evict(void)
{
    struct fixture fixture;
    struct owner owner;
    uintptr_t block;

    open_owner(&owner, &fixture, 4);
    block = take(&fixture, 8 * PAGE, 0);
    fake_queue(fixture.fake, 0, block, 8 * PAGE);
    EXPECT(arena_free(fixture.arena, block, 0) == 0);
    EXPECT(take(&fixture, 8 * PAGE, 1) == block);
    EXPECT(owner.calls == 0 && fixture.fake->waits == 1);
    fixture_close(&fixture);
}

static void test_shrinking_waits_rather_than_evicts(void)
{
    struct fixture fixture;
    struct owner owner;
    uintptr_t block;

    open_owner(&owner, &fixture, 4);
    block = take(&fixture, 8 * PAGE, 0);
    fake_queue(fixture.fake, 0, block, 8 * PAGE);
    EXPECT(arena_free(fixture.arena, block, 0) == 0);
    EXPECT(arena_set_budget(fixture.arena, 9 * PAGE) == 0);
    EXPECT(owner.calls == 0 && fixture.fake->waits == 1 && fixture.fake->live_count == 9);
    EXPECT(arena_set_budget(fixture.arena, 5 * PAGE) == 0);
    EXPECT(owner.calls == 2 && fixture.fake->live_count <= 5, "%d calls", owner.calls);
    EXPECT(arena_set_budget(fixture.arena, 0) == 0 && fixture.fake->live_count == 0);
    fixture_close(&fixture);
}

static void test_owner_that_lies(void)
{
    struct fixture fixture;
    struct owner owner;

    open_owner(&owner, &fixture, 8);
    owner.lies = true;
    EXPECT(take(&fixture, 5 * PAGE, 1) == 0, "and it returns");
    EXPECT(owner.calls == 1 && stats_of(&fixture).evictions == 0);
    fixture_close(&fixture);
}

int main(void)
{
    test_same_stream_at_once();
    test_other_stream_after_fence();
    test_no_unmap_before_fence();
    test_wait_before_failure();
    test_slot_of_another_stream();
    test_runs_of_two_streams_join();
    test_destroy_waits();
    test_eviction();
    test_pages_that_cannot_be_mapped();
    test_wait_rather_than_evict();
    test_shrinking_waits_rather_than_evicts();
    test_owner_that_lies();
    return test_finish();
}
