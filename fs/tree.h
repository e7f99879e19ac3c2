/* SPDX-License-Identifier: MIT */
/*
 * The tree that is mounted: which names there are, and the inode number of each. Knows nothing of
 * FUSE, and of contents only which file is which.
 *
 * Inode numbers are made of a node's kind, part and id, so no table of them is kept; only the files
 * of prompts/ (fs/drop.h) have numbers handed out one by one.
 */
#ifndef FLUXFS_FS_TREE_H
#define FLUXFS_FS_TREE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "fs/gallery.h"
#include "fs/queue.h"

enum node_kind {
    NODE_NONE,
    NODE_ROOT, /* is inode 1 */
    NODE_NEW,
    NODE_README,
    NODE_PROMPTS, /* directories */
    NODE_IMAGES,
    NODE_JOBS,
    NODE_QUEUE,
    NODE_STATUS,
    NODE_CONTROL,
    NODE_STATUS_FILE,  /* part: enum status_file */
    NODE_CONTROL_FILE, /* part: enum control_key (fs/control.h) */
    NODE_LATEST,       /* images/latest.png, a link */
    NODE_IMAGE,        /* id: the serial of the gallery */
    NODE_JOB,          /* id: the job; a directory */
    NODE_JOB_FILE,     /* id: the job, part: enum job_file */
    NODE_JOB_IMAGE,    /* id: the job; jobs/<id>/image.png, a link */
    NODE_QUEUE_LINK,   /* id: the job, part: the place that the name speaks of */
    NODE_PROMPT,       /* id: handed out by fs/drop.h; a file of prompts/ */
};

enum status_file {
    STATUS_PROGRESS,
    STATUS_VRAM,
    STATUS_FRAGMENTATION,
    STATUS_TIMING,
    STATUS_QUEUE,
    STATUS_DEVICE,
    STATUS_HEALTH,
    STATUS_MEMORY,
    STATUS_ERROR,
    STATUS_METRICS,
    STATUS_ALL_JSON,
    STATUS_EVENTS,
    STATUS_FILES,
};

enum job_file {
    JOB_FILE_PROMPT,
    JOB_FILE_PARAMETERS,
    JOB_FILE_STATE,
    JOB_FILE_PROGRESS,
    JOB_FILE_TIMING,
    JOB_FILE_VRAM,
    JOB_FILE_ERROR,
    JOB_FILE_WAIT,
    JOB_FILE_CTL,
};

struct node {
    enum node_kind kind; /* 8 bits of the inode number */
    unsigned part;       /* 16 bits */
    int64_t id;          /* 40 bits */
};

uint64_t node_ino(struct node node);
struct node node_of_ino(uint64_t ino);
bool node_is_directory(struct node node);
bool node_is_link(struct node node);

/* Whether reading waits for something to happen: status/events, jobs/<id>/wait. */
bool node_blocks(struct node node);

/* Of a node, before the mount's umask: type and permissions. */
mode_t node_mode(struct node node);

/* The directory a directory lies in. */
struct node node_parent(struct node node);

/* An image whose coming or going the notifier still has to show to inotify (fs/notifier.h). */
enum announcement {
    ANNOUNCE_NONE,
    ANNOUNCE_HIDDEN, /* there, but its name isn't yet */
    ANNOUNCE_GHOST,  /* gone, but the notifier still finds its name */
};

enum { TREE_ANNOUNCEMENTS = 8 };

/* Who asks. */
struct viewer {
    pid_t pid;
    uid_t uid;
    gid_t gid;
};

struct tree_announcement {
    char name[GALLERY_NAME_BYTES];
    enum announcement kind;
};

struct tree {
    pthread_mutex_t lock; /* the tree lock: taken before any lock of queue or gallery */
    struct queue *queue;
    struct gallery *gallery;
    pid_t notifier_pid; /* sees ghosts, doesn't see hidden images */
    uid_t uid;          /* whose mount it is */
    gid_t gid;
    bool discreet; /* others may look in, but not at names made of somebody else's words */
    struct tree_announcement announcements[TREE_ANNOUNCEMENTS]; /* guarded by lock */
    int64_t *listed_ids; /* guarded by lock: the jobs in queue/ by place, as last listed */
    size_t listed_count; /* guarded by lock */
};

void tree_init(struct tree *tree, struct queue *queue, struct gallery *gallery);
void tree_finish(struct tree *tree);

/* Whether the viewer may see words of a prompt that this user wrote: the writer, root, whoever
 * mounts and that group may; others unless the tree is discreet. */
bool tree_shows(const struct tree *tree, const struct viewer *viewer, uid_t writer);

/* The same for an image; one that no job knows any more belongs to whoever mounts. */
bool tree_shows_image(struct tree *tree, const struct viewer *viewer, const char *name);

/* Whether what one user's prompt has made may go for what this writer's makes: it is the same user,
 * or the writer is root or whoever mounts. */
bool tree_replaces(const struct tree *tree, uid_t writer, uid_t owner);

/* The newest image that this viewer may see. */
bool tree_latest(struct tree *tree, const struct viewer *viewer, struct gallery_image *image);

/* The node of a name. Failure: ENOENT; not for prompts/.
 * In queue/ a name holds while it is true, and while it was so in the last listing: `rm *` finds
 * all it saw, though each rm moves the others up. */
int tree_lookup(struct tree *tree, struct node parent, const char *name,
                const struct viewer *viewer, struct node *child);

/* The index'th entry of those that have the same name in each directory of the kind; false when
 * there are no more, or none for this viewer. */
bool tree_fixed_entry(struct tree *tree, struct node dir, unsigned index,
                      const struct viewer *viewer, const char **name, struct node *node);

/* Announcements: at most TREE_ANNOUNCEMENTS at a time; false when there is no room. Setting
 * ANNOUNCE_NONE forgets the name. */
bool tree_announce(struct tree *tree, const char *name, enum announcement kind);
enum announcement tree_announced(struct tree *tree, const char *name);

/* The image of a serial, if it is still there. */
bool tree_image(struct tree *tree, int64_t serial, struct gallery_image *image);

/* Names of the last listing hold no more (after mv). */
void tree_forget_listing(struct tree *tree);

/* The place that a name in queue/ speaks of ("003-21", "3"), or -1. */
long tree_queue_place(const char *name);

/* The job that a name in queue/ speaks of ("003-21", "21"), or 0. */
int64_t tree_queue_job(const char *name);

/* ---- Listing a directory, but for prompts/. ---- */

struct tree_item {
    char name[GALLERY_NAME_BYTES];
    struct node node;
    int64_t next;               /* offset of the item after it */
    struct gallery_image image; /* of NODE_IMAGE */
};

/* The order of queue/ is that of the moment when the listing was opened. */
struct tree_listing {
    struct tree *tree;
    struct node dir;
    struct viewer viewer;
    int64_t *queue_ids;
    size_t queue_count;
    struct gallery_image *images; /* read ahead, serials ascending */
    size_t images_count;
};

int tree_listing_open(struct tree_listing *listing, struct tree *tree, struct node dir,
                      const struct viewer *viewer);
void tree_listing_close(struct tree_listing *listing);

/* The item at an offset: 0, or what the item before gave as `next`. False at the end. */
bool tree_listing_item(struct tree_listing *listing, int64_t offset, struct tree_item *item);

const char *status_file_name(enum status_file file);
const char *job_file_name(enum job_file file);

#endif
