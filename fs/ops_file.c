/* SPDX-License-Identifier: MIT */
/* Files made on demand: reads see a snapshot, taken at open and again at each read from offset 0.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "fs/content.h"
#include "fs/ops_private.h"
#include "fs/readme.h"

int file_render(struct daemon *daemon, struct node node, const struct viewer *viewer,
                struct text *text, int64_t *changed_ns)
{
    struct error err;
    uint64_t start, end;
    struct job_info info;

    switch (node.kind) {
    case NODE_README:
        content_add_string(text, readme_text);
        *changed_ns = daemon->status.started_ns;
        return text->failed ? -ENOMEM : 0;
    case NODE_CONTROL_FILE:
        control_show(&daemon->control, node.part, text);
        *changed_ns = control_changed_ns(&daemon->control, node.part);
        return text->failed ? -ENOMEM : 0;
    case NODE_JOB_FILE:
        if (node.part == JOB_FILE_WAIT && queue_find(daemon->queue, node.id, &info) &&
            info.finished_ns != 0) {
            text_print(text, "%s\n", job_state_name(info.state));
        }
        return status_render_job(&daemon->status, node.id, node.part, text, changed_ns, &err);
    case NODE_STATUS_FILE:
        if (node.part == STATUS_EVENTS) {
            events_range(&daemon->events, &start, &end, changed_ns);
            events_read(&daemon->events, start, SIZE_MAX, text);
            return text->failed ? -ENOMEM : 0;
        }
        return status_render(&daemon->status, node.part, viewer, text, changed_ns);
    default:
        return -ENOENT;
    }
}

void handle_reply(fuse_req_t req, const struct text *content, size_t size, off_t offset)
{
    size_t left = offset < (off_t)content->length ? content->length - (size_t)offset : 0;

    fuse_reply_buf(req, left > 0 ? content->bytes + offset : NULL, left < size ? left : size);
}

static int snapshot_take(struct daemon *daemon, struct handle *handle)
{
    struct text text = {0};
    int64_t changed_ns;
    int code = file_render(daemon, handle->node, &handle->opener, &text, &changed_ns);

    if (code == 0) {
        struct text old;
        pthread_mutex_lock(&daemon->tree.lock);
        old = handle->content;
        handle->content = text;
        handle->hash = content_hash(&text);
        handle->changed_ns = changed_ns;
        handle->snapshot_ns = clock_ns();
        pthread_mutex_unlock(&daemon->tree.lock);
        text = old;
        attr_follow(daemon, handle->node, changed_ns);
    }
    content_finish(&text);
    return code;
}

void file_open(fuse_req_t req, struct handle *handle, struct fuse_file_info *fi)
{
    struct daemon *daemon = daemon_of(req);
    uint64_t end;
    int code = 0;

    if (node_blocks(handle->node)) {
        events_range(&daemon->events, &handle->stream_base, &end, &handle->changed_ns);
    } else if ((fi->flags & O_ACCMODE) != O_WRONLY) {
        code = snapshot_take(daemon, handle);
    }
    if (code != 0) {
        handle_destroy(daemon, handle);
        fuse_reply_err(req, -code);
        return;
    }
    fi->direct_io = 1;
    fi->noflush = 1; /* what is written here takes effect at once, not at close */
    if (fuse_reply_open(req, fi) == -ENOENT) {
        handle_destroy(daemon, handle);
    }
}

void file_read(fuse_req_t req, struct handle *handle, size_t size, off_t offset)
{
    struct daemon *daemon = daemon_of(req);
    struct text slice = {0};
    bool again;
    int code = 0;

    pthread_mutex_lock(&daemon->tree.lock);
    again = offset == 0 && handle->was_read;
    handle->was_read = true;
    pthread_mutex_unlock(&daemon->tree.lock);
    if (again) {
        code = snapshot_take(daemon, handle);
    }
    if (code != 0) {
        fuse_reply_err(req, -code);
        return;
    }
    pthread_mutex_lock(&daemon->tree.lock);
    if (offset < (off_t)handle->content.length) {
        size_t left = handle->content.length - (size_t)offset;
        text_add(&slice, handle->content.bytes + offset, left < size ? left : size);
    }
    pthread_mutex_unlock(&daemon->tree.lock);
    if (slice.failed) {
        fuse_reply_err(req, ENOMEM);
    } else {
        handle_reply(req, &slice, size, 0);
    }
    content_finish(&slice);
}

/* ---- Writing: control/, jobs/<id>/ctl and status/vram. As in /sys, one write is one value. ----
 */

static int ctl_write(struct daemon *daemon, int64_t job, const char *bytes, size_t size,
                     struct error *err)
{
    char verb[32], *end;
    long priority;

    while (size > 0 && strchr(" \t\r\n", bytes[size - 1]) != NULL) {
        size--;
    }
    if (size >= sizeof verb) {
        return error_set(err, EINVAL, "ctl: write cancel, retry or priority N");
    }
    memcpy(verb, bytes, size);
    verb[size] = '\0';
    if (strcmp(verb, "cancel") == 0) {
        return queue_cancel(daemon->queue, job, err);
    }
    if (strcmp(verb, "retry") == 0) {
        return queue_retry(daemon->queue, job, err);
    }
    if (strncmp(verb, "priority ", 9) == 0) {
        errno = 0;
        priority = strtol(verb + 9, &end, 10);
        if (end == verb + 9 || *end != '\0' || errno != 0 || priority < -QUEUE_MAX_PRIORITY ||
            priority > QUEUE_MAX_PRIORITY) {
            return error_set(err, EINVAL, "ctl: priority takes a number from -%d to %d",
                             QUEUE_MAX_PRIORITY, QUEUE_MAX_PRIORITY);
        }
        return queue_set_priority(daemon->queue, job, (int)priority, err);
    }
    return error_set(err, EINVAL, "ctl: %s: write cancel, retry or priority N", verb);
}

void file_write(fuse_req_t req, struct handle *handle, const char *bytes, size_t size)
{
    struct daemon *daemon = daemon_of(req);
    struct node node = handle->node;
    struct error err = {0};
    int code = -EBADF;

    if (node.kind == NODE_CONTROL_FILE) {
        code = control_set(&daemon->control, node.part, bytes, size, &err);
        if (code != 0) {
            events_add_error(&daemon->events, "control/%s: %s", control_key_name(node.part),
                             err.text);
        }
    } else if (node.kind == NODE_JOB_FILE && node.part == JOB_FILE_CTL) {
        code = ctl_write(daemon, node.id, bytes, size, &err);
        if (code != 0) {
            events_add_error(&daemon->events, "jobs/%lld/ctl: %s", (long long)node.id, err.text);
        }
    } else if (node.kind == NODE_STATUS_FILE && node.part == STATUS_VRAM) {
        code = watch_threshold(daemon, handle, bytes, size, &err);
        if (code != 0) {
            events_add_error(&daemon->events, "status/vram: %s", err.text);
        }
    }
    if (code != 0) {
        fuse_reply_err(req, -code);
    } else {
        fuse_reply_write(req, size);
    }
}
