/* SPDX-License-Identifier: MIT */
#include "fs/queue_index.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void entry_finish(struct entry *entry)
{
    free(entry->image);
    free(entry->source);
    entry->image = NULL;
    entry->source = NULL;
}

static int reserve_array(struct entry ***array, size_t capacity)
{
    struct entry **grown = reallocarray(*array, capacity, sizeof *grown);
    if (grown == NULL) {
        return -ENOMEM;
    }
    *array = grown;
    return 0;
}

/* ---- Names: of images, and of files in prompts/. ---- */

static size_t chain_of(const struct queue_index *index, const char *name)
{
    uint64_t hash = UINT64_C(14695981039346656037); /* FNV-1a */
    for (; *name != '\0'; name++) {
        hash = (hash ^ (uint8_t)*name) * UINT64_C(1099511628211);
    }
    return hash % index->capacity;
}

static void names_link(struct queue_index *index, struct entry *entry)
{
    if (entry->image != NULL) {
        struct entry **chain = &index->by_image[chain_of(index, entry->image)];
        entry->next_image = *chain;
        *chain = entry;
    }
    if (entry->source != NULL) {
        struct entry **chain = &index->by_source[chain_of(index, entry->source)];
        entry->next_source = *chain;
        *chain = entry;
    }
}

static void names_unlink(struct queue_index *index, struct entry *entry)
{
    struct entry **place;
    if (entry->image != NULL) {
        for (place = &index->by_image[chain_of(index, entry->image)]; *place != entry;
             place = &(*place)->next_image) {
        }
        *place = entry->next_image;
    }
    if (entry->source != NULL) {
        for (place = &index->by_source[chain_of(index, entry->source)]; *place != entry;
             place = &(*place)->next_source) {
        }
        *place = entry->next_source;
    }
}

struct entry *index_find_image(const struct queue_index *index, const char *image)
{
    struct entry *found = NULL;
    struct entry *entry = index->count > 0 ? index->by_image[chain_of(index, image)] : NULL;
    for (; entry != NULL; entry = entry->next_image) {
        if (strcmp(entry->image, image) == 0 &&
            (found == NULL || entry->info.id > found->info.id)) {
            found = entry;
        }
    }
    return found;
}

struct entry *index_find_source(const struct queue_index *index, const char *source)
{
    struct entry *found = NULL;
    struct entry *entry = index->count > 0 ? index->by_source[chain_of(index, source)] : NULL;
    for (; entry != NULL; entry = entry->next_source) {
        if (strcmp(entry->source, source) == 0 &&
            (found == NULL || entry->info.id > found->info.id)) {
            found = entry;
        }
    }
    return found;
}

/* More and therefore shorter chains. */
static int reserve_chains(struct queue_index *index, size_t capacity)
{
    struct entry **images = calloc(capacity, sizeof *images);
    struct entry **sources = calloc(capacity, sizeof *sources);
    if (images == NULL || sources == NULL) {
        free(images);
        free(sources);
        return -ENOMEM;
    }
    free(index->by_image);
    free(index->by_source);
    index->by_image = images;
    index->by_source = sources;
    index->capacity = capacity;
    for (size_t i = 0; i < index->count; i++) {
        names_link(index, index->entries[i]);
    }
    return 0;
}

/* ---- All of it. ---- */

int index_reserve(struct queue_index *index, size_t more)
{
    size_t need;
    if (__builtin_add_overflow(index->count, more, &need)) {
        return -ENOMEM;
    }
    if (need <= index->capacity) {
        return 0;
    }
    size_t capacity = need + need / 2 + 64;
    if (reserve_array(&index->entries, capacity) != 0 ||
        reserve_array(&index->order, capacity) != 0) {
        return -ENOMEM;
    }
    return reserve_chains(index, capacity);
}

void index_finish(struct queue_index *index)
{
    for (size_t i = 0; i < index->count; i++) {
        entry_finish(index->entries[i]);
        free(index->entries[i]);
    }
    free(index->entries);
    free(index->order);
    free(index->by_image);
    free(index->by_source);
    *index = (struct queue_index){0};
}

size_t index_above(const struct queue_index *index, int64_t id)
{
    size_t low = 0;
    size_t high = index->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (index->entries[middle]->info.id > id) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

struct entry *index_find(const struct queue_index *index, int64_t id)
{
    size_t above = index_above(index, id);
    struct entry *entry = above == 0 ? NULL : index->entries[above - 1];
    return entry != NULL && entry->info.id == id ? entry : NULL;
}

static int compare(int64_t a, int64_t b)
{
    return (a > b) - (a < b);
}

/* Negative: a goes before b. */
static int order_compare(const struct entry *a, const struct entry *b)
{
    bool running = a->info.state == JOB_RUNNING;
    if (running != (b->info.state == JOB_RUNNING)) {
        return running ? -1 : 1;
    }
    if (!running) {
        int by_priority = compare(b->info.priority, a->info.priority);
        int by_position = compare(a->position, b->position);
        if (by_priority != 0 || by_position != 0) {
            return by_priority != 0 ? by_priority : by_position;
        }
    }
    return compare(a->info.id, b->info.id);
}

static bool is_ordered(const struct entry *entry)
{
    return entry->info.state == JOB_WAITING || entry->info.state == JOB_RUNNING;
}

/* The first place that doesn't go before the entry. */
static size_t order_find(const struct queue_index *index, const struct entry *entry)
{
    size_t low = 0;
    size_t high = index->ordered;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (order_compare(index->order[middle], entry) < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static void order_insert(struct queue_index *index, struct entry *entry)
{
    size_t at = order_find(index, entry);
    memmove(index->order + at + 1, index->order + at,
            (index->ordered - at) * sizeof index->order[0]);
    index->order[at] = entry;
    index->ordered++;
}

static void order_remove(struct queue_index *index, const struct entry *entry)
{
    size_t at = order_find(index, entry);
    index->ordered--;
    memmove(index->order + at, index->order + at + 1,
            (index->ordered - at) * sizeof index->order[0]);
}

long index_rank(const struct queue_index *index, const struct entry *entry)
{
    return is_ordered(entry) ? (long)order_find(index, entry) : -1;
}

static void detach(struct queue_index *index, struct entry *entry)
{
    index->state[entry->info.state]--;
    if (is_ordered(entry)) {
        order_remove(index, entry);
    }
    names_unlink(index, entry);
}

struct entry *index_put(struct queue_index *index, struct entry *entry, struct entry *fresh)
{
    struct entry *kept = index_find(index, entry->info.id);
    struct entry old = {0};
    if (kept != NULL) {
        detach(index, kept);
        old = *kept;
    } else {
        size_t at = index_above(index, entry->info.id);
        memmove(index->entries + at + 1, index->entries + at,
                (index->count - at) * sizeof index->entries[0]);
        index->entries[at] = kept = fresh;
        fresh = NULL;
        index->count++;
    }
    *kept = *entry;
    entry->image = NULL;
    entry->source = NULL;
    index->state[kept->info.state]++;
    names_link(index, kept);
    if (is_ordered(kept)) {
        order_insert(index, kept);
    }
    entry_finish(&old);
    return fresh;
}

void index_remove(struct queue_index *index, int64_t id)
{
    size_t above = index_above(index, id);
    struct entry *entry = index_find(index, id);
    if (entry != NULL) {
        detach(index, entry);
        entry_finish(entry);
        free(entry);
        memmove(index->entries + above - 1, index->entries + above,
                (index->count - above) * sizeof index->entries[0]);
        index->count--;
    }
}
