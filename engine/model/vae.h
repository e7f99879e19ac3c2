/* SPDX-License-Identifier: MIT */
/*
 * The decoder of the autoencoder (AutoencoderKL): from latents to pixels, eightfold enlarged.
 * Source: arXiv 2112.10752; diffusers models/autoencoders/vae.py.
 */
#ifndef FLUXFS_ENGINE_MODEL_VAE_H
#define FLUXFS_ENGINE_MODEL_VAE_H

#include "engine/blocks.h"
#include "engine/ops.h"

enum { VAE_LEVELS_MAX = 8 };

struct vae_config {
    int levels, channels[VAE_LEVELS_MAX]; /* outermost first */
    int latent_channels, groups, layers;  /* residual blocks of a level: layers + 1 */
    float scaling, shift;                 /* latents of the transformer: (z − shift)·scaling */
    bool post_quant, attention;
};

enum vae_kind { VAE_INPUT, VAE_RESIDUAL, VAE_ATTENTION, VAE_OUTPUT };

/* What one block holds; which tensors are used depends on its kind. */
struct vae_layer {
    enum vae_kind kind;
    bool enlarges;   /* a residual block that doubles height and width first */
    int64_t in, out; /* channels */
    struct tensor enlarge, enlarge_bias;
    struct tensor norm1_weight, norm1_bias, conv1, conv1_bias;
    struct tensor norm2_weight, norm2_bias, conv2, conv2_bias;
    struct tensor shortcut, shortcut_bias; /* if in ≠ out; input: the post-quantisation conv */
    struct tensor qkv, qkv_bias, to_out, to_out_bias;
};

struct vae {
    struct vae_config config;
    struct vae_layer *layers;
    struct block_list blocks; /* one for each layer, in order */
};

int vae_open(struct vae *vae, const struct checkpoint *checkpoint, const struct backend *backend,
             struct error *err);
void vae_finish(struct vae *vae);

/* Pixels of the image for one of the latents, along a side. */
int vae_enlargement(const struct vae_config *config);

/*
 * An image on its way through the decoder.
 *
 * Blocks work in strips, some rows of pixels at a time, and in the same strips whatever memory
 * there is, so that every number comes from the same operations. What lies between the layers of a
 * block (its enlarged and its hidden picture) is kept whole where that takes `whole_bytes` at most.
 * Otherwise a window of one strip goes over it, and strips are computed again where a normalisation
 * first needs the sums of all of them. The pictures between blocks share one canvas (vae_decode.c).
 */
struct vae_image {
    int height, width;
    struct tensor x;      /* [height · width, channels], in the canvas */
    struct tensor canvas; /* scratch */
    int64_t offset;       /* elements of the canvas in front of x */
    uint64_t whole_bytes;
    struct tensor sums; /* of the result (op_channel_sums): finite unless something overflowed */
};

/* The start: tokens fp32 [height/2 · width/2, 4 · latent_channels], sizes in latents. */
struct vae_image vae_begin(struct compute *c, const struct vae *vae, struct tensor tokens,
                           int height, int width, uint64_t whole_bytes);
/* Applies block i. The last one fills pixels [height · width, 3] of the enlarged picture: bytes of
 * RGB, or fp32 values in −1 … 1. */
void vae_apply(struct compute *c, const struct vae *vae, size_t i, struct vae_image *image,
               struct tensor pixels);
/* After the last block: gives scratch back. */
void vae_end(struct compute *c, struct vae_image *image);

#endif
