/* SPDX-License-Identifier: MIT */
/*
 * Several threads on one arena over real memory, each with blocks of its own that it fills and
 * verifies, while another moves the budget and reads the figures. Now and then a thread leaves a
 * block where the arena may evict it, which it does on whatever thread runs short. To be run under
 * TSan as well.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "alloc/arena.h"
#include "alloc/host_pages.h"
#include "tests/test.h"

enum { THREADS = 4, ROUNDS = 20000, SLOTS = 16, PAGE = 64 << 10, BUDGET_PAGES = 160, SPARES = 8 };

/* Blocks that nobody needs, and may be evicted. */
struct spares {
    pthread_mutex_t lock;
    struct arena *arena;
    uintptr_t blocks[SPARES]; /* lock; all on stream 0 */
    int count;                /* lock */
};

static atomic_bool enough; /* has been seen to happen */

struct worker {
    struct arena *arena;
    struct spares *spares;
    int number;
    uint64_t failures, corruptions, errors;
};

struct block {
    unsigned char *bytes;
    uint64_t length;
};

static bool holds_pattern(const struct block *block, unsigned char pattern)
{
    return block->bytes[0] == pattern && block->bytes[block->length / 2] == pattern &&
           block->bytes[block->length - 1] == pattern;
}

static bool evict(void *owner, uint64_t needed_bytes)
{
    struct spares *spares = owner;
    uintptr_t block = 0;

    pthread_mutex_lock(&spares->lock);
    if (spares->count > 0)
        block = spares->blocks[--spares->count];
    pthread_mutex_unlock(&spares->lock);
    return block != 0 && arena_free(spares->arena, block, 0) == 0;
}

/* Whether there was room for it. */
static bool leave(struct spares *spares, uintptr_t block)
{
    bool left;

    pthread_mutex_lock(&spares->lock);
    left = spares->count < SPARES;
    if (left)
        spares->blocks[spares->count++] = block;
    pthread_mutex_unlock(&spares->lock);
    return left;
}

static void work_once(struct worker *worker, struct block *block, uint64_t dice)
{
    unsigned char pattern = (unsigned char)(worker->number + 1);
    struct arena_request request = {.bytes = 1 + dice % (dice & 64 ? PAGE / 8 : 12 * PAGE),
                                    .stream = worker->number % 2,
                                    .component = worker->number};
    uintptr_t address = 0;
    int code;

    if (block->bytes) {
        worker->corruptions += !holds_pattern(block, pattern);
        if (worker->number % 2 != 0 || dice % 8 != 0 ||
            !leave(worker->spares, (uintptr_t)block->bytes))
            worker->errors +=
                arena_free(worker->arena, (uintptr_t)block->bytes, worker->number % 2) != 0;
        block->bytes = NULL;
        return;
    }
    code = arena_alloc(worker->arena, &request, &address, NULL);
    if (code != 0) {
        worker->failures++;
        worker->errors += code != -ENOMEM;
        return;
    }
    *block = (struct block){(unsigned char *)address, request.bytes};
    block->bytes[0] = block->bytes[request.bytes / 2] = block->bytes[request.bytes - 1] = pattern;
}

static void *work(void *pointer)
{
    struct worker *worker = pointer;
    struct block blocks[SLOTS] = {{0}};
    uint64_t state = (uint64_t)worker->number + 1;

    for (int i = 0; i < ROUNDS || !atomic_load(&enough); i++) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        work_once(worker, &blocks[state >> 60], state >> 20);
    }
    for (int i = 0; i < SLOTS; i++) {
        if (blocks[i].bytes)
            work_once(worker, &blocks[i], 0);
    }
    return NULL;
}

/* Moves the budget and reads, until all has happened that is to be tried: threads that come to run
 * one after the other never run short. */
static void disturb(struct arena *arena)
{
    struct arena_stats stats = {0};
    struct arena_run runs[32];

    for (uint64_t i = 0; i < 400 || (i < 400000 && (stats.evictions <= 10 || stats.merges == 0));
         i++) {
        int code = arena_set_budget(arena, (BUDGET_PAGES / 2 + i * 37 % BUDGET_PAGES) * PAGE);
        const char *fault = "none";

        EXPECT(code == 0 || code == -EAGAIN);
        arena_stats(arena, &stats);
        EXPECT(stats.allocated >= stats.requested && stats.reserved >= stats.mapped);
        (void)arena_map(arena, runs, 32);
        EXPECT(arena_check(arena, &fault) == 0, "%s", fault);
        if (i % 16 == 0)
            (void)arena_trim(arena);
    }
    atomic_store(&enough, true);
}

int main(void)
{
    const struct host_pages_options host = {.granule_bytes = PAGE};
    struct spares spares = {.lock = PTHREAD_MUTEX_INITIALIZER};
    const struct arena_options options = {.budget_bytes = BUDGET_PAGES * PAGE,
                                          .reservation_bytes = 4 * BUDGET_PAGES * PAGE,
                                          .evict = evict,
                                          .owner = &spares};
    struct page_source *source = NULL;
    struct arena *arena = NULL;
    struct worker workers[THREADS];
    pthread_t threads[THREADS];
    struct arena_stats stats;

    EXPECT(host_pages_create(&source, &host) == 0);
    EXPECT(arena_create(&arena, source, &options) == 0);
    spares.arena = arena;
    for (int i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){.arena = arena, .spares = &spares, .number = i};
        if (pthread_create(&threads[i], NULL, work, &workers[i]) != 0)
            return EXIT_FAILURE;
    }
    disturb(arena);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        EXPECT(workers[i].corruptions == 0 && workers[i].errors == 0);
    }
    while (evict(&spares, 0))
        ;
    arena_stats(arena, &stats);
    EXPECT(stats.evictions > 10, "%lu", (unsigned long)stats.evictions);
    EXPECT(stats.blocks == 0 && stats.requested == 0 && stats.allocations == stats.frees);
    EXPECT(stats.merges > 0 && stats.allocations > ROUNDS);
    printf("%lu allocations, %lu misses, %lu merges, %lu evictions, %lu failures\n",
           (unsigned long)stats.allocations, (unsigned long)stats.misses,
           (unsigned long)stats.merges, (unsigned long)stats.evictions,
           (unsigned long)stats.failures);
    arena_destroy(arena);
    source->ops->destroy(source);
    return test_finish();
}
