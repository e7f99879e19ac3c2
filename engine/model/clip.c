/* SPDX-License-Identifier: MIT */
#include "engine/model/clip.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/file.h"
#include "engine/json.h"
#include "engine/stored.h"

enum { HEAD_SIZE_MAX = 512 };

static int read_config(struct clip_config *config, const struct json_file *json, struct error *err)
{
    struct json_reader r = json_reader_start(json);
    const char *activation = json_get_string_or(&r, "hidden_act", "quick_gelu");

    config->layers = json_get_int(&r, "num_hidden_layers", 1, 1024);
    config->width = json_get_int(&r, "hidden_size", 1, 1 << 16);
    config->heads = json_get_int(&r, "num_attention_heads", 1, 1024);
    config->hidden = json_get_int(&r, "intermediate_size", 1, 1 << 18);
    config->vocabulary = json_get_int(&r, "vocab_size", 2, 1 << 22);
    config->positions = json_get_int_or(&r, "max_position_embeddings", 77, 2, 1 << 16);
    config->eps = (float)json_get_double_or(&r, "layer_norm_eps", 1e-5, 0, 1);
    if (json_reader_finish(&r, err) != 0)
        return err->code;
    if (strcmp(activation, "quick_gelu") != 0)
        return error_set(err, ENOTSUP,
                         "%s: hidden_act is %s; only quick_gelu (CLIP-L) is supported",
                         file_label(json_file_path(json)), activation);
    if (config->width % config->heads != 0 || config->width / config->heads > HEAD_SIZE_MAX)
        return error_set(
            err, EINVAL, "%s: hidden_size %d can't be divided among %d heads of at most %d",
            file_label(json_file_path(json)), config->width, config->heads, HEAD_SIZE_MAX);
    return 0;
}

/* transformers 5 dropped the prefix that older files have. */
static const char *name_prefix(const struct checkpoint *checkpoint)
{
    const struct stored_tensor *tensor;

    return checkpoint_find(checkpoint, "text_model.embeddings.token_embedding.weight", &tensor,
                           NULL) == 0
               ? "text_model."
               : "";
}

static void declare_layer(struct clip *clip, struct block_builder *b, const char *prefix, int i)
{
    struct clip_layer *layer = &clip->layers[i];
    int64_t width = clip->config.width, hidden = clip->config.hidden;

    block_begin(b, "CLIP layer", i);
    block_prefix(b, "%sencoder.layers.%d.", prefix, i);
    block_vector(b, &layer->norm1_weight, width, "layer_norm1.weight");
    block_vector(b, &layer->norm1_bias, width, "layer_norm1.bias");
    block_vector(b, &layer->norm2_weight, width, "layer_norm2.weight");
    block_vector(b, &layer->norm2_bias, width, "layer_norm2.bias");
    block_matrix(b, &layer->up, hidden, width, "mlp.fc1.weight");
    block_bias(b, &layer->up_bias, hidden, "mlp.fc1.bias");
    block_matrix(b, &layer->down, width, hidden, "mlp.fc2.weight");
    block_bias(b, &layer->down_bias, width, "mlp.fc2.bias");
    block_prefix(b, "%sencoder.layers.%d.self_attn.", prefix, i);
    block_matrix(b, &layer->qkv, 3 * width, width, "q_proj.weight k_proj.weight v_proj.weight");
    block_bias(b, &layer->qkv_bias, 3 * width, "q_proj.bias k_proj.bias v_proj.bias");
    block_matrix(b, &layer->out, width, width, "out_proj.weight");
    block_bias(b, &layer->out_bias, width, "out_proj.bias");
}

static int find_embeddings(struct clip *clip, const struct checkpoint *checkpoint,
                           const char *prefix, struct error *err)
{
    bool old = *prefix != '\0';
    int64_t shape[2] = {clip->config.vocabulary, clip->config.width};

    if (checkpoint_find(checkpoint,
                        old ? "text_model.embeddings.token_embedding.weight"
                            : "embeddings.token_embedding.weight",
                        &clip->embedding, err) != 0 ||
        stored_tensor_check(clip->embedding, 2, shape, err) != 0)
        return err->code;
    shape[0] = clip->config.positions;
    if (checkpoint_find(checkpoint,
                        old ? "text_model.embeddings.position_embedding.weight"
                            : "embeddings.position_embedding.weight",
                        &clip->position, err) != 0)
        return err->code;
    return stored_tensor_check(clip->position, 2, shape, err);
}

int clip_open(struct clip *clip, const struct checkpoint *checkpoint, const struct backend *backend,
              struct error *err)
{
    struct block_builder b = {.checkpoint = checkpoint, .backend = backend, .list = &clip->blocks};
    const char *prefix = name_prefix(checkpoint);

    *clip = (struct clip){0};
    if (read_config(&clip->config, checkpoint_config(checkpoint), err) != 0 ||
        find_embeddings(clip, checkpoint, prefix, err) != 0)
        return err->code;
    clip->layers = calloc((size_t)clip->config.layers, sizeof *clip->layers);
    if (clip->layers == NULL)
        return error_set(err, ENOMEM, "out of host memory");
    for (int i = 0; i < clip->config.layers; i++)
        declare_layer(clip, &b, prefix, i);
    block_begin(&b, "CLIP norm", 0);
    block_prefix(&b, "%s", prefix);
    block_vector(&b, &clip->final_weight, clip->config.width, "final_layer_norm.weight");
    block_vector(&b, &clip->final_bias, clip->config.width, "final_layer_norm.bias");
    return block_end(&b, err);
}

void clip_finish(struct clip *clip)
{
    block_list_finish(&clip->blocks);
    free(clip->layers);
    *clip = (struct clip){0};
}

int clip_embed(const struct clip *clip, const int32_t *ids, int tokens, float *x, struct error *err)
{
    int64_t width = clip->config.width;
    int32_t *positions = malloc((size_t)tokens * sizeof *positions);
    float *place = malloc((size_t)(tokens * width) * sizeof *place);
    int result;

    if (positions == NULL || place == NULL) {
        result = error_set(err, ENOMEM, "out of host memory");
        goto out;
    }
    for (int i = 0; i < tokens; i++)
        positions[i] = i;
    result = stored_rows_read(clip->embedding, ids, tokens, x, err);
    if (result == 0)
        result = stored_rows_read(clip->position, positions, tokens, place, err);
    for (int64_t i = 0; result == 0 && i < tokens * width; i++)
        x[i] += place[i];
out:
    free(positions);
    free(place);
    return result;
}

static void layer_apply(struct compute *c, const struct clip_config *config,
                        const struct clip_layer *layer, struct tensor x)
{
    int64_t width = config->width;
    struct tensor normed = op_scratch(c, x.rows, width);
    struct tensor qkv = op_scratch(c, x.rows, 3 * width), mixed, hidden;

    op_layer_norm(c, normed, x, layer->norm1_weight, layer->norm1_bias, config->eps);
    op_linear(c, (struct linear){qkv, normed, layer->qkv, layer->qkv_bias, ACTIVATION_NONE});
    mixed = op_scratch(c, x.rows, width);
    op_attention(c, (struct attention){.y = mixed,
                                       .q = tensor_cols(qkv, 0, width),
                                       .k = tensor_cols(qkv, width, width),
                                       .v = tensor_cols(qkv, 2 * width, width),
                                       .heads = config->heads,
                                       .scale = 1.0f / sqrtf((float)width / (float)config->heads),
                                       .causal = true});
    op_release(c, qkv);
    op_linear(c, (struct linear){normed, mixed, layer->out, layer->out_bias, ACTIVATION_NONE});
    op_release(c, mixed);
    op_add(c, x, normed);

    op_layer_norm(c, normed, x, layer->norm2_weight, layer->norm2_bias, config->eps);
    hidden = op_scratch(c, x.rows, config->hidden);
    op_linear(c, (struct linear){hidden, normed, layer->up, layer->up_bias, ACTIVATION_QUICK_GELU});
    op_linear(c, (struct linear){normed, hidden, layer->down, layer->down_bias, ACTIVATION_NONE});
    op_release(c, hidden);
    op_add(c, x, normed);
    op_release(c, normed);
}

void clip_apply(struct compute *c, const struct clip *clip, size_t i, struct tensor x)
{
    if (i < (size_t)clip->config.layers)
        layer_apply(c, &clip->config, &clip->layers[i], x);
    else
        op_layer_norm(c, x, x, clip->final_weight, clip->final_bias, clip->config.eps);
}
