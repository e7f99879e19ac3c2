/* SPDX-License-Identifier: MIT */
/*
 * The FLUX.1 transformer (MMDiT): from noisy latents, a text and a noise level to a velocity.
 * Source: diffusers models/transformers/transformer_flux.py; arXiv 2403.03206.
 *
 * Its blocks come in two passes. The condition pass runs once an image: it embeds text, noise
 * levels and guidance and computes every block's modulations for all steps, which do not depend on
 * the image; a quarter of the weights is needed only there. The step pass runs once a step.
 */
#ifndef FLUXFS_ENGINE_MODEL_TRANSFORMER_H
#define FLUXFS_ENGINE_MODEL_TRANSFORMER_H

#include "engine/blocks.h"
#include "engine/ops.h"

struct transformer_config {
    int doubles, singles;        /* number of blocks of each kind */
    int heads, head_size, width; /* width = heads · head_size */
    int channels;                /* of an image token, in and out */
    int text_width, pooled_width;
    int rope_axes[3]; /* of a head: 16, 56, 56 */
    bool guidance;
};

struct embedder {
    struct tensor in, in_bias, out, out_bias;
};

/* One of the two streams of a double block. */
struct double_stream {
    struct tensor qkv, qkv_bias, norm_q, norm_k, out, out_bias;
    struct tensor up, up_bias, down, down_bias;
};

struct double_block {
    struct double_stream image, text;
};

struct single_block {
    struct tensor qkv, qkv_bias, norm_q, norm_k, up, up_bias, out, out_bias;
};

/* One linear layer from the embedding of a step to the modulations of a block. */
struct modulation {
    struct tensor weight, bias;
    int64_t offset; /* its first column in a step's row of modulations */
};

struct transformer {
    struct transformer_config config;
    struct tensor text_in, text_in_bias; /* of the text tokens */
    struct embedder time, guidance, pooled;
    struct modulation *modulations; /* double: image, text; single; final */
    size_t modulation_count;
    int64_t modulation_width; /* columns of a step's row */
    struct tensor image_in, image_in_bias, image_out, image_out_bias;
    struct double_block *doubles;
    struct single_block *singles;
    struct block_list condition; /* embedders; modulations, one for each block */
    struct block_list step;      /* in; double blocks; single blocks; out; the blocks in pieces */
};

/* Pieces of a block that pass through memory by themselves: attention, MLPs. Between two of them
 * nothing is in scratch, so that each piece can serve several images before the next one comes. */
enum { DOUBLE_PIECES = 3, SINGLE_PIECES = 2 };

int transformer_open(struct transformer *transformer, const struct checkpoint *checkpoint,
                     const struct backend *backend, struct error *err);
void transformer_finish(struct transformer *transformer);

enum { SINUSOID_WIDTH = 256 };

/* Host: cos then sin of value·10⁴^(−i/128), [SINUSOID_WIDTH]. Noise levels and guidance come here
 * times 1000. */
void transformer_sinusoid(float value, float *sinusoid);

/* Host: rotation of each token, fp32 [text + height·width, head_size]: cos, sin of each pair.
 * height and width in tokens. */
void transformer_rope(const struct transformer_config *config, int text_tokens, int height,
                      int width, float *rope);

/* What the condition pass takes and gives, for `steps` steps. */
struct transformer_condition {
    struct tensor time;        /* [steps, SINUSOID_WIDTH] */
    struct tensor guidance;    /* the same for all rows; unused by models without guidance */
    struct tensor pooled;      /* [steps, pooled_width], all rows alike */
    struct tensor prompt;      /* [text tokens, text_width] from T5 */
    struct tensor text;        /* out: [text tokens, width] */
    struct tensor embedding;   /* work, then SiLU of the steps' embeddings: [steps, width] */
    struct tensor modulations; /* out: fp32 [steps, modulation_width] */
};

void transformer_condition(struct compute *c, const struct transformer *transformer, size_t i,
                           const struct transformer_condition *args);

/* What the step pass takes and gives. */
struct transformer_step {
    struct tensor latents; /* fp32 [image tokens, channels] */
    struct tensor text;    /* [text tokens, width] from the condition pass */
    struct tensor hidden;  /* work: [text tokens + image tokens, width], text first */
    struct tensor carried; /* work: the same shape; what a piece leaves to the next one: its input,
                              normed, or attention on its way to a single block's MLP */
    struct tensor joined;  /* work: [text tokens + image tokens, 5·width], for a single block's
                              attention and MLP beside each other, where pieces of others don't
                              come between; else absent */
    struct tensor rope;    /* fp32 [text tokens + image tokens, head_size] */
    struct tensor modulation; /* fp32 [1, modulation_width], this step's row */
    struct tensor velocity;   /* out: fp32 [image tokens, channels] */
};

void transformer_apply(struct compute *c, const struct transformer *transformer, size_t i,
                       const struct transformer_step *args);

/* Begins at a block, of both kinds counted together, with hidden states that come from elsewhere.
 */
void transformer_enter(struct compute *c, const struct transformer *transformer, size_t block,
                       const struct transformer_step *args);

#endif
