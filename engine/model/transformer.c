/* SPDX-License-Identifier: MIT */
#include "engine/model/transformer.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/file.h"
#include "engine/json.h"

#define SINUSOID_PERIOD 10000.0
#define ROPE_THETA 10000.0

static int check_config(const struct transformer_config *config, int patch, const char *path,
                        struct error *err)
{
    int axes = 0;

    for (int i = 0; i < 3; i++) {
        axes += config->rope_axes[i];
        if (config->rope_axes[i] % 2 != 0)
            return error_set(err, EINVAL, "%s: axes_dims_rope: %d is odd", path,
                             config->rope_axes[i]);
    }
    if (axes != config->head_size)
        return error_set(err, EINVAL,
                         "%s: axes_dims_rope adds up to %d, not to attention_head_dim "
                         "%d",
                         path, axes, config->head_size);
    if (config->channels % 4 != 0 || patch != 1)
        return error_set(err, ENOTSUP,
                         "%s: in_channels %d and patch_size %d; FLUX.1 has a "
                         "multiple of 4 and 1",
                         path, config->channels, patch);
    return 0;
}

/* FLUX.1's own files don't state them. */
static const int published_axes[3] = {16, 56, 56};

static int read_config(struct transformer_config *config, const struct json_file *json,
                       struct error *err)
{
    struct json_reader r = json_reader_start(json);
    const char *path = file_label(json_file_path(json));
    int patch = json_get_int_or(&r, "patch_size", 1, 1, 64), axes, out;

    config->doubles = json_get_int(&r, "num_layers", 0, 1024);
    config->singles = json_get_int(&r, "num_single_layers", 0, 1024);
    config->heads = json_get_int(&r, "num_attention_heads", 1, 1024);
    config->head_size = json_get_int_or(&r, "attention_head_dim", 128, 2, 512);
    config->channels = json_get_int_or(&r, "in_channels", 64, 4, 4096);
    out = json_get_int_or(&r, "out_channels", config->channels, 1, 4096);
    config->text_width = json_get_int_or(&r, "joint_attention_dim", 4096, 1, 1 << 16);
    config->pooled_width = json_get_int_or(&r, "pooled_projection_dim", 768, 1, 1 << 16);
    config->guidance = json_get_bool_or(&r, "guidance_embeds", false);
    axes = json_get_ints_or(&r, "axes_dims_rope", config->rope_axes, 3, 512, published_axes, 3);
    config->width = config->heads * config->head_size;
    if (json_reader_finish(&r, err) != 0)
        return err->code;
    if (axes != 3)
        return error_set(err, EINVAL, "%s: axes_dims_rope has %d numbers, not 3", path, axes);
    if (out != config->channels)
        return error_set(err, ENOTSUP, "%s: out_channels %d differs from in_channels %d", path, out,
                         config->channels);
    return check_config(config, patch, path, err);
}

static void declare_embedder(struct block_builder *b, struct embedder *e, const char *name,
                             int64_t in, int64_t width)
{
    block_prefix(b, "time_text_embed.%s.", name);
    block_matrix(b, &e->in, width, in, "linear_1.weight");
    block_bias(b, &e->in_bias, width, "linear_1.bias");
    block_matrix(b, &e->out, width, width, "linear_2.weight");
    block_bias(b, &e->out_bias, width, "linear_2.bias");
}

static void declare_modulation(struct transformer *t, struct block_builder *b, int vectors,
                               const char *weight, const char *bias)
{
    struct modulation *m = &t->modulations[t->modulation_count++];
    int64_t width = t->config.width;

    m->offset = t->modulation_width;
    t->modulation_width += vectors * width;
    block_matrix(b, &m->weight, vectors * width, width, weight);
    block_bias(b, &m->bias, vectors * width, bias);
}

static void declare_condition(struct transformer *t, struct block_builder *b)
{
    const struct transformer_config *config = &t->config;

    block_begin(b, "embedders", 0);
    declare_embedder(b, &t->time, "timestep_embedder", SINUSOID_WIDTH, config->width);
    if (config->guidance)
        declare_embedder(b, &t->guidance, "guidance_embedder", SINUSOID_WIDTH, config->width);
    declare_embedder(b, &t->pooled, "text_embedder", config->pooled_width, config->width);
    block_prefix(b, "context_embedder.");
    block_matrix(b, &t->text_in, config->width, config->text_width, "weight");
    block_bias(b, &t->text_in_bias, config->width, "bias");
    for (int i = 0; i < config->doubles; i++) {
        block_begin(b, "double image modulation", i);
        block_prefix(b, "transformer_blocks.%d.", i);
        declare_modulation(t, b, 6, "norm1.linear.weight", "norm1.linear.bias");
        block_begin(b, "double text modulation", i);
        declare_modulation(t, b, 6, "norm1_context.linear.weight", "norm1_context.linear.bias");
    }
    for (int i = 0; i < config->singles; i++) {
        block_begin(b, "single modulation", i);
        block_prefix(b, "single_transformer_blocks.%d.norm.", i);
        declare_modulation(t, b, 3, "linear.weight", "linear.bias");
    }
    block_begin(b, "final modulation", 0);
    block_prefix(b, "norm_out.");
    declare_modulation(t, b, 2, "linear.weight", "linear.bias");
}

struct stream_names {
    const char *qkv, *qkv_bias, *norm_q, *norm_k, *out, *out_bias;
    const char *up, *up_bias, *down, *down_bias;
};

static const struct stream_names image_names = {
    "attn.to_q.weight attn.to_k.weight attn.to_v.weight",
    "attn.to_q.bias attn.to_k.bias attn.to_v.bias",
    "attn.norm_q.weight",
    "attn.norm_k.weight",
    "attn.to_out.0.weight",
    "attn.to_out.0.bias",
    "ff.net.0.proj.weight",
    "ff.net.0.proj.bias",
    "ff.net.2.weight",
    "ff.net.2.bias",
};

static const struct stream_names text_names = {
    "attn.add_q_proj.weight attn.add_k_proj.weight attn.add_v_proj.weight",
    "attn.add_q_proj.bias attn.add_k_proj.bias attn.add_v_proj.bias",
    "attn.norm_added_q.weight",
    "attn.norm_added_k.weight",
    "attn.to_add_out.weight",
    "attn.to_add_out.bias",
    "ff_context.net.0.proj.weight",
    "ff_context.net.0.proj.bias",
    "ff_context.net.2.weight",
    "ff_context.net.2.bias",
};

static void declare_attention(struct block_builder *b, const struct transformer_config *config,
                              struct double_stream *s, const struct stream_names *names)
{
    int64_t width = config->width;

    block_matrix(b, &s->qkv, 3 * width, width, names->qkv);
    block_bias(b, &s->qkv_bias, 3 * width, names->qkv_bias);
    block_vector(b, &s->norm_q, config->head_size, names->norm_q);
    block_vector(b, &s->norm_k, config->head_size, names->norm_k);
    block_matrix(b, &s->out, width, width, names->out);
    block_bias(b, &s->out_bias, width, names->out_bias);
}

static void declare_mlp(struct block_builder *b, const struct transformer_config *config,
                        struct double_stream *s, const struct stream_names *names)
{
    int64_t width = config->width;

    block_matrix(b, &s->up, 4 * width, width, names->up);
    block_bias(b, &s->up_bias, 4 * width, names->up_bias);
    block_matrix(b, &s->down, width, 4 * width, names->down);
    block_bias(b, &s->down_bias, width, names->down_bias);
}

static void declare_double(struct block_builder *b, const struct transformer_config *config,
                           struct double_block *block, int i)
{
    block_prefix(b, "transformer_blocks.%d.", i);
    block_begin(b, "double attention", i);
    declare_attention(b, config, &block->image, &image_names);
    declare_attention(b, config, &block->text, &text_names);
    block_begin(b, "double image MLP", i);
    declare_mlp(b, config, &block->image, &image_names);
    block_begin(b, "double text MLP", i);
    declare_mlp(b, config, &block->text, &text_names);
}

static void declare_single(struct block_builder *b, const struct transformer_config *config,
                           struct single_block *s, int i)
{
    int64_t width = config->width;

    block_prefix(b, "single_transformer_blocks.%d.", i);
    block_begin(b, "single attention", i);
    block_matrix(b, &s->qkv, 3 * width, width,
                 "attn.to_q.weight attn.to_k.weight attn.to_v.weight");
    block_bias(b, &s->qkv_bias, 3 * width, "attn.to_q.bias attn.to_k.bias attn.to_v.bias");
    block_vector(b, &s->norm_q, config->head_size, "attn.norm_q.weight");
    block_vector(b, &s->norm_k, config->head_size, "attn.norm_k.weight");
    block_begin(b, "single MLP", i);
    block_matrix(b, &s->up, 4 * width, width, "proj_mlp.weight");
    block_bias(b, &s->up_bias, 4 * width, "proj_mlp.bias");
    block_matrix(b, &s->out, width, 5 * width, "proj_out.weight");
    block_bias(b, &s->out_bias, width, "proj_out.bias");
}

static void declare_step(struct transformer *t, struct block_builder *b)
{
    const struct transformer_config *config = &t->config;

    block_begin(b, "image embedding", 0);
    block_prefix(b, "x_embedder.");
    block_matrix(b, &t->image_in, config->width, config->channels, "weight");
    block_bias(b, &t->image_in_bias, config->width, "bias");
    for (int i = 0; i < config->doubles; i++)
        declare_double(b, config, &t->doubles[i], i);
    for (int i = 0; i < config->singles; i++)
        declare_single(b, config, &t->singles[i], i);
    block_begin(b, "velocity", 0);
    block_prefix(b, "proj_out.");
    block_matrix(b, &t->image_out, config->channels, config->width, "weight");
    block_bias(b, &t->image_out_bias, config->channels, "bias");
}

int transformer_open(struct transformer *t, const struct checkpoint *checkpoint,
                     const struct backend *backend, struct error *err)
{
    struct block_builder condition = {
        .checkpoint = checkpoint, .backend = backend, .list = &t->condition};
    struct block_builder step = {.checkpoint = checkpoint, .backend = backend, .list = &t->step};
    const struct transformer_config *config = &t->config;

    *t = (struct transformer){0};
    if (read_config(&t->config, checkpoint_config(checkpoint), err) != 0)
        return err->code;
    t->modulations =
        calloc(2 * (size_t)config->doubles + (size_t)config->singles + 1, sizeof *t->modulations);
    t->doubles = calloc((size_t)config->doubles + 1, sizeof *t->doubles);
    t->singles = calloc((size_t)config->singles + 1, sizeof *t->singles);
    if (t->modulations == NULL || t->doubles == NULL || t->singles == NULL)
        return error_set(err, ENOMEM, "out of host memory");
    declare_condition(t, &condition);
    declare_step(t, &step);
    return block_end(&condition, err) != 0 ? err->code : block_end(&step, err);
}

void transformer_finish(struct transformer *t)
{
    block_list_finish(&t->condition);
    block_list_finish(&t->step);
    free(t->modulations);
    free(t->doubles);
    free(t->singles);
    *t = (struct transformer){0};
}

void transformer_sinusoid(float value, float *sinusoid)
{
    int half = SINUSOID_WIDTH / 2;

    for (int i = 0; i < half; i++) {
        float frequency = expf((float)(-log(SINUSOID_PERIOD)) * (float)i / (float)half);

        sinusoid[i] = cosf(value * frequency);
        sinusoid[half + i] = sinf(value * frequency);
    }
}

/* How many tokens before this one there is one at the same place along an axis; 0: not known. */
static int alike_before(int axis, int token, int text_tokens, int width)
{
    int image = token - text_tokens;

    if (axis == 0 || image < 0)
        return token > 0;
    if (axis == 1)
        return image % width > 0;
    return image >= width ? width : 0;
}

void transformer_rope(const struct transformer_config *config, int text_tokens, int height,
                      int width, float *rope)
{
    for (int token = 0; token < text_tokens + height * width; token++) {
        int image = token - text_tokens;
        int position[3] = {0, image < 0 ? 0 : image / width, image < 0 ? 0 : image % width};

        for (int axis = 0; axis < 3; axis++) {
            int count = config->rope_axes[axis];
            int back = alike_before(axis, token, text_tokens, width);

            if (back > 0)
                memcpy(rope, rope - (ptrdiff_t)back * config->head_size,
                       (size_t)count * sizeof *rope);
            for (int i = 0; i < count && back == 0; i += 2) {
                double angle = position[axis] / pow(ROPE_THETA, (double)i / count);

                rope[i] = (float)cos(angle);
                rope[i + 1] = (float)sin(angle);
            }
            rope += count;
        }
    }
}
