/* SPDX-License-Identifier: MIT */
/*
 * Where the time of a picture goes: phase by phase, and block by block on the device.
 *
 * usage: bench_picture MODEL [SIDE_PX [STEPS [RUNS [THREADS [BUDGET_MB]]]]] [NAME=VALUE …]
 *
 * backend=cpu|cuda|auto  modules=FOLDER  size=WIDTHxHEIGHT  steps=N  runs=N  threads=N
 * budget_mb=N  same=1 (all runs the same prompt, whose embedding is then kept)
 * jobs=N (pictures that wait, of which so many are started as the engine wants at once; times are
 * those of the first one but for the steps': all rounds with steps of any, for each picture and
 * step)
 * trace=1 (a row for each block of the last run's last two steps: what computed, waited and was
 * copied when)
 * timeline=on|off|turns (off: no marks, hence no figures of computing, waiting and copying; turns:
 * so in every second run)
 * json=1 (a line of JSON for each run and one for the end)  latents=FILE (fp32, of the last run)
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/pipeline.h"
#include "tests/bench/steps.h"

enum { MOST_JOBS = 64 };

struct options {
    const char *model, *backend, *modules, *latents, *timeline;
    int width, height, steps, runs, threads, budget_mb, same, json, jobs, trace;
};

static bool option_is(const char *argument, const char *name, const char **value)
{
    size_t length = strlen(name);

    *value = argument + length + 1;
    return strncmp(argument, name, length) == 0 && argument[length] == '=';
}

static bool read_option(struct options *o, const char *argument)
{
    const struct {
        const char *name;
        int *number;
        const char **text;
    } known[] = {
        {"backend", NULL, &o->backend},     {"modules", NULL, &o->modules},
        {"latents", NULL, &o->latents},     {"steps", &o->steps, NULL},
        {"runs", &o->runs, NULL},           {"threads", &o->threads, NULL},
        {"budget_mb", &o->budget_mb, NULL}, {"same", &o->same, NULL},
        {"json", &o->json, NULL},           {"jobs", &o->jobs, NULL},
        {"trace", &o->trace, NULL},         {"timeline", NULL, &o->timeline},
    };
    const char *value;

    if (option_is(argument, "size", &value))
        return sscanf(value, "%dx%d", &o->width, &o->height) == 2;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (!option_is(argument, known[i].name, &value))
            continue;
        if (known[i].text != NULL)
            *known[i].text = value;
        else
            *known[i].number = atoi(value);
        return true;
    }
    return false;
}

static bool has_timeline(const struct options *o, int run)
{
    return strcmp(o->timeline, "on") == 0 || (strcmp(o->timeline, "turns") == 0 && run % 2 == 0);
}

static bool timeline_known(const struct options *o)
{
    return has_timeline(o, 0) || strcmp(o->timeline, "off") == 0;
}

static bool read_options(struct options *o, int argc, char **argv)
{
    int *const places[] = {&o->width, &o->steps, &o->runs, &o->threads, &o->budget_mb};
    size_t place = 0;

    *o = (struct options){
        .backend = "cpu", .timeline = "on", .width = 256, .steps = 20, .runs = 4, .jobs = 1};
    if (argc < 2)
        return false;
    o->model = argv[1];
    for (int i = 2; i < argc; i++) {
        if (strchr(argv[i], '=') != NULL) {
            if (!read_option(o, argv[i]))
                return false;
        } else if (place < sizeof places / sizeof *places) {
            *places[place++] = atoi(argv[i]);
        } else {
            return false;
        }
    }
    if (o->height == 0)
        o->height = o->width;
    return o->jobs >= 1 && o->jobs <= MOST_JOBS && timeline_known(o);
}

/* What a run took. */
struct run {
    double wall_s;
    struct image_timing timing;
    double first_step_s; /* the first round of steps: what other phases drove out comes back */
    uint64_t marks;      /* of the timeline, in steps */
    uint64_t pinned_bytes;
};

static void print_run(const struct options *o, int number, const struct run *run)
{
    const struct image_timing *t = &run->timing;

    if (o->json)
        printf(
            "{\"run\": %d, \"wall_s\": %.4f, \"text_s\": %.4f, \"condition_s\": %.4f, "
            "\"step_s\": %.5f, \"first_step_s\": %.5f, \"decode_s\": %.4f, \"compute_s\": %.4f, "
            "\"copy_s\": %.4f, \"wait_s\": %.4f, \"pinned_bytes\": %llu, \"step_marks\": %llu}\n",
            number, run->wall_s, t->text_s, t->condition_s, t->step_s, run->first_step_s,
            t->decode_s, t->compute_s, t->copy_s, t->wait_s, (unsigned long long)run->pinned_bytes,
            (unsigned long long)run->marks);
    else
        printf(
            "%7.3f s: text %.3f, conditions %.3f, %d steps %.3f (%.1f ms each, the first %.1f), "
            "decoding %.3f; computing %.3f, waiting for weights %.3f, copying them %.3f, %.1f GB "
            "pinned\n",
            run->wall_s, t->text_s, t->condition_s, o->steps, t->denoise_s, t->step_s * 1e3,
            run->first_step_s * 1e3, t->decode_s, t->compute_s, t->wait_s, t->copy_s,
            (double)run->pinned_bytes / 1e9);
    fflush(stdout);
}

/* Denoised latents, before the decoder needs their memory. */
static int save_latents(const struct options *o, struct image *image, struct error *err)
{
    struct backend *backend = image->engine->backend;
    size_t count = (size_t)(image->latents.rows * image->latents.cols);
    float *values = malloc(count * sizeof *values);
    FILE *file = fopen(o->latents, "wb");
    int result = 0;

    if (values == NULL || file == NULL) {
        result = error_set(err, EIO, "%s: can't be written", o->latents);
    } else {
        backend->ops->download(backend, values, image->latents);
        result = backend->ops->sync(backend, err);
        if (result == 0 && fwrite(values, sizeof *values, count, file) != count)
            result = error_set(err, EIO, "%s: can't be written", o->latents);
    }
    if (file != NULL && fclose(file) != 0 && result == 0)
        result = error_set(err, EIO, "%s: can't be written", o->latents);
    free(values);
    return result;
}

/* The pictures of a run, of which some are started. */
struct batch {
    struct image *images[MOST_JOBS];
    int started, at_once; /* at_once: went a step together, at most */
};

static int start_next(struct engine *engine, const struct options *o, int run, struct batch *batch,
                      struct error *err)
{
    char prompt[80] = "a large red circle on a white background";
    struct image_request request = {.prompt = prompt,
                                    .width_px = o->width,
                                    .height_px = o->height,
                                    .steps = o->steps,
                                    .guidance = 3.5f,
                                    .cfg_scale = 1,
                                    .seed = 3 + (uint64_t)batch->started};

    if (!o->same && run > 0)
        snprintf(prompt + strlen(prompt), sizeof prompt - strlen(prompt), " %d", run);
    if (image_start(&batch->images[batch->started], engine, &request, NULL, err) != 0)
        return err->code;
    batch->started++;
    return 0;
}

/* Whether what comes next is to be traced. */
static bool is_traced(const struct options *o, int run, const struct image *image)
{
    return o->trace && run + 1 == o->runs && image->step < o->steps &&
           image->step + 2 >= o->steps && image_phase(image) == IMAGE_DENOISE;
}

/* One round, after starting as many as are wanted; returns how many steps were done. */
static int advance(struct engine *engine, const struct options *o, int run, struct batch *batch,
                   struct error *err)
{
    int steps;

    while (batch->started < o->jobs &&
           images_active(batch->images, batch->started) <
               engine_wanted_images(engine, (size_t)(o->jobs - batch->started)))
        if (start_next(engine, o, run, batch, err) != 0)
            return 0;
    steps = -images_steps(batch->images, batch->started);
    (void)engine_advance(engine, err);
    steps += images_steps(batch->images, batch->started);
    batch->at_once = steps > batch->at_once ? steps : batch->at_once;
    return steps;
}

static void batch_finish(struct batch *batch, struct error *err)
{
    for (int i = 0; i < batch->started; i++) {
        if (err->code == 0)
            image_error(batch->images[i], err);
        image_finish(batch->images[i]);
    }
}

static int paint(struct engine *engine, const struct options *o, int number, struct steps *steps,
                 struct error *err)
{
    struct batch batch = {0};
    bool last = number + 1 == o->runs, saved = false;
    double start = engine_now(engine), stepping_s = 0;
    struct run run = {0};

    while (err->code == 0 &&
           (batch.started < o->jobs || images_active(batch.images, batch.started) > 0)) {
        double before = engine_now(engine);
        uint64_t marks = engine->timeline.marks;

        steps->on = batch.started > 0 && is_traced(o, number, batch.images[0]);
        if (advance(engine, o, number, &batch, err) > 0) {
            double taken_s = engine_now(engine) - before;

            run.first_step_s = stepping_s == 0 ? taken_s : run.first_step_s;
            stepping_s += taken_s;
            run.marks += engine->timeline.marks - marks;
        }
        if (o->latents != NULL && last && !saved && err->code == 0 &&
            batch.images[0]->step == o->steps) {
            saved = true;
            (void)save_latents(o, batch.images[0], err);
        }
    }
    if (batch.started > 0)
        image_timing(batch.images[0], &run.timing);
    if (o->jobs > 1) {
        run.timing.step_s = stepping_s / ((double)o->steps * o->jobs);
        if (!o->json)
            printf("%d jobs, %d of them at once: ", o->jobs, batch.at_once);
    }
    run.wall_s = engine_now(engine) - start;
    run.pinned_bytes = engine->backend->ops->pinned_bytes(engine->backend);
    if (err->code == 0)
        print_run(o, number, &run);
    batch_finish(&batch, err);
    return err->code;
}

static void print_end(const struct options *o, struct engine *engine, double opened_s)
{
    struct engine_memory m;

    engine_memory(engine, &m);
    if (o->json) {
        printf("{\"device\": \"%s\", \"opened_s\": %.3f, \"budget_bytes\": %llu, \"peak_bytes\": "
               "%llu, "
               "\"device_used_bytes\": %llu, \"pinned_bytes\": %llu, \"resident_blocks\": %llu, "
               "\"streamed_blocks\": %llu, \"kinds\": {",
               engine_info(engine)->device_name, opened_s, (unsigned long long)m.budget,
               (unsigned long long)m.peak_reserved,
               (unsigned long long)(m.device_total - m.device_free),
               (unsigned long long)m.pinned_bytes, (unsigned long long)m.resident_blocks,
               (unsigned long long)m.streamed_blocks);
        for (int i = 0; i < TIMELINE_KINDS && engine->timeline.kinds[i].kind != NULL; i++) {
            const struct timeline_kind *k = &engine->timeline.kinds[i];
            printf("%s\"%s\": [%llu, %.4f, %.4f]", i > 0 ? ", " : "", k->kind,
                   (unsigned long long)k->blocks, k->sums.compute_s, k->sums.wait_s);
        }
        printf("}}\n");
        return;
    }
    printf("%-24s %7s %12s %12s\n", "blocks", "times", "ms each", "waiting ms");
    for (int i = 0; i < TIMELINE_KINDS && engine->timeline.kinds[i].kind != NULL; i++) {
        const struct timeline_kind *k = &engine->timeline.kinds[i];
        printf("%-24s %7llu %12.3f %12.3f\n", k->kind, (unsigned long long)k->blocks,
               k->sums.compute_s / (double)k->blocks * 1e3,
               k->sums.wait_s / (double)k->blocks * 1e3);
    }
    printf("peak %.1f MB of %.1f MB, %llu blocks resident, %llu streamed; %.1f MB of the host's "
           "memory pinned\n",
           (double)m.peak_reserved / 1e6, (double)m.budget / 1e6,
           (unsigned long long)m.resident_blocks, (unsigned long long)m.streamed_blocks,
           (double)m.pinned_bytes / 1e6);
    if (!engine->backend->host)
        printf("now reserved %.1f MB; of the device %.1f MB are in use\n", (double)m.reserved / 1e6,
               (double)(m.device_total - m.device_free) / 1e6);
}

int main(int argc, char **argv)
{
    static struct steps steps;
    struct engine_options options = {0};
    struct engine *engine;
    struct error err = {0};
    double start = engine_now(NULL), opened_s;
    struct options o;

    if (!read_options(&o, argc, argv)) {
        fprintf(stderr,
                "usage: %s MODEL [SIDE_PX [STEPS [RUNS [THREADS [BUDGET_MB]]]]] "
                "[NAME=VALUE …]\n",
                argv[0]);
        return EXIT_FAILURE;
    }
    options.model_path = o.model;
    options.backend = o.backend;
    options.module_dir = o.modules;
    options.threads = o.threads;
    options.vram_budget_bytes = (uint64_t)o.budget_mb * 1000000;
    if (engine_open(&engine, &options, &err) != 0) {
        fprintf(stderr, "%s\n", err.text);
        return EXIT_FAILURE;
    }
    opened_s = engine_now(NULL) - start;
    if (!o.json)
        printf("%s on %s, opened in %.3f s\n", o.model, engine_info(engine)->device_name, opened_s);
    engine->timeline.watcher = (struct timeline_watcher){&steps, o.trace ? steps_settled : NULL};
    for (int run = 0; err.code == 0 && run < o.runs; run++) {
        engine->timeline.off = !has_timeline(&o, run);
        paint(engine, &o, run, &steps, &err);
    }
    if (o.trace)
        steps_print(&steps);
    print_end(&o, engine, opened_s);
    if (err.code != 0)
        fprintf(stderr, "%s\n", err.text);
    engine_close(engine);
    return err.code == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
