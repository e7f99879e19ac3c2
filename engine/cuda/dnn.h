/* SPDX-License-Identifier: MIT */
/*
 * Attention by cuDNN, where the library is there (9.13 or newer, found at run time): through its C
 * back-end API, whose one operation for it takes matrices of any stride. On Hopper, for which our
 * own kernel is as fast and costs less power, it is not looked for. By FLUXFS_CUDNN in the
 * environment, for comparisons: "off" does without it, "on" takes it on Hopper too.
 *
 * The numbers below are that API's, and part of its binary interface; having them here lets the
 * module be built anywhere. (Where NVIDIA's header is found, a test compares them.)
 */
#ifndef FLUXFS_ENGINE_CUDA_DNN_H
#define FLUXFS_ENGINE_CUDA_DNN_H

#include <cuda_runtime_api.h>

#include "engine/backend.h"

enum { DNN_LEAST_VERSION = 91300 };

enum dnn_descriptor_type {
    DNN_ENGINE_CONFIG = 3,
    DNN_ENGINE_HEURISTIC = 4,
    DNN_EXECUTION_PLAN = 5,
    DNN_OPERATION_GRAPH = 15,
    DNN_VARIANT_PACK = 16,
    DNN_TENSOR = 17,
    DNN_ATTENTION = 41,
};

enum dnn_attribute {
    DNN_HEURISTIC_MODE = 200,
    DNN_HEURISTIC_GRAPH = 201,
    DNN_HEURISTIC_RESULTS = 202,
    DNN_PLAN_HANDLE = 400,
    DNN_PLAN_CONFIG = 401,
    DNN_PLAN_WORKSPACE_BYTES = 402,
    DNN_GRAPH_HANDLE = 800,
    DNN_GRAPH_OPERATIONS = 801,
    DNN_TENSOR_ALIGNMENT = 900,
    DNN_TENSOR_DATA_TYPE = 901,
    DNN_TENSOR_DIMENSIONS = 902,
    DNN_TENSOR_STRIDES = 903,
    DNN_TENSOR_ID = 906,
    DNN_TENSOR_BY_VALUE = 908,
    DNN_PACK_IDS = 1000,
    DNN_PACK_POINTERS = 1001,
    DNN_PACK_WORKSPACE = 1003,
    DNN_ATTENTION_Q = 2800,
    DNN_ATTENTION_K = 2801,
    DNN_ATTENTION_V = 2802,
    DNN_ATTENTION_Y = 2803,
    DNN_ATTENTION_SCALE = 2805,
};

enum dnn_attribute_type {
    DNN_OF_HANDLE = 0,
    DNN_OF_DATA_TYPE = 1,
    DNN_OF_BOOL = 2,
    DNN_OF_INT64 = 3,
    DNN_OF_POINTER = 6,
    DNN_OF_HEURISTIC_MODE = 8,
    DNN_OF_DESCRIPTOR = 15,
};

enum { DNN_DATA_FLOAT = 0, DNN_DATA_BF16 = 9, DNN_MODE_A = 3, DNN_SUCCESS = 0 };

typedef void *dnn_handle, *dnn_descriptor;

/* The library's functions; `create` NULL: it is not there. */
struct dnn_library {
    size_t (*version)(void);
    const char *(*error_string)(int status);
    int (*create)(dnn_handle *handle);
    int (*destroy)(dnn_handle handle);
    int (*set_stream)(dnn_handle handle, cudaStream_t stream);
    int (*descriptor_create)(int type, dnn_descriptor *descriptor);
    int (*descriptor_destroy)(dnn_descriptor descriptor);
    int (*set)(dnn_descriptor descriptor, int attribute, int type, int64_t count,
               const void *values);
    int (*get)(dnn_descriptor descriptor, int attribute, int type, int64_t capacity, int64_t *count,
               void *values);
    int (*finalize)(dnn_descriptor descriptor);
    int (*execute)(dnn_handle handle, dnn_descriptor plan, dnn_descriptor pack);
};

/* dnn_library.c: finds the library; false if it is not there, not whole or too old. */
bool dnn_library_open(struct dnn_library *library);

struct cuda_backend;
struct dnn_plan;

struct dnn {
    struct dnn_library library;
    dnn_handle handle; /* NULL: attention goes without it */
    struct dnn_plan *plans;
    size_t count, capacity;
};

void dnn_open(struct cuda_backend *cuda);
void dnn_finish(struct dnn *dnn);

/* Queues the attention, or does nothing and returns false: another way is needed. */
bool dnn_attention(struct cuda_backend *cuda, const struct attention *args);

#endif
