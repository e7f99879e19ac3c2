/* SPDX-License-Identifier: MIT */
/* Reads that wait for something to happen: status/events, and jobs/<id>/wait. */
#include <errno.h>
#include <stdlib.h>

#include "fs/content.h"
#include "fs/ops_private.h"
#include "fs/watch_private.h"

/* A read that waits for something to happen. */
struct sleeper {
    struct sleeper *next;
    fuse_req_t req;
    struct node node;
    uint64_t number;        /* the handle's */
    uint64_t stream_offset; /* events: what comes from here on */
    size_t size;
    bool armed;       /* the interrupt function is set: it may be answered */
    bool interrupted; /* before it was armed */
};

bool watch_job_ended(struct daemon *daemon, int64_t job)
{
    struct job_info info;

    return !queue_find(daemon->queue, job, &info) || info.finished_ns != 0;
}

static struct sleeper *sleeper_take(struct watch *watch, fuse_req_t req)
{
    for (struct sleeper **place = &watch->sleepers; *place != NULL; place = &(*place)->next) {
        if ((*place)->req == req) {
            struct sleeper *found = *place;
            *place = found->next;
            return found;
        }
    }
    return NULL;
}

/* The kernel's word that the reader got a signal. Called with the request's own lock, so the tree
 * lock is never held when a request is answered or given its interrupt function. */
static void sleeper_interrupt(fuse_req_t req, void *owner)
{
    struct watch *watch = owner;
    struct sleeper *sleeper;

    pthread_mutex_lock(&watch->daemon->tree.lock);
    sleeper = sleeper_take(watch, req);
    if (sleeper != NULL && !sleeper->armed) {
        sleeper->interrupted = true;
        sleeper->next = watch->sleepers;
        watch->sleepers = sleeper;
        sleeper = NULL;
    }
    pthread_mutex_unlock(&watch->daemon->tree.lock);
    if (sleeper != NULL) {
        fuse_reply_err(req, EINTR);
        free(sleeper);
    }
}

/* True if the read has an answer, which is then appended (nothing: the end of the file). */
static bool sleeper_answer(struct daemon *daemon, const struct sleeper *sleeper, struct text *text)
{
    struct job_info info;

    if (sleeper->node.kind == NODE_JOB_FILE) {
        if (!watch_job_ended(daemon, sleeper->node.id)) {
            return false;
        }
        if (queue_find(daemon->queue, sleeper->node.id, &info)) {
            text_print(text, "%s\n", job_state_name(info.state));
        }
        return true;
    }
    events_read(&daemon->events, sleeper->stream_offset, sleeper->size, text);
    return text->length > 0;
}

/* Remembers how far the stream was read through a handle, for poll. */
static void stream_advance(struct daemon *daemon, const struct sleeper *sleeper, size_t length)
{
    pthread_mutex_lock(&daemon->tree.lock);
    for (struct handle *each = daemon->handles; each != NULL; each = each->next) {
        if (each->number == sleeper->number) {
            each->stream_read = sleeper->stream_offset + length;
        }
    }
    pthread_mutex_unlock(&daemon->tree.lock);
}

static void sleeper_add(fuse_req_t req, const struct sleeper *asleep)
{
    struct daemon *daemon = daemon_of(req);
    struct watch *watch = daemon->watch;
    struct sleeper *sleeper = malloc(sizeof *sleeper);
    bool interrupted;

    if (sleeper == NULL) {
        fuse_reply_err(req, ENOMEM);
        return;
    }
    *sleeper = *asleep;
    pthread_mutex_lock(&daemon->tree.lock);
    sleeper->next = watch->sleepers;
    watch->sleepers = sleeper;
    pthread_mutex_unlock(&daemon->tree.lock);
    fuse_req_interrupt_func(req, sleeper_interrupt, watch);
    pthread_mutex_lock(&daemon->tree.lock);
    sleeper->armed = true;
    interrupted = sleeper->interrupted;
    if (interrupted) {
        sleeper_take(watch, req);
    }
    pthread_mutex_unlock(&daemon->tree.lock);
    if (interrupted) {
        fuse_reply_err(req, EINTR);
        free(sleeper);
    } else {
        watch_wake(watch);
    }
}

void blocking_read(fuse_req_t req, struct handle *handle, size_t size, off_t offset,
                   bool nonblocking)
{
    struct daemon *daemon = daemon_of(req);
    struct sleeper sleeper = {
        .req = req, .node = handle->node, .number = handle->number, .size = size};
    struct text text = {0};
    uint64_t start, end;
    int64_t changed_ns;
    bool seeks;

    if (handle->node.kind == NODE_STATUS_FILE) {
        events_range(&daemon->events, &start, &end, &changed_ns);
        pthread_mutex_lock(&daemon->tree.lock);
        /* Lines forgotten meanwhile are skipped. */
        if (handle->stream_base + (uint64_t)offset < start) {
            handle->stream_base = start - (uint64_t)offset;
        }
        sleeper.stream_offset = handle->stream_base + (uint64_t)offset;
        seeks = handle->seeks;
        pthread_mutex_unlock(&daemon->tree.lock);
    } else {
        seeks = offset > 0; /* `wait` has one line, and was read */
    }
    if (seeks && handle->node.kind == NODE_JOB_FILE) {
        fuse_reply_buf(req, NULL, 0);
    } else if (sleeper_answer(daemon, &sleeper, &text) || seeks) {
        stream_advance(daemon, &sleeper, text.length);
        handle_reply(req, &text, size, 0);
    } else if (nonblocking) {
        fuse_reply_err(req, EAGAIN);
    } else {
        sleeper_add(req, &sleeper);
    }
    content_finish(&text);
}

/* The next armed sleeper after the `skip` first ones, as a copy. */
static bool sleeper_peek(struct watch *watch, size_t skip, struct sleeper *copy)
{
    struct sleeper *each;

    pthread_mutex_lock(&watch->daemon->tree.lock);
    for (each = watch->sleepers; each != NULL; each = each->next) {
        if (each->armed && skip-- == 0) {
            *copy = *each;
            break;
        }
    }
    pthread_mutex_unlock(&watch->daemon->tree.lock);
    return each != NULL;
}

void sleepers_look(struct watch *watch)
{
    struct daemon *daemon = watch->daemon;
    struct sleeper copy;
    size_t skip = 0;

    while (sleeper_peek(watch, skip, &copy)) {
        struct text text = {0};
        struct sleeper *sleeper = NULL;
        bool stopping = atomic_load(&watch->stopping);
        if (!sleeper_answer(daemon, &copy, &text) && !stopping) {
            content_finish(&text);
            skip++;
            continue;
        }
        pthread_mutex_lock(&daemon->tree.lock);
        sleeper = sleeper_take(watch, copy.req);
        pthread_mutex_unlock(&daemon->tree.lock);
        if (sleeper != NULL && stopping && text.length == 0) {
            fuse_reply_err(sleeper->req, ENOTCONN);
        } else if (sleeper != NULL) {
            stream_advance(daemon, &copy, text.length);
            handle_reply(sleeper->req, &text, copy.size, 0);
        }
        free(sleeper);
        content_finish(&text);
    }
}
