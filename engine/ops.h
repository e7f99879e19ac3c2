/* SPDX-License-Identifier: MIT */
/*
 * What model code calls: each operation of backend.h behind a check of its operands.
 *
 * A mismatch is a programmer's error and asserts. A `compute` in rehearsal runs nothing: the same
 * model code then only tells its scratch (scratch.h) which buffers live when.
 */
#ifndef FLUXFS_ENGINE_OPS_H
#define FLUXFS_ENGINE_OPS_H

#include "engine/backend.h"
#include "engine/scratch.h"

struct compute {
    struct backend *backend;
    struct scratch *scratch;
    bool rehearsal;
};

void op_linear(struct compute *c, struct linear args);
void op_attention(struct compute *c, struct attention args);
void op_conv(struct compute *c, struct conv args);
void op_layer_norm(struct compute *c, struct tensor y, struct tensor x, struct tensor weight,
                   struct tensor bias, float eps);
void op_modulated_norm(struct compute *c, struct tensor y, struct tensor x, struct tensor shift,
                       struct tensor scale, float eps);
void op_rms_norm(struct compute *c, struct tensor y, struct tensor x, struct tensor weight,
                 float eps);
void op_head_norm(struct compute *c, struct head_norm args);
void op_gated_norm(struct compute *c, struct gated_norm args);
void op_channel_sums(struct compute *c, struct tensor sums, struct tensor x, int part);
void op_group_norm(struct compute *c, struct group_norm args);
void op_affine(struct compute *c, struct tensor y, struct tensor x, struct tensor affine);
void op_add(struct compute *c, struct tensor y, struct tensor x);
void op_gelu_multiply(struct compute *c, struct tensor y, struct tensor x);
void op_silu(struct compute *c, struct tensor y, struct tensor x);
void op_copy(struct compute *c, struct tensor y, struct tensor x);
void op_position_bias(struct compute *c, struct tensor y, struct tensor table,
                      struct tensor buckets);
void op_euler(struct compute *c, struct tensor latents, struct tensor velocity, float step);
void op_guide(struct compute *c, struct tensor v, struct tensor negative, float scale);
void op_unpatchify(struct compute *c, struct tensor pixels, struct tensor tokens, int width,
                   float multiply, float shift);
void op_to_rgb(struct compute *c, struct tensor rgb, struct tensor x);
void op_upload(struct compute *c, struct tensor target, const void *source);
void op_download(struct compute *c, void *target, struct tensor source);

/* A scratch buffer of hidden states, or of another type; freed in any order. */
struct tensor op_scratch(struct compute *c, int64_t rows, int64_t cols);
struct tensor op_scratch_typed(struct compute *c, enum dtype dtype, int64_t rows, int64_t cols);
void op_release(struct compute *c, struct tensor t);

#endif
