/* SPDX-License-Identifier: MIT */
/*
 * What the operations of backend.h mean: each as plain loops in double precision, together with a
 * bound on the error of computing it in fp32.
 *
 * The bounds. One fp32 operation errs by u = 2⁻²⁴ relatively. A sum of n terms in any order errs by
 * at most n·u·Σ|terms|; rounding errors of either sign leave about √n·u·Σ|terms|, and twice
 * that is what is allowed here: enough for every order of summation, and too little for a product
 * in tf32 or bf16, a missing term or a wrong weight. Rounding of the stored result comes on top
 * (rig.c).
 */
#ifndef FLUXFS_TESTS_KERNELS_REFERENCE_H
#define FLUXFS_TESTS_KERNELS_REFERENCE_H

#include "engine/backend.h"

struct grid {
    double *at; /* [rows, cols], contiguous; NULL if absent */
    int64_t rows, cols;
};

/* A result and how far from it an fp32 computation may be, element by element. */
struct reference {
    struct grid value, error;
};

struct grid grid_create(int64_t rows, int64_t cols); /* of zeros */
void grid_free(struct grid *grid);
void reference_free(struct reference *reference);

struct reference reference_linear(struct grid x, struct grid weight, struct grid bias,
                                  enum activation activation);

struct attention_case {
    struct grid q, k, v, bias;
    int heads;
    double scale;
    bool causal;
    double weight_roundoff; /* probabilities may be stored with this roundoff */
};
struct reference reference_attention(const struct attention_case *args);

struct conv_case {
    struct grid x, weight, bias, affine;
    struct grid before; /* what the result is added to, or absent */
    int height, width, size;
    int first;    /* row of pixels of the result that y begins with */
    int64_t rows; /* of pixels of y */
    bool upsample;
    double input_roundoff; /* what affine makes of x may be stored with this roundoff */
};
struct reference reference_conv(const struct conv_case *args);

/* (x − mean)/√(variance + eps)·weight + bias per row; without mean for rms_norm (`centred` false).
 * Absent weight: 1; absent bias: 0. */
struct norm_case {
    struct grid x, weight, bias;
    double eps;
    bool centred;
};
struct reference reference_norm(const struct norm_case *args);

/* What becomes of q, or of k. */
struct head_case {
    struct grid x, weight[2], rope;
    int64_t split;
    double eps;
};
struct reference reference_head_norm(const struct head_case *args);

struct gated_case {
    struct grid x, y, gate[2], shift[2], scale[2];
    int64_t split;
    double eps, roundoff; /* of x as it is stored */
};
void reference_gated_norm(const struct gated_case *args, struct reference *x, struct reference *y);

/* [2, channels]: factor and offset. */
struct reference reference_group_norm(const struct norm_case *args, int groups);
struct reference reference_affine(struct grid x, struct grid affine);

/* y + factor·x */
struct reference reference_add(struct grid y, struct grid x, double factor);
struct reference reference_gelu_multiply(struct grid y, struct grid x);
struct reference reference_silu(struct grid x);
struct reference reference_copy(struct grid x);
struct reference reference_position_bias(struct grid table, struct grid buckets);
struct reference reference_guide(struct grid v, struct grid negative, double scale);
struct reference reference_unpatchify(struct grid tokens, int width, double multiply, double shift);
struct reference reference_to_rgb(struct grid x);

#endif
