/* SPDX-License-Identifier: MIT */
/*
 * A million images of changing sizes through one arena, simulated: weights that come and go in a
 * ring, activations by the size of the image, and blocks of all sizes that outlive images and lie
 * in the way of the next, under a budget 1 % above what the largest image needs with them. Nothing
 * fails, memory held does not grow, nothing fragments: R(t) = 1 − requested ÷ reserved at the
 * fullest moment of the largest image stays flat.
 */
#include "tests/fake_pages.h"
#include "tests/test.h"

#include <inttypes.h>

#include "alloc/arena.h"

enum { PAGE = 2 << 20, IMAGES = 1000000, PERIODS = 10, LAYERS = 3, HELD = 4, HELD_BYTES = 6 << 20 };

struct period {
    double waste_sum, waste_most, fragmentation_most;
    uint64_t moments, reserved_most;
};

static double mean_waste(const struct period *period)
{
    return period->waste_sum / (double)period->moments;
}

struct gallery {
    struct fake_pages *fake;
    struct arena *arena;
    uint64_t state, failures;
    uintptr_t held[HELD]; /* blocks that outlive images */
};

static uint64_t random_below(struct gallery *gallery, uint64_t limit)
{
    gallery->state = gallery->state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (gallery->state >> 33) % limit;
}

static uintptr_t take(struct gallery *gallery, uint64_t bytes, int stream)
{
    struct arena_request request = {.bytes = bytes, .stream = stream};
    uintptr_t address = 0;

    gallery->failures += arena_alloc(gallery->arena, &request, &address, NULL) != 0;
    return address;
}

static void give(struct gallery *gallery, uintptr_t address, int stream)
{
    if (address != 0)
        gallery->failures += arena_free(gallery->arena, address, stream) != 0;
}

/* At the fullest moment of the largest image. */
static void note_fullest(struct gallery *gallery, struct period *period)
{
    struct arena_stats stats;
    double waste;

    arena_stats(gallery->arena, &stats);
    waste = 1 - (double)stats.requested / (double)stats.reserved;
    period->waste_sum += waste;
    period->moments++;
    if (waste > period->waste_most)
        period->waste_most = waste;
    if (stats.reserved > period->reserved_most)
        period->reserved_most = stats.reserved;
}

static void note_end(struct gallery *gallery, struct period *period)
{
    struct arena_stats stats;

    arena_stats(gallery->arena, &stats);
    if (stats.fragmentation_merged > period->fragmentation_most)
        period->fragmentation_most = stats.fragmentation_merged;
}

static void make_image(struct gallery *gallery, uint64_t tokens, struct period *period)
{
    uint64_t row = tokens * 3072 * 2;
    uintptr_t hidden = take(gallery, row, 0), weights = take(gallery, 162 << 20, 1);

    for (int i = 0; i < LAYERS; i++) {
        uintptr_t next = take(gallery, i % 2 ? 162 << 20 : 270 << 20, 1);
        uintptr_t norm = take(gallery, row, 0), small = take(gallery, 36864, 0);
        uintptr_t inner = take(gallery, 4 * row, 0);
        uintptr_t *held = &gallery->held[random_below(gallery, HELD)];

        if (period && tokens == 4608)
            note_fullest(gallery, period);
        give(gallery, norm, 0);
        give(gallery, *held, 0);
        *held = take(gallery, 1 + random_below(gallery, i == 0 ? HELD_BYTES : 60000), 0);
        give(gallery, hidden, 0);
        hidden = take(gallery, row, 0);
        give(gallery, inner, 0);
        give(gallery, small, 0);
        give(gallery, weights, 1);
        weights = next;
    }
    give(gallery, hidden, 0);
    give(gallery, weights, 1);
    if (period)
        note_end(gallery, period);
}

static uint64_t random_tokens(struct gallery *gallery)
{
    uint64_t width = 32 + random_below(gallery, 33), height = 32 + random_below(gallery, 33);

    return 512 + width * height;
}

int main(int argc, char **argv)
{
    const struct fake_options fake_options = {PAGE, UINT64_C(1) << 40, false};
    struct arena_options options = {.budget_bytes = UINT64_C(2) << 30,
                                    .reservation_bytes = UINT64_C(8) << 30};
    int images = argc > 1 ? atoi(argv[1]) : IMAGES;
    struct gallery gallery = {.state = 5};
    struct period periods[PERIODS] = {{0}};
    const char *fault = "none";
    struct arena_stats stats;

    EXPECT(fake_pages_create(&gallery.fake, &fake_options) == 0);
    gallery.fake->instant = true;
    EXPECT(arena_create(&gallery.arena, &gallery.fake->source, &options) == 0);
    make_image(&gallery, 4608, NULL); /* 1024 × 1024, the largest: it sets the budget */
    arena_stats(gallery.arena, &stats);
    stats.peak_requested += HELD * HELD_BYTES;
    EXPECT(arena_set_budget(gallery.arena, stats.peak_requested / 100 * 101) == 0);
    for (int i = 0; i < images; i++) {
        uint64_t tokens = i % 8 == 0 ? 4608 : random_tokens(&gallery);
        make_image(&gallery, tokens, &periods[(int64_t)i * PERIODS / images]);
    }
    EXPECT(gallery.failures == 0, "%" PRIu64 " failures", gallery.failures);
    EXPECT(arena_check(gallery.arena, &fault) == 0, "%s", fault);
    for (int i = 0; i < PERIODS; i++) {
        const struct period *period = &periods[i];
        printf("%3d %%: R %.2f %%, at most %.2f %%, fragmentation %.2f %%, reserved %.0f MiB\n",
               (i + 1) * 100 / PERIODS, 100 * mean_waste(period), 100 * period->waste_most,
               100 * period->fragmentation_most, (double)period->reserved_most / (1 << 20));
        EXPECT(mean_waste(period) < mean_waste(&periods[0]) + 0.002 && period->waste_most < 0.06);
        EXPECT(period->fragmentation_most <= 0.01);
        EXPECT(period->reserved_most <= periods[0].reserved_most + 8 * PAGE);
    }
    arena_stats(gallery.arena, &stats);
    printf("%d images: %" PRIu64 " allocations, %" PRIu64 " misses, %" PRIu64 " merges\n", images,
           stats.allocations, stats.misses, stats.merges);
    EXPECT(stats.fragmentation_merged < 0.01, "%.4f at the end", stats.fragmentation_merged);
    EXPECT(stats.merges > (uint64_t)images / 1000, "%" PRIu64 " merges try nothing", stats.merges);
    arena_destroy(gallery.arena);
    EXPECT(!gallery.fake->fault && gallery.fake->live_count == 0);
    fake_pages_destroy(gallery.fake);
    return test_finish();
}
