/* SPDX-License-Identifier: MIT */
#include "tests/kernels/emulate/block.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

enum { THREADS_MAX = 1024, STACK_BYTES = 256 << 10 };

enum state { READY, AT_BARRIER, IN_GROUP, WAITING, ENDED };

struct fiber {
    void *resume[5]; /* for __builtin_longjmp */
    enum state state;
    unsigned group_lanes;
    group_operation *operation;
    block_condition *condition;
    void *brought; /* to the group, or what the condition is of */
};

/* One block runs at a time, under the lock of runtime.c. */
static struct fiber fibers[THREADS_MAX];
static unsigned fibers_made;
static struct fiber *running;
static void *scheduler[5];
static struct place place;
struct place *block_place = &place;
static void (*present_kernel)(const void *args);
static const void *present_args;
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

OPAQUE static void enter(struct fiber *fiber)
{
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
    }
}

OPAQUE static void fiber_begin(const ucontext_t *context)
{
    if (__builtin_setjmp(scheduler) == 0)
        setcontext(context);
}

static void fiber_make(struct fiber *fiber)
{
    void *stack =
        mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
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

/* ---- for kernels ---- */

void block_barrier(void)
{
    running->state = AT_BARRIER;
    leave();
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

static void stuck(unsigned threads)
{
    unsigned counts[ENDED + 1] = {0};

    for (unsigned i = 0; i < threads; i++)
        counts[fibers[i].state]++;
    fprintf(stderr,
            "emulated kernel: threads wait for each other: %u at a barrier, %u in operations of a "
            "warp that not all of its lanes reached, %u for something else, %u ended\n",
            counts[AT_BARRIER], counts[IN_GROUP], counts[WAITING], counts[ENDED]);
    abort();
}

static bool can_run(struct fiber *fiber)
{
    if (fiber->state == WAITING && fiber->condition(fiber->brought))
        fiber->state = READY;
    return fiber->state == READY;
}

/* Runs the lanes of a warp that can run; true if any did. */
static bool run_lanes(unsigned warp, unsigned threads)
{
    unsigned lane = random_below(WARP_LANES);
    bool any = false;

    for (unsigned i = 0; i < WARP_LANES; i++) {
        unsigned thread = warp + (lane + i) % WARP_LANES;

        if (thread >= threads || !can_run(&fibers[thread]))
            continue;
        place.thread = unfold(thread, place.block_size);
        enter(&fibers[thread]);
        any = true;
    }
    return any;
}

/* The operation of the group that begins with this thread, if all of it is there. */
static bool run_group(unsigned first, unsigned threads)
{
    const struct fiber *leader = &fibers[first];
    unsigned count = leader->group_lanes;
    void *brought[GROUP_LANES_MAX] = {0};

    if (leader->state != IN_GROUP || first % count != 0 || first + count > threads)
        return false;
    for (unsigned i = 0; i < count; i++) {
        const struct fiber *fiber = &fibers[first + i];

        if (fiber->state != IN_GROUP || fiber->operation != leader->operation ||
            fiber->group_lanes != count)
            return false;
        brought[i] = fiber->brought;
    }
    leader->operation(brought);
    for (unsigned i = 0; i < count; i++)
        fibers[first + i].state = READY;
    return true;
}

/* Runs warps in a random order, each as far as it comes without the others, which shows a barrier
 * that is missing; now and then only a part of that way. True if anything ran. */
static bool run_warps(unsigned threads)
{
    unsigned warps = (threads + WARP_LANES - 1) / WARP_LANES, first = random_below(warps);
    bool any = false;

    for (unsigned w = 0; w < warps; w++) {
        unsigned warp = (first + w) % warps * WARP_LANES;

        while (run_lanes(warp, threads) || run_group(warp, threads)) {
            any = true;
            if (random_below(64) == 0)
                break;
        }
    }
    return any;
}

/* True if all who have not ended were at the barrier, and there were any. */
static bool open_barrier(unsigned threads)
{
    unsigned waiting = 0;

    for (unsigned i = 0; i < threads; i++) {
        if (fibers[i].state != AT_BARRIER && fibers[i].state != ENDED)
            return false;
        waiting += fibers[i].state == AT_BARRIER;
    }
    for (unsigned i = 0; i < threads; i++)
        if (fibers[i].state == AT_BARRIER)
            fibers[i].state = READY;
    return waiting > 0;
}

static void run_one(unsigned threads)
{
    bool ended = false;

    for (unsigned i = 0; i < threads; i++)
        fibers[i].state = READY;
    while (!ended) {
        if (!run_warps(threads) && !open_barrier(threads)) {
            ended = true;
            for (unsigned i = 0; i < threads; i++)
                if (fibers[i].state != ENDED)
                    stuck(threads);
        }
    }
}

void block_run(void (*kernel)(const void *args), const void *args, struct extent grid,
               struct extent block)
{
    unsigned threads = volume(block), blocks = volume(grid), first;

    if (threads > THREADS_MAX || threads == 0 || blocks == 0) {
        fprintf(stderr, "emulated kernel: %u blocks of %u threads\n", blocks, threads);
        abort();
    }
    while (fibers_made < threads)
        fiber_make(&fibers[fibers_made++]);
    present_kernel = kernel;
    present_args = args;
    place.block_size = block;
    place.grid_size = grid;
    first = random_below(blocks);
    for (unsigned i = 0; i < blocks; i++) {
        place.block = unfold((first + i) % blocks, grid);
        run_one(threads);
    }
}
