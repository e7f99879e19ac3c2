/* SPDX-License-Identifier: MIT */
/*
 * A hundred pictures, some in company, while the budget is halved and doubled at random moments: no
 * failure, the same bits as without a limit, and the budget is kept at every block.
 * usage: elastic MODEL [SEED [HEIGHT_PX [BACKEND MODULES]]]
 */
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"
#include "tests/test.h"

enum { PICTURES = 100, KINDS = 6, COMPANY = 3 };

static uint64_t state;
static int height_px = 64;
static struct error err;

static uint64_t below(uint64_t limit)
{
    state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (state >> 33) % limit;
}

static struct image_request request_of(int kind)
{
    return (struct image_request){.prompt = kind % 2 == 0 ? "a large red circle" : "a blue star",
                                  .width_px = (3 + kind) * height_px / 4,
                                  .height_px = height_px,
                                  .steps = 2 + kind % 3,
                                  .guidance = 3.5f,
                                  .cfg_scale = kind == 4 ? 2 : 1,
                                  .seed = (uint64_t)kind};
}

static size_t picture_bytes(int kind)
{
    struct image_request r = request_of(kind);

    return (size_t)r.width_px * (size_t)r.height_px * 3;
}

/* Whether every kind of picture can be painted within a budget, which is set if it can be. */
static bool fits(struct engine *engine, uint64_t budget)
{
    bool all = engine_set_budget(engine, budget, &err) == 0;

    for (int kind = 0; kind < KINDS; kind++) {
        struct image_request r = request_of(kind);

        all = all && engine_check(engine, &r, &err) == 0;
    }
    return all;
}

/* Sets the smallest such budget from this one on, to 1 %. */
static uint64_t set_budget(struct engine *engine, uint64_t budget)
{
    while (!fits(engine, budget))
        budget += budget / 100;
    return budget;
}

struct shaker {
    struct engine *engine;
    uint64_t least, most, budget, beyond; /* beyond: in use, but not by our count */
    int changes, over;
    bool grows; /* the least: a device's driver may come to take more, for page tables */
};

/* After each block: with some luck half as much, or twice. */
static void shake(void *owner, struct image *image, const struct image_progress *progress)
{
    struct shaker *s = owner;
    struct engine_memory memory;
    uint64_t next = below(2) == 0 ? s->budget / 2 : 2 * s->budget, set;

    engine_memory(s->engine, &memory);
    s->over += memory.reserved > memory.budget;
    if (memory.device_total - memory.device_free > memory.reserved + s->beyond)
        s->beyond = memory.device_total - memory.device_free - memory.reserved;
    if (below(20) != 0)
        return;
    next = next < s->least ? s->least : next > s->most ? s->most : next;
    set = set_budget(s->engine, next);
    EXPECT(s->grows || set == next, "%.2f MB: %s", (double)next / 1e6, err.text);
    s->changes += set != s->budget;
    s->budget = set;
}

static struct engine *open_engine(const struct engine_options *options)
{
    struct engine *engine;

    if (engine_open(&engine, options, &err) != 0) {
        fprintf(stderr, "%s\n", err.text);
        exit(EXIT_FAILURE);
    }
    return engine;
}

static bool finished(struct image **images, int count)
{
    for (int i = 0; i < count; i++)
        if (image_phase(images[i]) < IMAGE_DONE)
            return false;
    return true;
}

/* Paints pictures of these kinds together, and compares them, or keeps the first of each kind. */
static void paint(struct engine *engine, const int *kinds, int count,
                  const struct image_observer *observer, uint8_t **expected)
{
    struct image *images[COMPANY];

    for (int i = 0; i < count; i++) {
        struct image_request r = request_of(kinds[i]);

        EXPECT(image_start(&images[i], engine, &r, observer, &err) == 0, "%s", err.text);
    }
    while (!finished(images, count) && EXPECT(engine_advance(engine, &err) == 0, "%s", err.text))
        ;
    for (int i = 0; i < count; i++) {
        const uint8_t *pixels = image_pixels(images[i]);
        size_t bytes = picture_bytes(kinds[i]);

        image_error(images[i], &err);
        if (EXPECT(pixels != NULL, "%s", err.text) && expected[kinds[i]] == NULL)
            expected[kinds[i]] = memcpy(malloc(bytes), pixels, bytes);
        else if (pixels != NULL)
            EXPECT(memcmp(pixels, expected[kinds[i]], bytes) == 0, "kind %d", kinds[i]);
        image_finish(images[i]);
    }
}

int main(int argc, char **argv)
{
    struct engine_options options = {.backend = "cpu", .threads = 2};
    uint8_t *expected[KINDS] = {NULL};
    struct engine *engine;
    struct shaker shaker;
    struct image_observer observer = {&shaker, shake};
    int painted = 0;

    if (argc < 2)
        return EXIT_FAILURE;
    state = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    height_px = argc > 3 ? atoi(argv[3]) : height_px;
    options.model_path = argv[1];
    if (argc > 5) {
        options.backend = argv[4];
        options.module_dir = argv[5];
    }
    engine = open_engine(&options);
    for (int kind = 0; kind < KINDS; kind++)
        paint(engine, &kind, 1, NULL, expected);
    shaker =
        (struct shaker){.engine = engine, .least = set_budget(engine, 1000000), .grows = argc > 5};
    shaker.most = shaker.budget = 8 * shaker.least;
    while (painted < PICTURES && test_failures < 10) {
        int kinds[COMPANY], count = 1 + (int)below(COMPANY);

        for (int i = 0; i < count; i++)
            kinds[i] = (int)below(KINDS);
        paint(engine, kinds, count, &observer, expected);
        painted += count;
    }
    printf("%d pictures, budget changed %d times between %.1f and %.1f MB, exceeded %d times\n",
           painted, shaker.changes, (double)shaker.least / 1e6, (double)shaker.most / 1e6,
           shaker.over);
    EXPECT(shaker.over == 0 && shaker.changes > 100);
    if (argc > 5)
        printf("at most %.1f MB more were in use than we count\n", (double)shaker.beyond / 1e6);
    engine_close(engine);
    for (int kind = 0; kind < KINDS; kind++)
        free(expected[kind]);
    return test_finish();
}
