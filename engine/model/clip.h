/* SPDX-License-Identifier: MIT */
/*
 * CLIP text model: what a whole prompt is about, as one vector.
 * Source: arXiv 2103.00020; transformers models/clip/modeling_clip.py.
 */
#ifndef FLUXFS_ENGINE_MODEL_CLIP_H
#define FLUXFS_ENGINE_MODEL_CLIP_H

#include "engine/blocks.h"
#include "engine/ops.h"

struct clip_config {
    int layers, width, heads, hidden, vocabulary, positions;
    float eps;
};

struct clip_layer {
    struct tensor norm1_weight, norm1_bias, qkv, qkv_bias, out, out_bias;
    struct tensor norm2_weight, norm2_bias, up, up_bias, down, down_bias;
};

struct clip {
    struct clip_config config;
    const struct stored_tensor *embedding;  /* [vocabulary, width], read on the host */
    const struct stored_tensor *position;   /* [positions, width], likewise */
    struct tensor final_weight, final_bias; /* in the last block */
    struct clip_layer *layers;
    struct block_list blocks; /* layers in order, final norm */
};

int clip_open(struct clip *clip, const struct checkpoint *checkpoint, const struct backend *backend,
              struct error *err);
void clip_finish(struct clip *clip);

/* Host: token and position embeddings, fp32 [tokens, width]; tokens ≤ positions. */
int clip_embed(const struct clip *clip, const int32_t *ids, int tokens, float *x,
               struct error *err);

/* Applies block i to one sequence x [tokens, width], in place. After the last one the row of the
 * first end-of-text token is the pooled output; FLUX takes it unprojected. */
void clip_apply(struct compute *c, const struct clip *clip, size_t i, struct tensor x);

#endif
