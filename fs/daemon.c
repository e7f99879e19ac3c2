/* SPDX-License-Identifier: MIT */
#include "fs/daemon.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "fs/handle.h"
#include "fs/watch.h"

/* What a daemon just unmounted may take for the present block and for storing images: the next
 * mount of its state waits so long. */
enum { LOCK_WAIT_MS = 5000 };

/* ---- Changes below us, told to those who wait. ---- */

static void wake(void *owner)
{
    struct daemon *daemon = owner;

    watch_wake(daemon->watch);
}

static void queue_changed(void *owner, enum queue_event event, const struct job_info *info)
{
    struct daemon *daemon = owner;
    long long id = (long long)info->id;

    atomic_store(&daemon->queue_changed_ns, clock_ns());
    if (event == QUEUE_REMOVED) {
        atomic_store(&daemon->jobs_changed_ns, clock_ns());
        events_add(&daemon->events, "job %lld forgotten", id);
    } else {
        if (event == QUEUE_ADDED) {
            atomic_store(&daemon->jobs_changed_ns, clock_ns());
        }
        /* Its parameters are settled after the start, which is nobody's news. */
        if (info->state != JOB_RUNNING || info->cancelling ||
            info->changed_ns == info->started_ns) {
            events_add(&daemon->events, "job %lld %s", id,
                       info->cancelling ? "cancelling" : job_state_name(info->state));
        }
    }
    if (daemon->worker != NULL) {
        if (info->cancelling) {
            worker_cancel(daemon->worker, info->id);
            encoder_wake(daemon->encoder);
        }
        worker_wake(daemon->worker);
    }
}

/* Set while rm removes an image: then inotify sees it go by itself. */
static _Thread_local bool removing_through_mount;

static void gallery_changed(void *owner, const struct gallery_image *image, bool came)
{
    struct daemon *daemon = owner;

    atomic_store(&daemon->images_changed_ns, clock_ns());
    if (daemon->events.discreet) {
        events_add(&daemon->events, "an image was %s", came ? "added" : "removed");
    } else {
        events_add(&daemon->events, "image %s %s", image->name, came ? "added" : "removed");
    }
    if (!came && !removing_through_mount) {
        encoder_announce_gone(daemon->encoder, image->name);
        queue_forget_image(daemon->queue, image->name, NULL);
    }
}

static void job_ended(void *owner, int64_t job, enum job_state state)
{
    struct daemon *daemon = owner;

    worker_job_ended(daemon->worker, job, state);
}

static int control_apply(void *owner, enum control_key key, const struct control_values *values,
                         struct error *err)
{
    struct daemon *daemon = owner;
    int code = 0;

    if (key == CONTROL_VRAM_BUDGET) {
        code = worker_set_budget(daemon->worker, values->vram_budget_bytes, err);
    } else if (key == CONTROL_IMAGES_LIMIT) {
        code = gallery_set_limit(daemon->gallery, values->images_limit_bytes, err);
    }
    return code;
}

static void control_changed(void *owner, enum control_key key)
{
    struct daemon *daemon = owner;

    events_add(&daemon->events, "control/%s changed", control_key_name(key));
    if (key == CONTROL_VRAM_BUDGET) {
        worker_follow_budget(daemon->worker);
    }
    if (key == CONTROL_VRAM_BUDGET || key == CONTROL_MODEL) {
        worker_retry(daemon->worker);
    } else {
        worker_wake(daemon->worker);
    }
}

/* ---- Images and jobs that go. ---- */

int daemon_remove_image(struct daemon *daemon, const char *name, struct error *err)
{
    int code;

    removing_through_mount = true;
    code = gallery_remove(daemon->gallery, name, err);
    removing_through_mount = false;
    return code != 0 ? code : queue_forget_image(daemon->queue, name, err);
}

int daemon_forget_job(struct daemon *daemon, int64_t job, struct error *err)
{
    struct job_info info;

    if (queue_find(daemon->queue, job, &info) && info.finished_ns == 0) {
        return error_set(err, EBUSY, "job %lld has not ended: cancel it first", (long long)job);
    }
    return queue_remove(daemon->queue, job, err);
}

/* ---- Opening and closing. ---- */

static int stores_open(struct daemon *daemon, struct error *err)
{
    const struct config *config = daemon->config;
    struct queue_options queue = {
        .folder = config->state_dir,
        .waiting_limit = config->queue_limit,
        .lock_wait_ms = LOCK_WAIT_MS,
        .observer = {.owner = daemon, .changed = queue_changed},
    };
    char folder[4096];
    struct gallery_options gallery = {
        .folder = folder,
        .limit_bytes = config->images_limit_bytes,
        .observer = {.owner = daemon, .changed = gallery_changed},
    };
    int code = queue_open(&daemon->queue, &queue, err);

    if (code != 0) {
        return code;
    }
    if (strlen(config->state_dir) + sizeof "/prompts" > sizeof folder) {
        return error_set(err, ENAMETOOLONG, "state_dir: the path is too long");
    }
    snprintf(folder, sizeof folder, "%s/images", config->state_dir);
    code = gallery_open(&daemon->gallery, &gallery, err);
    if (code != 0) {
        return code;
    }
    snprintf(folder, sizeof folder, "%s/prompts", config->state_dir);
    return drop_init(&daemon->drop, folder, &daemon->tree.lock, err);
}

int daemon_open(struct daemon *daemon, const struct config *config, struct notifier *notifier,
                struct error *err)
{
    struct control_values values;
    int64_t now = clock_ns();
    int code;

    daemon->config = config;
    daemon->notifier = notifier;
    tree_init(&daemon->tree, NULL, NULL);
    daemon->tree.notifier_pid = notifier_pid(notifier);
    daemon->tree.uid = config->uid;
    daemon->tree.gid = config->gid;
    daemon->tree.discreet = config->allow_other && !config->read_prompts;
    events_init(&daemon->events, &daemon->tree.lock);
    daemon->events.discreet = daemon->tree.discreet;
    atomic_store(&daemon->images_changed_ns, now);
    atomic_store(&daemon->jobs_changed_ns, now);
    atomic_store(&daemon->queue_changed_ns, now);
    code = watch_create(&daemon->watch, daemon, err);
    if (code == 0) {
        daemon->events.owner = daemon;
        daemon->events.wake = wake;
        code = stores_open(daemon, err);
    }
    if (code == 0) {
        daemon->tree.queue = daemon->queue;
        daemon->tree.gallery = daemon->gallery;
        code = control_init(&daemon->control, config, daemon->queue, &daemon->events, err);
    }
    if (code == 0) {
        daemon->control.actor = (struct control_actor){daemon, control_apply, control_changed};
        daemon->status = (struct status){
            .tree = &daemon->tree,
            .queue = daemon->queue,
            .gallery = daemon->gallery,
            .board = &daemon->board,
            .events = &daemon->events,
            .control = &daemon->control,
            .started_ns = now,
        };
        control_values(&daemon->control, &values);
        gallery_set_limit(daemon->gallery, values.images_limit_bytes, NULL);
    }
    return code;
}

static int threads_start(struct daemon *daemon, struct error *err)
{
    const struct config *config = daemon->config;
    struct encoder_options encoder = {
        .tree = &daemon->tree,
        .queue = daemon->queue,
        .gallery = daemon->gallery,
        .events = &daemon->events,
        .notifier = daemon->notifier,
        .owner = daemon,
        .ended = job_ended,
    };
    struct worker_options worker = {
        .tree = &daemon->tree,
        .queue = daemon->queue,
        .board = &daemon->board,
        .events = &daemon->events,
        .control = &daemon->control,
        .backend = config->backend,
        .module_dir = config->module_dir,
        .trace_path = config->trace_path,
        .threads = config->threads,
        .owner = daemon,
        .published = wake,
    };
    int code = encoder_create(&daemon->encoder, &encoder, err);

    if (code == 0) {
        worker.encoder = daemon->encoder;
        code = worker_create(&daemon->worker, &worker, err);
        daemon->status.worker = daemon->worker;
    }
    return code;
}

int daemon_start(struct daemon *daemon, struct error *err)
{
    int code = threads_start(daemon, err);

    return code == 0 ? watch_start(daemon->watch, err) : code;
}

void daemon_quiet(struct daemon *daemon)
{
    watch_stop(daemon->watch);
    notifier_kill(daemon->notifier); /* it may wait for an answer that won't come */
}

void daemon_close(struct daemon *daemon)
{
    if (daemon->encoder != NULL) {
        encoder_stop(daemon->encoder);
    }
    if (daemon->worker != NULL) {
        worker_stop(daemon->worker);
    }
    encoder_destroy(daemon->encoder);
    notifier_destroy(daemon->notifier);
    queue_close(daemon->queue);     /* the last changes are told to the worker still, */
    worker_destroy(daemon->worker); /* which therefore goes after it */
    gallery_close(daemon->gallery);
    handles_destroy(daemon);
    drop_finish(&daemon->drop);
    watch_destroy(daemon->watch);
    status_finish(&daemon->status);
    events_finish(&daemon->events);
    tree_finish(&daemon->tree);
}
