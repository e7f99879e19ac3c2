/* SPDX-License-Identifier: MIT */
#include "fs/status.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fs/content.h"

enum { SHOWN_JOBS = 256 };

const char *status_health_name(enum health health)
{
    static const char *const names[] = {
        [HEALTH_LOADING] = "loading", [HEALTH_OK] = "ok", [HEALTH_ERROR] = "error"};

    return names[health];
}

enum health status_health(struct status *status, const struct board_state *state,
                          char reason[EVENTS_LINE_BYTES])
{
    struct error err;

    if (state->shortage[0] != '\0') {
        snprintf(reason, EVENTS_LINE_BYTES, "%s", state->shortage);
        return HEALTH_ERROR;
    }
    if (state->health == HEALTH_OK && events_trouble(status->events, reason)) {
        return HEALTH_ERROR;
    }
    snprintf(reason, EVENTS_LINE_BYTES, "%s", state->health_text);
    if (state->health != HEALTH_OK) {
        return state->health;
    }
    if (queue_trouble(status->queue, &err) != 0) {
        snprintf(reason, EVENTS_LINE_BYTES, "%s", err.text);
        return HEALTH_ERROR;
    }
    return HEALTH_OK;
}

double status_vram_percent(const struct engine_memory *memory)
{
    return memory->budget > 0 ? 100.0 * (double)memory->reserved / (double)memory->budget : 0;
}

const char *status_vram_level(const struct engine_memory *memory)
{
    double percent = status_vram_percent(memory);

    return percent < 75 ? "green" : percent < 90 ? "yellow" : "red";
}

void status_add_progress(struct text *text, const struct board_image *image)
{
    const struct image_progress *progress = &image->progress;

    text_print(text, "job %lld ", (long long)image->job);
    if (image->saving) {
        content_add_string(text, "saving, 100 %");
        return;
    }
    if (progress->phase == IMAGE_DENOISE) {
        text_print(text, "step %d/%d", progress->step, progress->steps);
    } else {
        content_add_string(text, image_phase_name(progress->phase));
    }
    if (progress->blocks > 0) {
        text_print(text, " block %d/%d %s", progress->block, progress->blocks,
                   progress->block_kind != NULL ? progress->block_kind : "");
    }
    text_print(text, ", %.0f %%", 100 * progress->fraction);
    if (progress->remaining_s >= 0) {
        text_print(text, ", %.1f s left", progress->remaining_s);
    }
}

static void progress_render(struct status *status, const struct board_state *state,
                            struct text *text)
{
    char reason[EVENTS_LINE_BYTES];
    struct control_values values;
    struct queue_counts counts;
    enum health health;

    for (int i = 0; i < state->images; i++) {
        status_add_progress(text, &state->image[i]);
        content_add_string(text, "\n");
    }
    if (state->images > 0) {
        return;
    }
    control_values(status->control, &values);
    queue_counts(status->queue, &counts);
    health = status_health(status, state, reason);
    if (health == HEALTH_OK) {
        content_add_string(text, values.paused ? "paused" : "idle");
    } else {
        content_add_string(text, status_health_name(health));
    }
    /* A job is taken from the queue a moment before its picture shows, and waits until then: a
     * script that waits for "idle, 0 waiting" shall not find it in between. */
    text_print(text, ", %zu waiting%s%s\n", counts.state[JOB_WAITING] + counts.state[JOB_RUNNING],
               state->shortage[0] != '\0' ? ": " : "", state->shortage);
}

static void size_line(struct text *text, const char *key, uint64_t bytes)
{
    text_print(text, "%s %s\n", key, size_shown(bytes).text);
}

/* Words as in alloc/arena.h; what is reserved is what is used of the budget. */
static void vram_render(struct status *status, struct text *text)
{
    struct engine_memory memory;

    worker_memory(status->worker, &memory);
    size_line(text, "used", memory.reserved);
    size_line(text, "budget", memory.budget);
    text_print(text, "percent %.1f\n", status_vram_percent(&memory));
    text_print(text, "level %s\n", status_vram_level(&memory));
    size_line(text, "peak", memory.peak_reserved);
    size_line(text, "requested", memory.requested);
    size_line(text, "allocated", memory.allocated);
    size_line(text, "mapped", memory.pages_mapped * memory.page_bytes);
    size_line(text, "reserved", memory.reserved);
    for (enum memory_component c = 0; c < MEMORY_COMPONENTS; c++) {
        char key[32];
        size_t i = 0;
        for (const char *name = memory_component_name(c); *name != '\0' && i < 31; name++) {
            key[i++] = *name == ' ' ? '_' : *name;
        }
        key[i] = '\0';
        size_line(text, key, memory.component[c]);
    }
    text_print(text, "resident_blocks %llu\nstreamed_blocks %llu\n",
               (unsigned long long)memory.resident_blocks,
               (unsigned long long)memory.streamed_blocks);
    size_line(text, "device_free", memory.device_free);
    size_line(text, "device_total", memory.device_total);
}

static void fragmentation_render(struct status *status, struct text *text)
{
    struct engine_memory memory;

    worker_memory(status->worker, &memory);
    text_print(text, "before_merging %.1f %%\n", 100 * memory.fragmentation);
    text_print(text, "after_merging %.1f %%\n", 100 * memory.fragmentation_merged);
    text_print(text, "waste %.1f %%\n", 100 * memory.waste);
    size_line(text, "free", memory.free_bytes);
    size_line(text, "slack", memory.slack_bytes);
    size_line(text, "largest_run", memory.largest_free_bytes);
    size_line(text, "page", memory.page_bytes);
    text_print(text, "pages_mapped %llu\npages_spare %llu\n",
               (unsigned long long)memory.pages_mapped, (unsigned long long)memory.pages_spare);
    text_print(text, "allocations %llu\nmerges %llu\nevictions %llu\n",
               (unsigned long long)memory.allocations, (unsigned long long)memory.merges,
               (unsigned long long)memory.evictions);
}

static void timing_lines(struct text *text, const char *of, const struct image_timing *timing)
{
    text_print(text, "%s_text %.3f s\n", of, timing->text_s);
    text_print(text, "%s_condition %.3f s\n", of, timing->condition_s);
    text_print(text, "%s_denoise %.3f s\n", of, timing->denoise_s);
    text_print(text, "%s_decode %.3f s\n", of, timing->decode_s);
    text_print(text, "%s_computing %.3f s\n", of, timing->compute_s);
    text_print(text, "%s_copying %.3f s\n", of, timing->copy_s);
    text_print(text, "%s_waiting_for_weights %.3f s\n", of, timing->wait_s);
    if (timing->step_s > 0) {
        text_print(text, "%s_step %.4f s\n", of, timing->step_s);
    }
}

static void timing_render(const struct board_state *state, struct text *text)
{
    text_print(text, "loading %.3f s\n", state->load_s);
    if (state->images > 0 && !state->image[0].saving) {
        text_print(text, "job %lld\n", (long long)state->image[0].job);
        timing_lines(text, "job", &state->image[0].timing);
    }
    if (state->last.job != 0) {
        text_print(text, "last %lld\n", (long long)state->last.job);
        timing_lines(text, "last", &state->last.timing);
    }
    text_print(text, "images %llu\n", (unsigned long long)state->done);
    timing_lines(text, "all", &state->total);
}

/* No words of prompts here: everybody may read it. */
static int queue_render(struct status *status, struct text *text)
{
    struct job_info *infos = calloc(SHOWN_JOBS, sizeof *infos);
    struct queue_counts counts;
    size_t shown;

    if (infos == NULL) {
        return -ENOMEM;
    }
    queue_counts(status->queue, &counts);
    for (enum job_state s = 0; s < JOB_STATES; s++) {
        text_print(text, "%s %zu\n", job_state_name(s), counts.state[s]);
    }
    shown = queue_order(status->queue, 0, infos, SHOWN_JOBS);
    for (size_t i = 0; i < shown; i++) {
        text_print(text, "job %lld %s priority %d\n", (long long)infos[i].id,
                   infos[i].cancelling ? "cancelling" : job_state_name(infos[i].state),
                   infos[i].priority);
    }
    free(infos);
    return 0;
}

static void device_render(struct status *status, const struct board_state *state, struct text *text)
{
    const struct board_device *device = &state->device;
    struct engine_memory memory;
    uint64_t total, available;

    if (device->model[0] == '\0') {
        return;
    }
    text_print(text, "model %s\nbackend %s\ndevice %s\n", device->model, device->backend,
               device->device);
    text_print(text, "parameters %llu\n", (unsigned long long)device->parameters);
    size_line(text, "weights", device->weight_bytes);
    text_print(text, "guidance %s\n", device->has_guidance ? "yes" : "no");
    text_print(text, "native_size %d px\nlargest_side %d px\n", device->native_px,
               device->max_side_px);
    text_print(text, "default_steps %d\nlongest_prompt %d tokens\n", device->default_steps,
               device->max_tokens);
    worker_memory(status->worker, &memory);
    engine_host_memory(&total, &available);
    size_line(text, "host_memory", total);
    size_line(text, "host_memory_available", available);
    size_line(text, "pinned_host_memory", memory.pinned_bytes);
    size_line(text, "spilled_host_memory", memory.spilled_bytes);
    if (device->warning[0] != '\0') {
        text_print(text, "warning %s\n", device->warning);
    }
}

static void health_render(struct status *status, const struct board_state *state, struct text *text)
{
    char reason[EVENTS_LINE_BYTES];
    enum health health = status_health(status, state, reason);

    text_print(text, "%s%s%s\n", status_health_name(health), reason[0] != '\0' ? ": " : "", reason);
}

/* One line a run: where it begins, its size, what it is. */
static int memory_render(struct status *status, struct text *text)
{
    struct memory_run *runs = NULL;
    size_t count = worker_memory_map(status->worker, NULL, 0), written;

    runs = calloc(count + 1, sizeof *runs);
    if (runs == NULL) {
        return -ENOMEM;
    }
    written = worker_memory_map(status->worker, runs, count);
    for (size_t i = 0; i < written && i < count; i++) {
        text_print(text, "%14llu %14llu %s\n", (unsigned long long)runs[i].offset_bytes,
                   (unsigned long long)runs[i].bytes,
                   runs[i].used ? memory_component_name(runs[i].component) : "free");
    }
    free(runs);
    return 0;
}

/* ---- Contents that are kept: many may read the same one, and none shall cost a painting much.
 * ----
 */

static struct status_inputs inputs_now(struct status *status)
{
    struct engine_memory memory;
    struct queue_counts counts;
    struct gallery_use use;
    struct status_inputs inputs = {
        .board = board_version(status->board),
        .memory = worker_memory(status->worker, &memory),
        .events_ns = events_state_ns(status->events),
        .pause_ns = control_changed_ns(status->control, CONTROL_PAUSE),
    };

    queue_counts(status->queue, &counts);
    gallery_use(status->gallery, &use);
    inputs.queue = counts.changes;
    inputs.gallery = use.changes;
    return inputs;
}

static bool kept_take(struct status *status, enum status_file file,
                      const struct status_inputs *inputs, struct text *text, int64_t *changed_ns)
{
    bool good;

    pthread_mutex_lock(&status->tree->lock);
    good = status->kept[file].changed_ns != 0 &&
           memcmp(&status->kept[file].inputs, inputs, sizeof *inputs) == 0;
    if (good) {
        text_add(text, status->kept[file].text.bytes, status->kept[file].text.length);
        *changed_ns = status->kept[file].changed_ns;
    }
    pthread_mutex_unlock(&status->tree->lock);
    return good;
}

/* Inputs that were newer by the time of rendering do no harm: the next reader renders again. */
static int64_t kept_put(struct status *status, enum status_file file,
                        const struct status_inputs *inputs, const struct text *text)
{
    struct text *kept = &status->kept[file].text;
    int64_t changed_ns;
    bool same;

    pthread_mutex_lock(&status->tree->lock);
    same = status->kept[file].changed_ns != 0 && kept->length == text->length &&
           (text->length == 0 || memcmp(kept->bytes, text->bytes, text->length) == 0);
    if (!same) {
        content_clear(kept);
        text_add(kept, text->bytes, text->length);
        status->kept[file].changed_ns = kept->failed ? 0 : clock_ns();
    }
    status->kept[file].inputs = *inputs;
    changed_ns = status->kept[file].changed_ns;
    pthread_mutex_unlock(&status->tree->lock);
    return changed_ns;
}

static int render(struct status *status, enum status_file file, struct text *text)
{
    struct board_state state;

    board_read(status->board, &state);
    switch (file) {
    case STATUS_PROGRESS:
        progress_render(status, &state, text);
        return 0;
    case STATUS_VRAM:
        vram_render(status, text);
        return 0;
    case STATUS_FRAGMENTATION:
        fragmentation_render(status, text);
        return 0;
    case STATUS_TIMING:
        timing_render(&state, text);
        return 0;
    case STATUS_QUEUE:
        return queue_render(status, text);
    case STATUS_DEVICE:
        device_render(status, &state, text);
        return 0;
    case STATUS_HEALTH:
        health_render(status, &state, text);
        return 0;
    case STATUS_MEMORY:
        return memory_render(status, text);
    case STATUS_METRICS:
        status_add_metrics(status, text);
        return 0;
    case STATUS_ALL_JSON:
        status_add_json(status, text);
        return 0;
    default:
        return -ENOENT;
    }
}

/* Which differs from viewer to viewer. */
static void error_render(struct status *status, const struct viewer *viewer, struct text *text,
                         int64_t *changed_ns)
{
    bool all = tree_shows(status->tree, viewer, status->tree->uid);

    *changed_ns = events_show_error(status->events, viewer->uid, all, text);
    if (*changed_ns == 0) {
        *changed_ns = status->started_ns;
    }
}

int status_render(struct status *status, enum status_file file, const struct viewer *viewer,
                  struct text *text, int64_t *changed_ns)
{
    struct status_inputs inputs = inputs_now(status);
    struct text made = {0};
    int code = 0;

    if (file == STATUS_ERROR) {
        error_render(status, viewer, text, changed_ns);
    } else if (!kept_take(status, file, &inputs, text, changed_ns)) {
        code = render(status, file, &made);
        *changed_ns = kept_put(status, file, &inputs, &made);
        text_add(text, made.bytes, made.length);
        text->failed |= made.failed;
        content_finish(&made);
    }
    return text->failed ? -ENOMEM : code;
}

void status_finish(struct status *status)
{
    for (int i = 0; i < STATUS_FILES; i++) {
        content_finish(&status->kept[i].text);
    }
}
