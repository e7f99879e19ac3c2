/* SPDX-License-Identifier: MIT */
/* The fake engine's images, from prompt to gradient. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tests/fs/fake_engine.h"

#define TEXT_LAYERS 3
static const char *const kinds[] = {"double attention", "double mlp", "single attention"};

/* Like a GPU, the device works by a clock of its own: it takes a block when it is through with the
 * one before, and the host loses nothing by being late unless the device has run out of blocks. */
static void sleep_until(double seconds)
{
    struct timespec end = {(time_t)seconds, (long)(1e9 * (seconds - (double)(time_t)seconds))};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &end, NULL) == EINTR) {
    }
}

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* As a GPU's libraries do while they compile. The handlers that they put back make system calls
 * start anew. */
static void handlers_disturb(void)
{
    signal(SIGTERM, signal(SIGTERM, SIG_DFL));
    signal(SIGINT, signal(SIGINT, SIG_DFL));
}

int image_start(struct image **image, struct engine *engine, const struct image_request *request,
                const struct image_observer *observer, struct error *err)
{
    struct image *new;

    if (engine_check(engine, request, err) != 0) {
        return err->code;
    }
    new = calloc(1, sizeof *new);
    if (new == NULL) {
        return error_set(err, ENOMEM, "no memory for an image");
    }
    handlers_disturb();
    fake_sleep_us(fake_number("FLUXFS_FAKE_START_US", 0));
    new->engine = engine;
    new->request = *request;
    new->request.prompt = strdup(request->prompt);
    new->request.negative = NULL;
    new->observer = *observer;
    new->progress = (struct image_progress){.steps = request->steps, .remaining_s = -1};
    new->next = engine->images;
    engine->images = new;
    *image = new;
    return 0;
}

static void memory_publish(struct engine *engine, uint64_t activations)
{
    struct engine_memory *memory = &engine->memory;

    pthread_mutex_lock(&engine->lock);
    memory->component[MEMORY_WEIGHTS] = 40 * MIB;
    memory->component[MEMORY_ACTIVATIONS] = activations;
    memory->requested = memory->allocated = 40 * MIB + activations;
    memory->reserved = 60 * MIB;
    if (memory->peak_reserved < memory->reserved) {
        memory->peak_reserved = memory->reserved;
    }
    memory->free_bytes = memory->reserved - memory->allocated;
    memory->largest_free_bytes = memory->free_bytes / 2;
    memory->fragmentation = 0.5;
    memory->fragmentation_merged = 0;
    memory->waste = 0.1;
    memory->pages_mapped = memory->reserved / memory->page_bytes;
    memory->allocations++;
    pthread_mutex_unlock(&engine->lock);
}

static void device_submit(struct engine *engine)
{
    double block_s = 1e-6 * (double)fake_number("FLUXFS_FAKE_BLOCK_US", 200);
    double ahead = (double)fake_number("FLUXFS_FAKE_AHEAD", 0);
    double now = seconds_now();

    engine->device_free_s = (now > engine->device_free_s ? now : engine->device_free_s) + block_s;
    sleep_until(engine->device_free_s - ahead * block_s);
}

/* Passes one block of `image`; false when the image was cancelled. */
static bool block_pass(struct image *image, int block, int blocks, const char *kind, double begin,
                       double share)
{
    struct image_progress *progress = &image->progress;

    device_submit(image->engine);
    while (image->engine->passed >= fake_hold() && !atomic_load(&image->cancelled)) {
        fake_sleep_us(1000);
    }
    image->engine->passed++;
    if (atomic_load(&image->cancelled)) {
        progress->phase = IMAGE_CANCELLED;
        return false;
    }
    progress->block = block;
    progress->blocks = blocks;
    progress->block_kind = kind;
    progress->fraction = begin + share * block / blocks;
    progress->remaining_s = image->timing.step_s * image->request.steps * (1 - progress->fraction);
    memory_publish(image->engine, (uint64_t)(block % 4 + 1) * MIB);
    if (image->observer.progress != NULL) {
        image->observer.progress(image->observer.owner, image, progress);
    }
    return true;
}

static uint64_t text_hash(const char *text, uint64_t hash)
{
    for (; *text != '\0'; text++) {
        hash = (hash ^ (uint8_t)*text) * UINT64_C(1099511628211);
    }
    return hash;
}

static int image_paint(struct image *image)
{
    int width = image->request.width_px, height = image->request.height_px;
    uint64_t hash = text_hash(image->request.prompt, image->request.seed + 1);
    uint8_t *pixel = malloc((size_t)width * (size_t)height * 3);

    if (pixel == NULL) {
        return error_set(&image->error, ENOMEM, "no memory for %dx%d pixels", width, height);
    }
    image->pixels = pixel;
    for (int y = 0; y < height; y++) {
        for (int x = 0; x < width; x++) {
            *pixel++ = (uint8_t)(255 * x / width + (int)(hash & 255));
            *pixel++ = (uint8_t)(255 * y / height + (int)(hash >> 8 & 255));
            *pixel++ = (uint8_t)((int)(hash >> 16 & 255) + (int)(10 * image->request.guidance));
        }
    }
    return 0;
}

static bool is_known(const struct image *image)
{
    for (size_t i = 0; i < image->engine->known_count; i++) {
        if (image->engine->known[i] == text_hash(image->request.prompt, 1)) {
            return true;
        }
    }
    return false;
}

/* The text encoders, for this image and for those that are to come. */
static void text_pass(struct image *image)
{
    struct image_progress *progress = &image->progress;
    double start = seconds_now();

    if (is_known(image)) {
        progress->phase = IMAGE_DENOISE;
        return;
    }
    memcpy(image->engine->known, image->engine->expected, sizeof image->engine->known);
    image->engine->known_count = image->engine->expected_count;
    progress->phase = IMAGE_TEXT;
    for (int i = 1; i <= TEXT_LAYERS; i++) {
        if (!block_pass(image, i, TEXT_LAYERS, "T5 layer", 0, 0.1)) {
            return;
        }
    }
    image->timing.text_s = seconds_now() - start;
    progress->phase = IMAGE_DENOISE;
}

static int image_pass(struct image *image, struct error *err)
{
    struct image_progress *progress = &image->progress;
    const char *prompt = image->request.prompt;
    int code = strstr(prompt, "[fail]") ? EIO : strstr(prompt, "[no room]") ? ENOMEM : 0;
    double start = seconds_now();

    if (progress->phase == IMAGE_WAITING) {
        text_pass(image);
        return 0;
    }
    if (progress->phase == IMAGE_DENOISE && progress->step < progress->steps) {
        progress->step++;
        if (progress->step == 2 && code != 0) {
            progress->phase = IMAGE_FAILED;
            error_set(&image->error, code, "the prompt asked for a failure");
            return 0;
        }
        if (progress->step == 2 && image->engine->damaged) {
            progress->phase = IMAGE_FAILED;
            error_set(&image->error, EINVAL, "%.80s/damaged: tensor x: NaN or infinite weights",
                      image->engine->model_path);
            return error_set(err, EINVAL, "%s", image->error.text);
        }
        while (strstr(prompt, "[lost late]") != NULL && !atomic_load(&image->cancelled)) {
            fake_sleep_us(1000);
        }
        if (strstr(prompt, "[lost") != NULL) {
            progress->phase = IMAGE_FAILED;
            error_set(&image->error, EIO, "the device was lost");
            return error_set(err, EIO, "the device was lost");
        }
        for (int i = 1; i <= BLOCKS; i++) {
            double begin = 0.1 + 0.8 * (progress->step - 1) / progress->steps;
            if (!block_pass(image, i, BLOCKS, kinds[i % 3], begin, 0.8 / progress->steps)) {
                return 0;
            }
        }
        image->timing.denoise_s += seconds_now() - start;
        image->timing.compute_s = image->timing.denoise_s;
        image->timing.step_s = image->timing.denoise_s / progress->step;
        return 0;
    }
    progress->phase = IMAGE_DECODE;
    progress->step = 0;
    if (block_pass(image, 1, 1, "VAE decoder", 0.9, 0.1)) {
        progress->phase = image_paint(image) == 0 ? IMAGE_DONE : IMAGE_FAILED;
        progress->fraction = 1;
        progress->remaining_s = 0;
        image->timing.decode_s = seconds_now() - start;
    }
    return 0;
}

size_t engine_wanted_prompts(const struct engine *engine)
{
    long wanted = 0;

    for (struct image *image = engine->images; image != NULL; image = image->next) {
        if (image->progress.phase == IMAGE_WAITING && !is_known(image)) {
            wanted = fake_number("FLUXFS_FAKE_PROMPTS", 0);
        }
    }
    return wanted < PROMPTS ? (size_t)wanted : PROMPTS;
}

void engine_expect(struct engine *engine, const char *const *prompts, size_t count)
{
    engine->expected_count = count;
    for (size_t i = 0; i < count; i++) {
        engine->expected[i] = text_hash(prompts[i], 1);
    }
}

/* Others have the device's memory, and someone here needs some. */
static bool is_short(struct engine *engine)
{
    const char *path = getenv("FLUXFS_FAKE_TAKEN");
    bool needed = false;

    if (path == NULL || access(path, F_OK) != 0) {
        return false;
    }
    for (struct image *image = engine->images; image != NULL; image = image->next) {
        if (image->progress.phase < IMAGE_DONE && atomic_load(&image->cancelled)) {
            image->progress.phase = IMAGE_CANCELLED;
        }
        needed |= image->progress.phase < IMAGE_DONE;
    }
    return needed;
}

int engine_advance(struct engine *engine, struct error *err)
{
    if (is_short(engine)) {
        return error_set(err, EAGAIN, "the device has no more");
    }
    for (struct image *image = engine->images; image != NULL; image = image->next) {
        if (image->progress.phase < IMAGE_DONE &&
            engine_check(engine, &image->request, &image->error) == -ENOMEM) {
            image->progress.phase = IMAGE_FAILED;
        } else if (image->progress.phase < IMAGE_DONE) {
            int code = image_pass(image, err);
            if (code != 0) {
                return code;
            }
            sleep_until(engine->device_free_s); /* as at the end of each round */
        }
    }
    return 0;
}

enum image_phase image_phase(const struct image *image)
{
    return image->progress.phase;
}

int image_error(const struct image *image, struct error *err)
{
    *err = image->error;
    return err->code;
}

const uint8_t *image_pixels(const struct image *image)
{
    return image->pixels;
}

void image_timing(const struct image *image, struct image_timing *timing)
{
    *timing = image->timing;
}

void image_cancel(struct image *image)
{
    atomic_store(&image->cancelled, true);
}

void image_finish(struct image *image)
{
    struct image **place;

    if (image == NULL) {
        return;
    }
    for (place = &image->engine->images; *place != image; place = &(*place)->next) {
    }
    *place = image->next;
    free(image->pixels);
    free((char *)image->request.prompt);
    free(image);
}
