/* SPDX-License-Identifier: MIT */
/* Where links lead, and what rm, mv and the making of names mean in each directory. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "fs/ops_private.h"

void ops_readlink(fuse_req_t req, fuse_ino_t ino)
{
    struct daemon *daemon = daemon_of(req);
    struct node node = node_of_ino(ino);
    struct viewer viewer = viewer_of(req);
    struct gallery_image latest;
    struct job_info info;
    char name[QUEUE_NAME_BYTES], target[QUEUE_NAME_BYTES + 32];

    switch (node.kind) {
    case NODE_LATEST:
        if (tree_latest(&daemon->tree, &viewer, &latest)) {
            fuse_reply_readlink(req, latest.name);
            return;
        }
        break;
    case NODE_JOB_IMAGE:
        if (queue_find(daemon->queue, node.id, &info) &&
            tree_shows(&daemon->tree, &viewer, info.uid) &&
            queue_image(daemon->queue, node.id, name)) {
            snprintf(target, sizeof target, "../../images/%s", name);
            fuse_reply_readlink(req, target);
            return;
        }
        break;
    case NODE_QUEUE_LINK:
        snprintf(target, sizeof target, "../jobs/%lld", (long long)node.id);
        fuse_reply_readlink(req, target);
        return;
    default:
        fuse_reply_err(req, EINVAL);
        return;
    }
    fuse_reply_err(req, ENOENT);
}

/* The notifier's own unlink changes nothing: the image is gone already, or a newer one takes its
 * place, which then comes with the notifier's create. */
static int image_unlink(fuse_req_t req, const char *name)
{
    struct daemon *daemon = daemon_of(req);
    struct gallery_image image;
    struct error err;
    int code;

    if (fuse_req_ctx(req)->pid == daemon->tree.notifier_pid) {
        if (gallery_find(daemon->gallery, name, &image)) {
            tree_announce(&daemon->tree, name, ANNOUNCE_HIDDEN);
        }
        return 0;
    }
    if (strcmp(name, GALLERY_LATEST) == 0) {
        return -EPERM;
    }
    code = daemon_remove_image(daemon, name, &err);
    if (code != 0) {
        events_add_error_of(&daemon->events, fuse_req_ctx(req)->uid, "images: rm was refused",
                            "images/%s: %s", name, err.text);
    }
    return code;
}

void ops_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct daemon *daemon = daemon_of(req);
    struct error err;
    int code;

    switch (node_of_ino(parent).kind) {
    case NODE_PROMPTS:
        drop_unlink(req, name);
        return;
    case NODE_IMAGES:
        code = image_unlink(req, name);
        break;
    case NODE_QUEUE:
        code = queue_cancel(daemon->queue, tree_queue_job(name), &err);
        break;
    default:
        code = -EPERM;
    }
    fuse_reply_err(req, -code);
}

/* Nothing else is made here; without these the kernel would say that it can't be done at all. */

void ops_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
    fuse_reply_err(req, EPERM);
}

void ops_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t device)
{
    fuse_reply_err(req, EPERM);
}

void ops_symlink(fuse_req_t req, const char *link, fuse_ino_t parent, const char *name)
{
    fuse_reply_err(req, EPERM);
}

void ops_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t parent, const char *name)
{
    fuse_reply_err(req, EPERM);
}

void ops_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct daemon *daemon = daemon_of(req);
    struct viewer viewer = viewer_of(req);
    struct node node;
    struct error err;
    int code = -EPERM;

    /* rmdir jobs/17 forgets a job that has ended. */
    if (node_of_ino(parent).kind == NODE_JOBS) {
        code = tree_lookup(&daemon->tree, node_of_ino(parent), name, &viewer, &node);
        if (code == 0) {
            code = daemon_forget_job(daemon, node.id, &err);
        }
    }
    fuse_reply_err(req, -code);
}

/* mv queue/003-21 queue/001 puts job 21 in place 1; so does a new name 001-anything. Running jobs
 * come first in queue/ and keep their places. */
static int queue_rename(struct daemon *daemon, const char *name, const char *new_name)
{
    long place = tree_queue_place(new_name);
    struct queue_counts counts;
    struct error err;
    size_t running;

    if (place < 0) {
        events_add_error(&daemon->events,
                         "queue/%.64s: the new name must begin with a place, such as 000",
                         new_name);
        return -EINVAL;
    }
    tree_forget_listing(&daemon->tree);
    queue_counts(daemon->queue, &counts);
    running = counts.state[JOB_RUNNING];
    return queue_move(daemon->queue, tree_queue_job(name),
                      (size_t)place > running ? (size_t)place - running : 0, &err);
}

void ops_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t new_parent,
                const char *new_name, unsigned flags)
{
    struct daemon *daemon = daemon_of(req);
    enum node_kind from = node_of_ino(parent).kind, to = node_of_ino(new_parent).kind;

    if (from == NODE_PROMPTS && to == NODE_PROMPTS) {
        drop_rename(req, name, new_name, flags);
    } else if (from != to && (from == NODE_PROMPTS || to == NODE_PROMPTS)) {
        fuse_reply_err(req, EXDEV); /* mv then copies */
    } else if (from == NODE_QUEUE && to == NODE_QUEUE && (flags & ~1U) == 0) {
        fuse_reply_err(req, -queue_rename(daemon, name, new_name));
    } else {
        fuse_reply_err(req, EPERM);
    }
}

/* Only the notifier creates in images/, to show a finished image. */
static void image_create(fuse_req_t req, const char *name, struct fuse_file_info *fi)
{
    struct daemon *daemon = daemon_of(req);
    struct fuse_entry_param entry;
    struct gallery_image image;
    struct handle *handle;
    struct node node;

    if (fuse_req_ctx(req)->pid != daemon->tree.notifier_pid ||
        !gallery_find(daemon->gallery, name, &image)) {
        fuse_reply_err(req, EPERM);
        return;
    }
    tree_announce(&daemon->tree, name, ANNOUNCE_NONE);
    node = (struct node){.kind = NODE_IMAGE, .id = (int64_t)image.serial};
    handle = handle_create(req, node, fi);
    if (handle == NULL || entry_fill(req, node, &image, &entry) != 0) {
        handle_destroy(daemon, handle);
        fuse_reply_err(req, ENOMEM);
        return;
    }
    fi->keep_cache = 1;
    if (fuse_reply_create(req, &entry, fi) == -ENOENT) {
        handle_destroy(daemon, handle);
    }
}

void ops_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
                struct fuse_file_info *fi)
{
    switch (node_of_ino(parent).kind) {
    case NODE_PROMPTS:
        drop_create(req, name, mode, fi);
        break;
    case NODE_IMAGES:
        image_create(req, name, fi);
        break;
    default:
        fuse_reply_err(req, EPERM);
    }
}
