/* SPDX-License-Identifier: MIT */
#include "engine/cuda/kernel.cuh"

enum { TILE = 16 };

/* grid (⌈m/16⌉, ⌈n/16⌉), block 16 × 16: a thread computes one element of y; tiles of x and w pass
 * through shared memory, 16 of k at a time, zeros beyond the ends. w(j, l) lies at
 * w[j·w_n + l·w_k]. */
template <typename Y> __global__ void plain_kernel(struct gemm args, int64_t w_n, int64_t w_k)
{
    __shared__ float xs[TILE][TILE + 1], ws[TILE][TILE + 1];
    const bf16 *x = (const bf16 *)args.x, *w = (const bf16 *)args.w;
    const bf16 *bias = (const bf16 *)args.bias;
    int64_t row = (int64_t)blockIdx.x * TILE + threadIdx.y;
    int64_t col = (int64_t)blockIdx.y * TILE + threadIdx.x;
    int64_t w_row = (int64_t)blockIdx.y * TILE + threadIdx.y;
    float sum = 0;

    for (int64_t k0 = 0; k0 < args.k; k0 += TILE) {
        int64_t l = k0 + threadIdx.x;

        xs[threadIdx.y][threadIdx.x] =
            row < args.m && l < args.k ? load(&x[row * args.x_stride + l]) : 0;
        ws[threadIdx.y][threadIdx.x] =
            w_row < args.n && l < args.k ? load(&w[w_row * w_n + l * w_k]) : 0;
        __syncthreads();
        for (int i = 0; i < TILE; i++)
            sum += xs[threadIdx.y][i] * ws[threadIdx.x][i];
        __syncthreads();
    }
    if (row < args.m && col < args.n) {
        sum = args.alpha * sum + (args.bias != NULL ? load(&bias[col]) : 0);
        Y *y = (Y *)args.y + row * args.y_stride + col;
        store(y, activate(sum, args.activation));
    }
}

extern "C" void gemm_plain(struct cuda_backend *cuda, const struct gemm *args)
{
    dim3 grid(blocks_for(args->m, TILE), blocks_for(args->n, TILE)), block(TILE, TILE);
    int64_t w_n = args->plain_w ? 1 : args->w_stride, w_k = args->plain_w ? args->w_stride : 1;

    if (args->y_dtype == DTYPE_F32)
        launch(cuda, "linear", grid, block, plain_kernel<float>, *args, w_n, w_k);
    else
        launch(cuda, "linear", grid, block, plain_kernel<bf16>, *args, w_n, w_k);
}

/* grid ⌈n/256⌉, block 256: a thread copies one element. */
__global__ void widen_kernel(float *y, const bf16 *x, int64_t n)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;

    if (i < n)
        y[i] = load(&x[i]);
}

extern "C" void gemm_widen_bias(struct cuda_backend *cuda, const struct gemm *args)
{
    launch(cuda, "linear: bias", blocks_for(args->n, 256), 256, widen_kernel,
           (float *)cuda_bias_area(cuda), (const bf16 *)args->bias, args->n);
}
