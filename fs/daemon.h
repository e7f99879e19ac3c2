/* SPDX-License-Identifier: MIT */
/*
 * Everything that one mounted fluxfs consists of.
 *
 * Threads: those of FUSE, the worker, the encoder, the watcher (fs/watch.h), the queue's committer.
 * Two locks: the tree lock, which guards what is in this folder's own memory, then the queue's (and
 * the gallery's). Neither is held across calls of the engine, of the disk, or replies to FUSE.
 */
#ifndef FLUXFS_FS_DAEMON_H
#define FLUXFS_FS_DAEMON_H

#include <stdatomic.h>
#include <stdint.h>

#include "fs/board.h"
#include "fs/config.h"
#include "fs/control.h"
#include "fs/drop.h"
#include "fs/encoder.h"
#include "fs/events.h"
#include "fs/gallery.h"
#include "fs/notifier.h"
#include "fs/queue.h"
#include "fs/status.h"
#include "fs/tree.h"
#include "fs/worker.h"

struct dir_handle;
struct fuse_session;
struct handle;
struct watch;

struct daemon {
    const struct config *config;
    struct queue *queue;
    struct gallery *gallery;
    struct tree tree;
    struct board board;
    struct events events;
    struct control control;
    struct status status;
    struct drop drop;
    struct notifier *notifier;
    struct encoder *encoder;
    struct worker *worker;
    struct watch *watch;
    struct fuse_session *session;
    struct handle *handles;  /* all that are open; guarded by the tree lock */
    struct dir_handle *dirs; /* likewise */
    uint64_t last_handle;    /* number of the newest; guarded by the tree lock */
    /* By status file: which content the attributes that the kernel may have cached are of;
     * GIVEN_NONE, GIVEN_SOME (an answer is under way), or when it last changed. */
    atomic_int_least64_t given_ns[STATUS_FILES];
    atomic_int_least64_t images_changed_ns, jobs_changed_ns, queue_changed_ns;
    void (*mounted)(void *owner); /* called once, when the kernel has greeted */
    void *owner;
};

/* Opens what lies in the state folder. The notifier is the daemon's from then on. After a failure
 * daemon_close is still due. */
int daemon_open(struct daemon *daemon, const struct config *config, struct notifier *notifier,
                struct error *err);

/* Starts worker, encoder and watcher; once mounted, for then loading begins. */
int daemon_start(struct daemon *daemon, struct error *err);

/* No more requests are served: answers those who wait for something. The session must live. */
void daemon_quiet(struct daemon *daemon);

/* Stops the threads (active jobs wait again, painted images are stored) and closes everything. */
void daemon_close(struct daemon *daemon);

/* rm: the image goes for good, and the jobs that had it have none. Failure: ENOENT, the disk's. */
int daemon_remove_image(struct daemon *daemon, const char *name, struct error *err);

/* rmdir jobs/<id>: an ended job leaves the history; its image stays. Failure: EBUSY. */
int daemon_forget_job(struct daemon *daemon, int64_t job, struct error *err);

/* ---- Taking prompts. The reason of a refusal goes to status/error too. ---- */

/* Who writes, and where it says so: "new", or "prompts/fox.txt". */
struct submission {
    const char *bytes;
    size_t length;
    uid_t uid;
    gid_t gid;
    const char *source; /* file in prompts/, or NULL */
    uint64_t source_digest;
};

/* Whether it would be taken, as far as it is written: what is not complete is only given room on
 * the disk and a place in the queue. Failure: EINVAL, EAGAIN (the queue is full), ENOSPC (also
 * where pinned images leave no room), ENOMEM; the disk's errno while it fails. */
int submission_check(struct daemon *daemon, const struct submission *submission, bool complete,
                     struct queue_hold *hold, struct error *err);

/* How many jobs it asks for; 1 if it can't be understood, or not yet. */
size_t submission_count(struct daemon *daemon, const struct submission *submission);

/* Puts the jobs into the queue, durably; ids has room for PROMPT_MAX_COUNT. Failure: as above, and
 * as queue_push. */
int submission_accept(struct daemon *daemon, const struct submission *submission,
                      struct queue_hold *hold, int64_t *ids, size_t *count, struct error *err);

#endif
