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
    const struct modulation *modulation;

    if (i == 0) {
        embed_condition(c, t, args);
        return;
    }
    modulation = &t->modulations[i - 1];
    op_linear(c, (struct linear){
                     tensor_cols(args->modulations, modulation->offset, modulation->weight.rows),
                     args->embedding, modulation->weight, modulation->bias, ACTIVATION_NONE});
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

/* What hidden states are modulated by before they enter a product. */
struct entry {
    size_t modulation;
    int shift, scale;
};

/* Of a block; behind the last one comes the end, where the order is scale, shift. */
static struct entry entry_of(const struct transformer *t, size_t block, bool text)
{
    size_t doubles = (size_t)t->config.doubles, singles = (size_t)t->config.singles;

    if (block < doubles)
        return (struct entry){2 * block + text, SHIFT, SCALE};
    if (block < doubles + singles)
        return (struct entry){doubles + block, SHIFT, SCALE};
    return (struct entry){t->modulation_count - 1, 1, 0};
}

static void enter(struct compute *c, const struct transformer *t,
                  const struct transformer_step *args, struct tensor y, struct tensor x,
                  struct entry entry)
{
    op_modulated_norm(c, y, x, part(t, args, entry.modulation, entry.shift),
                      part(t, args, entry.modulation, entry.scale), NORM_EPS);
}

void transformer_enter(struct compute *c, const struct transformer *t, size_t block,
                       const struct transformer_step *args)
{
    int64_t text = args->text.rows, image = args->latents.rows;

    enter(c, t, args, tensor_rows(args->carried, 0, text), tensor_rows(args->hidden, 0, text),
          entry_of(t, block, true));
    enter(c, t, args, tensor_rows(args->carried, text, image),
          tensor_rows(args->hidden, text, image), entry_of(t, block, false));
}

/* A piece's last product goes to the hidden states by this gate, and they enter what is next. */
static struct gated_vectors leave(const struct transformer *t, const struct transformer_step *args,
                                  size_t modulation, int gate, struct entry next)
{
    return (struct gated_vectors){part(t, args, modulation, gate),
                                  part(t, args, next.modulation, next.shift),
                                  part(t, args, next.modulation, next.scale)};
}

/* Attention on q, k and v that lie side by side; y has the last of their rows, or all. */
static void attend(struct compute *c, const struct transformer *t, struct tensor y,
                   struct tensor qkv)
{
    int64_t width = t->config.width;

    op_attention(c, (struct attention){
                        .y = y,
                        .q = tensor_rows(tensor_cols(qkv, 0, width), qkv.rows - y.rows, y.rows),
                        .k = tensor_cols(qkv, width, width),
                        .v = tensor_cols(qkv, 2 * width, width),
                        .heads = t->config.heads,
                        .scale = 1.0f / sqrtf((float)t->config.head_size)});
}

static void double_attention(struct compute *c, const struct transformer *t, size_t i,
                             const struct transformer_step *args)
{
    const struct double_stream *streams[] = {&t->doubles[i].text, &t->doubles[i].image};
    int64_t rows = args->hidden.rows, text = args->text.rows, width = t->config.width;
    const int64_t first[] = {0, text}, count[] = {text, rows - text};
    struct tensor qkv = op_scratch(c, rows, 3 * width), mixed = op_scratch(c, rows, width);
    struct head_norm heads = {tensor_cols(qkv, 0, width), tensor_cols(qkv, width, width),
                              args->rope, .split = text, .eps = NORM_EPS};
    struct gated_norm end = {args->hidden, args->carried, .split = text, .eps = NORM_EPS};

    for (int s = 0; s < 2; s++) {
        size_t modulation = 2 * i + (s == 0);

        op_linear(c, (struct linear){tensor_rows(qkv, first[s], count[s]),
                                     tensor_rows(args->carried, first[s], count[s]),
                                     streams[s]->qkv, streams[s]->qkv_bias, ACTIVATION_NONE});
        heads.weights[s] = (struct head_weights){streams[s]->norm_q, streams[s]->norm_k};
        end.vectors[s] =
            leave(t, args, modulation, GATE, (struct entry){modulation, MLP_SHIFT, MLP_SCALE});
    }
    op_head_norm(c, heads);
    attend(c, t, mixed, qkv);
    for (int s = 0; s < 2; s++)
        op_linear(c, (struct linear){tensor_rows(args->carried, first[s], count[s]),
                                     tensor_rows(mixed, first[s], count[s]), streams[s]->out,
                                     streams[s]->out_bias, ACTIVATION_NONE});
    op_release(c, mixed);
    op_release(c, qkv);
    op_gated_norm(c, end);
}

/* hidden += gate · mlp(carried), for the rows of one stream. */
static void double_mlp(struct compute *c, const struct transformer *t, size_t i, bool text,
                       const struct transformer_step *args)
{
    const struct double_stream *s = text ? &t->doubles[i].text : &t->doubles[i].image;
    int64_t first = text ? 0 : args->text.rows;
    int64_t rows = text ? args->text.rows : args->latents.rows;
    struct tensor x = tensor_rows(args->carried, first, rows);
    struct tensor middle = op_scratch(c, rows, 4 * x.cols);

    op_linear(c, (struct linear){middle, x, s->up, s->up_bias, ACTIVATION_GELU_TANH});
    op_linear(c, (struct linear){x, middle, s->down, s->down_bias, ACTIVATION_NONE});
    op_release(c, middle);
    op_gated_norm(c, (struct gated_norm){tensor_rows(args->hidden, first, rows), x,
                                         .vectors = {leave(t, args, 2 * i + text, MLP_GATE,
                                                           entry_of(t, i + 1, text))},
                                         .split = rows, .eps = NORM_EPS});
}

static void double_apply(struct compute *c, const struct transformer *t, size_t i, size_t piece,
                         const struct transformer_step *args)
{
    if (piece == 0)
        double_attention(c, t, i, args);
    else
        double_mlp(c, t, i, piece == 2, args);
}

static bool is_joined(const struct transformer_step *args)
{
    return args->joined.cols != 0;
}

/* What of a single block's rows is of use behind its keys: of the last block's, the image's. */
static struct transformer_step rows_of_use(const struct transformer *t, size_t i,
                                           const struct transformer_step *args)
{
    int64_t text = args->text.rows, image = args->latents.rows;
    struct transformer_step of_use = *args;

    if (i + 1 < (size_t)t->config.singles)
        return of_use;
    of_use.hidden = tensor_rows(args->hidden, text, image);
    of_use.carried = tensor_rows(args->carried, text, image);
    of_use.joined = tensor_rows(args->joined, text, image);
    return of_use;
}

static void single_attention(struct compute *c, const struct transformer *t, size_t i,
                             const struct transformer_step *args)
{
    const struct single_block *block = &t->singles[i];
    int64_t rows = args->hidden.rows, width = t->config.width;
    struct tensor qkv = op_scratch(c, rows, 3 * width);
    struct transformer_step of_use = rows_of_use(t, i, args);

    op_linear(c, (struct linear){qkv, args->carried, block->qkv, block->qkv_bias, ACTIVATION_NONE});
    op_head_norm(c, (struct head_norm){tensor_cols(qkv, 0, width), tensor_cols(qkv, width, width),
                                       args->rope, .weights = {{block->norm_q, block->norm_k}},
                                       .split = rows, .eps = NORM_EPS});
    attend(c, t, is_joined(args) ? tensor_cols(of_use.joined, 0, width) : of_use.carried, qkv);
    op_release(c, qkv);
}

static void single_mlp(struct compute *c, const struct transformer *t, size_t i,
                       const struct transformer_step *all)
{
    const struct transformer_step of_use = rows_of_use(t, i, all), *args = &of_use;
    const struct single_block *block = &t->singles[i];
    int64_t rows = args->hidden.rows, width = t->config.width;
    size_t at = (size_t)t->config.doubles + i;
    struct entry entry = entry_of(t, at, false);
    struct tensor scratch = op_scratch(c, rows, 5 * width);
    struct tensor joined = is_joined(args) ? args->joined : scratch;

    if (!is_joined(args)) { /* attention took the place of what had been normed */
        op_copy(c, tensor_cols(joined, 0, width), args->carried);
        enter(c, t, args, args->carried, args->hidden, entry);
    }
    op_linear(c, (struct linear){tensor_cols(joined, width, 4 * width), args->carried, block->up,
                                 block->up_bias, ACTIVATION_GELU_TANH});
    op_linear(c,
              (struct linear){args->carried, joined, block->out, block->out_bias, ACTIVATION_NONE});
    op_release(c, scratch);
    op_gated_norm(c, (struct gated_norm){args->hidden, args->carried,
                                         .vectors = {leave(t, args, entry.modulation, GATE,
                                                           entry_of(t, at + 1, false))},
                                         .split = rows, .eps = NORM_EPS});
}

static void velocity_apply(struct compute *c, const struct transformer *t,
                           const struct transformer_step *args)
{
    struct tensor x = tensor_rows(args->carried, args->text.rows, args->latents.rows);

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
    transformer_enter(c, t, 0, args);
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
