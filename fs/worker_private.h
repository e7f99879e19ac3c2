/* SPDX-License-Identifier: MIT */
/* What worker.c (the thread, and what others ask of it), worker_jobs.c (from the queue to the
 * encoder), worker_room.c and worker_memory.c share. */
#ifndef FLUXFS_FS_WORKER_PRIVATE_H
#define FLUXFS_FS_WORKER_PRIVATE_H

#include <pthread.h>

#include "fs/worker.h"

enum {
    WORKER_RETRY_S = 1, /* between attempts to write to a failing disk, and to find memory */
};

/* A job whose image the engine has. */
struct active {
    struct job job;
    struct image *image; /* written with the tree lock; NULL: a free place */
    int64_t started_ns;
    struct text curve; /* guarded by the tree lock, as the rest */
    int64_t sampled_ns, sample_step_ns;
    size_t samples;
};

struct worker {
    struct worker_options options;
    pthread_mutex_t *lock; /* the tree lock */
    pthread_t thread;
    pthread_cond_t changed; /* with lock */

    struct engine *engine; /* written by the worker with lock */
    unsigned borrowers;    /* guarded by lock: others calling into engine or images just now */
    struct {
        struct engine_memory memory;
        uint64_t version; /* of `memory`; the number of the look it comes from */
        uint64_t looks;   /* begun so far */
        int64_t looked_ns;
        bool looking;     /* someone asks the engine just now */
    } seen;               /* guarded by lock */
    bool woken, stopping; /* guarded by lock */
    bool asked;           /* guarded by lock: to open the engine at once, if it is closed */
    struct {
        int64_t job;
        enum job_state state;
    } ended[BOARD_IMAGES]; /* guarded by lock; what the encoder finished, all on the board */
    size_t ended_count;    /* guarded by lock */
    struct active active[BOARD_IMAGES]; /* but where it says so, the worker's own */

    /* The worker's own. */
    char model[sizeof((struct control_values *)0)->model]; /* that is open, or was tried */
    struct board_state state;
    bool queue_fails;           /* no job can be taken, for the disk is full or fails */
    int64_t lost[BOARD_IMAGES]; /* the jobs that the engine was painting when it last failed */
    bool doubted;               /* the engine failed, and has painted nothing since */
    int64_t rest_end_ns;        /* of the time that damaged weights keep it closed; 0: they don't */
    struct {
        int64_t told;     /* the job that state.shortage is about */
        bool stalled;     /* it is being painted, and nothing goes on */
        int64_t pause_ns; /* no job is taken before, … */
        struct error why; /* … since the last one returned had this to say */
        struct {
            int64_t job;
            int times;
        } returned[BOARD_IMAGES]; /* to the queue, for want of memory */
    } room;
};

/* ---- worker.c ---- */

/* The engine, not to be closed until engine_return; NULL while none is open. */
struct engine *engine_borrow(struct worker *worker);
void engine_return(struct worker *worker);

void worker_publish(struct worker *worker);
bool worker_is_stopping(struct worker *worker);

/* Waits until someone wakes us, or so many seconds (0: for ever). */
void worker_wait(struct worker *worker, int seconds);

/* With the lock: until nobody has borrowed engine or images. */
void worker_wait_borrowers(struct worker *worker);

/* The image's place on the board, or NULL. */
struct board_image *worker_board_image(struct worker *worker, int64_t job);
void worker_board_remove(struct worker *worker, int64_t job);
void worker_open(struct worker *worker);
void worker_close(struct worker *worker);
void worker_set_health(struct worker *worker, enum health health, const char *text);

/* What the engine says to a prompt: as engine_check; 0 while none is open. */
int worker_ask(struct worker *worker, const struct prompt *prompt, struct error *err);

/* ---- worker_memory.c ---- */

/* Asks the engine, for worker_memory to tell. */
void memory_look(struct worker *worker);

/* ---- worker_room.c ---- */

/* Whether the next job may be taken. Not while the budget is too small for it, which is told if
 * nothing is painted, nor just after one was returned. */
bool room_for_next(struct worker *worker);

/* A job's picture ended for want of memory: whether it may wait again. Where the engine finds again
 * and again that there is room, and yet there isn't, it may not for ever. */
bool room_may_return(struct worker *worker, int64_t job, const struct error *err);

/* Of what is being painted nothing can go on, since other programs have the device's memory: no job
 * is taken until that has ended. */
void room_tell_stalled(struct worker *worker, const struct error *err);
void room_end_stall(struct worker *worker);

/* Nobody looks for a job now, so none waits for memory. */
void room_forget(struct worker *worker);

/* Seconds after which an idle worker should look again; 0: none. */
int room_wait_s(const struct worker *worker);

/* ---- worker_jobs.c ---- */

/* What settled values ask of the engine; the texts are the caller's. */
void worker_request(struct image_request *request, const struct prompt_values *values);
int jobs_active(const struct worker *worker);

/* Starts waiting jobs, as many as may be active at once. */
void jobs_take(struct worker *worker);

/* After a round: ends those images that are through. */
void jobs_look(struct worker *worker);

/* The engine failed: its jobs wait again, but for those that were being cancelled, and those that
 * it was painting the last time too, which have failed; not so if the weights are damaged (EINVAL),
 * which is no job's fault. The engine is closed. */
void jobs_lost(struct worker *worker, const struct error *err);

/* Active jobs wait again in the queue. */
void jobs_release(struct worker *worker);

/* What the encoder has finished leaves the board. */
void jobs_ended(struct worker *worker);

#endif
