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

/* Queues a kernel on a stream. */
template <typename... P, typename... A>
static cudaError_t kernel_queue(cudaStream_t stream, dim3 grid, dim3 block, void (*kernel)(P...),
                                A... args)
{
    cudaLaunchConfig_t config = {};

    config.gridDim = grid;
    config.blockDim = block;
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, args...);
}

#endif
