/* SPDX-License-Identifier: MIT */
/* Times layouts of the attention kernel. Build: nvcc -arch=… -std=c++17 -O3 -I. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <vector>

#include "engine/cuda/attention_fused.cuh"

enum { ROUNDS = 40 };

struct problem {
    struct attention args;
    int size;
    std::vector<uint16_t> first; /* layout's result */
};

static uint16_t *device_rows(int64_t rows, int64_t cols, bool random, struct tensor *view)
{
    std::vector<uint16_t> values((size_t)(rows * cols));
    uint16_t *memory;

    for (uint16_t &v : values) {
        float x = 0;
        uint32_t bits;

        for (int i = 0; random && i < 4; i++)
            x += (float)rand() / (float)RAND_MAX - 0.5f;
        x *= 1.7f;
        memcpy(&bits, &x, sizeof bits);
        v = (uint16_t)(bits >> 16);
    }
    cudaMalloc(&memory, values.size() * 2);
    cudaMemcpy(memory, values.data(), values.size() * 2, cudaMemcpyHostToDevice);
    *view = {};
    view->data = memory;
    view->rows = rows;
    view->cols = view->stride = cols;
    view->dtype = DTYPE_BF16;
    return memory;
}

static float of_bits(uint16_t bits)
{
    uint32_t wide = (uint32_t)bits << 16;
    float x;

    memcpy(&x, &wide, sizeof x);
    return x;
}

template <class L> static void time_layout(struct problem *p)
{
    dim3 grid(blocks_for(p->args.q.rows, L::QUERIES), (unsigned)p->args.heads);
    std::vector<uint16_t> result((size_t)(p->args.q.rows * p->args.q.cols));
    double work = 4.0 * (double)p->args.q.rows * (double)p->args.k.rows * (double)p->args.q.cols;
    float best = 1e9f, total = 0, worst = 0;
    cudaEvent_t begin, end;

    cudaEventCreate(&begin);
    cudaEventCreate(&end);
    cudaMemset(p->args.y.data, 0xff, result.size() * 2);
    for (int i = 0; i < ROUNDS; i++) {
        float ms;

        cudaEventRecord(begin);
        kernel_queue(0, grid, L::THREADS, L::BYTES, attention_kernel<L, true, true>, p->args,
                     p->size);
        cudaEventRecord(end);
        cudaEventSynchronize(end);
        cudaEventElapsedTime(&ms, begin, end);
        best = fminf(best, ms);
        total += i >= ROUNDS / 2 ? ms : 0;
    }
    cudaMemcpy(result.data(), p->args.y.data, result.size() * 2, cudaMemcpyDeviceToHost);
    if (p->first.empty())
        p->first = result;
    for (size_t i = 0; i < result.size(); i++)
        worst = fmaxf(worst, fabsf(of_bits(result[i]) - of_bits(p->first[i])));
    total /= ROUNDS - ROUNDS / 2;
    printf("%5d x %5d, %2d heads of %3d: %d x 16 queries, %3d keys, %d warps, %d tiles, %d blocks: "
           "%7.3f ms at best, %7.3f mean, %6.1f TFLOP/s, off by %.5f, %s\n",
           (int)p->args.q.rows, (int)p->args.k.rows, p->args.heads, p->size, L::STRIPES, L::KEYS,
           L::THREADS / 32, L::TILES, L::BLOCKS, best, total, work / total / 1e9, worst,
           cudaGetErrorString(cudaGetLastError()));
}

static void time_problem(int tokens, int heads, int size)
{
    struct problem p = {};

    p.size = size;
    p.args.heads = heads;
    p.args.scale = 1.0f / sqrtf((float)size);
    device_rows(tokens, heads * size, true, &p.args.q);
    device_rows(tokens, heads * size, true, &p.args.k);
    device_rows(tokens, heads * size, true, &p.args.v);
    device_rows(tokens, heads * size, false, &p.args.y);
    time_layout<layout<128, 2, 32, 4, 2, 2>>(&p);
    time_layout<layout<128, 2, 32, 4, 3, 2>>(&p);
    time_layout<layout<128, 2, 32, 4, 4, 2>>(&p);
    time_layout<layout<128, 2, 64, 4, 2, 2>>(&p);
    time_layout<layout<128, 2, 64, 4, 3, 2>>(&p);
    time_layout<layout<128, 2, 64, 8, 2, 1>>(&p);
    time_layout<layout<128, 2, 64, 8, 4, 1>>(&p);
    time_layout<layout<128, 1, 32, 4, 3, 3>>(&p);
    time_layout<layout<128, 1, 64, 4, 2, 3>>(&p);
    time_layout<layout<128, 1, 64, 4, 3, 3>>(&p);
    time_layout<layout<128, 1, 64, 4, 3, 2>>(&p);
    time_layout<layout<128, 1, 64, 4, 4, 2>>(&p);
    time_layout<layout<128, 1, 64, 8, 4, 1>>(&p);
    time_layout<layout<128, 1, 128, 8, 3, 1>>(&p);
    cudaFree(p.args.q.data);
    cudaFree(p.args.k.data);
    cudaFree(p.args.v.data);
    cudaFree(p.args.y.data);
}

int main(void)
{
    time_problem(4608, 24, 128);
    time_problem(1536, 24, 128);
    return 0;
}
