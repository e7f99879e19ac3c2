/* SPDX-License-Identifier: MIT */
#include "fs/plan.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"

enum { MAP_COLUMNS = 100 };

struct duration_text {
    char text[32];
};

static struct duration_text duration(double seconds)
{
    struct duration_text shown;
    long whole = lround(seconds);

    if (seconds > 0 && seconds < 1)
        snprintf(shown.text, sizeof shown.text, "%.4g ms", 1e3 * seconds);
    else if (seconds < 600)
        snprintf(shown.text, sizeof shown.text, "%.4g s", seconds);
    else if (seconds < 3600)
        snprintf(shown.text, sizeof shown.text, "%ld min %ld s", whole / 60, whole % 60);
    else
        snprintf(shown.text, sizeof shown.text, "%ld h %ld min", whole / 3600, whole / 60 % 60);
    return shown;
}

static void print_size(FILE *out, uint64_t bytes)
{
    fprintf(out, "%s", bytes == 0 ? "nothing" : size_shown(bytes).text);
}

static void print_device(const struct engine_forecast *f, bool described, FILE *out)
{
    fprintf(out, "device    %s: ", f->device);
    print_size(out, f->device_bytes);
    fprintf(out, ", link %.4g GB/s, %.4g TFLOP/s, memory %.5g GB/s%s\n", f->rates.link_bytes / 1e9,
            f->rates.flops / 1e12, f->rates.memory_bytes_s / 1e9,
            described ? "" : " (measured; memory that is free)");
    fprintf(out, "picture   %s, %dx%d, %d steps%s\n", f->model, f->image.width_px,
            f->image.height_px, f->image.steps,
            f->image.cfg_scale != 1 ? ", true CFG: each step twice" : "");
    fprintf(out, "budget    ");
    print_size(out, f->budget);
    fprintf(out, "%s; this picture needs %s at least\n",
            f->budget > f->device_bytes ? ", more than the device has" : "",
            size_needed(f->least_budget).text);
}

static void print_blocks(const struct engine_forecast *f, FILE *out)
{
    size_t length = strlen(f->map);

    fprintf(out, "\nThe transformer's blocks, in order: # stays on the device, . passes through\n");
    for (size_t at = 0; at < length; at += MAP_COLUMNS)
        fprintf(out, "  %.*s\n", MAP_COLUMNS, f->map + at);
    fprintf(out, "  %-18s %6s %6s %6s %12s\n", "kind", "blocks", "stay", "pass", "each");
    for (int i = 0; i < FORECAST_KINDS && f->blocks[i].kind != NULL; i++) {
        const struct forecast_blocks *b = &f->blocks[i];

        fprintf(out, "  %-18s %6d %6d %6d %12s\n", b->kind, b->count, b->resident,
                b->count - b->resident, size_shown(b->bytes).text);
    }
    fprintf(out, "  over the link in each step: ");
    print_size(out, f->link_bytes);
    fprintf(out, " of ");
    print_size(out, f->weight_bytes);
    if (f->ring_bytes > 0) {
        fprintf(out, ", through a ring of ");
        print_size(out, f->ring_bytes);
    }
    fprintf(out, "\n");
}

static void print_memory(const struct engine_forecast *f, FILE *out)
{
    uint64_t all = 0;

    fprintf(out, "\nMemory during a step\n");
    for (int i = 0; i < MEMORY_COMPONENTS; i++) {
        if (f->component[i] == 0)
            continue;
        all += f->component[i];
        fprintf(out, "  %-18s ", memory_component_name((enum memory_component)i));
        print_size(out, f->component[i]);
        fprintf(out, "\n");
    }
    fprintf(out, "  %-18s ", "together");
    print_size(out, all);
    fprintf(out, "; at most, other phases included: ");
    print_size(out, f->peak_bytes);
    fprintf(out, "\n");
}

static void print_time(const struct engine_forecast *f, uint32_t jobs, FILE *out)
{
    fprintf(out, "\nTime\n");
    fprintf(out, "  a step             %s: %s of computing, %s of copying weights meanwhile\n",
            duration(f->step_s).text, duration(f->step_compute_s).text,
            duration(f->step_copy_s).text);
    fprintf(out, "  a picture          %s: text %s, modulations %s, steps %s, decoding %s\n",
            duration(f->picture_s).text, duration(f->text_s).text, duration(f->condition_s).text,
            duration(f->denoise_s).text, duration(f->decode_s).text);
    fprintf(out, "  the first picture  %s, when nothing is on the device yet\n",
            duration(f->first_s).text);
    if (jobs > 1)
        fprintf(out, "  %-2" PRIu32 " that wait       %s a picture, %s a step of each: %d %s\n",
                jobs, duration(f->together_s).text, duration(f->together_step_s).text, f->together,
                f->together > 1 ? "go in step" : "at a time");
}

static int check_card(const struct config_plan *plan, struct error *err)
{
    bool described = plan->link_gb_s > 0 || plan->tflops > 0 || plan->bandwidth_gb_s > 0;
    const char *missing = plan->vram_bytes == 0  ? "--vram"
                          : plan->link_gb_s <= 0 ? "--link"
                          : plan->tflops <= 0    ? "--tflops"
                                                 : NULL;

    if (described && missing != NULL)
        return error_set(err, EINVAL,
                         "a card is described by --vram, --link and --tflops: %s is missing",
                         missing);
    return 0;
}

int plan_print(const struct config *config, FILE *out, struct error *err)
{
    const struct prompt_values *values = &config->defaults;
    const struct config_plan *plan = &config->plan;
    struct engine_options options = {.model_path = config->model,
                                     .backend = config->backend,
                                     .module_dir = config->module_dir,
                                     .vram_budget_bytes = config->vram_budget_bytes,
                                     .threads = config->threads};
    struct engine_device device = {plan->vram_bytes, plan->tflops * 1e12, plan->link_gb_s * 1e9,
                                   plan->bandwidth_gb_s * 1e9};
    struct image_request request = {.width_px = values->width_px,
                                    .height_px = values->height_px,
                                    .steps = values->steps,
                                    .guidance = values->guidance,
                                    .cfg_scale = values->true_cfg};
    struct engine_forecast f;
    uint32_t jobs = plan->jobs > 0 ? plan->jobs : 1;

    if (check_card(plan, err) != 0)
        return err->code;
    if (engine_forecast(&f, &options, &device, &request, (int)jobs, err) != 0)
        return err->code;
    print_device(&f, plan->tflops > 0, out);
    print_blocks(&f, out);
    print_memory(&f, out);
    print_time(&f, jobs, out);
    free(f.map);
    return 0;
}
