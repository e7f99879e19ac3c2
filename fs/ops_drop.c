/* SPDX-License-Identifier: MIT */
/* prompts/: the operations of real files but for their attributes, and what makes a job of one. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "fs/content.h"
#include "fs/log.h"
#include "fs/ops_private.h"

void drop_open(fuse_req_t req, struct handle *handle, struct fuse_file_info *fi)
{
    struct daemon *daemon = daemon_of(req);

    handle->fd = drop_reopen(&daemon->drop, handle->node.id, fi->flags & ~O_APPEND);
    if (handle->fd < 0) {
        int code = handle->fd;
        handle_destroy(daemon, handle);
        fuse_reply_err(req, -code);
        return;
    }
    handle->dirty = handle->writable && (fi->flags & O_TRUNC) != 0;
    if (fuse_reply_open(req, fi) == -ENOENT) {
        handle_destroy(daemon, handle);
    }
}

/* Only root can: the files of other daemons all belong to whoever runs them. */
static void owner_give(struct daemon *daemon, int fd, struct viewer maker)
{
    if (geteuid() == 0 && maker.uid != daemon->config->uid &&
        fchown(fd, maker.uid, maker.gid) != 0) {
        log_line(LOG_LEVEL_WARNING, "prompts: a file of user %u stays ours: %s",
                 (unsigned)maker.uid, strerror(errno));
    }
}

/* Places in the queue for the jobs that the prompt of this name will be. */
static int places_hold(struct daemon *daemon, struct queue_hold *hold, size_t count,
                       const char *name, uid_t uid)
{
    struct error err = {0};
    int code = queue_hold_places(daemon->queue, hold, count, &err);

    if (code != 0) {
        events_add_error_of(&daemon->events, uid, "prompts: a file was refused", "prompts/%s: %s",
                            name, err.text);
    }
    return code;
}

/* A file without a place in the queue would stay behind, empty, when writing is refused: so the
 * place comes first. */
void drop_create(fuse_req_t req, const char *name, mode_t mode, struct fuse_file_info *fi)
{
    struct daemon *daemon = daemon_of(req);
    struct viewer maker = viewer_of(req);
    struct queue_hold hold = {0};
    struct fuse_entry_param entry;
    struct handle *handle = NULL;
    bool prompt = drop_name_is_prompt(name);
    int fd = -1, code = prompt ? places_hold(daemon, &hold, 1, name, maker.uid) : 0;

    if (code == 0) {
        fd = openat(daemon->drop.folder_fd, name,
                    (fi->flags & ~(O_APPEND | O_NOFOLLOW)) | O_CREAT | O_CLOEXEC,
                    (mode & 0777 & ~fuse_req_ctx(req)->umask) | 0600);
        code = fd < 0 ? -errno : 0;
    }
    if (code == 0) {
        owner_give(daemon, fd, maker);
        code = drop_entry(daemon, name, &entry);
    }
    if (code == 0) {
        handle = handle_create(req, node_of_ino(entry.ino), fi);
        if (handle == NULL) {
            drop_forget(&daemon->drop, node_of_ino(entry.ino).id, 1);
            code = -ENOMEM;
        }
    }
    if (code != 0) {
        queue_hold_nothing(daemon->queue, &hold);
        if (fd >= 0) {
            close(fd);
        }
        fuse_reply_err(req, -code);
        return;
    }
    handle->fd = fd;
    queue_hold_move(daemon->queue, &hold, &handle->hold);
    pthread_mutex_lock(&daemon->tree.lock);
    handle->placed = prompt ? 1 : 0;
    pthread_mutex_unlock(&daemon->tree.lock);
    if (fuse_reply_create(req, &entry, fi) == -ENOENT) {
        queue_hold_nothing(daemon->queue, &handle->hold);
        handle_destroy(daemon, handle);
    }
}

void drop_read(fuse_req_t req, struct handle *handle, size_t size, off_t offset)
{
    image_read(req, handle, size, offset);
}

/* ---- Making a job of a file. ---- */

static int content_read(int fd, struct text *content)
{
    char piece[8192];
    ssize_t got;

    /* A byte more than a prompt may have, so that it is refused and not cut. */
    while (content->length <= PROMPT_MAX_BYTES) {
        got = pread(fd, piece, sizeof piece, (off_t)content->length);
        if (got < 0 && errno != EINTR) {
            return -errno;
        }
        if (got == 0) {
            break;
        }
        text_add(content, piece, got > 0 ? (size_t)got : 0);
    }
    return content->failed ? -ENOMEM : 0;
}

static uint64_t content_digest(const struct text *content)
{
    return content_hash(content) >> 1; /* SQLite's integers are signed */
}

/* The same content again makes no second job while the first one lives or its image is there. */
static bool made_already(struct daemon *daemon, const char *name, uid_t writer, uint64_t digest)
{
    struct job_info info;
    uint64_t known;
    int64_t id;

    return queue_find_source(daemon->queue, name, &id, &known) && known == digest &&
           queue_find(daemon->queue, id, &info) && tree_replaces(&daemon->tree, writer, info.uid) &&
           (info.state == JOB_WAITING || info.state == JOB_RUNNING ||
            (info.state == JOB_DONE && info.has_image));
}

/* Whether it would be a job under this name. An empty file is no prompt yet. */
static bool is_new(struct daemon *daemon, const char *name, uid_t writer,
                   const struct text *content)
{
    return content->length > 0 && strspn(content->bytes, " \t\r\n") < content->length &&
           !made_already(daemon, name, writer, content_digest(content));
}

/* How many jobs it would be. */
static size_t content_jobs(struct daemon *daemon, const struct text *content)
{
    struct submission submission = {.bytes = content->bytes, .length = content->length};

    return content->length > 0 ? submission_count(daemon, &submission) : 1;
}

/* Submits what the open file holds under its name. */
static int file_submit(struct daemon *daemon, const char *name, int fd, const struct viewer *writer,
                       struct queue_hold *hold)
{
    struct text content = {0};
    struct submission submission;
    int64_t ids[PROMPT_MAX_COUNT];
    size_t count;
    struct error err = {0};
    int code = content_read(fd, &content);

    submission = (struct submission){
        .bytes = content.bytes,
        .length = content.length,
        .uid = writer->uid,
        .gid = writer->gid,
        .source = name,
        .source_digest = content_digest(&content),
    };
    if (code == 0 && fsync(fd) != 0) {
        code = -errno;
    }
    if (code != 0) {
        events_add_error_of(&daemon->events, writer->uid, "prompts: a file can't be read or kept",
                            "prompts/%s: %s: not painted; save it again", name, strerror(-code));
    } else if (is_new(daemon, name, writer->uid, &content)) {
        code = submission_accept(daemon, &submission, hold, ids, &count, &err);
    }
    content_finish(&content);
    return code;
}

static int handle_submit(struct daemon *daemon, struct handle *handle, struct queue_hold *hold)
{
    char name[256];
    bool dirty;
    int fd, code = 0;

    pthread_mutex_lock(&daemon->tree.lock);
    dirty = handle->dirty;
    handle->dirty = false;
    handle->refusal = 0; /* told already */
    handle->placed = 0;
    pthread_mutex_unlock(&daemon->tree.lock);
    if (!dirty || !drop_name_of(&daemon->drop, handle->fd, name) || !drop_name_is_prompt(name)) {
        return 0;
    }
    fd = openat(daemon->drop.folder_fd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd >= 0) {
        code = file_submit(daemon, name, fd, &handle->opener, hold);
        close(fd);
    }
    return code;
}

int drop_commit(struct daemon *daemon, struct handle *handle)
{
    struct queue_hold hold;
    int code;

    queue_hold_move(daemon->queue, &handle->hold, &hold);
    code = handle_submit(daemon, handle, &hold);
    queue_hold_nothing(daemon->queue, &hold);
    return code;
}

/* ---- Writing. ---- */

/* How many jobs the file will be, as far as can be told once these bytes are in it. */
static size_t jobs_after(struct daemon *daemon, const struct handle *handle, const char *bytes,
                         size_t size, size_t offset)
{
    int fd = drop_reopen(&daemon->drop, handle->node.id, O_RDONLY);
    struct text content = {0};
    size_t count = 1;

    if (fd >= 0 && content_read(fd, &content) == 0 && offset <= content.length) {
        size_t within = content.length - offset < size ? content.length - offset : size;

        if (within > 0) {
            memcpy(content.bytes + offset, bytes, within);
        }
        text_add(&content, bytes + within, size - within);
        count = content.failed ? 1 : content_jobs(daemon, &content);
    }
    if (fd >= 0) {
        close(fd);
    }
    content_finish(&content);
    return count;
}

/* Places for so many jobs, if the file's name is that of a prompt. */
static int places_want(struct daemon *daemon, struct handle *handle, size_t count)
{
    char name[256];
    bool named = drop_name_of(&daemon->drop, handle->fd, name), prompt;
    int code = 0;

    prompt = named && drop_name_is_prompt(name);
    if (prompt) {
        code = places_hold(daemon, &handle->hold, count, name, handle->opener.uid);
    }
    if (code == 0) {
        pthread_mutex_lock(&daemon->tree.lock);
        handle->placed = prompt ? count : SIZE_MAX;
        pthread_mutex_unlock(&daemon->tree.lock);
    }
    return code;
}

static void tell_no_room(struct daemon *daemon, const struct handle *handle, const char *why)
{
    char name[256];

    if (drop_name_of(&daemon->drop, handle->fd, name) && drop_name_is_prompt(name)) {
        events_add_error_of(&daemon->events, handle->opener.uid, "prompts: a file has no room",
                            "prompts/%s: %s", name, why);
    }
}

/* What will be needed at the close: room on the disk, and places from the first write on. */
static int room_hold(struct daemon *daemon, struct handle *handle, const char *bytes, size_t size,
                     off_t offset)
{
    off_t end = offset + (off_t)size;
    size_t length = end < PROMPT_MAX_BYTES ? (size_t)end : PROMPT_MAX_BYTES, count = 1, placed;
    struct error err = {0};
    int code;

    pthread_mutex_lock(&daemon->tree.lock);
    placed = handle->placed;
    code = handle->refusal;
    pthread_mutex_unlock(&daemon->tree.lock);
    if (code != 0) {
        return code;
    }
    if (placed != SIZE_MAX && end <= PROMPT_MAX_BYTES) {
        count = jobs_after(daemon, handle, bytes, size, (size_t)offset);
    }
    /* The folder is searched for the name: not with every write. */
    if (placed != SIZE_MAX && placed != count) {
        code = places_want(daemon, handle, count);
    }
    if (code == 0) {
        code =
            queue_hold_bytes(daemon->queue, &handle->hold, queue_push_bytes(count, length), &err);
        if (code != 0) {
            tell_no_room(daemon, handle, err.text);
        }
    }
    return code;
}

/* A prompt that could not be written whole is not what was meant: no more of it is taken, and
 * closing makes nothing of it. */
static void write_refuse(struct daemon *daemon, struct handle *handle, int code)
{
    pthread_mutex_lock(&daemon->tree.lock);
    if (handle->placed != SIZE_MAX) {
        handle->dirty = false;
        handle->refusal = code;
        handle->placed = 0;
    }
    pthread_mutex_unlock(&daemon->tree.lock);
    queue_hold_nothing(daemon->queue, &handle->hold);
}

void drop_write(fuse_req_t req, struct handle *handle, const char *bytes, size_t size, off_t offset)
{
    struct daemon *daemon = daemon_of(req);
    ssize_t written = -1;
    int code = room_hold(daemon, handle, bytes, size, offset);

    while (code == 0 && written < 0) {
        written = pwrite(handle->fd, bytes, size, offset);
        code = written < 0 && errno != EINTR ? -errno : 0;
        if (code != 0) {
            tell_no_room(daemon, handle, strerror(-code));
        }
    }
    if (code != 0) {
        write_refuse(daemon, handle, code);
        fuse_reply_err(req, -code);
        return;
    }
    pthread_mutex_lock(&daemon->tree.lock);
    handle->dirty = handle->refusal == 0; /* of another write meanwhile */
    pthread_mutex_unlock(&daemon->tree.lock);
    fuse_reply_write(req, (size_t)written);
}

/* ---- Names. ---- */

void drop_unlink(fuse_req_t req, const char *name)
{
    int code = unlinkat(daemon_of(req)->drop.folder_fd, name, 0) == 0 ? 0 : errno;

    fuse_reply_err(req, code);
}

/* How many jobs renaming a file makes: an editor may also give a prompt its name back. */
static size_t rename_jobs(struct daemon *daemon, const char *name, const char *new_name,
                          uid_t writer)
{
    int fd = openat(daemon->drop.folder_fd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    struct text content = {0};
    size_t count = 0;

    if (fd >= 0 && drop_name_is_prompt(new_name) && content_read(fd, &content) == 0 &&
        is_new(daemon, new_name, writer, &content)) {
        count = content_jobs(daemon, &content);
    }
    if (fd >= 0) {
        close(fd);
    }
    content_finish(&content);
    return count;
}

/* A file that gets the name of a prompt is one, and is made at once, as far as it is written. A
 * mistake in it can't undo the rename: it is told in status/error. */
void drop_rename(fuse_req_t req, const char *name, const char *new_name, unsigned flags)
{
    struct daemon *daemon = daemon_of(req);
    struct viewer writer = viewer_of(req);
    int folder = daemon->drop.folder_fd, fd;
    struct queue_hold hold = {0};
    size_t count = rename_jobs(daemon, name, new_name, writer.uid);
    int code = 0;

    if (count > 0) {
        code = places_hold(daemon, &hold, count, new_name, writer.uid);
    }
    if (code == 0 && renameat2(folder, name, folder, new_name, flags) != 0) {
        code = -errno;
    }
    if (code == 0 && drop_name_is_prompt(new_name)) {
        fd = openat(folder, new_name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
        if (fd >= 0) {
            file_submit(daemon, new_name, fd, &writer, &hold);
            close(fd);
        }
    }
    queue_hold_nothing(daemon->queue, &hold);
    fuse_reply_err(req, -code);
}
