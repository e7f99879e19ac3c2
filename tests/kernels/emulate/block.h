/* SPDX-License-Identifier: MIT */
/*
 * A kernel's blocks on the CPU: each thread of a block is a fiber that runs until it waits for
 * others, at a barrier or in an operation that several threads carry out together.
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

struct extent {
    unsigned x, y, z;
};

/* Of the thread that runs, its block and the grid; what kernels call threadIdx and so on. */
struct place {
    struct extent thread, block, block_size, grid_size;
};
extern struct place *block_place;

/* Runs all blocks of a grid; `kernel` is called once for each thread. */
void block_run(void (*kernel)(const void *args), const void *args, struct extent grid,
               struct extent block);

/* ---- for kernels ---- */

/* Returns when all threads of the block have called it, or ended. */
void block_barrier(void);

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
