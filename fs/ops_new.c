/* SPDX-License-Identifier: MIT */
/* `new`: what is written up to a close is one prompt; its jobs' ids are read back. */
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "fs/content.h"
#include "fs/ops_private.h"

enum { MAX_REPLY_BYTES = 65536 };

static struct submission submission_of(const struct handle *handle, const struct text *content)
{
    return (struct submission){
        .bytes = content->bytes,
        .length = content->length,
        .uid = handle->opener.uid,
        .gid = handle->opener.gid,
    };
}

/* A thread of the opener's process has another pid here; closing from such a thread (Go, Java,
 * node) is as good as from the opener. */
bool same_process(pid_t opener, pid_t other)
{
    char path[64];

    if (opener == other) {
        return true;
    }
    snprintf(path, sizeof path, "/proc/%d/task/%d", (int)opener, (int)other);
    return opener > 0 && other > 0 && access(path, F_OK) == 0;
}

void new_write(fuse_req_t req, struct handle *handle, const char *bytes, size_t size)
{
    struct daemon *daemon = daemon_of(req);
    struct text copy = {0};
    struct error err = {0};
    size_t length;
    bool failed;
    int code;

    pthread_mutex_lock(&daemon->tree.lock);
    code = handle->refusal;
    if (code == 0 && handle->content.length <= PROMPT_MAX_BYTES) {
        text_add(&handle->content, bytes, size);
        /* One byte over the limit is enough for the reason to be told. */
        if (handle->content.length > PROMPT_MAX_BYTES ||
            prompt_complete(handle->content.bytes, handle->content.length)) {
            text_add(&copy, handle->content.bytes, handle->content.length);
        }
    }
    length = handle->content.length;
    failed = copy.failed || handle->content.failed;
    pthread_mutex_unlock(&daemon->tree.lock);
    if (code == 0 && failed) {
        code = -ENOMEM;
    } else if (code == 0) {
        struct submission submission = submission_of(handle, &copy);
        submission.length = length;
        code = submission_check(daemon, &submission, copy.length > 0, &handle->hold, &err);
    }
    content_finish(&copy);
    if (code == 0) {
        fuse_reply_write(req, size);
        return;
    }
    pthread_mutex_lock(&daemon->tree.lock);
    handle->refusal = code;
    content_finish(&handle->content);
    pthread_mutex_unlock(&daemon->tree.lock);
    queue_hold_nothing(daemon->queue, &handle->hold);
    fuse_reply_err(req, -code);
}

void new_truncate(struct daemon *daemon, struct handle *handle)
{
    pthread_mutex_lock(&daemon->tree.lock);
    content_clear(&handle->content);
    handle->refusal = 0;
    pthread_mutex_unlock(&daemon->tree.lock);
    queue_hold_nothing(daemon->queue, &handle->hold);
}

/* What was read of the reply goes, so that a reader that alternates writes and reads finds the next
 * id at whatever offset the kernel thinks it is. With the tree lock. */
static void reply_add(struct handle *handle, const int64_t *ids, size_t count)
{
    if (handle->reply_base >= 0) {
        content_drop_front(&handle->reply, handle->reply_taken);
        handle->reply_base = -1;
        handle->reply_taken = 0;
    }
    for (size_t i = 0; i < count; i++) {
        text_print(&handle->reply, "%lld\n", (long long)ids[i]);
    }
    if (handle->reply.length > MAX_REPLY_BYTES) {
        content_clear(&handle->reply); /* nobody reads them */
    }
}

static int content_commit(struct daemon *daemon, struct handle *handle, struct queue_hold *hold)
{
    int64_t ids[PROMPT_MAX_COUNT];
    struct submission submission;
    struct text content;
    struct error err = {0};
    size_t count = 0;
    int code;

    pthread_mutex_lock(&daemon->tree.lock);
    content = handle->content;
    handle->content = (struct text){0};
    handle->refusal = 0; /* told already */
    pthread_mutex_unlock(&daemon->tree.lock);
    if (content.length == 0) {
        content_finish(&content);
        return 0;
    }
    submission = submission_of(handle, &content);
    code = submission_accept(daemon, &submission, hold, ids, &count, &err);
    content_finish(&content);
    if (code == 0) {
        pthread_mutex_lock(&daemon->tree.lock);
        reply_add(handle, ids, count);
        pthread_mutex_unlock(&daemon->tree.lock);
    }
    return code;
}

int new_commit(struct daemon *daemon, struct handle *handle)
{
    struct queue_hold hold;
    int code;

    queue_hold_move(daemon->queue, &handle->hold, &hold); /* others may write on meanwhile */
    code = content_commit(daemon, handle, &hold);
    queue_hold_nothing(daemon->queue, &hold);
    return code;
}

/* The kernel's offset counts what was written as well: the first read after a write defines where
 * the reply begins. */
void new_read(fuse_req_t req, struct handle *handle, size_t size, off_t offset)
{
    struct daemon *daemon = daemon_of(req);
    struct text slice = {0};
    size_t from;
    int code = new_commit(daemon, handle);

    if (code != 0) {
        fuse_reply_err(req, -code);
        return;
    }
    pthread_mutex_lock(&daemon->tree.lock);
    if (handle->reply_base < 0 || offset < handle->reply_base) {
        handle->reply_base = offset;
    }
    from = (size_t)(offset - handle->reply_base);
    if (from < handle->reply.length) {
        size_t left = handle->reply.length - from;
        text_add(&slice, handle->reply.bytes + from, left < size ? left : size);
    }
    if (handle->reply_taken < from + slice.length) {
        handle->reply_taken = from + slice.length;
    }
    pthread_mutex_unlock(&daemon->tree.lock);
    handle_reply(req, &slice, size, 0);
    content_finish(&slice);
}
