/* SPDX-License-Identifier: MIT */
/* Latents to pixels. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "engine/pipeline.h"

/* The way of one image through the decoder; no pixels are wanted of a rehearsal. */
struct decoding {
    const struct image *image;
    uint64_t whole_bytes; /* see vae.h */
    struct vae_image vae;
    struct tensor rgb;
};

static void begin(struct compute *c, struct decoding *d)
{
    const struct image *image = d->image;
    const struct engine *engine = image->engine;
    struct tensor tokens =
        op_scratch_typed(c, DTYPE_F32, image->tokens, engine->transformer.config.channels);

    op_upload(c, tokens, image->kept);
    d->vae = vae_begin(c, &engine->vae, tokens, 2 * image->token_rows, 2 * image->token_cols,
                       d->whole_bytes);
    op_release(c, tokens);
}

static void apply(struct compute *c, size_t block, struct decoding *d)
{
    const struct vae *vae = &d->image->engine->vae;

    if (block == 0)
        begin(c, d);
    if (block + 1 == vae->blocks.count)
        d->rgb = op_scratch_typed(c, DTYPE_U8, d->vae.x.rows, 3);
    vae_apply(c, vae, block, &d->vae, d->rgb);
}

static int rehearse(const struct image *image, uint64_t whole_bytes, struct scratch *scratch)
{
    struct compute c = pass_rehearsal(image->engine, scratch);
    struct decoding d = {.image = image, .whole_bytes = whole_bytes};

    for (size_t i = 0; i < image->engine->vae.blocks.count; i++)
        apply(&c, i, &d);
    return scratch_plan(scratch);
}

int decode_measure(const struct image *image, uint64_t *bytes)
{
    struct scratch scratch = {0};
    int result = rehearse(image, 0, &scratch);

    *bytes = scratch.total_bytes;
    scratch_finish(&scratch);
    return result;
}

/* The fastest way that there is room for: the one that keeps most pictures whole. */
static int choose(const struct image *image, uint64_t *whole_bytes, struct scratch *scratch)
{
    const struct engine *engine = image->engine;
    uint64_t room = engine_room(engine) - engine->vae.blocks.least_bytes;

    *whole_bytes = UINT64_MAX;
    while (rehearse(image, *whole_bytes, scratch) == 0) {
        if (*whole_bytes == 0 || in_pages(engine, scratch->total_bytes) <= room)
            return 0;
        *whole_bytes = *whole_bytes == UINT64_MAX ? scratch->total_bytes / 2 : *whole_bytes / 2;
    }
    return -ENOMEM;
}

static bool all_finite(const float *x, size_t count)
{
    bool all = true;

    for (size_t i = 0; i < count; i++)
        all &= isfinite(x[i]) != 0;
    return all;
}

/* What the decoder makes of numbers that overflowed would be a black picture. */
static int check_latents(const struct image *image, struct error *err)
{
    size_t count = (size_t)image->tokens * (size_t)image->engine->transformer.config.channels;

    if (all_finite(image->kept, count))
        return 0;
    return error_set(err, ERANGE,
                     "the latents are NaN or infinite after %d steps: numbers overflowed in the "
                     "text encoders or the transformer; are their weights damaged?",
                     image->request.steps);
}

static int finish(struct compute *c, const struct image *image, struct decoding *d,
                  struct error *err)
{
    size_t count = (size_t)(d->vae.sums.rows * d->vae.sums.cols);
    float *sums = calloc(count + 1, sizeof *sums);
    int result;

    if (sums == NULL)
        return error_set(err, ENOMEM, "out of host memory");
    op_download(c, sums, d->vae.sums);
    op_download(c, image->pixels, d->rgb);
    result = pass_sync(image->engine, err);
    if (result == 0 && !all_finite(sums, count))
        result = error_set(err, ERANGE,
                           "the picture is NaN or infinite: numbers overflowed in the VAE; are its "
                           "weights damaged?");
    free(sums);
    return result;
}

static int run(struct image *image, const struct scratch *plan, struct decoding *d,
               struct error *err)
{
    struct engine *engine = image->engine;
    struct block_list *list = &engine->vae.blocks;
    struct scratch cursor;
    struct compute c;

    if (pass_open(engine, list, plan->total_bytes, err) != 0)
        return err->code;
    cursor = pass_cursor(engine, plan);
    c = pass_compute(engine, &cursor);
    for (size_t i = 0; i < list->count; i++) {
        if (atomic_load(&image->cancelled))
            return pass_sync(engine, err);
        if (pass_block(engine, i, false, err) != 0)
            return err->code;
        apply(&c, i, d);
        image_report(image, i + 1, list->count, list->blocks[i]->kind);
    }
    return finish(&c, image, d, err);
}

int decode_image(struct image *image, struct error *err)
{
    struct decoding d = {.image = image};
    struct scratch plan = {0};
    size_t pixels = (size_t)image->request.width_px * (size_t)image->request.height_px;
    int result = check_latents(image, err);

    if (result == 0 && image->pixels == NULL)
        image->pixels = malloc(3 * pixels);
    if (result == 0 && (image->pixels == NULL || choose(image, &d.whole_bytes, &plan) != 0))
        result = error_set(err, ENOMEM, "out of host memory");
    if (result == 0)
        result = run(image, &plan, &d, err);
    scratch_finish(&plan);
    return result;
}
