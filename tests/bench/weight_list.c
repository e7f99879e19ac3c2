/* SPDX-License-Identifier: MIT */
#include "tests/bench/weight_list.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SIZE_MAX_EACH = 1 << 18, /* of any number in a config: products of three fit 63 bits */
    LAYERS_MAX = 1000,
    TIME_WIDTH = 256, /* of the sinusoids; no config has it */
    VAE_LEVELS_MAX = 8,
};

/* Adds tensors whose names begin with the present prefix. Running out of memory is remembered. */
struct builder {
    struct weight_list *list;
    char prefix[72];
    int failed; /* 0 or an errno */
};

__attribute__((format(printf, 2, 3))) static void enter(struct builder *builder, const char *format,
                                                        ...)
{
    va_list args;
    va_start(args, format);
    int length = vsnprintf(builder->prefix, sizeof builder->prefix, format, args);
    va_end(args);
    assert(length >= 0 && (size_t)length < sizeof builder->prefix);
}

/* The next tensor, named prefix + name + suffix, without a shape; NULL if there is no memory. */
static struct weight *append(struct builder *builder, const char *name, const char *suffix)
{
    struct weight_list *list = builder->list;
    if (list->count == list->capacity) {
        size_t capacity = list->capacity == 0 ? 256 : 2 * list->capacity;
        struct weight *items = realloc(list->items, capacity * sizeof *items);
        if (items == NULL) {
            builder->failed = ENOMEM;
            return NULL;
        }
        list->items = items;
        list->capacity = capacity;
    }
    struct weight *weight = &list->items[list->count++];
    *weight = (struct weight){0};
    int length =
        snprintf(weight->name, sizeof weight->name, "%s%s%s", builder->prefix, name, suffix);
    assert(length >= 0 && (size_t)length < sizeof weight->name);
    return weight;
}

static void vector(struct builder *builder, const char *name, const char *suffix, int64_t size,
                   double mean)
{
    struct weight *weight = append(builder, name, suffix);
    if (weight == NULL)
        return;
    weight->rank = 1;
    weight->shape[0] = size;
    weight->mean = mean;
    weight->deviation = mean == 0 ? 0.02 : 0.1;
}

/* A table of `rows` rows: an embedding. */
static void table(struct builder *builder, const char *name, int64_t rows, int64_t width,
                  double deviation)
{
    struct weight *weight = append(builder, name, ".weight");
    if (weight == NULL)
        return;
    weight->rank = 2;
    weight->shape[0] = rows;
    weight->shape[1] = width;
    weight->deviation = deviation;
}

/* A matrix that gives inputs of size 1 outputs of size `gain`. */
static void matrix(struct builder *builder, const char *name, int64_t outputs, int64_t inputs,
                   double gain)
{
    table(builder, name, outputs, inputs, gain / sqrt((double)inputs));
}

static void linear(struct builder *builder, const char *name, int64_t outputs, int64_t inputs,
                   double gain)
{
    matrix(builder, name, outputs, inputs, gain);
    vector(builder, name, ".bias", outputs, 0);
}

static void scale(struct builder *builder, const char *name, int64_t size)
{
    vector(builder, name, ".weight", size, 1);
}

static void norm(struct builder *builder, const char *name, int64_t size)
{
    scale(builder, name, size);
    vector(builder, name, ".bias", size, 0);
}

static void conv(struct builder *builder, const char *name, int64_t outputs, int64_t inputs,
                 int64_t side)
{
    struct weight *weight = append(builder, name, ".weight");
    if (weight == NULL)
        return;
    weight->rank = 4;
    weight->shape[0] = outputs;
    weight->shape[1] = inputs;
    weight->shape[2] = weight->shape[3] = side;
    weight->deviation = 1 / sqrt((double)(inputs * side * side));
    vector(builder, name, ".bias", outputs, 0);
}

/* ---- Transformer ---- */

static const double modulation_gain = 0.7; /* shifts, scales and gates of about a third */

static void embedding(struct builder *builder, const char *name, int64_t width, int64_t inputs)
{
    enter(builder, "time_text_embed.%s.", name);
    linear(builder, "linear_1", width, inputs, 1);
    linear(builder, "linear_2", width, width, 1);
}

static void double_block(struct builder *builder, int number, int64_t width, int64_t head)
{
    static const char *const projections[] = {
        "attn.to_q",       "attn.to_k",       "attn.to_v",     "attn.add_q_proj",
        "attn.add_k_proj", "attn.add_v_proj", "attn.to_out.0", "attn.to_add_out"};
    static const char *const norms[] = {"attn.norm_q", "attn.norm_k", "attn.norm_added_q",
                                        "attn.norm_added_k"};
    enter(builder, "transformer_blocks.%d.", number);
    linear(builder, "norm1.linear", 6 * width, width, modulation_gain);
    linear(builder, "norm1_context.linear", 6 * width, width, modulation_gain);
    for (int i = 0; i < 8; i++)
        linear(builder, projections[i], width, width, 1);
    for (int i = 0; i < 4; i++)
        scale(builder, norms[i], head);
    linear(builder, "ff.net.0.proj", 4 * width, width, 1);
    linear(builder, "ff.net.2", width, 4 * width, 1);
    linear(builder, "ff_context.net.0.proj", 4 * width, width, 1);
    linear(builder, "ff_context.net.2", width, 4 * width, 1);
}

static void single_block(struct builder *builder, int number, int64_t width, int64_t head)
{
    enter(builder, "single_transformer_blocks.%d.", number);
    linear(builder, "norm.linear", 3 * width, width, modulation_gain);
    linear(builder, "proj_mlp", 4 * width, width, 1);
    linear(builder, "proj_out", width, 5 * width, 1);
    linear(builder, "attn.to_q", width, width, 1);
    linear(builder, "attn.to_k", width, width, 1);
    linear(builder, "attn.to_v", width, width, 1);
    scale(builder, "attn.norm_q", head);
    scale(builder, "attn.norm_k", head);
}

static void build_transformer(struct builder *builder, struct json_reader *config)
{
    int64_t head = json_get_int(config, "attention_head_dim", 1, 4096);
    int64_t width = head * json_get_int(config, "num_attention_heads", 1, 4096);
    int doubles = json_get_int(config, "num_layers", 0, LAYERS_MAX);
    int singles = json_get_int(config, "num_single_layers", 0, LAYERS_MAX);
    int inputs = json_get_int(config, "in_channels", 1, SIZE_MAX_EACH);
    int outputs = json_get_int_or(config, "out_channels", inputs, 1, SIZE_MAX_EACH);
    int patch = json_get_int_or(config, "patch_size", 1, 1, 16);

    enter(builder, "%s", "");
    linear(builder, "x_embedder", width, inputs, 1);
    linear(builder, "context_embedder", width,
           json_get_int(config, "joint_attention_dim", 1, SIZE_MAX_EACH), 1);
    embedding(builder, "timestep_embedder", width, TIME_WIDTH);
    if (json_get_bool_or(config, "guidance_embeds", false))
        embedding(builder, "guidance_embedder", width, TIME_WIDTH);
    embedding(builder, "text_embedder", width,
              json_get_int(config, "pooled_projection_dim", 1, SIZE_MAX_EACH));
    for (int i = 0; i < doubles; i++)
        double_block(builder, i, width, head);
    for (int i = 0; i < singles; i++)
        single_block(builder, i, width, head);
    enter(builder, "%s", "");
    linear(builder, "norm_out.linear", 2 * width, width, modulation_gain);
    linear(builder, "proj_out", (int64_t)patch * patch * outputs, width, 1);
}

/* ---- Text encoders ---- */

static void build_t5(struct builder *builder, struct json_reader *config)
{
    int64_t width = json_get_int(config, "d_model", 1, SIZE_MAX_EACH);
    int64_t head = json_get_int(config, "d_kv", 1, 4096);
    int64_t heads = json_get_int(config, "num_heads", 1, 4096);
    int64_t hidden = json_get_int(config, "d_ff", 1, SIZE_MAX_EACH);
    int64_t buckets = json_get_int_or(config, "relative_attention_num_buckets", 32, 1, 4096);
    int layers = json_get_int(config, "num_layers", 1, LAYERS_MAX);

    enter(builder, "%s", "");
    table(builder, "shared", json_get_int(config, "vocab_size", 1, 1 << 24), width, 1);
    for (int i = 0; i < layers; i++) {
        enter(builder, "encoder.block.%d.layer.0.", i);
        /* Scores are not divided by the root of the head's width: the queries have to be. */
        matrix(builder, "SelfAttention.q", heads * head, width, 1 / sqrt((double)head));
        matrix(builder, "SelfAttention.k", heads * head, width, 1);
        matrix(builder, "SelfAttention.v", heads * head, width, 1);
        matrix(builder, "SelfAttention.o", width, heads * head, 1);
        if (i == 0)
            table(builder, "SelfAttention.relative_attention_bias", buckets, heads, 0.5);
        scale(builder, "layer_norm", width);
        enter(builder, "encoder.block.%d.layer.1.", i);
        matrix(builder, "DenseReluDense.wi_0", hidden, width, 1);
        matrix(builder, "DenseReluDense.wi_1", hidden, width, 1);
        matrix(builder, "DenseReluDense.wo", width, hidden, 1);
        scale(builder, "layer_norm", width);
    }
    enter(builder, "encoder.");
    scale(builder, "final_layer_norm", width);
}

static void build_clip(struct builder *builder, struct json_reader *config)
{
    int64_t width = json_get_int(config, "hidden_size", 1, SIZE_MAX_EACH);
    int64_t hidden = json_get_int(config, "intermediate_size", 1, SIZE_MAX_EACH);
    int64_t places = json_get_int(config, "max_position_embeddings", 1, SIZE_MAX_EACH);
    int layers = json_get_int(config, "num_hidden_layers", 1, LAYERS_MAX);
    static const char *const projections[] = {"self_attn.k_proj", "self_attn.v_proj",
                                              "self_attn.q_proj", "self_attn.out_proj"};

    enter(builder, "text_model.embeddings.");
    table(builder, "token_embedding", json_get_int(config, "vocab_size", 1, 1 << 24), width, 0.7);
    table(builder, "position_embedding", places, width, 0.3);
    for (int i = 0; i < layers; i++) {
        enter(builder, "text_model.encoder.layers.%d.", i);
        for (int j = 0; j < 4; j++)
            linear(builder, projections[j], width, width, 1);
        norm(builder, "layer_norm1", width);
        linear(builder, "mlp.fc1", hidden, width, 1);
        linear(builder, "mlp.fc2", width, hidden, 1);
        norm(builder, "layer_norm2", width);
    }
    enter(builder, "text_model.");
    norm(builder, "final_layer_norm", width);
}

/* ---- VAE ---- */

struct vae_sizes {
    int levels, channels[VAE_LEVELS_MAX]; /* from the picture inwards */
    int resnets; /* of each level of the encoder; the decoder has one more */
    int latent, picture_in, picture_out; /* channels */
    bool attention;
};

static void resnet(struct builder *builder, int inputs, int outputs)
{
    norm(builder, "norm1", inputs);
    conv(builder, "conv1", outputs, inputs, 3);
    norm(builder, "norm2", outputs);
    conv(builder, "conv2", outputs, outputs, 3);
    if (inputs != outputs)
        conv(builder, "conv_shortcut", outputs, inputs, 1);
}

static void middle_block(struct builder *builder, const char *half, const struct vae_sizes *vae)
{
    static const char *const projections[] = {"to_q", "to_k", "to_v", "to_out.0"};
    int width = vae->channels[vae->levels - 1];
    for (int i = 0; i < 2; i++) {
        enter(builder, "%s.mid_block.resnets.%d.", half, i);
        resnet(builder, width, width);
    }
    if (!vae->attention)
        return;
    enter(builder, "%s.mid_block.attentions.0.", half);
    norm(builder, "group_norm", width);
    for (int i = 0; i < 4; i++)
        linear(builder, projections[i], width, width, 1);
}

static void build_vae_encoder(struct builder *builder, const struct vae_sizes *vae)
{
    int width = vae->channels[0];
    enter(builder, "encoder.");
    conv(builder, "conv_in", width, vae->picture_in, 3);
    for (int i = 0; i < vae->levels; i++) {
        for (int j = 0; j < vae->resnets; j++) {
            enter(builder, "encoder.down_blocks.%d.resnets.%d.", i, j);
            resnet(builder, width, vae->channels[i]);
            width = vae->channels[i];
        }
        enter(builder, "encoder.down_blocks.%d.", i);
        if (i < vae->levels - 1)
            conv(builder, "downsamplers.0.conv", width, width, 3);
    }
    middle_block(builder, "encoder", vae);
    enter(builder, "encoder.");
    norm(builder, "conv_norm_out", width);
    conv(builder, "conv_out", 2 * vae->latent, width, 3);
}

static void build_vae_decoder(struct builder *builder, const struct vae_sizes *vae)
{
    int width = vae->channels[vae->levels - 1];
    enter(builder, "decoder.");
    conv(builder, "conv_in", width, vae->latent, 3);
    middle_block(builder, "decoder", vae);
    for (int i = 0; i < vae->levels; i++) {
        int outputs = vae->channels[vae->levels - 1 - i];
        for (int j = 0; j < vae->resnets + 1; j++) {
            enter(builder, "decoder.up_blocks.%d.resnets.%d.", i, j);
            resnet(builder, width, outputs);
            width = outputs;
        }
        enter(builder, "decoder.up_blocks.%d.", i);
        if (i < vae->levels - 1)
            conv(builder, "upsamplers.0.conv", width, width, 3);
    }
    enter(builder, "decoder.");
    norm(builder, "conv_norm_out", width);
    conv(builder, "conv_out", vae->picture_out, width, 3);
}

static void build_vae(struct builder *builder, struct json_reader *config)
{
    struct vae_sizes vae = {
        .resnets = json_get_int(config, "layers_per_block", 1, 100),
        .latent = json_get_int(config, "latent_channels", 1, SIZE_MAX_EACH),
        .picture_in = json_get_int_or(config, "in_channels", 3, 1, SIZE_MAX_EACH),
        .picture_out = json_get_int_or(config, "out_channels", 3, 1, SIZE_MAX_EACH),
        .attention = json_get_bool_or(config, "mid_block_add_attention", true),
    };
    vae.levels =
        json_get_ints(config, "block_out_channels", vae.channels, VAE_LEVELS_MAX, SIZE_MAX_EACH);
    if (vae.levels == 0)
        return;
    build_vae_encoder(builder, &vae);
    build_vae_decoder(builder, &vae);
    enter(builder, "%s", "");
    if (json_get_bool_or(config, "use_quant_conv", true))
        conv(builder, "quant_conv", 2 * vae.latent, 2 * vae.latent, 1);
    if (json_get_bool_or(config, "use_post_quant_conv", true))
        conv(builder, "post_quant_conv", vae.latent, vae.latent, 1);
}

/* ---- */

int weight_list_build(struct weight_list *list, const char *component,
                      const struct json_file *config, struct error *err)
{
    static const struct {
        const char *component;
        void (*build)(struct builder *builder, struct json_reader *config);
    } builders[] = {
        {"transformer", build_transformer},
        {"text_encoder", build_clip},
        {"text_encoder_2", build_t5},
        {"vae", build_vae},
    };
    struct json_reader reader = json_reader_start(config);
    struct builder builder = {.list = list};
    size_t kind = 0;
    while (strcmp(builders[kind].component, component) != 0) {
        kind++;
        assert(kind < sizeof builders / sizeof builders[0]);
    }
    builders[kind].build(&builder, &reader);
    int code = json_reader_finish(&reader, err);
    if (code == 0 && builder.failed != 0)
        code = error_set(err, builder.failed, "no memory for the list of tensors");
    if (code != 0)
        weight_list_finish(list);
    return code;
}

void weight_list_finish(struct weight_list *list)
{
    free(list->items);
    *list = (struct weight_list){0};
}

uint64_t weight_count(const struct weight *weight)
{
    uint64_t count = 1;
    for (int i = 0; i < weight->rank; i++)
        count *= (uint64_t)weight->shape[i];
    return count;
}

uint64_t weight_list_count(const struct weight_list *list)
{
    uint64_t count = 0;
    for (size_t i = 0; i < list->count; i++)
        count += weight_count(&list->items[i]);
    return count;
}
