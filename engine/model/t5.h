/* SPDX-License-Identifier: MIT */
/*
 * T5 v1.1 encoder: what the words mean, token by token.
 * Source: arXiv 1910.10683, 2002.05202 (gated GELU); transformers models/t5/modeling_t5.py.
 */
#ifndef FLUXFS_ENGINE_MODEL_T5_H
#define FLUXFS_ENGINE_MODEL_T5_H

#include "engine/blocks.h"
#include "engine/ops.h"

struct t5_config {
    int layers, width, heads, head_size, hidden, vocabulary;
    int buckets, max_distance; /* of the relative position bias */
    float eps;
};

struct t5_layer {
    struct tensor norm1, qkv, out, norm2, gate, up, down;
};

struct t5 {
    struct t5_config config;
    const struct stored_tensor *embedding; /* [vocabulary, width], read on the host */
    struct tensor bias_table;              /* [buckets, heads], in the first block */
    struct tensor final_norm;              /* in the last block */
    struct t5_layer *layers;
    struct block_list blocks; /* position bias, layers in order, in two pieces each, final norm */
};

/* Attention and MLP of a layer pass through memory by themselves. */
enum { T5_PIECES = 2 };

int t5_open(struct t5 *t5, const struct checkpoint *checkpoint, const struct backend *backend,
            struct error *err);
void t5_finish(struct t5 *t5);

/* Host: the embeddings of `tokens` ids as fp32 [tokens, width]. EINVAL: an id out of range. */
int t5_embed(const struct t5 *t5, const int32_t *ids, int tokens, float *x, struct error *err);

/* Host: the bucket of each pair of positions, [tokens, tokens]. */
void t5_buckets(const struct t5_config *config, int tokens, int32_t *buckets);

/* Applies block i to one sequence x [tokens, width], in place. `bias` fp32 [heads·tokens, tokens]
 * is written by block 0 from `buckets` int32 [tokens, tokens] and read by the layers. */
void t5_apply(struct compute *c, const struct t5 *t5, size_t i, struct tensor x, struct tensor bias,
              struct tensor buckets);

#endif
