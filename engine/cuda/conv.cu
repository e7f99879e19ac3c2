/* SPDX-License-Identifier: MIT */
/*
 * Convolution as a matrix product: for a run of pixels the window of each is gathered into a row of
 * the workspace's tile (zeros outside of the image), normalised on the way if asked, and the rows
 * are multiplied by the weights.
 */
#include <assert.h>

#include "engine/cuda/kernel.cuh"

enum { BLOCK = 256 };

/* Pixels `first` … `first + count − 1` of the result. */
struct gather {
    struct conv conv;
    bf16 *rows; /* [count, size², channels] */
    int64_t first, count;
};

/* SiLU(v·affine row 0 + affine row 1), for the channels from c on. */
template <int N>
__device__ inline void normalise(pack<bf16, N> &v, const struct tensor &affine, int64_t c)
{
    const float *factor = (const float *)affine.data + c, *offset = factor + affine.stride;

    for (int j = 0; j < N; j++) {
        float x = load(&v.v[j]) * factor[j] + offset[j];
        store(&v.v[j], x * sigmoid(x));
    }
}

/* grid ⌈count·size²·channels/(256·N)⌉, block 256: a thread copies N neighbouring channels of one
 * place of one pixel's window, through f if there is one. With `upsample` the image is enlarged as
 * it is read. (A tile has fewer than 2³¹ elements, and 32-bit divisions are much faster.) */
template <int N> __global__ void gather_kernel(struct gather args)
{
    const struct conv &conv = args.conv;
    int shift = conv.upsample ? 1 : 0, height = conv.height << shift, width = conv.width << shift;
    unsigned item = blockIdx.x * BLOCK + threadIdx.x, packs = (unsigned)conv.x.cols / N;
    unsigned place = item / packs, windows = (unsigned)(conv.size * conv.size);
    unsigned pixel = place / windows, window = place - pixel * windows;
    int c = (int)(item - place * packs) * N;

    if (pixel >= (unsigned)args.count)
        return;
    unsigned at = (unsigned)args.first + pixel, row = at / (unsigned)width;
    int y = (int)row + (int)window / conv.size - conv.size / 2;
    int x = (int)(at - row * (unsigned)width) + (int)window % conv.size - conv.size / 2;
    pack<bf16, N> v;

    for (int j = 0; j < N; j++)
        store(&v.v[j], 0.0f);
    if (y >= 0 && y < height && x >= 0 && x < width) {
        int64_t source = (int64_t)(y >> shift) * conv.width + (x >> shift);
        v = *(const pack<bf16, N> *)((const bf16 *)conv.x.data + source * conv.x.stride + c);
        if (conv.affine.data != NULL)
            normalise(v, conv.affine, c);
    }
    *(pack<bf16, N> *)(args.rows + (int64_t)item * N) = v;
}

static void gather(struct cuda_backend *cuda, const struct gather *args)
{
    enum { WIDE = 8 };
    const struct tensor *x = &args->conv.x;
    int64_t elements = args->count * args->conv.size * args->conv.size * x->cols;

    if (x->cols % WIDE == 0 && x->stride % WIDE == 0 &&
        (uintptr_t)x->data % (WIDE * sizeof(bf16)) == 0)
        launch(cuda, "conv", blocks_for(elements, BLOCK * WIDE), BLOCK, gather_kernel<WIDE>, *args);
    else
        launch(cuda, "conv", blocks_for(elements, BLOCK), BLOCK, gather_kernel<1>, *args);
}

/* ---- products that go to the workspace first, in fp32 ---- */

/* Matrix units want multiples of 8 channels. Fewer than this are made up to that: weights and bias
 * are copied with zeros behind them. */
enum { NARROW = 64, UNIT = 8 };

/* Of narrow results, and of those that are added to y: cuBLASLt may round a product to bf16 before
 * it adds y. */
struct detour {
    bf16 *weight, *bias; /* [channels, k], [channels] of narrow results, else NULL */
    float *product;      /* [run, channels] */
    int64_t channels;    /* 0: the product goes to y */
};

/* grid ⌈channels·(k + 1)/256⌉, block 256: a thread writes one element. */
__global__ void narrow_kernel(struct detour narrow, struct tensor weight, struct tensor bias)
{
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x, k = weight.cols;
    int64_t row = i / (k + 1), col = i % (k + 1);
    bf16 zero = __float2bfloat16_rn(0.0f);

    if (row >= narrow.channels)
        return;
    if (col == k)
        narrow.bias[row] = row < weight.rows ? ((const bf16 *)bias.data)[row] : zero;
    else
        narrow.weight[row * k + col] =
            row < weight.rows ? ((const bf16 *)weight.data)[row * weight.stride + col] : zero;
}

/* ---- all of it ---- */

/* The tile area: gathered rows, and what a detour needs. Returns how many pixels go into it,
 * whole rows of the matrix units' tiles if it can be. */
static int64_t divide(struct cuda_backend *cuda, const struct conv *args, struct gather *part,
                      struct detour *detour)
{
    int64_t k = args->weight.cols, n = args->y.cols, run;
    char *area = (char *)cuda_tile_area(cuda);
    size_t room = CUDA_TILE_BYTES;

    *detour = {};
    if (args->accumulate)
        detour->channels = n;
    if (n % UNIT != 0 && n < NARROW) {
        detour->channels = (n + UNIT - 1) / UNIT * UNIT;
        detour->weight = (bf16 *)area;
        detour->bias = detour->weight + detour->channels * k;
        /* channels · (k + 1) elements of bf16 are a multiple of 16 bytes */
        area += (size_t)(detour->channels * (k + 1)) * sizeof(bf16);
        room -= (size_t)(detour->channels * (k + 1)) * sizeof(bf16);
    }
    run = (int64_t)(room / ((size_t)k * sizeof(bf16) + (size_t)detour->channels * sizeof(float)));
    run -= run % (run > 128 ? 128 : 4); /* which keeps the rows at multiples of 16 bytes */
    assert(run > 0);
    detour->product = (float *)area;
    part->rows = (bf16 *)(detour->product + run * detour->channels);
    return run;
}

/* Some rows of y from the gathered ones. */
static void multiply(struct cuda_backend *cuda, const struct conv *args, const struct gather *part,
                     const struct detour *detour, struct tensor y)
{
    struct gemm product = {};

    product.x = part->rows;
    product.w = args->weight.data;
    product.bias = args->bias.data;
    product.y = y.data;
    product.x_stride = args->weight.cols;
    product.w_stride = args->weight.stride;
    product.y_stride = y.stride;
    product.m = part->count;
    product.n = y.cols;
    product.k = args->weight.cols;
    product.y_dtype = y.dtype;
    product.tiled = true;
    product.alpha = 1.0f;
    if (detour->weight != NULL) {
        product.w = detour->weight;
        product.w_stride = args->weight.cols;
        product.bias = detour->bias;
    }
    if (detour->channels != 0) {
        struct tensor wide = tensor_of(detour->product, DTYPE_F32, y.rows, detour->channels);

        product.y = detour->product;
        product.n = product.y_stride = detour->channels;
        product.y_dtype = DTYPE_F32;
        cuda_gemm(cuda, &product);
        wide = tensor_cols(wide, 0, y.cols);
        args->accumulate ? cuda_add(&cuda->base, y, wide) : cuda_copy(&cuda->base, y, wide);
        return;
    }
    cuda_gemm(cuda, &product);
}

/* Without a window and without f, x could be multiplied where it lies, but for y, which may lie
 * there too: what is gathered may be overwritten, as y has no more channels. */
extern "C" void cuda_conv(struct backend *backend, const struct conv *args)
{
    struct cuda_backend *cuda = cuda_of(backend);
    int64_t above = (int64_t)args->first * (args->upsample ? 2 * args->width : args->width), run;
    struct gather part = {*args, NULL, 0, 0};
    struct detour detour;

    assert(args->x.dtype == DTYPE_BF16);
    run = divide(cuda, args, &part, &detour);
    if (detour.weight != NULL)
        launch(cuda, "conv", blocks_for(detour.channels * (args->weight.cols + 1), BLOCK), BLOCK,
               narrow_kernel, detour, args->weight, args->bias);
    for (int64_t done = 0; done < args->y.rows; done += run) {
        part.first = above + done;
        part.count = args->y.rows - done < run ? args->y.rows - done : run;
        gather(cuda, &part);
        multiply(cuda, args, &part, &detour, tensor_rows(args->y, done, part.count));
    }
}
