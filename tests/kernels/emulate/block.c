/* SPDX-License-Identifier: MIT */
#include "tests/kernels/emulate/block.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

enum { THREADS_MAX = 1024, STACK_BYTES = 128 << 10, PAIR = 2 };

enum state { READY, AT_BARRIER, AT_PAIR_BARRIER, IN_GROUP, WAITING, ENDED };

struct fiber {
    void *resume[5]; /* for __builtin_longjmp */
    enum state state;
    unsigned group_lanes;
    group_operation *operation;
    block_condition *condition;
    void *brought; /* to the group, or what the condition is of */
};

struct block {
    struct thread_place place;
    unsigned threads, ended, fibers_made;
    struct fiber fibers[THREADS_MAX];
};

/* Those that run at a time; all here is under the lock of runtime.c. */
static struct block blocks[MULTIPROCESSORS];
static struct block *present;
static struct fiber *running;
static void *scheduler[5];
struct thread_place *block_place = &blocks[0].place;
static void (*present_kernel)(const void *args);
static const void *present_args;
static bool present_pairs;
static unsigned patience; /* of a block, before it gives way to others that run at a time */
static uint32_t randomness = 1;

static unsigned random_below(unsigned bound)
{
    randomness = randomness * 1664525u + 1013904223u;
    return (unsigned)((uint64_t)(randomness >> 4) * bound >> 28);
}

bool block_coin(void)
{
    return random_below(2) != 0;
}

static bool gives_way(void)
{
    return present_pairs && random_below(patience) == 0;
}

/* ---- changing stacks: without the system calls of swapcontext ---- */

/* Registers are not what the compiler thinks that these functions leave them. */
#define OPAQUE __attribute__((noipa))

OPAQUE static void jump(void **to)
{
    __builtin_longjmp(to, 1);
}

OPAQUE static void leave(void)
{
    if (__builtin_setjmp(running->resume) == 0)
        jump(scheduler);
}

OPAQUE static void enter(struct block *block, struct fiber *fiber)
{
    present = block;
    block_place = &block->place;
    running = fiber;
    if (__builtin_setjmp(scheduler) == 0)
        jump(fiber->resume);
}

/* A fiber runs one thread after another. */
static void fiber_main(void)
{
    for (;;) {
        leave();
        present_kernel(present_args);
        running->state = ENDED;
        present->ended++;
    }
}

OPAQUE static void fiber_begin(const ucontext_t *context)
{
    if (__builtin_setjmp(scheduler) == 0)
        setcontext(context);
}

static void fiber_make(struct fiber *fiber)
{
    void *stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    ucontext_t context;

    if (stack == MAP_FAILED || getcontext(&context) != 0)
        abort();
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = STACK_BYTES;
    context.uc_link = NULL;
    makecontext(&context, fiber_main, 0);
    running = fiber;
    fiber_begin(&context);
}

static void forbidden(const char *what)
{
    fprintf(stderr, "emulated kernel: %s\n", what);
    abort();
}

/* ---- for kernels ---- */

void block_barrier(void)
{
    running->state = AT_BARRIER;
    leave();
}

void block_pair_barrier(void)
{
    if (!present_pairs)
        forbidden("a barrier of a pair of blocks, which this grid has not");
    running->state = AT_PAIR_BARRIER;
    leave();
}

void *block_of_pair(void *own, unsigned rank)
{
    size_t offset = (size_t)((char *)own - (char *)present->place.memory);
    const struct block *other = &blocks[present->place.number / PAIR * PAIR + rank];

    if (!present_pairs || rank >= PAIR || offset >= BLOCK_BYTES)
        forbidden("a place in a pair of blocks that there is not");
    if (other->ended == other->threads)
        forbidden("memory of a block of the pair is used that has ended");
    return (char *)other->place.memory + offset;
}

void block_together(unsigned count, group_operation *operation, void *brought)
{
    running->state = IN_GROUP;
    running->group_lanes = count;
    running->operation = operation;
    running->brought = brought;
    leave();
}

void block_wait(block_condition *condition, void *of)
{
    running->state = WAITING;
    running->condition = condition;
    running->brought = of;
    leave();
}

/* ---- one block ---- */

static struct extent unfold(unsigned number, struct extent size)
{
    return (struct extent){number % size.x, number / size.x % size.y, number / size.x / size.y};
}

static unsigned volume(struct extent size)
{
    return size.x * size.y * size.z;
}

static bool can_run(struct fiber *fiber)
{
    if (fiber->state == WAITING && fiber->condition(fiber->brought))
        fiber->state = READY;
    return fiber->state == READY;
}

/* Runs the lanes of a warp that can run; true if any did. */
static bool run_lanes(struct block *block, unsigned warp)
{
    unsigned lane = random_below(WARP_LANES);
    bool any = false;

    for (unsigned i = 0; i < WARP_LANES; i++) {
        unsigned thread = warp + (lane + i) % WARP_LANES;

        if (thread >= block->threads || !can_run(&block->fibers[thread]))
            continue;
        block->place.thread = unfold(thread, block->place.block_size);
        enter(block, &block->fibers[thread]);
        any = true;
    }
    return any;
}

/* The operation of the group that begins with this thread, if all of it is there. */
static bool run_group(struct block *block, unsigned first)
{
    struct fiber *fibers = &block->fibers[first];
    const struct fiber *leader = fibers;
    unsigned count = leader->group_lanes;
    void *brought[GROUP_LANES_MAX] = {0};

    if (leader->state != IN_GROUP || first % count != 0 || first + count > block->threads)
        return false;
    for (unsigned i = 0; i < count; i++) {
        if (fibers[i].state != IN_GROUP || fibers[i].operation != leader->operation ||
            fibers[i].group_lanes != count)
            return false;
        brought[i] = fibers[i].brought;
    }
    leader->operation(brought);
    for (unsigned i = 0; i < count; i++)
        fibers[i].state = READY;
    return true;
}

/* For a warp that comes no further: a pair's barrier is reached by all lanes at a time, or
 * __syncwarp must come before. */
static void check_lanes(const struct block *block, unsigned warp)
{
    unsigned together = 0, elsewhere = 0;

    for (unsigned i = warp; i < warp + WARP_LANES && i < block->threads; i++) {
        enum state state = block->fibers[i].state;

        together += state == AT_PAIR_BARRIER;
        elsewhere += state == AT_BARRIER || state == IN_GROUP || state == WAITING;
    }
    if (together > 0 && elsewhere > 0)
        forbidden("lanes of a warp are at a barrier that others of it have not come to");
}

/* Runs warps in a random order, each as far as it comes without the others, which shows a barrier
 * that is missing; now and then only a part of that way, or some of them. True if anything ran. */
static bool run_warps(struct block *block)
{
    unsigned warps = (block->threads + WARP_LANES - 1) / WARP_LANES, first = random_below(warps);
    bool any = false;

    for (unsigned w = 0; w < warps; w++) {
        unsigned warp = (first + w) % warps * WARP_LANES;
        bool stopped = false;

        while (!stopped && (run_lanes(block, warp) || run_group(block, warp))) {
            any = true;
            stopped = random_below(64) == 0;
        }
        if (!stopped && present_pairs)
            check_lanes(block, warp);
        if (any && gives_way())
            break;
    }
    return any;
}

/* ---- blocks that run at a time ---- */

/* True if all threads of `count` blocks that have not ended were at a barrier, and there were any.
 */
static bool open_barrier(struct block *first, unsigned count, enum state at)
{
    unsigned waiting = 0;

    for (struct block *block = first; block < first + count; block++)
        for (unsigned i = 0; i < block->threads; i++) {
            if (block->fibers[i].state != at && block->fibers[i].state != ENDED)
                return false;
            waiting += block->fibers[i].state == at;
        }
    for (struct block *block = first; block < first + count; block++)
        for (unsigned i = 0; i < block->threads; i++)
            if (block->fibers[i].state == at)
                block->fibers[i].state = READY;
    return waiting > 0;
}

/* Runs a block as far as it comes without the others, or gives way. True if anything ran. */
static bool run_block(struct block *block)
{
    bool any = false;

    while (run_warps(block) || open_barrier(block, 1, AT_BARRIER)) {
        any = true;
        if (gives_way())
            break;
    }
    return any;
}

static void stuck(unsigned count)
{
    unsigned counts[ENDED + 1] = {0};

    for (unsigned b = 0; b < count; b++)
        for (unsigned i = 0; i < blocks[b].threads; i++)
            counts[blocks[b].fibers[i].state]++;
    fprintf(stderr,
            "emulated kernel: threads wait for each other: %u at a barrier, %u at that of a pair "
            "of blocks, %u in operations of a warp that not all of its lanes reached, %u for "
            "something else, %u ended\n",
            counts[AT_BARRIER], counts[AT_PAIR_BARRIER], counts[IN_GROUP], counts[WAITING],
            counts[ENDED]);
    abort();
}

/* The first `count`, to their end. */
static void run_blocks(unsigned count)
{
    bool any = true;

    while (any) {
        unsigned first = random_below(count);

        any = false;
        for (unsigned i = 0; i < count; i++)
            any |= run_block(&blocks[(first + i) % count]);
        for (unsigned i = 0; i < count && present_pairs; i += PAIR)
            any |= open_barrier(&blocks[i], PAIR, AT_PAIR_BARRIER);
    }
    for (unsigned i = 0; i < count; i++)
        if (blocks[i].ended < blocks[i].threads)
            stuck(count);
}

static void block_begin(struct block *block, const struct block_grid *grid, unsigned number)
{
    struct thread_place *place = &block->place;

    place->block = unfold(number, grid->size);
    place->block_size = grid->block_size;
    place->grid_size = grid->size;
    place->number = (unsigned)(block - blocks);
    if (place->memory == NULL)
        place->memory = aligned_alloc(1024, BLOCK_BYTES);
    if (place->memory == NULL)
        abort();
    memset(place->memory, 0xff, grid->bytes);
    block->threads = volume(grid->block_size);
    block->ended = 0;
    while (block->fibers_made < block->threads)
        fiber_make(&block->fibers[block->fibers_made++]);
    for (unsigned i = 0; i < block->threads; i++)
        block->fibers[i].state = READY;
}

void block_run(void (*kernel)(const void *args), const void *args, const struct block_grid *grid)
{
    unsigned count = volume(grid->size), threads = volume(grid->block_size), first, at_a_time;

    if (threads > THREADS_MAX || threads == 0 || count == 0 || grid->bytes > BLOCK_BYTES ||
        (grid->pairs && (count > MULTIPROCESSORS || grid->size.x % PAIR != 0))) {
        fprintf(stderr, "emulated kernel: %u blocks%s of %u threads and %zu bytes\n", count,
                grid->pairs ? " in pairs" : "", threads, grid->bytes);
        abort();
    }
    present_kernel = kernel;
    present_args = args;
    present_pairs = grid->pairs;
    patience = 1u << 2 * random_below(3);
    at_a_time = grid->pairs ? count : 1;
    first = grid->pairs ? 0 : random_below(count);
    for (unsigned i = 0; i < count; i += at_a_time) {
        for (unsigned b = 0; b < at_a_time; b++)
            block_begin(&blocks[b], grid, (first + i + b) % count);
        run_blocks(at_a_time);
    }
}
