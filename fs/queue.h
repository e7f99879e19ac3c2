/* SPDX-License-Identifier: MIT */
/*
 * The queue and its history: every prompt ever accepted, in SQLite, safe against kill -9 and power
 * loss (WAL, synchronous FULL).
 *
 * A call that changes something returns once the change is on the disk. One thread commits for all
 * callers, so that many writers share one fsync. What directories need (ids, states, order, sizes,
 * times) is also held in memory; reading that never waits for the disk.
 *
 * All functions may be called from any thread, with no lock held that the change callback takes.
 * When the disk is full or fails, a change returns ENOSPC or EIO and has not happened; later calls
 * try again from the start.
 */
#ifndef FLUXFS_FS_QUEUE_H
#define FLUXFS_FS_QUEUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "engine/error.h"
#include "fs/prompt.h"

struct queue;

enum job_state { JOB_WAITING, JOB_RUNNING, JOB_DONE, JOB_FAILED, JOB_CANCELLED, JOB_STATES };

enum { QUEUE_NAME_BYTES = 256, QUEUE_MAX_PRIORITY = 100 };

/* What memory holds of each job. Times are nanoseconds since the epoch; 0: not yet. */
struct job_info {
    int64_t id; /* from 1, never given twice */
    enum job_state state;
    bool cancelling; /* running, and someone wants it stopped: worker, see to it */
    int priority;    /* −100 … 100, higher goes first */
    uid_t uid;       /* who wrote the prompt */
    gid_t gid;
    int64_t created_ns;
    int64_t started_ns;  /* of the last run */
    int64_t finished_ns; /* done, failed or cancelled */
    int64_t changed_ns;  /* any of the job's files: their mtime */
    uint32_t text_bytes; /* of the prompt's text, of the reason of failure and so on */
    uint32_t error_bytes;
    uint32_t timing_bytes;
    uint32_t vram_bytes;
    bool has_image;
};

/* A whole job, from the disk. Strings are never NULL. */
struct job {
    struct job_info info;
    struct prompt prompt;          /* count is always 1 */
    char source[QUEUE_NAME_BYTES]; /* file in prompts/ it came from, or "" */
    uint64_t source_digest;        /* of that file's content, by the tree's own reckoning */
    char image[QUEUE_NAME_BYTES];  /* name in images/, or "" */
    char *error;                   /* why it failed, one line */
    char *timing_json;
    char *vram_csv;
};

/* A job to be. Strings are copied. */
struct job_request {
    const struct prompt *prompt; /* its `count` is not looked at: one request, one job */
    int priority;
    uid_t uid;
    gid_t gid;
    const char *source; /* NULL or "": none */
    uint64_t source_digest;
};

/* What came of a job. Strings may be NULL (none) and are copied. */
struct job_result {
    enum job_state state; /* JOB_DONE, JOB_FAILED or JOB_CANCELLED */
    const char *image;
    const char *error;
    const char *timing_json;
    const char *vram_csv;
};

enum queue_event {
    QUEUE_ADDED,
    QUEUE_CHANGED, /* state, cancelling, priority, place or result */
    QUEUE_REMOVED, /* `info` is the last one */
};

struct queue_observer {
    void *owner;
    /* A change, durable and visible. Called by the committing thread in the order of changes, with
     * no lock of the queue held; reading functions may be called from it, changing ones may not. */
    void (*changed)(void *owner, enum queue_event event, const struct job_info *info);
};

struct queue_options {
    const char *folder;             /* the state folder, made if absent (0700); holds queue.db */
    size_t waiting_limit;           /* most jobs waiting; 0: no limit */
    unsigned lock_wait_ms;          /* how long a daemon that has the folder may take to end */
    struct queue_observer observer; /* `changed` may be NULL */
};

struct queue_counts {
    size_t jobs;              /* all */
    size_t state[JOB_STATES]; /* of each */
    int64_t last_id;          /* of the newest job ever; 0: none */
    uint64_t changes;         /* grows with every change: equal means nothing happened */
};

/* Opens or makes the queue, brings an older schema up to date, and makes running jobs wait again at
 * their old places (those being cancelled become cancelled). The folder is locked until
 * queue_close. Failure: EBUSY when another fluxfs has the folder, EINVAL for a schema newer than
 * ours or a file that is no queue, else as the disk says; the text names the file. */
int queue_open(struct queue **queue, const struct queue_options *options, struct error *err);

/* Waits for changes under way. NULL is allowed. */
void queue_close(struct queue *queue);

/* ---- Changes: return when durable. ENOENT: no such job; EIO, ENOSPC, ENOMEM as the disk says.
 * ---- */

/* What a prompt that is being written holds, so that pushing it will not fail for want of it; all 0
 * at first. The queue's own to read and write. */
struct queue_hold {
    uint64_t bytes; /* on the disk */
    size_t places;  /* among the jobs that may wait */
};

/* Adds `count` jobs, all or none, last in their priority; ids[count] gets theirs, ascending. The
 * places that `hold` has (NULL: none) are used, or given back.
 * Failure: EAGAIN when the waiting limit would be passed; ESTALE when the queue's file was removed,
 * and with it all that it would ever take. */
int queue_push(struct queue *queue, const struct job_request *requests, size_t count,
               struct queue_hold *hold, int64_t *ids, struct error *err);

/* Takes the first waiting job: it is running now. `job` is the caller's (job_finish).
 * `allowed` (NULL: always) is asked in the turn of this change, so of what was settled before a job
 * was added it knows when it comes to that job; it may not change the queue.
 * Failure: EAGAIN when none waits or is allowed. */
int queue_claim(struct queue *queue, bool (*allowed)(void *owner), void *owner, struct job *job,
                struct error *err);

/* Writes settled values (prompt_values_settle) into a running job. Failure: EINVAL if not running.
 */
int queue_settle(struct queue *queue, int64_t id, const struct prompt_values *values,
                 struct error *err);

/* A running job ends. An image name it gives is its own: older jobs that named it name none.
 * Failure: EINVAL if it is not running. */
int queue_finish(struct queue *queue, int64_t id, const struct job_result *result,
                 struct error *err);

/* A running job waits again at its old place (the daemon stops, the device or its memory was lost).
 * A job being cancelled becomes cancelled. Failure: EINVAL if it is not running. */
int queue_release(struct queue *queue, int64_t id, struct error *err);

/* Waiting becomes cancelled; running is marked `cancelling`, and whoever runs it ends it with
 * queue_finish. Failure: EINVAL if it has ended already. */
int queue_cancel(struct queue *queue, int64_t id, struct error *err);

/* An ended job waits again, last in its priority; error, timing and image name are forgotten.
 * Failure: EINVAL if it hasn't ended; EAGAIN at the waiting limit. */
int queue_retry(struct queue *queue, int64_t id, struct error *err);

/* Failure: EINVAL when out of −100 … 100, or when the job isn't waiting. */
int queue_set_priority(struct queue *queue, int64_t id, int priority, struct error *err);

/* Makes a waiting job the rank'th of those waiting, from 0; too large a rank is the last. Where
 * priorities differ there, it takes over its neighbour's. Failure: EINVAL if it isn't waiting. */
int queue_move(struct queue *queue, int64_t id, size_t rank, struct error *err);

/* The image of that name is gone (rm, or the limit on disk use): jobs that named it name none. */
int queue_forget_image(struct queue *queue, const char *image, struct error *err);

/* Deletes a job from the history. Failure: EBUSY while it is running. */
int queue_remove(struct queue *queue, int64_t id, struct error *err);

/* Keeps a value of control/ (or anything small) under a key; NULL removes it. */
int queue_setting_set(struct queue *queue, const char *key, const char *value, struct error *err);

/* Whether a change can be made durable just now: makes one that means nothing. */
int queue_probe(struct queue *queue, struct error *err);

/* ---- From memory: never wait for the disk. ---- */

/* Sets room aside on the disk, or gives it back: what `hold` has is `bytes` from now on. Looks at
 * the disk, but waits for no commit. Failure: ENOSPC, EDQUOT, ESTALE as queue_push; then it has
 * what it had. */
int queue_hold_bytes(struct queue *queue, struct queue_hold *hold, uint64_t bytes,
                     struct error *err);

/* The same for places among those who wait. Failure: EAGAIN when others have them all. */
int queue_hold_places(struct queue *queue, struct queue_hold *hold, size_t places,
                      struct error *err);

void queue_hold_nothing(struct queue *queue, struct queue_hold *hold);

/* What `from` has is in `to` from now on, which had nothing. */
void queue_hold_move(struct queue *queue, struct queue_hold *from, struct queue_hold *to);

/* The bytes to set aside for a push of so many jobs with so long a text each. */
uint64_t queue_push_bytes(size_t count, size_t text_bytes);

/* Why the last change failed, if it did for the disk's sake or for want of memory, or why the last
 * prompt got no room; else 0. */
int queue_trouble(struct queue *queue, struct error *err);

void queue_counts(struct queue *queue, struct queue_counts *counts);
bool queue_find(struct queue *queue, int64_t id, struct job_info *info);

/* The jobs with ids above `after`, ascending, at most `capacity`; returns how many. */
size_t queue_list(struct queue *queue, int64_t after, struct job_info *infos, size_t capacity);

/* Jobs that run, by id, then those that wait, in the order they will be taken. `skip` leaves out
 * so many from the front. Returns how many were written. */
size_t queue_order(struct queue *queue, size_t skip, struct job_info *infos, size_t capacity);

/* The job's place in that order, from 0; -1 if it neither runs nor waits. */
long queue_rank(struct queue *queue, int64_t id);

/* The name of the job's image; false (and "") if it has none. */
bool queue_image(struct queue *queue, int64_t id, char image[QUEUE_NAME_BYTES]);

/* The newest job from a file of prompts/, and the digest it came with. */
bool queue_find_source(struct queue *queue, const char *source, int64_t *id, uint64_t *digest);

/* The newest job whose image has that name. */
bool queue_find_image(struct queue *queue, const char *image, struct job_info *info);

/* ---- From the disk. ---- */

/* Everything about a job; the caller frees it with job_finish. Failure: ENOENT, EIO, ENOMEM. */
int queue_load(struct queue *queue, int64_t id, struct job *job, struct error *err);
void job_finish(struct job *job); /* fine on a zeroed job, and twice */

/* The value kept under a key, to free; ENOENT if there is none. */
int queue_setting_get(struct queue *queue, const char *key, char **value, struct error *err);

/* Every setting in the order of keys; a non-zero return of `each` ends it and is returned. */
int queue_settings(struct queue *queue,
                   int (*each)(void *owner, const char *key, const char *value), void *owner,
                   struct error *err);

const char *job_state_name(enum job_state state); /* "waiting", "running", … */

#endif
