/* SPDX-License-Identifier: MIT */
/*
 * Several images at once, for company.c and mishaps.c: requests of all kinds, what each of them
 * makes alone, and whether it makes the same in company.
 */
#ifndef FLUXFS_TESTS_GOLDEN_COMPANY_H
#define FLUXFS_TESTS_GOLDEN_COMPANY_H

#include <errno.h>
#include <string.h>

#include "engine/pipeline.h"
#include "tests/test.h"

enum { COUNT = 5 };

static struct error err;

/* Sizes, steps and guidance of all kinds. */
static inline struct image_request request_of(int i)
{
    static const char *const prompts[] = {"a large red circle on a white background",
                                          "a small blue star in the night sky", "a yellow square",
                                          "a green triangle at sunset"};
    struct image_request r = {.prompt = prompts[i % 4],
                              .width_px = 64 + 32 * (i % 3),
                              .height_px = 48 + 16 * (i % 2),
                              .steps = 2 + i % 3,
                              .guidance = 3.5f,
                              .cfg_scale = i == 1 ? 2 : 1,
                              .seed = (uint64_t)i};

    return r;
}

static inline size_t picture_bytes(int i)
{
    struct image_request r = request_of(i);

    return (size_t)r.width_px * (size_t)r.height_px * 3;
}

static const char *model;
static bool card; /* the device is taken for one with memory of its own: modulations may spill */
static uint8_t *alone[COUNT]; /* what each request makes by itself */

static inline struct engine *open_engine(uint64_t budget)
{
    struct engine_options options = {
        .model_path = model, .backend = "cpu", .threads = 2, .vram_budget_bytes = budget};
    struct engine *engine;

    if (engine_open(&engine, &options, &err) != 0) {
        fprintf(stderr, "%s\n", err.text);
        exit(EXIT_FAILURE);
    }
    engine->backend->host = !card;
    return engine;
}

static inline struct image *start(struct engine *engine, int i,
                                  const struct image_observer *observer)
{
    struct image_request r = request_of(i);
    struct image *image = NULL;

    EXPECT(image_start(&image, engine, &r, observer, &err) == 0, "%s", err.text);
    return image;
}

static inline bool same(int i, const struct image *image)
{
    return image_phase(image) == IMAGE_DONE &&
           memcmp(image_pixels(image), alone[i], picture_bytes(i)) == 0;
}

/* Until nobody is active; the number of rounds in which the engine failed, or -EAGAIN as soon as it
 * is short of memory. */
static inline int run(struct engine *engine)
{
    int failures = 0, rounds = 0;
    bool active = true;

    for (; active && EXPECT(rounds < 500); rounds++) {
        int result = engine_advance(engine, &err);

        if (result == -EAGAIN)
            return result;
        active = false;
        failures += result != 0;
        for (struct image *image = engine->images; image != NULL; image = image->next)
            active |= image_active(image);
    }
    return failures;
}

static inline void paint_alone(void)
{
    struct engine *engine = open_engine(0);

    for (int i = 0; i < COUNT; i++) {
        struct image *image = start(engine, i, NULL);

        EXPECT(run(engine) == 0 && image_phase(image) == IMAGE_DONE, "%s", err.text);
        alone[i] = malloc(picture_bytes(i));
        memcpy(alone[i], image_pixels(image), picture_bytes(i));
        image_finish(image);
    }
    engine_close(engine);
}

/* The smallest budget for any of the requests alone. */
static inline uint64_t least_for_each(struct engine *engine)
{
    uint64_t least = 0;

    for (int i = 0; i < COUNT; i++) {
        struct image *image = start(engine, i, NULL);

        least = image_budget(image) > least ? image_budget(image) : least;
        image_finish(image);
    }
    return least;
}

/* The smallest budget that does for each request alone; 0 if there is no model. */
static inline uint64_t company_begin(int argc, char **argv)
{
    struct engine *engine;
    uint64_t least;

    if (argc < 2)
        return 0;
    model = argv[1];
    card = argc > 2 && strcmp(argv[2], "card") == 0;
    paint_alone();
    engine = open_engine(0);
    least = least_for_each(engine);
    engine_close(engine);
    return least;
}

static inline int company_end(void)
{
    for (int i = 0; i < COUNT; i++)
        free(alone[i]);
    return test_finish();
}

#endif
