/* SPDX-License-Identifier: MIT */
#include "engine/model/t5.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/file.h"
#include "engine/json.h"
#include "engine/stored.h"

static int read_config(struct t5_config *config, const struct json_file *json, struct error *err)
{
    struct json_reader r = json_reader_start(json);
    const char *activation = json_get_string_or(&r, "feed_forward_proj", "gated-gelu");

    config->layers = json_get_int(&r, "num_layers", 1, 1024);
    config->width = json_get_int(&r, "d_model", 1, 1 << 16);
    config->heads = json_get_int(&r, "num_heads", 1, 1024);
    config->head_size = json_get_int(&r, "d_kv", 1, 512);
    config->hidden = json_get_int(&r, "d_ff", 1, 1 << 18);
    config->vocabulary = json_get_int(&r, "vocab_size", 2, 1 << 22);
    config->buckets = json_get_int_or(&r, "relative_attention_num_buckets", 32, 4, 4096);
    config->max_distance = json_get_int_or(&r, "relative_attention_max_distance", 128, 2, 1 << 20);
    config->eps = (float)json_get_double_or(&r, "layer_norm_epsilon", 1e-6, 0, 1);
    if (json_reader_finish(&r, err) != 0)
        return err->code;
    if (strcmp(activation, "gated-gelu") != 0)
        return error_set(err, ENOTSUP,
                         "%s: feed_forward_proj is %s; only gated-gelu (T5 v1.1) is "
                         "supported",
                         file_label(json_file_path(json)), activation);
    if (config->max_distance <= config->buckets / 4)
        return error_set(err, EINVAL,
                         "%s: relative_attention_max_distance %d is too small for %d "
                         "buckets",
                         file_label(json_file_path(json)), config->max_distance, config->buckets);
    return 0;
}

static void declare_layer(struct t5 *t5, struct block_builder *b, int i)
{
    const struct t5_config *config = &t5->config;
    struct t5_layer *layer = &t5->layers[i];
    int64_t width = config->width, inner = (int64_t)config->heads * config->head_size;

    block_begin(b, "T5 attention", i);
    block_prefix(b, "encoder.block.%d.layer.", i);
    block_vector(b, &layer->norm1, width, "0.layer_norm.weight");
    block_prefix(b, "encoder.block.%d.layer.0.SelfAttention.", i);
    block_matrix(b, &layer->qkv, 3 * inner, width, "q.weight k.weight v.weight");
    block_matrix(b, &layer->out, width, inner, "o.weight");
    block_begin(b, "T5 MLP", i);
    block_prefix(b, "encoder.block.%d.layer.1.", i);
    block_vector(b, &layer->norm2, width, "layer_norm.weight");
    block_matrix(b, &layer->gate, config->hidden, width, "DenseReluDense.wi_0.weight");
    block_matrix(b, &layer->up, config->hidden, width, "DenseReluDense.wi_1.weight");
    block_matrix(b, &layer->down, width, config->hidden, "DenseReluDense.wo.weight");
}

int t5_open(struct t5 *t5, const struct checkpoint *checkpoint, const struct backend *backend,
            struct error *err)
{
    struct block_builder b = {.checkpoint = checkpoint, .backend = backend, .list = &t5->blocks};
    int64_t shape[2];

    *t5 = (struct t5){0};
    if (read_config(&t5->config, checkpoint_config(checkpoint), err) != 0)
        return err->code;
    t5->layers = calloc((size_t)t5->config.layers, sizeof *t5->layers);
    if (t5->layers == NULL)
        return error_set(err, ENOMEM, "out of host memory");
    shape[0] = t5->config.vocabulary;
    shape[1] = t5->config.width;
    if (checkpoint_find(checkpoint, "shared.weight", &t5->embedding, NULL) != 0 &&
        checkpoint_find(checkpoint, "encoder.embed_tokens.weight", &t5->embedding, err) != 0)
        return err->code;
    if (stored_tensor_check(t5->embedding, 2, shape, err) != 0)
        return err->code;

    block_begin(&b, "T5 positions", 0);
    block_prefix(&b, "encoder.block.0.layer.0.SelfAttention.");
    block_matrix(&b, &t5->bias_table, t5->config.buckets, t5->config.heads,
                 "relative_attention_bias.weight");
    for (int i = 0; i < t5->config.layers; i++)
        declare_layer(t5, &b, i);
    block_begin(&b, "T5 norm", 0);
    block_prefix(&b, "encoder.");
    block_vector(&b, &t5->final_norm, t5->config.width, "final_layer_norm.weight");
    return block_end(&b, err);
}

void t5_finish(struct t5 *t5)
{
    block_list_finish(&t5->blocks);
    free(t5->layers);
    *t5 = (struct t5){0};
}

int t5_embed(const struct t5 *t5, const int32_t *ids, int tokens, float *x, struct error *err)
{
    return stored_rows_read(t5->embedding, ids, tokens, x, err);
}

/* Near positions have a bucket each, farther ones share, in logarithmic steps; half of the buckets
 * are for keys after the query. */
static int bucket_of(const struct t5_config *config, int distance)
{
    int half = config->buckets / 2, exact = half / 2;
    int after = distance > 0 ? half : 0, away = abs(distance);
    int far;

    if (away < exact)
        return after + away;
    far = exact + (int)(logf((float)away / (float)exact) /
                        (float)log((double)config->max_distance / exact) * (float)(half - exact));
    return after + (far < half - 1 ? far : half - 1);
}

void t5_buckets(const struct t5_config *config, int tokens, int32_t *buckets)
{
    for (int i = 0; i < tokens; i++)
        for (int j = 0; j < tokens; j++)
            buckets[i * tokens + j] =
                i > 0 && j > 0 ? buckets[(i - 1) * tokens + j - 1] : bucket_of(config, j - i);
}

static void attention_apply(struct compute *c, const struct t5_config *config,
                            const struct t5_layer *layer, struct tensor x, struct tensor bias)
{
    int64_t inner = (int64_t)config->heads * config->head_size;
    struct tensor normed = op_scratch(c, x.rows, x.cols), none = {0};
    struct tensor qkv = op_scratch(c, x.rows, 3 * inner), mixed;

    op_rms_norm(c, normed, x, layer->norm1, config->eps);
    op_linear(c, (struct linear){qkv, normed, layer->qkv, none, ACTIVATION_NONE});
    mixed = op_scratch(c, x.rows, inner);
    op_attention(c, (struct attention){.y = mixed,
                                       .q = tensor_cols(qkv, 0, inner),
                                       .k = tensor_cols(qkv, inner, inner),
                                       .v = tensor_cols(qkv, 2 * inner, inner),
                                       .bias = bias,
                                       .heads = config->heads,
                                       .scale = 1.0f}); /* T5 does not divide by √d */
    op_release(c, qkv);
    op_linear(c, (struct linear){normed, mixed, layer->out, none, ACTIVATION_NONE});
    op_release(c, mixed);
    op_add(c, x, normed);
    op_release(c, normed);
}

static void mlp_apply(struct compute *c, const struct t5_config *config,
                      const struct t5_layer *layer, struct tensor x)
{
    struct tensor normed = op_scratch(c, x.rows, x.cols), none = {0};
    struct tensor gate = op_scratch(c, x.rows, config->hidden);
    struct tensor up = op_scratch(c, x.rows, config->hidden);

    op_rms_norm(c, normed, x, layer->norm2, config->eps);
    op_linear(c, (struct linear){gate, normed, layer->gate, none, ACTIVATION_NONE});
    op_linear(c, (struct linear){up, normed, layer->up, none, ACTIVATION_NONE});
    op_gelu_multiply(c, gate, up);
    op_release(c, up);
    op_linear(c, (struct linear){normed, gate, layer->down, none, ACTIVATION_NONE});
    op_release(c, gate);
    op_add(c, x, normed);
    op_release(c, normed);
}

void t5_apply(struct compute *c, const struct t5 *t5, size_t i, struct tensor x, struct tensor bias,
              struct tensor buckets)
{
    size_t layers = T5_PIECES * (size_t)t5->config.layers;

    if (i == 0)
        op_position_bias(c, bias, t5->bias_table, buckets);
    else if (i > layers)
        op_rms_norm(c, x, x, t5->final_norm, t5->config.eps);
    else if ((i - 1) % T5_PIECES == 0)
        attention_apply(c, &t5->config, &t5->layers[(i - 1) / T5_PIECES], x, bias);
    else
        mlp_apply(c, &t5->config, &t5->layers[(i - 1) / T5_PIECES], x);
}
