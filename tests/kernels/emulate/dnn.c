/* SPDX-License-Identifier: MIT */
/*
 * cuDNN of the emulated GPU: descriptors that remember their attributes, and one operation,
 * attention. What its manual forbids ends the process.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/cuda/dnn.h"
#include "tests/kernels/emulate/device.h"

enum { ATTRIBUTES = 8, VALUE_BYTES = 64, WORKSPACE_BYTES = 1024, ERROR = 3000 };

struct attribute {
    int name, type;
    int64_t count;
    _Alignas(8) char values[VALUE_BYTES];
};

struct descriptor {
    int type;
    bool final;
    struct attribute attributes[ATTRIBUTES];
    int count;
};

struct handle {
    cudaStream_t stream;
};

static int descriptors_alive;

static void demand(bool good, const char *what)
{
    if (!good) {
        fprintf(stderr, "emulated cuDNN: %s\n", what);
        abort();
    }
}

static size_t element_bytes(int type)
{
    return type == DNN_OF_BOOL                                         ? sizeof(bool)
           : type == DNN_OF_DATA_TYPE || type == DNN_OF_HEURISTIC_MODE ? sizeof(int)
                                                                       : 8;
}

/* ---- descriptors ---- */

static int descriptor_create(int type, dnn_descriptor *descriptor)
{
    struct descriptor *made = calloc(1, sizeof *made);

    demand(made != NULL, "out of memory");
    made->type = type;
    *descriptor = made;
    descriptors_alive++;
    return DNN_SUCCESS;
}

static int descriptor_destroy(dnn_descriptor descriptor)
{
    demand(descriptor != NULL, "a descriptor destroyed that is none");
    free(descriptor);
    descriptors_alive--;
    return DNN_SUCCESS;
}

static const void *attribute(const struct descriptor *d, int name, int type, int64_t count)
{
    for (int i = 0; i < d->count; i++)
        if (d->attributes[i].name == name && d->attributes[i].type == type &&
            d->attributes[i].count == count)
            return d->attributes[i].values;
    fprintf(stderr, "emulated cuDNN: descriptor of type %d has no attribute %d\n", d->type, name);
    abort();
}

static struct descriptor *part(const struct descriptor *d, int name, int type)
{
    struct descriptor *found =
        *(struct descriptor *const *)attribute(d, name, DNN_OF_DESCRIPTOR, 1);

    demand(found->type == type && found->final, "a part of another type, or not final");
    return found;
}

static int set(dnn_descriptor descriptor, int name, int type, int64_t count, const void *values)
{
    struct descriptor *d = descriptor;
    struct attribute *a = &d->attributes[d->count++];
    size_t bytes = (size_t)count * element_bytes(type);

    demand(!d->final && d->count <= ATTRIBUTES && bytes <= VALUE_BYTES, "an attribute too many");
    *a = (struct attribute){.name = name, .type = type, .count = count};
    memcpy(a->values, values, bytes);
    return DNN_SUCCESS;
}

static int get(dnn_descriptor descriptor, int name, int type, int64_t capacity, int64_t *count,
               void *values)
{
    struct descriptor *d = descriptor, *config;

    demand(d->final, "asked before it is final");
    *count = 1;
    if (d->type == DNN_EXECUTION_PLAN && name == DNN_PLAN_WORKSPACE_BYTES) {
        *(int64_t *)values = WORKSPACE_BYTES;
        return DNN_SUCCESS;
    }
    demand(d->type == DNN_ENGINE_HEURISTIC && name == DNN_HEURISTIC_RESULTS && capacity > 0,
           "an attribute that can't be asked for");
    config = *(struct descriptor **)values;
    demand(config->type == DNN_ENGINE_CONFIG, "no place for results");
    set(config, DNN_HEURISTIC_GRAPH, DNN_OF_DESCRIPTOR, 1,
        attribute(d, DNN_HEURISTIC_GRAPH, DNN_OF_DESCRIPTOR, 1));
    config->final = true;
    return DNN_SUCCESS;
}

static void check_tensor(const struct descriptor *t)
{
    const int64_t *sizes = attribute(t, DNN_TENSOR_DIMENSIONS, DNN_OF_INT64, 4);
    const int64_t *strides = attribute(t, DNN_TENSOR_STRIDES, DNN_OF_INT64, 4);

    attribute(t, DNN_TENSOR_ID, DNN_OF_INT64, 1);
    attribute(t, DNN_TENSOR_ALIGNMENT, DNN_OF_INT64, 1);
    demand(sizes[0] == 1 && strides[3] == 1, "tensors are [1, heads, rows, size]");
}

static int finalize(dnn_descriptor descriptor)
{
    struct descriptor *d = descriptor;

    demand(!d->final, "final twice");
    d->final = true;
    if (d->type == DNN_TENSOR) {
        check_tensor(d);
    } else if (d->type == DNN_ATTENTION) {
        static const int parts[] = {DNN_ATTENTION_Q, DNN_ATTENTION_K, DNN_ATTENTION_V,
                                    DNN_ATTENTION_Y, DNN_ATTENTION_SCALE};

        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
            part(d, parts[i], DNN_TENSOR);
    } else if (d->type == DNN_OPERATION_GRAPH) {
        part(d, DNN_GRAPH_OPERATIONS, DNN_ATTENTION);
        attribute(d, DNN_GRAPH_HANDLE, DNN_OF_HANDLE, 1);
    } else if (d->type == DNN_ENGINE_HEURISTIC) {
        part(d, DNN_HEURISTIC_GRAPH, DNN_OPERATION_GRAPH);
        demand(*(const int *)attribute(d, DNN_HEURISTIC_MODE, DNN_OF_HEURISTIC_MODE, 1) ==
                   DNN_MODE_A,
               "another mode");
    } else if (d->type == DNN_EXECUTION_PLAN) {
        part(d, DNN_PLAN_CONFIG, DNN_ENGINE_CONFIG);
    }
    return DNN_SUCCESS;
}

/* ---- attention ---- */

struct matrix {
    uint16_t *data;
    int64_t heads, rows, size, head_stride, row_stride;
};

struct attention_work {
    struct matrix q, k, v, y;
    void *workspace;
    float scale;
};

static double value(const struct matrix *m, int64_t head, int64_t row, int64_t i)
{
    uint32_t bits = (uint32_t)m->data[head * m->head_stride + row * m->row_stride + i] << 16;
    float number;

    memcpy(&number, &bits, sizeof number);
    return (double)number;
}

static uint16_t rounded(double x)
{
    float number = (float)x;
    uint32_t bits;

    memcpy(&bits, &number, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static void attend(const struct attention_work *w, int64_t head, int64_t query, double *scores)
{
    double highest = -INFINITY, sum = 0;

    for (int64_t key = 0; key < w->k.rows; key++) {
        scores[key] = 0;
        for (int64_t i = 0; i < w->q.size; i++)
            scores[key] += value(&w->q, head, query, i) * value(&w->k, head, key, i);
        scores[key] *= (double)w->scale;
        highest = fmax(highest, scores[key]);
    }
    for (int64_t key = 0; key < w->k.rows; key++)
        sum += scores[key] = exp(scores[key] - highest);
    for (int64_t i = 0; i < w->v.size; i++) {
        double y = 0;

        for (int64_t key = 0; key < w->k.rows; key++)
            y += scores[key] * value(&w->v, head, key, i);
        w->y.data[head * w->y.head_stride + query * w->y.row_stride + i] = rounded(y / sum);
    }
}

static void attention_run(void *args)
{
    const struct attention_work *w = args;
    double *scores = malloc((size_t)w->k.rows * sizeof *scores);

    demand(scores != NULL, "out of memory");
    memset(w->workspace, 0xff, WORKSPACE_BYTES);
    for (int64_t head = 0; head < w->q.heads; head++)
        for (int64_t query = 0; query < w->q.rows; query++)
            attend(w, head, query, scores);
    free(scores);
}

/* What the variant pack gives for a tensor of the operation. */
static void *given(const struct descriptor *pack, const struct descriptor *tensor)
{
    const int64_t *ids = attribute(pack, DNN_PACK_IDS, DNN_OF_INT64, 5);
    void *const *pointers = attribute(pack, DNN_PACK_POINTERS, DNN_OF_POINTER, 5);
    int64_t id = *(const int64_t *)attribute(tensor, DNN_TENSOR_ID, DNN_OF_INT64, 1);

    for (int i = 0; i < 5; i++)
        if (ids[i] == id)
            return pointers[i];
    demand(false, "a tensor that is not in the pack");
    return NULL;
}

static struct matrix matrix_of(const struct descriptor *operation, int name,
                               const struct descriptor *pack)
{
    const struct descriptor *t = part(operation, name, DNN_TENSOR);
    const int64_t *sizes = attribute(t, DNN_TENSOR_DIMENSIONS, DNN_OF_INT64, 4);
    const int64_t *strides = attribute(t, DNN_TENSOR_STRIDES, DNN_OF_INT64, 4);
    void *data = given(pack, t);
    int64_t alignment = *(const int64_t *)attribute(t, DNN_TENSOR_ALIGNMENT, DNN_OF_INT64, 1);

    demand((uintptr_t)data % (uintptr_t)alignment == 0, "data less aligned than was promised");
    demand(*(const int *)attribute(t, DNN_TENSOR_DATA_TYPE, DNN_OF_DATA_TYPE, 1) == DNN_DATA_BF16,
           "matrices are in bf16");
    return (struct matrix){data, sizes[1], sizes[2], sizes[3], strides[1], strides[2]};
}

static int execute(dnn_handle handle, dnn_descriptor plan, dnn_descriptor pack)
{
    const struct descriptor *config = part(plan, DNN_PLAN_CONFIG, DNN_ENGINE_CONFIG);
    const struct descriptor *graph = part(config, DNN_HEURISTIC_GRAPH, DNN_OPERATION_GRAPH);
    const struct descriptor *operation = part(graph, DNN_GRAPH_OPERATIONS, DNN_ATTENTION);
    const struct descriptor *scale = part(operation, DNN_ATTENTION_SCALE, DNN_TENSOR);
    struct attention_work work = {
        .q = matrix_of(operation, DNN_ATTENTION_Q, pack),
        .k = matrix_of(operation, DNN_ATTENTION_K, pack),
        .v = matrix_of(operation, DNN_ATTENTION_V, pack),
        .y = matrix_of(operation, DNN_ATTENTION_Y, pack),
    };

    demand(*(const bool *)attribute(scale, DNN_TENSOR_BY_VALUE, DNN_OF_BOOL, 1), "by reference");
    work.scale = *(const float *)given(pack, scale);
    work.workspace = *(void *const *)attribute(pack, DNN_PACK_WORKSPACE, DNN_OF_POINTER, 1);
    device_queue(((struct handle *)handle)->stream, attention_run, &work, sizeof work);
    return DNN_SUCCESS;
}

/* ---- the library ---- */

static size_t version(void)
{
    return DNN_LEAST_VERSION;
}

static const char *error_string(int status)
{
    return status == ERROR ? "not supported" : "an error";
}

static int create(dnn_handle *handle)
{
    *handle = calloc(1, sizeof(struct handle));
    return *handle != NULL ? DNN_SUCCESS : ERROR;
}

static int destroy(dnn_handle handle)
{
    demand(descriptors_alive == 0, "descriptors are left");
    free(handle);
    return DNN_SUCCESS;
}

static int set_stream(dnn_handle handle, cudaStream_t stream)
{
    ((struct handle *)handle)->stream = stream;
    return DNN_SUCCESS;
}

bool dnn_library_open(struct dnn_library *library)
{
    *library = (struct dnn_library){
        version, error_string, create,   destroy, set_stream, descriptor_create, descriptor_destroy,
        set,     get,          finalize, execute};
    return device_word("no-cudnn", -1) < 0;
}
