/* SPDX-License-Identifier: MIT */
/*
 * A story of growth, merging, slabs, streams and shrinking is told again and again; each time
 * another call of the driver fails, until one telling meets no failure. After each failure the
 * memory map is what it was before, check() is content, and the same step succeeds when repeated.
 */
#include "arena_fixture.h"

#include <errno.h>
#include <string.h>

enum { BLOCKS = 40, RUNS = 256, BUDGET = 48 };

struct picture {
    struct arena_run runs[RUNS];
    size_t count;
    uint64_t reserved, allocated;
};

struct story {
    struct fixture fixture;
    uintptr_t blocks[BLOCKS];
    int injected; /* the error that calls return */
    bool lost;    /* all calls from the failing one on fail */
    uint64_t met; /* steps that failed */
};

static void take_picture(const struct story *story, struct picture *picture)
{
    struct arena_stats stats = stats_of(&story->fixture);

    memset(picture, 0, sizeof *picture);
    picture->count = arena_map(story->fixture.arena, picture->runs, RUNS);
    picture->reserved = stats.reserved;
    picture->allocated = stats.allocated;
}

/* When a device is lost, a new page may be stuck where it was mapped: it stays charged. */
static void expect_same(const struct picture *before, const struct picture *after, bool lost)
{
    EXPECT(before->count == after->count && before->count <= RUNS);
    EXPECT(before->allocated == after->allocated);
    EXPECT(before->reserved == after->reserved || (lost && before->reserved < after->reserved),
           "reserved %" PRIu64 ", then %" PRIu64, before->reserved, after->reserved);
    for (size_t i = 0; i < before->count && i < after->count; i++) {
        const struct arena_run *a = &before->runs[i], *b = &after->runs[i];
        EXPECT(a->offset_bytes == b->offset_bytes && a->bytes == b->bytes && a->used == b->used);
    }
}

static void story_alloc(struct story *story, int number, uint64_t bytes, int stream)
{
    struct arena_request request = {.bytes = bytes, .stream = stream};
    struct picture before, after;
    int code;

    take_picture(story, &before);
    code = arena_alloc(story->fixture.arena, &request, &story->blocks[number], NULL);
    fixture_check(&story->fixture);
    if (code == 0)
        return;
    story->met++;
    EXPECT(code == story->injected, "code %d", code);
    EXPECT(story->blocks[number] == 0);
    take_picture(story, &after);
    expect_same(&before, &after, story->lost);
    if (story->lost)
        return;
    code = arena_alloc(story->fixture.arena, &request, &story->blocks[number], NULL);
    EXPECT(code == 0, "repeated: %d", code);
    fixture_check(&story->fixture);
}

static void story_free(struct story *story, int number, int stream)
{
    if (story->blocks[number] == 0)
        return;
    EXPECT(arena_free(story->fixture.arena, story->blocks[number], stream) == 0);
    story->blocks[number] = 0;
    fixture_check(&story->fixture);
}

static void story_set_budget(struct story *story, uint64_t pages)
{
    int code = arena_set_budget(story->fixture.arena, pages * PAGE);

    fixture_check(&story->fixture);
    if (code != 0) {
        story->met++;
        EXPECT(code == story->injected || code == -EAGAIN, "code %d", code);
    }
    if (story->lost)
        return;
    EXPECT(code == 0 || arena_set_budget(story->fixture.arena, pages * PAGE) == 0);
    fixture_check(&story->fixture);
}

static void tell(struct story *story)
{
    for (int i = 0; i < 8; i++) /* small blocks of several classes */
        story_alloc(story, i, 256U << i, i % 2);
    for (int i = 8; i < 24; i++) /* fills most of the budget */
        story_alloc(story, i, (1 + i % 3) * PAGE - 100, i % 2);
    for (int i = 8; i < 24; i += 2) /* leaves holes */
        story_free(story, i, 0);
    fake_queue(story->fixture.fake, 0, 0, 0);
    story_alloc(story, 24, 12 * PAGE, 1); /* must merge what stream 0 freed */
    story_free(story, 24, 1);
    for (int i = 9; i < 24; i += 2)
        story_free(story, i, 1);
    story_set_budget(story, 16);
    story_alloc(story, 25, 9 * PAGE, 0);
    story_free(story, 3, 1); /* on another stream than its slab's */
    story_set_budget(story, BUDGET);
    story_alloc(story, 26, 30 * PAGE, 1);
    story_free(story, 25, 0);
    (void)arena_trim(story->fixture.arena);
    fixture_check(&story->fixture);
    story_alloc(story, 27, 9 * PAGE, 0);
}

/* Whether call k was ever made. */
static bool test_call(uint64_t k, int error, bool lost)
{
    struct story story = {.injected = -error, .lost = lost};
    struct fake_pages *fake;
    uint64_t first_call;
    bool reached;

    story.fixture = fixture_open_pages(BUDGET);
    fake = story.fixture.fake;
    first_call = fake->calls; /* those of arena_create are tried elsewhere */
    fake->fail_at = first_call + k;
    fake->fail_repeat = lost ? UINT32_MAX : 0;
    fake->fail_code = -error;
    tell(&story);
    reached = fake->calls >= fake->fail_at;
    fake->fail_at = 0;
    if (story.lost && story.met > 0) /* the device is back: all is as good as before */
        EXPECT(arena_set_budget(story.fixture.arena, BUDGET * PAGE) == 0);
    if (!reached)
        EXPECT(stats_of(&story.fixture).merges > 0 && stats_of(&story.fixture).waits > 0);
    fixture_close(&story.fixture);
    return reached;
}

static void test_create(int error)
{
    const struct fake_options fake_options = {PAGE, UINT64_C(1) << 30, false};
    struct arena_options options = {.budget_bytes = 8 * PAGE};

    for (uint64_t k = 1; k <= 2; k++) { /* the memory's size, then the reservation */
        struct fake_pages *fake;
        struct arena *arena = NULL;

        EXPECT(fake_pages_create(&fake, &fake_options) == 0);
        fake->fail_at = k;
        fake->fail_repeat = UINT32_MAX;
        fake->fail_code = -error;
        EXPECT(arena_create(&arena, &fake->source, &options) == -error && !arena);
        fake->fail_at = 0;
        EXPECT(arena_create(&arena, &fake->source, &options) == 0);
        arena_destroy(arena);
        EXPECT(!fake->fault && fake->live_count == 0);
        fake_pages_destroy(fake);
    }
}

int main(void)
{
    static const int errors[] = {ENOMEM, EIO, EINVAL, ENODEV};

    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        for (int lost = 0; lost < 2; lost++) {
            uint64_t k = 1;

            while (test_call(k, errors[i], lost) && test_failures == 0)
                k++;
            EXPECT(k > 100, "the story makes only %" PRIu64 " calls", k);
            if (test_failures > 0) {
                fprintf(stderr, "call %" PRIu64 ", error %d, lost %d\n", k, errors[i], lost);
                return test_finish();
            }
            printf("error %d: each of %" PRIu64 " calls failed%s\n", errors[i], k - 1,
                   lost ? ", and all after it" : "");
        }
        test_create(errors[i]);
    }
    return test_finish();
}
