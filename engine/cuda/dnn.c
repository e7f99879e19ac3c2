/* SPDX-License-Identifier: MIT */
#include "engine/cuda/dnn.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/cuda/cuda.h"

/* What every matrix must be aligned to, and heads a multiple of (in elements). */
enum { ALIGNMENT = 16, ALIGNED_ELEMENTS = 8, HEAD_MAX = 128 };

/* Fewer queries than this are not worth a plan of their own. */
enum { QUERIES_LEAST = 64 };

enum { CONFIGS = 8 };

/* The operands' names in a plan. */
enum { ID_Q = 1, ID_K, ID_V, ID_Y, ID_SCALE, IDS = 5 };

struct dnn_shape {
    int64_t queries, keys, heads, size, q_stride, k_stride, v_stride, y_stride;
};

struct dnn_plan {
    struct dnn_shape shape;
    dnn_descriptor kept[IDS + 4]; /* what the plan is made of, in the order it was made */
    int kept_count;
    dnn_descriptor plan; /* NULL: cuDNN knows no way */
};

/* Builds descriptors; after a failure all calls do nothing. */
struct builder {
    const struct dnn_library *library;
    struct dnn_plan *plan;
    bool failed;
};

static dnn_descriptor begin(struct builder *b, enum dnn_descriptor_type type)
{
    dnn_descriptor descriptor = NULL;

    if (b->failed || b->library->descriptor_create(type, &descriptor) != DNN_SUCCESS) {
        b->failed = true;
        return NULL;
    }
    b->plan->kept[b->plan->kept_count++] = descriptor;
    return descriptor;
}

static void set(struct builder *b, dnn_descriptor descriptor, enum dnn_attribute attribute,
                enum dnn_attribute_type type, int64_t count, const void *values)
{
    if (!b->failed)
        b->failed = b->library->set(descriptor, attribute, type, count, values) != DNN_SUCCESS;
}

static void end(struct builder *b, dnn_descriptor descriptor)
{
    if (!b->failed)
        b->failed = b->library->finalize(descriptor) != DNN_SUCCESS;
}

static dnn_descriptor tensor(struct builder *b, int64_t id, int data_type, const int64_t sizes[4],
                             const int64_t strides[4])
{
    dnn_descriptor t = begin(b, DNN_TENSOR);
    int64_t alignment = ALIGNMENT;
    bool by_value = id == ID_SCALE;

    set(b, t, DNN_TENSOR_DATA_TYPE, DNN_OF_DATA_TYPE, 1, &data_type);
    set(b, t, DNN_TENSOR_DIMENSIONS, DNN_OF_INT64, 4, sizes);
    set(b, t, DNN_TENSOR_STRIDES, DNN_OF_INT64, 4, strides);
    set(b, t, DNN_TENSOR_ID, DNN_OF_INT64, 1, &id);
    set(b, t, DNN_TENSOR_ALIGNMENT, DNN_OF_INT64, 1, &alignment);
    set(b, t, DNN_TENSOR_BY_VALUE, DNN_OF_BOOL, 1, &by_value);
    end(b, t);
    return t;
}

/* [1, heads, rows, size], the heads of a row side by side. */
static dnn_descriptor heads_of(struct builder *b, int64_t id, int64_t rows, int64_t stride)
{
    const struct dnn_shape *s = &b->plan->shape;
    const int64_t sizes[4] = {1, s->heads, rows, s->size};
    const int64_t strides[4] = {rows * stride, s->size, stride, 1};

    return tensor(b, id, DNN_DATA_BF16, sizes, strides);
}

static dnn_descriptor graph_build(struct builder *b, dnn_handle handle)
{
    const struct dnn_shape *s = &b->plan->shape;
    const int64_t one[4] = {1, 1, 1, 1};
    dnn_descriptor q = heads_of(b, ID_Q, s->queries, s->q_stride);
    dnn_descriptor k = heads_of(b, ID_K, s->keys, s->k_stride);
    dnn_descriptor v = heads_of(b, ID_V, s->keys, s->v_stride);
    dnn_descriptor y = heads_of(b, ID_Y, s->queries, s->y_stride);
    dnn_descriptor scale = tensor(b, ID_SCALE, DNN_DATA_FLOAT, one, one);
    dnn_descriptor attention = begin(b, DNN_ATTENTION), graph;

    set(b, attention, DNN_ATTENTION_Q, DNN_OF_DESCRIPTOR, 1, &q);
    set(b, attention, DNN_ATTENTION_K, DNN_OF_DESCRIPTOR, 1, &k);
    set(b, attention, DNN_ATTENTION_V, DNN_OF_DESCRIPTOR, 1, &v);
    set(b, attention, DNN_ATTENTION_Y, DNN_OF_DESCRIPTOR, 1, &y);
    set(b, attention, DNN_ATTENTION_SCALE, DNN_OF_DESCRIPTOR, 1, &scale);
    end(b, attention);
    graph = begin(b, DNN_OPERATION_GRAPH);
    set(b, graph, DNN_GRAPH_HANDLE, DNN_OF_HANDLE, 1, &handle);
    set(b, graph, DNN_GRAPH_OPERATIONS, DNN_OF_DESCRIPTOR, 1, &attention);
    end(b, graph);
    return graph;
}

/* A finished plan of this configuration whose workspace we have, or NULL. */
static dnn_descriptor plan_of(const struct dnn *dnn, dnn_descriptor config)
{
    const struct dnn_library *l = &dnn->library;
    dnn_descriptor plan = NULL;
    int64_t workspace = 0, count = 0;

    if (l->descriptor_create(DNN_EXECUTION_PLAN, &plan) != DNN_SUCCESS)
        return NULL;
    if (l->set(plan, DNN_PLAN_HANDLE, DNN_OF_HANDLE, 1, &dnn->handle) == DNN_SUCCESS &&
        l->set(plan, DNN_PLAN_CONFIG, DNN_OF_DESCRIPTOR, 1, &config) == DNN_SUCCESS &&
        l->finalize(plan) == DNN_SUCCESS &&
        l->get(plan, DNN_PLAN_WORKSPACE_BYTES, DNN_OF_INT64, 1, &count, &workspace) ==
            DNN_SUCCESS &&
        workspace <= (int64_t)CUDA_TILE_BYTES)
        return plan;
    l->descriptor_destroy(plan);
    return NULL;
}

/* The first of the library's proposals that works. */
static void plan_choose(const struct dnn *dnn, struct builder *b, dnn_descriptor graph)
{
    const struct dnn_library *l = b->library;
    dnn_descriptor heuristic = begin(b, DNN_ENGINE_HEURISTIC), configs[CONFIGS] = {0};
    int mode = DNN_MODE_A;
    int64_t count = 0;

    set(b, heuristic, DNN_HEURISTIC_GRAPH, DNN_OF_DESCRIPTOR, 1, &graph);
    set(b, heuristic, DNN_HEURISTIC_MODE, DNN_OF_HEURISTIC_MODE, 1, &mode);
    end(b, heuristic);
    for (int i = 0; i < CONFIGS && !b->failed; i++)
        b->failed = l->descriptor_create(DNN_ENGINE_CONFIG, &configs[i]) != DNN_SUCCESS;
    if (!b->failed)
        b->failed = l->get(heuristic, DNN_HEURISTIC_RESULTS, DNN_OF_DESCRIPTOR, CONFIGS, &count,
                           configs) != DNN_SUCCESS;
    for (int i = 0; i < count && !b->failed && b->plan->plan == NULL; i++) {
        b->plan->plan = plan_of(dnn, configs[i]);
        if (b->plan->plan != NULL) {
            b->plan->kept[b->plan->kept_count++] = configs[i];
            configs[i] = NULL;
        }
    }
    for (int i = 0; i < CONFIGS; i++)
        if (configs[i] != NULL)
            l->descriptor_destroy(configs[i]);
}

static void plan_finish(const struct dnn_library *library, struct dnn_plan *plan)
{
    if (plan->plan != NULL)
        library->descriptor_destroy(plan->plan);
    plan->plan = NULL;
    while (plan->kept_count > 0)
        library->descriptor_destroy(plan->kept[--plan->kept_count]);
}

static void plan_build(struct dnn *dnn, struct dnn_plan *plan)
{
    struct builder b = {.library = &dnn->library, .plan = plan};
    dnn_descriptor graph = graph_build(&b, dnn->handle);

    plan_choose(dnn, &b, graph);
    if (plan->plan == NULL)
        plan_finish(&dnn->library, plan);
}

static bool shape_same(const struct dnn_shape *a, const struct dnn_shape *b)
{
    return a->queries == b->queries && a->keys == b->keys && a->heads == b->heads &&
           a->size == b->size && a->q_stride == b->q_stride && a->k_stride == b->k_stride &&
           a->v_stride == b->v_stride && a->y_stride == b->y_stride;
}

/* NULL only when host memory is out. */
static struct dnn_plan *plan_find(struct cuda_backend *cuda, const struct dnn_shape *shape)
{
    struct dnn *dnn = &cuda->dnn;
    struct dnn_plan *plan;

    for (size_t i = 0; i < dnn->count; i++)
        if (shape_same(&dnn->plans[i].shape, shape))
            return &dnn->plans[i];
    if (dnn->count == dnn->capacity) {
        size_t capacity = dnn->capacity ? 2 * dnn->capacity : 16;
        struct dnn_plan *grown = realloc(dnn->plans, capacity * sizeof *grown);

        if (grown == NULL)
            return NULL;
        dnn->plans = grown;
        dnn->capacity = capacity;
    }
    plan = &dnn->plans[dnn->count++];
    *plan = (struct dnn_plan){.shape = *shape};
    cuda_growth_begin(cuda);
    plan_build(dnn, plan);
    return plan;
}

static bool aligned(struct tensor t)
{
    return (uintptr_t)t.data % ALIGNMENT == 0 && t.stride % ALIGNED_ELEMENTS == 0;
}

static bool suits(const struct attention *args, int64_t size)
{
    return args->bias.data == NULL && !args->causal && args->q.rows >= QUERIES_LEAST &&
           size <= HEAD_MAX && size % ALIGNED_ELEMENTS == 0 && aligned(args->q) &&
           aligned(args->k) && aligned(args->v) && aligned(args->y);
}

static int execute(struct cuda_backend *cuda, const struct dnn_plan *plan,
                   const struct attention *args)
{
    const struct dnn_library *l = &cuda->dnn.library;
    const int64_t ids[IDS] = {ID_Q, ID_K, ID_V, ID_Y, ID_SCALE};
    float scale = args->scale;
    void *const pointers[IDS] = {args->q.data, args->k.data, args->v.data, args->y.data, &scale};
    void *workspace = cuda_tile_area(cuda);
    dnn_descriptor pack = NULL;
    int status = l->descriptor_create(DNN_VARIANT_PACK, &pack);

    if (status != DNN_SUCCESS)
        return status;
    status = l->set(pack, DNN_PACK_IDS, DNN_OF_INT64, IDS, ids);
    if (status == DNN_SUCCESS)
        status = l->set(pack, DNN_PACK_POINTERS, DNN_OF_POINTER, IDS, pointers);
    if (status == DNN_SUCCESS)
        status = l->set(pack, DNN_PACK_WORKSPACE, DNN_OF_POINTER, 1, &workspace);
    if (status == DNN_SUCCESS)
        status = l->finalize(pack);
    if (status == DNN_SUCCESS)
        status = l->execute(cuda->dnn.handle, plan->plan, pack);
    l->descriptor_destroy(pack);
    return status;
}

bool dnn_attention(struct cuda_backend *cuda, const struct attention *args)
{
    struct dnn_shape shape = {.queries = args->q.rows,
                              .keys = args->k.rows,
                              .heads = args->heads,
                              .size = args->q.cols / args->heads,
                              .q_stride = args->q.stride,
                              .k_stride = args->k.stride,
                              .v_stride = args->v.stride,
                              .y_stride = args->y.stride};
    const struct dnn_plan *plan;
    bool usable;
    int status = DNN_SUCCESS;

    if (cuda->dnn.handle == NULL || !suits(args, shape.size))
        return false;
    plan = plan_find(cuda, &shape);
    usable = plan != NULL && plan->plan != NULL;
    if (usable)
        status = execute(cuda, plan, args);
    cuda_growth_end(cuda);
    if (status != DNN_SUCCESS)
        cuda_library_fail(cuda, "cuDNN", cuda->dnn.library.error_string(status));
    return usable;
}

void dnn_open(struct cuda_backend *cuda)
{
    const char *wish = getenv("FLUXFS_CUDNN");
    struct dnn *dnn = &cuda->dnn;

    if (cuda->capability == 90 && (wish == NULL || strcmp(wish, "on") != 0))
        return;
    if (!dnn_library_open(&dnn->library) || dnn->library.create(&dnn->handle) != DNN_SUCCESS) {
        dnn->handle = NULL;
        return;
    }
    if (dnn->library.set_stream(dnn->handle, cuda->compute) != DNN_SUCCESS)
        dnn_finish(dnn);
}

void dnn_finish(struct dnn *dnn)
{
    for (size_t i = 0; i < dnn->count; i++)
        plan_finish(&dnn->library, &dnn->plans[i]);
    free(dnn->plans);
    if (dnn->handle != NULL)
        dnn->library.destroy(dnn->handle);
    *dnn = (struct dnn){0};
}
