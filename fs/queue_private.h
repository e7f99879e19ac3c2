/* SPDX-License-Identifier: MIT */
/* Shared by queue.c (the thread that commits, and what is read) and queue_change.c (what changes).
 */
#ifndef FLUXFS_FS_QUEUE_PRIVATE_H
#define FLUXFS_FS_QUEUE_PRIVATE_H

#include <pthread.h>

#include "fs/queue_store.h"

/* What memory and the observer learn once a batch is committed. */
struct effect {
    enum queue_event event;
    struct entry entry;
    struct entry *fresh; /* an empty block for index_put */
};

/* One transaction in the making; of the committing thread alone. */
struct batch {
    struct queue *queue;
    struct effect *effects;
    size_t count, capacity;
    size_t added;    /* effects that are new jobs */
    bool wrote;      /* something, so that its commit says how the disk is */
    bool shorten;    /* the journal afterwards: there is little room on the disk */
    size_t writers;  /* of the last batch, and those who came while it was committed */
    int64_t took_ns; /* to commit the last batch */
    int64_t waiting; /* jobs waiting, as the batch would leave it */
    size_t placed;   /* of the places held, those of jobs that are among them now */
    int64_t now_ns;
    int64_t last_id;
};

/* A caller's wish. It lives on the caller's stack until `done`; the fields below are arguments, as
 * far as `apply` looks at them. */
struct change {
    /* Called by the committing thread within a transaction; refuses before it writes. */
    int (*apply)(struct batch *batch, struct change *change, struct error *err);
    struct change *next; /* queue.lock */
    bool done;           /* queue.lock */
    int rc;              /* valid once done */
    struct error err;

    int64_t id;
    int64_t number;
    const char *key, *value;
    const struct job_request *requests;
    size_t count;
    struct queue_hold *hold; /* its places are given back when the change is done */
    size_t taken;            /* places held beside those, for jobs that nobody sees waiting yet */
    int64_t *ids;
    const struct prompt_values *values;
    const struct job_result *result;
    bool (*allowed)(void *owner);
    void *owner;
    struct job *job; /* filled in, unless the change fails */
};

/* Room set aside on the disk, for prompts that are being written. */
struct space {
    char *path; /* of the journal; fixed */
    pthread_mutex_t lock;
    uint64_t held;   /* lock: by all of them */
    ino_t inode;     /* lock: of the journal, when last looked at */
    off_t size, end; /* lock: then too; of the blocks known to be there */
};

struct queue {
    size_t waiting_limit;
    struct queue_observer observer;
    int lock_fd; /* holds the lock on the state folder */
    int file_fd; /* the database, opened as a path: closing another would drop SQLite's locks */
    pthread_t committer;

    pthread_mutex_t lock;        /* never held across disk, nor across the observer */
    pthread_cond_t wanted;       /* something is pending, or closing is set */
    pthread_cond_t committed;    /* some changes are done */
    struct queue_index index;    /* lock */
    struct change *first, *last; /* lock: pending, in order of arrival */
    size_t pending;              /* lock: how many */
    size_t gathered;             /* lock: the committing thread waits for so many; 0: for any */
    bool closing;                /* lock */
    int64_t last_id;             /* lock */
    size_t held_places;          /* lock: by prompts that are being written or committed */
    uint64_t changes;            /* lock */
    struct error trouble;        /* lock: why the last batch could not be committed, or zero */
    struct error shortage;       /* lock: why the last prompt got no room, or zero */

    struct store writer;   /* the committing thread's */
    int64_t last_position; /* the committing thread's: no job has a larger one */

    struct space space;

    pthread_mutex_t reader_lock; /* never taken while holding `lock`, nor the other way round */
    struct store reader;         /* reader_lock */
};

/* Makes the folder if need be and locks it until the descriptor is closed; waits so long for
 * another daemon to end. Failure: EBUSY, or the disk's. */
int queue_lock_folder(const char *folder, unsigned wait_ms, int *lock_fd, struct error *err);

/* Whether the database has a name still, so that what it takes is not lost. If not, that is the
 * queue's shortage from now on. Failure: ESTALE. */
int queue_check_named(struct queue *queue, struct error *err);

/* Hands the change to the committing thread and waits for it. */
int queue_change(struct queue *queue, struct change *change, struct error *err);

/* Notes what a change did, to be shown once it is durable: reads the job back. */
int batch_note(struct batch *batch, enum queue_event event, int64_t id, struct error *err);

/* The reader's connection, locked; opened again if it failed before. On failure there is nothing to
 * end. */
int reader_begin(struct queue *queue, struct error *err);
void reader_end(struct queue *queue, enum statement statement);

/* `count` more jobs wait: in the places that the change holds, and in as many as nobody else does,
 * which it holds from now on until it is done. Failure: EAGAIN. */
int batch_take_places(struct batch *batch, struct change *change, struct error *err);

/* The same for one that waited before and must: the limit may be passed. */
void batch_take_place_back(struct batch *batch, struct change *change);

#endif
