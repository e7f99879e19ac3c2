/* SPDX-License-Identifier: MIT */
/* What fits: an image's needs, what the budget leaves, and which images have memory. */
#include <errno.h>
#include <math.h>

#include "engine/pipeline.h"

uint64_t in_pages(const struct engine *engine, uint64_t bytes)
{
    uint64_t page = engine->backend->pages->granule_bytes;

    return (bytes + page - 1) / page * page;
}

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

uint64_t fixed_bytes(const struct engine *engine)
{
    struct arena_stats stats = {0};

    /* What the back end says itself is the worker's. */
    if (engine->arena != NULL)
        arena_stats(engine->arena, &stats);
    else
        stats.charged = engine->backend->context_bytes;
    return stats.charged + in_pages(engine, engine->backend->workspace_bytes);
}

static uint64_t states_bytes(const struct engine *engine)
{
    uint64_t bytes = 0;

    for (const struct image *image = engine->images; image != NULL; image = image->next)
        if (image->memory != 0)
            bytes += in_pages(engine, image->needs.state);
    return bytes;
}

uint64_t engine_room(const struct engine *engine)
{
    uint64_t taken = fixed_bytes(engine) + states_bytes(engine);
    uint64_t room = engine->budget > taken ? engine->budget - taken : 0;

    return room - room % engine->backend->pages->granule_bytes;
}

/* ---- an image's needs ---- */

int image_measure(struct image *image, struct error *err)
{
    struct needs *needs = &image->needs;

    if (rehearse_step(image->engine, image->tokens, &image->step_scratch) != 0 ||
        condition_measure(image, &needs->condition) != 0 ||
        decode_measure(image, &needs->decode) != 0)
        return error_set(err, ENOMEM, "out of host memory");
    needs->step = image->step_scratch.total_bytes;
    return 0;
}

/* Workspace and weights of the passes that need the image's state. */
static uint64_t denoise_bytes(const struct engine *engine, const struct needs *needs)
{
    return larger(in_pages(engine, needs->condition) + engine->transformer.condition.least_bytes,
                  in_pages(engine, needs->step) + engine->transformer.step.least_bytes);
}

static uint64_t decode_bytes(const struct engine *engine, const struct needs *needs)
{
    return in_pages(engine, needs->decode) + engine->vae.blocks.least_bytes;
}

uint64_t image_budget(const struct image *image)
{
    const struct engine *engine = image->engine;
    struct image least = *image;
    uint64_t denoise;

    modulations_hold_one(&least); /* whatever it holds just now */
    denoise = in_pages(engine, least.needs.state) + denoise_bytes(engine, &least.needs);
    return fixed_bytes(engine) +
           larger(larger(engine->encode_bytes, denoise), decode_bytes(engine, &image->needs));
}

int measure_least_budget(struct engine *engine, struct error *err)
{
    int side = 2 * vae_enlargement(&engine->vae.config);
    struct image_request smallest = {
        .width_px = side, .height_px = side, .steps = 1, .cfg_scale = 1};
    struct image image = image_of(engine, &smallest);
    int result = image_measure(&image, err);

    engine->least_bytes = image_budget(&image) - fixed_bytes(engine);
    scratch_finish(&image.step_scratch);
    return result;
}

uint64_t least_budget(const struct engine *engine)
{
    return fixed_bytes(engine) + engine->least_bytes;
}

/* ---- who has memory ---- */

static bool has_memory(const struct image *image)
{
    return image->memory != 0;
}

uint64_t denoise_most(const struct engine *engine, const struct image *other)
{
    uint64_t most = other != NULL ? denoise_bytes(engine, &other->needs) : 0;

    for (const struct image *image = engine->images; image != NULL; image = image->next)
        if (has_memory(image))
            most = larger(most, denoise_bytes(engine, &image->needs));
    return most;
}

/* Seconds that a step takes for each of so many images, those that are active and more like the
 * last. */
static double step_s(const struct engine *engine, int count)
{
    uint64_t states = 0, taken = context_later(engine);
    uint64_t room = engine_room(engine) + states_bytes(engine), step = 0;
    const struct image *last = NULL;
    int active = 0;

    for (const struct image *image = engine->images; image != NULL; image = image->next) {
        if (!image_active(image) || active == count)
            continue;
        last = image;
        active++;
        states += in_pages(engine, image->needs.state);
        step = larger(step, in_pages(engine, image->needs.step));
    }
    if (last == NULL)
        return 1.0 / count; /* nobody knows how large they will be */
    taken += step + states + (uint64_t)(count - active) * in_pages(engine, last->needs.state);
    return offload_period(&engine->offload, &engine->transformer.step,
                          room > taken ? room - taken : 0,
                          (double)(count * last->branch_count) / (double)engine->lanes) /
           count;
}

/* Whether copying the weights takes so much longer than computing with them for fewer images that
 * one more may pay. Where both go on at once, more than cover a copy smooth out what each block has
 * of the two. */
static bool may_pay(const struct engine *engine, int count)
{
    const struct timeline_sums *sums = &engine->timeline.sums;
    double rate = sums->copy_bytes > 0 ? sums->copy_s / (double)sums->copy_bytes : 0;
    double share = engine->backend->host || count <= 2 ? 1.1 : 0.6;

    return (double)engine->streamed_bytes * rate > share * engine->lane_s * (count - 1);
}

/* What one image more must gain: each is ready later for it. */
#define GAIN 0.97

/* Seconds of a step for each, when so many go in step as long as there are as many, then the rest.
 */
static double mean_step_s(const double *step, size_t count, size_t images)
{
    size_t rest = images % count;
    double all = (double)(images - rest) * step[count];

    if (rest > 0)
        all += (double)rest * step[rest];
    return all / (double)images;
}

int engine_wanted_images(const struct engine *engine, size_t waiting)
{
    double step[PASS_LANES + 1], best = INFINITY;
    size_t images = waiting;
    int wanted = 1;

    for (const struct image *image = engine->images; image != NULL; image = image->next)
        images += image_active(image);
    for (int count = 1; engine->lanes > 0 && count <= PASS_LANES && (size_t)count <= images &&
                        may_pay(engine, count);
         count++) {
        double now;

        step[count] = step_s(engine, count);
        now = mean_step_s(step, (size_t)count, images);
        if (now > 0 && now < GAIN * best) {
            best = now;
            wanted = count;
        }
    }
    return wanted;
}

void room_clear(struct engine *engine)
{
    struct error err;

    while (states_bytes(engine) > 0 && engine_room(engine) < denoise_most(engine, NULL)) {
        struct image *last = NULL;

        for (struct image *image = engine->images; image != NULL; image = image->next)
            if (has_memory(image))
                last = image;
        pass_close(engine);
        if (image_leave(last, &err) != 0)
            image_fail(last, &err);
    }
}

/* Whether an image's state finds room. Those that join others leave the back end's share free. */
static bool has_room(const struct engine *engine, const struct image *image)
{
    uint64_t needed = in_pages(engine, image->needs.state) + denoise_most(engine, image);

    return engine_room(engine) >= needed + (states_bytes(engine) > 0 ? context_later(engine) : 0);
}

bool room_fill(struct engine *engine)
{
    struct error err;

    for (struct image *image = engine->images; image != NULL; image = image->next) {
        int result;

        if (!image_active(image) || has_memory(image))
            continue;
        /* Nobody overtakes: what is free may be what this one needs next. */
        if (encode_needed(image) || image->step == image->request.steps || !has_room(engine, image))
            return true;
        pass_close(engine);
        result = image_enter(image, &err);
        if (result == -EAGAIN)
            return false;
        if (result != 0)
            image_fail(image, &err);
    }
    return true;
}

bool room_for_all(const struct engine *engine, uint64_t bytes)
{
    const struct block_list *step = &engine->transformer.step;

    bytes = in_pages(engine, bytes);
    for (size_t i = 0; i < step->count; i++)
        bytes += in_pages(engine, step->blocks[i]->bytes);
    return bytes <= engine_room(engine);
}

bool room_for_text(const struct engine *engine)
{
    return engine_room(engine) >= engine->encode_bytes;
}

bool room_for_decoding(const struct image *image)
{
    return engine_room(image->engine) >= decode_bytes(image->engine, &image->needs);
}
