/* SPDX-License-Identifier: MIT */
#include "fs/worker_private.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "fs/status.h"

enum { REOPEN_S = 10 }; /* between attempts to open the engine */
#define REOPEN_NS (REOPEN_S * INT64_C(1000000000))

/* ---- Borrowing engine and images: the worker frees neither while someone has them. ---- */

struct engine *engine_borrow(struct worker *worker)
{
    struct engine *engine;

    pthread_mutex_lock(worker->lock);
    engine = worker->engine;
    worker->borrowers += engine != NULL;
    pthread_mutex_unlock(worker->lock);
    return engine;
}

void engine_return(struct worker *worker)
{
    pthread_mutex_lock(worker->lock);
    if (--worker->borrowers == 0) {
        pthread_cond_broadcast(&worker->changed);
    }
    pthread_mutex_unlock(worker->lock);
}

/* With the lock. */
void worker_wait_borrowers(struct worker *worker)
{
    while (worker->borrowers > 0) {
        pthread_cond_wait(&worker->changed, worker->lock);
    }
}

/* ---- Any thread. ---- */

void worker_wake(struct worker *worker)
{
    pthread_mutex_lock(worker->lock);
    worker->woken = true;
    pthread_cond_broadcast(&worker->changed);
    pthread_mutex_unlock(worker->lock);
}

void worker_retry(struct worker *worker)
{
    pthread_mutex_lock(worker->lock);
    worker->asked = true;
    pthread_mutex_unlock(worker->lock);
    worker_wake(worker);
}

void worker_cancel(struct worker *worker, int64_t job)
{
    struct image *image = NULL;

    pthread_mutex_lock(worker->lock);
    for (int i = 0; i < BOARD_IMAGES; i++) {
        struct active *each = &worker->active[i];
        if (each->image != NULL && each->job.info.id == job) {
            image = each->image;
            worker->borrowers++;
        }
    }
    pthread_mutex_unlock(worker->lock);
    if (image != NULL) {
        image_cancel(image);
        engine_return(worker);
        worker_wake(worker); /* it may wait for memory */
    }
}

void worker_job_ended(struct worker *worker, int64_t job, enum job_state state)
{
    pthread_mutex_lock(worker->lock);
    if (worker->ended_count < sizeof worker->ended / sizeof worker->ended[0]) {
        worker->ended[worker->ended_count].job = job;
        worker->ended[worker->ended_count].state = state;
        worker->ended_count++;
    }
    worker->woken = true;
    pthread_cond_broadcast(&worker->changed);
    pthread_mutex_unlock(worker->lock);
}

int worker_ask(struct worker *worker, const struct prompt *prompt, struct error *err)
{
    struct engine *engine = engine_borrow(worker);
    struct prompt_values values = prompt->values;
    struct image_request request = {.prompt = prompt->text, .negative = prompt->negative};
    int code = 0;

    if (engine == NULL) {
        return 0;
    }
    prompt_values_settle(&values, engine_info(engine)->default_steps,
                         engine_info(engine)->native_px);
    worker_request(&request, &values);
    code = engine_check(engine, &request, err);
    engine_return(worker);
    return code;
}

int worker_check(struct worker *worker, const struct prompt *prompt, struct error *err)
{
    int code = worker_ask(worker, prompt, err);

    if (code == -ENOMEM) {
        code = err->code = -EINVAL; /* nothing is short here: too much is asked for */
    }
    return code;
}

int worker_set_budget(struct worker *worker, uint64_t bytes, struct error *err)
{
    struct engine *engine = engine_borrow(worker);
    int code = 0;

    if (engine != NULL) {
        code = engine_set_budget(engine, bytes, err);
        engine_return(worker);
        memory_look(worker);
    }
    return code;
}

void worker_follow_budget(struct worker *worker)
{
    struct control_values values;
    struct error err;

    control_values(worker->options.control, &values);
    if (worker_set_budget(worker, values.vram_budget_bytes, &err) != 0) {
        events_add_error(worker->options.events, "control/vram_budget: %s", err.text);
    }
}

/* ---- The worker's thread. ---- */

void worker_publish(struct worker *worker)
{
    board_publish(worker->options.board, &worker->state);
    worker->options.published(worker->options.owner);
}

bool worker_is_stopping(struct worker *worker)
{
    bool stopping;

    pthread_mutex_lock(worker->lock);
    stopping = worker->stopping;
    pthread_mutex_unlock(worker->lock);
    return stopping;
}

/* Waits until someone wakes us, or so many seconds (0: for ever). */
void worker_wait(struct worker *worker, int seconds)
{
    struct timespec end;

    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += seconds;
    pthread_mutex_lock(worker->lock);
    while (!worker->woken && !worker->stopping) {
        if (seconds == 0) {
            pthread_cond_wait(&worker->changed, worker->lock);
        } else if (pthread_cond_timedwait(&worker->changed, worker->lock, &end) == ETIMEDOUT) {
            break;
        }
    }
    worker->woken = false;
    pthread_mutex_unlock(worker->lock);
}

struct board_image *worker_board_image(struct worker *worker, int64_t job)
{
    for (int i = 0; i < worker->state.images; i++) {
        if (worker->state.image[i].job == job) {
            return &worker->state.image[i];
        }
    }
    return NULL;
}

void worker_board_remove(struct worker *worker, int64_t job)
{
    struct board_image *image = worker_board_image(worker, job);

    if (image != NULL) {
        int index = (int)(image - worker->state.image);
        worker->state.images--;
        memmove(image, image + 1, (size_t)(worker->state.images - index) * sizeof *image);
    }
}

/* ---- Opening and closing the engine. ---- */

static void device_describe(struct board_device *device, const struct engine_info *info)
{
    *device = (struct board_device){
        .parameters = info->parameters,
        .weight_bytes = info->weight_bytes,
        .native_px = info->native_px,
        .default_steps = info->default_steps,
        .max_side_px = info->max_side_px,
        .max_tokens = info->max_tokens,
        .has_guidance = info->has_guidance,
    };
    snprintf(device->model, sizeof device->model, "%s", info->model_name);
    snprintf(device->backend, sizeof device->backend, "%s", info->backend);
    snprintf(device->device, sizeof device->device, "%s", info->device_name);
    if (info->warning != NULL) {
        snprintf(device->warning, sizeof device->warning, "%s", info->warning);
    }
}

void worker_set_health(struct worker *worker, enum health health, const char *text)
{
    struct board_state *state = &worker->state;
    bool same = state->health == health && strcmp(state->health_text, text) == 0;

    state->health = health;
    snprintf(state->health_text, sizeof state->health_text, "%s", text);
    if (!same && health == HEALTH_ERROR) {
        events_add_error(worker->options.events, "health error: %s", text);
    } else if (!same) {
        events_add(worker->options.events, "health %s%s%s", status_health_name(health),
                   text[0] != '\0' ? ": " : "", text);
    }
    worker_publish(worker);
}

static void tell_closed(struct worker *worker, const struct error *err)
{
    char text[sizeof worker->state.health_text];

    snprintf(text, sizeof text,
             "%s; tried again every %d s, and at once when control/model or control/vram_budget is "
             "written",
             err->text, REOPEN_S);
    worker_set_health(worker, HEALTH_ERROR, text);
}

void worker_open(struct worker *worker)
{
    struct control_values values;
    struct engine_options options = {
        .backend = worker->options.backend,
        .module_dir = worker->options.module_dir,
        .trace_path = worker->options.trace_path,
        .threads = worker->options.threads,
    };
    struct engine *engine;
    struct error err = {0};
    int64_t start = clock_ns();

    control_values(worker->options.control, &values);
    worker->doubted &= strcmp(worker->model, values.model) == 0;
    memcpy(worker->model, values.model, sizeof worker->model);
    options.model_path = worker->model;
    options.vram_budget_bytes = values.vram_budget_bytes;
    if (worker->state.health != HEALTH_ERROR) {
        worker_set_health(worker, HEALTH_LOADING, worker->model);
    }
    if (engine_open(&engine, &options, &err) != 0) {
        tell_closed(worker, &err);
        return;
    }
    device_describe(&worker->state.device, engine_info(engine));
    worker->state.load_s = 1e-9 * (double)(clock_ns() - start);
    pthread_mutex_lock(worker->lock);
    worker->engine = engine;
    pthread_mutex_unlock(worker->lock);
    worker_follow_budget(worker); /* it may have been set while this one opened */
    memory_look(worker);
    if (!worker->doubted) {
        worker_set_health(worker, HEALTH_OK, "");
    }
    if (worker->state.device.warning[0] != '\0') {
        events_add(worker->options.events, "warning: %s", worker->state.device.warning);
    }
}

void worker_close(struct worker *worker)
{
    struct engine *engine = worker->engine;

    pthread_mutex_lock(worker->lock);
    worker->engine = NULL;
    worker_wait_borrowers(worker);
    pthread_mutex_unlock(worker->lock);
    engine_close(engine);
    worker->state.device = (struct board_device){0};
}

/* That another model is to come. */
static void tell_switch(struct worker *worker, const char *model)
{
    char text[sizeof worker->state.health_text] = "";

    if (model != NULL) {
        snprintf(text, sizeof text, "%.250s is opened once what is being painted is done", model);
    }
    if (worker->state.health == HEALTH_OK && strcmp(worker->state.health_text, text) != 0) {
        worker_set_health(worker, HEALTH_OK, text);
    }
}

/* Seconds that an engine stays closed whose weights were found to be damaged: it would open, and
 * take jobs, and find the same. 0: it may be opened. */
static int rest_s(const struct worker *worker)
{
    int64_t rest_ns = worker->rest_end_ns - clock_ns();

    /* The clock may be set back. */
    return rest_ns > 0 && rest_ns <= REOPEN_NS ? (int)(rest_ns / 1000000000) + 1 : 0;
}

/* Whether someone wants it opened at once: once for each time that it was said. */
static bool was_asked(struct worker *worker)
{
    bool asked;

    pthread_mutex_lock(worker->lock);
    asked = worker->asked;
    worker->asked = false;
    pthread_mutex_unlock(worker->lock);
    return asked;
}

/* Opens the engine if none is, or if another model is wanted and nothing active. True: it is open,
 * and new jobs may be taken. */
static bool engine_ready(struct worker *worker, const struct control_values *values)
{
    bool other = strcmp(values->model, worker->model) != 0;

    if (worker->engine != NULL && other && jobs_active(worker) == 0) {
        worker_close(worker);
        worker->state.health = HEALTH_LOADING;
    } else if (worker->engine != NULL) {
        tell_switch(worker, other ? values->model : NULL);
    }
    if (was_asked(worker) || other) {
        worker->rest_end_ns = 0;
    }
    if (worker->engine == NULL && rest_s(worker) == 0) {
        worker_open(worker);
    }
    return worker->engine != NULL && strcmp(values->model, worker->model) == 0;
}

/* One round for what is active. */
static void advance(struct worker *worker)
{
    struct error err;
    int code = engine_advance(worker->engine, &err);

    if (code == -EAGAIN) {
        jobs_look(worker); /* some may have been cancelled */
        room_tell_stalled(worker, &err);
        worker_wait(worker, WORKER_RETRY_S);
        return;
    }
    room_end_stall(worker);
    if (code == 0) {
        jobs_look(worker);
        return;
    }
    jobs_lost(worker, &err);
    worker->doubted = true; /* opening reads no weights, and proves little */
    if (code == -EINVAL) {
        worker->rest_end_ns = clock_ns() + REOPEN_NS;
        tell_closed(worker, &err);
    } else {
        worker_set_health(worker, HEALTH_ERROR, err.text);
        worker_open(worker);
    }
}

static void *worker_main(void *owner)
{
    struct worker *worker = owner;
    struct control_values values;
    struct error err;

    while (!worker_is_stopping(worker)) {
        control_values(worker->options.control, &values);
        jobs_ended(worker);
        if (engine_ready(worker, &values) && !values.paused) {
            jobs_take(worker);
        } else {
            room_forget(worker);
        }
        if (worker->engine == NULL) {
            worker_wait(worker, rest_s(worker) > 0 ? rest_s(worker) : REOPEN_S);
        } else if (jobs_active(worker) == 0) {
            engine_advance(worker->engine, &err); /* a new budget takes effect */
            worker_wait(worker, worker->queue_fails ? WORKER_RETRY_S : room_wait_s(worker));
        } else {
            advance(worker);
        }
    }
    jobs_release(worker);
    worker_close(worker);
    return NULL;
}

int worker_create(struct worker **worker, const struct worker_options *options, struct error *err)
{
    struct worker *new = calloc(1, sizeof *new);
    int code;

    if (new == NULL) {
        return error_set(err, ENOMEM, "no memory for the worker");
    }
    new->options = *options;
    new->lock = &options->tree->lock;
    pthread_cond_init(&new->changed, NULL);
    *worker = new; /* first: what the thread does comes back through the caller's pointer */
    code = pthread_create(&new->thread, NULL, worker_main, new);
    if (code != 0) {
        *worker = NULL;
        pthread_cond_destroy(&new->changed);
        free(new);
        return error_set(err, code, "worker: thread: %s", strerror(code));
    }
    return 0;
}

void worker_stop(struct worker *worker)
{
    pthread_mutex_lock(worker->lock);
    worker->stopping = true;
    pthread_cond_broadcast(&worker->changed);
    for (int i = 0; i < BOARD_IMAGES; i++) {
        if (worker->active[i].image != NULL) {
            image_cancel(worker->active[i].image); /* sets a flag only */
        }
    }
    pthread_mutex_unlock(worker->lock);
    pthread_join(worker->thread, NULL);
}

void worker_destroy(struct worker *worker)
{
    if (worker != NULL) {
        pthread_cond_destroy(&worker->changed);
        free(worker);
    }
}
