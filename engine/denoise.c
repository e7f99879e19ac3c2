/* SPDX-License-Identifier: MIT */
/*
 * The transformer's two passes: the condition pass, once for every 32 steps of an image, and the
 * step pass, in which each block that comes serves all images, each at its own step and size.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/pipeline.h"
#include "engine/random.h"

/* diffusers scales noise levels and guidance by this before the sinusoid. */
#define SINUSOID_SCALE 1000.0f

/* One side of the guidance of one image. */
struct lane {
    struct image *image;
    struct branch *branch;
    struct scratch scratch;
    struct transformer_condition condition;
    struct transformer_step step;
};

struct round {
    struct engine *engine;
    struct lane lanes[2 * PASS_LANES];
    size_t count;
    uint64_t scratch_bytes; /* the longest plan of its lanes */
};

static bool skipped(const struct image *image)
{
    return image->memory == 0 || atomic_load(&image->cancelled);
}

static void lanes_add(struct round *round, struct image *image)
{
    image->served = true;
    for (int b = 0; b < image->branch_count && round->count < 2 * PASS_LANES; b++)
        round->lanes[round->count++] = (struct lane){.image = image, .branch = &image->branches[b]};
}

/* Progress for every image of the round, once. */
static void report(const struct round *round, size_t block, size_t blocks, const char *kind)
{
    for (size_t l = 0; l < round->count; l++)
        if (!skipped(round->lanes[l].image) &&
            round->lanes[l].branch == round->lanes[l].image->branches)
            image_report(round->lanes[l].image, block, blocks, kind);
}

static bool all_skipped(const struct round *round)
{
    for (size_t l = 0; l < round->count; l++)
        if (!skipped(round->lanes[l].image))
            return false;
    return true;
}

int draw_noise(const struct image *image, float *tokens)
{
    int channels = image->engine->transformer.config.channels / 4;
    int64_t height = 2 * (int64_t)image->token_rows, width = 2 * (int64_t)image->token_cols;
    float *drawn = malloc((size_t)(channels * height * width) * sizeof *drawn);

    if (drawn == NULL)
        return -ENOMEM;
    random_normal(image->request.seed, drawn, (size_t)(channels * height * width));
    for (int c = 0; c < channels; c++)
        for (int64_t y = 0; y < height; y++)
            for (int64_t x = 0; x < width; x++) {
                int64_t token = y / 2 * image->token_cols + x / 2;
                tokens[token * 4 * channels + 4 * c + y % 2 * 2 + x % 2] =
                    drawn[(c * height + y) * width + x];
            }
    free(drawn);
    return 0;
}

/* ---- the condition pass ---- */

static int chunk_start(const struct image *image)
{
    return image->step - image->step % MODULATION_STEPS;
}

/* Steps of an image whose modulations are computed with the present one's. They are the same ones
 * when that is done again halfway: a product of fewer rows may be rounded otherwise on a GPU. */
static int chunk_of(const struct image *image)
{
    int steps = image->request.steps - chunk_start(image);

    return steps < MODULATION_STEPS ? steps : MODULATION_STEPS;
}

/* The operands of a lane but those of the image's state, at *at of the workspace at `base`. */
static struct transformer_condition condition_place(const struct image *image, uintptr_t base,
                                                    uint64_t *at)
{
    const struct engine *engine = image->engine;
    const struct transformer_config *config = &engine->transformer.config;
    enum dtype activation = engine->backend->activation;
    int64_t steps = chunk_of(image), text = image->text_tokens;
    struct transformer_condition args;

    args.time = memory_place(base, at, activation, steps, SINUSOID_WIDTH);
    args.guidance = memory_place(base, at, activation, steps, SINUSOID_WIDTH);
    args.pooled = memory_place(base, at, activation, steps, config->pooled_width);
    args.prompt = memory_place(base, at, activation, text, config->text_width);
    args.embedding = memory_place(base, at, activation, steps, config->width);
    args.text = tensor_of(NULL, activation, text, config->width);
    args.modulations = tensor_of(NULL, DTYPE_F32, steps, engine->transformer.modulation_width);
    if (modulations_spill(image))
        args.modulations = memory_place(base, at, DTYPE_F32, steps, args.modulations.cols);
    return args;
}

static int rehearse_condition(const struct image *image, struct scratch *scratch)
{
    const struct engine *engine = image->engine;
    struct compute c = pass_rehearsal(engine, scratch);
    uint64_t at = 0;
    struct transformer_condition shapes = condition_place(image, 0, &at);

    for (size_t i = 0; i < engine->transformer.condition.count; i++)
        transformer_condition(&c, &engine->transformer, i, &shapes);
    return scratch_plan(scratch);
}

int condition_measure(const struct image *image, uint64_t *bytes)
{
    struct scratch plan = {0};
    int result = rehearse_condition(image, &plan);

    *bytes = plan.total_bytes;
    for (int b = 0; b < image->branch_count; b++)
        condition_place(image, 0, bytes);
    scratch_finish(&plan);
    return result;
}

bool condition_needed(const struct image *image)
{
    return image->memory != 0 && image->step < image->request.steps &&
           (image->chunk_steps == 0 || image->step >= image->chunk_first + image->chunk_steps);
}

/* Uploads the inputs of a lane for steps chunk_first … chunk_first + steps − 1. */
static int condition_upload(struct engine *engine, struct lane *lane, int steps, struct error *err)
{
    struct transformer_condition *args = &lane->condition;
    const struct image *image = lane->image;
    size_t pooled = (size_t)args->pooled.cols;
    size_t row = pooled > SINUSOID_WIDTH ? pooled : SINUSOID_WIDTH;
    float *host = malloc((size_t)steps * row * sizeof *host);
    struct compute c = pass_compute(engine, NULL);

    if (host == NULL)
        return error_set(err, ENOMEM, "out of host memory");
    for (int i = 0; i < steps; i++)
        transformer_sinusoid(image->sigmas[image->chunk_first + i] * SINUSOID_SCALE,
                             host + (ptrdiff_t)i * SINUSOID_WIDTH);
    op_upload(&c, args->time, host);
    for (int i = 0; i < steps; i++)
        transformer_sinusoid(image->request.guidance * SINUSOID_SCALE,
                             host + (ptrdiff_t)i * SINUSOID_WIDTH);
    op_upload(&c, args->guidance, host);
    for (int i = 0; i < steps; i++)
        memcpy(host + (size_t)i * pooled, lane->branch->embedding->pooled, pooled * sizeof *host);
    op_upload(&c, args->pooled, host);
    op_upload(&c, args->prompt, lane->branch->embedding->tokens);
    free(host);
    return 0;
}

/* Places and uploads all operands, once there is a workspace. */
static int condition_start(struct round *round, struct scratch *plans, struct error *err)
{
    struct engine *engine = round->engine;
    uint64_t at = round->scratch_bytes;

    for (size_t l = 0; l < round->count; l++) {
        struct lane *lane = &round->lanes[l];
        struct image *image = lane->image;
        struct transformer_condition *args = &lane->condition;

        *args = condition_place(image, engine->workspace, &at);
        if (lane->branch == image->branches &&
            modulations_begin(image, chunk_start(image), chunk_of(image)) != 0)
            return error_set(err, ENOMEM, "out of host memory");
        args->text = lane->branch->text;
        if (!modulations_spill(image))
            args->modulations = tensor_rows(lane->branch->modulations, 0, image->chunk_steps);
        if (condition_upload(engine, lane, image->chunk_steps, err) != 0)
            return err->code;
        lane->scratch = pass_cursor(engine, &plans[l]);
    }
    return 0;
}

static uint64_t condition_bytes(const struct round *round)
{
    uint64_t at = round->scratch_bytes;

    for (size_t l = 0; l < round->count; l++)
        condition_place(round->lanes[l].image, 0, &at);
    return at;
}

/* The images that need it, as many as there is room for. */
static int condition_collect(struct round *round, struct scratch *plans)
{
    struct engine *engine = round->engine;
    uint64_t room = engine_room(engine) - engine->transformer.condition.least_bytes;

    for (struct image *image = engine->images; image != NULL; image = image->next) {
        struct round before = *round;

        if (!condition_needed(image) || round->count + 2 > 2 * PASS_LANES)
            continue;
        lanes_add(round, image);
        for (size_t l = before.count; l < round->count; l++) {
            if (rehearse_condition(image, &plans[l]) != 0)
                return -ENOMEM;
            if (plans[l].total_bytes > round->scratch_bytes)
                round->scratch_bytes = plans[l].total_bytes;
        }
        if (before.count > 0 && in_pages(engine, condition_bytes(round)) > room) {
            for (size_t l = before.count; l < round->count; l++)
                scratch_finish(&plans[l]);
            *round = before;
            image->served = false;
        }
    }
    return 0;
}

static void spill(const struct round *round)
{
    struct compute c = pass_compute(round->engine, NULL);

    for (size_t l = 0; l < round->count; l++)
        if (!skipped(round->lanes[l].image) && modulations_spill(round->lanes[l].image))
            op_download(&c, round->lanes[l].branch->spilled, round->lanes[l].condition.modulations);
}

static int condition_blocks(struct round *round, struct scratch *plans, struct error *err)
{
    struct engine *engine = round->engine;
    struct block_list *list = &engine->transformer.condition;

    if (pass_open(engine, list, condition_bytes(round), err) != 0 ||
        condition_start(round, plans, err) != 0)
        return err->code;
    for (size_t i = 0; i < list->count && !all_skipped(round); i++) {
        if (pass_block(engine, i, false, err) != 0)
            return err->code;
        for (size_t l = 0; l < round->count; l++) {
            struct lane *lane = &round->lanes[l];
            struct compute c = pass_compute(engine, &lane->scratch);

            if (!skipped(lane->image))
                transformer_condition(&c, &engine->transformer, i, &lane->condition);
        }
        report(round, 0, list->count, list->blocks[i]->kind);
    }
    spill(round);
    return pass_sync(engine, err);
}

int condition_round(struct engine *engine, struct error *err)
{
    struct round round = {.engine = engine};
    struct scratch plans[2 * PASS_LANES] = {0};
    int result;

    if (condition_collect(&round, plans) != 0)
        result = error_set(err, ENOMEM, "out of host memory");
    else
        result = condition_blocks(&round, plans, err);
    for (size_t l = 0; l < round.count; l++) {
        if (result != 0)
            round.lanes[l].image->chunk_steps = 0;
        scratch_finish(&plans[l]);
    }
    return result;
}

/* ---- the step pass ---- */

int rehearse_step(const struct engine *engine, int tokens, struct scratch *scratch)
{
    struct compute c = pass_rehearsal(engine, scratch);
    const struct transformer_config *config = &engine->transformer.config;
    enum dtype activation = engine->backend->activation;
    int64_t text = engine->info.max_tokens, all = text + tokens;
    struct transformer_step shapes = {
        .latents = tensor_of(NULL, DTYPE_F32, tokens, config->channels),
        .text = tensor_of(NULL, activation, text, config->width),
        .hidden = tensor_of(NULL, activation, all, config->width),
        .carried = tensor_of(NULL, activation, all, config->width),
        .rope = tensor_of(NULL, DTYPE_F32, all, config->head_size),
        .modulation = tensor_of(NULL, DTYPE_F32, 1, engine->transformer.modulation_width),
        .velocity = tensor_of(NULL, DTYPE_F32, tokens, config->channels),
    };

    for (size_t i = 0; i < engine->transformer.step.count; i++)
        transformer_apply(&c, &engine->transformer, i, &shapes);
    return scratch_plan(scratch);
}

/* All images have their velocities: one step of Euler's method each. */
static void finish_step(struct image *image, struct compute *c)
{
    struct branch *positive = &image->branches[0], *negative = &image->branches[1];
    float step = image->sigmas[image->step + 1] - image->sigmas[image->step];

    if (image->branch_count == 2)
        op_guide(c, positive->velocity, negative->velocity, image->request.cfg_scale);
    op_euler(c, image->latents, positive->velocity, step);
    image->step++;
}

static struct tensor joined_place(const struct round *round, uintptr_t base, uint64_t *at)
{
    const struct engine *engine = round->engine;
    const struct branch *branch = round->lanes[0].branch;

    assert(round->count == 1 && branch != NULL);
    return memory_place(base, at, engine->backend->activation, branch->hidden.rows,
                        5 * (int64_t)engine->transformer.config.width);
}

/* Whether attention and MLP of an image's single blocks can lie beside each other from one piece to
 * the next: the image is alone, and no weights have to give way. */
static bool can_join(const struct round *round)
{
    uint64_t bytes = round->scratch_bytes;

    if (round->count != 1)
        return false;
    joined_place(round, 0, &bytes);
    return room_for_all(round->engine, bytes);
}

/* For every image of the round, once. */
static void modulate(const struct round *round, size_t block)
{
    for (size_t l = 0; l < round->count; l++)
        if (!skipped(round->lanes[l].image) &&
            round->lanes[l].branch == round->lanes[l].image->branches)
            modulations_fetch(round->lanes[l].image, block);
}

static int step_blocks(struct round *round, struct error *err)
{
    struct engine *engine = round->engine;
    struct block_list *list = &engine->transformer.step;
    uint64_t at = round->scratch_bytes, workspace_bytes = at;
    bool joined = can_join(round);
    struct compute c;

    engine->present_lanes = round->count;
    if (joined)
        joined_place(round, 0, &workspace_bytes);
    if (pass_open(engine, list, workspace_bytes, err) != 0)
        return err->code;
    for (size_t l = 0; l < round->count; l++) {
        struct lane *lane = &round->lanes[l];

        lane->scratch = pass_cursor(engine, &lane->image->step_scratch);
        lane->step = image_step_args(lane->image, lane->branch);
        if (joined)
            lane->step.joined = joined_place(round, engine->workspace, &at);
    }
    for (size_t i = 0; i < list->count && !all_skipped(round); i++) {
        modulate(round, i);
        if (pass_block(engine, i, true, err) != 0)
            return err->code;
        for (size_t l = 0; l < round->count; l++) {
            c = pass_compute(engine, &round->lanes[l].scratch);
            if (!skipped(round->lanes[l].image))
                transformer_apply(&c, &engine->transformer, i, &round->lanes[l].step);
        }
        if (i + 1 < list->count)
            report(round, i + 1, list->count, list->blocks[i]->kind);
    }
    return 0;
}

int denoise_round(struct engine *engine, struct error *err)
{
    struct round round = {.engine = engine};
    struct compute c = pass_compute(engine, NULL);
    double before = engine->timeline.sums.compute_s;

    for (struct image *image = engine->images; image != NULL; image = image->next) {
        if (skipped(image) || image->step == image->request.steps ||
            round.count + 2 > 2 * PASS_LANES)
            continue;
        lanes_add(&round, image);
        if (image->step_scratch.total_bytes > round.scratch_bytes)
            round.scratch_bytes = image->step_scratch.total_bytes;
    }
    if (step_blocks(&round, err) != 0)
        return err->code;
    for (size_t l = 0; l < round.count; l++)
        if (!skipped(round.lanes[l].image) &&
            round.lanes[l].branch == round.lanes[l].image->branches)
            finish_step(round.lanes[l].image, &c);
    report(&round, 0, engine->transformer.step.count, "Euler step");
    if (pass_sync(engine, err) != 0)
        return err->code;
    if (!all_skipped(&round)) {
        engine->lanes = round.count;
        engine->lane_s = (engine->timeline.sums.compute_s - before) / (double)round.count;
    }
    return 0;
}
