/* SPDX-License-Identifier: MIT */
#include <assert.h>

#include "engine/cuda/kernel.cuh"

enum { BLOCK = 256 };

/* ---- y = f(y, x, gate), element by element ---- */

/* What is computed; `g` is the column's gate, or 0. */
struct add_op {
    static const bool reads_y = true;
    __device__ float operator()(float y, float x, float g) const
    {
        return y + x;
    }
};

struct gated_add_op {
    static const bool reads_y = true;
    __device__ float operator()(float y, float x, float g) const
    {
        return y + g * x;
    }
};

struct gelu_multiply_op {
    static const bool reads_y = true;
    __device__ float operator()(float y, float x, float g) const
    {
        return gelu_tanh(y) * x;
    }
};

struct activate_op {
    static const bool reads_y = false;
    enum activation activation;

    __device__ float operator()(float y, float x, float g) const
    {
        return activate(x, activation);
    }
};

struct copy_op {
    static const bool reads_y = false;
    __device__ float operator()(float y, float x, float g) const
    {
        return x;
    }
};

struct euler_op {
    static const bool reads_y = true;
    float step;

    __device__ float operator()(float y, float x, float g) const
    {
        return y + step * x;
    }
};

struct guide_op {
    static const bool reads_y = true;
    float scale;

    __device__ float operator()(float y, float x, float g) const
    {
        return x + scale * (y - x);
    }
};

/* Block (columns, rows) of 256 threads, grid ⌈rows/blockDim.y⌉: a thread takes N neighbouring
 * elements of a row, then those blockDim.x·N farther, to the row's end. */
template <int N, typename Y, typename X, typename OP>
__global__ void map_kernel(struct tensor y, struct tensor x, const float *gate, OP op)
{
    int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    Y *ys = (Y *)y.data + row * y.stride;
    const X *xs = (const X *)x.data + row * x.stride;

    if (row >= y.rows)
        return;
    for (int64_t i = (int64_t)threadIdx.x * N; i < y.cols; i += (int64_t)blockDim.x * N) {
        pack<X, N> b = *(const pack<X, N> *)(xs + i);
        pack<Y, N> a;

        if (OP::reads_y)
            a = *(const pack<Y, N> *)(ys + i);
        for (int j = 0; j < N; j++)
            store(&a.v[j], op(OP::reads_y ? load(&a.v[j]) : 0.0f, load(&b.v[j]),
                              gate != NULL ? gate[i + j] : 0.0f));
        *(pack<Y, N> *)(ys + i) = a;
    }
}

static bool packs(struct tensor t, int n)
{
    size_t bytes = (size_t)n * dtype_bytes(t.dtype);

    return t.cols % n == 0 && t.stride % n == 0 && (uintptr_t)t.data % bytes == 0;
}

/* How many threads share a row of so many items: a power of two that leaves few without work in the
 * last round. */
static unsigned threads_across(int64_t items)
{
    unsigned best = BLOCK;

    for (unsigned across = BLOCK / 2; across > 0; across /= 2) {
        int64_t spent = (items + across - 1) / across * across;

        if (spent < (items + best - 1) / best * best)
            best = across;
        if (spent == items || across <= 32)
            break;
    }
    while (best > 1 && best / 2 >= items)
        best /= 2;
    return best;
}

template <typename Y, typename X, typename OP>
static void map_typed(struct cuda_backend *cuda, const char *what, struct tensor y, struct tensor x,
                      const float *gate, OP op)
{
    enum { WIDE = 8 };
    bool wide = packs(y, WIDE) && packs(x, WIDE);
    unsigned across = threads_across(wide ? y.cols / WIDE : y.cols);

    dim3 block(across, BLOCK / across), grid(blocks_for(y.rows, block.y));
    if (wide)
        launch(cuda, what, grid, block, map_kernel<WIDE, Y, X, OP>, y, x, gate, op);
    else
        launch(cuda, what, grid, block, map_kernel<1, Y, X, OP>, y, x, gate, op);
}

template <typename OP>
static void map(struct backend *backend, struct tensor y, struct tensor x, const float *gate, OP op,
                const char *what)
{
    struct cuda_backend *cuda = cuda_of(backend);
    bool y32 = y.dtype == DTYPE_F32, x32 = x.dtype == DTYPE_F32;

    assert((y32 || y.dtype == DTYPE_BF16) && (x32 || x.dtype == DTYPE_BF16));
    if (y.rows == 0 || y.cols == 0)
        return;
    if (y32 && x32)
        map_typed<float, float>(cuda, what, y, x, gate, op);
    else if (y32)
        map_typed<float, bf16>(cuda, what, y, x, gate, op);
    else if (x32)
        map_typed<bf16, float>(cuda, what, y, x, gate, op);
    else
        map_typed<bf16, bf16>(cuda, what, y, x, gate, op);
}

extern "C" void cuda_add(struct backend *backend, struct tensor y, struct tensor x)
{
    map(backend, y, x, NULL, add_op{}, "add");
}

extern "C" void cuda_gelu_multiply(struct backend *backend, struct tensor y, struct tensor x)
{
    map(backend, y, x, NULL, gelu_multiply_op{}, "gelu_multiply");
}

extern "C" void cuda_silu(struct backend *backend, struct tensor y, struct tensor x)
{
    map(backend, y, x, NULL, activate_op{ACTIVATION_SILU}, "silu");
}

extern "C" void cuda_copy(struct backend *backend, struct tensor y, struct tensor x)
{
    map(backend, y, x, NULL, copy_op{}, "copy");
}

extern "C" void cuda_euler(struct backend *backend, struct tensor latents, struct tensor velocity,
                           float step)
{
    map(backend, latents, velocity, NULL, euler_op{step}, "euler");
}

extern "C" void cuda_guide(struct backend *backend, struct tensor v, struct tensor negative,
                           float scale)
{
    map(backend, v, negative, NULL, guide_op{scale}, "guide");
}

extern "C" void cuda_activate(struct cuda_backend *cuda, struct tensor y, struct tensor x,
                              enum activation activation)
{
    map(&cuda->base, y, x, NULL, activate_op{activation}, "activation");
}

extern "C" void cuda_gated_add(struct cuda_backend *cuda, struct tensor y, struct tensor gate,
                               struct tensor x)
{
    map(&cuda->base, y, x, (const float *)gate.data, gated_add_op{}, "gated_add");
}

/* ---- the ends of the pipeline ---- */

/* grid (heads·n), block 256: a block writes one row, y[h·n + i, j] = table[buckets[i, j], h]. */
template <typename T>
__global__ void position_bias_kernel(struct tensor y, struct tensor table, struct tensor buckets)
{
    int64_t row = blockIdx.x, head = row / buckets.rows, query = row % buckets.rows;
    const int32_t *bucket = (const int32_t *)buckets.data + query * buckets.stride;
    float *out = (float *)y.data + row * y.stride;

    for (int64_t j = threadIdx.x; j < y.cols; j += blockDim.x)
        out[j] = load((const T *)table.data + bucket[j] * table.stride + head);
}

extern "C" void cuda_position_bias(struct backend *backend, struct tensor y, struct tensor table,
                                   struct tensor buckets)
{
    struct cuda_backend *cuda = cuda_of(backend);

    if (y.rows == 0)
        return;
    if (table.dtype == DTYPE_F32)
        launch(cuda, "position_bias", (unsigned)y.rows, BLOCK, position_bias_kernel<float>, y,
               table, buckets);
    else
        launch(cuda, "position_bias", (unsigned)y.rows, BLOCK, position_bias_kernel<bf16>, y, table,
               buckets);
}

/* grid ⌈pixels·channels/256⌉, block 256: a thread writes one channel of one pixel. */
template <typename T>
__global__ void unpatchify_kernel(struct tensor pixels, struct tensor tokens, int width,
                                  float multiply, float shift)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    int64_t p = i / pixels.cols, c = i % pixels.cols;
    int64_t y = p / width, x = p % width, token = y / 2 * (width / 2) + x / 2;

    if (p < pixels.rows)
        store((T *)pixels.data + p * pixels.stride + c,
              ((const float *)tokens.data)[token * tokens.stride + 4 * c + y % 2 * 2 + x % 2] *
                      multiply +
                  shift);
}

extern "C" void cuda_unpatchify(struct backend *backend, struct tensor pixels, struct tensor tokens,
                                int width, float multiply, float shift)
{
    struct cuda_backend *cuda = cuda_of(backend);
    unsigned grid = blocks_for(pixels.rows * pixels.cols, BLOCK);

    if (grid == 0)
        return;
    if (pixels.dtype == DTYPE_F32)
        launch(cuda, "unpatchify", grid, BLOCK, unpatchify_kernel<float>, pixels, tokens, width,
               multiply, shift);
    else
        launch(cuda, "unpatchify", grid, BLOCK, unpatchify_kernel<bf16>, pixels, tokens, width,
               multiply, shift);
}

/* grid ⌈3·pixels/256⌉, block 256: a thread writes one byte. */
template <typename T> __global__ void to_rgb_kernel(struct tensor rgb, struct tensor x)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, row = i / 3, c = i % 3;

    if (row >= x.rows)
        return;
    float v = load((const T *)x.data + row * x.stride + c) * 0.5f + 0.5f;

    v = v > 0 ? v : 0; /* NaN too */
    ((uint8_t *)rgb.data)[row * rgb.stride + c] = (uint8_t)__float2int_rn(255.0f * fminf(v, 1.0f));
}

extern "C" void cuda_to_rgb(struct backend *backend, struct tensor rgb, struct tensor x)
{
    struct cuda_backend *cuda = cuda_of(backend);
    unsigned grid = blocks_for(3 * x.rows, BLOCK);

    if (grid == 0)
        return;
    if (x.dtype == DTYPE_F32)
        launch(cuda, "to_rgb", grid, BLOCK, to_rgb_kernel<float>, rgb, x);
    else
        launch(cuda, "to_rgb", grid, BLOCK, to_rgb_kernel<bf16>, rgb, x);
}
