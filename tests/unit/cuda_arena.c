/* SPDX-License-Identifier: MIT */
/* An arena over the CUDA page source: any call fails, memory goes to others, work is done late. */
#include "tests/unit/cuda_fixture.h"

#include "alloc/arena.h"

enum { BLOCKS = 24, BUDGET = 40 };

static void story(struct arena *arena)
{
    uintptr_t blocks[BLOCKS] = {0};

    for (int i = 0; i < BLOCKS; i++) {
        struct arena_request request = {(uint64_t)(1 + i % 3) * PAGE - 100, i % 2, 0};
        (void)arena_alloc(arena, &request, &blocks[i], NULL);
    }
    for (int i = 0; i < BLOCKS; i += 2)
        if (blocks[i] != 0)
            EXPECT(arena_free(arena, blocks[i], 0) == 0);
    for (int i = 0; i < BLOCKS; i += 2) {
        struct arena_request request = {i == 0 ? 10 * PAGE : 1000, 1, 0};
        blocks[i] = 0;
        (void)arena_alloc(arena, &request, &blocks[i], NULL);
    }
    for (int i = 1; i < BLOCKS; i += 2)
        if (blocks[i] != 0)
            EXPECT(arena_free(arena, blocks[i], 1) == 0);
    (void)arena_set_budget(arena, BUDGET / 2 * PAGE);
    (void)arena_trim(arena);
    (void)arena_set_budget(arena, BUDGET * PAGE);
}

/* Call k, and with `lost` all after it, fails; whether there was such a call. */
static bool test_story(uint64_t k, CUresult result, bool lost)
{
    struct arena_options options = {.budget_bytes = BUDGET * PAGE,
                                    .reservation_bytes = UINT64_C(4) * BUDGET * PAGE};
    struct arena_request request = {3 * PAGE, 0, 0};
    struct device_books before, after;
    struct arena *arena = NULL;
    const char *fault = "none";
    uintptr_t block = 0;
    struct fixture f;

    device_is("clean");
    fixture_open(&f);
    EXPECT(arena_create(&arena, f.pages, &options) == 0);
    device_read_books(&before);
    device_fail(k, lost ? UINT32_MAX : 0, (int)result);
    story(arena);
    device_read_books(&after);
    device_fail(0, 0, CUDA_SUCCESS);
    EXPECT(arena_check(arena, &fault) == 0, "%s", fault);
    EXPECT(arena_alloc(arena, &request, &block, NULL) == 0, "the device is back");
    EXPECT(arena_check(arena, &fault) == 0, "%s", fault);
    arena_destroy(arena); /* with blocks still living */
    fixture_close(&f);
    return after.calls - before.calls >= k;
}

static void test_every_call_failing(void)
{
    for (int i = 0; i < CODES; i++) {
        for (int lost = 0; lost < 2; lost++) {
            uint64_t k = 1;

            while (test_story(k, codes[i], lost) && test_failures == 0)
                k++;
            EXPECT(k > 100, "the story makes only %d calls", (int)k);
            if (test_failures > 0) {
                fprintf(stderr, "call %d, code %d, lost %d\n", (int)k, (int)codes[i], lost);
                return;
            }
            printf("code %d: each of %d calls failed%s\n", (int)codes[i], (int)k - 1,
                   lost ? ", and all after it" : "");
        }
    }
}

/* Another process takes what the budget would allow, and gives it back. */
static void test_other_process(void)
{
    struct arena_options options = {.budget_bytes = 64 * PAGE};
    struct arena_request request = {8 * PAGE, 0, 0};
    struct arena_shortage shortage = {0};
    struct arena *arena = NULL;
    struct arena_stats stats;
    uintptr_t blocks[4] = {0}, more = 0;
    struct fixture f;

    device_is("memory=512");
    fixture_open(&f);
    EXPECT(arena_create(&arena, f.pages, &options) == 0);
    for (int i = 0; i < 4; i++)
        EXPECT(arena_alloc(arena, &request, &blocks[i], NULL) == 0);
    device_is("memory=512 others=348"); /* with the context's 96, all but two pages */
    EXPECT(arena_free(arena, blocks[0], 0) == 0 && arena_free(arena, blocks[2], 0) == 0);
    request.bytes = 20 * PAGE;
    EXPECT(arena_alloc(arena, &request, &more, &shortage) == -ENOMEM && shortage.device_full);
    EXPECT(shortage.reserved_bytes == 32 * PAGE && shortage.free_bytes == 16 * PAGE);
    request.bytes = 18 * PAGE;
    EXPECT(arena_alloc(arena, &request, &more, &shortage) == 0, "two new pages and sixteen moved");
    arena_stats(arena, &stats);
    EXPECT(stats.merges == 1 && stats.pages_moved == 16, "%d moved", (int)stats.pages_moved);
    device_is("memory=512");
    EXPECT(arena_alloc(arena, &request, &blocks[0], &shortage) == 0, "there is room again");
    EXPECT(f.faults == 0, "%s", f.fault);
    arena_destroy(arena);
    fixture_close(&f);
}

/* ---- Work that is carried out late ---- */

static uint64_t broken;

struct touch {
    unsigned char *memory;
    uint64_t bytes;
    unsigned char pattern;
};

static void write_pattern(void *args)
{
    const struct touch *touch = args;

    if (device_is_accessible(touch->memory, touch->bytes))
        for (uint64_t i = 0; i < touch->bytes; i += 509)
            touch->memory[i] = touch->pattern;
    else
        broken++;
}

static void read_pattern(void *args)
{
    const struct touch *touch = args;

    if (!device_is_accessible(touch->memory, touch->bytes)) {
        broken++;
        return;
    }
    for (uint64_t i = 0; i < touch->bytes; i += 509)
        broken += touch->memory[i] != touch->pattern;
}

static uint64_t random_below(uint64_t *state, uint64_t limit)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (*state >> 33) % limit;
}

/* Blocks are filled and looked at by queued work, and given back before it is done. */
static void test_queued_work(const char *device, uint64_t state)
{
    struct arena_options options = {.budget_bytes = 32 * PAGE};
    struct touch touches[32] = {{0}};
    struct arena *arena = NULL;
    struct arena_stats stats;
    struct fixture f;

    device_is(device);
    fixture_open(&f);
    EXPECT(arena_create(&arena, f.pages, &options) == 0);
    for (int i = 0; i < 4000; i++) {
        struct touch *touch = &touches[random_below(&state, 32)];
        uint64_t bytes =
            1 + random_below(&state, random_below(&state, 3) > 0 ? PAGE / 4 : 8 * PAGE);
        struct arena_request request = {bytes, 0, 0};
        uintptr_t address = 0;

        if (touch->bytes != 0) {
            device_queue(f.stream, read_pattern, touch, sizeof *touch);
            EXPECT(arena_free(arena, (uintptr_t)touch->memory, 0) == 0);
            touch->bytes = 0;
        } else if (arena_alloc(arena, &request, &address, NULL) == 0) {
            *touch = (struct touch){(unsigned char *)address, bytes, (unsigned char)i};
            device_queue(f.stream, write_pattern, touch, sizeof *touch);
        }
        if (i % 500 == 499)
            (void)arena_trim(arena);
    }
    arena_stats(arena, &stats);
    printf("%d allocations, %d merges, %d waits, %d failures\n", (int)stats.allocations,
           (int)stats.merges, (int)stats.waits, (int)stats.failures);
    EXPECT(broken == 0 && stats.merges > 20 && stats.waits > 20);
    EXPECT(f.faults == 0, "%s", f.fault);
    arena_destroy(arena);
    EXPECT(broken == 0);
    fixture_close(&f);
}

int main(void)
{
    test_every_call_failing();
    test_other_process();
    test_queued_work("clean lazy", 1);
    test_queued_work("clean", 2);
    return test_finish();
}
