/* SPDX-License-Identifier: MIT */
/*
 * What an allocation or free costs on host pages: the median over batches, in nanoseconds, when no
 * driver call is needed; and what a miss costs that has to move pages.
 *
 *     pair     a block taken and given back at once
 *     mixed    random ones among 512 living blocks of 256 bytes to 16 MiB, on one stream or two
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "alloc/arena.h"
#include "alloc/host_pages.h"

enum { BATCHES = 101, BATCH = 10000, LIVING = 512, PAGE = HOST_PAGE_BYTES, MOVED = 256 };

struct bench {
    struct page_source *source;
    struct arena *arena;
    uint64_t state;
    uintptr_t blocks[LIVING];
    int streams;
    uint64_t failures;
};

static double now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return 1e9 * (double)now.tv_sec + (double)now.tv_nsec;
}

static uint64_t random_below(struct bench *bench, uint64_t limit)
{
    bench->state = bench->state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (bench->state >> 33) % limit;
}

static void open_bench(struct bench *bench, uint64_t budget_pages, int streams)
{
    struct arena_options options = {.budget_bytes = budget_pages * PAGE,
                                    .reservation_bytes = 4 * budget_pages * PAGE};

    *bench = (struct bench){.state = 1, .streams = streams};
    if (host_pages_create(&bench->source, NULL) != 0 ||
        arena_create(&bench->arena, bench->source, &options) != 0) {
        fputs("no memory for the bench\n", stderr);
        exit(EXIT_FAILURE);
    }
}

static void close_bench(struct bench *bench)
{
    arena_destroy(bench->arena);
    bench->source->ops->destroy(bench->source);
}

static uintptr_t take(struct bench *bench, uint64_t bytes, int stream)
{
    struct arena_request request = {.bytes = bytes, .stream = stream};
    uintptr_t address = 0;

    bench->failures += arena_alloc(bench->arena, &request, &address, NULL) != 0;
    return address;
}

static int compare(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;

    return a < b ? -1 : a > b;
}

static double median(double *values, size_t count)
{
    qsort(values, count, sizeof *values, compare);
    return values[count / 2];
}

static void measure_pair(const char *name, uint64_t bytes)
{
    double times[BATCHES];
    struct bench bench;

    open_bench(&bench, 64, 1);
    for (int i = 0; i < BATCHES; i++) {
        double start = now_ns();
        for (int j = 0; j < BATCH; j++)
            (void)arena_free(bench.arena, take(&bench, bytes, 0), 0);
        times[i] = (now_ns() - start) / (2 * BATCH);
    }
    printf("  pair, %-22s %6.1f ns\n", name, median(times, BATCHES));
    close_bench(&bench);
}

static uint64_t random_bytes(struct bench *bench)
{
    return 256 + random_below(bench, UINT64_C(256) << random_below(bench, 17));
}

static void mix(struct bench *bench, int operations)
{
    for (int j = 0; j < operations; j++) {
        uint64_t number = random_below(bench, LIVING);
        uintptr_t *block = &bench->blocks[number];
        int stream = (int)number % bench->streams;

        if (*block != 0)
            (void)arena_free(bench->arena, *block, stream);
        *block = *block != 0 ? 0 : take(bench, random_bytes(bench), stream);
    }
}

static void measure_mixed(int streams)
{
    double times[BATCHES];
    struct arena_stats before, after;
    struct bench bench;

    open_bench(&bench, 1024, streams);
    mix(&bench, 50 * BATCH); /* until pages enough are there */
    arena_stats(bench.arena, &before);
    for (int i = 0; i < BATCHES; i++) {
        double start = now_ns();
        mix(&bench, BATCH);
        times[i] = (now_ns() - start) / BATCH;
    }
    arena_stats(bench.arena, &after);
    printf("  mixed, %d stream%s              %6.1f ns   (%" PRIu64 " misses in %" PRIu64
           " allocations, %" PRIu64 " failed)\n",
           streams, streams > 1 ? "s" : " ", median(times, BATCHES), after.misses - before.misses,
           after.allocations - before.allocations, bench.failures);
    close_bench(&bench);
}

/* Every other page is free, and a block wants them all. */
static void measure_merge(void)
{
    uintptr_t blocks[2 * MOVED];
    struct arena_stats stats;
    struct bench bench;
    double start, elapsed;

    open_bench(&bench, 2 * MOVED, 1);
    for (int i = 0; i < 2 * MOVED; i++)
        blocks[i] = take(&bench, PAGE, 0);
    for (int i = 0; i < 2 * MOVED; i += 2)
        (void)arena_free(bench.arena, blocks[i], 0);
    start = now_ns();
    bench.failures += take(&bench, (uint64_t)MOVED * PAGE, 0) == 0;
    elapsed = now_ns() - start;
    arena_stats(bench.arena, &stats);
    printf("  miss that moves %" PRIu64 " pages    %6.2f ms   (%.1f us a page, %" PRIu64
           " failed)\n",
           stats.pages_moved, elapsed / 1e6, elapsed / 1e3 / (double)stats.pages_moved,
           bench.failures);
    close_bench(&bench);
}

int main(void)
{
    puts("an allocation or free on host pages, median:");
    measure_pair("256 bytes", 256);
    measure_pair("36 KiB", 36 << 10);
    measure_pair("1 MiB", 1 << 20);
    measure_pair("18 MiB", 18 << 20);
    measure_mixed(1);
    measure_mixed(2);
    measure_merge();
    return EXIT_SUCCESS;
}
