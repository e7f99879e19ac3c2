/* SPDX-License-Identifier: MIT */
/* Times layouts of the attention kernel. Build: nvcc -arch=… -std=c++17 -O3 -I. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <vector>

#include "engine/cuda/attention_hopper.cu"

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

extern "C" bool cuda_check(struct cuda_backend *cuda, cudaError_t code, const char *what)
{
    if (code != cudaSuccess)
        printf("%s: %s\n", what, cudaGetErrorString(code));
    return code == cudaSuccess;
}

static struct cuda_backend backend;

static void time_kernel(struct problem *p, const char *name, void (*queue)(const struct problem *p))
{
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
        queue(p);
        cudaEventRecord(end);
        cudaEventSynchronize(end);
        cudaEventElapsedTime(&ms, begin, end);
        best = fminf(best, ms);
        total += i >= ROUNDS / 2 ? ms : 0;
    }
    cudaMemcpy(result.data(), p->args.y.data, result.size() * 2, cudaMemcpyDeviceToHost);
    if (p->first.empty())
        p->first = result;
    for (size_t i = 0; i < result.size(); i++) {
        float off = fabsf(of_bits(result[i]) - of_bits(p->first[i]));

        worst = off > worst || off != off ? off : worst;
    }
    total /= ROUNDS - ROUNDS / 2;
    printf("%5d x %5d, %2d x %3d: %-24s %7.3f ms at best, %7.3f mean, %6.1f TFLOP/s, off by %.5f, "
           "%s\n",
           (int)p->args.q.rows, (int)p->args.k.rows, p->args.heads, p->size, name, best, total,
           work / total / 1e9, worst, cudaGetErrorString(cudaGetLastError()));
}

template <class L, bool PLAIN> static void queue_layout(const struct problem *p)
{
    dim3 grid(blocks_for(p->args.q.rows, L::QUERIES), (unsigned)p->args.heads);

    kernel_queue((cudaStream_t)0, grid, L::THREADS, L::BYTES, attention_kernel<L, true, PLAIN>,
                 p->args, p->size);
}

template <class L> static void time_layout(struct problem *p)
{
    char name[64];

    snprintf(name, sizeof name, "%d, %d, %d, %d, %d", L::STRIPES, L::KEYS, L::THREADS / 32,
             L::TILES, L::BLOCKS);
    time_kernel(p, name,
                p->args.bias.data == NULL ? queue_layout<L, true> : queue_layout<L, false>);
}

template <bool TURNS, int BLOCKS> static void queue_hopper(const struct problem *p)
{
    if (!attention_queue<TURNS>(&backend, &p->args, BLOCKS))
        printf("no map\n");
}

static void time_problem(int tokens, int heads, int size, bool hopper)
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
    if (hopper) {
        time_kernel(&p, "hopper", queue_hopper<false, 1000000>);
        time_kernel(&p, "hopper, persistent", queue_hopper<false, 132>);
        time_kernel(&p, "hopper, turns", queue_hopper<true, 1000000>);
        time_kernel(&p, "hopper, turns, pers.", queue_hopper<true, 132>);
    } else {
        time_layout<layout<128, 2, 64, 4, 2, 2>>(&p);
        time_layout<layout<128, 1, 64, 4, 2, 3>>(&p);
    }
    cudaFree(p.args.q.data);
    cudaFree(p.args.k.data);
    cudaFree(p.args.v.data);
    cudaFree(p.args.y.data);
}

/* T5's, with a bias. */
static void time_small(int tokens, int heads, int size)
{
    struct problem p = {};
    struct tensor bias;

    p.size = size;
    p.args.heads = heads;
    p.args.scale = 1;
    device_rows(tokens, heads * size, true, &p.args.q);
    device_rows(tokens, heads * size, true, &p.args.k);
    device_rows(tokens, heads * size, true, &p.args.v);
    device_rows(tokens, heads * size, false, &p.args.y);
    device_rows(heads * tokens, 2 * tokens, false, &bias); /* zeros of fp32 */
    for (int biased = 0; biased < 2; biased++) {
        if (biased)
            p.args.bias = bias;
        p.args.bias.stride = tokens;
        time_layout<layout<64, 2, 32, 4, 2, 2>>(&p);
        time_layout<layout<64, 2, 64, 4, 2, 2>>(&p);
        time_layout<layout<64, 2, 32, 4, 2, 3>>(&p);
        time_layout<layout<64, 1, 32, 4, 3, 4>>(&p);
        time_layout<layout<64, 1, 64, 4, 2, 4>>(&p);
        time_layout<layout<64, 1, 64, 4, 3, 4>>(&p);
        time_layout<layout<64, 1, 64, 4, 3, 3>>(&p);
    }
}

int main(void)
{
    void *function = NULL;
    cudaDriverEntryPointQueryResult found;

    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault,
                                     &found);
    memcpy(&backend.driver.tensor_map, &function, sizeof function);
    setvbuf(stdout, NULL, _IOLBF, 0);
    time_small(512, 64, 64);
    for (int hopper = 0; hopper < 2; hopper++) {
        time_problem(4608, 24, 128, hopper);
        time_problem(1536, 24, 128, hopper);
        time_problem(1000, 24, 104, hopper);
    }
    return 0;
}
