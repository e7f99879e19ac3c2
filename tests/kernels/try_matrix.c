/* SPDX-License-Identifier: MIT */
/* Products, attention and convolution. */
#include <math.h>

#include "tests/kernels/cases.h"

/* Multiplications that the reference does in a few milliseconds. */
#define WORK_MAX 1500000

/* Any sizes; or as matrix units want them, of several tiles. */
static void choose_product(struct rig *rig, int64_t *m, int64_t *k, int64_t *n)
{
    int64_t *first = rig_chance(rig, 50) ? k : n, *second = first == k ? n : k, most;

    if (rig_chance(rig, 75)) {
        *m = rig_size(rig, 140);
        *k = rig_size(rig, rig_chance(rig, 20) ? 3100 : 300);
        most = WORK_MAX / (*m * *k);
        *n = rig_size(rig, most < 1 ? 1 : most > 1100 ? 1100 : most);
    } else {
        rig->aligned = true;
        *m = rig_range(rig, 1, rig_chance(rig, 50) ? 1100 : 300);
        *first = 8 * rig_range(rig, 1, first == k ? 250 : 100);
        most = 2 * WORK_MAX / (*m * *first * 8);
        *second = 8 * rig_range(rig, 1, most < 1 ? 1 : most > 140 ? 140 : most);
    }
}

void try_linear(struct rig *rig)
{
    enum dtype activation = rig->backend->activation;
    enum dtype result = rig_chance(rig, 25) ? DTYPE_F32 : activation;
    int64_t m, k, n;
    bool bias = rig_chance(rig, 70);
    struct linear args = {.activation = (enum activation)rig_range(rig, 0, 3)};
    struct operand *x, *weight, *b, *y;
    struct grid values[3] = {0};

    choose_product(rig, &m, &k, &n);
    x = rig_input(rig, activation, m, k, 0, 1.5);
    weight = rig_weight(rig, n, k, 3 / sqrt((double)k));
    values[0] = rig_values(x);
    values[1] = rig_values(weight);
    rig_describe(rig, " [%lld,%lld]·[%lld,%lld]ᵀ%s, activation %d, y %s", (long long)m,
                 (long long)k, (long long)n, (long long)k, bias ? " + bias" : "", args.activation,
                 result == DTYPE_F32 ? "fp32" : "of hidden states");
    args.x = x->view;
    args.weight = weight->view;
    if (bias) {
        b = rig_bias(rig, n);
        values[2] = rig_values(b);
        args.bias = b->view;
    }
    y = rig_output(rig, result, m, n);
    args.y = y->view;
    rig->backend->ops->linear(rig->backend, &args);
    rig_want(y, reference_linear(values[0], values[1], values[2], args.activation));
    rig_check(rig);
    for (int i = 0; i < 3; i++)
        grid_free(&values[i]);
}

/* Queries and keys from one matrix or two; every model's shape occurs, and those around blocks. */
static void choose_shape(struct rig *rig, struct attention_case *sizes, int64_t *queries,
                         int64_t *keys, int64_t *size)
{
    static const int64_t usual[] = {64, 128, 32, 48, 512};

    sizes->heads = (int)rig_range(rig, 1, 4);
    *size = rig_chance(rig, 40) ? usual[rig_range(rig, 0, 4)] : rig_size(rig, 140);
    *queries = rig_size(rig, 140);
    if (rig_chance(rig, 5)) { /* as wide as a VAE's channels may be */
        sizes->heads = 1;
        *size = rig_range(rig, 2000, 4096);
        *queries = rig_range(rig, 30, 80);
        *keys = rig_range(rig, 1, 6);
    } else if (rig_chance(rig, 8)) { /* more heads than multiprocessors, several tiles of keys */
        rig->aligned = true;
        sizes->heads = (int)(rig_chance(rig, 10) ? 150 : rig_range(rig, 6, 20));
        *size = 8 * rig_range(rig, 9, 16);
        *keys = rig_range(rig, 129, 520);
        if (rig_chance(rig, 50))
            *keys = 128 * rig_range(rig, 2, 4) + rig_range(rig, -1, 1);
        *queries = rig_range(rig, 1, 3);
    } else if (rig_chance(rig, 5)) { /* several blocks of queries of a head */
        rig->aligned = true;
        *size = 8 * rig_range(rig, 9, 16);
        *queries = rig_range(rig, 300, 1100);
        *keys = rig_range(rig, 1, WORK_MAX / (*queries * *size * sizes->heads));
    } else if (rig_chance(rig, 25)) {
        *keys = rig_range(rig, 0, 1) * 512 + 512 + rig_range(rig, -1, 1);
        *queries = rig_range(rig, 1, 5);
        sizes->heads = 1;
        *size = rig_range(rig, 1, 40);
        if (rig_chance(rig, 50))
            *keys = rig_range(rig, 2047, 2100);
    } else if (rig_chance(rig, 25)) { /* several tiles of keys for the transformer's heads */
        *size = rig_chance(rig, 50) ? 128 : 8 * rig_range(rig, 9, 15);
        *keys = rig_range(rig, 100, 700);
        *queries = rig_range(rig, 1, WORK_MAX / (*keys * *size));
    } else {
        *keys = rig_chance(rig, 50) ? *queries : rig_size(rig, 300);
    }
    while (sizes->heads > 1 && *queries * *keys * *size * sizes->heads > WORK_MAX)
        sizes->heads--;
    if (*queries * *keys * *size > WORK_MAX)
        *size = WORK_MAX / (*queries * *keys);
}

void try_attention(struct rig *rig)
{
    enum dtype dtype = rig->backend->activation;
    /* (Higher ones let the maximum rise from tile to tile.) */
    float unit = rig_chance(rig, 25) ? 8.0f : 64.0f;
    struct attention args = {.scale = (float)rig_range(rig, 1, 100) / unit};
    struct attention_case wanted = {.weight_roundoff = rig_roundoff(dtype)};
    struct operand *q, *k, *v, *y, *bias;
    int64_t queries, keys, size;

    choose_shape(rig, &wanted, &queries, &keys, &size);
    args.heads = wanted.heads;
    args.causal = wanted.causal = rig_chance(rig, 30);
    wanted.scale = (double)args.scale;
    rig_describe(rig, " %lld queries, %lld keys, %d heads of %lld%s", (long long)queries,
                 (long long)keys, args.heads, (long long)size, args.causal ? ", causal" : "");
    q = rig_input(rig, dtype, queries, args.heads * size, 0, 2 / sqrt(sqrt((double)size)));
    k = rig_input(rig, dtype, keys, args.heads * size, 0, 2 / sqrt(sqrt((double)size)));
    v = rig_input(rig, dtype, keys, args.heads * size, 0.25, 1);
    wanted.q = rig_values(q);
    wanted.k = rig_values(k);
    wanted.v = rig_values(v);
    if (rig_chance(rig, 30)) {
        rig_describe(rig, ", bias");
        bias = rig_input(rig, DTYPE_F32, args.heads * queries, keys, 0, 8);
        wanted.bias = rig_values(bias);
        args.bias = bias->view;
    }
    y = rig_output(rig, dtype, queries, args.heads * size);
    args.q = q->view;
    args.k = k->view;
    args.v = v->view;
    args.y = y->view;
    rig->backend->ops->attention(rig->backend, &args);
    rig_want(y, reference_attention(&wanted));
    rig_check(rig);
    grid_free(&wanted.q);
    grid_free(&wanted.k);
    grid_free(&wanted.v);
    grid_free(&wanted.bias);
}

/* Which rows of pixels y holds: all of them, or some. */
static void choose_rows(struct rig *rig, struct conv *args, struct conv_case *wanted)
{
    int64_t all = (int64_t)args->height * (args->upsample ? 2 : 1);

    wanted->rows = all;
    if (rig_chance(rig, 50)) {
        args->first = wanted->first = (int)rig_range(rig, 0, all - 1);
        wanted->rows = rig_range(rig, 1, all - args->first);
        rig_describe(rig, ", %lld rows from %d on", (long long)wanted->rows, args->first);
    }
}

/* The operands of a convolution, except for what it does with y. */
static void choose_conv(struct rig *rig, struct conv *args, struct conv_case *wanted)
{
    bool deep = rig_chance(rig, 5); /* as many channels as a VAE may have */
    int64_t in = deep ? rig_range(rig, 1000, 4096) : rig_size(rig, 130);
    int64_t window = (int64_t)args->size * args->size, most;
    struct operand *x, *weight, *bias;

    args->height = (int)rig_size(rig, deep ? 6 : 34);
    args->width = (int)rig_size(rig, deep ? 6 : 34);
    most = WORK_MAX / (in * window * args->height * args->width * (args->upsample ? 4 : 1));
    most = rig_size(rig, most < 1 ? 1 : most > 130 ? 130 : most);
    rig_describe(rig, " %d × %d, window %d, %lld → %lld channels%s", args->height, args->width,
                 args->size, (long long)in, (long long)most, args->upsample ? ", upsample" : "");
    x = rig_input(rig, rig->backend->activation, (int64_t)args->height * args->width, in, 0, 1);
    weight = rig_weight(rig, most, window * in, 1);
    bias = rig_bias(rig, most);
    args->x = x->view;
    args->weight = weight->view;
    args->bias = bias->view;
    *wanted = (struct conv_case){.x = rig_values(x),
                                 .weight = rig_values(weight),
                                 .bias = rig_values(bias),
                                 .height = args->height,
                                 .width = args->width,
                                 .size = args->size,
                                 .upsample = args->upsample,
                                 .input_roundoff = rig_roundoff(rig->backend->activation)};
    choose_rows(rig, args, wanted);
}

static void conv_finish(struct rig *rig, struct operand *y, struct conv_case *wanted)
{
    rig_want(y, reference_conv(wanted));
    rig_check(rig);
    grid_free(&wanted->x);
    grid_free(&wanted->weight);
    grid_free(&wanted->bias);
    grid_free(&wanted->affine);
    grid_free(&wanted->before);
}

void try_conv(struct rig *rig)
{
    struct conv args = {.size = rig_chance(rig, 75) ? 3 : 1};
    struct conv_case wanted;
    struct operand *affine, *y;
    int64_t rows, cols;

    args.upsample = args.size == 3 && rig_chance(rig, 35);
    args.accumulate = rig_chance(rig, 30);
    choose_conv(rig, &args, &wanted);
    if (args.size == 3 && rig_chance(rig, 50)) {
        rig_describe(rig, ", affine");
        affine = rig_input(rig, DTYPE_F32, 2, args.x.cols, 0, 2);
        args.affine = affine->view;
        wanted.affine = rig_values(affine);
    }
    rows = wanted.rows * args.width * (args.upsample ? 2 : 1);
    cols = args.weight.rows;
    if (args.accumulate) {
        rig_describe(rig, ", accumulated");
        y = rig_input(rig, rig->backend->activation, rows, cols, 0, 3);
        wanted.before = rig_values(y);
    } else {
        y = rig_output(rig, rig->backend->activation, rows, cols);
    }
    args.y = y->view;
    rig->backend->ops->conv(rig->backend, &args);
    conv_finish(rig, y, &wanted);
}

/* Without a window the result may overwrite x, row behind row: the operand is the memory of both.
 */
void try_conv_in_place(struct rig *rig)
{
    int64_t in = rig_size(rig, 130), out = rig_size(rig, in);
    struct conv args = {.size = 1};
    struct conv_case wanted = {.size = 1};
    struct operand *memory, *weight, *bias;
    struct reference result;

    args.height = wanted.height = (int)rig_size(rig, 34);
    wanted.rows = args.height;
    args.width = wanted.width = (int)rig_size(rig, 34);
    rig_describe(rig, " %d × %d, %lld → %lld channels", args.height, args.width, (long long)in,
                 (long long)out);
    memory = rig_input(rig, rig->backend->activation, 1, args.height * args.width * in, 0, 1);
    weight = rig_weight(rig, out, in, 1);
    bias = rig_bias(rig, out);
    args.x = tensor_reshape(memory->view, (int64_t)args.height * args.width, in);
    args.y = tensor_reshape(memory->view, args.x.rows, out);
    args.weight = weight->view;
    args.bias = bias->view;
    wanted.x = rig_values(memory);
    wanted.x.rows = args.x.rows;
    wanted.x.cols = in;
    wanted.weight = rig_values(weight);
    wanted.bias = rig_values(bias);
    memory->view.cols = args.y.rows * out;
    rig->backend->ops->conv(rig->backend, &args);
    result = reference_conv(&wanted);
    result.value.cols = result.error.cols = memory->view.cols;
    result.value.rows = result.error.rows = 1;
    rig_want(memory, result);
    rig_check(rig);
    grid_free(&wanted.x);
    grid_free(&wanted.weight);
    grid_free(&wanted.bias);
}
