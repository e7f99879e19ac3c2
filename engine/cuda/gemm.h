/* SPDX-License-Identifier: MIT */
/*
 * Matrix products on the device: by cuBLASLt where shape and alignment suit it, by a plain kernel
 * where not. Accumulation is in fp32. cuBLASLt takes a bias in the type of y only, so that biases
 * are kept in bf16: to fp32 results they are added from a copy.
 *
 * What cuBLASLt proposes for a shape, and what it allows beside the best of that, is measured when
 * the shape first comes, and the fastest is kept (gemm_cache.h), or else the first proposal. The
 * choice depends on nothing but the shape: not on addresses, so that the same work gives the same
 * bits wherever memory lies.
 */
#ifndef FLUXFS_ENGINE_CUDA_GEMM_H
#define FLUXFS_ENGINE_CUDA_GEMM_H

#include <cublasLt.h>

#include "engine/backend.h"
#include "engine/cuda/gemm_cache.h"

struct cuda_backend;

/* y = activation(alpha·x·w + bias); only GELU is known here: x bf16 [m,k], y [m,n]; w bf16, [n,k]
 * and used transposed, or [k,n] with `plain_w`; strides in elements; bias bf16 [n] or NULL. */
struct gemm {
    void *y;
    const void *x, *w, *bias;
    int64_t y_stride, x_stride, w_stride;
    int64_t m, n, k;
    enum dtype y_dtype; /* DTYPE_BF16 or DTYPE_F32 */
    bool plain_w;
    bool tiled; /* x or y is in the workspace's tile */
    float alpha;
    enum activation activation;
};

void cuda_gemm(struct cuda_backend *cuda, const struct gemm *args);

struct gemm_plan {
    struct gemm_shape shape;
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t w, x, y;
    cublasLtMatmulAlgo_t algorithm;
    bool usable; /* or cuBLASLt knows no way */
};

struct gemm_plans {
    struct gemm_plan *plans;
    size_t count, capacity;
    struct gemm_cache cache;
    cudaEvent_t begin, end; /* to measure with */
};

int gemm_plans_open(struct cuda_backend *cuda, struct error *err);

void gemm_plans_finish(struct gemm_plans *plans);

/* gemm.cu: the plain kernel, right for every shape; activation included. */
void gemm_plain(struct cuda_backend *cuda, const struct gemm *args);
/* gemm.cu: the bias in fp32, to the workspace's bias area. */
void gemm_widen_bias(struct cuda_backend *cuda, const struct gemm *args);

#endif
