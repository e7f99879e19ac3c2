/* SPDX-License-Identifier: MIT */
#include "fs/ops.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "fs/ops_private.h"

/* Handlers may wait for the disk, so there are more threads than cores; idle ones go. */
enum { MAX_THREADS = 32, IDLE_THREADS = 8 };

static void ops_init(void *userdata, struct fuse_conn_info *conn)
{
    struct daemon *daemon = userdata;

    /* Write-back caching would tell us of writes after close. */
    conn->want &= ~(unsigned)FUSE_CAP_WRITEBACK_CACHE;
    /* Attributes always come with the names: left to choose, the kernel would ask for those of
     * every other page of `ls -l` file by file. */
    conn->want |= conn->capable & FUSE_CAP_READDIRPLUS;
    conn->want &= ~(unsigned)FUSE_CAP_READDIRPLUS_AUTO;
    /* O_TRUNC comes with open, and not as a truncation of its own before it. */
    conn->want |= conn->capable & FUSE_CAP_ATOMIC_O_TRUNC;
    daemon->mounted(daemon->owner);
}

static void ops_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct daemon *daemon = daemon_of(req);
    struct node dir = node_of_ino(parent), node;
    struct fuse_entry_param entry;
    int code;

    if (dir.kind == NODE_PROMPTS) {
        code = drop_entry(daemon, name, &entry);
    } else {
        struct viewer viewer = viewer_of(req);
        code = tree_lookup(&daemon->tree, dir, name, &viewer, &node);
        if (code == 0) {
            code = entry_fill(req, node, NULL, &entry);
        }
    }
    if (code != 0) {
        fuse_reply_err(req, -code);
    } else {
        fuse_reply_entry(req, &entry);
    }
}

static void forget(struct daemon *daemon, fuse_ino_t ino, uint64_t lookups)
{
    struct node node = node_of_ino(ino);

    if (node.kind == NODE_PROMPT) {
        drop_forget(&daemon->drop, node.id, lookups);
    }
}

static void ops_forget(fuse_req_t req, fuse_ino_t ino, uint64_t lookups)
{
    forget(daemon_of(req), ino, lookups);
    fuse_reply_none(req);
}

static void ops_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
    for (size_t i = 0; i < count; i++) {
        forget(daemon_of(req), forgets[i].ino, forgets[i].nlookup);
    }
    fuse_reply_none(req);
}

/* Whether the file's mode allows what open asks; the kernel checks owners, but root may all. */
static int open_check(struct node node, int flags)
{
    mode_t mode = node_mode(node);
    bool reads = (flags & O_ACCMODE) != O_WRONLY, writes = (flags & O_ACCMODE) != O_RDONLY;

    if (writes && (mode & 0222) == 0) {
        return -EACCES;
    }
    return reads && (mode & 0444) == 0 ? -EACCES : 0;
}

static void ops_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct node node = node_of_ino(ino);
    struct handle *handle;
    int code = open_check(node, fi->flags);

    if (code != 0) {
        fuse_reply_err(req, -code);
        return;
    }
    handle = handle_create(req, node, fi);
    if (handle == NULL) {
        fuse_reply_err(req, ENOMEM);
        return;
    }
    switch (node.kind) {
    case NODE_NEW:
        fi->direct_io = 1;
        if (fuse_reply_open(req, fi) == -ENOENT) {
            handle_destroy(daemon_of(req), handle);
        }
        break;
    case NODE_IMAGE:
        image_open(req, handle, fi);
        break;
    case NODE_PROMPT:
        drop_open(req, handle, fi);
        break;
    default:
        file_open(req, handle, fi);
    }
}

static void ops_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                     struct fuse_file_info *fi)
{
    struct handle *handle = handle_of(fi);

    switch (handle->node.kind) {
    case NODE_NEW:
        new_read(req, handle, size, offset);
        break;
    case NODE_IMAGE:
        image_read(req, handle, size, offset);
        break;
    case NODE_PROMPT:
        drop_read(req, handle, size, offset);
        break;
    default:
        if (node_blocks(handle->node)) {
            blocking_read(req, handle, size, offset, (fi->flags & O_NONBLOCK) != 0);
        } else {
            file_read(req, handle, size, offset);
        }
    }
}

static void ops_write(fuse_req_t req, fuse_ino_t ino, const char *bytes, size_t size, off_t offset,
                      struct fuse_file_info *fi)
{
    struct handle *handle = handle_of(fi);

    switch (handle->node.kind) {
    case NODE_NEW:
        new_write(req, handle, bytes, size);
        break;
    case NODE_PROMPT:
        drop_write(req, handle, bytes, size, offset);
        break;
    case NODE_IMAGE:
        fuse_reply_err(req, EPERM);
        break;
    default:
        file_write(req, handle, bytes, size);
    }
}

/* Submits what was written and not yet taken. */
static int commit(struct daemon *daemon, struct handle *handle)
{
    switch (handle->node.kind) {
    case NODE_NEW:
        return new_commit(daemon, handle);
    case NODE_PROMPT:
        return handle->writable ? drop_commit(daemon, handle) : 0;
    default:
        return 0;
    }
}

/* A process that only inherited the file closes it without meaning that the prompt is whole. */
static void ops_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct handle *handle = handle_of(fi);
    int code = 0;

    if (same_process(handle->opener.pid, fuse_req_ctx(req)->pid)) {
        code = commit(daemon_of(req), handle);
    }
    fuse_reply_err(req, -code);
}

static void ops_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
    struct handle *handle = handle_of(fi);
    int code = 0;

    if (handle->node.kind == NODE_NEW) {
        code = commit(daemon_of(req), handle);
    } else if (handle->node.kind == NODE_PROMPT) {
        code = fsync(handle->fd) == 0 ? 0 : -errno;
    }
    fuse_reply_err(req, -code);
}

static void ops_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
    struct daemon *daemon = daemon_of(req);
    int code = 0;

    if (node_of_ino(ino).kind == NODE_PROMPTS) {
        code = fsync(daemon->drop.folder_fd) == 0 ? 0 : errno;
    }
    fuse_reply_err(req, code);
}

static void ops_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct handle *handle = handle_of(fi);

    commit(daemon_of(req), handle); /* its errors reach nobody but status/error */
    handle_destroy(daemon_of(req), handle);
    fuse_reply_err(req, 0);
}

static void ops_statfs(fuse_req_t req, fuse_ino_t ino)
{
    struct statvfs statvfs;

    if (fstatvfs(daemon_of(req)->drop.folder_fd, &statvfs) != 0) {
        fuse_reply_err(req, errno);
        return;
    }
    statvfs.f_namemax = 255;
    fuse_reply_statfs(req, &statvfs);
}

static const struct fuse_lowlevel_ops ops = {
    .init = ops_init,
    .lookup = ops_lookup,
    .forget = ops_forget,
    .forget_multi = ops_forget_multi,
    .getattr = ops_getattr,
    .setattr = ops_setattr,
    .readlink = ops_readlink,
    .mknod = ops_mknod,
    .mkdir = ops_mkdir,
    .symlink = ops_symlink,
    .link = ops_link,
    .unlink = ops_unlink,
    .rmdir = ops_rmdir,
    .rename = ops_rename,
    .create = ops_create,
    .open = ops_open,
    .read = ops_read,
    .write = ops_write,
    .flush = ops_flush,
    .fsync = ops_fsync,
    .fsyncdir = ops_fsyncdir,
    .release = ops_release,
    .opendir = ops_opendir,
    .readdir = ops_readdir,
    .readdirplus = ops_readdirplus,
    .releasedir = ops_releasedir,
    .statfs = ops_statfs,
    .poll = ops_poll,
};

/* fuse_opt takes a comma for the end of an option unless it is escaped. */
static void source_escape(char *to, size_t size, const char *source)
{
    size_t used = 0;

    for (; *source != '\0' && used + 3 < size; source++) {
        if (*source == ',' || *source == '\\') {
            to[used++] = '\\';
        }
        to[used++] = *source;
    }
    to[used] = '\0';
}

int ops_session_create(struct daemon *daemon, struct error *err)
{
    const struct config *config = daemon->config;
    char source[4096], options[4608];
    char program[] = "fluxfs", dash_o[] = "-o";
    char *argv[] = {program, dash_o, options, NULL};
    struct fuse_args args = FUSE_ARGS_INIT(3, argv);

    source_escape(source, sizeof source, config->source);
    snprintf(options, sizeof options, "fsname=%s,subtype=fluxfs,default_permissions%s%s", source,
             config->allow_other ? ",allow_other" : "", config->noexec ? ",noexec" : "");
    daemon->session = fuse_session_new(&args, &ops, sizeof ops, daemon);
    fuse_opt_free_args(&args);
    if (daemon->session == NULL) {
        return error_set(err, EINVAL, "libfuse refuses the options %.150s", options);
    }
    return 0;
}

int ops_session_run(struct daemon *daemon, struct error *err)
{
    struct fuse_loop_config *loop = fuse_loop_cfg_create();
    int code;

    if (loop == NULL) {
        return error_set(err, ENOMEM, "no memory for the session");
    }
    fuse_loop_cfg_set_max_threads(loop, MAX_THREADS);
    fuse_loop_cfg_set_idle_threads(loop, IDLE_THREADS);
    fuse_loop_cfg_set_clone_fd(loop, 0);
    code = fuse_session_loop_mt(daemon->session, loop);
    fuse_loop_cfg_destroy(loop);
    return code >= 0 ? 0 : error_set(err, -code, "serving requests: %s", strerror(-code));
}
