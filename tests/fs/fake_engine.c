/* SPDX-License-Identifier: MIT */
/*
 * An engine without weights for tests of the file system: it keeps the contract of engine/engine.h
 * and paints a gradient that depends on prompt, seed, guidance and size only. The environment sets
 * its pace and its faults:
 *   FLUXFS_FAKE_BLOCK_US  microseconds a block takes (default 200)
 *   FLUXFS_FAKE_AHEAD     blocks that may be on their way before the host waits (default 0)
 *   FLUXFS_FAKE_HOLD      a file: while it is there, no more blocks are passed, counted from the
 *                         opening, than the number in it says; below 0 the engine doesn't open
 *   FLUXFS_FAKE_TAKEN     a file: while it is there, other programs have the device's memory
 *   FLUXFS_FAKE_OPEN_FAIL a text: engine_open fails with it
 *   FLUXFS_FAKE_PROMPTS   prompts that the text encoders serve beside those of images (default 0)
 *   FLUXFS_FAKE_BACKEND   the name of the back end (default cpu)
 * A model's folder with a file "unreadable" in it is refused by the check, with "broken" can't be
 * opened; one with "damaged" has weights that the second step finds damaged, if the file was there
 * when the engine opened.
 * A prompt containing "[fail]" fails in its second step, one containing "[lost]" loses the device,
 * one containing "[lost late]" once it is being cancelled. 16 pixels a side need 1 MiB of budget,
 * and an image that has lost it fails at the next step; "[no room]" does so in the second step.
 */
#include "tests/fs/fake_engine.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define SMALLEST_BUDGET (64 * MIB)

long fake_number(const char *name, long fallback)
{
    const char *text = getenv(name);
    return text != NULL ? strtol(text, NULL, 10) : fallback;
}

void fake_sleep_us(long us)
{
    struct timespec time = {us / 1000000, us % 1000000 * 1000};
    while (us > 0 && nanosleep(&time, &time) != 0 && errno == EINTR) {
    }
}

long fake_hold(void)
{
    const char *path = getenv("FLUXFS_FAKE_HOLD");
    FILE *file = path != NULL ? fopen(path, "re") : NULL;
    long limit = LONG_MAX;

    if (file != NULL && fscanf(file, "%ld", &limit) != 1) {
        limit = LONG_MAX;
    }
    if (file != NULL) {
        fclose(file);
    }
    return limit;
}

int engine_open(struct engine **engine, const struct engine_options *options, struct error *err)
{
    const char *fault = getenv("FLUXFS_FAKE_OPEN_FAIL");
    const char *backend = getenv("FLUXFS_FAKE_BACKEND");
    char broken[4200], damaged[4200];
    struct engine *new;

    while (fake_hold() < 0) {
        fake_sleep_us(1000);
    }
    if (fault != NULL) {
        return error_set(err, EINVAL, "%s", fault);
    }
    snprintf(broken, sizeof broken, "%s/broken", options->model_path);
    if (access(broken, F_OK) == 0) {
        return error_set(err, EINVAL, "%s: is broken", options->model_path);
    }
    if (options->vram_budget_bytes != 0 && options->vram_budget_bytes < SMALLEST_BUDGET) {
        return error_set(err, ENOMEM, "the budget is too small: at least 64 MiB are needed");
    }
    new = calloc(1, sizeof *new);
    if (new == NULL) {
        return error_set(err, ENOMEM, "no memory for the engine");
    }
    new->model_path = strdup(options->model_path != NULL ? options->model_path : "fake");
    snprintf(damaged, sizeof damaged, "%s/damaged", options->model_path);
    new->damaged = access(damaged, F_OK) == 0;
    pthread_mutex_init(&new->lock, NULL);
    const char *slash = strrchr(new->model_path, '/');
    new->info = (struct engine_info){
        .model_name = slash != NULL ? slash + 1 : new->model_path,
        .backend = backend != NULL ? backend : "cpu",
        .device_name = "no device, painting gradients",
        .parameters = 12000,
        .weight_bytes = 200 * MIB,
        .has_guidance = true,
        .native_px = 64,
        .default_steps = 4,
        .max_side_px = 2048,
        .max_tokens = 512,
    };
    new->memory = (struct engine_memory){
        .budget = options->vram_budget_bytes != 0 ? options->vram_budget_bytes : 256 * MIB,
        .page_bytes = 2 * MIB,
        .resident_blocks = 2,
        .streamed_blocks = BLOCKS - 2,
        .device_total = 1024 * MIB,
        .device_free = 768 * MIB,
    };
    *engine = new;
    return 0;
}

void engine_close(struct engine *engine)
{
    if (engine == NULL) {
        return;
    }
    for (struct image *image = engine->images, *next; image != NULL; image = next) {
        next = image->next;
        image_finish(image);
    }
    pthread_mutex_destroy(&engine->lock);
    free(engine->model_path);
    free(engine);
}

const struct engine_info *engine_info(const struct engine *engine)
{
    return &engine->info;
}

static int largest_side(const struct image_request *request)
{
    return request->width_px > request->height_px ? request->width_px : request->height_px;
}

int engine_check(const struct engine *engine, const struct image_request *request,
                 struct error *err)
{
    int largest = engine->info.max_side_px;
    struct engine_memory memory;
    engine_memory((struct engine *)engine, &memory);
    if (request->width_px > largest || request->height_px > largest) {
        return error_set(err, EINVAL, "size %dx%d: this model paints at most %d pixels a side",
                         request->width_px, request->height_px, largest);
    }
    if ((uint64_t)largest_side(request) / 16 * MIB > memory.budget) {
        return error_set(err, ENOMEM, "size %dx%d needs a vram_budget of %d MiB at least",
                         request->width_px, request->height_px, largest_side(request) / 16);
    }
    if (request->steps < 1 || request->steps > 1000) {
        return error_set(err, EINVAL, "steps %d: must be 1 to 1000", request->steps);
    }
    return 0;
}

void engine_memory(struct engine *engine, struct engine_memory *memory)
{
    pthread_mutex_lock(&engine->lock);
    *memory = engine->memory;
    pthread_mutex_unlock(&engine->lock);
}

size_t engine_memory_map(struct engine *engine, struct memory_run *runs, size_t capacity)
{
    const struct memory_run map[] = {
        {0, 40 * MIB, true, MEMORY_WEIGHTS},
        {40 * MIB, 8 * MIB, false, 0},
        {48 * MIB, 4 * MIB, true, MEMORY_ACTIVATIONS},
        {52 * MIB, 8 * MIB, false, 0},
    };
    size_t count = sizeof map / sizeof map[0];

    for (size_t i = 0; i < count && i < capacity; i++) {
        runs[i] = map[i];
    }
    return count;
}

int engine_wanted_images(const struct engine *engine, size_t waiting)
{
    return strcmp(engine->info.backend, "cpu") == 0 ? 1 : 4;
}

bool engine_cuts(const struct engine *engine, const char *prompt)
{
    return strlen(prompt) > (size_t)engine->info.max_tokens;
}

int engine_set_budget(struct engine *engine, uint64_t bytes, struct error *err)
{
    if (bytes != 0 && bytes < SMALLEST_BUDGET) {
        return error_set(err, EINVAL,
                         "a budget of %llu MiB is too small: at least 64 MiB are needed",
                         (unsigned long long)(bytes / MIB));
    }
    pthread_mutex_lock(&engine->lock);
    engine->memory.budget = bytes != 0 ? bytes : 256 * MIB;
    pthread_mutex_unlock(&engine->lock);
    return 0;
}
