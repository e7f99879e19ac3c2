/* SPDX-License-Identifier: MIT */
/*
 * Pictures of mixed sizes in a row, of another prompt each, under a budget. None fails; a step
 * allocates nothing: activations are planned before a pass, and what is allocated within one is
 * weights that were not there. The budget is kept at every block, and memory stays whole.
 * usage: steady MODEL BACKEND MODULES BUDGET_MB COUNT LEAST_PX MOST_PX
 */
#include <string.h>

#include "engine/engine.h"
#include "tests/test.h"

enum { STEPS = 3 };

struct watch {
    struct engine *engine;
    enum image_phase phase;
    int step, blocks;
    bool t5, condition;
    uint64_t activations, allocations;
    double worst;
};

static bool is_t5(const struct image_progress *progress)
{
    return strncmp(progress->block_kind, "T5", 2) == 0;
}

/* The text encoders are two passes, and the condition pass is told as block 0 of a step. */
static bool same_pass(const struct watch *watch, const struct image_progress *progress)
{
    return watch->blocks > 0 && progress->phase == watch->phase && progress->step == watch->step &&
           is_t5(progress) == watch->t5 && (progress->block == 0) == watch->condition;
}

static void look(void *owner, struct image *image, const struct image_progress *progress)
{
    struct watch *watch = owner;
    struct engine_memory memory;

    engine_memory(watch->engine, &memory);
    EXPECT(memory.reserved <= memory.budget && memory.peak_reserved <= memory.budget);
    if (memory.fragmentation_merged > watch->worst)
        watch->worst = memory.fragmentation_merged;
    if (same_pass(watch, progress)) {
        EXPECT(memory.component[MEMORY_ACTIVATIONS] == watch->activations,
               "%s, step %d, %s: %llu bytes of activations, then %llu",
               image_phase_name(progress->phase), progress->step, progress->block_kind,
               (unsigned long long)watch->activations,
               (unsigned long long)memory.component[MEMORY_ACTIVATIONS]);
        if (progress->phase == IMAGE_DENOISE && progress->step > 1)
            EXPECT(memory.allocations == watch->allocations, "step %d, %s: %llu allocations",
                   progress->step, progress->block_kind,
                   (unsigned long long)(memory.allocations - watch->allocations));
    }
    watch->blocks = same_pass(watch, progress) ? watch->blocks + 1 : 1;
    watch->phase = progress->phase;
    watch->step = progress->step;
    watch->t5 = is_t5(progress);
    watch->condition = progress->block == 0;
    watch->activations = memory.component[MEMORY_ACTIVATIONS];
    watch->allocations = memory.allocations;
}

static int side(uint32_t *state, int least, int most)
{
    *state = *state * 1664525u + 1013904223u;
    return least + (int)((*state >> 8) % (uint32_t)((most - least) / 16 + 1)) * 16;
}

static void paint(struct watch *watch, int number, int width, int height)
{
    char prompt[64];
    struct image_request request = {.prompt = prompt,
                                    .width_px = width,
                                    .height_px = height,
                                    .steps = STEPS,
                                    .guidance = 3.5f,
                                    .cfg_scale = 1};
    struct image_observer observer = {watch, look};
    struct image *image = NULL;
    struct error err = {0};

    snprintf(prompt, sizeof prompt, "picture number %d", number);
    watch->blocks = 0;
    if (!EXPECT(image_start(&image, watch->engine, &request, &observer, &err) == 0, "%s", err.text))
        return;
    while (image_phase(image) < IMAGE_DONE)
        (void)engine_advance(watch->engine, &err);
    EXPECT(image_phase(image) == IMAGE_DONE, "picture %d, %dx%d: %s", number, width, height,
           err.text);
    image_finish(image);
}

int main(int argc, char **argv)
{
    struct engine_options options = {.threads = 2};
    struct engine_memory memory;
    struct watch watch = {0};
    struct error err = {0};
    uint32_t random = 3;

    if (argc != 8)
        return test_skip("usage: steady MODEL BACKEND MODULES BUDGET_MB COUNT LEAST_PX MOST_PX");
    options.model_path = argv[1];
    options.backend = argv[2];
    options.module_dir = argv[3];
    options.vram_budget_bytes = (uint64_t)atoi(argv[4]) * 1000000;
    if (!EXPECT(engine_open(&watch.engine, &options, &err) == 0, "%s", err.text))
        return test_finish();
    for (int i = 0; i < atoi(argv[5]) && test_failures == 0; i++) {
        int width = side(&random, atoi(argv[6]), atoi(argv[7]));

        paint(&watch, i, width, side(&random, atoi(argv[6]), atoi(argv[7])));
    }
    engine_memory(watch.engine, &memory);
    printf("%s pictures within %.1f of %.1f MB; %llu allocations, %llu merges; %llu blocks stay, "
           "%llu pass; fragmentation %.2f %% at the end, %.2f %% at worst\n",
           argv[5], (double)memory.peak_reserved / 1e6, (double)memory.budget / 1e6,
           (unsigned long long)memory.allocations, (unsigned long long)memory.merges,
           (unsigned long long)memory.resident_blocks, (unsigned long long)memory.streamed_blocks,
           100 * memory.fragmentation_merged, 100 * watch.worst);
    EXPECT(memory.fragmentation_merged <= 0.01 && watch.worst <= 0.05);
    engine_close(watch.engine);
    return test_finish();
}
