/* SPDX-License-Identifier: MIT */
/*
 * cuBLASLt of the emulated GPU: matrices column by column, bf16 or fp32, as its manual describes
 * cublasLtMatmul. What the manual forbids ends the process.
 */
#include <cublasLt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kernels/emulate/device.h"

struct product {
    cublasOperation_t transpose_a, transpose_b;
    cublasLtEpilogue_t epilogue;
    const void *bias;
};

struct layout {
    cudaDataType type;
    uint64_t rows, cols;
    int64_t stride; /* from one column to the next */
};

/* Ways to add parts of a sum that round them to the type of the result. */
enum { ROUNDING = CUBLASLT_REDUCTION_SCHEME_INPLACE | CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE };

struct preference {
    uint64_t workspace_bytes;
    uint32_t alignment[4]; /* of A, B, C, D */
    uint32_t reductions;   /* cublasLtReductionScheme_t that are allowed */
};

/* What an algorithm remembers of what it was chosen for. */
struct choice {
    uint64_t m, n, workspace_bytes;
    uint32_t alignment[4], reductions;
    uint16_t custom, cluster;
    uint64_t number;
};
_Static_assert(sizeof(struct choice) <= sizeof(cublasLtMatmulAlgo_t), "");

/* Of what nobody proposed, most is not there. */
static bool is_there(const struct choice *choice)
{
    return choice->custom < 2 && choice->cluster != CUBLASLT_CLUSTER_SHAPE_1x2x1;
}

/* Everything that a product needs when the stream comes to it. */
struct product_work {
    struct product product;
    struct layout a, b, c, d;
    const void *a_at, *b_at, *c_at;
    void *d_at;
    float alpha, beta;
    bool rounds; /* parts of a sum, to the type of the result */
    char *workspace;
    size_t workspace_bytes;
};

static void demand(bool good, const char *what)
{
    if (!good) {
        fprintf(stderr, "emulated cuBLASLt: %s\n", what);
        abort();
    }
}

/* ---- numbers ---- */

static float bf16_value(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float value;

    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint16_t bf16_of(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof bits);
    if (isnan(value))
        return 0x7fff;
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float element(const struct layout *layout, const void *at, uint64_t row, uint64_t col)
{
    size_t place = (size_t)col * (size_t)layout->stride + row;

    return layout->type == CUDA_R_32F ? ((const float *)at)[place]
                                      : bf16_value(((const uint16_t *)at)[place]);
}

/* Elements of a column of a product that are computed at a time. */
enum { WIDE = 32 };

/* op(matrix) as fp32 [rows, cols], row by row, and some zeros behind. */
static float *unpacked(const struct layout *layout, const void *at, cublasOperation_t op)
{
    uint64_t rows = op == CUBLAS_OP_N ? layout->rows : layout->cols;
    uint64_t cols = op == CUBLAS_OP_N ? layout->cols : layout->rows;
    float *all = calloc((size_t)rows * (size_t)cols + WIDE, sizeof *all);

    demand(all != NULL, "out of memory");
    for (uint64_t i = 0; i < rows; i++)
        for (uint64_t j = 0; j < cols; j++)
            all[i * cols + j] =
                op == CUBLAS_OP_N ? element(layout, at, i, j) : element(layout, at, j, i);
    return all;
}

/* ---- the product ---- */

static float finished(const struct product_work *w, float sum, uint64_t row, uint64_t col)
{
    cublasLtEpilogue_t epilogue = w->product.epilogue;
    float y = w->alpha * sum;

    /* (Some real ones keep the product in the type of the result before c is added.) */
    if (w->beta != 0)
        y = (w->d.type == CUDA_R_32F ? y : bf16_value(bf16_of(y))) +
            w->beta * element(&w->c, w->c_at, row, col);
    if (epilogue == CUBLASLT_EPILOGUE_BIAS || epilogue == CUBLASLT_EPILOGUE_GELU_BIAS)
        y += w->d.type == CUDA_R_32F ? ((const float *)w->product.bias)[row]
                                     : bf16_value(((const uint16_t *)w->product.bias)[row]);
    if (epilogue == CUBLASLT_EPILOGUE_GELU || epilogue == CUBLASLT_EPILOGUE_GELU_BIAS)
        y = 0.5f * y * (1 + tanhf(0.7978845608f * (y + 0.044715f * y * y * y)));
    return y;
}

/* Here and there, as a real one may anywhere. */
static void workspace_use(const struct product_work *w)
{
    for (size_t at = 0; at + 64 <= w->workspace_bytes; at += (size_t)1 << 20)
        memset(w->workspace + at, 0xff, 64);
}

/* sums += a row of a, from some column on, times b's element. */
static void sums_add(float sums[WIDE], const float *restrict row, float times)
{
    for (int i = 0; i < WIDE; i++)
        sums[i] += row[i] * times;
}

/* a is [k,m] row by row, from some column on, b a row. */
static void sums_compute(float sums[WIDE], const struct product_work *w, const float *a,
                         const float *b, uint64_t k)
{
    memset(sums, 0, WIDE * sizeof *sums);
    for (uint64_t step = 0; step < k; step++) {
        /* (For another length there is another algorithm, and other bits.) */
        uint64_t l = w->d.cols % 2 == 0 ? step : k - 1 - step;

        sums_add(sums, a + l * w->d.rows, b[l]);
        if (w->rounds && step == k / 2)
            for (int i = 0; i < WIDE; i++)
                sums[i] = bf16_value(bf16_of(sums[i]));
    }
}

static void product_run(void *args)
{
    const struct product_work *w = args;
    uint64_t m = w->d.rows, n = w->d.cols;
    uint64_t k = w->product.transpose_a == CUBLAS_OP_N ? w->a.cols : w->a.rows;
    float *a, *b, sums[WIDE];

    workspace_use(w);
    /* Both transposed: a [k,m] row by row, and b [n,k]. */
    a = unpacked(&w->a, w->a_at, w->product.transpose_a == CUBLAS_OP_N ? CUBLAS_OP_T : CUBLAS_OP_N);
    b = unpacked(&w->b, w->b_at, w->product.transpose_b == CUBLAS_OP_N ? CUBLAS_OP_T : CUBLAS_OP_N);
    for (uint64_t i = 0; i < m; i += WIDE)
        for (uint64_t j = 0; j < n; j++) {
            sums_compute(sums, w, a + i, b + j * k, k);
            for (uint64_t row = i; row < m && row < i + WIDE; row++) {
                size_t place = (size_t)j * (size_t)w->d.stride + row;
                float y = finished(w, sums[row - i], row, j);

                if (w->d.type == CUDA_R_32F)
                    ((float *)w->d_at)[place] = y;
                else
                    ((uint16_t *)w->d_at)[place] = bf16_of(y);
            }
        }
    free(a);
    free(b);
}

static bool aligned(const void *at, const struct layout *layout, uint32_t alignment)
{
    size_t each = layout->type == CUDA_R_32F ? 4 : 2;

    return (uintptr_t)at % alignment == 0 && (size_t)layout->stride * each % alignment == 0;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t blas, cublasLtMatmulDesc_t product,
                              const void *alpha, const void *a, cublasLtMatrixLayout_t a_layout,
                              const void *b, cublasLtMatrixLayout_t b_layout, const void *beta,
                              const void *c, cublasLtMatrixLayout_t c_layout, void *d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algo,
                              void *workspace, size_t workspace_bytes, cudaStream_t stream)
{
    struct product_work w = {.product = *(struct product *)product,
                             .a = *(struct layout *)a_layout,
                             .b = *(struct layout *)b_layout,
                             .c = *(struct layout *)c_layout,
                             .d = *(struct layout *)d_layout,
                             .a_at = a,
                             .b_at = b,
                             .c_at = c,
                             .d_at = d,
                             .alpha = *(const float *)alpha,
                             .beta = *(const float *)beta};
    struct choice choice;
    bool biased = w.product.epilogue == CUBLASLT_EPILOGUE_BIAS ||
                  w.product.epilogue == CUBLASLT_EPILOGUE_GELU_BIAS;

    memcpy(&choice, algo, sizeof choice);
    w.rounds = w.d.type == CUDA_R_16BF && (choice.reductions & ROUNDING) != 0;
    demand(choice.m == w.d.rows && choice.n == w.d.cols, "an algorithm for another shape");
    demand(choice.number != 1 && is_there(&choice), "an algorithm that was said to fail");
    demand(choice.workspace_bytes <= workspace_bytes, "less workspace than was promised");
    w.workspace = workspace;
    w.workspace_bytes = choice.workspace_bytes;
    demand((uintptr_t)workspace % 256 == 0, "workspace not aligned to 256 bytes");
    demand(aligned(a, &w.a, choice.alignment[0]) && aligned(b, &w.b, choice.alignment[1]) &&
               aligned(c, &w.c, choice.alignment[2]) && aligned(d, &w.d, choice.alignment[3]),
           "operands are less aligned than was promised");
    demand(!biased || (w.product.bias != NULL && (uintptr_t)w.product.bias % 16 == 0), "no bias");
    demand(c != d || memcmp(&w.c, &w.d, sizeof w.c) == 0, "in place with another layout");
    device_queue(stream, product_run, &w, sizeof w);
    return CUBLAS_STATUS_SUCCESS;
}

/* ---- descriptions ---- */

cublasStatus_t cublasLtCreate(cublasLtHandle_t *blas)
{
    *blas = calloc(1, 1);
    if (*blas == NULL)
        return CUBLAS_STATUS_ALLOC_FAILED;
    device_start(true);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t blas)
{
    free(blas);
    device_start(false);
    return CUBLAS_STATUS_SUCCESS;
}

const char *cublasLtGetStatusString(cublasStatus_t status)
{
    return status == CUBLAS_STATUS_NOT_SUPPORTED ? "not supported" : "an error";
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *product, cublasComputeType_t compute,
                                        cudaDataType_t scale)
{
    demand(compute == CUBLAS_COMPUTE_32F && scale == CUDA_R_32F, "only fp32 accumulation is here");
    *product = calloc(1, sizeof(struct product));
    demand(*product != NULL, "out of memory");
    ((struct product *)*product)->epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    device_grow();
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t product)
{
    free(product);
    return CUBLAS_STATUS_SUCCESS;
}

static void take(void *to, size_t to_bytes, const void *from, size_t bytes)
{
    demand(to_bytes == bytes, "an attribute of another size");
    memcpy(to, from, bytes);
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t description,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void *value, size_t bytes)
{
    struct product *product = (struct product *)description;

    if (attribute == CUBLASLT_MATMUL_DESC_TRANSA)
        take(&product->transpose_a, sizeof product->transpose_a, value, bytes);
    else if (attribute == CUBLASLT_MATMUL_DESC_TRANSB)
        take(&product->transpose_b, sizeof product->transpose_b, value, bytes);
    else if (attribute == CUBLASLT_MATMUL_DESC_EPILOGUE)
        take(&product->epilogue, sizeof product->epilogue, value, bytes);
    else if (attribute == CUBLASLT_MATMUL_DESC_BIAS_POINTER)
        take((void *)&product->bias, sizeof product->bias, value, bytes);
    else
        demand(false, "an attribute of a product that is not emulated");
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType type,
                                          uint64_t rows, uint64_t cols, int64_t stride)
{
    struct layout *made = calloc(1, sizeof *made);

    demand(made != NULL && (type == CUDA_R_32F || type == CUDA_R_16BF), "a type that is not here");
    if (rows == 0 || cols == 0 || stride < (int64_t)rows) {
        free(made);
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    *made = (struct layout){type, rows, cols, stride};
    *layout = (cublasLtMatrixLayout_t)made;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout)
{
    free(layout);
    return CUBLAS_STATUS_SUCCESS;
}

/* ---- algorithms ---- */

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference)
{
    struct preference *made = calloc(1, sizeof *made);

    demand(made != NULL, "out of memory");
    for (int i = 0; i < 4; i++)
        made->alignment[i] = 256;
    made->reductions = CUBLASLT_REDUCTION_SCHEME_MASK;
    *preference = (cublasLtMatmulPreference_t)made;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference)
{
    free(preference);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t description,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void *value, size_t bytes)
{
    struct preference *preference = (struct preference *)description;
    int which = (int)attribute - (int)CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES;

    if (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES)
        take(&preference->workspace_bytes, sizeof preference->workspace_bytes, value, bytes);
    else if (attribute == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK)
        take(&preference->reductions, sizeof preference->reductions, value, bytes);
    else if (which >= 0 && which < 4)
        take(&preference->alignment[which], sizeof preference->alignment[which], value, bytes);
    else
        demand(false, "a preference that is not emulated");
    return CUBLAS_STATUS_SUCCESS;
}

/* Shapes agree, types go together, and the epilogue knows them. */
static bool consistent(const struct product *product, const struct layout *a,
                       const struct layout *b, const struct layout *c, const struct layout *d)
{
    bool a_plain = product->transpose_a == CUBLAS_OP_N,
         b_plain = product->transpose_b == CUBLAS_OP_N;
    uint64_t m = a_plain ? a->rows : a->cols, k = a_plain ? a->cols : a->rows;
    uint64_t n = b_plain ? b->cols : b->rows, k_b = b_plain ? b->rows : b->cols;

    return m == d->rows && n == d->cols && k == k_b && c->rows == m && c->cols == n &&
           a->type == CUDA_R_16BF && b->type == CUDA_R_16BF && c->type == d->type;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t blas, cublasLtMatmulDesc_t product,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t wanted, int most,
                                              cublasLtMatmulHeuristicResult_t *results, int *count)
{
    const struct preference *preference = (const struct preference *)wanted;
    const struct layout *d_layout = (const struct layout *)d;
    struct choice choice = {.m = d_layout->rows, .n = d_layout->cols};

    *count = 0;
    if (!consistent((const struct product *)product, (const struct layout *)a,
                    (const struct layout *)b, (const struct layout *)c, d_layout))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    choice.workspace_bytes = preference->workspace_bytes;
    choice.reductions = preference->reductions;
    memcpy(choice.alignment, preference->alignment, sizeof choice.alignment);
    for (; *count < most && *count < 3; ++*count) {
        cublasLtMatmulHeuristicResult_t *result = &results[*count];

        choice.number = (uint64_t)*count;
        memset(result, 0, sizeof *result);
        memcpy(&result->algo, &choice, sizeof choice);
        result->workspaceSize = preference->workspace_bytes;
        /* (The second one fails, as the manual says some may.) */
        result->state = *count == 1 ? CUBLAS_STATUS_NOT_SUPPORTED : CUBLAS_STATUS_SUCCESS;
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoConfigSetAttribute(cublasLtMatmulAlgo_t *algo,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute,
                                                    const void *value, size_t bytes)
{
    struct choice choice;
    uint32_t custom;

    memcpy(&choice, algo, sizeof choice);
    if (attribute == CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION) {
        take(&custom, sizeof custom, value, bytes);
        choice.custom = (uint16_t)custom;
    } else if (attribute == CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID) {
        take(&choice.cluster, sizeof choice.cluster, value, bytes);
    } else {
        demand(false, "an attribute of an algorithm that is not emulated");
    }
    memcpy(algo, &choice, sizeof choice);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t blas, cublasLtMatmulDesc_t product,
                                       cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                       cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t *algo,
                                       cublasLtMatmulHeuristicResult_t *result)
{
    const struct layout *layout = (const struct layout *)d;
    struct choice choice;

    memcpy(&choice, algo, sizeof choice);
    memset(result, 0, sizeof *result);
    result->algo = *algo;
    result->workspaceSize = choice.workspace_bytes;
    result->state = choice.m == layout->rows && choice.n == layout->cols && is_there(&choice)
                        ? CUBLAS_STATUS_SUCCESS
                        : CUBLAS_STATUS_NOT_SUPPORTED;
    return CUBLAS_STATUS_SUCCESS;
}

size_t cublasLtGetVersion(void)
{
    return 130000;
}
