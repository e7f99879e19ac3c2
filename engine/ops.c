/* SPDX-License-Identifier: MIT */
#include "engine/ops.h"

#include <assert.h>

static bool same_shape(struct tensor a, struct tensor b)
{
    return a.rows == b.rows && a.cols == b.cols;
}

static bool is_vector(struct tensor t, int64_t cols)
{
    return t.rows == 1 && t.cols == cols && t.dtype == DTYPE_F32;
}

static bool is_bias(const struct compute *c, struct tensor t, int64_t cols)
{
    return t.rows == 1 && t.cols == cols && t.dtype == c->backend->bias;
}

static bool is_affine(struct tensor t, int64_t cols)
{
    return t.rows == 2 && t.cols == cols && t.dtype == DTYPE_F32;
}

void op_linear(struct compute *c, struct linear args)
{
    assert(args.x.cols == args.weight.cols && args.y.cols == args.weight.rows);
    assert(args.x.rows == args.y.rows);
    assert(args.bias.cols == 0 || is_bias(c, args.bias, args.y.cols));
    if (!c->rehearsal)
        c->backend->ops->linear(c->backend, &args);
}

void op_attention(struct compute *c, struct attention args)
{
    assert(same_shape(args.y, args.q) && same_shape(args.k, args.v));
    assert(args.q.cols == args.k.cols && args.q.cols % args.heads == 0);
    assert(args.bias.cols == 0 || (args.bias.cols == args.k.rows && args.bias.dtype == DTYPE_F32 &&
                                   args.bias.rows == args.heads * args.q.rows));
    if (!c->rehearsal)
        c->backend->ops->attention(c->backend, &args);
}

void op_conv(struct compute *c, struct conv args)
{
    assert(args.size == 1 || args.size == 3);
    int enlarge = args.upsample ? 2 : 1;
    int64_t width = (int64_t)args.width * enlarge, rows = args.y.rows / width;

    assert(args.x.rows == (int64_t)args.height * args.width && args.y.rows == rows * width);
    assert(args.first >= 0 && args.first + rows <= (int64_t)args.height * enlarge);
    assert(args.weight.rows == args.y.cols);
    assert(args.weight.cols == args.x.cols * args.size * args.size);
    assert(is_bias(c, args.bias, args.y.cols));
    assert(args.affine.cols == 0 || is_affine(args.affine, args.x.cols));
    assert(args.size == 3 || (!args.upsample && args.affine.cols == 0));
    if (!c->rehearsal)
        c->backend->ops->conv(c->backend, &args);
}

void op_layer_norm(struct compute *c, struct tensor y, struct tensor x, struct tensor weight,
                   struct tensor bias, float eps)
{
    assert(same_shape(x, y) && is_vector(weight, x.cols) && is_vector(bias, x.cols));
    if (!c->rehearsal)
        c->backend->ops->layer_norm(c->backend, y, x, weight, bias, eps);
}

void op_modulated_norm(struct compute *c, struct tensor y, struct tensor x, struct tensor shift,
                       struct tensor scale, float eps)
{
    assert(same_shape(x, y) && is_vector(shift, x.cols) && is_vector(scale, x.cols));
    if (!c->rehearsal)
        c->backend->ops->modulated_norm(c->backend, y, x, shift, scale, eps);
}

void op_rms_norm(struct compute *c, struct tensor y, struct tensor x, struct tensor weight,
                 float eps)
{
    assert(same_shape(x, y) && is_vector(weight, x.cols));
    if (!c->rehearsal)
        c->backend->ops->rms_norm(c->backend, y, x, weight, eps);
}

/* Whether some of the rows take the vectors of index i. */
static bool has_rows(int i, int64_t split, int64_t rows)
{
    return i == 0 ? split > 0 : split < rows;
}

void op_head_norm(struct compute *c, struct head_norm args)
{
    int64_t size = args.rope.cols, rows = args.q.rows;

    assert(same_shape(args.q, args.k) && args.split >= 0 && args.split <= rows);
    assert(size % 2 == 0 && args.q.cols % size == 0);
    assert(args.rope.rows == rows && args.rope.dtype == DTYPE_F32);
    for (int i = 0; i < 2; i++)
        assert(!has_rows(i, args.split, rows) ||
               (is_vector(args.weights[i].q, size) && is_vector(args.weights[i].k, size)));
    if (!c->rehearsal)
        c->backend->ops->head_norm(c->backend, &args);
}

void op_gated_norm(struct compute *c, struct gated_norm args)
{
    int64_t n = args.x.cols;

    assert(same_shape(args.x, args.y) && args.split >= 0 && args.split <= args.x.rows);
    for (int i = 0; i < 2; i++) {
        const struct gated_vectors *v = &args.vectors[i];

        assert(!has_rows(i, args.split, args.x.rows) ||
               (is_vector(v->gate, n) && is_vector(v->shift, n) && is_vector(v->scale, n)));
    }
    if (!c->rehearsal)
        c->backend->ops->gated_norm(c->backend, &args);
}

void op_channel_sums(struct compute *c, struct tensor sums, struct tensor x, int part)
{
    assert(sums.dtype == DTYPE_F32 && sums.cols == x.cols && part >= 0);
    assert(x.rows > 0 && 2 + 2 * (int64_t)part < sums.rows);
    if (!c->rehearsal)
        c->backend->ops->channel_sums(c->backend, sums, x, part);
}

void op_group_norm(struct compute *c, struct group_norm args)
{
    int64_t channels = args.sums.cols;

    assert(is_affine(args.affine, channels) && channels % args.groups == 0);
    assert(is_vector(args.weight, channels) && is_vector(args.bias, channels));
    assert(args.sums.dtype == DTYPE_F32 && args.sums.rows % 2 == 1 && args.rows > 0);
    if (!c->rehearsal)
        c->backend->ops->group_norm(c->backend, &args);
}

void op_affine(struct compute *c, struct tensor y, struct tensor x, struct tensor affine)
{
    assert(same_shape(x, y) && is_affine(affine, x.cols));
    if (!c->rehearsal)
        c->backend->ops->affine(c->backend, y, x, affine);
}

void op_add(struct compute *c, struct tensor y, struct tensor x)
{
    assert(same_shape(x, y));
    if (!c->rehearsal)
        c->backend->ops->add(c->backend, y, x);
}

void op_gelu_multiply(struct compute *c, struct tensor y, struct tensor x)
{
    assert(same_shape(x, y));
    if (!c->rehearsal)
        c->backend->ops->gelu_multiply(c->backend, y, x);
}

void op_silu(struct compute *c, struct tensor y, struct tensor x)
{
    assert(same_shape(x, y));
    if (!c->rehearsal)
        c->backend->ops->silu(c->backend, y, x);
}

void op_copy(struct compute *c, struct tensor y, struct tensor x)
{
    assert(same_shape(x, y));
    if (!c->rehearsal)
        c->backend->ops->copy(c->backend, y, x);
}

void op_position_bias(struct compute *c, struct tensor y, struct tensor table,
                      struct tensor buckets)
{
    assert(y.dtype == DTYPE_F32 && buckets.dtype == DTYPE_I32);
    assert(y.rows == table.cols * buckets.rows && y.cols == buckets.cols);
    if (!c->rehearsal)
        c->backend->ops->position_bias(c->backend, y, table, buckets);
}

void op_euler(struct compute *c, struct tensor latents, struct tensor velocity, float step)
{
    assert(same_shape(latents, velocity));
    assert(latents.dtype == DTYPE_F32 && velocity.dtype == DTYPE_F32);
    if (!c->rehearsal)
        c->backend->ops->euler(c->backend, latents, velocity, step);
}

void op_guide(struct compute *c, struct tensor v, struct tensor negative, float scale)
{
    assert(same_shape(v, negative));
    assert(v.dtype == DTYPE_F32 && negative.dtype == DTYPE_F32);
    if (!c->rehearsal)
        c->backend->ops->guide(c->backend, v, negative, scale);
}

void op_unpatchify(struct compute *c, struct tensor pixels, struct tensor tokens, int width,
                   float multiply, float shift)
{
    assert(pixels.rows == 4 * tokens.rows && tokens.cols == 4 * pixels.cols);
    assert(width % 2 == 0 && pixels.rows % width == 0 && tokens.dtype == DTYPE_F32);
    if (!c->rehearsal)
        c->backend->ops->unpatchify(c->backend, pixels, tokens, width, multiply, shift);
}

void op_to_rgb(struct compute *c, struct tensor rgb, struct tensor x)
{
    assert(same_shape(rgb, x) && x.cols == 3 && rgb.dtype == DTYPE_U8);
    if (!c->rehearsal)
        c->backend->ops->to_rgb(c->backend, rgb, x);
}

void op_upload(struct compute *c, struct tensor target, const void *source)
{
    assert(target.stride == target.cols);
    if (!c->rehearsal)
        c->backend->ops->upload(c->backend, target, source);
}

void op_download(struct compute *c, void *target, struct tensor source)
{
    assert(source.stride == source.cols);
    if (!c->rehearsal)
        c->backend->ops->download(c->backend, target, source);
}

struct tensor op_scratch_typed(struct compute *c, enum dtype dtype, int64_t rows, int64_t cols)
{
    struct tensor t = tensor_of(NULL, dtype, rows, cols);

    t.data = scratch_take(c->scratch, tensor_bytes(&t));
    return t;
}

struct tensor op_scratch(struct compute *c, int64_t rows, int64_t cols)
{
    return op_scratch_typed(c, c->backend->activation, rows, cols);
}

void op_release(struct compute *c, struct tensor t)
{
    scratch_give(c->scratch, t.data);
}
