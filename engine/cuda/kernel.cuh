/* SPDX-License-Identifier: MIT */
/* What the kernels share: number types, sums over a warp or a block, launching. */
#ifndef FLUXFS_ENGINE_CUDA_KERNEL_CUH
#define FLUXFS_ENGINE_CUDA_KERNEL_CUH

#include <cublasLt.h>
#include <cuda.h>
#include <pthread.h>
#include <stdint.h>

#include "engine/cuda/launch.cuh"

/* The project's headers are C; those above know C++ themselves. */
extern "C" {
#include "engine/cuda/cuda.h"
}

typedef __nv_bfloat16 bf16;

__device__ inline float load(const float *p)
{
    return *p;
}

__device__ inline float load(const bf16 *p)
{
    return __bfloat162float(*p);
}

__device__ inline void store(float *p, float value)
{
    *p = value;
}

__device__ inline void store(bf16 *p, float value)
{
    *p = __float2bfloat16_rn(value);
}

/* N neighbouring elements, moved as one. */
template <typename T, int N> struct alignas(N * sizeof(T)) pack {
    T v[N];
};

/* N floats, a multiple of 4, that lie at a multiple of 16 bytes. */
template <int N> __device__ inline void floats_load(float to[N], const float *from)
{
    for (int i = 0; i < N; i += 4) {
        pack<float, 4> v = *(const pack<float, 4> *)(from + i);

        for (int j = 0; j < 4; j++)
            to[i + j] = v.v[j];
    }
}

__device__ inline float sigmoid(float x)
{
    return 1.0f / (1.0f + expf(-x));
}

/* ½(1 + tanh u) = σ(2u) */
__device__ inline float gelu_tanh(float x)
{
    return x * sigmoid(1.5957691216f * (x + 0.044715f * x * x * x));
}

__device__ inline float activate(float x, enum activation activation)
{
    switch (activation) {
    case ACTIVATION_GELU_TANH:
        return gelu_tanh(x);
    case ACTIVATION_QUICK_GELU:
        return x * sigmoid(1.702f * x);
    case ACTIVATION_SILU:
        return x * sigmoid(x);
    default:
        return x;
    }
}

/* The sum over the warp, the same in every lane and every run. */
__device__ inline float warp_sum(float x)
{
    for (int i = 16; i > 0; i /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, i);
    return x;
}

__device__ inline float warp_maximum(float x)
{
    for (int i = 16; i > 0; i /= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, i));
    return x;
}

/* Over a block of THREADS (at most 1024, a multiple of 32), in every thread. Ends with a barrier
 * passed by all after the last read, so that it may be called again at once. */
template <int THREADS, bool MAXIMUM> __device__ inline float block_reduce(float x)
{
    __shared__ float parts[THREADS / 32];
    float all;

    x = MAXIMUM ? warp_maximum(x) : warp_sum(x);
    if (threadIdx.x % 32 == 0)
        parts[threadIdx.x / 32] = x;
    __syncthreads();
    all = parts[0];
    for (int i = 1; i < THREADS / 32; i++)
        all = MAXIMUM ? fmaxf(all, parts[i]) : all + parts[i];
    __syncthreads();
    return all;
}

static inline unsigned blocks_for(int64_t items, int64_t each)
{
    return (unsigned)((items + each - 1) / each);
}

/* Queues a kernel on the compute stream; `what` names the operation in an error. */
template <typename... P, typename... A>
static void launch(struct cuda_backend *cuda, const char *what, dim3 grid, dim3 block,
                   void (*kernel)(P...), A... args)
{
    cuda_check(cuda, kernel_queue(cuda->compute, grid, block, 0, kernel, args...), what);
}

/* The same, each block with `bytes` of block_memory(). */
template <typename... P, typename... A>
static void launch_with_memory(struct cuda_backend *cuda, const char *what, dim3 grid, dim3 block,
                               size_t bytes, void (*kernel)(P...), A... args)
{
    cuda_check(cuda, kernel_queue(cuda->compute, grid, block, bytes, kernel, args...), what);
}

/* The same in pairs of blocks (hopper.cuh). */
template <typename... P, typename... A>
static void launch_pairs(struct cuda_backend *cuda, const char *what, dim3 grid, dim3 block,
                         size_t bytes, void (*kernel)(P...), A... args)
{
    cuda_check(cuda, kernel_queue_pairs(cuda->compute, grid, block, bytes, kernel, args...), what);
}

#endif
