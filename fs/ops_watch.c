/* SPDX-License-Identifier: MIT */
#include "fs/watch.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "fs/content.h"
#include "fs/ops_private.h"
#include "fs/watch_private.h"

enum {
    BREATH_US = 500, /* between two rounds, however fast blocks come */
    AGAIN_MS = 2,    /* then a look comes for which memory is told anew (worker_memory) */
};

/* ---- What there is to wake for. ---- */

/* A copy of what must be known of a handle while the lock isn't held. */
struct polled {
    struct node node;
    struct viewer opener;
    uint64_t number, hash, stream_read;
    bool threshold, crossed;
};

static bool content_changed(struct daemon *daemon, const struct polled *polled)
{
    struct text text = {0};
    int64_t changed_ns;
    bool changed = file_render(daemon, polled->node, &polled->opener, &text, &changed_ns) == 0 &&
                   content_hash(&text) != polled->hash;

    content_finish(&text);
    return changed;
}

/* The poll(2) events that hold for a file now; `polled` as of a moment ago. */
static unsigned events_now(struct daemon *daemon, const struct polled *polled)
{
    struct node node = polled->node;
    uint64_t start, end;
    int64_t changed_ns;

    switch (node.kind) {
    case NODE_STATUS_FILE:
        if (node.part == STATUS_EVENTS) {
            events_range(&daemon->events, &start, &end, &changed_ns);
            return end > polled->stream_read ? POLLIN : 0;
        }
        if (polled->threshold) {
            return POLLIN | (polled->crossed ? POLLPRI : 0);
        }
        return POLLIN | (content_changed(daemon, polled) ? POLLPRI | POLLERR : 0);
    case NODE_JOB_FILE:
        if (node.part == JOB_FILE_WAIT) {
            return watch_job_ended(daemon, node.id) ? POLLIN : 0;
        }
        if (node.part == JOB_FILE_CTL) {
            return POLLIN | POLLOUT;
        }
        return POLLIN | (content_changed(daemon, polled) ? POLLPRI | POLLERR : 0);
    case NODE_CONTROL_FILE:
        return POLLIN | POLLOUT |
               (polled->hash != 0 && content_changed(daemon, polled) ? POLLPRI | POLLERR : 0);
    default:
        return POLLIN | POLLOUT;
    }
}

/* What poll would be woken for: changes; not what is always so. */
static bool worth_waking(const struct polled *polled, unsigned events)
{
    return (events & (node_blocks(polled->node) ? POLLIN : POLLPRI)) != 0;
}

/* With the tree lock. */
static struct polled polled_of(const struct handle *handle)
{
    return (struct polled){
        .node = handle->node,
        .opener = handle->opener,
        .number = handle->number,
        .hash = handle->hash,
        .stream_read = handle->stream_read,
        .threshold = threshold_set(&handle->threshold),
        .crossed = handle->crossed,
    };
}

void ops_poll(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi,
              struct fuse_pollhandle *poll)
{
    struct daemon *daemon = daemon_of(req);
    struct handle *handle = handle_of(fi);
    struct fuse_pollhandle *old = NULL;
    struct polled polled;
    unsigned events;

    pthread_mutex_lock(&daemon->tree.lock);
    polled = polled_of(handle);
    if (poll != NULL) {
        old = handle->poll;
        handle->poll = poll;
    }
    pthread_mutex_unlock(&daemon->tree.lock);
    if (old != NULL) {
        fuse_pollhandle_destroy(old);
    }
    events = events_now(daemon, &polled);
    if ((events & POLLPRI) != 0 && polled.threshold) {
        pthread_mutex_lock(&daemon->tree.lock);
        handle->crossed = false; /* told */
        pthread_mutex_unlock(&daemon->tree.lock);
    }
    fuse_reply_poll(req, events);
}

/* ---- Thresholds on status/vram. ---- */

int watch_threshold(struct daemon *daemon, struct handle *handle, const char *bytes, size_t size,
                    struct error *err)
{
    struct engine_memory memory;
    struct threshold threshold;
    int code = threshold_parse(&threshold, bytes, size, err);

    if (code != 0) {
        return code;
    }
    /* While the model loads no budget is known. */
    if (worker_memory(daemon->worker, &memory) != 0 && threshold.bytes > memory.budget) {
        return error_set(err, EINVAL, "the threshold is above the budget");
    }
    pthread_mutex_lock(&daemon->tree.lock);
    handle->threshold = threshold;
    handle->above = threshold_passed(&threshold, &memory);
    handle->crossed = false;
    pthread_mutex_unlock(&daemon->tree.lock);
    return 0;
}

/* With the tree lock. */
static void threshold_look(struct handle *handle, const struct engine_memory *memory)
{
    if (threshold_set(&handle->threshold)) {
        bool above = threshold_passed(&handle->threshold, memory);
        handle->crossed |= above && !handle->above;
        handle->above = above;
    }
}

/* ---- The thread. ---- */

/* Wakes one poller that waits, if its file has changed. */
static void poller_look(struct watch *watch, const struct polled *polled)
{
    struct daemon *daemon = watch->daemon;
    struct fuse_pollhandle *poll = NULL;

    if (!worth_waking(polled, events_now(daemon, polled))) {
        return;
    }
    pthread_mutex_lock(&daemon->tree.lock);
    for (struct handle *each = daemon->handles; each != NULL; each = each->next) {
        if (each->number == polled->number) {
            poll = each->poll;
            each->poll = NULL;
        }
    }
    pthread_mutex_unlock(&daemon->tree.lock);
    if (poll != NULL) {
        fuse_lowlevel_notify_poll(poll);
        fuse_pollhandle_destroy(poll);
    }
}

/* Copies of the handles someone polls, to free; thresholds are looked at on the way. */
static size_t pollers_copy(struct watch *watch, struct polled **copies)
{
    struct daemon *daemon = watch->daemon;
    struct engine_memory memory;
    size_t count = 0, capacity = 0;

    *copies = NULL;
    pthread_mutex_lock(&daemon->tree.lock);
    for (struct handle *each = daemon->handles; each != NULL; each = each->next) {
        capacity += each->poll != NULL || threshold_set(&each->threshold);
    }
    pthread_mutex_unlock(&daemon->tree.lock);
    if (capacity == 0) {
        return 0;
    }
    worker_memory(daemon->worker, &memory);
    *copies = calloc(capacity, sizeof **copies);
    pthread_mutex_lock(&daemon->tree.lock);
    for (struct handle *each = daemon->handles; each != NULL; each = each->next) {
        threshold_look(each, &memory);
        if (each->poll != NULL && count < capacity && *copies != NULL) {
            (*copies)[count++] = polled_of(each);
        }
    }
    pthread_mutex_unlock(&daemon->tree.lock);
    return count;
}

/* Whether anyone polls. */
static bool pollers_look(struct watch *watch)
{
    struct polled *polled;
    size_t count = pollers_copy(watch, &polled);

    for (size_t i = 0; i < count; i++) {
        poller_look(watch, &polled[i]);
    }
    free(polled);
    return count > 0;
}

/* What the kernel remembers of a folder that has changed is out of date. */
static void folder_look(struct watch *watch, enum node_kind kind, atomic_int_least64_t *changed_ns,
                        int64_t *told_ns)
{
    int64_t now_ns = atomic_load(changed_ns);

    if (*told_ns != now_ns) {
        *told_ns = now_ns;
        fuse_lowlevel_notify_inval_inode(watch->daemon->session,
                                         node_ino((struct node){.kind = kind}), -1, 0);
    }
}

static void folders_look(struct watch *watch)
{
    struct daemon *daemon = watch->daemon;

    folder_look(watch, NODE_IMAGES, &daemon->images_changed_ns, &watch->told_ns[0]);
    folder_look(watch, NODE_JOBS, &daemon->jobs_changed_ns, &watch->told_ns[1]);
    folder_look(watch, NODE_QUEUE, &daemon->queue_changed_ns, &watch->told_ns[2]);
}

static void *watch_main(void *owner)
{
    struct watch *watch = owner;
    struct pollfd pollfd = {.fd = watch->eventfd, .events = POLLIN};
    bool again = false;
    uint64_t wakes;

    while (!atomic_load(&watch->stopping)) {
        int ready = poll(&pollfd, 1, again ? AGAIN_MS : -1);
        if (ready > 0 && read(watch->eventfd, &wakes, sizeof wakes) < 0 && errno != EINTR) {
            break;
        }
        folders_look(watch);
        worker_sample(watch->daemon->worker);
        /* What was told of the memory may have been a moment older than the change that woke us. */
        again = pollers_look(watch) && ready > 0;
        sleepers_look(watch);
        usleep(BREATH_US);
    }
    sleepers_look(watch);
    return NULL;
}

int watch_create(struct watch **watch, struct daemon *daemon, struct error *err)
{
    struct watch *new = calloc(1, sizeof *new);

    if (new == NULL) {
        return error_set(err, ENOMEM, "no memory for the watcher");
    }
    new->daemon = daemon;
    new->eventfd = eventfd(0, EFD_CLOEXEC);
    if (new->eventfd < 0) {
        int code = errno;
        free(new);
        return error_set(err, code, "watcher: eventfd: %s", strerror(code));
    }
    *watch = new;
    return 0;
}

int watch_start(struct watch *watch, struct error *err)
{
    int code = pthread_create(&watch->thread, NULL, watch_main, watch);

    watch->started = code == 0;
    return code == 0 ? 0 : error_set(err, code, "watcher: thread: %s", strerror(code));
}

void watch_wake(struct watch *watch)
{
    uint64_t one = 1;

    if (write(watch->eventfd, &one, sizeof one) < 0) {
        /* Full: then it is awake anyway. */
    }
}

void watch_stop(struct watch *watch)
{
    if (watch != NULL && watch->started && !atomic_exchange(&watch->stopping, true)) {
        watch_wake(watch);
        pthread_join(watch->thread, NULL);
    }
}

void watch_destroy(struct watch *watch)
{
    if (watch == NULL) {
        return;
    }
    watch_stop(watch);
    close(watch->eventfd);
    free(watch);
}
