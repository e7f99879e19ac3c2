/* SPDX-License-Identifier: MIT */
/* Jobs for which there is no memory. Those that the present budget has no room for wait, at the
 * head of the queue, until it has; those that are being painted, until the device has some again.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "fs/worker_private.h"

enum {
    MOST_RETURNS = 4,                                 /* of a job that ought to have had room */
    FIRST_JOBS = BOARD_IMAGES + ENCODER_TASKS + 1 + 1 /* those that run, and the next */
};

/* After the first return; doubled each time. */
#define PAUSE_NS INT64_C(1000000000)

static bool is_pausing(const struct worker *worker)
{
    int64_t rest_ns = worker->room.pause_ns - clock_ns();

    return rest_ns > 0 && rest_ns <= PAUSE_NS << MOST_RETURNS; /* the clock may be set back */
}

static bool next_waiting(struct worker *worker, struct job_info *next)
{
    struct job_info infos[FIRST_JOBS];
    size_t count = queue_order(worker->options.queue, 0, infos, FIRST_JOBS);

    for (size_t i = 0; i < count; i++) {
        if (infos[i].state == JOB_WAITING) {
            *next = infos[i];
            return true;
        }
    }
    return false;
}

/* How often a job was returned; a place for the count is made if there is none. */
static int *returns_of(struct worker *worker, int64_t job)
{
    int place = 0;

    for (int i = 0; i < BOARD_IMAGES; i++) {
        if (worker->room.returned[i].job == job) {
            return &worker->room.returned[i].times;
        }
        /* The oldest job has ended, most likely: those returned are the next to be taken. */
        if (worker->room.returned[i].job < worker->room.returned[place].job) {
            place = i;
        }
    }
    worker->room.returned[place].job = job;
    worker->room.returned[place].times = 0;
    return &worker->room.returned[place].times;
}

/* `hope`: when it will begin. */
static void shortage_tell(struct worker *worker, int64_t job, const struct error *err,
                          const char *hope)
{
    struct board_state *state = &worker->state;
    char text[sizeof state->shortage];
    bool known = state->shortage[0] != '\0' && worker->room.told == job;

    snprintf(text, sizeof text, "job %lld waits: %s; %s; rm queue/%lld cancels it", (long long)job,
             err->text, hope, (long long)job);
    if (strcmp(text, state->shortage) == 0) {
        return;
    }
    memcpy(state->shortage, text, sizeof text);
    worker->room.told = job;
    if (!known) { /* what an automatic budget has meanwhile is no news each time */
        events_add_error(worker->options.events, "%s", text);
    }
    worker_publish(worker);
}

void room_forget(struct worker *worker)
{
    if (!worker->room.stalled && worker->state.shortage[0] != '\0') {
        worker->state.shortage[0] = '\0';
        worker_publish(worker);
    }
}

void room_tell_stalled(struct worker *worker, const struct error *err)
{
    const struct active *first = NULL;

    for (int i = 0; i < BOARD_IMAGES; i++) {
        const struct active *each = &worker->active[i];
        if (each->image != NULL && (first == NULL || each->started_ns < first->started_ns)) {
            first = each;
        }
    }
    worker->room.stalled = true;
    shortage_tell(worker, first->job.info.id, err,
                  "it goes on when other programs give memory back");
}

void room_end_stall(struct worker *worker)
{
    if (worker->room.stalled) {
        worker->room.stalled = false;
        room_forget(worker);
    }
}

bool room_for_next(struct worker *worker)
{
    struct control_values values;
    struct job_info next;
    struct error err = {0};
    struct job job;
    int code;

    if (worker->room.stalled) {
        return false;
    }
    if (!next_waiting(worker, &next) ||
        queue_load(worker->options.queue, next.id, &job, &err) != 0) {
        room_forget(worker);
        return true; /* whoever takes a job is told why there is none */
    }
    code = worker_ask(worker, &job.prompt, &err);
    job_finish(&job);
    if (code != -ENOMEM && is_pausing(worker)) {
        if (jobs_active(worker) == 0) {
            shortage_tell(worker, next.id, &worker->room.why, "it is tried again in a few seconds");
        }
        return false;
    }
    if (code != -ENOMEM) {
        room_forget(worker);
        return true;
    }
    *returns_of(worker, next.id) = 0;
    worker->room.pause_ns = 0;
    if (jobs_active(worker) == 0) {
        control_values(worker->options.control, &values);
        shortage_tell(
            worker, next.id, &err,
            values.vram_budget_bytes == 0
                ? "control/vram_budget is auto, and it begins when others give memory back"
                : "it begins when control/vram_budget is raised");
    }
    return false;
}

bool room_may_return(struct worker *worker, int64_t job, const struct error *err)
{
    int *times = returns_of(worker, job);

    if (*times == MOST_RETURNS) {
        *times = 0;
        return false;
    }
    worker->room.pause_ns = clock_ns() + (PAUSE_NS << *times);
    (*times)++;
    worker->room.why = *err;
    return true;
}

int room_wait_s(const struct worker *worker)
{
    return worker->state.shortage[0] != '\0' || is_pausing(worker) ? WORKER_RETRY_S : 0;
}
