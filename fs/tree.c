/* SPDX-License-Identifier: MIT */
#include "fs/tree.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "fs/control.h"

enum { MAX_FIXED = 32 };

struct entry {
    const char *name;
    enum node_kind kind;
    mode_t mode;
};

static const struct entry root_entries[] = {
    {"new", NODE_NEW, S_IFREG | 0666},         {"README", NODE_README, S_IFREG | 0444},
    {"prompts", NODE_PROMPTS, S_IFDIR | 0777}, {"images", NODE_IMAGES, S_IFDIR | 0755},
    {"jobs", NODE_JOBS, S_IFDIR | 0755},       {"queue", NODE_QUEUE, S_IFDIR | 0755},
    {"status", NODE_STATUS, S_IFDIR | 0755},   {"control", NODE_CONTROL, S_IFDIR | 0755},
};

struct part {
    const char *name;
    mode_t mode;
};

static const struct part status_parts[STATUS_FILES] = {
    [STATUS_PROGRESS] = {"progress", 0444},
    [STATUS_VRAM] = {"vram", 0666}, /* thresholds are written to it */
    [STATUS_FRAGMENTATION] = {"fragmentation", 0444},
    [STATUS_TIMING] = {"timing", 0444},
    [STATUS_QUEUE] = {"queue", 0444},
    [STATUS_DEVICE] = {"device", 0444},
    [STATUS_HEALTH] = {"health", 0444},
    [STATUS_MEMORY] = {"memory", 0444},
    [STATUS_ERROR] = {"error", 0444},
    [STATUS_METRICS] = {"metrics", 0444},
    [STATUS_ALL_JSON] = {"all.json", 0444},
    [STATUS_EVENTS] = {"events", 0444},
};

/* 0440 where the words of the prompt show: see ops_attr.c for when others may read them too. */
static const struct part job_parts[] = {
    [JOB_FILE_PROMPT] = {"prompt", 0440}, [JOB_FILE_PARAMETERS] = {"parameters", 0440},
    [JOB_FILE_STATE] = {"state", 0444},   [JOB_FILE_PROGRESS] = {"progress", 0444},
    [JOB_FILE_TIMING] = {"timing", 0444}, [JOB_FILE_VRAM] = {"vram.csv", 0444},
    [JOB_FILE_ERROR] = {"error", 0440},   [JOB_FILE_WAIT] = {"wait", 0444},
    [JOB_FILE_CTL] = {"ctl", 0660},
};
enum { JOB_PARTS = sizeof job_parts / sizeof job_parts[0] };

static const char job_image_name[] = "image.png";

uint64_t node_ino(struct node node)
{
    return (uint64_t)node.id << 24 | (uint64_t)(node.part & 0xffff) << 8 | (uint64_t)node.kind;
}

struct node node_of_ino(uint64_t ino)
{
    return (struct node){
        .kind = (enum node_kind)(ino & 0xff),
        .part = (unsigned)(ino >> 8 & 0xffff),
        .id = (int64_t)(ino >> 24),
    };
}

bool node_is_directory(struct node node)
{
    return S_ISDIR(node_mode(node));
}

bool node_is_link(struct node node)
{
    return S_ISLNK(node_mode(node));
}

bool node_blocks(struct node node)
{
    return (node.kind == NODE_STATUS_FILE && node.part == STATUS_EVENTS) ||
           (node.kind == NODE_JOB_FILE && node.part == JOB_FILE_WAIT);
}

mode_t node_mode(struct node node)
{
    switch (node.kind) {
    case NODE_ROOT:
    case NODE_JOB:
        return S_IFDIR | 0755;
    case NODE_STATUS_FILE:
        return S_IFREG | status_parts[node.part].mode;
    case NODE_CONTROL_FILE:
        return S_IFREG | 0644;
    case NODE_IMAGE: /* immutable; writable for its owner so that copies are */
        return S_IFREG | 0640;
    case NODE_JOB_FILE:
        return S_IFREG | job_parts[node.part].mode;
    case NODE_LATEST:
    case NODE_JOB_IMAGE:
    case NODE_QUEUE_LINK:
        return S_IFLNK | 0777;
    case NODE_PROMPT:
        return S_IFREG | 0600;
    default:
        break;
    }
    for (size_t i = 0; i < sizeof root_entries / sizeof root_entries[0]; i++) {
        if (root_entries[i].kind == node.kind) {
            return root_entries[i].mode;
        }
    }
    return 0;
}

struct node node_parent(struct node node)
{
    return (struct node){.kind = node.kind == NODE_JOB ? NODE_JOBS : NODE_ROOT};
}

const char *status_file_name(enum status_file file)
{
    return status_parts[file].name;
}

const char *job_file_name(enum job_file file)
{
    return job_parts[file].name;
}

void tree_init(struct tree *tree, struct queue *queue, struct gallery *gallery)
{
    *tree = (struct tree){.queue = queue, .gallery = gallery};
    pthread_mutex_init(&tree->lock, NULL);
}

void tree_finish(struct tree *tree)
{
    pthread_mutex_destroy(&tree->lock);
    free(tree->listed_ids);
}

/* A decimal number without sign or leading zeros, at most 40 bits; 0 if it is none. */
static int64_t id_of_name(const char *name)
{
    int64_t id = 0;

    if (name[0] < '1' || name[0] > '9') {
        return 0;
    }
    for (; *name >= '0' && *name <= '9'; name++) {
        id = 10 * id + (*name - '0');
        if (id >> 40 != 0) {
            return 0;
        }
    }
    return *name == '\0' ? id : 0;
}

long tree_queue_place(const char *name)
{
    long place = 0;
    const char *at = name;

    for (; *at >= '0' && *at <= '9'; at++) {
        if (at - name > 8) {
            return -1;
        }
        place = 10 * place + (*at - '0');
    }
    return at == name || (*at != '\0' && *at != '-') ? -1 : place;
}

int64_t tree_queue_job(const char *name)
{
    const char *dash = strchr(name, '-');

    if (tree_queue_place(name) < 0) {
        return 0;
    }
    return id_of_name(dash != NULL ? dash + 1 : name);
}

/* ---- Announcements. ---- */

bool tree_announce(struct tree *tree, const char *name, enum announcement kind)
{
    struct tree_announcement *place = NULL;
    bool found = kind == ANNOUNCE_NONE;

    pthread_mutex_lock(&tree->lock);
    for (int i = 0; i < TREE_ANNOUNCEMENTS; i++) {
        struct tree_announcement *each = &tree->announcements[i];
        if (each->kind != ANNOUNCE_NONE && strcmp(each->name, name) == 0) {
            place = each;
            break;
        }
        if (each->kind == ANNOUNCE_NONE && kind != ANNOUNCE_NONE && place == NULL) {
            place = each;
        }
    }
    if (place != NULL) {
        found = true;
        snprintf(place->name, sizeof place->name, "%s", name);
        place->kind = kind;
    }
    pthread_mutex_unlock(&tree->lock);
    return found;
}

enum announcement tree_announced(struct tree *tree, const char *name)
{
    enum announcement kind = ANNOUNCE_NONE;

    pthread_mutex_lock(&tree->lock);
    for (int i = 0; i < TREE_ANNOUNCEMENTS && kind == ANNOUNCE_NONE; i++) {
        if (strcmp(tree->announcements[i].name, name) == 0) {
            kind = tree->announcements[i].kind;
        }
    }
    pthread_mutex_unlock(&tree->lock);
    return kind;
}

/* ---- Who may see what. ---- */

bool tree_shows(const struct tree *tree, const struct viewer *viewer, uid_t writer)
{
    return !tree->discreet || viewer->uid == writer || viewer->uid == 0 ||
           viewer->uid == tree->uid || viewer->gid == tree->gid ||
           viewer->pid == tree->notifier_pid;
}

bool tree_shows_image(struct tree *tree, const struct viewer *viewer, const char *name)
{
    struct job_info info;

    if (tree_shows(tree, viewer, tree->uid)) {
        return true;
    }
    return queue_find_image(tree->queue, name, &info) && info.uid == viewer->uid;
}

bool tree_replaces(const struct tree *tree, uid_t writer, uid_t owner)
{
    return writer == owner || writer == 0 || writer == tree->uid;
}

bool tree_latest(struct tree *tree, const struct viewer *viewer, struct gallery_image *image)
{
    uint64_t before = UINT64_MAX;

    while (gallery_newest(tree->gallery, before, image)) {
        if (tree_shows_image(tree, viewer, image->name)) {
            return true;
        }
        before = image->serial;
    }
    return false;
}

/* ---- Names to nodes. ---- */

bool tree_image(struct tree *tree, int64_t serial, struct gallery_image *image)
{
    return gallery_list(tree->gallery, (uint64_t)serial - 1, image, 1) == 1 &&
           image->serial == (uint64_t)serial;
}

bool tree_fixed_entry(struct tree *tree, struct node dir, unsigned index,
                      const struct viewer *viewer, const char **name, struct node *node)
{
    struct gallery_image latest;
    struct job_info info;

    switch (dir.kind) {
    case NODE_ROOT:
        if (index < sizeof root_entries / sizeof root_entries[0]) {
            *name = root_entries[index].name;
            *node = (struct node){.kind = root_entries[index].kind};
            return true;
        }
        return false;
    case NODE_STATUS:
        *node = (struct node){.kind = NODE_STATUS_FILE, .part = index};
        return index < STATUS_FILES && (*name = status_parts[index].name, true);
    case NODE_CONTROL:
        *node = (struct node){.kind = NODE_CONTROL_FILE, .part = index};
        return index < CONTROL_KEYS && (*name = control_key_name(index), true);
    case NODE_JOB:
        if (index < JOB_PARTS) {
            *name = job_parts[index].name;
            *node = (struct node){.kind = NODE_JOB_FILE, .part = index, .id = dir.id};
            return true;
        }
        *name = job_image_name;
        *node = (struct node){.kind = NODE_JOB_IMAGE, .id = dir.id};
        return index == JOB_PARTS && queue_find(tree->queue, dir.id, &info) && info.has_image &&
               tree_shows(tree, viewer, info.uid);
    case NODE_IMAGES:
        *name = GALLERY_LATEST;
        *node = (struct node){.kind = NODE_LATEST};
        return index == 0 && tree_latest(tree, viewer, &latest);
    default:
        return false;
    }
}

static int image_lookup(struct tree *tree, const char *name, const struct viewer *viewer,
                        struct node *child)
{
    struct gallery_image image;
    enum announcement announced = tree_announced(tree, name);

    if (announced == ANNOUNCE_GHOST && viewer->pid == tree->notifier_pid) {
        *child = (struct node){.kind = NODE_IMAGE};
        return 0;
    }
    if (announced == ANNOUNCE_HIDDEN || !gallery_find(tree->gallery, name, &image) ||
        !tree_shows_image(tree, viewer, name)) {
        return -ENOENT;
    }
    *child = (struct node){.kind = NODE_IMAGE, .id = (int64_t)image.serial};
    return 0;
}

static bool was_listed(struct tree *tree, long place, int64_t id)
{
    bool listed;

    pthread_mutex_lock(&tree->lock);
    listed = (size_t)place < tree->listed_count && tree->listed_ids[place] == id;
    pthread_mutex_unlock(&tree->lock);
    return listed;
}

/* A name of any other place must not be found: `mv 003-21 001-21` would take it for a folder. */
static int queue_lookup(struct tree *tree, const char *name, struct node *child)
{
    int64_t id = tree_queue_job(name);
    long rank = id != 0 ? queue_rank(tree->queue, id) : -1;
    bool placed = strchr(name, '-') != NULL;
    long place = tree_queue_place(name);

    if (rank < 0 || (placed && place != rank && !was_listed(tree, place, id))) {
        return -ENOENT;
    }
    *child = (struct node){.kind = NODE_QUEUE_LINK, .id = id};
    child->part = placed ? (unsigned)(place + 1) & 0xffff : 0;
    return 0;
}

void tree_forget_listing(struct tree *tree)
{
    pthread_mutex_lock(&tree->lock);
    tree->listed_count = 0;
    pthread_mutex_unlock(&tree->lock);
}

int tree_lookup(struct tree *tree, struct node parent, const char *name,
                const struct viewer *viewer, struct node *child)
{
    struct job_info info;
    const char *fixed;
    int64_t id;

    for (unsigned i = 0; i < MAX_FIXED && tree_fixed_entry(tree, parent, i, viewer, &fixed, child);
         i++) {
        if (strcmp(fixed, name) == 0) {
            return 0;
        }
    }
    switch (parent.kind) {
    case NODE_IMAGES:
        return image_lookup(tree, name, viewer, child);
    case NODE_QUEUE:
        return queue_lookup(tree, name, child);
    case NODE_JOBS:
        id = id_of_name(name);
        *child = (struct node){.kind = NODE_JOB, .id = id};
        return id != 0 && queue_find(tree->queue, id, &info) ? 0 : -ENOENT;
    default:
        return -ENOENT;
    }
}
