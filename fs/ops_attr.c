/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "fs/content.h"
#include "fs/ops_private.h"

static struct timespec timespec_of(int64_t ns)
{
    return (struct timespec){ns / 1000000000, ns % 1000000000};
}

static void times_set(struct stat *st, int64_t ns)
{
    st->st_atim = st->st_mtim = st->st_ctim = timespec_of(ns);
}

static void size_set(struct stat *st, uint64_t bytes)
{
    st->st_size = (off_t)bytes;
    st->st_blocks = (blkcnt_t)((bytes + 511) / 512);
}

/* Owner and permissions of what belongs to a job: whoever wrote the prompt sees its words, others
 * only where the mount isn't shared, or says they may. */
static void owner_set(struct daemon *daemon, const struct job_info *info, struct node node,
                      struct stat *st)
{
    const struct config *config = daemon->config;

    st->st_uid = info->uid;
    if ((config->read_prompts || !config->allow_other) && (st->st_mode & 0440) == 0440 &&
        !(node.kind == NODE_JOB_FILE && node.part == JOB_FILE_CTL)) {
        st->st_mode |= 0444;
    }
}

/* Readers that come often spare the question how large a file is, which opening asks first. (error
 * differs from user to user, and events grows.) */
static bool attr_cached(struct node node)
{
    return node.kind == NODE_STATUS_FILE && node.part != STATUS_ERROR && node.part != STATUS_EVENTS;
}

void attr_follow(struct daemon *daemon, struct node node, int64_t changed_ns)
{
    int64_t given_ns;

    if (!attr_cached(node)) {
        return;
    }
    given_ns = atomic_load(&daemon->given_ns[node.part]);
    if (given_ns != GIVEN_NONE && given_ns != changed_ns) {
        atomic_store(&daemon->given_ns[node.part], GIVEN_NONE);
        /* Attributes only, which needs no lock that opening or reading holds; an answer under way
         * is outdated by this. */
        fuse_lowlevel_notify_inval_inode(daemon->session, node_ino(node), -1, 0);
    }
}

static int generated_attr(struct daemon *daemon, struct node node, const struct viewer *viewer,
                          struct stat *st)
{
    struct text text = {0};
    int64_t changed_ns, some = GIVEN_SOME;
    off_t size;
    int code = 0;

    if (attr_cached(node)) {
        atomic_store(&daemon->given_ns[node.part], GIVEN_SOME);
    }
    if (handle_recent(daemon, node, viewer->uid, &size, &changed_ns)) {
        size_set(st, (uint64_t)size);
    } else {
        code = file_render(daemon, node, viewer, &text, &changed_ns);
        size_set(st, text.length);
        content_finish(&text);
    }
    if (attr_cached(node) &&
        !atomic_compare_exchange_strong(&daemon->given_ns[node.part], &some, changed_ns) &&
        some != GIVEN_NONE && some != changed_ns) {
        /* Another answer is on its way, of other content, and may come before or after. */
        atomic_store(&daemon->given_ns[node.part], GIVEN_SOME);
    }
    times_set(st, changed_ns);
    return code;
}

static int image_attr(struct daemon *daemon, struct node node, const struct gallery_image *image,
                      struct stat *st)
{
    struct gallery_image found;
    struct job_info info;

    if (image == NULL) {
        if (node.id == 0) { /* a ghost */
            return 0;
        }
        if (!tree_image(&daemon->tree, node.id, &found)) {
            return -ENOENT;
        }
        image = &found;
    }
    size_set(st, image->bytes);
    st->st_blocks = (blkcnt_t)(image->disk_bytes / 512);
    st->st_mode |= image->pinned ? S_ISVTX : 0;
    times_set(st, image->mtime_ns);
    if (!daemon->config->allow_other) {
        st->st_mode |= 0444; /* nobody else gets here, so whose it is makes no difference */
    } else if (queue_find_image(daemon->queue, image->name, &info)) {
        owner_set(daemon, &info, node, st);
    }
    return 0;
}

static int job_attr(struct daemon *daemon, struct node node, const struct viewer *viewer,
                    struct stat *st)
{
    struct job_info info;
    int code = 0;

    if (!queue_find(daemon->queue, node.id, &info)) {
        return -ENOENT;
    }
    if (node.kind == NODE_JOB_FILE) {
        code = generated_attr(daemon, node, viewer, st);
    } else {
        st->st_nlink = 2;
        size_set(st, 4096);
        times_set(st, info.changed_ns);
    }
    owner_set(daemon, &info, node, st);
    return code;
}

static int link_attr(struct daemon *daemon, struct node node, const struct viewer *viewer,
                     struct stat *st)
{
    struct gallery_image latest;
    struct job_info info;
    char name[QUEUE_NAME_BYTES];

    if (node.kind == NODE_LATEST) {
        if (!tree_latest(&daemon->tree, viewer, &latest)) {
            return -ENOENT;
        }
        size_set(st, strlen(latest.name));
        times_set(st, latest.mtime_ns);
    } else if (node.kind == NODE_JOB_IMAGE) {
        if (!queue_image(daemon->queue, node.id, name)) {
            return -ENOENT;
        }
        size_set(st, strlen("../../images/") + strlen(name));
    } else if (queue_rank(daemon->queue, node.id) >= 0) {
        size_set(st, (uint64_t)snprintf(NULL, 0, "../jobs/%lld", (long long)node.id));
    } else {
        return -ENOENT;
    }
    if (node.id != 0 && queue_find(daemon->queue, node.id, &info)) {
        times_set(st, info.changed_ns);
        st->st_uid = info.uid;
    }
    return 0;
}

static void directory_attr(struct daemon *daemon, struct node node, struct stat *st)
{
    st->st_nlink = 2;
    size_set(st, 4096);
    switch (node.kind) {
    case NODE_IMAGES:
        times_set(st, atomic_load(&daemon->images_changed_ns));
        break;
    case NODE_JOBS:
        times_set(st, atomic_load(&daemon->jobs_changed_ns));
        break;
    case NODE_QUEUE:
        times_set(st, atomic_load(&daemon->queue_changed_ns));
        break;
    case NODE_PROMPTS: {
        struct stat folder;
        if (fstat(daemon->drop.folder_fd, &folder) == 0) {
            st->st_mtim = folder.st_mtim;
            st->st_ctim = folder.st_ctim;
        }
        /* Where several users have files, nobody takes away another's. */
        st->st_mode |= daemon->config->allow_other ? S_ISVTX : 0;
        break;
    }
    default:
        break;
    }
}

int attr_fill(fuse_req_t req, struct node node, const struct gallery_image *image, struct stat *st)
{
    struct daemon *daemon = daemon_of(req);
    struct viewer viewer = viewer_of(req);
    const struct config *config = daemon->config;
    int code = 0;

    *st = (struct stat){
        .st_ino = node_ino(node),
        .st_mode = node_mode(node),
        .st_nlink = 1,
        .st_uid = config->uid,
        .st_gid = config->gid,
        .st_blksize = 4096,
    };
    times_set(st, daemon->status.started_ns);
    switch (node.kind) {
    case NODE_IMAGE:
        code = image_attr(daemon, node, image, st);
        break;
    case NODE_JOB:
    case NODE_JOB_FILE:
        code = job_attr(daemon, node, &viewer, st);
        break;
    case NODE_LATEST:
    case NODE_JOB_IMAGE:
    case NODE_QUEUE_LINK:
        return link_attr(daemon, node, &viewer, st);
    case NODE_PROMPT:
        return drop_attr(daemon, node, -1, st);
    case NODE_README:
    case NODE_STATUS_FILE:
    case NODE_CONTROL_FILE:
        code = generated_attr(daemon, node, &viewer, st);
        break;
    case NODE_NEW:
        break;
    case NODE_NONE:
        return -ENOENT;
    default:
        if (!node_is_directory(node)) {
            return -ENOENT;
        }
        directory_attr(daemon, node, st);
    }
    st->st_mode &= ~(config->umask & 0777);
    return code;
}

double attr_timeout(struct node node)
{
    switch (node.kind) {
    case NODE_ROOT: /* on the way to every file, which saves the kernel a question each */
    case NODE_STATUS:
    case NODE_CONTROL:
    case NODE_NEW:
    case NODE_README:
    case NODE_IMAGE:
        return LONG_TIMEOUT_S;
    case NODE_PROMPT:
        return PROMPT_TIMEOUT_S;
    case NODE_PROMPTS: /* asked at each step into them, of which ls -l takes many; the watch tells
                        */
    case NODE_IMAGES:  /* the kernel when they have changed */
    case NODE_JOBS:
    case NODE_QUEUE:
        return FOLDER_TIMEOUT_S;
    case NODE_STATUS_FILE:
        return attr_cached(node) ? STATUS_TIMEOUT_S : 0;
    default:
        return 0;
    }
}

/* How long the kernel may take the name for granted. */
static double entry_timeout(struct node node)
{
    switch (node.kind) {
    case NODE_QUEUE_LINK:
    case NODE_JOB_IMAGE:
    case NODE_LATEST:
        return 0;
    case NODE_PROMPT:
        return PROMPT_TIMEOUT_S;
    case NODE_IMAGE:
        return node.id == 0 ? 0 : LONG_TIMEOUT_S;
    default:
        return LONG_TIMEOUT_S;
    }
}

int entry_fill(fuse_req_t req, struct node node, const struct gallery_image *image,
               struct fuse_entry_param *entry)
{
    *entry = (struct fuse_entry_param){
        .ino = node_ino(node),
        .attr_timeout = attr_timeout(node),
        .entry_timeout = entry_timeout(node),
    };
    return attr_fill(req, node, image, &entry->attr);
}

void ops_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct daemon *daemon = daemon_of(req);
    struct node node = node_of_ino(ino);
    struct handle *handle = fi != NULL ? handle_of(fi) : NULL;
    struct stat st;
    int code;

    if (node.kind == NODE_PROMPT) {
        code = drop_attr(daemon, node, handle != NULL ? handle->fd : -1, &st);
    } else {
        code = attr_fill(req, node, NULL, &st);
    }
    /* The kernel asks with a file for one purpose only: lseek to the end. Whoever does this on the
     * event stream reads to an end and comes back (tail), so it gets one. */
    if (code == 0 && handle != NULL && node.kind == NODE_STATUS_FILE &&
        node.part == STATUS_EVENTS) {
        uint64_t start, end;
        int64_t changed_ns;
        events_range(&daemon->events, &start, &end, &changed_ns);
        pthread_mutex_lock(&daemon->tree.lock);
        handle->seeks = true;
        size_set(&st, end - handle->stream_base);
        pthread_mutex_unlock(&daemon->tree.lock);
    }
    if (code != 0) {
        fuse_reply_err(req, -code);
    } else {
        fuse_reply_attr(req, &st, attr_timeout(node));
    }
}

/* Pins an image (chmod +t), or takes the pin off; other modes stay as they are. */
static int image_pin(struct daemon *daemon, struct node node, mode_t mode)
{
    struct gallery_image image;
    struct error err;
    bool pinned = (mode & S_ISVTX) != 0;

    if (!tree_image(&daemon->tree, node.id, &image)) {
        return -ENOENT;
    }
    return image.pinned == pinned ? 0 : gallery_pin(daemon->gallery, image.name, pinned, &err);
}

void ops_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set,
                 struct fuse_file_info *fi)
{
    struct daemon *daemon = daemon_of(req);
    struct node node = node_of_ino(ino);
    mode_t mode = node_mode(node);
    struct stat st;
    int code = 0;

    if (node.kind == NODE_PROMPT) {
        drop_setattr(req, node, attr, to_set, fi);
        return;
    }
    /* What programs do to files they write (truncate, chmod, utimens) succeeds and does nothing;
     * nothing here ever has another size than it has. */
    if ((to_set & FUSE_SET_ATTR_SIZE) != 0 && (mode & 0222) == 0) {
        code = -EACCES;
    } else if ((to_set & FUSE_SET_ATTR_SIZE) != 0 && node.kind == NODE_IMAGE) {
        code = -EPERM;
    } else if ((to_set & FUSE_SET_ATTR_SIZE) != 0 && node.kind == NODE_NEW && fi != NULL) {
        new_truncate(daemon, handle_of(fi));
    } else if ((to_set & FUSE_SET_ATTR_MODE) != 0 && node.kind == NODE_IMAGE) {
        code = image_pin(daemon, node, attr->st_mode);
    }
    if (code == 0) {
        code = attr_fill(req, node, NULL, &st);
    }
    if (code != 0) {
        fuse_reply_err(req, -code);
    } else {
        fuse_reply_attr(req, &st, attr_timeout(node));
    }
}
