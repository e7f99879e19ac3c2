/* SPDX-License-Identifier: MIT */
/* Which phase comes next, and what it does to those whom it serves. */
#include <errno.h>
#include <stdio.h>

#include "engine/pipeline.h"

static void drop_cancelled(struct engine *engine)
{
    for (struct image *image = engine->images; image != NULL; image = image->next)
        if (image_active(image) && atomic_load(&image->cancelled)) {
            image_release(image);
            image->phase = IMAGE_CANCELLED;
        }
}

enum round { ROUND_NONE, ROUND_TEXT, ROUND_CONDITION, ROUND_DENOISE, ROUND_DECODE };

static bool is_denoised(const struct image *image)
{
    return image->phase >= IMAGE_DENOISE && image->step == image->request.steps;
}

/* What an image needs next, if there is room for it now. */
static enum round wanted_round(const struct image *image)
{
    if (!image_active(image))
        return ROUND_NONE;
    if (is_denoised(image))
        return room_for_decoding(image) ? ROUND_DECODE : ROUND_NONE;
    if (encode_needed(image))
        return room_for_text(image->engine) ? ROUND_TEXT : ROUND_NONE;
    if (image->memory == 0)
        return ROUND_NONE;
    return condition_needed(image) ? ROUND_CONDITION : ROUND_DENOISE;
}

/* A finished image is decoded before others go on, a new one catches up with those that wait. */
static enum round next_round(const struct engine *engine, struct image **decode)
{
    enum round round = ROUND_NONE;

    for (struct image *image = engine->images; image != NULL; image = image->next) {
        enum round wanted = wanted_round(image);

        if (wanted == ROUND_DECODE) {
            *decode = image;
            return wanted;
        }
        if (wanted != ROUND_NONE && (round == ROUND_NONE || wanted < round))
            round = wanted;
    }
    return round;
}

/* For the trace, if one is recorded. */
static void mark_end(const struct image *image)
{
    char name[64];

    snprintf(name, sizeof name, "image, %dx%d", image->request.width_px, image->request.height_px);
    arena_mark(image->engine->arena, name);
}

static int decode(struct image *image, struct error *err)
{
    image->served = true;
    image->phase = IMAGE_DECODE;
    if (decode_image(image, err) != 0)
        return err->code;
    if (!atomic_load(&image->cancelled)) {
        image_release(image);
        image->phase = IMAGE_DONE;
        mark_end(image);
    }
    return 0;
}

/* What a round took goes to those whom it served. */
static void account(struct engine *engine, enum round round, double spent,
                    struct timeline_sums before)
{
    const struct timeline_sums *now = &engine->timeline.sums;

    for (struct image *image = engine->images; image != NULL; image = image->next) {
        struct image_timing *timing = &image->timing;

        if (!image->served)
            continue;
        if (round == ROUND_TEXT)
            timing->text_s += spent;
        else if (round == ROUND_CONDITION)
            timing->condition_s += spent;
        else if (round == ROUND_DENOISE)
            timing->denoise_s += spent;
        else
            timing->decode_s += spent;
        timing->compute_s += now->compute_s - before.compute_s;
        timing->copy_s += now->copy_s - before.copy_s;
        timing->wait_s += now->wait_s - before.wait_s;
    }
}

/* What went wrong for want of memory, or with what was asked for, is the images' own affair. */
static bool is_theirs(int code)
{
    return code == -ENOMEM || code == -ERANGE;
}

static int run_round(struct engine *engine, enum round round, struct image *image,
                     struct error *err)
{
    struct timeline_sums before = engine->timeline.sums;
    double start = engine_now(engine);
    int result;

    for (struct image *i = engine->images; i != NULL; i = i->next)
        i->served = false;
    if (round == ROUND_TEXT)
        result = encode_round(engine, err);
    else if (round == ROUND_CONDITION)
        result = condition_round(engine, err);
    else if (round == ROUND_DENOISE)
        result = denoise_round(engine, err);
    else
        result = decode(image, err);
    account(engine, round, engine_now(engine) - start, before);
    if (result == 0)
        return 0;
    pass_close(engine);
    if (result == -EAGAIN)
        return 0;
    for (struct image *i = engine->images; i != NULL; i = i->next)
        if (i->served)
            image_fail(i, err);
    return is_theirs(result) ? 0 : result;
}

/* Images whose state is no longer needed, since all that is left is decoding. */
static int leave_denoised(struct engine *engine, struct error *err)
{
    for (struct image *image = engine->images; image != NULL; image = image->next)
        if (image->memory != 0 && is_denoised(image) && image_leave(image, err) != 0) {
            image_fail(image, err);
            return err->code;
        }
    return 0;
}

/* Whether the budget would do for the image, but the device has not given that much. */
static bool is_denied(const struct image *image)
{
    const struct engine *engine = image->engine;

    return engine->budget == engine->ceiling && image_budget(image) <= budget_wanted(engine);
}

/* Nobody has memory, and yet there is not enough for the first in the row: it fails, unless the
 * device gives now what it did not give before, or may later. */
static int settle_first(struct engine *engine, struct error *err)
{
    struct image *first = engine->images;
    bool denied;

    while (first != NULL && !image_active(first))
        first = first->next;
    if (first == NULL) {
        pass_rest(engine);
        return 0;
    }
    if (budget_watch(engine) || pass_obtain(engine, image_budget(first)))
        return 0;
    denied = is_denied(first);
    error_set(err, denied ? EAGAIN : ENOMEM,
              "size %dx%d with %d steps needs a vram_budget of %s at least; there are %s%s",
              first->request.width_px, first->request.height_px, first->request.steps,
              size_needed(image_budget(first)).text, size_shown(engine->budget).text,
              denied ? ", for the device has no more" : "");
    if (denied)
        return err->code;
    image_fail(first, err);
    return 0;
}

int engine_advance(struct engine *engine, struct error *err)
{
    struct image *image = NULL;
    enum round round;
    int result;

    drop_cancelled(engine);
    if (leave_denoised(engine, err) != 0)
        return err->code;
    pass_budget(engine);
    room_clear(engine);
    if (!room_fill(engine))
        return 0;
    round = next_round(engine, &image);
    if (round == ROUND_NONE)
        return settle_first(engine, err);
    result = run_round(engine, round, image, err);
    drop_cancelled(engine);
    return result;
}
