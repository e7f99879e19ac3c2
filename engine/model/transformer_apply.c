/* SPDX-License-Identifier: MIT */
/* Running the transformer's two passes, block by block. */
#include <math.h>

#include "engine/model/transformer.h"

#define NORM_EPS 1e-6f

/* y = linear(SiLU(linear(x))) */
static void embedder_apply(struct compute *c, const struct embedder *e, struct tensor y,
                           struct tensor x)
{
    struct tensor hidden = op_scratch(c, y.rows, y.cols);

    op_linear(c, (struct linear){hidden, x, e->in, e->in_bias, ACTIVATION_SILU});
    op_linear(c, (struct linear){y, hidden, e->out, e->out_bias, ACTIVATION_NONE});
    op_release(c, hidden);
}

static void embed_condition(struct compute *c, const struct transformer *t,
                            const struct transformer_condition *args)
{
    struct tensor sum = args->embedding, part = op_scratch(c, sum.rows, sum.cols);

    embedder_apply(c, &t->time, sum, args->time);
    if (t->config.guidance) {
        embedder_apply(c, &t->guidance, part, args->guidance);
        op_add(c, sum, part);
    }
    embedder_apply(c, &t->pooled, part, args->pooled);
    op_add(c, sum, part);
    op_release(c, part);
    op_silu(c, sum, sum); /* all that is made of it are modulations of its SiLU */
    op_linear(
        c, (struct linear){args->text, args->prompt, t->text_in, t->text_in_bias, ACTIVATION_NONE});
}

void transformer_condition(struct compute *c, const struct transformer *t, size_t i,
                           const struct transformer_condition *args)
{
    size_t doubles = (size_t)t->config.doubles, first, count;

    if (i == 0) {
        embed_condition(c, t, args);
        return;
    }
    first = i - 1 < doubles ? 2 * (i - 1) : i - 1 + doubles;
    count = i - 1 < doubles ? 2 : 1;
    for (size_t m = first; m < first + count; m++) {
        const struct modulation *modulation = &t->modulations[m];
        struct tensor y =
            tensor_cols(args->modulations, modulation->offset, modulation->weight.rows);

        op_linear(c, (struct linear){y, args->embedding, modulation->weight, modulation->bias,
                                     ACTIVATION_NONE});
    }
}

/* The n-th vector of a modulation, for this step. */
static struct tensor part(const struct transformer *t, const struct transformer_step *args,
                          size_t modulation, int n)
{
    return tensor_cols(args->modulation,
                       t->modulations[modulation].offset + (int64_t)n * t->config.width,
                       t->config.width);
}

enum { SHIFT, SCALE, GATE, MLP_SHIFT, MLP_SCALE, MLP_GATE };

/* q, k and v of one stream, normalised and rotated. */
static void stream_project(struct compute *c, const struct transformer *t,
                           const struct double_stream *s, struct tensor qkv, struct tensor x,
                           struct tensor rope)
{
    int64_t width = t->config.width;

    op_linear(c, (struct linear){qkv, x, s->qkv, s->qkv_bias, ACTIVATION_NONE});
    op_head_norm_rope(c, tensor_cols(qkv, 0, width), s->norm_q, rope, NORM_EPS);
    op_head_norm_rope(c, tensor_cols(qkv, width, width), s->norm_k, rope, NORM_EPS);
}

/* x += gate · mlp(modulated_norm(x)) */
static void stream_mlp(struct compute *c, const struct transformer *t,
                       const struct transformer_step *args, const struct double_stream *s,
                       struct tensor x, size_t modulation)
{
    struct tensor normed = op_scratch(c, x.rows, x.cols);
    struct tensor hidden = op_scratch(c, x.rows, 4 * x.cols);

    op_modulated_norm(c, normed, x, part(t, args, modulation, MLP_SHIFT),
                      part(t, args, modulation, MLP_SCALE), NORM_EPS);
    op_linear(c, (struct linear){hidden, normed, s->up, s->up_bias, ACTIVATION_GELU_TANH});
    op_linear(c, (struct linear){normed, hidden, s->down, s->down_bias, ACTIVATION_NONE});
    op_gated_add(c, x, part(t, args, modulation, MLP_GATE), normed);
    op_release(c, hidden);
    op_release(c, normed);
}

static void attend(struct compute *c, const struct transformer *t, struct tensor y,
                   struct tensor qkv)
{
    int64_t width = t->config.width;

    op_attention(c, (struct attention){.y = y,
                                       .q = tensor_cols(qkv, 0, width),
                                       .k = tensor_cols(qkv, width, width),
                                       .v = tensor_cols(qkv, 2 * width, width),
                                       .heads = t->config.heads,
                                       .scale = 1.0f / sqrtf((float)t->config.head_size)});
}

static void double_attention(struct compute *c, const struct transformer *t, size_t i,
                             const struct transformer_step *args)
{
    const struct double_block *block = &t->doubles[i];
    int64_t text = args->text.rows, image = args->latents.rows, width = t->config.width;
    size_t image_mod = 2 * i, text_mod = 2 * i + 1;
    struct tensor x_text = tensor_rows(args->hidden, 0, text);
    struct tensor x_image = tensor_rows(args->hidden, text, image);
    struct tensor normed = op_scratch(c, text + image, width);
    struct tensor qkv = op_scratch(c, text + image, 3 * width), mixed;
    struct tensor n_text = tensor_rows(normed, 0, text), n_image = tensor_rows(normed, text, image);

    op_modulated_norm(c, n_image, x_image, part(t, args, image_mod, SHIFT),
                      part(t, args, image_mod, SCALE), NORM_EPS);
    op_modulated_norm(c, n_text, x_text, part(t, args, text_mod, SHIFT),
                      part(t, args, text_mod, SCALE), NORM_EPS);
    stream_project(c, t, &block->text, tensor_rows(qkv, 0, text), n_text,
                   tensor_rows(args->rope, 0, text));
    stream_project(c, t, &block->image, tensor_rows(qkv, text, image), n_image,
                   tensor_rows(args->rope, text, image));
    mixed = op_scratch(c, text + image, width);
    attend(c, t, mixed, qkv);
    op_release(c, qkv);
    op_linear(c, (struct linear){n_image, tensor_rows(mixed, text, image), block->image.out,
                                 block->image.out_bias, ACTIVATION_NONE});
    op_linear(c, (struct linear){n_text, tensor_rows(mixed, 0, text), block->text.out,
                                 block->text.out_bias, ACTIVATION_NONE});
    op_release(c, mixed);
    op_gated_add(c, x_image, part(t, args, image_mod, GATE), n_image);
    op_gated_add(c, x_text, part(t, args, text_mod, GATE), n_text);
    op_release(c, normed);
}

static void double_apply(struct compute *c, const struct transformer *t, size_t i, size_t piece,
                         const struct transformer_step *args)
{
    int64_t text = args->text.rows, image = args->latents.rows;

    if (piece == 0)
        double_attention(c, t, i, args);
    else if (piece == 1)
        stream_mlp(c, t, args, &t->doubles[i].image, tensor_rows(args->hidden, text, image), 2 * i);
    else
        stream_mlp(c, t, args, &t->doubles[i].text, tensor_rows(args->hidden, 0, text), 2 * i + 1);
}

/* Attention and MLP of a single block both begin with this. */
static void single_norm(struct compute *c, const struct transformer *t, size_t i,
                        const struct transformer_step *args, struct tensor normed)
{
    size_t modulation = 2 * (size_t)t->config.doubles + i;

    op_modulated_norm(c, normed, args->hidden, part(t, args, modulation, SHIFT),
                      part(t, args, modulation, SCALE), NORM_EPS);
}

static void single_attention(struct compute *c, const struct transformer *t, size_t i,
                             const struct transformer_step *args)
{
    const struct single_block *block = &t->singles[i];
    int64_t rows = args->hidden.rows, width = t->config.width;
    struct tensor normed = op_scratch(c, rows, width), qkv = op_scratch(c, rows, 3 * width);

    single_norm(c, t, i, args, normed);
    op_linear(c, (struct linear){qkv, normed, block->qkv, block->qkv_bias, ACTIVATION_NONE});
    op_head_norm_rope(c, tensor_cols(qkv, 0, width), block->norm_q, args->rope, NORM_EPS);
    op_head_norm_rope(c, tensor_cols(qkv, width, width), block->norm_k, args->rope, NORM_EPS);
    attend(c, t, args->mixed, qkv);
    op_release(c, qkv);
    op_release(c, normed);
}

static void single_mlp(struct compute *c, const struct transformer *t, size_t i,
                       const struct transformer_step *args)
{
    const struct single_block *block = &t->singles[i];
    int64_t rows = args->hidden.rows, width = t->config.width;
    size_t modulation = 2 * (size_t)t->config.doubles + i;
    struct tensor normed = op_scratch(c, rows, width);
    struct tensor joined = op_scratch(c, rows, 5 * width); /* attention, MLP */

    single_norm(c, t, i, args, normed);
    op_copy(c, tensor_cols(joined, 0, width), args->mixed);
    op_linear(c, (struct linear){tensor_cols(joined, width, 4 * width), normed, block->up,
                                 block->up_bias, ACTIVATION_GELU_TANH});
    op_linear(c, (struct linear){normed, joined, block->out, block->out_bias, ACTIVATION_NONE});
    op_release(c, joined);
    op_gated_add(c, args->hidden, part(t, args, modulation, GATE), normed);
    op_release(c, normed);
}

static void velocity_apply(struct compute *c, const struct transformer *t,
                           const struct transformer_step *args)
{
    size_t last = t->modulation_count - 1;
    struct tensor x = tensor_rows(args->hidden, args->text.rows, args->latents.rows);

    /* Here the order is scale, shift. */
    op_modulated_norm(c, x, x, part(t, args, last, 1), part(t, args, last, 0), NORM_EPS);
    op_linear(c,
              (struct linear){args->velocity, x, t->image_out, t->image_out_bias, ACTIVATION_NONE});
}

static void embed_tokens(struct compute *c, const struct transformer *t,
                         const struct transformer_step *args)
{
    int64_t text = args->text.rows, image = args->latents.rows;
    struct tensor latents = op_scratch(c, image, t->config.channels);

    op_copy(c, tensor_rows(args->hidden, 0, text), args->text);
    op_copy(c, latents, args->latents);
    op_linear(c, (struct linear){tensor_rows(args->hidden, text, image), latents, t->image_in,
                                 t->image_in_bias, ACTIVATION_NONE});
    op_release(c, latents);
}

void transformer_apply(struct compute *c, const struct transformer *t, size_t i,
                       const struct transformer_step *args)
{
    size_t doubles = DOUBLE_PIECES * (size_t)t->config.doubles;
    size_t singles = SINGLE_PIECES * (size_t)t->config.singles;

    if (i == 0)
        embed_tokens(c, t, args);
    else if (i <= doubles)
        double_apply(c, t, (i - 1) / DOUBLE_PIECES, (i - 1) % DOUBLE_PIECES, args);
    else if (i > doubles + singles)
        velocity_apply(c, t, args);
    else if ((i - 1 - doubles) % SINGLE_PIECES == 0)
        single_attention(c, t, (i - 1 - doubles) / SINGLE_PIECES, args);
    else
        single_mlp(c, t, (i - 1 - doubles) / SINGLE_PIECES, args);
}
