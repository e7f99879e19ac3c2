/* SPDX-License-Identifier: MIT */
/* Listing directories: what there is besides the fixed entries comes from queue and gallery. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fs/tree.h"

enum { LISTING_AHEAD = 64 };

/* Offsets in a directory: 0 ".", 1 "..", then the fixed entries, from here on the others. */
#define DYNAMIC_OFFSET INT64_C(1024)

static void listing_keep(const struct tree_listing *listing)
{
    struct tree *tree = listing->tree;
    size_t bytes = listing->queue_count * sizeof *listing->queue_ids;
    int64_t *kept = malloc(bytes + 1), *old;

    if (kept == NULL) {
        return;
    }
    memcpy(kept, listing->queue_ids, bytes);
    pthread_mutex_lock(&tree->lock);
    old = tree->listed_ids;
    tree->listed_ids = kept;
    tree->listed_count = listing->queue_count;
    pthread_mutex_unlock(&tree->lock);
    free(old);
}

static int queue_snapshot(struct tree_listing *listing)
{
    struct queue *queue = listing->tree->queue;
    struct job_info *infos = NULL;
    size_t capacity, count;
    struct queue_counts counts;

    queue_counts(queue, &counts);
    capacity = counts.state[JOB_WAITING] + counts.state[JOB_RUNNING] + 16;
    infos = calloc(capacity, sizeof *infos);
    listing->queue_ids = calloc(capacity, sizeof *listing->queue_ids);
    if (infos == NULL || listing->queue_ids == NULL) {
        free(infos);
        free(listing->queue_ids);
        return -ENOMEM;
    }
    count = queue_order(queue, 0, infos, capacity);
    for (size_t i = 0; i < count; i++) {
        listing->queue_ids[i] = infos[i].id;
    }
    listing->queue_count = count;
    free(infos);
    listing_keep(listing);
    return 0;
}

int tree_listing_open(struct tree_listing *listing, struct tree *tree, struct node dir,
                      const struct viewer *viewer)
{
    *listing = (struct tree_listing){.tree = tree, .dir = dir, .viewer = *viewer};
    return dir.kind == NODE_QUEUE ? queue_snapshot(listing) : 0;
}

void tree_listing_close(struct tree_listing *listing)
{
    free(listing->queue_ids);
    free(listing->images);
    *listing = (struct tree_listing){0};
}

static bool queue_item(struct tree_listing *listing, int64_t place, struct tree_item *item)
{
    if (place < 0 || (size_t)place >= listing->queue_count) {
        return false;
    }
    item->node = (struct node){.kind = NODE_QUEUE_LINK, .id = listing->queue_ids[place]};
    item->node.part = (unsigned)(place + 1) & 0xffff;
    snprintf(item->name, sizeof item->name, "%03lld-%lld", (long long)place,
             (long long)item->node.id);
    item->next = DYNAMIC_OFFSET + place + 1;
    return true;
}

/* The first image with a serial above `after` that is to be seen. */
static bool image_item(struct tree_listing *listing, uint64_t after, struct tree_item *item)
{
    if (listing->images == NULL) {
        listing->images = calloc(LISTING_AHEAD, sizeof *listing->images);
        if (listing->images == NULL) {
            return false;
        }
    }
    for (;;) {
        size_t count = listing->images_count;
        if (count == 0 || listing->images[count - 1].serial <= after ||
            listing->images[0].serial > after + 1) {
            count = gallery_list(listing->tree->gallery, after, listing->images, LISTING_AHEAD);
            listing->images_count = count;
        }
        size_t i = 0;
        while (i < count && listing->images[i].serial <= after) {
            i++;
        }
        if (i >= count) {
            return false;
        }
        item->image = listing->images[i];
        after = item->image.serial;
        if (tree_announced(listing->tree, item->image.name) != ANNOUNCE_HIDDEN &&
            strcmp(item->image.name, GALLERY_LATEST) != 0 &&
            tree_shows_image(listing->tree, &listing->viewer, item->image.name)) {
            break;
        }
    }
    memcpy(item->name, item->image.name, sizeof item->name);
    item->node = (struct node){.kind = NODE_IMAGE, .id = (int64_t)after};
    item->next = DYNAMIC_OFFSET + (int64_t)after;
    return true;
}

static bool job_item(struct tree_listing *listing, int64_t after, struct tree_item *item)
{
    struct job_info info;

    if (queue_list(listing->tree->queue, after, &info, 1) == 0) {
        return false;
    }
    item->node = (struct node){.kind = NODE_JOB, .id = info.id};
    snprintf(item->name, sizeof item->name, "%lld", (long long)info.id);
    item->next = DYNAMIC_OFFSET + info.id;
    return true;
}

bool tree_listing_item(struct tree_listing *listing, int64_t offset, struct tree_item *item)
{
    const char *name;

    if (offset < 2) {
        snprintf(item->name, sizeof item->name, "%s", offset == 0 ? "." : "..");
        item->node = offset == 0 ? listing->dir : node_parent(listing->dir);
        item->next = offset + 1;
        return true;
    }
    if (offset < DYNAMIC_OFFSET) {
        unsigned index = (unsigned)(offset - 2);
        if (tree_fixed_entry(listing->tree, listing->dir, index, &listing->viewer, &name,
                             &item->node)) {
            snprintf(item->name, sizeof item->name, "%s", name);
            item->next = offset + 1;
            return true;
        }
        offset = DYNAMIC_OFFSET;
    }
    switch (listing->dir.kind) {
    case NODE_QUEUE:
        return queue_item(listing, offset - DYNAMIC_OFFSET, item);
    case NODE_IMAGES:
        return image_item(listing, (uint64_t)(offset - DYNAMIC_OFFSET), item);
    case NODE_JOBS:
        return job_item(listing, offset - DYNAMIC_OFFSET, item);
    default:
        return false;
    }
}
