/* SPDX-License-Identifier: MIT */
/* Pictures on a device that is only described (described.h): what would be, and how long it takes.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/pipeline.h"
#include "engine/rates.h"

/* Where no bandwidth of memory is told. */
#define USUAL_MEMORY_BYTES_S 1e12

struct forecast_run {
    struct engine *engine;
    struct image_request request; /* with the model's own size and steps */
    struct engine_forecast *forecast;
    bool looked;           /* at the plan */
    struct image **images; /* that were waiting … */
    int jobs, started;     /* … and how many of them were started */
    void *lasting;         /* rates_measure */
};

/* ---- the device ---- */

static int check_device(const struct engine_device *device, struct error *err)
{
    bool described = device->flops > 0 || device->link_bytes > 0;

    if (described && (device->flops <= 0 || device->link_bytes <= 0 || device->memory_bytes == 0))
        return error_set(err, EINVAL,
                         "a card is described by its memory, link and speed: all three are needed");
    return 0;
}

static struct device_rates described_rates(const struct engine_device *device)
{
    double memory = device->memory_bytes_s > 0 ? device->memory_bytes_s : USUAL_MEMORY_BYTES_S;

    return (struct device_rates){.linear_flops = device->flops,
                                 .attention_flops = device->flops,
                                 .conv_flops = device->flops,
                                 .memory_bytes = memory,
                                 .link_bytes = device->link_bytes};
}

/* Whether the clock has told the time all along. */
static int check_clock(const struct engine *engine, struct error *err)
{
    if (engine_now(engine) < DESCRIBED_LONGEST_S)
        return 0;
    return error_set(err, ERANGE,
                     "on such a device this would take more than 30 years: are its link, speed and "
                     "bandwidth right?");
}

/* The request, with what the model decides where it says nothing. */
static struct image_request settle(const struct engine *engine, const struct image_request *request)
{
    struct image_request settled = *request;

    if (settled.width_px == 0)
        settled.width_px = engine->info.native_px;
    if (settled.height_px == 0)
        settled.height_px = engine->info.native_px;
    if (settled.steps == 0)
        settled.steps = engine->info.default_steps;
    settled.prompt = "?";
    settled.negative = "";
    return settled;
}

static int measure(struct forecast_run *run, struct backend *real, struct device_rates *rates,
                   struct error *err)
{
    const struct engine *engine = run->engine;
    const struct vae_config *vae = &engine->vae.config;
    struct image image = image_of(run->engine, &run->request);
    struct rates_shapes shapes = {.tokens = image.text_tokens + image.tokens,
                                  .heads = engine->transformer.config.heads,
                                  .width = engine->transformer.config.width,
                                  .vae_channels = vae->channels[vae->levels > 1 ? 1 : 0]};

    return rates_measure(rates, real, &shapes, &run->lasting, err);
}

/* An engine on the device, which has this machine's back end `real` as its model, or none. */
static int open_on(struct forecast_run *run, struct backend *real,
                   const struct engine_options *options, const struct engine_device *device,
                   struct error *err)
{
    struct engine *engine = run->engine;
    struct device_rates rates = described_rates(device);
    uint64_t memory_bytes = device->memory_bytes, free_bytes = 0, total_bytes = 0;

    if (real != NULL && memory_bytes == 0) {
        real->pages->ops->memory(real->pages, &free_bytes, &total_bytes);
        memory_bytes = free_bytes + real->context_bytes;
    }
    if (engine_open_files(engine, options->model_path, err) != 0 ||
        described_create(&engine->backend, real, memory_bytes, err) != 0 ||
        engine_read(engine, options, err) != 0)
        return err->code;
    run->request = settle(engine, &run->request);
    if (real != NULL && measure(run, real, &rates, err) != 0)
        return err->code;
    described_set_rates(engine->backend, &rates);
    run->forecast->rates = (struct engine_device){memory_bytes, rates.linear_flops,
                                                  rates.link_bytes, rates.memory_bytes};
    run->forecast->device_bytes = memory_bytes;
    return engine_reserve(engine, options, err);
}

/* ---- what is planned ---- */

static struct forecast_blocks *kind_of(struct engine_forecast *forecast, const char *kind)
{
    int i = 0;

    while (i + 1 < FORECAST_KINDS && forecast->blocks[i].kind != NULL &&
           strcmp(forecast->blocks[i].kind, kind) != 0)
        i++;
    forecast->blocks[i].kind = kind;
    return &forecast->blocks[i];
}

static void look_at_plan(struct engine_forecast *forecast, struct engine *engine)
{
    const struct offload *offload = &engine->offload;
    const struct block_list *list = offload->pass;
    struct engine_memory memory;

    for (size_t i = 0; i < list->count; i++) {
        struct forecast_blocks *kind = kind_of(forecast, list->blocks[i]->kind);

        kind->count++;
        kind->resident += offload->resident[i];
        kind->bytes = list->blocks[i]->bytes;
        forecast->map[i] = offload->resident[i] ? '#' : '.';
        forecast->weight_bytes += list->blocks[i]->bytes;
    }
    forecast->ring_bytes = offload->ring_bytes;
    forecast->link_bytes = engine->streamed_bytes;
    engine_memory(engine, &memory);
    forecast->budget = memory.budget;
    memcpy(forecast->component, memory.component, sizeof forecast->component);
}

/* After the first block of the last step. */
static void look(void *owner, struct image *image, const struct image_progress *progress)
{
    struct forecast_run *run = owner;

    if (run->looked || progress->phase != IMAGE_DENOISE || progress->block == 0 ||
        progress->step != run->request.steps)
        return;
    run->looked = true;
    look_at_plan(run->forecast, image->engine);
}

/* ---- pictures ---- */

/* One picture by itself; how long it and each phase took. */
static int paint_one(struct forecast_run *run, const char *prompt, double *seconds,
                     struct error *err)
{
    struct engine_forecast *forecast = run->forecast;
    struct engine *engine = run->engine;
    struct image_request request = run->request;
    struct image_observer observer = {run, look};
    struct image_timing timing;
    struct image *image;
    double start = engine_now(engine);
    int result = 0;

    request.prompt = prompt;
    if (image_start(&image, engine, &request, &observer, err) != 0)
        return err->code;
    while (result == 0 && image_active(image)) {
        struct timeline_sums before = engine->timeline.sums;
        double began = engine_now(engine);
        int step = image->step;

        if (engine_advance(engine, err) != 0 || image_error(image, err) != 0)
            result = err->code;
        if (image->step == step)
            continue;
        forecast->step_s = engine_now(engine) - began;
        forecast->step_compute_s = engine->timeline.sums.compute_s - before.compute_s;
        forecast->step_copy_s = engine->timeline.sums.copy_s - before.copy_s;
    }
    image_timing(image, &timing);
    forecast->text_s = timing.text_s;
    forecast->condition_s = timing.condition_s;
    forecast->denoise_s = timing.denoise_s;
    forecast->decode_s = timing.decode_s;
    *seconds = engine_now(engine) - start;
    image_finish(image);
    return result;
}

static void name_prompt(char *prompt, size_t size, int job)
{
    snprintf(prompt, size, "waiting %d", job);
}

/* The text encoders may serve some that are not started yet, too. */
static void expect_more(struct forecast_run *run)
{
    char names[PASS_LANES][32];
    const char *prompts[PASS_LANES];
    size_t wanted = engine_wanted_prompts(run->engine), count = 0;

    while (count < wanted && count < PASS_LANES && run->started + (int)count < run->jobs) {
        name_prompt(names[count], sizeof names[count], run->started + (int)count);
        prompts[count] = names[count];
        count++;
    }
    if (count > 0)
        engine_expect(run->engine, prompts, count);
}

/* Starts as many of those that wait as the engine wants, as the daemon does. */
static int start_more(struct forecast_run *run, struct error *err)
{
    struct image_request request = run->request;
    char prompt[32];

    request.prompt = prompt;
    while (run->started < run->jobs &&
           images_active(run->images, run->started) <
               engine_wanted_images(run->engine, (size_t)(run->jobs - run->started))) {
        struct image **image = &run->images[run->started];

        name_prompt(prompt, sizeof prompt, run->started);
        if (image_start(image, run->engine, &request, NULL, err) != 0)
            return err->code;
        run->started++;
    }
    expect_more(run);
    return 0;
}

static int advance(struct forecast_run *run, struct error *err)
{
    if (engine_advance(run->engine, err) != 0)
        return err->code;
    for (int i = 0; i < run->started; i++)
        if (image_error(run->images[i], err) != 0)
            return err->code;
    return 0;
}

static int paint_many(struct forecast_run *run, struct error *err)
{
    struct engine_forecast *forecast = run->forecast;
    double start = engine_now(run->engine);
    int result = 0;

    while (result == 0 &&
           (run->started < run->jobs || images_active(run->images, run->started) > 0)) {
        double began = engine_now(run->engine);
        int steps;

        result = start_more(run, err);
        steps = -images_steps(run->images, run->started);
        if (result == 0)
            result = advance(run, err);
        steps += images_steps(run->images, run->started);
        if (steps == 0 || steps < forecast->together)
            continue;
        forecast->together = steps;
        forecast->together_step_s = (engine_now(run->engine) - began) / steps;
    }
    forecast->together_s = (engine_now(run->engine) - start) / run->jobs;
    for (int i = 0; i < run->started; i++)
        image_finish(run->images[i]);
    return result;
}

static int paint(struct forecast_run *run, struct error *err)
{
    struct engine_forecast *forecast = run->forecast;
    struct engine *engine = run->engine;
    struct engine_memory memory;
    int result = 0;

    run->images = calloc((size_t)run->jobs + 1, sizeof(struct image *));
    forecast->map = calloc(engine->transformer.step.count + 1, 1);
    if (run->images == NULL || forecast->map == NULL)
        result = error_set(err, ENOMEM, "out of host memory");
    if (result == 0)
        result = paint_one(run, "the first", &forecast->first_s, err);
    run->looked = false;
    if (result == 0)
        result = paint_one(run, "the second", &forecast->picture_s, err);
    if (result == 0)
        result = paint_many(run, err);
    if (result == 0)
        result = check_clock(engine, err);
    free(run->images);
    engine_memory(engine, &memory);
    forecast->peak_bytes = memory.peak_reserved;
    return result;
}

static int describe(struct forecast_run *run, const struct backend *real, struct error *err)
{
    struct engine_forecast *forecast = run->forecast;
    struct image image = image_of(run->engine, &run->request);
    int result = image_measure(&image, err);

    forecast->least_budget = image_budget(&image);
    scratch_finish(&image.step_scratch);
    forecast->image = run->request;
    snprintf(forecast->device, sizeof forecast->device, "%s",
             real != NULL ? real->device_name : run->engine->backend->device_name);
    snprintf(forecast->model, sizeof forecast->model, "%s", run->engine->info.model_name);
    return result;
}

int engine_forecast(struct engine_forecast *out, const struct engine_options *options,
                    const struct engine_device *device, const struct image_request *request,
                    int jobs, struct error *err)
{
    struct engine_forecast forecast = {0};
    struct forecast_run run = {
        .request = *request, .forecast = &forecast, .looked = true, .jobs = jobs};
    struct backend *real = NULL;
    char warning[ENGINE_WARNING_BYTES];
    int result = check_device(device, err);

    if (result == 0 && device->flops == 0)
        result = backend_open(&real, options, warning, err);
    if (result == 0 && (run.engine = calloc(1, sizeof *run.engine)) == NULL)
        result = error_set(err, ENOMEM, "out of host memory");
    if (result == 0) {
        run.engine->planned = &run.request;
        result = open_on(&run, real, options, device, err);
    }
    if (result == 0)
        result = describe(&run, real, err);
    if (result == 0)
        result = paint(&run, err);
    engine_close(run.engine);
    if (real != NULL)
        real->ops->destroy(real);
    free(run.lasting);
    if (result != 0)
        free(forecast.map);
    else
        *out = forecast;
    return result;
}
