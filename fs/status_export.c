/* SPDX-License-Identifier: MIT */
/*
 * status/metrics in Prometheus' text format, and status/all.json, whose shape has a version and is
 * told in fluxfs(1): members may be added to it (there too), but to remove or to change one raises
 * the version.
 */
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "fs/content.h"
#include "fs/status.h"

enum { JSON_VERSION = 1, SHOWN_JOBS = 256 };

/* ---- Prometheus. ---- */

static void metric(struct text *text, const char *name, const char *type, const char *help)
{
    text_print(text, "# HELP fluxfs_%s %s\n# TYPE fluxfs_%s %s\n", name, help, name, type);
}

static void gauge(struct text *text, const char *name, const char *help, double value)
{
    metric(text, name, "gauge", help);
    text_print(text, "fluxfs_%s %.17g\n", name, value);
}

static void counter(struct text *text, const char *name, const char *help, double value)
{
    metric(text, name, "counter", help);
    text_print(text, "fluxfs_%s %.17g\n", name, value);
}

static void memory_metrics(struct text *text, const struct engine_memory *memory)
{
    gauge(text, "vram_used_bytes", "Device memory held.", (double)memory->reserved);
    gauge(text, "vram_budget_bytes", "Device memory allowed.", (double)memory->budget);
    gauge(text, "vram_peak_bytes", "Most device memory held so far.",
          (double)memory->peak_reserved);
    metric(text, "vram_component_bytes", "gauge", "Device memory allocated, by component.");
    for (enum memory_component c = 0; c < MEMORY_COMPONENTS; c++) {
        text_print(text, "fluxfs_vram_component_bytes{component=\"%s\"} %llu\n",
                   memory_component_name(c), (unsigned long long)memory->component[c]);
    }
    gauge(text, "fragmentation_ratio", "1 - largest free run / all free bytes.",
          memory->fragmentation);
    gauge(text, "fragmentation_merged_ratio", "The same after merging free pages.",
          memory->fragmentation_merged);
    counter(text, "allocations_total", "Allocations of device memory.",
            (double)memory->allocations);
}

void status_add_metrics(struct status *status, struct text *text)
{
    struct board_state state;
    struct engine_memory memory;
    struct queue_counts counts;
    struct gallery_use use;

    board_read(status->board, &state);
    worker_memory(status->worker, &memory);
    queue_counts(status->queue, &counts);
    gallery_use(status->gallery, &use);
    gauge(text, "up", "1 when the engine is ready to paint.", state.health == HEALTH_OK);
    gauge(text, "start_time_seconds", "Start of the daemon, since the epoch.",
          1e-9 * (double)status->started_ns);
    metric(text, "jobs", "gauge", "Jobs in the queue and its history, by state.");
    for (enum job_state s = 0; s < JOB_STATES; s++) {
        text_print(text, "fluxfs_jobs{state=\"%s\"} %zu\n", job_state_name(s), counts.state[s]);
    }
    gauge(text, "images", "PNG files kept.", (double)use.images);
    gauge(text, "images_disk_bytes", "Disk use of the PNG files.", (double)use.disk_bytes);
    counter(text, "images_painted_total", "Images painted since the start.", (double)state.done);
    counter(text, "images_failed_total", "Jobs failed since the start.", (double)state.failed);
    counter(text, "computing_seconds_total", "Time spent computing.", state.total.compute_s);
    counter(text, "copying_seconds_total", "Time spent copying weights.", state.total.copy_s);
    counter(text, "waiting_seconds_total", "Time spent waiting for weights.", state.total.wait_s);
    if (state.images > 0) {
        gauge(text, "progress_ratio", "Of the first running image.",
              state.image[0].progress.fraction);
    }
    memory_metrics(text, &memory);
}

/* ---- all.json. ---- */

static json_t *device_json(const struct board_device *device)
{
    return json_pack("{s:s, s:s, s:s, s:I, s:I, s:b, s:i, s:i, s:i, s:i, s:s}", "model",
                     device->model, "backend", device->backend, "device", device->device,
                     "parameters", (json_int_t)device->parameters, "weight_bytes",
                     (json_int_t)device->weight_bytes, "guidance", (int)device->has_guidance,
                     "native_px", device->native_px, "max_side_px", device->max_side_px,
                     "default_steps", device->default_steps, "max_tokens", device->max_tokens,
                     "warning", device->warning);
}

static json_t *queue_json(struct queue *queue)
{
    struct job_info *infos = calloc(SHOWN_JOBS, sizeof *infos);
    json_t *json = json_object(), *order = json_array();
    struct queue_counts counts;
    size_t count = infos != NULL ? queue_order(queue, 0, infos, SHOWN_JOBS) : 0;

    queue_counts(queue, &counts);
    for (enum job_state s = 0; s < JOB_STATES; s++) {
        json_object_set_new(json, job_state_name(s), json_integer((json_int_t)counts.state[s]));
    }
    for (size_t i = 0; i < count; i++) {
        json_array_append_new(order, json_pack("{s:I, s:s, s:i}", "id", (json_int_t)infos[i].id,
                                               "state", job_state_name(infos[i].state), "priority",
                                               infos[i].priority));
    }
    json_object_set_new(json, "order", order);
    free(infos);
    return json;
}

static json_t *running_json(const struct board_state *state)
{
    json_t *running = json_array();

    for (int i = 0; i < state->images; i++) {
        const struct image_progress *progress = &state->image[i].progress;
        json_array_append_new(
            running,
            json_pack("{s:I, s:s, s:i, s:i, s:i, s:i, s:s, s:f, s:f, s:b}", "job",
                      (json_int_t)state->image[i].job, "phase", image_phase_name(progress->phase),
                      "step", progress->step, "steps", progress->steps, "block", progress->block,
                      "blocks", progress->blocks, "block_kind",
                      progress->block_kind != NULL ? progress->block_kind : "", "fraction",
                      progress->fraction, "remaining_s", progress->remaining_s, "saving",
                      (int)state->image[i].saving));
    }
    return running;
}

static json_t *vram_json(const struct engine_memory *memory)
{
    json_t *components = json_object();

    for (enum memory_component c = 0; c < MEMORY_COMPONENTS; c++) {
        json_object_set_new(components, memory_component_name(c),
                            json_integer((json_int_t)memory->component[c]));
    }
    return json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:f, s:s, s:I, s:I, s:I, s:I, s:o}", "used_bytes",
        (json_int_t)memory->reserved, "budget_bytes", (json_int_t)memory->budget, "peak_bytes",
        (json_int_t)memory->peak_reserved, "requested_bytes", (json_int_t)memory->requested,
        "allocated_bytes", (json_int_t)memory->allocated, "percent", status_vram_percent(memory),
        "level", status_vram_level(memory), "resident_blocks", (json_int_t)memory->resident_blocks,
        "streamed_blocks", (json_int_t)memory->streamed_blocks, "device_free_bytes",
        (json_int_t)memory->device_free, "device_total_bytes", (json_int_t)memory->device_total,
        "components", components);
}

static json_t *fragmentation_json(const struct engine_memory *memory)
{
    return json_pack(
        "{s:f, s:f, s:f, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "before_merging",
        memory->fragmentation, "after_merging", memory->fragmentation_merged, "waste",
        memory->waste, "free_bytes", (json_int_t)memory->free_bytes, "largest_run_bytes",
        (json_int_t)memory->largest_free_bytes, "page_bytes", (json_int_t)memory->page_bytes,
        "pages_mapped", (json_int_t)memory->pages_mapped, "pages_spare",
        (json_int_t)memory->pages_spare, "allocations", (json_int_t)memory->allocations, "merges",
        (json_int_t)memory->merges, "evictions", (json_int_t)memory->evictions);
}

static json_t *timing_json(const struct image_timing *timing)
{
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "text_s", timing->text_s, "condition_s",
                     timing->condition_s, "denoise_s", timing->denoise_s, "decode_s",
                     timing->decode_s, "computing_s", timing->compute_s, "copying_s",
                     timing->copy_s, "waiting_for_weights_s", timing->wait_s);
}

/* Of the newest image that is done. */
static json_t *last_json(const struct board_image *last)
{
    json_t *json = timing_json(&last->timing);

    json_object_set_new(json, "job", json_integer(last->job));
    json_object_set_new(json, "step_s", json_real(last->timing.step_s));
    return json;
}

void status_add_json(struct status *status, struct text *text)
{
    struct board_state state;
    struct engine_memory memory;
    struct gallery_use use;
    json_t *json = json_object(), *timing;
    char reason[EVENTS_LINE_BYTES], *dumped;
    enum health health;

    board_read(status->board, &state);
    worker_memory(status->worker, &memory);
    gallery_use(status->gallery, &use);
    json_object_set_new(json, "version", json_integer(JSON_VERSION));
    json_object_set_new(json, "time_ns", json_integer(state.published_ns));
    json_object_set_new(json, "started_ns", json_integer(status->started_ns));
    health = status_health(status, &state, reason);
    json_object_set_new(
        json, "health",
        json_pack("{s:s, s:s}", "state", status_health_name(health), "reason", reason));
    json_object_set_new(json, "device", device_json(&state.device));
    json_object_set_new(json, "queue", queue_json(status->queue));
    json_object_set_new(json, "running", running_json(&state));
    json_object_set_new(json, "vram", vram_json(&memory));
    json_object_set_new(json, "fragmentation", fragmentation_json(&memory));
    timing = timing_json(&state.total);
    json_object_set_new(timing, "load_s", json_real(state.load_s));
    json_object_set_new(timing, "images", json_integer((json_int_t)state.done));
    json_object_set_new(timing, "last", last_json(&state.last));
    json_object_set_new(json, "timing", timing);
    json_object_set_new(json, "images",
                        json_pack("{s:I, s:I, s:I}", "count", (json_int_t)use.images, "disk_bytes",
                                  (json_int_t)use.disk_bytes, "limit_bytes",
                                  (json_int_t)use.limit_bytes));
    dumped = json_dumps(json, JSON_INDENT(1) | JSON_REAL_PRECISION(6));
    content_add_string(text, dumped != NULL ? dumped : "");
    content_add_string(text, "\n");
    text->failed |= dumped == NULL;
    free(dumped);
    json_decref(json);
}
