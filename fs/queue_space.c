/* SPDX-License-Identifier: MIT */
/* Room for prompts that are being written: places among the jobs that may wait, and blocks behind
 * the end of SQLite's journal, where the next commits go. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "fs/queue_private.h"

enum {
    FRAME_BYTES = 4096 + 24, /* a page in the journal */
    PAGE_TEXT_BYTES = 4092,  /* of a long text, in each of its pages */
    COMMIT_PAGES = 24,       /* of tables and indexes that a commit may change, with splits */
    JOB_PAGES = 3,           /* a job's own beside its text */
    OTHERS_BYTES = COMMIT_PAGES * FRAME_BYTES, /* what others may commit meanwhile */
    STEP_BYTES = 1 << 20, /* so much more is set aside at once, but little of what there is */
};

uint64_t queue_push_bytes(size_t count, size_t text_bytes)
{
    return (COMMIT_PAGES + (uint64_t)count * (JOB_PAGES + text_bytes / PAGE_TEXT_BYTES)) *
           FRAME_BYTES;
}

static int refuse(const struct space *space, int errnum, struct error *err)
{
    return error_set(err, errnum, "%s: %s%s", space->path, strerror(errnum),
                     errnum == ENOSPC ? " (make room on the disk of the state folder)" : "");
}

/* Why the last prompt got no room; all 0: it got some. */
static void set_shortage(struct queue *queue, const struct error *why)
{
    pthread_mutex_lock(&queue->lock);
    queue->changes += queue->shortage.code != why->code;
    queue->shortage = *why;
    pthread_mutex_unlock(&queue->lock);
}

int queue_check_named(struct queue *queue, struct error *err)
{
    struct error why;
    struct stat st;

    if (fstat(queue->file_fd, &st) == 0 && st.st_nlink > 0) {
        return 0;
    }
    error_set(&why, ESTALE,
              "%.150s was removed under the mount: no prompt can be kept; unmount, and mount again",
              queue->writer.path);
    set_shortage(queue, &why);
    return error_set(err, ESTALE, "%s", why.text);
}

/* Sets blocks aside from `end` on. A file system that can't do that has the room, or not. */
static int blocks_reserve(struct space *space, off_t end, uint64_t bytes, struct error *err)
{
    struct statvfs disk;
    uint64_t room, step;
    int fd, rc = 0;

    if (statvfs(space->path, &disk) != 0) {
        return refuse(space, errno, err);
    }
    /* What is set aside already is there, too. */
    room = (uint64_t)disk.f_bavail * disk.f_frsize +
           (space->end > end ? (uint64_t)(space->end - end) : 0);
    if (room < bytes) { /* asked first, for a failing call may take what there is all the same */
        return refuse(space, ENOSPC, err);
    }
    step = (room - bytes) / 16;
    bytes += step < STEP_BYTES ? step : STEP_BYTES;
    fd = open(space->path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || fallocate(fd, FALLOC_FL_KEEP_SIZE, end, (off_t)bytes) != 0) {
        rc = errno;
    }
    if (fd >= 0) {
        close(fd);
    }
    if (rc != 0 && rc != EOPNOTSUPP && rc != ENOSYS) {
        return refuse(space, rc, err);
    }
    space->end = rc == 0 ? end + (off_t)bytes : 0;
    return 0;
}

/* Room for so many bytes behind the end of the journal, which never gets shorter unless it is made
 * anew. */
static int space_ensure(struct space *space, uint64_t bytes, struct error *err)
{
    struct stat st;

    if (stat(space->path, &st) != 0) {
        return errno == ENOENT ? 0 : refuse(space, errno, err);
    }
    if (st.st_ino != space->inode || st.st_size < space->size) {
        space->end = 0;
    }
    space->inode = st.st_ino;
    space->size = st.st_size;
    return st.st_size + (off_t)bytes <= space->end ? 0
                                                   : blocks_reserve(space, st.st_size, bytes, err);
}

static int apply_shorten(struct batch *batch, struct change *change, struct error *err)
{
    batch->shorten = true;
    return 0;
}

/* What the journal holds goes to its place, if there is room for that, and the journal is empty. */
static int queue_shorten(struct queue *queue)
{
    struct change change = {.apply = apply_shorten};

    return queue_change(queue, &change, NULL);
}

int queue_hold_bytes(struct queue *queue, struct queue_hold *hold, uint64_t bytes,
                     struct error *err)
{
    struct space *space = &queue->space;
    struct error why = {0};
    int rc = 0;

    if (bytes > 0 && queue_check_named(queue, err) != 0) {
        return -ESTALE;
    }
    pthread_mutex_lock(&space->lock);
    space->held += bytes - hold->bytes;
    if (bytes > hold->bytes) {
        rc = space_ensure(space, space->held + OTHERS_BYTES, &why);
        if (rc == -ENOSPC && queue_shorten(queue) == 0) {
            rc = space_ensure(space, space->held + OTHERS_BYTES, &why);
        }
    }
    if (rc == 0) {
        hold->bytes = bytes;
    } else {
        space->held -= bytes - hold->bytes;
    }
    pthread_mutex_unlock(&space->lock);
    if (bytes > 0) {
        set_shortage(queue, rc != 0 ? &why : &(struct error){0});
    }
    return rc == 0 ? 0 : error_set(err, -rc, "%s", why.text);
}

/* So many are taken, and so many more are wanted. */
static int check_limit(const struct queue *queue, size_t taken, size_t more, struct error *err)
{
    if (queue->waiting_limit == 0 ||
        (more <= queue->waiting_limit && taken <= queue->waiting_limit - more)) {
        return 0;
    }
    return error_set(err, EAGAIN,
                     "the queue is full: %zu jobs wait or are being written and %zu may "
                     "(queue_limit): try again when some are done",
                     taken, queue->waiting_limit);
}

int queue_hold_places(struct queue *queue, struct queue_hold *hold, size_t places,
                      struct error *err)
{
    int rc = 0;

    pthread_mutex_lock(&queue->lock);
    if (places > hold->places) {
        rc = check_limit(queue, queue->index.state[JOB_WAITING] + queue->held_places - hold->places,
                         places, err);
    }
    if (rc == 0) {
        queue->held_places += places - hold->places;
        hold->places = places;
    }
    pthread_mutex_unlock(&queue->lock);
    return rc;
}

/* With the lock. */
static void take(struct batch *batch, struct change *change, size_t own)
{
    change->taken = own < change->count ? change->count - own : 0;
    batch->queue->held_places += change->taken;
    batch->placed += own + change->taken;
}

int batch_take_places(struct batch *batch, struct change *change, struct error *err)
{
    struct queue *queue = batch->queue;
    size_t own = change->hold != NULL ? change->hold->places : 0;
    int rc = 0;

    pthread_mutex_lock(&queue->lock);
    if (own < change->count) {
        rc = check_limit(queue, (size_t)batch->waiting + queue->held_places - batch->placed - own,
                         change->count, err);
    }
    if (rc == 0) {
        take(batch, change, own);
    } else {
        batch->placed += own; /* given back, as far as this batch goes */
    }
    pthread_mutex_unlock(&queue->lock);
    return rc;
}

void batch_take_place_back(struct batch *batch, struct change *change)
{
    pthread_mutex_lock(&batch->queue->lock);
    change->count = 1;
    take(batch, change, 0);
    pthread_mutex_unlock(&batch->queue->lock);
}

void queue_hold_nothing(struct queue *queue, struct queue_hold *hold)
{
    (void)queue_hold_bytes(queue, hold, 0, NULL);
    (void)queue_hold_places(queue, hold, 0, NULL);
}

void queue_hold_move(struct queue *queue, struct queue_hold *from, struct queue_hold *to)
{
    pthread_mutex_lock(&queue->space.lock);
    to->bytes = from->bytes;
    from->bytes = 0;
    pthread_mutex_unlock(&queue->space.lock);
    pthread_mutex_lock(&queue->lock);
    to->places = from->places;
    from->places = 0;
    pthread_mutex_unlock(&queue->lock);
}
