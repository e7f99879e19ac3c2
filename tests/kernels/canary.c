/* SPDX-License-Identifier: MIT */
/*
 * Memory of a real device under an arena: blocks hold patterns while pages are moved between them,
 * blocks are copied and given back before the copy has run, and in the middle another process takes
 * what is left of the device. Nothing is ever lost, and reserved never exceeds the budget.
 * usage: canary MODULE_FOLDER [ROUNDS]
 *        canary MODULE_FOLDER hog MIB     takes so much, says so, and holds it until stdin ends
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "alloc/arena.h"
#include "engine/module.h"
#include "tests/test.h"

enum { BLOCKS = 40, DEFAULT_ROUNDS = 4000, COLS = 256, MIB = 1 << 20 };
#define BUDGET_MOST ((uint64_t)2048 * MIB)

struct block {
    struct tensor tensor; /* data NULL: none */
    uint32_t seed;
};

struct canary {
    struct backend *backend;
    struct arena *arena;
    struct block blocks[BLOCKS];
    uint64_t state, verified, moved, refused;
    uint64_t used_before, most_used; /* of the device, as it says */
    double slowest_ms;               /* allocation that moved pages */
    uint64_t slowest_pages;
    float *host;
    int64_t host_rows;
    struct error err;
};

static uint64_t random_below(struct canary *c, uint64_t limit)
{
    c->state = c->state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (c->state >> 33) % limit;
}

static float word_at(uint32_t seed, int64_t i)
{
    return (float)((seed + (uint32_t)i * 2654435761u) >> 8);
}

static double now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return 1e3 * (double)now.tv_sec + 1e-6 * (double)now.tv_nsec;
}

static uint64_t device_used(const struct canary *c)
{
    uint64_t free_bytes = 0, total_bytes = 0;

    EXPECT(c->backend->pages->ops->memory(c->backend->pages, &free_bytes, &total_bytes) == 0);
    return total_bytes - free_bytes;
}

/* A block of so many rows, or none if there is no room. */
static bool take(struct canary *c, int64_t rows, struct tensor *tensor)
{
    struct arena_request request = {(uint64_t)rows * COLS * sizeof(float), 0, 0};
    struct arena_stats before, after;
    uintptr_t address = 0;
    double start, elapsed;
    int code;

    arena_stats(c->arena, &before);
    start = now_ms();
    code = arena_alloc(c->arena, &request, &address, NULL);
    elapsed = now_ms() - start;
    EXPECT(code == 0 || code == -ENOMEM, "%d", code);
    arena_stats(c->arena, &after);
    if (after.merges > before.merges && elapsed > c->slowest_ms) {
        c->slowest_ms = elapsed;
        c->slowest_pages = after.pages_moved - before.pages_moved;
    }
    EXPECT(after.reserved <= after.budget);
    c->refused += code != 0;
    *tensor = tensor_of((void *)address, DTYPE_F32, rows, COLS);
    return code == 0;
}

static void give(struct canary *c, const struct tensor *tensor)
{
    EXPECT(arena_free(c->arena, (uintptr_t)tensor->data, 0) == 0);
}

static void fill(struct canary *c, struct block *block)
{
    int64_t rows = 1 + (int64_t)random_below(c, (uint64_t)c->host_rows);

    /* Most are small beside the budget, few large. */
    if (random_below(c, 4) != 0)
        rows = 1 + rows / 16;
    if (!take(c, rows, &block->tensor)) {
        *block = (struct block){0};
        return;
    }
    block->seed = (uint32_t)random_below(c, UINT32_MAX);
    for (int64_t i = 0; i < rows * COLS; i++)
        c->host[i] = word_at(block->seed, i);
    c->backend->ops->upload(c->backend, block->tensor, c->host);
}

static void verify(struct canary *c, const struct block *block)
{
    int64_t count = block->tensor.rows * COLS;

    c->backend->ops->download(c->backend, c->host, block->tensor);
    for (int64_t i = 0; i < count; i++) {
        if (c->host[i] != word_at(block->seed, i)) {
            EXPECT(c->host[i] == word_at(block->seed, i), "word %" PRId64 " of %" PRId64, i, count);
            return;
        }
    }
    c->verified++;
}

/* The copy is queued only, and the old block is free at once. */
static void move(struct canary *c, struct block *block)
{
    struct tensor target;

    if (!take(c, block->tensor.rows, &target))
        return;
    c->backend->ops->copy(c->backend, target, block->tensor);
    give(c, &block->tensor);
    block->tensor = target;
    c->moved++;
}

static void step(struct canary *c)
{
    struct block *block = &c->blocks[random_below(c, BLOCKS)];
    uint64_t dice = random_below(c, 100), used;

    if (dice == 0) {
        (void)arena_trim(c->arena);
    } else if (block->tensor.data == NULL) {
        fill(c, block);
    } else if (dice < 60) {
        move(c, block);
    } else {
        verify(c, block);
        give(c, &block->tensor);
        *block = (struct block){0};
    }
    used = device_used(c);
    if (used > c->used_before && used - c->used_before > c->most_used)
        c->most_used = used - c->used_before;
}

static void rounds(struct canary *c, int count)
{
    const char *fault = "none";

    for (int i = 0; i < count && test_failures == 0; i++) {
        step(c);
        if (i % 64 == 0)
            EXPECT(arena_check(c->arena, &fault) == 0, "%s", fault);
    }
    EXPECT(c->backend->ops->sync(c->backend, &c->err) == 0, "%s", c->err.text);
}

/* ---- Another process ---- */

static int hog(const char *folder, uint64_t mib)
{
    struct arena_options options = {.budget_bytes = mib * MIB};
    struct backend *backend = NULL;
    struct arena *arena = NULL;
    struct error err;
    char byte;

    if (module_open(&backend, folder, "cuda", &err) != 0 ||
        arena_create(&arena, backend->pages, &options) != 0)
        return EXIT_FAILURE;
    (void)arena_prepare(arena, options.budget_bytes); /* as much of it as there is */
    puts("ready");
    fflush(stdout);
    while (read(STDIN_FILENO, &byte, 1) > 0)
        ;
    arena_destroy(arena);
    backend->ops->destroy(backend);
    return EXIT_SUCCESS;
}

struct neighbour {
    pid_t process;
    int to, from;
};

static bool neighbour_start(struct neighbour *n, const char *folder, uint64_t mib)
{
    int to[2], from[2];
    char number[32], answer[8] = "";

    if (pipe(to) != 0 || pipe(from) != 0)
        return false;
    snprintf(number, sizeof number, "%" PRIu64, mib);
    n->process = fork();
    if (n->process == 0) {
        dup2(to[0], STDIN_FILENO);
        dup2(from[1], STDOUT_FILENO);
        close(to[1]);
        close(from[0]);
        execl("/proc/self/exe", "canary", folder, "hog", number, (char *)NULL);
        _exit(EXIT_FAILURE);
    }
    close(to[0]);
    close(from[1]);
    n->to = to[1];
    n->from = from[0];
    return n->process > 0 && read(n->from, answer, 5) == 5;
}

static void neighbour_stop(struct neighbour *n)
{
    close(n->to);
    close(n->from);
    waitpid(n->process, NULL, 0);
}

/* With a budget beyond what is left, the device itself refuses. The emulated one has no other
 * processes: there a word in the environment stands for them. */
static void test_neighbour(struct canary *c, const char *folder, int count)
{
    bool emulated = strstr(c->backend->device_name, "emulated") != NULL;
    const char *device = getenv("FLUXFS_EMULATE");
    uint64_t refused = c->refused, free_bytes = 0, total_bytes = 0;
    struct neighbour neighbour = {0};
    struct arena_stats before, after;
    char alone[128], words[192];

    snprintf(alone, sizeof alone, "%s", device != NULL ? device : "");
    (void)arena_trim(c->arena);
    (void)c->backend->pages->ops->memory(c->backend->pages, &free_bytes, &total_bytes);
    snprintf(words, sizeof words, "%s others=%" PRIu64, alone, free_bytes / MIB);
    if (emulated)
        setenv("FLUXFS_EMULATE", words, 1);
    else if (!EXPECT(neighbour_start(&neighbour, folder, free_bytes / MIB)))
        return;
    arena_stats(c->arena, &before);
    EXPECT(arena_set_budget(c->arena, total_bytes) == 0);
    rounds(c, count);
    arena_stats(c->arena, &after);
    printf("beside another process: %" PRIu64 " refused, %" PRIu64 " merges\n",
           c->refused - refused, after.merges - before.merges);
    EXPECT(c->refused > refused && after.merges > before.merges);
    if (emulated)
        setenv("FLUXFS_EMULATE", alone, 1);
    else
        neighbour_stop(&neighbour);
}

/* ---- Beginning and end ---- */

static bool open_canary(struct canary *c, uint64_t *budget)
{
    struct arena_request workspace = {c->backend->workspace_bytes, 0, 1};
    struct arena_options options = {0};
    uint64_t free_bytes = 0, total_bytes = 0;
    uintptr_t address = 0;

    if (c->backend->pages->ops->memory(c->backend->pages, &free_bytes, &total_bytes) != 0)
        return false;
    *budget = free_bytes / 8 < BUDGET_MOST ? free_bytes / 8 : BUDGET_MOST;
    *budget -= *budget % c->backend->pages->granule_bytes;
    options.budget_bytes = *budget + workspace.bytes + c->backend->pages->granule_bytes;
    c->used_before = total_bytes - free_bytes;
    c->host_rows = (int64_t)(*budget / 4 / (COLS * sizeof(float)));
    c->host = malloc((size_t)c->host_rows * COLS * sizeof(float));
    if (c->host == NULL || arena_create(&c->arena, c->backend->pages, &options) != 0 ||
        arena_alloc(c->arena, &workspace, &address, NULL) != 0)
        return false;
    c->backend->workspace = (void *)address;
    *budget = options.budget_bytes;
    return true;
}

static void close_canary(struct canary *c)
{
    for (int i = 0; i < BLOCKS; i++)
        if (c->blocks[i].tensor.data != NULL)
            verify(c, &c->blocks[i]);
    EXPECT(c->backend->ops->sync(c->backend, &c->err) == 0, "%s", c->err.text);
    arena_destroy(c->arena); /* with blocks still living */
    EXPECT(device_used(c) < c->used_before + 64 * MIB, "%" PRIu64 " MiB are not given back",
           (device_used(c) - c->used_before) / MIB);
    c->backend->ops->destroy(c->backend);
    free(c->host);
}

int main(int argc, char **argv)
{
    int count = argc > 2 ? atoi(argv[2]) : DEFAULT_ROUNDS;
    struct canary c = {.state = 1};
    struct arena_stats stats;
    uint64_t budget = 0;

    if (argc < 2)
        return test_skip("usage: canary MODULE_FOLDER [ROUNDS]");
    if (argc == 4)
        return hog(argv[1], (uint64_t)atoll(argv[3]));
    if (module_open(&c.backend, argv[1], "cuda", &c.err) != 0)
        return test_skip(c.err.text);
    printf("%s\n", c.backend->device_name);
    if (!EXPECT(open_canary(&c, &budget)))
        return test_finish();
    rounds(&c, count);
    EXPECT(c.most_used <= budget + 64 * MIB, "by the device's own count %" PRIu64 " MiB",
           c.most_used / MIB);
    arena_stats(c.arena, &stats);
    /* How many there are depends on the number of rounds. */
    EXPECT(stats.merges > (uint64_t)count / 200 && c.moved > (uint64_t)count / 40 &&
           c.verified > (uint64_t)count / 40);
    printf("budget %" PRIu64 " MiB, %" PRIu64 " in use at most by the device's count; %" PRIu64
           " allocations, %" PRIu64 " refused; %" PRIu64 " that remapped %" PRIu64
           " pages in all, the slowest in %.1f ms for %" PRIu64 " pages\n",
           budget / MIB, c.most_used / MIB, stats.allocations, c.refused, stats.merges,
           stats.pages_moved, c.slowest_ms, c.slowest_pages);
    test_neighbour(&c, argv[1], count);
    rounds(&c, count / 4);
    printf("%" PRIu64 " patterns whole, %" PRIu64 " blocks copied and given back at once\n",
           c.verified, c.moved);
    close_canary(&c);
    return test_finish();
}
