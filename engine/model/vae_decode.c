/* SPDX-License-Identifier: MIT */
/*
 * Running the decoder, strip by strip.
 *
 * A residual block makes of the picture x, in turn: u, x enlarged (or x itself); h, a convolution
 * of u normalised; y = u + a convolution of h normalised. Strip i of u is rows i·n … (i + 1)·n − 1.
 * Strips of h begin and end one row higher, as a window of 3 × 3 needs the row below, and those of
 * y two rows higher. So whatever the strips at hand and two rows above hold is enough, and nothing
 * is computed twice within one pass over the strips.
 *
 * Also, y may lie where x was: its strip i ends two rows above what strip i + 1 of u or h needs of
 * x. If it is longer than x, the two end at the same place: y then fills up towards the rows of x
 * that are still to be read, and never passes them. All pictures between blocks lie in one canvas
 * this way.
 */
#include <assert.h>
#include <math.h>

#include "engine/model/vae.h"

#define NORM_EPS 1e-6f

/* Rows of pixels. */
struct span {
    int first, end;
};

/* A picture of which only some rows may be there. */
struct window {
    struct tensor memory; /* [rows · width, channels] */
    int width;
    struct span held;
    bool whole;
};

/* How a picture is divided. */
struct strips {
    int height, rows, count;
};

/* Strips have an even number of rows, so that they end between those of the picture enlarged, and
 * are longer than any lag. */
static struct strips strips_of(const struct compute *c, int height, int width)
{
    enum { STEP = 8 };
    struct strips s = {.height = height, .rows = c->backend->strip_pixels / width};

    s.rows = s.rows > STEP ? s.rows - s.rows % STEP : STEP;
    s.count = (height + s.rows - 1) / s.rows;
    return s;
}

/* Strip i of a picture that lags so many rows behind. */
static struct span strip(const struct strips *s, int i, int lag)
{
    return (struct span){i == 0 ? 0 : i * s->rows - lag,
                         i == s->count - 1 ? s->height : (i + 1) * s->rows - lag};
}

static struct window window_whole(struct tensor picture, int height, int width)
{
    return (struct window){picture, width, {0, height}, true};
}

/* Scratch for a picture: for all of it, or for the longest strip of u or h and two rows above. */
static struct window window_take(struct compute *c, const struct strips *s, int width,
                                 int64_t channels, uint64_t whole_bytes)
{
    struct tensor picture =
        tensor_of(NULL, c->backend->activation, (int64_t)s->height * width, channels);
    struct window w = {.width = width, .whole = tensor_bytes(&picture) <= whole_bytes};
    int64_t rows = s->rows + 3;

    w.whole |= rows >= s->height;
    w.memory = op_scratch(c, (w.whole ? s->height : rows) * width, channels);
    return w;
}

static struct tensor window_rows(const struct window *w, struct span rows)
{
    assert(rows.first >= w->held.first && rows.end <= w->held.end && rows.first < rows.end);
    return tensor_rows(w->memory, (int64_t)(rows.first - w->held.first) * w->width,
                       (int64_t)(rows.end - rows.first) * w->width);
}

/* Room for the next strip; the two rows above it stay. */
static struct tensor window_advance(struct compute *c, struct window *w, struct span rows)
{
    if (!w->whole && rows.first == 0) {
        w->held.first = 0;
    } else if (!w->whole) {
        struct span kept = {rows.first - 2, rows.first};
        struct tensor from = window_rows(w, kept);

        op_copy(c, tensor_rows(w->memory, 0, from.rows), from);
        w->held.first = kept.first;
    }
    w->held.end = rows.end > w->held.end || !w->whole ? rows.end : w->held.end;
    return window_rows(w, rows);
}

/* The convolution by 3 × 3 that gives these rows of a picture of so many. */
static struct conv conv_rows(const struct window *x, int height, struct span rows, struct tensor y,
                             struct tensor weight, struct tensor bias)
{
    struct span seen = {rows.first > 0 ? rows.first - 1 : 0,
                        rows.end < height ? rows.end + 1 : height};

    return (struct conv){.y = y,
                         .x = window_rows(x, seen),
                         .weight = weight,
                         .bias = bias,
                         .height = seen.end - seen.first,
                         .width = x->width,
                         .first = rows.first - seen.first,
                         .size = 3};
}

/* Without a window, on all rows of x. */
static struct conv conv_mix(struct tensor y, struct tensor x, int width, struct tensor weight,
                            struct tensor bias)
{
    return (struct conv){.y = y,
                         .x = x,
                         .weight = weight,
                         .bias = bias,
                         .height = (int)(x.rows / width),
                         .width = width,
                         .size = 1};
}

/* ---- normalisation ---- */

static struct tensor sums_take(struct compute *c, const struct strips *s, int64_t channels)
{
    return op_scratch_typed(c, DTYPE_F32, 1 + 2 * s->count, channels);
}

/* What to do to each channel, once all strips are summed up. */
static struct tensor affine_of(struct compute *c, struct tensor sums, int64_t pixels, int groups,
                               struct tensor weight, struct tensor bias)
{
    struct tensor affine = op_scratch_typed(c, DTYPE_F32, 2, sums.cols);

    op_group_norm(c, (struct group_norm){affine, sums, weight, bias, pixels, groups, NORM_EPS});
    op_release(c, sums);
    return affine;
}

/* The same for a picture that is there. */
static struct tensor group_affine(struct compute *c, const struct vae_image *image, int groups,
                                  struct tensor weight, struct tensor bias)
{
    struct strips s = strips_of(c, image->height, image->width);
    struct window x = window_whole(image->x, image->height, image->width);
    struct tensor sums = sums_take(c, &s, image->x.cols);

    for (int i = 0; i < s.count; i++)
        op_channel_sums(c, sums, window_rows(&x, strip(&s, i, 0)), i);
    return affine_of(c, sums, image->x.rows, groups, weight, bias);
}

/* ---- residual blocks ---- */

struct residual {
    struct compute *c;
    const struct vae_layer *layer;
    int groups;
    struct strips strips;
    struct window x, u, h, y; /* as above; if nothing is enlarged u is x, and so is y */
    struct tensor affine1, affine2;
};

enum { U_LAG, H_LAG, Y_LAG };

static void make_u(struct residual *r, int i)
{
    struct span rows = strip(&r->strips, i, U_LAG);
    struct span seen = {(rows.first > 0 ? rows.first - 1 : 0) / 2, rows.end / 2 + 1};
    int height = r->strips.height / 2;
    struct conv conv = {.weight = r->layer->enlarge,
                        .bias = r->layer->enlarge_bias,
                        .width = r->x.width,
                        .first = rows.first - 2 * seen.first,
                        .size = 3,
                        .upsample = true};

    seen.end = seen.end < height ? seen.end : height;
    conv.height = seen.end - seen.first;
    conv.x = window_rows(&r->x, seen);
    conv.y = window_advance(r->c, &r->u, rows);
    op_conv(r->c, conv);
}

static void make_h(struct residual *r, int i)
{
    struct span rows = strip(&r->strips, i, H_LAG);
    struct tensor y = window_advance(r->c, &r->h, rows);
    struct conv conv =
        conv_rows(&r->u, r->strips.height, rows, y, r->layer->conv1, r->layer->conv1_bias);

    conv.affine = r->affine1;
    op_conv(r->c, conv);
}

/* y begins as u, or as what the shortcut makes of it; in place it is there already. */
static void begin_y(struct residual *r, int i)
{
    struct span rows = strip(&r->strips, i, Y_LAG);
    struct tensor u = window_rows(&r->u, rows), y = window_rows(&r->y, rows);

    if (r->layer->in != r->layer->out)
        op_conv(r->c, conv_mix(y, u, r->u.width, r->layer->shortcut, r->layer->shortcut_bias));
    else if (r->layer->enlarges)
        op_copy(r->c, y, u);
}

static void finish_y(struct residual *r, int i)
{
    struct span rows = strip(&r->strips, i, Y_LAG);
    struct conv conv = conv_rows(&r->h, r->strips.height, rows, window_rows(&r->y, rows),
                                 r->layer->conv2, r->layer->conv2_bias);

    conv.affine = r->affine2;
    conv.accumulate = true;
    op_conv(r->c, conv);
}

/* Three passes over the strips, since each normalisation must have seen all of them. What is not
 * kept whole is made again in each. */
static void residual_run(struct residual *r)
{
    const struct vae_layer *layer = r->layer;
    const struct strips *s = &r->strips;
    int64_t pixels = (int64_t)s->height * r->u.width;
    struct tensor sums = sums_take(r->c, s, layer->in);

    for (int i = 0; i < s->count; i++) {
        if (layer->enlarges)
            make_u(r, i);
        op_channel_sums(r->c, sums, window_rows(&r->u, strip(s, i, U_LAG)), i);
    }
    r->affine1 = affine_of(r->c, sums, pixels, r->groups, layer->norm1_weight, layer->norm1_bias);
    sums = sums_take(r->c, s, layer->out);
    for (int i = 0; i < s->count; i++) {
        if (!r->u.whole)
            make_u(r, i);
        make_h(r, i);
        op_channel_sums(r->c, sums, window_rows(&r->h, strip(s, i, H_LAG)), i);
        if (r->h.whole)
            begin_y(r, i);
    }
    r->affine2 = affine_of(r->c, sums, pixels, r->groups, layer->norm2_weight, layer->norm2_bias);
    for (int i = 0; i < s->count; i++) {
        if (!r->h.whole && !r->u.whole)
            make_u(r, i);
        if (!r->h.whole) {
            make_h(r, i);
            begin_y(r, i);
        }
        finish_y(r, i);
    }
}

static struct tensor canvas_part(struct tensor canvas, int64_t offset, int64_t rows, int64_t cols)
{
    return tensor_of((char *)canvas.data + offset * (int64_t)dtype_bytes(canvas.dtype),
                     canvas.dtype, rows, cols);
}

/* Where a picture of so many elements goes that is made of one at `offset` of the canvas. */
static int64_t next_offset(int64_t offset, int64_t elements, int64_t next_elements)
{
    return next_elements < elements ? offset : offset + elements - next_elements;
}

static void residual_apply(struct compute *c, const struct vae_layer *layer, int groups,
                           struct vae_image *image)
{
    struct residual r = {.c = c, .layer = layer, .groups = groups};
    int64_t elements = image->x.rows * image->x.cols, rows = image->x.rows;

    r.x = r.u = r.y = window_whole(image->x, image->height, image->width);
    if (layer->enlarges) {
        image->height *= 2;
        image->width *= 2;
        rows *= 4;
        image->offset = next_offset(image->offset, elements, rows * layer->out);
        image->x = canvas_part(image->canvas, image->offset, rows, layer->out);
        r.y = window_whole(image->x, image->height, image->width);
    }
    r.strips = strips_of(c, image->height, image->width);
    if (layer->enlarges)
        r.u = window_take(c, &r.strips, image->width, layer->in, image->whole_bytes);
    r.h = window_take(c, &r.strips, image->width, layer->out, image->whole_bytes);
    residual_run(&r);
    op_release(c, r.affine1);
    op_release(c, r.affine2);
    op_release(c, r.h.memory);
    if (layer->enlarges)
        op_release(c, r.u.memory);
}

/* ---- the other blocks, and the whole ---- */

static void attention_apply(struct compute *c, const struct vae_layer *layer, int groups,
                            struct vae_image *image)
{
    int64_t n = layer->in;
    struct tensor x = image->x, normed = op_scratch(c, x.rows, n);
    struct tensor qkv = op_scratch(c, x.rows, 3 * n), mixed;
    struct tensor affine = group_affine(c, image, groups, layer->norm1_weight, layer->norm1_bias);

    op_affine(c, normed, x, affine);
    op_release(c, affine);
    op_linear(c, (struct linear){qkv, normed, layer->qkv, layer->qkv_bias, ACTIVATION_NONE});
    mixed = op_scratch(c, x.rows, n);
    op_attention(c, (struct attention){.y = mixed,
                                       .q = tensor_cols(qkv, 0, n),
                                       .k = tensor_cols(qkv, n, n),
                                       .v = tensor_cols(qkv, 2 * n, n),
                                       .heads = 1,
                                       .scale = 1.0f / sqrtf((float)n)});
    op_linear(c,
              (struct linear){normed, mixed, layer->to_out, layer->to_out_bias, ACTIVATION_NONE});
    op_add(c, x, normed);
    op_release(c, mixed);
    op_release(c, qkv);
    op_release(c, normed);
}

static void input_apply(struct compute *c, const struct vae_layer *layer, struct vae_image *image)
{
    struct window x = window_whole(image->x, image->height, image->width);
    struct tensor latents = image->x;

    if (layer->shortcut.cols != 0)
        op_conv(c, conv_mix(latents, latents, image->width, layer->shortcut, layer->shortcut_bias));
    image->x = canvas_part(image->canvas, image->offset, latents.rows, layer->out);
    op_conv(c, conv_rows(&x, image->height, (struct span){0, image->height}, image->x, layer->conv1,
                         layer->conv1_bias));
    op_release(c, latents);
}

static void output_apply(struct compute *c, const struct vae_layer *layer, int groups,
                         struct vae_image *image, struct tensor pixels)
{
    struct window x = window_whole(image->x, image->height, image->width);
    struct window out = window_whole(pixels, image->height, image->width);
    struct strips s = strips_of(c, image->height, image->width);
    struct tensor memory = op_scratch(c, (int64_t)s.rows * image->width, layer->out);

    struct tensor affine = group_affine(c, image, groups, layer->norm1_weight, layer->norm1_bias);

    image->sums = sums_take(c, &s, layer->out);
    for (int i = 0; i < s.count; i++) {
        struct span rows = strip(&s, i, 0);
        struct tensor target = window_rows(&out, rows), y = tensor_rows(memory, 0, target.rows);
        struct conv conv = conv_rows(&x, image->height, rows, y, layer->conv1, layer->conv1_bias);

        conv.affine = affine;
        op_conv(c, conv);
        op_channel_sums(c, image->sums, y, i);
        if (pixels.dtype == DTYPE_U8)
            op_to_rgb(c, target, y);
        else
            op_copy(c, target, y);
    }
    op_release(c, affine);
    op_release(c, memory);
}

/* The canvas, and where in it the first picture goes. */
static struct tensor canvas_take(struct compute *c, const struct vae *vae, int64_t pixels,
                                 int64_t *offset)
{
    int64_t elements = pixels * vae->layers[0].out, at = 0, least = 0, most = elements;

    for (size_t i = 0; i < vae->blocks.count; i++) {
        int64_t next;

        if (!vae->layers[i].enlarges)
            continue;
        pixels *= 4;
        next = pixels * vae->layers[i].out;
        at = next_offset(at, elements, next);
        elements = next;
        least = at < least ? at : least;
        most = at + elements > most ? at + elements : most;
    }
    *offset = -least;
    return op_scratch(c, 1, most - least);
}

struct vae_image vae_begin(struct compute *c, const struct vae *vae, struct tensor tokens,
                           int height, int width, uint64_t whole_bytes)
{
    struct vae_image image = {.height = height, .width = width, .whole_bytes = whole_bytes};
    int64_t pixels = (int64_t)height * width;

    image.canvas = canvas_take(c, vae, pixels, &image.offset);
    image.x = op_scratch(c, pixels, vae->config.latent_channels);
    op_unpatchify(c, image.x, tokens, width, 1.0f / vae->config.scaling, vae->config.shift);
    return image;
}

void vae_apply(struct compute *c, const struct vae *vae, size_t i, struct vae_image *image,
               struct tensor pixels)
{
    const struct vae_layer *layer = &vae->layers[i];
    int groups = vae->config.groups;

    switch (layer->kind) {
    case VAE_INPUT:
        input_apply(c, layer, image);
        break;
    case VAE_RESIDUAL:
        residual_apply(c, layer, groups, image);
        break;
    case VAE_ATTENTION:
        attention_apply(c, layer, groups, image);
        break;
    case VAE_OUTPUT:
        output_apply(c, layer, groups, image, pixels);
        break;
    }
}

void vae_end(struct compute *c, struct vae_image *image)
{
    op_release(c, image->sums);
    op_release(c, image->canvas);
}
