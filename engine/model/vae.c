/* SPDX-License-Identifier: MIT */
#include "engine/model/vae.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/file.h"
#include "engine/json.h"

static int read_config(struct vae_config *config, const struct json_file *json, struct error *err)
{
    struct json_reader r = json_reader_start(json);
    const char *path = file_label(json_file_path(json));

    config->levels =
        json_get_ints(&r, "block_out_channels", config->channels, VAE_LEVELS_MAX, 4096);
    config->latent_channels = json_get_int(&r, "latent_channels", 1, 1024);
    config->groups = json_get_int_or(&r, "norm_num_groups", 32, 1, 4096);
    config->layers = json_get_int_or(&r, "layers_per_block", 1, 1, 64);
    config->scaling = (float)json_get_double_or(&r, "scaling_factor", 0.18215, 1e-9, 1e9);
    config->shift = (float)json_get_double_or(&r, "shift_factor", 0.0, -1e9, 1e9);
    config->post_quant = json_get_bool_or(&r, "use_post_quant_conv", true);
    config->attention = json_get_bool_or(&r, "mid_block_add_attention", true);
    if (json_reader_finish(&r, err) != 0)
        return err->code;
    for (int i = 0; i < config->levels; i++)
        if (config->channels[i] % config->groups != 0)
            return error_set(err, EINVAL,
                             "%s: block_out_channels %d can't be divided into %d groups", path,
                             config->channels[i], config->groups);
    return 0;
}

static struct vae_layer *layer_begin(struct vae *vae, struct block_builder *b, enum vae_kind kind,
                                     int64_t in, int64_t out)
{
    static const char *const names[] = {"VAE input", "VAE residual", "VAE attention", "VAE output"};
    struct vae_layer *layer = &vae->layers[vae->blocks.count];

    *layer = (struct vae_layer){.kind = kind, .in = in, .out = out};
    block_begin(b, names[kind], (int)vae->blocks.count);
    return layer;
}

static void declare_residual(struct vae *vae, struct block_builder *b, int64_t in, int64_t out)
{
    struct vae_layer *layer = layer_begin(vae, b, VAE_RESIDUAL, in, out);

    block_vector(b, &layer->norm1_weight, in, "norm1.weight");
    block_vector(b, &layer->norm1_bias, in, "norm1.bias");
    block_conv(b, &layer->conv1, out, in, 3, "conv1.weight");
    block_bias(b, &layer->conv1_bias, out, "conv1.bias");
    block_vector(b, &layer->norm2_weight, out, "norm2.weight");
    block_vector(b, &layer->norm2_bias, out, "norm2.bias");
    block_conv(b, &layer->conv2, out, out, 3, "conv2.weight");
    block_bias(b, &layer->conv2_bias, out, "conv2.bias");
    if (in != out) {
        block_conv(b, &layer->shortcut, out, in, 1, "conv_shortcut.weight");
        block_bias(b, &layer->shortcut_bias, out, "conv_shortcut.bias");
    }
}

static void declare_attention(struct vae *vae, struct block_builder *b, int64_t n)
{
    struct vae_layer *layer = layer_begin(vae, b, VAE_ATTENTION, n, n);

    block_vector(b, &layer->norm1_weight, n, "group_norm.weight");
    block_vector(b, &layer->norm1_bias, n, "group_norm.bias");
    block_matrix(b, &layer->qkv, 3 * n, n, "to_q.weight to_k.weight to_v.weight");
    block_bias(b, &layer->qkv_bias, 3 * n, "to_q.bias to_k.bias to_v.bias");
    block_matrix(b, &layer->to_out, n, n, "to_out.0.weight");
    block_bias(b, &layer->to_out_bias, n, "to_out.0.bias");
}

static void declare_input(struct vae *vae, struct block_builder *b, int64_t n)
{
    int64_t latent = vae->config.latent_channels;
    struct vae_layer *layer = layer_begin(vae, b, VAE_INPUT, latent, n);

    if (vae->config.post_quant) {
        block_prefix(b, "post_quant_conv.");
        block_conv(b, &layer->shortcut, latent, latent, 1, "weight");
        block_bias(b, &layer->shortcut_bias, latent, "bias");
    }
    block_prefix(b, "decoder.conv_in.");
    block_conv(b, &layer->conv1, n, latent, 3, "weight");
    block_bias(b, &layer->conv1_bias, n, "bias");
}

static void declare_middle(struct vae *vae, struct block_builder *b, int64_t n)
{
    block_prefix(b, "decoder.mid_block.resnets.0.");
    declare_residual(vae, b, n, n);
    if (vae->config.attention) {
        block_prefix(b, "decoder.mid_block.attentions.0.");
        declare_attention(vae, b, n);
    }
    block_prefix(b, "decoder.mid_block.resnets.1.");
    declare_residual(vae, b, n, n);
}

/* The enlargement that a residual block begins with; in the file it ends the level before. */
static void declare_enlarging(struct vae *vae, struct block_builder *b, int level, int64_t in)
{
    struct vae_layer *layer = &vae->layers[vae->blocks.count - 1];

    layer->enlarges = true;
    block_prefix(b, "decoder.up_blocks.%d.upsamplers.0.conv.", level - 1);
    block_conv(b, &layer->enlarge, in, in, 3, "weight");
    block_bias(b, &layer->enlarge_bias, in, "bias");
}

static void declare_levels(struct vae *vae, struct block_builder *b)
{
    const struct vae_config *config = &vae->config;
    int64_t in = config->channels[config->levels - 1];

    for (int level = 0; level < config->levels; level++) {
        int64_t out = config->channels[config->levels - 1 - level];

        for (int i = 0; i <= config->layers; i++) {
            block_prefix(b, "decoder.up_blocks.%d.resnets.%d.", level, i);
            declare_residual(vae, b, in, out);
            if (level > 0 && i == 0)
                declare_enlarging(vae, b, level, in);
            in = out;
        }
    }
}

int vae_open(struct vae *vae, const struct checkpoint *checkpoint, const struct backend *backend,
             struct error *err)
{
    struct block_builder b = {.checkpoint = checkpoint, .backend = backend, .list = &vae->blocks};
    struct vae_layer *layer;
    size_t layers;

    *vae = (struct vae){0};
    if (read_config(&vae->config, checkpoint_config(checkpoint), err) != 0)
        return err->code;
    layers = 5 + (size_t)vae->config.levels * (size_t)(vae->config.layers + 1);
    vae->layers = calloc(layers, sizeof *vae->layers);
    if (vae->layers == NULL)
        return error_set(err, ENOMEM, "out of host memory");
    declare_input(vae, &b, vae->config.channels[vae->config.levels - 1]);
    declare_middle(vae, &b, vae->config.channels[vae->config.levels - 1]);
    declare_levels(vae, &b);
    layer = layer_begin(vae, &b, VAE_OUTPUT, vae->config.channels[0], 3);
    block_prefix(&b, "decoder.");
    block_vector(&b, &layer->norm1_weight, layer->in, "conv_norm_out.weight");
    block_vector(&b, &layer->norm1_bias, layer->in, "conv_norm_out.bias");
    block_conv(&b, &layer->conv1, 3, layer->in, 3, "conv_out.weight");
    block_bias(&b, &layer->conv1_bias, 3, "conv_out.bias");
    return block_end(&b, err);
}

void vae_finish(struct vae *vae)
{
    block_list_finish(&vae->blocks);
    free(vae->layers);
    *vae = (struct vae){0};
}

int vae_enlargement(const struct vae_config *config)
{
    return 1 << (config->levels - 1);
}
