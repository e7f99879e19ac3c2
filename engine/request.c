/* SPDX-License-Identifier: MIT */
/* What can be asked for, what memory that takes, and the start of an image. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/pipeline.h"

/* Pixels of a picture for one token, along a side: the VAE's enlargement, times two. */
static int token_px(const struct engine *engine)
{
    return 2 * vae_enlargement(&engine->vae.config);
}

static int check_size(const struct engine *engine, const struct image_request *r, struct error *err)
{
    int unit = token_px(engine);

    if (r->width_px < unit || r->height_px < unit || r->width_px % unit != 0 ||
        r->height_px % unit != 0)
        return error_set(err, EINVAL, "size %dx%d: width and height must be multiples of %d",
                         r->width_px, r->height_px, unit);
    if (r->width_px > engine->info.max_side_px || r->height_px > engine->info.max_side_px)
        return error_set(err, EINVAL, "size %dx%d: at most %d pixels a side", r->width_px,
                         r->height_px, engine->info.max_side_px);
    return 0;
}

static int branch_count(const struct image_request *request)
{
    return request->cfg_scale != 1.0f ? 2 : 1;
}

struct image image_of(struct engine *engine, const struct image_request *request)
{
    struct image image = {.engine = engine, .request = *request};

    image.branch_count = branch_count(request);
    image.token_rows = request->height_px / token_px(engine);
    image.token_cols = request->width_px / token_px(engine);
    image.tokens = image.token_rows * image.token_cols;
    image.text_tokens = engine->info.max_tokens;
    modulations_hold_one(&image);
    return image;
}

static int check_values(const struct image_request *r, struct error *err)
{
    if (r->prompt == NULL)
        return error_set(err, EINVAL, "no prompt");
    if (r->steps < 1 || r->steps > 1000)
        return error_set(err, EINVAL, "steps %d: 1 to 1000 are possible", r->steps);
    if (!isfinite(r->guidance) || r->guidance < 0 || r->guidance > 1000)
        return error_set(err, EINVAL, "guidance: a number from 0 to 1000 is needed");
    if (!isfinite(r->cfg_scale) || r->cfg_scale < 0 || r->cfg_scale > 1000)
        return error_set(err, EINVAL, "true CFG scale: a number from 0 to 1000 is needed");
    if (r->seed >> 63 != 0)
        return error_set(err, EINVAL, "seed: must be below 2^63");
    return 0;
}

/* What was found possible must stay so: nothing else is given the memory for it. */
static void remember(struct engine *engine, uint64_t bytes)
{
    uint64_t before = atomic_load(&engine->asked_bytes);

    while (bytes > before && !atomic_compare_exchange_weak(&engine->asked_bytes, &before, bytes))
        ;
}

int engine_check(const struct engine *engine, const struct image_request *r, struct error *err)
{
    uint64_t least, budget;
    struct image image;
    int result;

    if (check_values(r, err) != 0 || check_size(engine, r, err) != 0)
        return err->code;
    image = image_of((struct engine *)engine, r); /* nothing but measures is made of it */
    result = image_measure(&image, err);
    least = image_budget(&image);
    scratch_finish(&image.step_scratch);
    budget = budget_possible((struct engine *)engine);
    if (result == 0 && least > budget)
        return error_set(
            err, ENOMEM, "size %dx%d with %d steps needs a vram_budget of %s at least; it is %s",
            r->width_px, r->height_px, r->steps, size_needed(least).text, size_shown(budget).text);
    if (result == 0)
        remember((struct engine *)engine, least - fixed_bytes(engine));
    return result;
}

static int copy_request(struct image *image, const struct image_request *request)
{
    const char *negative = request->negative != NULL ? request->negative : "";

    image->request.prompt = strdup(request->prompt);
    image->request.negative = strdup(negative);
    image->sigmas = calloc((size_t)request->steps + 1, sizeof *image->sigmas);
    image->branches[0].embedding = embeddings_hold(&image->engine->embeddings, request->prompt);
    if (image->branch_count == 2)
        image->branches[1].embedding = embeddings_hold(&image->engine->embeddings, negative);
    return image->request.prompt != NULL && image->request.negative != NULL &&
                   image->sigmas != NULL && image->branches[0].embedding != NULL &&
                   (image->branch_count == 1 || image->branches[1].embedding != NULL)
               ? 0
               : -ENOMEM;
}

int image_start(struct image **out, struct engine *engine, const struct image_request *request,
                const struct image_observer *observer, struct error *err)
{
    struct image *image, **last;

    if (engine_check(engine, request, err) != 0)
        return err->code;
    image = malloc(sizeof *image);
    if (image == NULL)
        return error_set(err, ENOMEM, "out of host memory");
    *image = image_of(engine, request);
    if (observer != NULL)
        image->observer = *observer;
    for (last = &engine->images; *last != NULL; last = &(*last)->next)
        ;
    *last = image;
    if (copy_request(image, request) != 0 || image_measure(image, err) != 0) {
        image_finish(image);
        return error_set(err, ENOMEM, "out of host memory");
    }
    sampler_sigmas(&engine->sampler, request->steps, image->tokens, image->sigmas);
    image->started_s = engine_now(engine);
    *out = image;
    return 0;
}
