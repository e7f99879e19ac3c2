/* SPDX-License-Identifier: MIT */
/* Norms, with statistics in fp32: mean first, then the squares of what is left, as the CPU does. */
#include <assert.h>

#include "engine/cuda/kernel.cuh"

enum { BLOCK = 256 };

/* ---- over a row ---- */

enum { ROW_BLOCK = 128, WIDE = 8, WIDE_THREADS = 576, WIDE_ROWS = 4 };

/* y = (x − mean)·inverse·weight + bias, or with `modulated` ·(1 + weight) + bias; RMS: no mean, no
 * bias. */
struct row_norm {
    const float *weight, *bias; /* [cols] or NULL */
    float eps;
    bool rms, modulated;
};

/* grid rows, block 128: a block norms one row; a thread takes every 128th element. For rows of any
 * length and place: the row is read three times and stays in the L1 cache. y may be x. */
__global__ void row_norm_kernel(struct tensor y, struct tensor x, struct row_norm norm)
{
    const bf16 *in = (const bf16 *)x.data + blockIdx.x * x.stride;
    bf16 *out = (bf16 *)y.data + blockIdx.x * y.stride;
    float sum = 0, squares = 0, mean = 0;

    if (!norm.rms) {
        for (int64_t i = threadIdx.x; i < x.cols; i += ROW_BLOCK)
            sum += load(&in[i]);
        mean = block_reduce<ROW_BLOCK, false>(sum) / (float)x.cols;
    }
    for (int64_t i = threadIdx.x; i < x.cols; i += ROW_BLOCK)
        squares += (load(&in[i]) - mean) * (load(&in[i]) - mean);
    squares = block_reduce<ROW_BLOCK, false>(squares);
    float inverse = 1.0f / sqrtf(squares / (float)x.cols + norm.eps);

    for (int64_t i = threadIdx.x; i < x.cols; i += ROW_BLOCK) {
        float weight = norm.weight != NULL ? norm.weight[i] : 1.0f;
        float bias = norm.bias != NULL ? norm.bias[i] : 0.0f;

        weight = norm.modulated ? 1.0f + weight : weight;
        store(&out[i], (load(&in[i]) - mean) * inverse * weight + bias);
    }
}

/* The sum over a block of whole warps. Two places take turns, so that one barrier is enough: who
 * writes to a place has passed the other's barrier, behind all reads of it. */
__device__ static inline float turns_sum(float x, float (*places)[WIDE_THREADS / 32], int *turn)
{
    float *parts = places[*turn], sum = 0;

    *turn ^= 1;
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0)
        parts[threadIdx.x / 32] = x;
    __syncthreads();
    for (unsigned i = 0; i < blockDim.x / 32; i++)
        sum += parts[i];
    return sum;
}

/* Norms of two kinds of rows, with vectors of their own: those before `split`, and the others. */
struct row_norms {
    struct row_norm of[2];
    const float *gate[2]; /* [cols] */
    int64_t split;
};

/* What eight neighbours of each row are multiplied with, and what is added: from column i on, if
 * that is there. */
static __device__ __forceinline__ void weights_load(float (&weight)[WIDE], float (&bias)[WIDE],
                                                    struct row_norm norm, int i, bool there)
{
    for (int j = 0; j < WIDE; j++) {
        weight[j] = 1.0f;
        bias[j] = 0.0f;
    }
    if (there && norm.weight != NULL)
        floats_load<WIDE>(weight, norm.weight + i);
    if (there && norm.bias != NULL)
        floats_load<WIDE>(bias, norm.bias + i);
    for (int j = 0; j < WIDE; j++)
        weight[j] = norm.modulated ? 1.0f + weight[j] : weight[j];
}

/* grid ⌈split/each⌉ + ⌈(rows − split)/each⌉, block a thread for 8 neighbours of a row, made up to
 * whole warps: a block norms `each` rows of a kind. A thread keeps its elements, and its weights
 * for all rows, in registers, and reads the next row ahead. The bounds leave registers for three
 * blocks of 384 on a processor. y may be x. GATED: x += gate·y comes first, rounded as it is
 * stored. */
template <bool GATED>
__global__ void __launch_bounds__(WIDE_THREADS, 2)
    wide_norm_kernel(struct tensor y, struct tensor x, struct row_norms norms, int each)
{
    __shared__ float places[2][WIDE_THREADS / 32];
    int64_t before = (norms.split + each - 1) / each, block = blockIdx.x;
    bool later = block >= before;
    int64_t row = later ? norms.split + (block - before) * each : block * each;
    int left = (int)min((int64_t)each, (later ? x.rows : norms.split) - row);
    struct row_norm norm = later ? norms.of[1] : norms.of[0];
    const float *gates = later ? norms.gate[1] : norms.gate[0];
    int i = (int)threadIdx.x * WIDE, turn = 0;
    bf16 *in = (bf16 *)x.data + row * x.stride + i;
    bf16 *out = (bf16 *)y.data + row * y.stride + i;
    bool there = i < (int)x.cols;
    float weight[WIDE], bias[WIDE], count = (float)x.cols;
    pack<bf16, WIDE> next, added;

    weights_load(weight, bias, norm, i, there);
    for (int j = 0; j < WIDE; j++)
        store(&next.v[j], 0.0f);
    if (there) {
        next = *(const pack<bf16, WIDE> *)in;
        if (GATED)
            added = *(const pack<bf16, WIDE> *)out;
    }
    for (; left > 0; left--, in += x.stride, out += y.stride) {
        pack<bf16, WIDE> v = next;
        float sum = 0, squares = 0, mean = 0;

        if (GATED && there) {
            float gate[WIDE]; /* from the L1 cache: registers are short */

            floats_load<WIDE>(gate, gates + i);
            for (int j = 0; j < WIDE; j++)
                store(&v.v[j], load(&v.v[j]) + gate[j] * load(&added.v[j]));
            *(pack<bf16, WIDE> *)in = v;
        }
        if (there && left > 1) {
            next = *(const pack<bf16, WIDE> *)(in + x.stride);
            if (GATED)
                added = *(const pack<bf16, WIDE> *)(out + y.stride);
        }
        if (!norm.rms) {
            for (int j = 0; j < WIDE; j++)
                sum += load(&v.v[j]);
            mean = turns_sum(sum, places, &turn) / count;
        }
        if (there)
            for (int j = 0; j < WIDE; j++)
                squares += (load(&v.v[j]) - mean) * (load(&v.v[j]) - mean);
        squares = turns_sum(squares, places, &turn);
        float inverse = 1.0f / sqrtf(squares / count + norm.eps);

        for (int j = 0; j < WIDE; j++)
            store(&v.v[j], (load(&v.v[j]) - mean) * inverse * weight[j] + bias[j]);
        if (there)
            *(pack<bf16, WIDE> *)out = v;
    }
}

static bool packs(struct tensor t)
{
    return t.cols % WIDE == 0 && t.stride % WIDE == 0 &&
           (uintptr_t)t.data % (WIDE * sizeof(bf16)) == 0;
}

static bool aligned(const float *floats)
{
    return (uintptr_t)floats % (4 * sizeof(float)) == 0;
}

/* Few rows had better spread over the device. */
static int rows_each(struct tensor x)
{
    return x.rows < 1024 ? 1 : WIDE_ROWS;
}

static bool is_wide(struct tensor y, struct tensor x)
{
    return packs(x) && packs(y) && x.cols <= WIDE_THREADS * WIDE;
}

template <bool GATED>
static void wide_norm(struct cuda_backend *cuda, struct tensor y, struct tensor x,
                      const struct row_norms &norms, const char *what)
{
    int each = rows_each(x);

    launch(cuda, what, blocks_for(norms.split, each) + blocks_for(x.rows - norms.split, each),
           32 * blocks_for(x.cols, 32 * WIDE), wide_norm_kernel<GATED>, y, x, norms, each);
}

static void row_norm(struct backend *backend, struct tensor y, struct tensor x,
                     struct row_norm norm, const char *what)
{
    struct cuda_backend *cuda = cuda_of(backend);
    struct row_norms norms = {{norm}, {}, x.rows};

    assert(x.dtype == DTYPE_BF16 && y.dtype == DTYPE_BF16);
    if (x.rows == 0)
        return;
    if (is_wide(y, x) && aligned(norm.weight) && aligned(norm.bias))
        wide_norm<false>(cuda, y, x, norms, what);
    else
        launch(cuda, what, (unsigned)x.rows, ROW_BLOCK, row_norm_kernel, y, x, norm);
}

extern "C" void cuda_layer_norm(struct backend *backend, struct tensor y, struct tensor x,
                                struct tensor weight, struct tensor bias, float eps)
{
    struct row_norm norm = {(const float *)weight.data, (const float *)bias.data, eps, false,
                            false};

    row_norm(backend, y, x, norm, "layer_norm");
}

extern "C" void cuda_modulated_norm(struct backend *backend, struct tensor y, struct tensor x,
                                    struct tensor shift, struct tensor scale, float eps)
{
    struct row_norm norm = {(const float *)scale.data, (const float *)shift.data, eps, false, true};

    row_norm(backend, y, x, norm, "modulated_norm");
}

extern "C" void cuda_gated_norm(struct backend *backend, const struct gated_norm *args)
{
    struct row_norms norms = {{}, {}, args->split};
    bool wide = is_wide(args->y, args->x);
    int64_t rows[] = {args->split, args->x.rows - args->split};

    assert(args->x.dtype == DTYPE_BF16 && args->y.dtype == DTYPE_BF16);
    if (args->x.rows == 0)
        return;
    for (int i = 0; i < 2; i++) {
        const struct gated_vectors *v = &args->vectors[i];
        const float *scale = (const float *)v->scale.data, *shift = (const float *)v->shift.data;

        norms.of[i] = {scale, shift, args->eps, false, true};
        norms.gate[i] = (const float *)v->gate.data;
        wide &= aligned(scale) && aligned(shift) && aligned(norms.gate[i]);
    }
    if (wide) {
        wide_norm<true>(cuda_of(backend), args->y, args->x, norms, "gated_norm");
        return;
    }
    for (int i = 0; i < 2; i++) {
        struct tensor x = tensor_rows(args->x, i * args->split, rows[i]);
        struct tensor y = tensor_rows(args->y, i * args->split, rows[i]);

        cuda_gated_add(cuda_of(backend), x, args->vectors[i].gate, y);
        row_norm(backend, y, x, norms.of[i], "gated_norm");
    }
}

extern "C" void cuda_rms_norm(struct backend *backend, struct tensor y, struct tensor x,
                              struct tensor weight, float eps)
{
    struct row_norm norm = {(const float *)weight.data, NULL, eps, true, false};

    row_norm(backend, y, x, norm, "rms_norm");
}

/* ---- over a head ---- */

/* The pair (a, b) normed and rotated, as it lies in memory. */
__device__ static inline void pair_rotate(bf16 *pair, float inverse, const float *weight,
                                          const float *angle)
{
    float a = load(&pair[0]) * inverse * weight[0], b = load(&pair[1]) * inverse * weight[1];

    store(&pair[0], a * angle[0] - b * angle[1]);
    store(&pair[1], b * angle[0] + a * angle[1]);
}

/* Of the row of q or k that a block of the kernels below does. */
__device__ static inline const float *head_weight(const struct head_norm &args, int64_t row)
{
    const struct head_weights &weights = row < args.split ? args.weights[0] : args.weights[1];

    return (const float *)(blockIdx.y == 0 ? weights.q : weights.k).data;
}

/* grid (⌈rows·heads/8⌉, 2), block 256 of 8 warps: a warp norms and rotates one head of one row, of
 * q or of k; a lane takes every 32nd pair. For heads of any size and place. */
__global__ void head_norm_kernel(struct head_norm args)
{
    struct tensor x = blockIdx.y == 0 ? args.q : args.k;
    int size = (int)args.rope.cols, heads = (int)(x.cols / size), lane = threadIdx.x % 32;
    int64_t item = (int64_t)blockIdx.x * (BLOCK / 32) + threadIdx.x / 32, row = item / heads;
    bf16 *values = (bf16 *)x.data + row * x.stride + item % heads * size;
    const float *angles = (const float *)args.rope.data + row * args.rope.stride;
    const float *weight = head_weight(args, row);
    float squares = 0;

    if (row >= x.rows)
        return;
    for (int i = lane; i < size; i += 32)
        squares += load(&values[i]) * load(&values[i]);
    float inverse = 1.0f / sqrtf(warp_sum(squares) / (float)size + args.eps);

    for (int i = 2 * lane; i < size; i += 64)
        pair_rotate(values + i, inverse, weight + i, angles + i);
}

enum { HEAD_BLOCK = 128, HEADS_AHEAD = 3 };

/* grid (rows, 2), block 128: a block does one row of q or of k. `lanes` neighbours, a power of two,
 * share a head, each with 8 elements of it, and go on to others with the same weights and angles,
 * of which they read 3 at once. */
__global__ void __launch_bounds__(HEAD_BLOCK) wide_heads_kernel(struct head_norm args, int lanes)
{
    struct tensor x = blockIdx.y == 0 ? args.q : args.k;
    int at = (int)threadIdx.x % lanes * WIDE, size = lanes * WIDE, heads = (int)x.cols / size;
    int group = (int)threadIdx.x / lanes, groups = HEAD_BLOCK / lanes;
    bf16 *values = (bf16 *)x.data + blockIdx.x * x.stride + at;
    float weight[WIDE], angle[WIDE];

    floats_load<WIDE>(weight, head_weight(args, blockIdx.x) + at);
    floats_load<WIDE>(angle, (const float *)args.rope.data + blockIdx.x * args.rope.stride + at);
    for (int first = 0; first < heads; first += HEADS_AHEAD * groups) {
        pack<bf16, WIDE> v[HEADS_AHEAD];

#pragma unroll
        for (int u = 0; u < HEADS_AHEAD; u++) {
            int head = min(first + u * groups + group, heads - 1);

            v[u] = *(const pack<bf16, WIDE> *)(values + head * size);
        }
#pragma unroll
        for (int u = 0; u < HEADS_AHEAD; u++) {
            int head = first + u * groups + group;
            float squares = 0;

            for (int j = 0; j < WIDE; j++)
                squares += load(&v[u].v[j]) * load(&v[u].v[j]);
            for (int mask = lanes / 2; mask > 0; mask /= 2)
                squares += __shfl_xor_sync(0xffffffffu, squares, mask);
            float inverse = 1.0f / sqrtf(squares / (float)size + args.eps);

            for (int j = 0; j < WIDE; j += 2)
                pair_rotate(&v[u].v[j], inverse, weight + j, angle + j);
            if (head < heads)
                *(pack<bf16, WIDE> *)(values + head * size) = v[u];
        }
    }
}

extern "C" void cuda_head_norm(struct backend *backend, const struct head_norm *args)
{
    struct cuda_backend *cuda = cuda_of(backend);
    int64_t rows = args->q.rows, size = args->rope.cols;
    int lanes = (int)size / WIDE;
    bool wide = size % WIDE == 0 && lanes <= 32 && (lanes & (lanes - 1)) == 0 && packs(args->q) &&
                packs(args->k) && aligned((const float *)args->rope.data) &&
                args->rope.stride % 4 == 0;

    assert(args->q.dtype == DTYPE_BF16 && args->k.dtype == DTYPE_BF16);
    if (rows == 0 || args->q.cols == 0)
        return;
    for (int i = 0; i < 2; i++)
        wide &= aligned((const float *)args->weights[i].q.data) &&
                aligned((const float *)args->weights[i].k.data);
    if (wide)
        launch(cuda, "head_norm", dim3((unsigned)rows, 2), HEAD_BLOCK, wide_heads_kernel, *args,
               lanes);
    else
        launch(cuda, "head_norm", dim3(blocks_for(rows * (args->q.cols / size), BLOCK / 32), 2),
               BLOCK, head_norm_kernel, *args);
}
