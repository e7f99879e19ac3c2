/* SPDX-License-Identifier: MIT */
#include "fs/encoder.h"

#include <errno.h>
#include <signal.h>
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

/* Sleeps a second; false at once when the encoder stops. */
static bool pause_before_retry(struct encoder *encoder)
{
    pthread_mutex_t *lock = &encoder->options.tree->lock;
    struct timespec end;
    bool stopping;

    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += 1;
    pthread_mutex_lock(lock);
    while (!encoder->stopping &&
           pthread_cond_timedwait(&encoder->changed, lock, &end) != ETIMEDOUT) {
    }
    stopping = encoder->stopping;
    pthread_mutex_unlock(lock);
    return !stopping;
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

/* Stores the image under its name and shows it. False: the encoder stops, and it isn't stored. */
static bool image_store(struct encoder *encoder, struct encoder_task *task, const char *name,
                        struct error *err)
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
        if (!pause_before_retry(encoder)) {
            free(parameters);
            tree_announce(options->tree, name, ANNOUNCE_NONE);
            return false;
        }
        err->code = 0;
    }
    if (told) {
        events_end_trouble(options->events);
    }
    free(parameters);
    announce(encoder, name, existed);
    return true;
}

/* The name its file of prompts/ gives an image; of several from one file the later ones are
 * numbered, as `source` says already. */
static void task_run(struct encoder *encoder, struct encoder_task *task)
{
    const struct encoder_options *options = &encoder->options;
    struct job *job = &task->job;
    struct job_result result = {.timing_json = task->timing_json, .vram_csv = task->vram_csv};
    struct error err = {0}, finish_err = {0};
    char name[GALLERY_NAME_BYTES];
    bool told = false;

    gallery_name(name, job->info.id, job->source, job->prompt.name, job->prompt.text);
    if (!image_store(encoder, task, name, &err)) {
        queue_release(options->queue, job->info.id, NULL);
        return;
    }
    result.state = err.code == 0 ? JOB_DONE : JOB_FAILED;
    result.image = err.code == 0 ? name : NULL;
    result.error = err.code == 0 ? NULL : err.text;
    while (queue_finish(options->queue, job->info.id, &result, &finish_err) != 0 &&
           worth_retrying(finish_err.code)) {
        if (!told) {
            events_begin_trouble(options->events, "job %lld: %s", (long long)job->info.id,
                                 finish_err.text);
            told = true;
        }
        if (!pause_before_retry(encoder)) {
            return;
        }
    }
    if (told) {
        events_end_trouble(options->events);
    }
    options->ended(options->owner, job->info.id, result.state);
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
            struct encoder_task task = encoder->tasks[encoder->first];
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
        encoder_task_finish(&encoder->tasks[(encoder->first + i) % ENCODER_TASKS]);
    }
    pthread_cond_destroy(&encoder->changed);
    free(encoder);
}

void encoder_push(struct encoder *encoder, struct encoder_task *task)
{
    pthread_mutex_t *lock = &encoder->options.tree->lock;

    pthread_mutex_lock(lock);
    while (encoder->count == ENCODER_TASKS && !encoder->stopping) {
        pthread_cond_wait(&encoder->changed, lock);
    }
    if (encoder->count < ENCODER_TASKS) {
        encoder->tasks[(encoder->first + encoder->count) % ENCODER_TASKS] = *task;
        encoder->count++;
        *task = (struct encoder_task){0};
        pthread_cond_broadcast(&encoder->changed);
    }
    pthread_mutex_unlock(lock);
    encoder_task_finish(task);
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
