/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/pipeline.h"

struct tensor memory_place(uintptr_t base, uint64_t *at, enum dtype dtype, int64_t rows,
                           int64_t cols)
{
    struct tensor t = tensor_of(base == 0 ? NULL : (void *)(base + *at), dtype, rows, cols);

    *at += (tensor_bytes(&t) + ARENA_ALIGNMENT - 1) / ARENA_ALIGNMENT * ARENA_ALIGNMENT;
    return t;
}

uint64_t image_place(struct image *image, uintptr_t base)
{
    const struct transformer *transformer = &image->engine->transformer;
    const struct transformer_config *config = &transformer->config;
    enum dtype activation = image->engine->backend->activation;
    int all = image->text_tokens + image->tokens;
    uint64_t at = 0;

    image->latents = memory_place(base, &at, DTYPE_F32, image->tokens, config->channels);
    image->rope = memory_place(base, &at, DTYPE_F32, all, config->head_size);
    for (int b = 0; b < image->branch_count; b++) {
        struct branch *branch = &image->branches[b];

        branch->text = memory_place(base, &at, activation, image->text_tokens, config->width);
        branch->modulations =
            memory_place(base, &at, DTYPE_F32, image->held_steps, transformer->modulation_width);
        branch->hidden = memory_place(base, &at, activation, all, config->width);
        branch->carried = memory_place(base, &at, activation, all, config->width);
        branch->velocity = memory_place(base, &at, DTYPE_F32, image->tokens, config->channels);
    }
    return at;
}

int image_draw(struct image *image)
{
    if (image->kept != NULL)
        return 0;
    image->kept = malloc(tensor_bytes(&image->latents));
    if (image->kept != NULL && draw_noise(image, image->kept) == 0)
        return 0;
    free(image->kept);
    image->kept = NULL;
    return -ENOMEM;
}

int image_enter(struct image *image, struct error *err)
{
    struct engine *engine = image->engine;
    struct compute c = pass_compute(engine, NULL);
    float *rope = malloc(tensor_bytes(&image->rope));
    int result = 0;

    modulations_hold_all(image);
    if (rope == NULL || image_draw(image) != 0)
        result = error_set(err, ENOMEM, "out of host memory");
    if (result == 0)
        result = pass_allocate(engine, image->needs.state, "an image's state", &image->memory, err);
    if (result == 0) {
        image_place(image, image->memory);
        transformer_rope(&engine->transformer.config, image->text_tokens, image->token_rows,
                         image->token_cols, rope);
        op_upload(&c, image->rope, rope);
        op_upload(&c, image->latents, image->kept);
        image->phase = IMAGE_DENOISE;
    }
    if (result != 0)
        modulations_hold_one(image); /* what it needs at least */
    free(rope);
    return result;
}

static void give_memory(struct image *image)
{
    if (image->memory == 0)
        return;
    modulations_forget(image);
    arena_free(image->engine->arena, image->memory, 0);
    image->memory = 0;
    modulations_hold_one(image);
}

int image_leave(struct image *image, struct error *err)
{
    struct compute c = pass_compute(image->engine, NULL);
    int result;

    op_download(&c, image->kept, image->latents);
    result = pass_sync(image->engine, err);
    image->kept_step = image->step;
    if (result == -EAGAIN) { /* who knows what was downloaded */
        free(image->kept);
        image->kept = NULL;
        image->step = image->kept_step = 0;
        result = 0;
    }
    give_memory(image);
    return result;
}

void image_rewind(struct image *image)
{
    if (image->memory != 0)
        image->step = image->kept_step;
    give_memory(image);
}

void image_release(struct image *image)
{
    give_memory(image);
    free(image->kept);
    image->kept = NULL;
    for (int b = 0; b < image->branch_count; b++) {
        embedding_release(&image->engine->embeddings, image->branches[b].embedding);
        image->branches[b].embedding = NULL;
    }
}

void image_finish(struct image *image)
{
    if (image == NULL)
        return;
    image_release(image);
    for (struct image **i = &image->engine->images; *i != NULL; i = &(*i)->next) {
        if (*i == image) {
            *i = image->next;
            break;
        }
    }
    scratch_finish(&image->step_scratch);
    free((char *)image->request.prompt);
    free((char *)image->request.negative);
    free(image->sigmas);
    free(image->pixels);
    free(image);
}

struct transformer_step image_step_args(const struct image *image, const struct branch *branch)
{
    return (struct transformer_step){
        .latents = image->latents,
        .text = branch->text,
        .hidden = branch->hidden,
        .carried = branch->carried,
        .rope = image->rope,
        .modulation = modulations_of(image, branch),
        .velocity = branch->velocity,
    };
}

bool image_active(const struct image *image)
{
    return image->phase < IMAGE_DONE;
}

int images_active(struct image *const *images, int count)
{
    int active = 0;

    for (int i = 0; i < count; i++)
        active += image_active(images[i]);
    return active;
}

int images_steps(struct image *const *images, int count)
{
    int steps = 0;

    for (int i = 0; i < count; i++)
        steps += images[i]->step;
    return steps;
}

void image_fail(struct image *image, const struct error *err)
{
    image_release(image);
    image->phase = IMAGE_FAILED;
    image->error = *err;
}

/* Shares of an image's time, for progress: text, decoding; the rest is denoising. */
#define TEXT_SHARE 0.03
#define DECODE_SHARE 0.12

static double fraction_of(const struct image *image, double part)
{
    double denoise = 1.0 - TEXT_SHARE - DECODE_SHARE;

    switch (image->phase) {
    case IMAGE_TEXT:
        return TEXT_SHARE * part;
    case IMAGE_DENOISE:
        return TEXT_SHARE + denoise * (image->step + part) / image->request.steps;
    case IMAGE_DECODE:
        return TEXT_SHARE + denoise + DECODE_SHARE * part;
    case IMAGE_DONE:
        return 1;
    default:
        return 0;
    }
}

void image_report(struct image *image, size_t block, size_t blocks, const char *kind)
{
    struct image_progress progress = {
        .phase = image->phase,
        .step = image->phase == IMAGE_DENOISE ? image->step + 1 : 0,
        .steps = image->request.steps,
        .block = (int)block,
        .blocks = (int)blocks,
        .block_kind = kind,
        .fraction = fraction_of(image, (double)block / (double)blocks),
        .remaining_s = -1,
    };
    double elapsed = engine_now(image->engine) - image->started_s;

    if (image->observer.progress == NULL)
        return;
    if (progress.step > image->request.steps)
        progress.step = image->request.steps;
    if (progress.fraction > TEXT_SHARE)
        progress.remaining_s = elapsed * (1 - progress.fraction) / progress.fraction;
    image->observer.progress(image->observer.owner, image, &progress);
}

enum image_phase image_phase(const struct image *image)
{
    return image->phase;
}

int image_error(const struct image *image, struct error *err)
{
    if (image->phase != IMAGE_FAILED)
        return 0;
    return error_set(err, -image->error.code, "%s", image->error.text);
}

const uint8_t *image_pixels(const struct image *image)
{
    return image->phase == IMAGE_DONE ? image->pixels : NULL;
}

void image_timing(const struct image *image, struct image_timing *timing)
{
    *timing = image->timing;
    timing->step_s = image->step > 0 ? image->timing.denoise_s / image->step : 0;
}

void image_cancel(struct image *image)
{
    atomic_store(&image->cancelled, true);
}
