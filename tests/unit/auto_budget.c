/* SPDX-License-Identifier: MIT */
/*
 * A budget that follows what others leave: on a card that is only described, with a driver that
 * others take memory from at every moment; and on the CPU, where the picture's bits stay the same.
 * usage: auto_budget CONFIGS MINI
 */
#include <errno.h>
#include <string.h>

#include "engine/described.h"
#include "engine/pipeline.h"
#include "tests/test.h"

#define GIB ((uint64_t)1 << 30)
#define CARD (24 * GIB)
#define MARGIN (CARD / 32)

static struct error err;

/* ---- a driver with other users ---- */

static const struct page_source_ops *own_ops;
static struct page_source_ops shared_ops;
static uint64_t total, ours, others; /* bytes; what they have is never more than what we leave */
static const struct backend *card;   /* which takes what it is granted */

static uint64_t left(void)
{
    uint64_t taken = ours + others + card->context_granted;

    return total > taken ? total - taken : 0;
}

static int shared_memory(struct page_source *source, uint64_t *free_bytes, uint64_t *total_bytes)
{
    *free_bytes = left();
    *total_bytes = total;
    return 0;
}

static int shared_create(struct page_source *source, page_handle *page)
{
    int result = left() < source->granule_bytes ? -ENOMEM : own_ops->create(source, page);

    ours += result == 0 ? source->granule_bytes : 0;
    return result;
}

static void shared_release(struct page_source *source, page_handle page)
{
    ours -= source->granule_bytes;
    own_ops->release(source, page);
}

static void share(struct engine *engine, uint64_t bytes)
{
    struct engine_memory memory;

    engine_memory(engine, &memory);
    card = engine->backend;
    total = bytes;
    ours = memory.reserved - card->context_granted;
    own_ops = engine->backend->pages->ops;
    shared_ops = *own_ops;
    shared_ops.memory = shared_memory;
    shared_ops.create = shared_create;
    shared_ops.release = shared_release;
    engine->backend->pages->ops = &shared_ops;
    others = 0;
}

/* ---- on the card ---- */

static const struct image_request request = {.prompt = "a fox",
                                             .negative = "",
                                             .width_px = 1024,
                                             .height_px = 1024,
                                             .steps = 6,
                                             .cfg_scale = 1};

static struct engine *open_card(const char *configs, uint64_t budget)
{
    const struct device_rates rates = {165e12, 165e12, 165e12, 1e12, 25e9, 0};
    struct engine_options options = {.model_path = configs, .vram_budget_bytes = budget};
    struct engine *engine = calloc(1, sizeof *engine);

    engine->planned = &request;
    if (engine_open_files(engine, configs, &err) != 0 ||
        described_create(&engine->backend, NULL, CARD, &err) != 0 ||
        engine_read(engine, &options, &err) != 0 || engine_reserve(engine, &options, &err) != 0) {
        fprintf(stderr, "%s\n", err.text);
        exit(EXIT_FAILURE);
    }
    described_set_rates(engine->backend, &rates);
    share(engine, CARD);
    return engine;
}

static void expect_fits(struct engine *engine)
{
    struct engine_memory memory;

    engine_memory(engine, &memory);
    EXPECT(memory.reserved <= memory.budget, "%.2f of %.2f GiB", (double)memory.reserved / GIB,
           (double)memory.budget / GIB);
}

/* Rounds until the image has done so many steps, or is through. */
static void run_to(struct engine *engine, const struct image *image, int step)
{
    while (image_active(image) && image->step < step && engine_advance(engine, &err) == 0)
        expect_fits(engine);
}

/* Others take all that is free. */
static uint64_t take_free(void)
{
    others += left();
    return others;
}

static void test_follows(const char *configs)
{
    struct engine *engine = open_card(configs, 0);
    uint64_t full = CARD - MARGIN, taken;
    struct image *image;

    EXPECT(engine->budget == full, "%.3f GiB", (double)engine->budget / GIB);
    EXPECT(image_start(&image, engine, &request, NULL, &err) == 0, "%s", err.text);
    run_to(engine, image, 1);
    EXPECT(engine->budget == full);

    others = MARGIN / 2 - 1; /* a little is what the margin is for */
    run_to(engine, image, 2);
    EXPECT(engine->budget == full, "%.3f GiB", (double)engine->budget / GIB);

    taken = take_free();
    EXPECT(taken > MARGIN / 2, "%.3f GiB", (double)taken / GIB);
    run_to(engine, image, 3);
    EXPECT(engine->budget == full - taken, "%.3f GiB", (double)engine->budget / GIB);
    others = taken - MARGIN / 2; /* nor does it come back for a little */
    run_to(engine, image, 4);
    EXPECT(engine->budget == full - taken, "%.3f GiB", (double)engine->budget / GIB);

    others = 0;
    run_to(engine, image, 5);
    EXPECT(engine->budget == full, "%.3f GiB", (double)engine->budget / GIB);
    run_to(engine, image, INT32_MAX);
    EXPECT(image_phase(image) == IMAGE_DONE, "%s", image->error.text);
    image_finish(image);
    engine_close(engine);
}

/* What was set stays; automatic again, it follows again. */
static void test_set(const char *configs)
{
    struct engine *engine = open_card(configs, 10 * GIB);
    struct image *image;

    EXPECT(image_start(&image, engine, &request, NULL, &err) == 0, "%s", err.text);
    others = 4 * GIB;
    run_to(engine, image, 1);
    others = 0;
    run_to(engine, image, 2);
    EXPECT(engine->budget == 10 * GIB);
    EXPECT(engine_set_budget(engine, 0, &err) == 0);
    run_to(engine, image, 3);
    EXPECT(engine->budget == CARD - MARGIN);
    EXPECT(engine_set_budget(engine, 5 * GIB, &err) == 0);
    others = 1;
    run_to(engine, image, 4);
    EXPECT(engine->budget == 5 * GIB);
    image_finish(image);
    engine_close(engine);
}

/* Of a budget that was set others leave for long little more than a picture takes: once they give
 * memory back, it is in use again before long. */
static void test_asked_again(const char *configs)
{
    enum { LONG_S = 200, SOON_S = 90 };
    struct engine *engine = open_card(configs, 12 * GIB);
    struct image_request many = request;
    struct image *image;
    double since;

    many.steps = 1000;
    EXPECT(image_start(&image, engine, &many, NULL, &err) == 0, "%s", err.text);
    others = CARD - image_budget(image) - GIB / 16;
    since = engine_now(engine);
    while (engine_now(engine) < since + LONG_S && image_active(image) &&
           EXPECT(engine_advance(engine, &err) == 0))
        expect_fits(engine);
    EXPECT(image_active(image) && engine->budget < 2 * GIB, "%.3f GiB",
           (double)engine->budget / GIB);
    others = 0;
    since = engine_now(engine);
    while (engine->budget < 12 * GIB && image_active(image) &&
           EXPECT(engine_advance(engine, &err) == 0))
        expect_fits(engine);
    EXPECT(engine->budget == 12 * GIB && engine_now(engine) < since + SOON_S, "after %.0f s",
           engine_now(engine) - since);
    image_finish(image);
    engine_close(engine);
}

static uint64_t budget_without_grants(const struct image *image)
{
    return image_budget(image) - card->context_granted;
}

/* Others take all that is given back, but for what the picture must have: it holds more at first,
 * and gives that way too. */
static void test_holds_much(const char *configs)
{
    struct engine *engine = open_card(configs, 0);
    struct image_request many = request;
    struct image *image;
    uint64_t least;

    many.steps = 32;
    EXPECT(image_start(&image, engine, &many, NULL, &err) == 0, "%s", err.text);
    least = budget_without_grants(image);
    run_to(engine, image, 1);
    EXPECT(!modulations_spill(image) && budget_without_grants(image) == least);
    for (int step = 2; image_active(image); step++) {
        uint64_t most = CARD - least - card->context_granted;

        take_free();
        others = others < most ? others : most;
        run_to(engine, image, step);
    }
    EXPECT(image_phase(image) == IMAGE_DONE, "%s", image->error.text);
    least += card->context_granted;
    EXPECT(engine->budget == least, "%.3f GiB of %.3f", (double)engine->budget / GIB,
           (double)least / GIB);
    image_finish(image);
    engine_close(engine);
}

/* Others leave just what the picture takes: it is not given up for the sake of the margin. And a
 * prompt that comes when memory is free again is not refused by what was known before. */
static void test_little(const char *configs)
{
    struct engine *engine = open_card(configs, 0);
    struct image_request large = request;
    struct image *image, *other;
    uint64_t least;

    large.width_px = large.height_px = 2048;

    EXPECT(image_start(&image, engine, &request, NULL, &err) == 0, "%s", err.text);
    least = image_budget(image);
    others = CARD - least;
    run_to(engine, image, INT32_MAX);
    EXPECT(image_phase(image) == IMAGE_DONE, "%s", image->error.text);
    EXPECT(engine->budget == least, "%.3f GiB", (double)engine->budget / GIB);
    image_finish(image);

    EXPECT(engine_check(engine, &large, &err) == -ENOMEM);
    others = 0;
    EXPECT(engine_check(engine, &large, &err) == 0, "%s", err.text);
    EXPECT(image_start(&other, engine, &large, NULL, &err) == 0, "%s", err.text);
    run_to(engine, other, INT32_MAX);
    EXPECT(image_phase(other) == IMAGE_DONE && engine->budget == CARD - MARGIN, "%s",
           other->error.text);
    image_finish(other);
    engine_close(engine);
}

/* What was too little becomes just enough: the picture has it, though so little more is not taken
 * for the sake of those that have enough. */
static void test_little_more(const char *configs)
{
    struct engine *engine = open_card(configs, 0);
    struct image *image;
    uint64_t least, little = MARGIN / 32;

    EXPECT(image_start(&image, engine, &request, NULL, &err) == 0, "%s", err.text);
    least = image_budget(image);
    image_finish(image);

    others = CARD - MARGIN - least + little;
    EXPECT(engine_advance(engine, &err) == 0, "%s", err.text);
    EXPECT(engine->budget == least - little, "%.3f GiB", (double)engine->budget / GIB);
    EXPECT(engine_check(engine, &request, &err) == -ENOMEM);
    others -= 2 * little;
    EXPECT(image_start(&image, engine, &request, NULL, &err) == 0, "%s", err.text);
    run_to(engine, image, INT32_MAX);
    EXPECT(image_phase(image) == IMAGE_DONE, "%s", image->error.text);
    image_finish(image);
    engine_close(engine);
}

/* ---- on the CPU ---- */

/* A small one, and more than the picture takes. */
#define MACHINE 200000000
#define PICTURE 30000000

static uint64_t state = 1;

static uint64_t below(uint64_t limit)
{
    state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (state >> 33) % limit;
}

struct shaker {
    struct engine *engine;
    int over;
};

/* At each block others may take all that is free, but for what the picture takes, or give it back.
 */
static void shake(void *owner, struct image *image, const struct image_progress *progress)
{
    struct shaker *shaker = owner;
    struct engine_memory memory;

    engine_memory(shaker->engine, &memory);
    shaker->over += memory.reserved > memory.budget;
    if (below(4) != 0)
        return;
    others = 0;
    if (below(2) == 0)
        others = left() < MACHINE - PICTURE ? left() : MACHINE - PICTURE;
}

static uint8_t *paint(struct engine *engine, const struct image_observer *observer)
{
    static const struct image_request small = {.prompt = "a large red circle",
                                               .width_px = 96,
                                               .height_px = 64,
                                               .steps = 8,
                                               .guidance = 3.5f,
                                               .cfg_scale = 1};
    struct image *image;
    uint8_t *pixels = NULL;

    if (!EXPECT(image_start(&image, engine, &small, observer, &err) == 0, "%s", err.text))
        return NULL;
    while (image_active(image) && EXPECT(engine_advance(engine, &err) == 0, "%s", err.text))
        ;
    if (EXPECT(image_phase(image) == IMAGE_DONE, "%s", image->error.text))
        pixels = memcpy(malloc(96 * 64 * 3), image_pixels(image), 96 * 64 * 3);
    image_finish(image);
    return pixels;
}

static void test_bits(const char *mini)
{
    struct engine_options options = {.model_path = mini, .backend = "cpu", .threads = 2};
    struct shaker shaker = {0};
    struct image_observer observer = {&shaker, shake};
    uint8_t *expected, *pixels;
    uint64_t before;
    int changes = 0;

    if (!EXPECT(engine_open(&shaker.engine, &options, &err) == 0, "%s", err.text))
        return;
    share(shaker.engine, MACHINE);
    expected = paint(shaker.engine, NULL);
    for (int i = 0; i < 10; i++) {
        before = shaker.engine->budget;
        pixels = paint(shaker.engine, &observer);
        EXPECT(pixels != NULL && memcmp(pixels, expected, 96 * 64 * 3) == 0);
        changes += shaker.engine->budget != before;
        free(pixels);
    }
    EXPECT(changes > 0 && shaker.over == 0, "%d changes, %d times over", changes, shaker.over);
    free(expected);
    engine_close(shaker.engine);
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return test_skip("usage: auto_budget CONFIGS MINI");
    test_follows(argv[1]);
    test_set(argv[1]);
    test_little(argv[1]);
    test_little_more(argv[1]);
    test_holds_much(argv[1]);
    test_asked_again(argv[1]);
    test_bits(argv[2]);
    return test_finish();
}
