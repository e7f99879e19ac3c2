/* SPDX-License-Identifier: MIT */
/* Norms over groups of channels and all rows. */
#include <assert.h>

#include "engine/cuda/kernel.cuh"

enum { BLOCK = 256 };

enum { SUM_COLUMNS = 32, SUM_ROWS = 8, CHUNK_ROWS = 256 };
static const int64_t chunks_max = 1024;

/* grid ⌈channels/256⌉, block 256: part 0 gives each channel its origin. */
__global__ void origin_kernel(struct tensor sums, struct tensor x)
{
    int64_t channel = (int64_t)blockIdx.x * BLOCK + threadIdx.x;

    if (channel < x.cols)
        ((float *)sums.data)[channel] = load((const bf16 *)x.data + channel);
}

/* grid (chunks, ⌈channels/32⌉), block (32, 8): a block sums 32 channels over `each` rows; a thread
 * takes every 8th row of one channel, then the 8 sums of a channel are added in order. x counts
 * from the channel's origin: a mean far from zero would swallow the variance. chunk_sums fp32
 * [chunks, 2, channels]: of x, of x². */
__global__ void chunk_sums_kernel(struct tensor sums, struct tensor x, int64_t each,
                                  float *chunk_sums)
{
    __shared__ float parts[2][SUM_ROWS][SUM_COLUMNS];
    int64_t channel = (int64_t)blockIdx.y * SUM_COLUMNS + threadIdx.x;
    int64_t first = (int64_t)blockIdx.x * each, last = min(first + each, x.rows);
    const bf16 *in = (const bf16 *)x.data + channel;
    float origin = channel < x.cols ? ((const float *)sums.data)[channel] : 0;
    float sum = 0, squares = 0;

    if (channel < x.cols)
        for (int64_t row = first + threadIdx.y; row < last; row += SUM_ROWS) {
            float v = load(&in[row * x.stride]) - origin;
            sum += v;
            squares += v * v;
        }
    parts[0][threadIdx.y][threadIdx.x] = sum;
    parts[1][threadIdx.y][threadIdx.x] = squares;
    __syncthreads();
    if (threadIdx.y >= 2 || channel >= x.cols)
        return;
    sum = 0;
    for (int i = 0; i < SUM_ROWS; i++)
        sum += parts[threadIdx.y][i][threadIdx.x];
    chunk_sums[(2 * (int64_t)blockIdx.x + threadIdx.y) * x.cols + channel] = sum;
}

/* grid ⌈2·channels/256⌉, block 256: a thread adds up one sum's chunks in order, in fp64. */
__global__ void part_sums_kernel(struct tensor sums, int part, int64_t chunks,
                                 const float *chunk_sums)
{
    int64_t item = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    double sum = 0;

    if (item >= 2 * sums.cols)
        return;
    for (int64_t chunk = 0; chunk < chunks; chunk++)
        sum += chunk_sums[chunk * 2 * sums.cols + item];
    ((float *)sums.data)[(1 + 2 * part + item / sums.cols) * sums.stride + item % sums.cols] =
        (float)sum;
}

extern "C" void cuda_channel_sums(struct backend *backend, struct tensor sums, struct tensor x,
                                  int part)
{
    struct cuda_backend *cuda = cuda_of(backend);
    int64_t channels = x.cols, chunks = blocks_for(x.rows, CHUNK_ROWS), each;
    float *chunk_sums = (float *)cuda_tile_area(cuda);

    assert(x.dtype == DTYPE_BF16 && x.rows > 0);
    chunks = chunks < chunks_max ? chunks : chunks_max;
    each = (x.rows + chunks - 1) / chunks;
    assert((size_t)(2 * channels * chunks) * sizeof(float) <= CUDA_TILE_BYTES);
    if (part == 0)
        launch(cuda, "channel_sums", blocks_for(channels, BLOCK), BLOCK, origin_kernel, sums, x);
    launch(cuda, "channel_sums", dim3((unsigned)chunks, blocks_for(channels, SUM_COLUMNS)),
           dim3(SUM_COLUMNS, SUM_ROWS), chunk_sums_kernel, sums, x, each, chunk_sums);
    launch(cuda, "channel_sums", blocks_for(2 * channels, BLOCK), BLOCK, part_sums_kernel, sums,
           part, chunks, chunk_sums);
}

/* The sum over the block in fp64, in an order that is always the same. */
__device__ static double block_sum_double(double x)
{
    __shared__ double parts[BLOCK];

    parts[threadIdx.x] = x;
    __syncthreads();
    for (int half = BLOCK / 2; half > 0; half /= 2) {
        if ((int)threadIdx.x < half)
            parts[threadIdx.x] += parts[threadIdx.x + half];
        __syncthreads();
    }
    x = parts[0];
    __syncthreads();
    return x;
}

/* grid groups, block 256: a block adds up one group's sums in fp64 and gives each of its channels
 * factor and offset. */
__global__ void group_affine_kernel(struct group_norm args)
{
    int64_t each = args.sums.cols / args.groups, first = blockIdx.x * each;
    int64_t parts = (args.sums.rows - 1) / 2, stride = args.sums.stride;
    const float *weight = (const float *)args.weight.data, *bias = (const float *)args.bias.data;
    float *factor = (float *)args.affine.data, *offset = factor + args.affine.stride;
    const float *origin = (const float *)args.sums.data + first, *sums = origin + stride;
    double rows = (double)args.rows, count = (double)each * rows, mean = 0, squares = 0;

    for (int64_t c = threadIdx.x; c < each; c += BLOCK)
        mean += rows * origin[c];
    for (int64_t i = threadIdx.x; i < parts * each; i += BLOCK)
        mean += sums[i / each * 2 * stride + i % each];
    mean = block_sum_double(mean) / count;
    for (int64_t c = threadIdx.x; c < each; c += BLOCK)
        squares += rows * (mean - origin[c]) * (mean - origin[c]);
    for (int64_t i = threadIdx.x; i < parts * each; i += BLOCK) {
        const float *part = sums + i / each * 2 * stride + i % each;
        squares += part[stride] - 2 * (mean - origin[i % each]) * part[0];
    }
    squares = block_sum_double(squares);
    double inverse = 1.0 / sqrt((squares > 0 ? squares / count : 0) + (double)args.eps);

    for (int64_t c = first + threadIdx.x; c < first + each; c += BLOCK) {
        factor[c] = (float)(inverse * weight[c]);
        offset[c] = (float)(bias[c] - mean * inverse * weight[c]);
    }
}

extern "C" void cuda_group_norm(struct backend *backend, const struct group_norm *args)
{
    struct cuda_backend *cuda = cuda_of(backend);

    launch(cuda, "group_norm", args->groups, BLOCK, group_affine_kernel, *args);
}

/* grid rows, block 256: a block does one row, a thread every 256th channel. */
__global__ void affine_kernel(struct tensor y, struct tensor x, struct tensor affine)
{
    const bf16 *in = (const bf16 *)x.data + blockIdx.x * x.stride;
    const float *factor = (const float *)affine.data, *offset = factor + affine.stride;
    bf16 *out = (bf16 *)y.data + blockIdx.x * y.stride;

    for (int64_t c = threadIdx.x; c < x.cols; c += BLOCK)
        store(&out[c], load(&in[c]) * factor[c] + offset[c]);
}

extern "C" void cuda_affine(struct backend *backend, struct tensor y, struct tensor x,
                            struct tensor affine)
{
    struct cuda_backend *cuda = cuda_of(backend);

    assert(x.dtype == DTYPE_BF16 && y.dtype == DTYPE_BF16);
    if (x.rows == 0)
        return;
    launch(cuda, "affine", (unsigned)x.rows, BLOCK, affine_kernel, y, x, affine);
}
