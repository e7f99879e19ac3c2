/* SPDX-License-Identifier: MIT */
/* prompts/: the attributes of real files. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "fs/ops_private.h"

static void attr_show(struct daemon *daemon, int64_t id, struct stat *st)
{
    st->st_ino = node_ino((struct node){.kind = NODE_PROMPT, .id = id});
    /* What belongs to whoever runs us belongs to whoever mounts. */
    st->st_uid = st->st_uid == geteuid() ? daemon->config->uid : st->st_uid;
    st->st_gid = st->st_gid == getegid() ? daemon->config->gid : st->st_gid;
}

int drop_attr(struct daemon *daemon, struct node node, int fd, struct stat *st)
{
    if (fd < 0) {
        fd = drop_file_fd(&daemon->drop, node.id);
    }
    if (fd < 0) {
        return fd;
    }
    if (fstat(fd, st) != 0) {
        return -errno;
    }
    attr_show(daemon, node.id, st);
    return 0;
}

int drop_entry(struct daemon *daemon, const char *name, struct fuse_entry_param *entry)
{
    int64_t id;
    int code;

    *entry = (struct fuse_entry_param){
        .attr_timeout = PROMPT_TIMEOUT_S,
        .entry_timeout = PROMPT_TIMEOUT_S,
    };
    code = drop_lookup(&daemon->drop, name, &id, &entry->attr);
    if (code != 0) {
        return code;
    }
    attr_show(daemon, id, &entry->attr);
    entry->ino = entry->attr.st_ino;
    return 0;
}

static int times_change(const char *path, const struct stat *attr, int to_set)
{
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_nsec = UTIME_OMIT}};

    if ((to_set & FUSE_SET_ATTR_ATIME_NOW) != 0) {
        times[0].tv_nsec = UTIME_NOW;
    } else if ((to_set & FUSE_SET_ATTR_ATIME) != 0) {
        times[0] = attr->st_atim;
    }
    if ((to_set & FUSE_SET_ATTR_MTIME_NOW) != 0) {
        times[1].tv_nsec = UTIME_NOW;
    } else if ((to_set & FUSE_SET_ATTR_MTIME) != 0) {
        times[1] = attr->st_mtim;
    }
    return utimensat(AT_FDCWD, path, times, 0);
}

/* The kernel has checked that whoever asks may; whether we may is another matter. */
static int owner_change(struct daemon *daemon, struct node node, const char *path,
                        const struct stat *attr, int to_set)
{
    struct stat shown;
    int code = drop_attr(daemon, node, -1, &shown);
    uid_t uid = (uid_t)-1;
    gid_t gid = (gid_t)-1;

    if (code != 0) {
        return code;
    }
    if ((to_set & FUSE_SET_ATTR_UID) != 0 && attr->st_uid != shown.st_uid) {
        uid = attr->st_uid;
    }
    if ((to_set & FUSE_SET_ATTR_GID) != 0 && attr->st_gid != shown.st_gid) {
        gid = attr->st_gid;
    }
    if (uid == (uid_t)-1 && gid == (gid_t)-1) {
        return 0;
    }
    return chown(path, uid, gid) == 0 ? 0 : -errno;
}

static int attr_change(struct daemon *daemon, struct node node, const struct stat *attr, int to_set,
                       struct handle *handle)
{
    int fd = drop_file_fd(&daemon->drop, node.id), code;
    char path[64];

    if (fd < 0) {
        return fd;
    }
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    code = owner_change(daemon, node, path, attr, to_set);
    if (code != 0) {
        return code;
    }
    if ((to_set & FUSE_SET_ATTR_MODE) != 0 && chmod(path, attr->st_mode & 0777) != 0) {
        return -errno;
    }
    if ((to_set & FUSE_SET_ATTR_SIZE) != 0 && truncate(path, attr->st_size) != 0) {
        return -errno;
    }
    if ((to_set & (FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_ATIME_NOW |
                   FUSE_SET_ATTR_MTIME_NOW)) != 0 &&
        times_change(path, attr, to_set) != 0) {
        return -errno;
    }
    if (handle != NULL && (to_set & FUSE_SET_ATTR_SIZE) != 0) {
        pthread_mutex_lock(&daemon->tree.lock);
        handle->refusal = attr->st_size > 0 ? handle->refusal : 0; /* it may begin anew */
        handle->dirty = handle->refusal == 0;
        pthread_mutex_unlock(&daemon->tree.lock);
    }
    return 0;
}

void drop_setattr(fuse_req_t req, struct node node, const struct stat *attr, int to_set,
                  struct fuse_file_info *fi)
{
    struct daemon *daemon = daemon_of(req);
    struct handle *handle = fi != NULL ? handle_of(fi) : NULL;
    struct stat st;
    int code = attr_change(daemon, node, attr, to_set, handle);

    if (code == 0) {
        code = drop_attr(daemon, node, -1, &st);
    }
    if (code != 0) {
        fuse_reply_err(req, -code);
    } else {
        fuse_reply_attr(req, &st, PROMPT_TIMEOUT_S);
    }
}
