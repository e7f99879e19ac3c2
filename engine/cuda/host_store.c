/* SPDX-License-Identifier: MIT */
#include "engine/cuda/host_store.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "alloc/host_memory.h"
#include "engine/cuda/weights.h"

enum {
    ENTRIES = 8192,  /* a power of two; a FLUX.1 has a quarter of it */
    CHUNKS = 1024,   /* at most */
    ALIGNMENT = 256, /* of each copy, in bytes */
    WANTED_AFTER = 2 /* passages */
};

#define NS_PER_S INT64_C(1000000000)
#define HOST_SPARE_LEAST ((uint64_t)2 << 30)

/* One weight that passed; found by the address of its source. All but `weight` lock. */
struct entry {
    struct weight_copy copy; /* source NULL: no entry */
    int passed;
    bool queued, kept;
    struct host_weight weight; /* the store's thread until `kept`, fixed then */
};

struct host_store {
    struct host_store_options options; /* fixed */
    pthread_t thread;
    bool thread_runs;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct entry *entries;       /* lock: ENTRIES */
    size_t entry_count;          /* lock */
    struct entry **wanted_at;    /* lock: ENTRIES places, a ring */
    size_t wanted_first, wanted; /* lock: counts of all that left and came */
    uint64_t wanted_bytes;       /* lock */
    uint64_t chances, tried;     /* lock: the first that is wanted waits while these are equal */
    bool closing, busy;          /* lock */

    void *chunks[CHUNKS]; /* the store's thread only */
    int chunk_count;
    size_t chunk_used; /* of the last one */
    _Atomic uint64_t pinned_bytes;
    uint64_t in_place_bytes; /* of these; the store's thread only */
    bool short_of_room; /* the last weight could be kept if there were more to spare; likewise */
};

/* ---- the store's thread ---- */

static bool spare_for(struct host_store *store, size_t bytes)
{
    const struct host_store_options *options = &store->options;

    store->short_of_room = options->spare(options->owner, store->in_place_bytes) < bytes;
    return !store->short_of_room;
}

static bool chunk_add(struct host_store *store)
{
    const struct host_store_options *options = &store->options;
    void *memory;

    if (store->chunk_count == CHUNKS || !spare_for(store, options->chunk_bytes))
        return false;
    memory = options->allocate(options->owner, options->chunk_bytes);
    if (memory == NULL)
        return false;
    store->chunks[store->chunk_count++] = memory;
    store->chunk_used = 0;
    atomic_fetch_add(&store->pinned_bytes, options->chunk_bytes);
    return true;
}

/* Room for a copy, or NULL. */
static char *room_for(struct host_store *store, size_t bytes)
{
    char *room;

    bytes += ALIGNMENT - 1;
    bytes -= bytes % ALIGNMENT;
    if (bytes > store->options.chunk_bytes)
        return NULL;
    if ((store->chunk_count == 0 || bytes > store->options.chunk_bytes - store->chunk_used) &&
        !chunk_add(store))
        return NULL;
    room = (char *)store->chunks[store->chunk_count - 1] + store->chunk_used;
    store->chunk_used += bytes;
    return room;
}

/* Gives back what was had last. */
static void room_return(struct host_store *store, const char *room)
{
    store->chunk_used = (size_t)(room - (const char *)store->chunks[store->chunk_count - 1]);
}

static bool copy_weight(struct host_store *store, const struct weight_copy *copy,
                        struct host_weight *weight)
{
    int64_t n = copy->rows * copy->cols;
    size_t bytes = (size_t)n * weights_element_bytes(copy);
    char *room = room_for(store, bytes);

    if (room == NULL || !weights_fill(copy, 0, n, room))
        return false;
    *weight = (struct host_weight){{{room, bytes}}};
    return true;
}

/* The whole pages that a weight covers; its edges share theirs with its neighbours. */
static bool pin_weight(struct host_store *store, const struct weight_copy *copy,
                       struct host_weight *weight)
{
    const struct host_store_options *options = &store->options;
    size_t page = options->page_bytes, bytes = (size_t)(copy->rows * copy->cols) * sizeof(uint16_t);
    const char *source = copy->source;
    size_t head = (page - (uintptr_t)source % page) % page;
    size_t middle, tail;
    char *edges;

    if (!weights_as_stored(copy) || bytes < options->in_place_bytes || bytes < head + page)
        return false;
    tail = (bytes - head) % page;
    middle = bytes - head - tail;
    edges = room_for(store, head + tail); /* may take of what there is to spare */
    if (edges == NULL)
        return false;
    if (!spare_for(store, middle) || !options->pin(options->owner, source + head, middle)) {
        room_return(store, edges);
        return false;
    }
    store->in_place_bytes += middle;
    atomic_fetch_add(&store->pinned_bytes, middle);
    memcpy(edges, source, head);
    memcpy(edges + head, source + head + middle, tail);
    *weight = (struct host_weight){{{edges, head}, {source + head, middle}, {edges + head, tail}}};
    return true;
}

static void unpin_all(struct host_store *store)
{
    const struct host_store_options *options = &store->options;

    for (size_t i = 0; store->entries != NULL && i < ENTRIES; i++)
        if (store->entries[i].kept && store->entries[i].weight.piece[1].data != NULL)
            options->unpin(options->owner, store->entries[i].weight.piece[1].data);
    for (int i = 0; i < store->chunk_count; i++)
        options->release(options->owner, store->chunks[i]);
}

/* Whether it could be kept, or never can. */
static bool keep(struct host_store *store, struct entry *entry, bool *kept)
{
    store->short_of_room = false;
    *kept = pin_weight(store, &entry->copy, &entry->weight) ||
            (!store->short_of_room && copy_weight(store, &entry->copy, &entry->weight));
    return *kept || !store->short_of_room;
}

static uint64_t entry_bytes(const struct entry *entry)
{
    return (uint64_t)(entry->copy.rows * entry->copy.cols) * weights_element_bytes(&entry->copy);
}

/* The first that is wanted; NULL: there is nothing, or no room for it. Expects the lock. */
static struct entry *next_wanted(const struct host_store *store)
{
    if (store->wanted_first == store->wanted || store->tried == store->chances)
        return NULL;
    return store->wanted_at[store->wanted_first % ENTRIES];
}

/* Who pins holds up all that others ask of the driver: they get as much time between. Expects the
 * lock. */
static void give_way(struct host_store *store, int64_t ns)
{
    struct timespec until;

    clock_gettime(CLOCK_MONOTONIC, &until);
    ns += until.tv_nsec;
    until.tv_sec += ns / NS_PER_S;
    until.tv_nsec = ns % NS_PER_S;
    while (!store->closing && pthread_cond_timedwait(&store->changed, &store->lock, &until) == 0)
        ;
}

static int64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * NS_PER_S + now.tv_nsec;
}

static void *store_run(void *argument)
{
    struct host_store *store = argument;
    struct entry *entry;

    store->options.begin(store->options.owner);
    pthread_mutex_lock(&store->lock);
    for (;;) {
        while ((entry = next_wanted(store)) == NULL && !store->closing)
            pthread_cond_wait(&store->changed, &store->lock);
        if (store->closing)
            break;
        uint64_t chance = store->chances;
        int64_t since = now_ns();
        bool kept, settled;

        store->busy = true;
        pthread_mutex_unlock(&store->lock);
        settled = keep(store, entry, &kept);
        pthread_mutex_lock(&store->lock);
        store->busy = false;
        if (settled) {
            entry->kept = kept;
            entry->queued = false; /* if it could not be kept it is wanted when it passes again */
            store->wanted_first++;
            store->wanted_bytes -= entry_bytes(entry);
        } else {
            store->tried = chance;
        }
        pthread_cond_broadcast(&store->changed);
        give_way(store, now_ns() - since);
    }
    pthread_mutex_unlock(&store->lock);
    return NULL;
}

/* ---- whoever asks ---- */

static bool same_weight(const struct weight_copy *a, const struct weight_copy *b)
{
    return a->source == b->source && a->source_dtype == b->source_dtype && a->layout == b->layout &&
           a->rows == b->rows && a->cols == b->cols && a->channels_in == b->channels_in;
}

/* The weight's entry, or the free one where it would be. Expects the lock. */
static struct entry *entry_at(struct host_store *store, const struct weight_copy *copy)
{
    uint64_t hash = (uint64_t)(uintptr_t)copy->source * UINT64_C(0x9e3779b97f4a7c15);
    size_t at = (size_t)(hash >> 32);

    while (store->entries[at % ENTRIES].copy.source != NULL &&
           !same_weight(&store->entries[at % ENTRIES].copy, copy))
        at++;
    return &store->entries[at % ENTRIES];
}

const struct host_weight *host_store_find(struct host_store *store, const struct weight_copy *copy)
{
    const struct entry *entry;
    bool kept;

    pthread_mutex_lock(&store->lock);
    entry = entry_at(store, copy);
    kept = entry->kept;
    pthread_mutex_unlock(&store->lock);
    return kept ? &entry->weight : NULL;
}

void host_store_passed(struct host_store *store, const struct weight_copy *copy)
{
    struct entry *entry;

    pthread_mutex_lock(&store->lock);
    entry = entry_at(store, copy);
    if (entry->copy.source == NULL && store->entry_count < ENTRIES / 2) {
        entry->copy = *copy;
        store->entry_count++;
    }
    if (entry->copy.source != NULL && ++entry->passed >= WANTED_AFTER && !entry->queued &&
        !entry->kept) {
        entry->queued = true;
        store->wanted_at[store->wanted++ % ENTRIES] = entry;
        store->wanted_bytes += entry_bytes(entry);
        pthread_cond_broadcast(&store->changed);
    }
    pthread_mutex_unlock(&store->lock);
}

uint64_t host_store_bytes(const struct host_store *store)
{
    return atomic_load(&store->pinned_bytes);
}

uint64_t host_store_wanted(struct host_store *store)
{
    uint64_t bytes;

    pthread_mutex_lock(&store->lock);
    bytes = store->wanted_bytes;
    pthread_mutex_unlock(&store->lock);
    return bytes;
}

void host_store_retry(struct host_store *store)
{
    pthread_mutex_lock(&store->lock);
    store->chances++;
    pthread_cond_broadcast(&store->changed);
    pthread_mutex_unlock(&store->lock);
}

void host_store_settle(struct host_store *store)
{
    pthread_mutex_lock(&store->lock);
    while (store->busy || next_wanted(store) != NULL)
        pthread_cond_wait(&store->changed, &store->lock);
    pthread_mutex_unlock(&store->lock);
}

/* ---- beginning and end ---- */

int host_store_create(struct host_store **out, const struct host_store_options *options,
                      struct error *err)
{
    struct host_store *store = calloc(1, sizeof *store);
    pthread_condattr_t clock;
    int result;

    if (store == NULL)
        return error_set(err, ENOMEM, "out of host memory");
    store->options = *options;
    store->chances = 1;
    pthread_mutex_init(&store->lock, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&store->changed, &clock);
    pthread_condattr_destroy(&clock);
    store->entries = calloc(ENTRIES, sizeof *store->entries);
    store->wanted_at = calloc(ENTRIES, sizeof(struct entry *));
    result = store->entries == NULL || store->wanted_at == NULL
                 ? ENOMEM
                 : pthread_create(&store->thread, NULL, store_run, store);
    store->thread_runs = result == 0;
    if (result != 0) {
        host_store_destroy(store);
        return error_set(err, result, "the thread that keeps weights: %s", strerror(result));
    }
    *out = store;
    return 0;
}

void host_store_destroy(struct host_store *store)
{
    if (store == NULL)
        return;
    if (store->thread_runs) {
        pthread_mutex_lock(&store->lock);
        store->closing = true;
        pthread_cond_broadcast(&store->changed);
        pthread_mutex_unlock(&store->lock);
        pthread_join(store->thread, NULL);
    }
    unpin_all(store);
    pthread_mutex_destroy(&store->lock);
    pthread_cond_destroy(&store->changed);
    free(store->entries);
    free(store->wanted_at);
    free(store);
}

uint64_t host_memory_spare(uint64_t in_place)
{
    struct host_memory memory = host_memory();
    uint64_t reserve = memory.total_bytes / 4, taken;

    reserve = reserve > HOST_SPARE_LEAST ? reserve : HOST_SPARE_LEAST;
    taken = in_place <= UINT64_MAX - reserve ? reserve + in_place : UINT64_MAX;
    return memory.available_bytes > taken ? memory.available_bytes - taken : 0;
}
