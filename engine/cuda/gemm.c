/* SPDX-License-Identifier: MIT */
#include "engine/cuda/gemm.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/cuda/cuda.h"

/* What addresses and rows must be multiples of for the matrix units' loads. */
enum { ALIGNMENT = 16, ALIGNED_ELEMENTS = 8 };

/* How algorithms are compared: a dozen shapes of an image take about a second. */
enum { PROPOSALS = 16, WARM_RUNS = 4, FINALISTS = 8, FINAL_ROUNDS = 3, FINAL_RUNS = 4 };

/* Those of the best tiles are also tried with what the library does not propose. */
enum { TILES = 3, CUSTOM_OPTIONS = 8, CLUSTERS = 2 };
enum { CANDIDATES = PROPOSALS + TILES * CUSTOM_OPTIONS * CLUSTERS };

/* A product that takes less is not worth comparing, or not so widely; and how long algorithms of a
 * shape are tried each time. */
#define WORTH_MS 0.02f
#define WIDELY_MS 0.1f
#define SHAPE_MS 30.0f

static void plan_finish(struct gemm_plan *plan)
{
    if (plan->product != NULL)
        cublasLtMatmulDescDestroy(plan->product);
    if (plan->w != NULL)
        cublasLtMatrixLayoutDestroy(plan->w);
    if (plan->x != NULL)
        cublasLtMatrixLayoutDestroy(plan->x);
    if (plan->y != NULL)
        cublasLtMatrixLayoutDestroy(plan->y);
}

int gemm_plans_open(struct cuda_backend *cuda, struct error *err)
{
    if (cublasLtCreate(&cuda->blas) != CUBLAS_STATUS_SUCCESS)
        return error_set(err, EIO, "back end cuda: cuBLASLt could not be started");
    if (cudaEventCreateWithFlags(&cuda->plans.begin, cudaEventDefault) != cudaSuccess ||
        cudaEventCreateWithFlags(&cuda->plans.end, cudaEventDefault) != cudaSuccess)
        return error_set(err, EIO, "back end cuda: events could not be created");
    gemm_cache_open(&cuda->plans.cache, cuda->base.device_name, cublasLtGetVersion());
    return 0;
}

void gemm_plans_finish(struct gemm_plans *plans)
{
    gemm_cache_finish(&plans->cache);
    if (plans->begin != NULL)
        cudaEventDestroy(plans->begin);
    if (plans->end != NULL)
        cudaEventDestroy(plans->end);
    for (size_t i = 0; i < plans->count; i++)
        plan_finish(&plans->plans[i]);
    free(plans->plans);
    *plans = (struct gemm_plans){0};
}

/* cuBLASLt's GELU is the tanh approximation; it knows no other activation. */
static cublasLtEpilogue_t epilogue_of(const struct gemm *args)
{
    if (args->activation == ACTIVATION_GELU_TANH)
        return args->bias != NULL ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
    return args->bias != NULL ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
}

static struct gemm_shape shape_of(const struct gemm *args)
{
    return (struct gemm_shape){.m = args->m,
                               .n = args->n,
                               .k = args->k,
                               .y_stride = args->y_stride,
                               .x_stride = args->x_stride,
                               .w_stride = args->w_stride,
                               .y_dtype = args->y_dtype,
                               .plain_w = args->plain_w,
                               .epilogue = epilogue_of(args),
                               .biased = args->bias != NULL,
                               .tiled = args->tiled};
}

static size_t blas_bytes(const struct gemm_shape *shape)
{
    return shape->tiled ? CUDA_BLAS_TILED_BYTES : CUDA_BLAS_BYTES;
}

/* Which bias it is, is no part of a plan. */
static bool bias_set(struct gemm_plan *plan, const void *bias)
{
    return !cublasLtMatmulDescSetAttribute(plan->product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias,
                                           sizeof bias);
}

/* The library's matrices are column by column, so it is told to compute yᵀ = wᵀ·xᵀ: each of our
 * matrices, row by row, is its own transpose there. */
static bool plan_describe(struct gemm_plan *plan, const void *some_bias)
{
    const struct gemm_shape *s = &plan->shape;
    cublasOperation_t transpose_w = s->plain_w ? CUBLAS_OP_N : CUBLAS_OP_T;
    uint64_t n = (uint64_t)s->n, k = (uint64_t)s->k, m = (uint64_t)s->m;
    cudaDataType y_type = s->y_dtype == DTYPE_F32 ? CUDA_R_32F : CUDA_R_16BF;

    if (cublasLtMatmulDescCreate(&plan->product, CUBLAS_COMPUTE_32F, CUDA_R_32F) ||
        cublasLtMatmulDescSetAttribute(plan->product, CUBLASLT_MATMUL_DESC_TRANSA, &transpose_w,
                                       sizeof transpose_w) ||
        cublasLtMatmulDescSetAttribute(plan->product, CUBLASLT_MATMUL_DESC_EPILOGUE, &s->epilogue,
                                       sizeof s->epilogue))
        return false;
    if (s->biased && !bias_set(plan, some_bias))
        return false;
    return !cublasLtMatrixLayoutCreate(&plan->w, CUDA_R_16BF, s->plain_w ? n : k,
                                       s->plain_w ? k : n, s->w_stride) &&
           !cublasLtMatrixLayoutCreate(&plan->x, CUDA_R_16BF, k, m, s->x_stride) &&
           !cublasLtMatrixLayoutCreate(&plan->y, y_type, n, m, s->y_stride);
}

/* What cuBLASLt proposes, the most promising first; returns how many there are. */
static int proposals(const struct gemm_plan *plan, cublasLtHandle_t blas,
                     cublasLtMatmulHeuristicResult_t found[PROPOSALS])
{
    static const cublasLtMatmulPreferenceAttributes_t alignments[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    cublasLtMatmulPreference_t preference;
    size_t workspace_bytes = blas_bytes(&plan->shape);
    uint32_t alignment = ALIGNMENT;
    /* Parts of a sum are never rounded to the type of y. */
    uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    int count = 0, good = 0;
    bool set;

    if (cublasLtMatmulPreferenceCreate(&preference))
        return 0;
    set =
        !cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                              &workspace_bytes, sizeof workspace_bytes) &&
        !cublasLtMatmulPreferenceSetAttribute(
            preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions, sizeof reductions);
    for (size_t i = 0; set && i < sizeof alignments / sizeof *alignments; i++)
        set = !cublasLtMatmulPreferenceSetAttribute(preference, alignments[i], &alignment,
                                                    sizeof alignment);
    if (set && cublasLtMatmulAlgoGetHeuristic(blas, plan->product, plan->w, plan->x, plan->y,
                                              plan->y, preference, PROPOSALS, found, &count))
        count = 0;
    cublasLtMatmulPreferenceDestroy(preference);
    for (int i = 0; i < count; i++)
        if (found[i].state == CUBLAS_STATUS_SUCCESS)
            found[good++] = found[i];
    return good;
}

static bool algorithm_possible(const struct gemm_plan *plan, cublasLtHandle_t blas,
                               const cublasLtMatmulAlgo_t *algorithm)
{
    cublasLtMatmulHeuristicResult_t result;

    return !cublasLtMatmulAlgoCheck(blas, plan->product, plan->w, plan->x, plan->y, plan->y,
                                    algorithm, &result) &&
           result.state == CUBLAS_STATUS_SUCCESS &&
           result.workspaceSize <= blas_bytes(&plan->shape);
}

static cublasStatus_t product_queue(struct cuda_backend *cuda, struct gemm_plan *plan,
                                    const struct gemm *args, const cublasLtMatmulAlgo_t *algorithm)
{
    float beta = 0.0f;

    if (args->bias != NULL)
        bias_set(plan, args->y_dtype == DTYPE_F32 ? cuda_bias_area(cuda) : args->bias);
    return cublasLtMatmul(cuda->blas, plan->product, &args->alpha, args->w, plan->w, args->x,
                          plan->x, &beta, args->y, plan->y, args->y, plan->y, algorithm,
                          cuda_blas_area(cuda), blas_bytes(&plan->shape), cuda->compute);
}

/* Milliseconds of one of some runs in a row; infinity if the algorithm fails. */
static float measure(struct cuda_backend *cuda, struct gemm_plan *plan, const struct gemm *args,
                     const cublasLtMatmulAlgo_t *algorithm, int runs)
{
    float ms = INFINITY;
    bool good = cudaEventRecord(cuda->plans.begin, cuda->compute) == cudaSuccess;

    for (int i = 0; i < runs && good; i++)
        good = product_queue(cuda, plan, args, algorithm) == CUBLAS_STATUS_SUCCESS;
    good = good && cudaEventRecord(cuda->plans.end, cuda->compute) == cudaSuccess &&
           cudaEventSynchronize(cuda->plans.end) == cudaSuccess &&
           cudaEventElapsedTime(&ms, cuda->plans.begin, cuda->plans.end) == cudaSuccess;
    return good ? ms / (float)runs : INFINITY;
}

struct candidate {
    cublasLtMatmulAlgo_t algorithm;
    float ms;
};

struct candidates {
    struct candidate all[CANDIDATES];
    int count;
};

static int candidate_compare(const void *a, const void *b)
{
    float x = ((const struct candidate *)a)->ms, y = ((const struct candidate *)b)->ms;

    return (x > y) - (x < y);
}

static void candidates_sort(struct candidates *c)
{
    qsort(c->all, (size_t)c->count, sizeof *c->all, candidate_compare);
}

static bool is_candidate(const struct candidates *c, const cublasLtMatmulAlgo_t *algorithm)
{
    for (int i = 0; i < c->count; i++)
        if (memcmp(&c->all[i].algorithm, algorithm, sizeof *algorithm) == 0)
            return true;
    return false;
}

/* Adds what the library allows with the tile of an algorithm, though it did not propose it. */
static void candidates_widen(struct candidates *c, const struct gemm_plan *plan,
                             cublasLtHandle_t blas, const cublasLtMatmulAlgo_t *from)
{
    static const uint16_t clusters[CLUSTERS] = {CUBLASLT_CLUSTER_SHAPE_2x1x1,
                                                CUBLASLT_CLUSTER_SHAPE_1x2x1};

    for (uint32_t option = 0; option < CUSTOM_OPTIONS; option++)
        for (int i = 0; i < CLUSTERS; i++) {
            cublasLtMatmulAlgo_t algorithm = *from;

            if (!cublasLtMatmulAlgoConfigSetAttribute(
                    &algorithm, CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION, &option, sizeof option) &&
                !cublasLtMatmulAlgoConfigSetAttribute(&algorithm,
                                                      CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID,
                                                      &clusters[i], sizeof clusters[i]) &&
                !is_candidate(c, &algorithm) && algorithm_possible(plan, blas, &algorithm))
                c->all[c->count++] = (struct candidate){algorithm, INFINITY};
        }
}

/* Those from `first` on once, after a run that loads the code, until time is up; then sorts all. */
static void candidates_try(struct candidates *c, int first, struct cuda_backend *cuda,
                           struct gemm_plan *plan, const struct gemm *args)
{
    float spent = 0;

    for (int i = first; i < c->count && spent < SHAPE_MS; i++) {
        float ms = measure(cuda, plan, args, &c->all[i].algorithm, 1);

        if (ms < INFINITY)
            ms = measure(cuda, plan, args, &c->all[i].algorithm, 1);
        c->all[i].ms = ms;
        spent += ms < INFINITY ? 2 * ms : 0;
    }
    candidates_sort(c);
}

/* The best few in turn, as clocks drift. */
static void candidates_compare(struct candidates *c, struct cuda_backend *cuda,
                               struct gemm_plan *plan, const struct gemm *args)
{
    c->count = c->count < FINALISTS ? c->count : FINALISTS;
    for (int round = 0; round < FINAL_ROUNDS && c->count > 1; round++)
        for (int i = 0; i < c->count; i++) {
            float ms = measure(cuda, plan, args, &c->all[i].algorithm, FINAL_RUNS);

            c->all[i].ms = round == 0 || ms < c->all[i].ms ? ms : c->all[i].ms;
        }
    candidates_sort(c);
}

/* What is proposed; for a product that takes long, also what is like the best of that. A product
 * that is short keeps the first proposal, and so does one whose outcome can't be kept. */
static void plan_measure(struct cuda_backend *cuda, struct gemm_plan *plan, const struct gemm *args,
                         const cublasLtMatmulHeuristicResult_t *found, int count)
{
    struct gemm_choice choice = {.shape = plan->shape};
    struct candidates c = {.count = 1};

    for (int i = 0; i < count; i++)
        c.all[i] = (struct candidate){found[i].algo, INFINITY};
    measure(cuda, plan, args, &found[0].algo, WARM_RUNS);
    candidates_try(&c, 0, cuda, plan, args);
    if (c.all[0].ms >= WORTH_MS) {
        c.count = count;
        candidates_try(&c, 1, cuda, plan, args);
    }
    if (c.all[0].ms >= WIDELY_MS && c.all[0].ms < INFINITY) {
        struct candidate best[TILES];
        int proposed = c.count;

        memcpy(best, c.all, sizeof best);
        for (int i = 0; i < TILES && i < proposed; i++)
            candidates_widen(&c, plan, cuda->blas, &best[i].algorithm);
        candidates_try(&c, proposed, cuda, plan, args);
    }
    candidates_compare(&c, cuda, plan, args);
    choice.algorithm = c.all[0].algorithm;
    if (c.all[0].ms < INFINITY && gemm_cache_keep(&cuda->plans.cache, &choice) &&
        algorithm_possible(plan, cuda->blas, &choice.algorithm))
        plan->algorithm = choice.algorithm;
}

/* Takes the algorithm measured before, or measures, or takes the first proposal. */
static bool plan_choose(struct cuda_backend *cuda, struct gemm_plan *plan, const struct gemm *args)
{
    const struct gemm_choice *known = gemm_cache_find(&cuda->plans.cache, &plan->shape);
    cublasLtMatmulHeuristicResult_t found[PROPOSALS];
    int count;

    if (known != NULL && algorithm_possible(plan, cuda->blas, &known->algorithm)) {
        plan->algorithm = known->algorithm;
        return true;
    }
    count = proposals(plan, cuda->blas, found);
    if (count == 0)
        return false;
    plan->algorithm = found[0].algo;
    /* Without a place to remember the outcome, another start might compute other bits. */
    if (known == NULL && gemm_cache_has_room(&cuda->plans.cache))
        plan_measure(cuda, plan, args, found, count);
    return true;
}

/* NULL only when host memory is out. */
static struct gemm_plan *plan_find(struct cuda_backend *cuda, const struct gemm *args)
{
    struct gemm_plans *plans = &cuda->plans;
    struct gemm_shape shape = shape_of(args);
    struct gemm_plan *plan;

    for (size_t i = 0; i < plans->count; i++)
        if (gemm_shape_same(&plans->plans[i].shape, &shape))
            return &plans->plans[i];
    if (plans->count == plans->capacity) {
        size_t capacity = plans->capacity ? 2 * plans->capacity : 64;
        struct gemm_plan *grown = realloc(plans->plans, capacity * sizeof *grown);

        if (grown == NULL)
            return NULL;
        plans->plans = grown;
        plans->capacity = capacity;
    }
    cuda_growth_begin(cuda);
    plan = &plans->plans[plans->count++];
    *plan = (struct gemm_plan){.shape = shape};
    plan->usable = plan_describe(plan, cuda_bias_area(cuda)) && plan_choose(cuda, plan, args);
    return plan;
}

static bool aligned(const void *data, int64_t stride, size_t element_bytes)
{
    return (uintptr_t)data % ALIGNMENT == 0 && (size_t)stride * element_bytes % ALIGNMENT == 0;
}

static bool suits_matrix_units(const struct gemm *args)
{
    return args->k % ALIGNED_ELEMENTS == 0 && args->n % ALIGNED_ELEMENTS == 0 &&
           (uintptr_t)args->bias % ALIGNMENT == 0 &&
           (size_t)args->n * sizeof(float) <= CUDA_BIAS_BYTES &&
           aligned(args->x, args->x_stride, 2) && aligned(args->w, args->w_stride, 2) &&
           aligned(args->y, args->y_stride, dtype_bytes(args->y_dtype));
}

void cuda_gemm(struct cuda_backend *cuda, const struct gemm *args)
{
    bool suits = suits_matrix_units(args);
    struct gemm_plan *plan;
    cublasStatus_t status;

    if (args->m == 0 || args->n == 0)
        return;
    if (suits && args->bias != NULL && args->y_dtype == DTYPE_F32)
        gemm_widen_bias(cuda, args);
    plan = suits ? plan_find(cuda, args) : NULL;
    if (plan == NULL || !plan->usable) {
        cuda_growth_end(cuda);
        gemm_plain(cuda, args);
        return;
    }
    status = product_queue(cuda, plan, args, &plan->algorithm);
    cuda_growth_end(cuda);
    if (status != CUBLAS_STATUS_SUCCESS)
        cuda_library_fail(cuda, "cuBLASLt", cublasLtGetStatusString(status));
}

/* Other activations than GELU, whose tanh cuBLASLt computes well enough for bf16 only, follow in a
 * kernel of their own, on the product in fp32: some rows at a time in the workspace's tile. */
static void linear_activated(struct cuda_backend *cuda, const struct linear *args,
                             const struct gemm *gemm)
{
    int64_t run = (int64_t)(CUDA_TILE_BYTES / sizeof(float)) / gemm->n;

    assert(run > 0);
    for (int64_t first = 0; first < gemm->m; first += run) {
        int64_t count = gemm->m - first < run ? gemm->m - first : run;
        struct tensor product = tensor_of(cuda_tile_area(cuda), DTYPE_F32, count, gemm->n);
        struct gemm part = *gemm;

        part.x = tensor_rows(args->x, first, count).data;
        part.m = count;
        part.y = product.data;
        part.y_stride = product.stride;
        part.y_dtype = DTYPE_F32;
        part.activation = ACTIVATION_NONE;
        part.tiled = true;
        cuda_gemm(cuda, &part);
        cuda_activate(cuda, tensor_rows(args->y, first, count), product, args->activation);
    }
}

void cuda_linear(struct backend *backend, const struct linear *args)
{
    struct gemm gemm = {
        .y = args->y.data,
        .x = args->x.data,
        .w = args->weight.data,
        .bias = args->bias.data,
        .y_stride = args->y.stride,
        .x_stride = args->x.stride,
        .w_stride = args->weight.stride,
        .m = args->y.rows,
        .n = args->y.cols,
        .k = args->x.cols,
        .y_dtype = args->y.dtype,
        .alpha = 1.0f,
        .activation = args->activation,
    };

    if (args->activation != ACTIVATION_NONE &&
        (args->activation != ACTIVATION_GELU_TANH || args->y.dtype == DTYPE_F32))
        linear_activated(cuda_of(backend), args, &gemm);
    else
        cuda_gemm(cuda_of(backend), &gemm);
}
