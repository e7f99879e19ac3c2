/* SPDX-License-Identifier: MIT */
/* What the files ops_*.c share. */
#ifndef FLUXFS_FS_OPS_PRIVATE_H
#define FLUXFS_FS_OPS_PRIVATE_H

#include "fs/handle.h"

/* Names and attributes of immutable things are the kernel's to keep. */
#define LONG_TIMEOUT_S 3600.0
#define PROMPT_TIMEOUT_S 1.0
#define FOLDER_TIMEOUT_S 0.1
#define STATUS_TIMEOUT_S 0.01

enum { GIVEN_NONE = 0, GIVEN_SOME = -1 };

static inline struct daemon *daemon_of(fuse_req_t req)
{
    return fuse_req_userdata(req);
}

static inline struct viewer viewer_of(fuse_req_t req)
{
    const struct fuse_ctx *ctx = fuse_req_ctx(req);

    return (struct viewer){ctx->pid, ctx->uid, ctx->gid};
}

static inline struct handle *handle_of(const struct fuse_file_info *fi)
{
    return (struct handle *)(uintptr_t)fi->fh;
}

/* ---- ops_attr.c ---- */

/* Fills in everything, as whoever asks may see it. `image`, if the caller has it already, spares a
 * search. Failure: ENOENT, ENOMEM, or the disk's errno. */
int attr_fill(fuse_req_t req, struct node node, const struct gallery_image *image, struct stat *st);
/* The entry for a node: its attributes, and how long the kernel may keep what. */
int entry_fill(fuse_req_t req, struct node node, const struct gallery_image *image,
               struct fuse_entry_param *entry);
double attr_timeout(struct node node);
/* Before an answer with this content: the kernel must not go on with attributes of another. */
void attr_follow(struct daemon *daemon, struct node node, int64_t changed_ns);
void ops_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void ops_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set,
                 struct fuse_file_info *fi);

/* ---- ops_dir.c ---- */
void ops_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void ops_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                 struct fuse_file_info *fi);
void ops_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                     struct fuse_file_info *fi);
void ops_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);

void dir_destroy(struct daemon *daemon, struct dir_handle *dir);

/* ---- ops_file.c: generated files ---- */

/* Renders a file of status/, control/ or jobs/ or the README. Failure: as attr_fill. */
int file_render(struct daemon *daemon, struct node node, const struct viewer *viewer,
                struct text *text, int64_t *changed_ns);
void handle_reply(fuse_req_t req, const struct text *content, size_t size, off_t offset);
void file_open(fuse_req_t req, struct handle *handle, struct fuse_file_info *fi);
void file_read(fuse_req_t req, struct handle *handle, size_t size, off_t offset);
void file_write(fuse_req_t req, struct handle *handle, const char *bytes, size_t size);

/* ---- ops_new.c ---- */
void new_read(fuse_req_t req, struct handle *handle, size_t size, off_t offset);
void new_write(fuse_req_t req, struct handle *handle, const char *bytes, size_t size);
void new_truncate(struct daemon *daemon, struct handle *handle);
/* At close and fsync; returns 0 or a negative errno. */
int new_commit(struct daemon *daemon, struct handle *handle);
bool same_process(pid_t opener, pid_t other);

/* ---- ops_image.c ---- */
void image_open(fuse_req_t req, struct handle *handle, struct fuse_file_info *fi);
void image_read(fuse_req_t req, struct handle *handle, size_t size, off_t offset);

/* ---- ops_name.c: links, and changes of names ---- */
void ops_readlink(fuse_req_t req, fuse_ino_t ino);
void ops_unlink(fuse_req_t req, fuse_ino_t parent, const char *name);
void ops_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t new_parent,
                const char *new_name, unsigned flags);
void ops_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
                struct fuse_file_info *fi);
void ops_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode);
void ops_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t device);
void ops_symlink(fuse_req_t req, const char *link, fuse_ino_t parent, const char *name);
void ops_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t parent, const char *name);
void ops_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name);

/* ---- ops_drop_attr.c: prompts/ ---- */
int drop_attr(struct daemon *daemon, struct node node, int fd, struct stat *st);
int drop_entry(struct daemon *daemon, const char *name, struct fuse_entry_param *entry);
void drop_setattr(fuse_req_t req, struct node node, const struct stat *attr, int to_set,
                  struct fuse_file_info *fi);

/* ---- ops_drop.c: likewise ---- */
void drop_open(fuse_req_t req, struct handle *handle, struct fuse_file_info *fi);
void drop_create(fuse_req_t req, const char *name, mode_t mode, struct fuse_file_info *fi);
void drop_read(fuse_req_t req, struct handle *handle, size_t size, off_t offset);
void drop_write(fuse_req_t req, struct handle *handle, const char *bytes, size_t size,
                off_t offset);
int drop_commit(struct daemon *daemon, struct handle *handle);
void drop_unlink(fuse_req_t req, const char *name);
void drop_rename(fuse_req_t req, const char *name, const char *new_name, unsigned flags);

/* ---- ops_wait.c ---- */

/* Reads that answer when something has happened: events, and jobs/<id>/wait. */
void blocking_read(fuse_req_t req, struct handle *handle, size_t size, off_t offset,
                   bool nonblocking);
/* ---- ops_watch.c ---- */
void ops_poll(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi,
              struct fuse_pollhandle *poll);
int watch_threshold(struct daemon *daemon, struct handle *handle, const char *bytes, size_t size,
                    struct error *err);

#endif
