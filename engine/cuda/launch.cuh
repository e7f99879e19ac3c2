/* SPDX-License-Identifier: MIT */
/*
 * Where kernels meet the device: what a kernel knows of its place, and how it is started.
 *
 * This file and mma.cuh hold all that only a GPU can do. tests/kernels/emulate has its own version
 * of both, with which the kernels run on a CPU.
 */
#ifndef FLUXFS_ENGINE_CUDA_LAUNCH_CUH
#define FLUXFS_ENGINE_CUDA_LAUNCH_CUH

#include <cuda_bf16.h>
#include <cuda_runtime.h>

/* A block's memory, of the size given at the launch. */
template <typename T> __device__ inline T *block_memory()
{
    extern __shared__ __align__(1024) unsigned char block_bytes[];

    return (T *)block_bytes;
}

/* Lets a block have more than 48 KB, and a multiprocessor as many blocks as it has room for. */
static inline cudaError_t memory_ask(const void *kernel, size_t bytes)
{
    cudaError_t code =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);

    return code != cudaSuccess
               ? code
               : cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                      cudaSharedmemCarveoutMaxShared);
}

template <typename... P, typename... A>
static cudaError_t config_queue(const cudaLaunchConfig_t &config, void (*kernel)(P...), A... args)
{
    size_t bytes = config.dynamicSmemBytes;
    cudaError_t code = bytes > 0 ? memory_ask((const void *)kernel, bytes) : cudaSuccess;

    return code != cudaSuccess ? code : cudaLaunchKernelEx(&config, kernel, args...);
}

/* Queues a kernel on a stream, each block with `bytes` of memory. */
template <typename... P, typename... A>
static cudaError_t kernel_queue(cudaStream_t stream, dim3 grid, dim3 block, size_t bytes,
                                void (*kernel)(P...), A... args)
{
    return config_queue({grid, block, bytes, stream, NULL, 0}, kernel, args...);
}

/* The same in pairs: clusters of two blocks, on Hopper. */
template <typename... P, typename... A>
static cudaError_t kernel_queue_pairs(cudaStream_t stream, dim3 grid, dim3 block, size_t bytes,
                                      void (*kernel)(P...), A... args)
{
    cudaLaunchAttribute pairs = {};

    pairs.id = cudaLaunchAttributeClusterDimension;
    pairs.val.clusterDim.x = 2;
    pairs.val.clusterDim.y = pairs.val.clusterDim.z = 1;
    return config_queue({grid, block, bytes, stream, &pairs, 1}, kernel, args...);
}

#endif
