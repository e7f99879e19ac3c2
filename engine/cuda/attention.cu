/* SPDX-License-Identifier: MIT */
/*
 * Attention. Heads of up to 128 go through one fused kernel with a running maximum and sum (online
 * softmax, arXiv 1805.02867, in the arrangement of FlashAttention 2, arXiv 2307.08691); larger ones
 * through matrix products, with the scores of some queries at a time in the workspace. Where cuDNN
 * is there, it does what it can (dnn.h).
 */
#include <assert.h>

#include "engine/cuda/mma.cuh"

enum { WARPS = 4, THREADS = 32 * WARPS, QUERIES = 16 * WARPS, KEYS = 64 };

/* Elements that a row in shared memory is longer than its head: 16 bytes, so that the rows of an
 * 8 × 8 matrix lie in different banks. */
enum { PADDING = 8 };

#define LOG2_E 1.4426950409f

/* ---- fused ---- */

/* Keys or values `first` … `first + 63` of a head to shared memory, zeros beyond the last key and
 * beyond the head's size. WIDE: addresses and strides are multiples of 16 bytes, size of 8. */
template <int D, bool WIDE>
__device__ inline void tile_load(bf16 (*tile)[D + PADDING], struct tensor t, int64_t column,
                                 int64_t first, int size)
{
    const bf16 *base = (const bf16 *)t.data + column;

    if (WIDE) {
        for (int i = threadIdx.x; i < KEYS * (D / 8); i += THREADS) {
            int row = i / (D / 8), d = i % (D / 8) * 8;
            bool there = first + row < t.rows && d < size;

            copy_async(&tile[row][d], there ? base + (first + row) * t.stride + d : base, there);
        }
    } else {
        for (int i = threadIdx.x; i < KEYS * D; i += THREADS) {
            int row = i / D, d = i % D;

            tile[row][d] = first + row < t.rows && d < size ? base[(first + row) * t.stride + d]
                                                            : __float2bfloat16_rn(0.0f);
        }
    }
}

/* Two neighbouring elements of a query, as an operand. */
__device__ inline uint32_t query_pair(struct tensor q, int64_t column, int64_t row, int d, int size)
{
    const bf16 *p = (const bf16 *)q.data + row * q.stride + column + d;
    bool there = row < q.rows;

    return pair(there && d < size ? load(p) : 0.0f, there && d + 1 < size ? load(p + 1) : 0.0f);
}

/* Scores of 16 queries and 64 keys, in units of log₂: scaled, biased, −∞ where nothing is to be
 * seen. `row` is this lane's first query, the other is 8 below. */
__device__ inline void scores_finish(float s[KEYS / 8][4], const struct attention &args,
                                     int64_t row, int64_t first_key)
{
    int64_t bias_row = (int64_t)blockIdx.y * args.q.rows + row;
    const float *bias = (const float *)args.bias.data;

#pragma unroll
    for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int below = i / 2 * 8;
            int64_t key = first_key + n * 8 + threadIdx.x % 4 * 2 + i % 2;
            bool seen = key < args.k.rows && (!args.causal || key <= row + below);
            float score = s[n][i] * args.scale;

            if (bias != NULL && seen && row + below < args.q.rows)
                score += bias[(bias_row + below) * args.bias.stride + key];
            s[n][i] = seen ? score * LOG2_E : -INFINITY;
        }
    }
}

/* One of a lane's two queries (half 0 or 1): scores become weights; returns what the sums so far
 * are to be multiplied by. */
__device__ inline float softmax_step(float s[KEYS / 8][4], int half, float &maximum, float &sum)
{
    float highest = maximum, shift, rescale;

#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
        highest = fmaxf(highest, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
    /* Four lanes share a query. */
    highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 1));
    highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 2));
    shift = highest == -INFINITY ? 0.0f : highest;
    rescale = exp2f(maximum - shift);
    maximum = highest;
    sum *= rescale;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; i++) {
            s[n][i] = exp2f(s[n][i] - shift);
            sum += s[n][i];
        }
    }
    return rescale;
}

/* s = q·kᵀ: [16, 64] of a warp. */
template <int D>
__device__ inline void scores_compute(float s[KEYS / 8][4], const uint32_t q[D / 16][4],
                                      const bf16 (*k)[D + PADDING])
{
    int lane = threadIdx.x % 32, key = lane / 16 * 8 + lane % 8, d = lane / 8 % 2 * 8;
    uint32_t b[4];

#pragma unroll
    for (int n = 0; n < KEYS / 8; n += 2) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            s[n][i] = s[n + 1][i] = 0;
#pragma unroll
        for (int i = 0; i < D / 16; i++) {
            load_matrices(b, &k[n * 8 + key][i * 16 + d]);
            mma(s[n], q[i], b[0], b[1]);
            mma(s[n + 1], q[i], b[2], b[3]);
        }
    }
}

/* o += p·v, where the weights p are still laid out as scores: as c of two products of 8 keys,
 * which is as a of one product of 16. */
template <int D>
__device__ inline void output_add(float o[D / 8][4], const float p[KEYS / 8][4],
                                  const bf16 (*v)[D + PADDING])
{
    int lane = threadIdx.x % 32, key = lane / 8 % 2 * 8 + lane % 8, d = lane / 16 * 8;

#pragma unroll
    for (int i = 0; i < KEYS / 16; i++) {
        uint32_t a[4] = {pair(p[2 * i][0], p[2 * i][1]), pair(p[2 * i][2], p[2 * i][3]),
                         pair(p[2 * i + 1][0], p[2 * i + 1][1]),
                         pair(p[2 * i + 1][2], p[2 * i + 1][3])};
        uint32_t b[4];

#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            load_transposed(b, &v[i * 16 + key][n * 8 + d]);
            mma(o[n], a, b[0], b[1]);
            mma(o[n + 1], a, b[2], b[3]);
        }
    }
}

/* y = o/sum for one of a lane's two queries. */
template <int D>
__device__ inline void output_store(const float o[D / 8][4], int half, float sum,
                                    const struct attention &args, int64_t column, int64_t row,
                                    int size)
{
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    if (row >= args.y.rows)
        return;
    bf16 *y = (bf16 *)args.y.data + row * args.y.stride + column;
    float inverse = 1.0f / sum;

#pragma unroll
    for (int n = 0; n < D / 8; n++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int d = n * 8 + (int)threadIdx.x % 4 * 2 + i;

            if (d < size)
                store(&y[d], o[n][2 * half + i] * inverse);
        }
    }
}

/* grid (⌈queries/64⌉, heads), block 128 of 4 warps: a warp does 16 queries of one head, the keys
 * pass by in tiles of 64. The tile of values is fetched while scores are computed, the next tile of
 * keys while values are summed. D: the head's size, or more. */
template <int D, bool WIDE>
__global__ void __launch_bounds__(THREADS, 2) attention_kernel(struct attention args, int size)
{
    __shared__ __align__(16) bf16 k[KEYS][D + PADDING], v[KEYS][D + PADDING];
    int64_t column = (int64_t)blockIdx.y * size, block_row = (int64_t)blockIdx.x * QUERIES;
    int64_t row = block_row + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
    int64_t keys = args.causal ? min(args.k.rows, block_row + QUERIES) : args.k.rows;
    uint32_t q[D / 16][4];
    float s[KEYS / 8][4], o[D / 8][4] = {}, maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};

#pragma unroll
    for (int i = 0; i < D / 16; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++)
            q[i][j] = query_pair(args.q, column, row + j % 2 * 8,
                                 i * 16 + (int)threadIdx.x % 4 * 2 + j / 2 * 8, size);
    }
    tile_load<D, WIDE>(k, args.k, column, 0, size);
    for (int64_t first = 0; first < keys; first += KEYS) {
        copies_wait();
        __syncthreads(); /* keys are there; values of the tile before are done with */
        tile_load<D, WIDE>(v, args.v, column, first, size);
        scores_compute<D>(s, q, k);
        scores_finish(s, args, row, first);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float rescale = softmax_step(s, half, maximum[half], sum[half]);
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                o[n][2 * half] *= rescale;
                o[n][2 * half + 1] *= rescale;
            }
        }
        copies_wait();
        __syncthreads(); /* values are there; keys are done with */
        if (first + KEYS < keys)
            tile_load<D, WIDE>(k, args.k, column, first + KEYS, size);
        output_add<D>(o, s, v);
    }
    output_store<D>(o, 0, sum[0], args, column, row, size);
    output_store<D>(o, 1, sum[1], args, column, row + 8, size);
}

static bool wide(struct tensor t, int size)
{
    return size % 8 == 0 && t.stride % 8 == 0 && (uintptr_t)t.data % 16 == 0;
}

template <int D>
static void attention_fused(struct cuda_backend *cuda, const struct attention *args)
{
    int size = (int)(args->q.cols / args->heads);
    dim3 grid(blocks_for(args->q.rows, QUERIES), (unsigned)args->heads);

    if (wide(args->k, size) && wide(args->v, size))
        launch(cuda, "attention", grid, THREADS, attention_kernel<D, true>, *args, size);
    else
        launch(cuda, "attention", grid, THREADS, attention_kernel<D, false>, *args, size);
}

/* ---- by matrix products ---- */

enum { SOFTMAX_THREADS = 256, AREA_ALIGNMENT = 256 };

/* Some queries of one head, in the workspace's tile area. */
struct scores {
    float *scores; /* [count, keys], scaled */
    bf16 *weights; /* [count, keys] */
    int64_t first, count;
    int head;
};

/* grid count, block 256: a block turns the scores of one query into weights; a thread takes every
 * 256th key. */
__global__ void softmax_kernel(struct attention args, struct scores work)
{
    int64_t keys = args.k.rows, query = work.first + blockIdx.x;
    int64_t seen = args.causal ? min(keys, query + 1) : keys;
    float *scores = work.scores + blockIdx.x * keys, maximum = -INFINITY, sum = 0;
    bf16 *weights = work.weights + blockIdx.x * keys;
    const float *bias = (const float *)args.bias.data;

    if (bias != NULL)
        bias += (work.head * args.q.rows + query) * args.bias.stride;
    for (int64_t i = threadIdx.x; i < seen; i += SOFTMAX_THREADS) {
        scores[i] += bias != NULL ? bias[i] : 0.0f;
        maximum = fmaxf(maximum, scores[i]);
    }
    maximum = block_reduce<SOFTMAX_THREADS, true>(maximum);
    for (int64_t i = threadIdx.x; i < seen; i += SOFTMAX_THREADS) {
        scores[i] = exp2f((scores[i] - maximum) * LOG2_E);
        sum += scores[i];
    }
    sum = block_reduce<SOFTMAX_THREADS, false>(sum);
    for (int64_t i = threadIdx.x; i < keys; i += SOFTMAX_THREADS)
        store(&weights[i], i < seen ? scores[i] / sum : 0.0f);
}

static void attend(struct cuda_backend *cuda, const struct attention *args,
                   const struct scores *work)
{
    int64_t size = args->q.cols / args->heads, keys = args->k.rows;
    struct gemm product = {};

    product.y = work->scores;
    product.x = (const bf16 *)args->q.data + work->first * args->q.stride + work->head * size;
    product.w = (const bf16 *)args->k.data + work->head * size;
    product.y_stride = keys;
    product.x_stride = args->q.stride;
    product.w_stride = args->k.stride;
    product.m = work->count;
    product.n = keys;
    product.k = size;
    product.y_dtype = DTYPE_F32;
    product.alpha = args->scale;
    cuda_gemm(cuda, &product);

    launch(cuda, "attention", (unsigned)work->count, SOFTMAX_THREADS, softmax_kernel, *args, *work);

    product.y = (bf16 *)args->y.data + work->first * args->y.stride + work->head * size;
    product.x = work->weights;
    product.w = (const bf16 *)args->v.data + work->head * size;
    product.y_stride = args->y.stride;
    product.x_stride = keys;
    product.w_stride = args->v.stride;
    product.n = size;
    product.k = keys;
    product.y_dtype = DTYPE_BF16;
    product.plain_w = true;
    product.alpha = 1.0f;
    cuda_gemm(cuda, &product);
}

static void attention_by_products(struct cuda_backend *cuda, const struct attention *args)
{
    int64_t keys = args->k.rows, queries = args->q.rows;
    int64_t each = keys * (int64_t)(sizeof(float) + sizeof(bf16));
    int64_t run = ((int64_t)CUDA_TILE_BYTES - AREA_ALIGNMENT) / each, scores_bytes;
    struct scores work = {};

    assert(run > 0);
    /* Whole tiles of the matrix units. */
    run = run > 128 ? run - run % 128 : run;
    run = run < queries ? run : queries;
    scores_bytes = run * keys * (int64_t)sizeof(float) + AREA_ALIGNMENT - 1;
    scores_bytes -= scores_bytes % AREA_ALIGNMENT;
    work.scores = (float *)cuda_tile_area(cuda);
    work.weights = (bf16 *)((char *)work.scores + scores_bytes);
    for (work.head = 0; work.head < args->heads; work.head++) {
        for (work.first = 0; work.first < queries; work.first += run) {
            work.count = queries - work.first < run ? queries - work.first : run;
            attend(cuda, args, &work);
        }
    }
}

extern "C" void cuda_attention(struct backend *backend, const struct attention *args)
{
    struct cuda_backend *cuda = cuda_of(backend);
    int64_t size = args->q.cols / args->heads;

    assert(args->q.dtype == DTYPE_BF16 && args->y.dtype == DTYPE_BF16);
    if (args->q.rows == 0 || args->k.rows == 0 || dnn_attention(cuda, args))
        return;
    if (size <= 64)
        attention_fused<64>(cuda, args);
    else if (size <= 128)
        attention_fused<128>(cuda, args);
    else
        attention_by_products(cuda, args);
}
