/* SPDX-License-Identifier: MIT */
/* Open files and directories, as FUSE's `fh` points to them. */
#ifndef FLUXFS_FS_HANDLE_H
#define FLUXFS_FS_HANDLE_H

#define FUSE_USE_VERSION 312

#include <dirent.h>
#include <fuse_lowlevel.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "fs/daemon.h"
#include "fs/text.h"
#include "fs/threshold.h"

/* `new` keeps in `content` what was written and not yet taken, and answers from `reply`. Other
 * files keep in `content` the snapshot that reads see. */
struct handle {
    struct node node;
    uint64_t number; /* unlike that of any other handle */
    struct viewer opener;
    bool writable;
    int fd; /* of an image or a file of prompts/; else -1 */

    /* Guarded by the tree lock, all below. */
    struct handle *next, **place; /* in the watch's list */
    struct text content;
    uint64_t hash; /* of the snapshot */
    int64_t snapshot_ns, changed_ns;
    bool was_read;
    bool dirty;    /* prompts/: changed since the last submission */
    size_t placed; /* and so many places in the queue asked for; SIZE_MAX: it needs none */
    int refusal;   /* `new`, prompts/: an errno, negative: write() fails until close; or 0 */
    struct queue_hold hold; /* for what was written; the queue's */

    struct text reply;
    off_t reply_base;   /* the file offset of reply's first byte; -1: that of the next read */
    size_t reply_taken; /* bytes of reply that were read */

    uint64_t stream_base; /* events: the stream's offset that is offset 0 here */
    uint64_t stream_read; /* events: how far it was read */
    bool seeks;           /* events: the reader looks for the end itself, so there is one */

    struct fuse_pollhandle *poll;
    struct threshold threshold; /* status/vram: wake when memory in use passes it */
    bool above, crossed;
};

struct dir_handle {
    struct dir_handle *next, **place; /* guarded by the tree lock; in the watch's list */
    struct node node;
    struct viewer viewer;
    struct tree_listing listing;
    DIR *stream; /* prompts/ */
    off_t stream_offset;
    bool open;
};

/* Makes a handle for an open under way and stores it in fi->fh; NULL when memory is short. */
struct handle *handle_create(fuse_req_t req, struct node node, const struct fuse_file_info *fi);
void handle_destroy(struct daemon *daemon, struct handle *handle);
void dir_register(struct daemon *daemon, struct dir_handle *dir);
void dir_unregister(struct daemon *daemon, struct dir_handle *dir);
/* The snapshot of the handle with which this user opened the file less than a second ago, if any:
 * so that fstat after open tells the size that read will find. */
bool handle_recent(struct daemon *daemon, struct node node, uid_t uid, off_t *size,
                   int64_t *changed_ns);
/* Those still open when the session ends: the kernel's releases come late, and then not at all. */
void handles_destroy(struct daemon *daemon);

#endif
