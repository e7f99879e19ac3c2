/* SPDX-License-Identifier: MIT */
#include "fs/worker_private.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fs/content.h"
#include "fs/status.h"

/* ---- Jobs. ---- */

int jobs_active(const struct worker *worker)
{
    int count = 0;

    for (int i = 0; i < BOARD_IMAGES; i++) {
        count += worker->active[i].image != NULL;
    }
    return count;
}

/* What may pass: a refusal, by contrast, stays one. */
static bool disk_failed(int code)
{
    return code != 0 && code != -ENOENT && code != -EINVAL && code != -EAGAIN;
}

enum change { CHANGE_SETTLE, CHANGE_FINISH, CHANGE_RELEASE };

/* Changes a job in the queue; while the disk is full or fails, until it works or we stop. */
static int job_change(struct worker *worker, enum change change, const struct job *job,
                      const struct job_result *result)
{
    struct queue *queue = worker->options.queue;
    int64_t id = job->info.id;
    struct error err = {0};
    bool told = false;
    int code;

    for (;;) {
        code = change == CHANGE_SETTLE   ? queue_settle(queue, id, &job->prompt.values, &err)
               : change == CHANGE_FINISH ? queue_finish(queue, id, result, &err)
                                         : queue_release(queue, id, &err);
        if (!disk_failed(code)) {
            if (told) {
                events_end_trouble(worker->options.events, true);
            }
            return code;
        }
        if (!told) {
            events_begin_trouble(worker->options.events, "job %lld: %s", (long long)id, err.text);
            told = true;
        }
        worker_wait(worker, WORKER_RETRY_S);
        if (worker_is_stopping(worker)) {
            return code; /* it is still running in the queue, so it runs after the next start */
        }
    }
}

static void job_fail(struct worker *worker, const struct job *job, const char *reason)
{
    struct job_result result = {.state = JOB_FAILED, .error = reason};

    char public[64];

    snprintf(public, sizeof public, "job %lld failed", (long long)job->info.id);
    events_add_error_of(worker->options.events, job->info.uid, public, "job %lld failed: %s",
                        (long long)job->info.id, reason);
    worker->state.failed++;
    job_change(worker, CHANGE_FINISH, job, &result);
}

/* The job's picture ended with an error. */
static void job_fail_or_wait(struct worker *worker, const struct job *job, const struct error *err)
{
    if (err->code == -ENOMEM && room_may_return(worker, job->info.id, err)) {
        job_change(worker, CHANGE_RELEASE, job, NULL);
    } else {
        job_fail(worker, job, err->text);
    }
}

static void active_end(struct worker *worker, struct active *active)
{
    struct image *image = active->image;
    struct job job;

    worker_board_remove(worker, active->job.info.id);
    pthread_mutex_lock(worker->lock);
    active->image = NULL; /* so nobody borrows it any more */
    worker_wait_borrowers(worker);
    content_finish(&active->curve);
    job = active->job;
    *active = (struct active){0};
    pthread_mutex_unlock(worker->lock);
    image_finish(image);
    job_finish(&job);
    worker_publish(worker);
}

static void show_progress(void *owner, struct image *image, const struct image_progress *progress)
{
    struct worker *worker = owner;

    for (int i = 0; i < BOARD_IMAGES; i++) {
        if (worker->active[i].image == image) {
            struct board_image *shown = worker_board_image(worker, worker->active[i].job.info.id);
            if (shown != NULL) {
                shown->progress = *progress;
            }
        }
    }
    worker_publish(worker);
}

void worker_request(struct image_request *request, const struct prompt_values *values)
{
    request->width_px = values->width_px;
    request->height_px = values->height_px;
    request->steps = values->steps;
    request->guidance = values->guidance;
    request->cfg_scale = values->true_cfg;
    request->seed = values->seed;
}

static int active_start(struct worker *worker, struct active *active, struct job *job,
                        struct error *err)
{
    const struct prompt_values *values = &job->prompt.values;
    struct image_request request = {.prompt = job->prompt.text, .negative = job->prompt.negative};
    struct image_observer observer = {.owner = worker, .progress = show_progress};
    struct image *image;
    int code;

    worker_request(&request, values);
    code = image_start(&image, worker->engine, &request, &observer, err);
    if (code != 0) {
        return code;
    }
    worker->state.image[worker->state.images++] = (struct board_image){
        .job = job->info.id,
        .started_ns = clock_ns(),
        .width_px = values->width_px,
        .height_px = values->height_px,
        .progress = {.steps = values->steps, .remaining_s = -1},
    };
    pthread_mutex_lock(worker->lock);
    *active = (struct active){.job = *job, .image = image, .started_ns = clock_ns()};
    pthread_mutex_unlock(worker->lock);
    worker_publish(worker);
    if (engine_cuts(worker->engine, job->prompt.text)) {
        events_add(worker->options.events,
                   "job %lld: the model reads the first %d tokens of its prompt, and not the rest",
                   (long long)job->info.id, engine_info(worker->engine)->max_tokens);
    }
    return 0;
}

/* Asked in the queue's own order: whoever paused, or wants another model, and wrote a prompt after
 * that finds it so. */
static bool jobs_allowed(void *owner)
{
    struct worker *worker = owner;
    struct control_values values;

    control_values(worker->options.control, &values);
    return !values.paused && strcmp(values.model, worker->model) == 0;
}

/* Takes one job and starts it. False: there is nothing to start now. */
static bool job_take(struct worker *worker)
{
    const struct engine_info *info = engine_info(worker->engine);
    struct active *place = worker->active;
    struct error err = {0};
    struct job job;

    if (!room_for_next(worker)) {
        return false;
    }
    while (place->image != NULL) {
        place++;
    }
    if (queue_claim(worker->options.queue, jobs_allowed, worker, &job, &err) != 0) {
        if (err.code != -EAGAIN && !worker->queue_fails) {
            events_begin_trouble(worker->options.events, "%s", err.text);
            worker->queue_fails = true;
        }
        return false;
    }
    if (worker->queue_fails) {
        events_end_trouble(worker->options.events, true);
        worker->queue_fails = false;
    }
    prompt_values_settle(&job.prompt.values, info->default_steps, info->native_px);
    if (job_change(worker, CHANGE_SETTLE, &job, NULL) != 0) {
        job_change(worker, CHANGE_RELEASE, &job, NULL);
        job_finish(&job);
        return false;
    }
    if (active_start(worker, place, &job, &err) == 0) {
        struct job_info now;
        /* Cancelled between queue_claim and here, when worker_cancel didn't find it. */
        if (queue_find(worker->options.queue, job.info.id, &now) && now.cancelling) {
            image_cancel(place->image);
        }
        return true;
    }
    if (err.code == -ENOMEM && jobs_active(worker) > 0) {
        job_change(worker, CHANGE_RELEASE, &job, NULL); /* alone it may fit */
        job_finish(&job);
        return false;
    }
    job_fail_or_wait(worker, &job, &err);
    job_finish(&job);
    return true;
}

enum { EXPECTED_PROMPTS = 8 };

/* While the text encoders run for what was just started, they may serve the next in the queue. */
static void jobs_expect(struct worker *worker)
{
    struct job_info infos[EXPECTED_PROMPTS];
    struct job jobs[EXPECTED_PROMPTS];
    const char *prompts[2 * EXPECTED_PROMPTS];
    size_t wanted = engine_wanted_prompts(worker->engine), waiting, loaded = 0, count = 0;
    struct queue_counts counts;
    struct error err;

    if (wanted == 0) {
        return;
    }
    queue_counts(worker->options.queue, &counts);
    waiting = queue_order(worker->options.queue, counts.state[JOB_RUNNING], infos,
                          wanted < EXPECTED_PROMPTS ? wanted : EXPECTED_PROMPTS);
    for (size_t i = 0; i < waiting && count < wanted; i++) {
        struct job *job = &jobs[loaded];
        if (infos[i].state != JOB_WAITING ||
            queue_load(worker->options.queue, infos[i].id, job, &err) != 0) {
            continue;
        }
        loaded++;
        prompts[count++] = job->prompt.text;
        if (job->prompt.values.true_cfg != 1) {
            prompts[count++] = job->prompt.negative;
        }
    }
    engine_expect(worker->engine, prompts, count);
    for (size_t i = 0; i < loaded; i++) {
        job_finish(&jobs[i]);
    }
}

void jobs_take(struct worker *worker)
{
    int active = jobs_active(worker), before = active;
    struct queue_counts counts;

    queue_counts(worker->options.queue, &counts);
    while (active < BOARD_IMAGES &&
           active < engine_wanted_images(worker->engine, counts.state[JOB_WAITING]) &&
           job_take(worker)) {
        active = jobs_active(worker);
        queue_counts(worker->options.queue, &counts);
    }
    if (active > before) {
        jobs_expect(worker);
    }
}

/* Everything about a finished image goes to the encoder; its place is free for the next. */
static void active_hand_over(struct worker *worker, struct active *active)
{
    struct board_image *shown = worker_board_image(worker, active->job.info.id);
    struct prompt_values *values = &active->job.prompt.values;
    size_t size = (size_t)values->width_px * (size_t)values->height_px * 3;
    struct encoder_task task = {.pixels = malloc(size)};
    struct board_image kept = *shown;
    double seconds = 1e-9 * (double)(clock_ns() - active->started_ns);

    if (task.pixels == NULL) {
        job_fail(worker, &active->job, "no memory for the pixels");
        active_end(worker, active);
        return;
    }
    memcpy(task.pixels, image_pixels(active->image), size);
    image_timing(active->image, &kept.timing);
    kept.saving = true;
    task.timing_json = status_timing_json(&kept.timing, seconds);
    memcpy(task.model, worker->state.device.model, sizeof task.model);
    if (worker->doubted) {
        worker->doubted = false;
        worker_set_health(worker, HEALTH_OK, "");
    }
    worker_sample(worker);
    pthread_mutex_lock(worker->lock);
    task.vram_csv = text_take(&active->curve);
    task.job = active->job;
    active->job = (struct job){.info.id = kept.job};
    pthread_mutex_unlock(worker->lock);
    active_end(worker, active);
    worker->state.image[worker->state.images++] = kept;
    worker_publish(worker);
    encoder_push(worker->options.encoder, &task);
}

/* Ends those images that are through. */
void jobs_look(struct worker *worker)
{
    struct job_result cancelled = {.state = JOB_CANCELLED};
    bool stopping = worker_is_stopping(worker);

    for (int i = 0; i < BOARD_IMAGES; i++) {
        struct active *active = &worker->active[i];
        struct board_image *shown;
        struct error err = {0};
        if (active->image == NULL) {
            continue;
        }
        switch (image_phase(active->image)) {
        case IMAGE_DONE:
            active_hand_over(worker, active);
            break;
        case IMAGE_FAILED:
            image_error(active->image, &err);
            job_fail_or_wait(worker, &active->job, &err);
            active_end(worker, active);
            break;
        case IMAGE_CANCELLED:
            /* A stop cancels images too, but their jobs are to run again. */
            worker->state.cancelled += !stopping;
            job_change(worker, stopping ? CHANGE_RELEASE : CHANGE_FINISH, &active->job, &cancelled);
            active_end(worker, active);
            break;
        default:
            shown = worker_board_image(worker, active->job.info.id);
            image_timing(active->image, &shown->timing);
        }
    }
}

static bool was_lost(const struct worker *worker, int64_t job)
{
    for (int i = 0; i < BOARD_IMAGES; i++) {
        if (worker->lost[i] == job) {
            return true;
        }
    }
    return false;
}

void jobs_lost(struct worker *worker, const struct error *err)
{
    struct job_result cancelled = {.state = JOB_CANCELLED};
    int64_t lost[BOARD_IMAGES] = {0};
    bool stopping = worker_is_stopping(worker);

    for (int i = 0; i < BOARD_IMAGES; i++) {
        struct active *active = &worker->active[i];
        struct job_info now;
        int64_t job;
        if (active->image == NULL) {
            continue;
        }
        job = active->job.info.id;
        if (!stopping && queue_find(worker->options.queue, job, &now) && now.cancelling) {
            worker->state.cancelled++;
            job_change(worker, CHANGE_FINISH, &active->job, &cancelled);
        } else if (err->code == -EINVAL || image_phase(active->image) != IMAGE_FAILED) {
            job_change(worker, CHANGE_RELEASE, &active->job, NULL);
        } else if (was_lost(worker, job)) {
            job_fail(worker, &active->job, err->text);
        } else {
            lost[i] = job;
            job_change(worker, CHANGE_RELEASE, &active->job, NULL);
        }
        active_end(worker, active);
    }
    memcpy(worker->lost, lost, sizeof lost);
    worker_close(worker);
}

void jobs_release(struct worker *worker)
{
    for (int i = 0; i < BOARD_IMAGES; i++) {
        if (worker->active[i].image != NULL) {
            job_change(worker, CHANGE_RELEASE, &worker->active[i].job, NULL);
            active_end(worker, &worker->active[i]);
        }
    }
}

void jobs_ended(struct worker *worker)
{
    struct board_state *state = &worker->state;
    bool any;

    pthread_mutex_lock(worker->lock);
    any = worker->ended_count > 0;
    for (size_t i = 0; i < worker->ended_count; i++) {
        struct board_image *image = worker_board_image(worker, worker->ended[i].job);
        if (image != NULL && worker->ended[i].state == JOB_DONE) {
            state->last = *image;
            state->done++;
            state->total.text_s += image->timing.text_s;
            state->total.condition_s += image->timing.condition_s;
            state->total.denoise_s += image->timing.denoise_s;
            state->total.decode_s += image->timing.decode_s;
            state->total.compute_s += image->timing.compute_s;
            state->total.copy_s += image->timing.copy_s;
            state->total.wait_s += image->timing.wait_s;
        } else if (image != NULL && worker->ended[i].state == JOB_CANCELLED) {
            state->cancelled++;
        } else if (image != NULL) {
            state->failed++;
        }
        worker_board_remove(worker, worker->ended[i].job);
    }
    worker->ended_count = 0;
    pthread_mutex_unlock(worker->lock);
    if (any) {
        worker_publish(worker);
    }
}
