/* SPDX-License-Identifier: MIT */
/*
 * A kernel's blocks on the CPU: each thread of a block is a fiber that runs until it waits for
 * others, at a barrier or in an operation that several threads carry out together.
 *
 * Blocks run one after another; those of a grid in pairs (clusters of two) all at a time, so that
 * they can wait for each other.
 *
 * What CUDA leaves open is decided at random (the same in every run): the order of blocks, of warps
 * and of lanes. What CUDA forbids ends the process with a message: lanes of a warp that wait in
 * different places, or an operation that some of its threads never reach.
 */
#ifndef FLUXFS_TESTS_KERNELS_EMULATE_BLOCK_H
#define FLUXFS_TESTS_KERNELS_EMULATE_BLOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { WARP_LANES = 32, GROUP_LANES_MAX = 128 };

/* The device's multiprocessors: so many blocks run at a time, if they take all of a multiprocessor.
 * Few, so that a block has more than one thing to do; odd, so that pairs leave one over. And what a
 * block's memory can be there, as on Hopper. */
enum { MULTIPROCESSORS = 5, BLOCK_BYTES = 227 << 10 };

struct extent {
    unsigned x, y, z;
};

/* Of the thread that runs, its block and the grid; what kernels call threadIdx and so on. */
struct thread_place {
    struct extent thread, block, block_size, grid_size;
    unsigned number; /* of the block, among those that run at a time */
    void *memory;    /* the block's; NaN at first */
};
extern struct thread_place *block_place;

struct block_grid {
    struct extent size, block_size;
    size_t bytes; /* of a block's memory */
    bool pairs;   /* a block of an even x makes one with the next; at most MULTIPROCESSORS blocks */
};

/* Runs all blocks of a grid; `kernel` is called once for each thread. */
void block_run(void (*kernel)(const void *args), const void *args, const struct block_grid *grid);

/* ---- for kernels ---- */

/* Returns when all threads of the block have called it, or ended. */
void block_barrier(void);

/* The same for both blocks of the pair. */
void block_pair_barrier(void);

/* What lies in the memory of block `rank` (0, 1) of the pair where `own` does in the block's own.
 */
void *block_of_pair(void *own, unsigned rank);

/* Returns when all threads of an aligned group of `count` (32: a warp, 128: a warpgroup) have
 * called it with the same operation, and that was run once, on what each of them brought. */
typedef void group_operation(void *const brought[]);
void block_together(unsigned count, group_operation *operation, void *brought);

/* Returns when the condition holds: it is asked whenever the thread could go on. */
typedef bool block_condition(void *of);
void block_wait(block_condition *condition, void *of);

/* True half of the time. */
bool block_coin(void);

#ifdef __cplusplus
}
#endif
#endif
