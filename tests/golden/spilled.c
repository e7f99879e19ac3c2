/* SPDX-License-Identifier: MIT */
/*
 * Modulations that the host keeps, on a card whose streams run in any order that events allow: the
 * same pictures as with memory for all of them. And of weights no more is pinned than the budget
 * has page tables for.
 * usage: spilled MODEL BACKEND MODULES
 */
#include <string.h>

#include "engine/card.h"
#include "engine/pipeline.h"
#include "tests/test.h"

enum { COUNT = 2, WIDTH_PX = 64, HEIGHT_PX = 48, PICTURE_BYTES = WIDTH_PX * HEIGHT_PX * 3 };

static struct error err;
static bool spilled[COUNT];

static struct image_request request_of(int i)
{
    return (struct image_request){.prompt = "a blue star",
                                  .negative = i == 0 ? NULL : "red",
                                  .width_px = WIDTH_PX,
                                  .height_px = HEIGHT_PX,
                                  .steps = 2 + i,
                                  .guidance = 3.5f,
                                  .cfg_scale = (float)(1 + i),
                                  .seed = (uint64_t)i};
}

/* The least with which this one can be painted. */
static uint64_t least_for(struct engine *engine, int i)
{
    struct image_request request = request_of(i);
    struct image image = image_of(engine, &request);
    uint64_t bytes;

    EXPECT(image_measure(&image, &err) == 0, "%s", err.text);
    bytes = image_budget(&image);
    scratch_finish(&image.step_scratch);
    return bytes;
}

static void paint(struct engine *engine, uint8_t pixels[COUNT][PICTURE_BYTES])
{
    struct image *images[COUNT];
    struct image_request request;

    for (int i = 0; i < COUNT; i++) {
        request = request_of(i);
        if (!EXPECT(image_start(&images[i], engine, &request, NULL, &err) == 0, "%s", err.text))
            exit(EXIT_FAILURE);
        spilled[i] = false;
    }
    while (images_active(images, COUNT) > 0) {
        EXPECT(engine_advance(engine, &err) == 0, "%s", err.text);
        for (int i = 0; i < COUNT; i++)
            spilled[i] |= images[i]->branches[0].spilled != NULL;
    }
    for (int i = 0; i < COUNT; i++) {
        EXPECT(image_phase(images[i]) == IMAGE_DONE, "%s", images[i]->error.text);
        memcpy(pixels[i], image_pixels(images[i]), PICTURE_BYTES);
        image_finish(images[i]);
    }
}

static void expect_granted(const struct engine *engine, uint64_t pinned_before)
{
    struct backend *backend = engine->backend;
    uint64_t pinned = backend->ops->pinned_bytes(backend) - pinned_before;

    EXPECT(pinned <= backend->context_granted * CUDA_PINNED_PER_TABLE,
           "%.1f MB are pinned, %.1f MB of page tables granted", (double)pinned / 1e6,
           (double)backend->context_granted / 1e6);
}

int main(int argc, char **argv)
{
    static uint8_t freely[COUNT][PICTURE_BYTES], within[COUNT][PICTURE_BYTES];
    struct engine_options options = {.threads = 2};
    struct engine *engine;
    uint64_t pinned;

    if (argc != 4)
        return EXIT_FAILURE;
    options.model_path = argv[1];
    options.backend = argv[2];
    options.module_dir = argv[3];
    if (!EXPECT(engine_open(&engine, &options, &err) == 0, "%s", err.text))
        return EXIT_FAILURE;
    pinned = engine->backend->ops->pinned_bytes(engine->backend);
    paint(engine, freely);
    expect_granted(engine, pinned);
    EXPECT(!spilled[0] && !spilled[1]);
    EXPECT(engine_set_budget(engine, least_for(engine, 1), &err) == 0, "%s", err.text);
    paint(engine, within);
    expect_granted(engine, pinned);
    EXPECT(spilled[1]);
    for (int i = 0; i < COUNT; i++)
        EXPECT(memcmp(freely[i], within[i], PICTURE_BYTES) == 0, "picture %d", i);
    engine_close(engine);
    return test_finish();
}
