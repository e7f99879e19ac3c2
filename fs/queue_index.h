/* SPDX-License-Identifier: MIT */
/*
 * What the queue keeps in memory of its jobs: found by id, listed by id, and ordered as they will
 * be taken. No locks and no disk: queue.c has those.
 */
#ifndef FLUXFS_FS_QUEUE_INDEX_H
#define FLUXFS_FS_QUEUE_INDEX_H

#include "fs/queue.h"

struct entry {
    struct job_info info;
    int64_t position; /* order within a priority */
    char *image;      /* NULL: none */
    char *source;     /* NULL: none */
    uint64_t source_digest;
    struct entry *next_image, *next_source; /* the index's */
};

struct queue_index {
    struct entry **entries; /* by id */
    struct entry **order; /* those that run, by id; then those that wait, first to be taken first */
    struct entry **by_image, **by_source; /* `capacity` chains each, by the hash of the name */
    size_t count, ordered, capacity;
    size_t state[JOB_STATES];
};

void entry_finish(struct entry *entry); /* frees the strings */

/* Makes room for so many more entries, so that index_put can't fail. Failure: −ENOMEM. */
int index_reserve(struct queue_index *index, size_t more);
void index_finish(struct queue_index *index);

/* Adds the entry, or replaces the one of that id, and takes over its strings. `fresh` is an empty
 * heap block for a new one, taken over if needed; returns it if not (to free), else NULL. */
struct entry *index_put(struct queue_index *index, struct entry *entry, struct entry *fresh);
void index_remove(struct queue_index *index, int64_t id);

struct entry *index_find(const struct queue_index *index, int64_t id); /* or NULL */
/* The newest entry with that image, or from that source; or NULL. */
struct entry *index_find_image(const struct queue_index *index, const char *image);
struct entry *index_find_source(const struct queue_index *index, const char *source);
size_t index_above(const struct queue_index *index, int64_t id); /* first with a larger id */
long index_rank(const struct queue_index *index, const struct entry *entry);

#endif
