/* SPDX-License-Identifier: MIT */
/* engine/cuda/launch.cuh for kernels that run on the CPU: the words of CUDA C that a C++ compiler
 * does not know. */
#ifndef FLUXFS_TESTS_KERNELS_EMULATE_LAUNCH_CUH
#define FLUXFS_TESTS_KERNELS_EMULATE_LAUNCH_CUH

#include <algorithm>
#include <cmath>
#include <cstring>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <tuple>

#include "tests/kernels/emulate/block.h"
#include "tests/kernels/emulate/device.h"

/* One block runs at a time, so that its shared memory may be static; but not in grids of pairs,
 * whose kernels have what block_memory gives. */
#undef __shared__
#define __shared__ static
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__

#define threadIdx (block_place->thread)
#define blockIdx (block_place->block)
#define blockDim (block_place->block_size)
#define gridDim (block_place->grid_size)

using std::max;
using std::min;

static inline void __syncthreads()
{
    block_barrier();
}

/* What a lane gives to the lane whose number differs from its own in the bits of `mask`. */
struct lane_exchange {
    uint32_t given, got;
    int mask;
};

static inline void exchange_lanes(void *const lanes[])
{
    for (int i = 0; i < WARP_LANES; i++) {
        struct lane_exchange *lane = (struct lane_exchange *)lanes[i];

        lane->got = ((const struct lane_exchange *)lanes[i ^ lane->mask])->given;
    }
}

template <typename T> static inline T __shfl_xor_sync(unsigned members, T given, int mask)
{
    struct lane_exchange exchange = {0, 0, mask};

    static_assert(sizeof given == sizeof exchange.given);
    memcpy(&exchange.given, &given, sizeof given);
    block_together(WARP_LANES, exchange_lanes, &exchange);
    memcpy(&given, &exchange.got, sizeof given);
    return given;
}

static inline void meet_lanes(void *const lanes[])
{
}

static inline void __syncwarp()
{
    block_together(WARP_LANES, meet_lanes, NULL);
}

/* What a lane says, then whether any said yes. */
static inline void ask_lanes(void *const lanes[])
{
    bool any = false;

    for (int i = 0; i < WARP_LANES; i++)
        any |= *(const bool *)lanes[i];
    for (int i = 0; i < WARP_LANES; i++)
        *(bool *)lanes[i] = any;
}

static inline bool __any_sync(unsigned members, bool said)
{
    block_together(WARP_LANES, ask_lanes, &said);
    return said;
}

static inline int __float2int_rn(float x)
{
    return (int)rintf(x);
}

/* A kernel and its arguments, kept until the stream comes to them. */
template <typename... P> struct kernel_call {
    void (*kernel)(P...);
    std::tuple<P...> args;

    static void run(const void *call)
    {
        std::apply(((const kernel_call *)call)->kernel, ((const kernel_call *)call)->args);
    }
};

template <typename T> static inline T *block_memory()
{
    return (T *)block_place->memory;
}

template <typename... P, typename... A>
static cudaError_t grid_queue(cudaStream_t stream, const struct block_grid &grid,
                              void (*kernel)(P...), A... args)
{
    struct kernel_call<P...> call = {
        kernel, std::tuple<P...>(P(args)...)
    };

    if (grid.bytes > BLOCK_BYTES)
        return cudaErrorInvalidValue;
    device_queue_kernel(stream, kernel_call<P...>::run, &call, sizeof call, &grid);
    return cudaSuccess;
}

template <typename... P, typename... A>
static cudaError_t kernel_queue(cudaStream_t stream, dim3 grid, dim3 block, size_t bytes,
                                void (*kernel)(P...), A... args)
{
    return grid_queue(stream, {{grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, bytes, false},
                      kernel, args...);
}

template <typename... P, typename... A>
static cudaError_t kernel_queue_pairs(cudaStream_t stream, dim3 grid, dim3 block, size_t bytes,
                                      void (*kernel)(P...), A... args)
{
    return grid_queue(stream, {{grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, bytes, true},
                      kernel, args...);
}

#endif
