/* SPDX-License-Identifier: MIT */
/* engine/cuda/launch.cuh for kernels that run on the CPU: the words of CUDA C that a C++ compiler
 * does not know. */
#ifndef FLUXFS_TESTS_KERNELS_EMULATE_LAUNCH_CUH
#define FLUXFS_TESTS_KERNELS_EMULATE_LAUNCH_CUH

#include <algorithm>
#include <cmath>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <tuple>

#include "tests/kernels/emulate/block.h"
#include "tests/kernels/emulate/device.h"

/* One block runs at a time, so that its shared memory may be static. */
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
    float given, got;
    int mask;
};

static inline void exchange_lanes(void *const lanes[])
{
    for (int i = 0; i < WARP_LANES; i++) {
        struct lane_exchange *lane = (struct lane_exchange *)lanes[i];

        lane->got = ((const struct lane_exchange *)lanes[i ^ lane->mask])->given;
    }
}

static inline float __shfl_xor_sync(unsigned members, float given, int mask)
{
    struct lane_exchange exchange = {given, 0, mask};

    block_together(WARP_LANES, exchange_lanes, &exchange);
    return exchange.got;
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

/* As much as a block of a Hopper card gets. */
enum { BLOCK_BYTES = 227 << 10 };

template <typename T> static inline T *block_memory()
{
    alignas(1024) static unsigned char block_bytes[BLOCK_BYTES];

    return (T *)block_bytes;
}

template <typename... P, typename... A>
static cudaError_t kernel_queue(cudaStream_t stream, dim3 grid, dim3 block, size_t bytes,
                                void (*kernel)(P...), A... args)
{
    struct kernel_call<P...> call = {
        kernel, std::tuple<P...>(P(args)...)
    };

    if (bytes > BLOCK_BYTES)
        return cudaErrorInvalidValue;
    device_queue_kernel(stream, kernel_call<P...>::run, &call, sizeof call,
                        {grid.x, grid.y, grid.z}, {block.x, block.y, block.z});
    return cudaSuccess;
}

#endif
