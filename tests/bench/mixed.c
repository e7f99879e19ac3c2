/* SPDX-License-Identifier: MIT */
/*
 * Pictures of mixed sizes in a row: does memory stay whole, and is the budget kept, by our own
 * count and by that of a device which nobody else uses?
 *
 * usage: bench_mixed MODEL [COUNT [LEAST_PX [MOST_PX [BUDGET_MB [TRACE [BACKEND [MODULES]]]]]]]
 * TRACE "-": none
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"

/* What a driver may count beyond ours. */
#define DRIVER_SLACK_BYTES ((uint64_t)32 << 20)

struct watch {
    struct engine *engine;
    double worst, worst_merged;
    unsigned over_budget;
    uint64_t device_used; /* at most */
};

static void look(void *owner, struct image *image, const struct image_progress *progress)
{
    struct watch *watch = owner;
    struct engine_memory memory;
    uint64_t used;

    engine_memory(watch->engine, &memory);
    if (memory.fragmentation > watch->worst)
        watch->worst = memory.fragmentation;
    if (memory.fragmentation_merged > watch->worst_merged)
        watch->worst_merged = memory.fragmentation_merged;
    watch->over_budget += memory.reserved > memory.budget;
    used = memory.device_total - memory.device_free;
    if (used > watch->device_used)
        watch->device_used = used;
}

static int argument(int argc, char **argv, int i, int fallback)
{
    return argc > i ? atoi(argv[i]) : fallback;
}

/* Sizes in no order, each a multiple of 64: the same in every run. */
static int side(uint32_t *state, int least, int most)
{
    *state = *state * 1664525u + 1013904223u;
    return least + (int)((*state >> 8) % (uint32_t)((most - least) / 64 + 1)) * 64;
}

static int paint(struct engine *engine, struct watch *watch, int width, int height,
                 struct error *err)
{
    struct image_request request = {.prompt = "a large red circle on a white background",
                                    .width_px = width,
                                    .height_px = height,
                                    .steps = 1,
                                    .guidance = 3.5f,
                                    .cfg_scale = 1};
    struct image_observer observer = {watch, look};
    struct image *image;

    if (image_start(&image, engine, &request, &observer, err) != 0)
        return err->code;
    while (image_phase(image) < IMAGE_DONE && engine_advance(engine, err) == 0)
        ;
    err->code = 0;
    image_error(image, err);
    image_finish(image);
    return err->code;
}

int main(int argc, char **argv)
{
    struct engine_options options = {0};
    int count = argument(argc, argv, 2, 50), failures = 0;
    int least = argument(argc, argv, 3, 512), most = argument(argc, argv, 4, 1024);
    struct engine_memory memory;
    struct watch watch = {0};
    uint32_t random = 1;
    struct error err = {0};

    if (argc < 2) {
        fprintf(stderr, "usage: bench_mixed MODEL [COUNT [LEAST_PX [MOST_PX [BUDGET_MB [TRACE "
                        "[BACKEND [MODULES]]]]]]]\n");
        return EXIT_FAILURE;
    }
    options.model_path = argv[1];
    options.vram_budget_bytes = (uint64_t)argument(argc, argv, 5, 600) * 1000000;
    options.trace_path = argc > 6 && strcmp(argv[6], "-") != 0 ? argv[6] : NULL;
    options.backend = argc > 7 ? argv[7] : "cpu";
    options.module_dir = argc > 8 ? argv[8] : NULL;
    if (engine_open(&watch.engine, &options, &err) != 0) {
        fprintf(stderr, "%s\n", err.text);
        return EXIT_FAILURE;
    }
    for (int i = 0; i < count; i++) {
        int width = side(&random, least, most), height = side(&random, least, most);

        if (paint(watch.engine, &watch, width, height, &err) != 0) {
            failures++;
            printf("%dx%d: %s\n", width, height, err.text);
        }
    }
    engine_memory(watch.engine, &memory);
    printf("%d pictures of %d to %d px a side, budget %.0f MB: %d failed; peak %.1f MB, over the "
           "budget %u times; fragmentation %.2f %% at the end, %.2f %% at worst (before merging "
           "%.2f %% and %.2f %%); waste %.1f %%; %llu allocations, %llu merges, %llu evictions\n",
           count, least, most, (double)memory.budget / 1e6, failures,
           (double)memory.peak_reserved / 1e6, watch.over_budget, memory.fragmentation_merged * 100,
           watch.worst_merged * 100, memory.fragmentation * 100, watch.worst * 100,
           memory.waste * 100, (unsigned long long)memory.allocations,
           (unsigned long long)memory.merges, (unsigned long long)memory.evictions);
    if (strcmp(options.backend, "cpu") != 0) {
        printf("%.1f MB of the device in use at most, as it counts\n",
               (double)watch.device_used / 1e6);
        watch.over_budget += watch.device_used > memory.budget + DRIVER_SLACK_BYTES;
    }
    engine_close(watch.engine);
    return failures == 0 && watch.over_budget == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
