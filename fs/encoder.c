/* SPDX-License-Identifier: MIT */
#include "fs/encoder.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct encoder {
    struct encoder_options options;
    pthread_t thread;
    pthread_cond_t changed; /* with the tree lock, which guards all below */
    struct encoder_task tasks[ENCODER_TASKS];
    size_t first, count;
    char gone[ENCODER_GONE][GALLERY_NAME_BYTES];
    size_t gone_count;
    bool stopping;
};

void encoder_task_finish(struct encoder_task *task)
{
    job_finish(&task->job);
    free(task->pixels);
    free(task->timing_json);
    free(task->vram_csv);
    *task = (struct encoder_task){0};
}

static struct encoder_task *task_at(struct encoder *encoder, size_t place)
{
    return &encoder->tasks[(encoder->first + place) % ENCODER_TASKS];
}

static bool is_cancelling(struct encoder *encoder, int64_t job)
{
    struct job_info info;

    return queue_find(encoder->options.queue, job, &info) && info.cancelling;
}

/* With the lock. False: no task waits whose job is being cancelled. */
static bool take_cancelled(struct encoder *encoder, struct encoder_task *task)
{
    size_t place = 0;

    while (place < encoder->count &&
           !is_cancelling(encoder, task_at(encoder, place)->job.info.id)) {
        place++;
    }
    if (place == encoder->count) {
        return false;
    }
    *task = *task_at(encoder, place);
    encoder->count--;
    for (; place < encoder->count; place++) {
        *task_at(encoder, place) = *task_at(encoder, place + 1);
    }
    pthread_cond_broadcast(&encoder->changed);
    return true;
}

enum outcome { OUTCOME_THROUGH, OUTCOME_CANCELLED, OUTCOME_STOPPED };

static void task_cancel(struct encoder *encoder, struct encoder_task *task);

/* Sleeps a second, and ends those meanwhile that wait and are being cancelled. Other outcomes than
 * that it is through come at once: the encoder stops, or `job` (0: none) is being cancelled. */
static enum outcome pause_before_retry(struct encoder *encoder, int64_t job)
{
    pthread_mutex_t *lock = &encoder->options.tree->lock;
    enum outcome outcome = OUTCOME_THROUGH;
    struct encoder_task task;
    struct timespec end;
    bool over = false;

    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += 1;
    pthread_mutex_lock(lock);
    while (!over) {
        if (encoder->stopping) {
            outcome = OUTCOME_STOPPED;
            break;
        }
        if (job != 0 && is_cancelling(encoder, job)) {
            outcome = OUTCOME_CANCELLED;
            break;
        }
        if (job != 0 && take_cancelled(encoder, &task)) {
            pthread_mutex_unlock(lock);
            task_cancel(encoder, &task);
            pthread_mutex_lock(lock);
        } else {
            over = pthread_cond_timedwait(&encoder->changed, lock, &end) == ETIMEDOUT;
        }
    }
    pthread_mutex_unlock(lock);
    return outcome;
}

static bool worth_retrying(int code)
{
    return code == -ENOSPC || code == -EIO || code == -EDQUOT || code == -ENOMEM ||
           code == -EROFS || code == -EMFILE || code == -ENFILE;
}

static void announce(struct encoder *encoder, const char *name, bool existed)
{
    struct notifier *notifier = encoder->options.notifier;

    if (existed) {
        notifier_replaced(notifier, name);
    } else {
        notifier_created(notifier, name);
    }
    tree_announce(encoder->options.tree, name, ANNOUNCE_NONE);
}

/* Stores the image under its name and shows it, unless it comes out otherwise. */
static enum outcome image_store(struct encoder *encoder, struct encoder_task *task,
                                const char *name, struct error *err)
{
    const struct encoder_options *options = &encoder->options;
    const struct prompt *prompt = &task->job.prompt;
    char *parameters = prompt_format_parameters(prompt, task->model);
    struct png_image image = {
        .rgb = task->pixels,
        .width_px = prompt->values.width_px,
        .height_px = prompt->values.height_px,
        .parameters = parameters,
    };
    struct gallery_image old;
    bool existed = gallery_find(options->gallery, name, &old), told = false;
    enum outcome outcome = OUTCOME_THROUGH;

    if (!existed && options->notifier != NULL) {
        tree_announce(options->tree, name, ANNOUNCE_HIDDEN);
    }
    while (gallery_store(options->gallery, name, &image, NULL, err) != 0 &&
           worth_retrying(err->code)) {
        if (!told) {
            /* If the text names the image, it has the prompt's words in it. */
            bool hide = options->events->discreet && strstr(err->text, name) != NULL;
            events_begin_trouble(options->events, "job %lld: %s", (long long)task->job.info.id,
                                 hide ? strerror(-err->code) : err->text);
            told = true;
        }
        err->code = 0;
        outcome = pause_before_retry(encoder, task->job.info.id);
        if (outcome != OUTCOME_THROUGH) {
            break;
        }
    }
    if (told) {
        events_end_trouble(options->events, outcome == OUTCOME_THROUGH);
    }
    free(parameters);
    if (outcome == OUTCOME_THROUGH) {
        announce(encoder, name, existed);
    } else {
        tree_announce(options->tree, name, ANNOUNCE_NONE);
    }
    return outcome;
}

/* Has the queue know how the job ended. */
static enum outcome job_end(struct encoder *encoder, int64_t job, const struct job_result *result)
{
    const struct encoder_options *options = &encoder->options;
    enum outcome outcome = OUTCOME_THROUGH;
    struct error err = {0};
    bool told = false;

    while (queue_finish(options->queue, job, result, &err) != 0 && worth_retrying(err.code)) {
        if (!told) {
            events_begin_trouble(options->events, "job %lld: %s", (long long)job, err.text);
            told = true;
        }
        outcome = pause_before_retry(encoder, result->state == JOB_CANCELLED ? 0 : job);
        if (outcome != OUTCOME_THROUGH) {
            break;
        }
    }
    if (told) {
        events_end_trouble(options->events, outcome == OUTCOME_THROUGH);
    }
    if (outcome == OUTCOME_THROUGH) {
        options->ended(options->owner, job, result->state);
    }
    return outcome;
}

/* The pixels go first: the disk may not take even this. */
static void task_cancel(struct encoder *encoder, struct encoder_task *task)
{
    struct job_result result = {.state = JOB_CANCELLED};
    int64_t job = task->job.info.id;

    encoder_task_finish(task);
    job_end(encoder, job, &result);
}

/* The name its file of prompts/ gives an image; of several from one file the later ones are
 * numbered, as `source` says already. Another user's image of that name stays, and this one gets
 * its job's number. */
static void image_name(struct encoder *encoder, const struct job *job,
                       char name[GALLERY_NAME_BYTES])
{
    const struct encoder_options *options = &encoder->options;
    struct job_info old;

    gallery_name(name, job->info.id, job->source, job->prompt.name, job->prompt.text);
    if (job->source[0] != '\0' && queue_find_image(options->queue, name, &old) &&
        !tree_replaces(options->tree, job->info.uid, old.uid)) {
        char stem[GALLERY_NAME_BYTES];

        snprintf(stem, sizeof stem, "%.*s", (int)(strlen(name) - strlen(".png")), name);
        gallery_name(name, job->info.id, NULL, stem, job->prompt.text);
    }
}

static void task_run(struct encoder *encoder, struct encoder_task *task)
{
    const struct encoder_options *options = &encoder->options;
    struct job *job = &task->job;
    struct job_result result = {.timing_json = task->timing_json, .vram_csv = task->vram_csv};
    enum outcome outcome = OUTCOME_CANCELLED;
    struct error err = {0};
    char name[GALLERY_NAME_BYTES];

    image_name(encoder, job, name);
    if (!is_cancelling(encoder, job->info.id)) {
        outcome = image_store(encoder, task, name, &err);
    }
    if (outcome == OUTCOME_STOPPED) {
        queue_release(options->queue, job->info.id, NULL);
    } else if (outcome == OUTCOME_THROUGH) {
        result.state = err.code == 0 ? JOB_DONE : JOB_FAILED;
        result.image = err.code == 0 ? name : NULL;
        result.error = err.code == 0 ? NULL : err.text;
        outcome = job_end(encoder, job->info.id, &result);
        if (outcome == OUTCOME_CANCELLED && result.image != NULL) {
            gallery_remove(options->gallery, name, NULL);
        }
    }
    if (outcome == OUTCOME_CANCELLED) {
        task_cancel(encoder, task);
    }
}

static void gone_run(struct encoder *encoder, const char *name)
{
    if (tree_announce(encoder->options.tree, name, ANNOUNCE_GHOST)) {
        notifier_gone(encoder->options.notifier, name);
        tree_announce(encoder->options.tree, name, ANNOUNCE_NONE);
    }
}

static void *encoder_main(void *owner)
{
    struct encoder *encoder = owner;
    pthread_mutex_t *lock = &encoder->options.tree->lock;

    pthread_mutex_lock(lock);
    for (;;) {
        if (encoder->gone_count > 0) {
            char name[GALLERY_NAME_BYTES];
            memcpy(name, encoder->gone[--encoder->gone_count], sizeof name);
            pthread_mutex_unlock(lock);
            gone_run(encoder, name);
            pthread_mutex_lock(lock);
        } else if (encoder->count > 0) {
            struct encoder_task task = *task_at(encoder, 0);
            encoder->first = (encoder->first + 1) % ENCODER_TASKS;
            encoder->count--;
            pthread_cond_broadcast(&encoder->changed);
            pthread_mutex_unlock(lock);
            task_run(encoder, &task);
            encoder_task_finish(&task);
            pthread_mutex_lock(lock);
        } else if (encoder->stopping) {
            break;
        } else {
            pthread_cond_wait(&encoder->changed, lock);
        }
    }
    pthread_mutex_unlock(lock);
    return NULL;
}

int encoder_create(struct encoder **encoder, const struct encoder_options *options,
                   struct error *err)
{
    struct encoder *new = calloc(1, sizeof *new);
    int code;

    if (new == NULL) {
        return error_set(err, ENOMEM, "no memory for the encoder");
    }
    new->options = *options;
    pthread_cond_init(&new->changed, NULL);
    code = pthread_create(&new->thread, NULL, encoder_main, new);
    if (code != 0) {
        pthread_cond_destroy(&new->changed);
        free(new);
        return error_set(err, code, "encoder: thread: %s", strerror(code));
    }
    *encoder = new;
    return 0;
}

void encoder_stop(struct encoder *encoder)
{
    pthread_mutex_lock(&encoder->options.tree->lock);
    encoder->stopping = true;
    pthread_cond_broadcast(&encoder->changed);
    pthread_mutex_unlock(&encoder->options.tree->lock);
}

void encoder_destroy(struct encoder *encoder)
{
    if (encoder == NULL) {
        return;
    }
    encoder_stop(encoder);
    pthread_join(encoder->thread, NULL);
    for (size_t i = 0; i < encoder->count; i++) {
        encoder_task_finish(task_at(encoder, i));
    }
    pthread_cond_destroy(&encoder->changed);
    free(encoder);
}

void encoder_push(struct encoder *encoder, struct encoder_task *task)
{
    pthread_mutex_t *lock = &encoder->options.tree->lock;

    bool cancelling = false;

    pthread_mutex_lock(lock);
    while (encoder->count == ENCODER_TASKS && !encoder->stopping && !cancelling) {
        pthread_cond_wait(&encoder->changed, lock);
        cancelling = is_cancelling(encoder, task->job.info.id);
    }
    if (encoder->count < ENCODER_TASKS) {
        *task_at(encoder, encoder->count) = *task;
        encoder->count++;
        *task = (struct encoder_task){0};
        cancelling = false;
        pthread_cond_broadcast(&encoder->changed);
    }
    pthread_mutex_unlock(lock);
    if (cancelling) {
        task_cancel(encoder, task);
    }
    encoder_task_finish(task);
}

void encoder_wake(struct encoder *encoder)
{
    pthread_mutex_lock(&encoder->options.tree->lock);
    pthread_cond_broadcast(&encoder->changed);
    pthread_mutex_unlock(&encoder->options.tree->lock);
}

void encoder_announce_gone(struct encoder *encoder, const char *name)
{
    pthread_mutex_t *lock = &encoder->options.tree->lock;

    pthread_mutex_lock(lock);
    if (encoder->gone_count < ENCODER_GONE) {
        snprintf(encoder->gone[encoder->gone_count++], GALLERY_NAME_BYTES, "%s", name);
        pthread_cond_broadcast(&encoder->changed);
    }
    pthread_mutex_unlock(lock);
}
