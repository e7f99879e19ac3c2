/* SPDX-License-Identifier: MIT */
/*
 * Tensors as the engine computes with them: matrices, views that own nothing.
 *
 * A sequence of tokens is rows × channels; an image of the VAE is (height · width) × channels,
 * pixels in row-major order; a vector is a matrix of one row. Several heads lie side by side in a
 * row.
 */
#ifndef FLUXFS_ENGINE_TENSOR_H
#define FLUXFS_ENGINE_TENSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum dtype { DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_I32, DTYPE_U8 };

struct tensor {
    void *data; /* device memory; NULL for an absent operand */
    enum dtype dtype;
    int64_t rows, cols;
    int64_t stride; /* elements from one row to the next, ≥ cols */
};

/* Bytes of one element. */
static inline size_t dtype_bytes(enum dtype dtype)
{
    return dtype == DTYPE_F32 || dtype == DTYPE_I32 ? 4 : dtype == DTYPE_U8 ? 1 : 2;
}

static inline struct tensor tensor_of(void *data, enum dtype dtype, int64_t rows, int64_t cols)
{
    return (struct tensor){data, dtype, rows, cols, cols};
}

static inline size_t tensor_bytes(const struct tensor *t)
{
    return (size_t)t->rows * (size_t)t->stride * dtype_bytes(t->dtype);
}

/* Rows first … first + rows − 1, as a view. */
static inline struct tensor tensor_rows(struct tensor t, int64_t first, int64_t rows)
{
    if (t.data != NULL)
        t.data = (char *)t.data + (size_t)(first * t.stride) * dtype_bytes(t.dtype);
    t.rows = rows;
    return t;
}

/* Columns first … first + cols − 1, as a view. */
static inline struct tensor tensor_cols(struct tensor t, int64_t first, int64_t cols)
{
    if (t.data != NULL)
        t.data = (char *)t.data + (size_t)first * dtype_bytes(t.dtype);
    t.cols = cols;
    return t;
}

/* The same contiguous elements under another shape of equal size. */
static inline struct tensor tensor_reshape(struct tensor t, int64_t rows, int64_t cols)
{
    return (struct tensor){t.data, t.dtype, rows, cols, cols};
}

#endif
