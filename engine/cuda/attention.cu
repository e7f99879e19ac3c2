/* SPDX-License-Identifier: MIT */
/*
 * Attention. Heads of up to 128 go through one fused kernel, larger ones through matrix products,
 * with the scores of some queries at a time in the workspace. Where cuDNN is there, and the card is
 * not a Hopper, it does what it can (dnn.h).
 */
#include <assert.h>

#include "engine/cuda/attention_fused.cuh"

/* ---- fused ---- */

enum { BLOCK_RESERVE = 1024 }; /* shared memory that the device takes for itself, a block */

static bool is_aligned(const struct attention *args)
{
    const struct tensor *tensors[] = {&args->y, &args->q, &args->k, &args->v};
    bool aligned = args->q.cols / args->heads % 8 == 0;

    for (const struct tensor *t : tensors)
        aligned &= t->stride % 8 == 0 && (uintptr_t)t->data % 16 == 0;
    return aligned;
}

static bool is_plain(const struct attention *args)
{
    return is_aligned(args) && !args->causal && args->bias.data == NULL;
}

template <class L>
static void fused_queue(struct cuda_backend *cuda, const struct attention *args,
                        void (*kernel)(struct attention args, int size))
{
    dim3 grid(blocks_for(args->q.rows, L::QUERIES), (unsigned)args->heads);

    launch_with_memory(cuda, "attention", grid, L::THREADS, L::BYTES, kernel, *args,
                       (int)(args->q.cols / args->heads));
}

template <class L>
static void attention_fused(struct cuda_backend *cuda, const struct attention *args)
{
    fused_queue<L>(cuda, args,
                   is_plain(args)     ? attention_kernel<L, true, true>
                   : is_aligned(args) ? attention_kernel<L, true, false>
                                      : attention_kernel<L, false, false>);
}

static bool by_hopper(struct cuda_backend *cuda, const struct attention *args, int64_t size)
{
    return cuda->capability == 90 && size > 64 && size <= 128 && is_plain(args) &&
           attention_hopper(cuda, args);
}

/* Heads of 65 to 128. */
static void attention_of_128(struct cuda_backend *cuda, const struct attention *args)
{
    typedef layout<128, 2, 32, 4, 2, 2> narrow;
    typedef layout<128, 2, 64, 4, 2, 2> roomy;
    bool room = cuda->shared_bytes >= roomy::BLOCKS * (roomy::BYTES + BLOCK_RESERVE);

    if (room && is_plain(args))
        fused_queue<roomy>(cuda, args, attention_kernel<roomy, true, true>);
    else
        attention_fused<narrow>(cuda, args);
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
    product.tiled = true;
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

    assert(args->q.dtype == DTYPE_BF16 && args->y.dtype == DTYPE_BF16 && args->scale > 0);
    if (args->q.rows == 0 || args->k.rows == 0 || dnn_attention(cuda, args) ||
        by_hopper(cuda, args, size))
        return;
    if (size <= 64) /* small blocks, many at once: they wait for the bias */
        attention_fused<layout<64, 1, 32, 4, 3, 4>>(cuda, args);
    else if (size <= 128)
        attention_of_128(cuda, args);
    else
        attention_by_products(cuda, args);
}
