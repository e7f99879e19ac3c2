/* SPDX-License-Identifier: MIT */
#include "fs/queue.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "fs/queue_private.h"

const char *job_state_name(enum job_state state)
{
    static const char *const names[JOB_STATES] = {"waiting", "running", "done", "failed",
                                                  "cancelled"};
    return names[state];
}

enum {
    SLOW_COMMIT_NS = 500000,  /* from here on it pays to let writers share a commit */
    MOST_GATHER_NS = 2000000, /* spent waiting for them */
};

static int64_t clock_of(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int64_t now_ns(void)
{
    return clock_of(CLOCK_REALTIME);
}

/* ---- The committing thread ---- */

static void batch_clear(struct batch *batch)
{
    for (size_t i = 0; i < batch->count; i++) {
        entry_finish(&batch->effects[i].entry);
        free(batch->effects[i].fresh);
    }
    batch->count = 0;
    batch->added = 0;
}

static int note(struct batch *batch, enum queue_event event, int64_t id, struct error *err)
{
    struct store *store = &batch->queue->writer;
    if (batch->count == batch->capacity) {
        size_t capacity = batch->capacity * 2 + 16;
        struct effect *grown = reallocarray(batch->effects, capacity, sizeof *grown);
        if (grown == NULL) {
            return error_set(err, ENOMEM, "%s: out of memory", store->path);
        }
        batch->effects = grown;
        batch->capacity = capacity;
    }
    struct effect *effect = &batch->effects[batch->count];
    *effect = (struct effect){.event = event};
    int rc = store_run(store, STORE_ENTRY, err, "i", id);
    if (rc != 1) {
        return rc == 0 ? error_set(err, ENOENT, "job %lld: there is none", (long long)id) : rc;
    }
    rc = store_read_entry(store, STORE_ENTRY, &effect->entry, err);
    store_done(store, STORE_ENTRY);
    if (rc == 0 && event == QUEUE_ADDED) {
        effect->fresh = calloc(1, sizeof *effect->fresh);
        if (effect->fresh == NULL) {
            entry_finish(&effect->entry);
            rc = error_set(err, ENOMEM, "%s: out of memory", store->path);
        }
    }
    if (rc == 0) {
        batch->count++;
        batch->added += event == QUEUE_ADDED;
    }
    return rc;
}

int batch_note(struct batch *batch, enum queue_event event, int64_t id, struct error *err)
{
    int rc = note(batch, event, id, err);
    if (rc != 0) {
        batch->queue->writer.failed = true; /* it is written already: the batch must go */
    }
    return rc;
}

static int reserve_room(struct queue *queue, size_t more, struct error *err)
{
    pthread_mutex_lock(&queue->lock);
    int rc = index_reserve(&queue->index, more);
    pthread_mutex_unlock(&queue->lock);
    return rc == 0 ? 0 : error_set(err, ENOMEM, "%s: out of memory", queue->writer.path);
}

/* Applies the changes and commits them. A change that is refused has written nothing and the others
 * go on; an error of the disk undoes, and is told to, all of them. */
static int batch_commit(struct batch *batch, struct change *changes, struct error *err)
{
    struct queue *queue = batch->queue;
    struct store *store = &queue->writer;
    int rc = store->broken ? store_reopen(store, err) : 0;
    if (rc == 0) {
        rc = store_run(store, STORE_BEGIN, err, "");
    }
    batch->wrote = rc != 0;
    if (rc != 0) {
        return rc;
    }
    int written = sqlite3_total_changes(store->db);
    for (struct change *change = changes; change != NULL && rc == 0; change = change->next) {
        store->failed = false;
        change->rc = change->apply(batch, change, &change->err);
        if (change->rc != 0 && store->failed) {
            *err = change->err;
            rc = change->rc;
        }
    }
    if (rc == 0) {
        rc = reserve_room(queue, batch->added, err);
    }
    batch->wrote = rc != 0 || sqlite3_total_changes(store->db) != written;
    if (rc == 0) {
        rc = store_run(store, STORE_COMMIT, err, "");
    }
    if (rc != 0 && store->db != NULL && sqlite3_get_autocommit(store->db) == 0) {
        bool broken = store->broken;
        store_run(store, STORE_ROLLBACK, NULL, "");
        store->broken = store->broken || broken;
    }
    return rc;
}

/* Makes the committed batch visible and wakes the callers. */
static void batch_publish(struct batch *batch, struct change *changes, int rc,
                          const struct error *err)
{
    struct queue *queue = batch->queue;
    pthread_mutex_lock(&queue->lock);
    for (size_t i = 0; i < batch->count; i++) {
        struct effect *effect = &batch->effects[i];
        if (effect->event == QUEUE_REMOVED) {
            index_remove(&queue->index, effect->entry.info.id);
        } else {
            effect->fresh = index_put(&queue->index, &effect->entry, effect->fresh);
        }
        queue->changes++;
    }
    queue->last_id = batch->last_id;
    if (batch->wrote && queue->trouble.code != rc) {
        queue->trouble = rc != 0 ? *err : (struct error){0};
        queue->changes++;
    }
    batch->writers = 0;
    for (struct change *change = changes, *next; change != NULL; change = next) {
        next = change->next; /* a done change may be gone at once */
        if (rc != 0) {
            change->rc = rc;
            change->err = *err;
        }
        queue->held_places -= change->taken;
        if (change->hold != NULL) {
            queue->held_places -= change->hold->places;
            change->hold->places = 0;
        }
        change->done = true;
        batch->writers++;
    }
    batch->writers += queue->pending;
    pthread_cond_broadcast(&queue->committed);
    pthread_mutex_unlock(&queue->lock);
    for (size_t i = 0; i < batch->count && queue->observer.changed != NULL; i++) {
        queue->observer.changed(queue->observer.owner, batch->effects[i].event,
                                &batch->effects[i].entry.info);
    }
    batch_clear(batch);
}

/* With the lock. Those who were told of the last commit mostly write again at once: on a slow disk
 * waiting a little for them is cheaper than a commit for each half of the writers. */
static void gather(struct queue *queue, const struct batch *batch)
{
    int64_t wait_ns = batch->took_ns / 4 < MOST_GATHER_NS ? batch->took_ns / 4 : MOST_GATHER_NS;
    int64_t end_ns = clock_of(CLOCK_MONOTONIC) + wait_ns;
    struct timespec end = {end_ns / 1000000000, end_ns % 1000000000};
    queue->gathered = batch->writers;
    while (queue->pending < queue->gathered && !queue->closing &&
           pthread_cond_timedwait(&queue->wanted, &queue->lock, &end) != ETIMEDOUT) {
    }
    queue->gathered = 0;
}

static void *committer_run(void *owner)
{
    struct queue *queue = owner;
    struct batch batch = {.queue = queue};
    for (;;) {
        pthread_mutex_lock(&queue->lock);
        while (queue->first == NULL && !queue->closing) {
            pthread_cond_wait(&queue->wanted, &queue->lock);
        }
        if (batch.took_ns > SLOW_COMMIT_NS) {
            gather(queue, &batch);
        }
        struct change *changes = queue->first;
        queue->first = queue->last = NULL;
        queue->pending = 0;
        batch.waiting = (int64_t)queue->index.state[JOB_WAITING];
        batch.placed = 0;
        batch.last_id = queue->last_id;
        pthread_mutex_unlock(&queue->lock);
        if (changes == NULL) {
            break;
        }
        struct error err = {0};
        batch.now_ns = now_ns();
        int64_t start_ns = clock_of(CLOCK_MONOTONIC);
        int rc = batch_commit(&batch, changes, &err);
        batch.took_ns = clock_of(CLOCK_MONOTONIC) - start_ns;
        if (rc == -ENOSPC || batch.shorten) {
            store_shorten(&queue->writer);
            batch.shorten = false;
        }
        if (rc != 0) {
            batch_clear(&batch);
            batch.last_id = queue->last_id; /* nobody else writes it */
        }
        batch_publish(&batch, changes, rc, &err);
    }
    free(batch.effects);
    return NULL;
}

int queue_change(struct queue *queue, struct change *change, struct error *err)
{
    pthread_mutex_lock(&queue->lock);
    if (queue->first == NULL) {
        queue->first = change;
    } else {
        queue->last->next = change;
    }
    queue->last = change;
    queue->pending++;
    if (queue->pending == 1 || queue->pending == queue->gathered) {
        pthread_cond_signal(&queue->wanted);
    }
    while (!change->done) {
        pthread_cond_wait(&queue->committed, &queue->lock);
    }
    pthread_mutex_unlock(&queue->lock);
    return change->rc == 0 ? 0 : error_set(err, -change->rc, "%s", change->err.text);
}

/* ---- Opening and closing ---- */

/* Jobs that ran when the last daemon ended wait again. */
static int recover(struct store *store, int64_t now, struct error *err)
{
    char sql[400];
    snprintf(sql, sizeof sql,
             "BEGIN IMMEDIATE;"
             "UPDATE jobs SET state = %d, cancelling = 0, finished_ns = %lld, changed_ns = %lld"
             " WHERE state = %d AND cancelling;"
             "UPDATE jobs SET state = %d, started_ns = 0, changed_ns = %lld WHERE state = %d;"
             "COMMIT;",
             JOB_CANCELLED, (long long)now, (long long)now, JOB_RUNNING, JOB_WAITING,
             (long long)now, JOB_RUNNING);
    return store_execute(store, sql, err);
}

static int load_index(struct queue *queue, struct error *err)
{
    struct store *store = &queue->writer;
    int rc = store_run(store, STORE_ENTRIES, err, "");
    while (rc == 1) {
        struct entry entry;
        struct entry *fresh = calloc(1, sizeof *fresh);
        if (fresh == NULL || index_reserve(&queue->index, 1) != 0) {
            rc = error_set(err, ENOMEM, "%s: out of memory", store->path);
        } else {
            rc = store_read_entry(store, STORE_ENTRIES, &entry, err);
        }
        if (rc != 0) {
            free(fresh);
            store_done(store, STORE_ENTRIES);
            return rc;
        }
        index_put(&queue->index, &entry, fresh);
        rc = store_next(store, STORE_ENTRIES, err);
    }
    return rc;
}

static int load_number(struct store *store, enum statement statement, int64_t *number,
                       struct error *err)
{
    int rc = store_run(store, statement, err, "");
    if (rc == 1) {
        *number = store_int(store, statement, 0);
        store_done(store, statement);
        rc = 0;
    }
    return rc;
}

static int load_all(struct queue *queue, const char *path, struct error *err)
{
    int rc = store_open(&queue->writer, path, err);
    if (rc == 0) {
        rc = store_migrate(&queue->writer, err);
    }
    if (rc == 0) {
        rc = recover(&queue->writer, now_ns(), err);
    }
    if (rc == 0) {
        rc = load_index(queue, err);
    }
    if (rc == 0) {
        rc = load_number(&queue->writer, STORE_LAST_POSITION, &queue->last_position, err);
    }
    if (rc == 0) {
        rc = load_number(&queue->writer, STORE_LAST_ID, &queue->last_id, err);
    }
    if (rc == 0) {
        rc = store_open(&queue->reader, path, err);
    }
    if (rc == 0) {
        queue->file_fd = open(path, O_PATH | O_CLOEXEC);
        rc = queue->file_fd < 0 ? error_set(err, errno, "%s: %s", path, strerror(errno)) : 0;
    }
    if (rc == 0 && fsync(queue->lock_fd) != 0) {
        rc = error_set(err, errno, "%s: can't sync its folder: %s", path, strerror(errno));
    }
    return rc;
}

static void destroy(struct queue *queue)
{
    store_close(&queue->reader);
    store_close(&queue->writer);
    index_finish(&queue->index);
    free(queue->space.path);
    pthread_mutex_destroy(&queue->space.lock);
    pthread_cond_destroy(&queue->wanted);
    pthread_cond_destroy(&queue->committed);
    pthread_mutex_destroy(&queue->lock);
    pthread_mutex_destroy(&queue->reader_lock);
    if (queue->file_fd >= 0) {
        close(queue->file_fd);
    }
    if (queue->lock_fd >= 0) {
        close(queue->lock_fd);
    }
    free(queue);
}

int queue_open(struct queue **queue, const struct queue_options *options, struct error *err)
{
    char *path = NULL;
    struct queue *made = calloc(1, sizeof *made);
    if (made == NULL || asprintf(&path, "%s/queue.db", options->folder) < 0 ||
        asprintf(&made->space.path, "%s-wal", path) < 0) {
        free(path);
        free(made);
        return error_set(err, ENOMEM, "%s: out of memory", options->folder);
    }
    made->lock_fd = made->file_fd = -1;
    made->waiting_limit = options->waiting_limit;
    made->observer = options->observer;
    pthread_mutex_init(&made->lock, NULL);
    pthread_mutex_init(&made->reader_lock, NULL);
    pthread_mutex_init(&made->space.lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&made->wanted, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_cond_init(&made->committed, NULL);
    int rc = queue_lock_folder(options->folder, options->lock_wait_ms, &made->lock_fd, err);
    if (rc == 0) {
        rc = load_all(made, path, err);
    }
    if (rc == 0) {
        rc = -pthread_create(&made->committer, NULL, committer_run, made);
        if (rc != 0) {
            error_set(err, -rc, "%s: can't start a thread: %s", path, strerror(-rc));
        }
    }
    free(path);
    if (rc != 0) {
        destroy(made);
        return rc;
    }
    *queue = made;
    return 0;
}

void queue_close(struct queue *queue)
{
    if (queue == NULL) {
        return;
    }
    pthread_mutex_lock(&queue->lock);
    queue->closing = true;
    pthread_cond_signal(&queue->wanted);
    pthread_mutex_unlock(&queue->lock);
    pthread_join(queue->committer, NULL);
    destroy(queue);
}
