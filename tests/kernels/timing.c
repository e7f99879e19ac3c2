/* SPDX-License-Identifier: MIT */
/* Speed of each operation at the sizes of FLUX.1: 24 heads of 128, 512 tokens of text. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/kernels/cases.h"

enum { WIDTH = 3072, HEADS = 24, HEAD_SIZE = 128, TEXT = 512, T5_WIDTH = 4096, T5_HIDDEN = 10240 };

/* One operation with its operands, ready to be queued again and again. */
struct timed {
    const char *name;
    void (*queue)(struct backend *backend, const struct timed *timed);
    double operations; /* floating-point, of one run; 0: bound by memory */
    double bytes;      /* read and written */
    struct tensor y, x, a, b, c;
    int height, width, heads;
    bool flag;
};

static double seconds_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Seconds of device time for each of `count` runs in a row; negative after an error. */
static double time_runs(struct rig *rig, const struct timed *timed, int count)
{
    const struct backend_ops *ops = rig->backend->ops;
    uint64_t first = ops->mark(rig->backend, STREAM_COMPUTE), last;
    struct error err = {0};

    for (int i = 0; i < count; i++)
        timed->queue(rig->backend, timed);
    last = ops->mark(rig->backend, STREAM_COMPUTE);
    if (ops->sync(rig->backend, &err) != 0) {
        printf("%s: %s\n", timed->name, err.text);
        return -1;
    }
    return ops->mark_seconds(rig->backend, first, last) / count;
}

/* The fastest of some rounds of a millisecond or more, for about half a second, and their mean: on
 * a device that is held to its power the two differ. */
static void time_one(struct rig *rig, const struct timed *timed)
{
    double begin = seconds_now(), best, all = 0;
    int count, runs = 0;

    if (rig->only != NULL && strstr(timed->name, rig->only) == NULL)
        return;
    best = time_runs(rig, timed, 1);
    for (int round = 0; best >= 0 && (round < 3 || seconds_now() - begin < 0.5); round++) {
        double spent;

        count = best > 1e-3 ? 1 : best > 2e-5 ? (int)(1e-3 / best) : 50;
        spent = time_runs(rig, timed, count);
        best = spent < best ? spent : best;
        all += spent * count;
        runs += count;
    }
    if (best < 0)
        return;
    printf("  %-34s %9.3f ms, mean %9.3f %9.1f GB/s", timed->name, best * 1e3, all / runs * 1e3,
           timed->bytes / best / 1e9);
    if (timed->operations > 0)
        printf(" %9.1f GFLOP/s", timed->operations / best / 1e9);
    putchar('\n');
}

static struct tensor matrix(struct rig *rig, int64_t rows, int64_t cols)
{
    return rig_input(rig, rig->backend->activation, rows, cols, 0, 1)->view;
}

static struct tensor weights(struct rig *rig, int64_t rows, int64_t cols)
{
    return rig_weight(rig, rows, cols, 0.02)->view;
}

static struct tensor vector(struct rig *rig, int64_t n)
{
    return rig_vector(rig, n, 0, 1)->view;
}

static double bytes_of(const struct timed *timed)
{
    return (double)(tensor_bytes(&timed->y) + tensor_bytes(&timed->x) + tensor_bytes(&timed->a) +
                    tensor_bytes(&timed->b) + tensor_bytes(&timed->c));
}

/* ---- products ---- */

static void queue_linear(struct backend *backend, const struct timed *t)
{
    struct linear args = {t->y, t->x, t->a, t->b, t->flag ? ACTIVATION_GELU_TANH : ACTIVATION_NONE};

    backend->ops->linear(backend, &args);
}

static void time_linear(struct rig *rig, const char *name, int64_t m, int64_t k, int64_t n,
                        bool gelu)
{
    struct timed timed = {.name = name, .queue = queue_linear, .flag = gelu};

    rig_begin(rig, name, 0);
    timed.x = matrix(rig, m, k);
    timed.a = weights(rig, n, k);
    timed.b = rig_bias(rig, n)->view;
    timed.y = matrix(rig, m, n);
    timed.operations = 2.0 * (double)m * (double)n * (double)k;
    timed.bytes = bytes_of(&timed);
    time_one(rig, &timed);
}

static void queue_attention(struct backend *backend, const struct timed *t)
{
    struct attention args = {.y = t->y,
                             .q = t->x,
                             .k = t->a,
                             .v = t->b,
                             .bias = t->c,
                             .heads = t->heads,
                             .scale = 0.08f,
                             .causal = t->flag};

    backend->ops->attention(backend, &args);
}

static void time_attention(struct rig *rig, const char *name, int64_t tokens, int heads,
                           int64_t size, bool bias)
{
    struct timed timed = {.name = name, .queue = queue_attention, .heads = heads};

    rig_begin(rig, name, 0);
    timed.x = matrix(rig, tokens, heads * size);
    timed.a = matrix(rig, tokens, heads * size);
    timed.b = matrix(rig, tokens, heads * size);
    timed.y = matrix(rig, tokens, heads * size);
    if (bias)
        timed.c = rig_input(rig, DTYPE_F32, heads * tokens, tokens, 0, 1)->view;
    timed.operations = 4.0 * (double)tokens * (double)tokens * (double)(heads * size);
    timed.bytes = bytes_of(&timed);
    time_one(rig, &timed);
}

static void queue_conv(struct backend *backend, const struct timed *t)
{
    struct conv args = {.y = t->y,
                        .x = t->x,
                        .weight = t->a,
                        .bias = t->b,
                        .affine = t->c,
                        .height = t->height,
                        .width = t->width,
                        .size = 3,
                        .upsample = t->flag};

    backend->ops->conv(backend, &args);
}

static void time_conv(struct rig *rig, const char *name, int side, int64_t in, int64_t out,
                      bool upsample)
{
    struct timed timed = {
        .name = name, .queue = queue_conv, .height = side, .width = side, .flag = upsample};
    int64_t pixels = (int64_t)side * side;

    rig_begin(rig, name, 0);
    timed.x = matrix(rig, pixels, in);
    timed.a = weights(rig, out, 9 * in);
    timed.b = rig_bias(rig, out)->view;
    timed.y = matrix(rig, pixels * (upsample ? 4 : 1), out);
    timed.c = rig_input(rig, DTYPE_F32, 2, in, 0, 1)->view;
    timed.operations = 18.0 * (double)timed.y.rows * (double)in * (double)out;
    timed.bytes = bytes_of(&timed);
    time_one(rig, &timed);
}

/* ---- rows ---- */

static void queue_modulated_norm(struct backend *backend, const struct timed *t)
{
    backend->ops->modulated_norm(backend, t->y, t->x, t->a, t->b, 1e-6f);
}

static void queue_rms_norm(struct backend *backend, const struct timed *t)
{
    backend->ops->rms_norm(backend, t->y, t->x, t->a, 1e-6f);
}

static void queue_head_norm(struct backend *backend, const struct timed *t)
{
    struct head_norm args = {t->y, t->x, t->b, {{t->a, t->a}}, t->y.rows, 1e-6f};

    backend->ops->head_norm(backend, &args);
}

static void queue_gated_norm(struct backend *backend, const struct timed *t)
{
    struct gated_norm args = {t->x, t->y, {{t->a, t->b, t->b}}, t->y.rows, 1e-6f};

    backend->ops->gated_norm(backend, &args);
}

static void queue_group_norm(struct backend *backend, const struct timed *t)
{
    struct group_norm args = {t->y, t->c, t->a, t->b, t->x.rows, 32, 1e-6f};

    backend->ops->channel_sums(backend, t->c, t->x, 0);
    backend->ops->group_norm(backend, &args);
}

static void queue_add(struct backend *backend, const struct timed *t)
{
    backend->ops->add(backend, t->y, t->x);
}

static void queue_gelu_multiply(struct backend *backend, const struct timed *t)
{
    backend->ops->gelu_multiply(backend, t->y, t->x);
}

static void queue_copy(struct backend *backend, const struct timed *t)
{
    backend->ops->copy(backend, t->y, t->x);
}

/* y and x [rows, cols], two vectors. */
static void time_rows(struct rig *rig, const char *name, int64_t rows, int64_t cols,
                      void (*queue)(struct backend *, const struct timed *))
{
    struct timed timed = {.name = name, .queue = queue};

    rig_begin(rig, name, 0);
    timed.y = matrix(rig, rows, cols);
    timed.x = matrix(rig, rows, cols);
    timed.a = vector(rig, cols);
    timed.b = vector(rig, cols);
    timed.bytes = bytes_of(&timed);
    time_one(rig, &timed);
}

static void time_group_norm(struct rig *rig, int64_t rows, int64_t channels)
{
    struct timed timed = {.name = "group_norm 128", .queue = queue_group_norm};

    rig_begin(rig, timed.name, 0);
    timed.x = matrix(rig, rows, channels);
    timed.a = vector(rig, channels);
    timed.b = vector(rig, channels);
    timed.y = rig_input(rig, DTYPE_F32, 2, channels, 0, 1)->view;
    timed.c = rig_input(rig, DTYPE_F32, 3, channels, 0, 1)->view;
    timed.bytes = bytes_of(&timed);
    time_one(rig, &timed);
}

static void time_head_norm(struct rig *rig, int64_t rows)
{
    struct timed timed = {.name = "head_norm, 24 heads", .queue = queue_head_norm};

    rig_begin(rig, timed.name, 0);
    timed.y = matrix(rig, rows, WIDTH);
    timed.x = matrix(rig, rows, WIDTH);
    timed.a = vector(rig, HEAD_SIZE);
    timed.b = rig_input(rig, DTYPE_F32, rows, HEAD_SIZE, 0, 1)->view;
    timed.bytes = bytes_of(&timed);
    time_one(rig, &timed);
}

/* ---- weights ---- */

static void time_weights(struct rig *rig)
{
    struct weight_copy copy = {.source_dtype = DTYPE_BF16, .rows = 4 * WIDTH, .cols = WIDTH};
    size_t bytes = (size_t)(copy.rows * copy.cols) * 2;
    struct error err;
    double best = INFINITY;
    void *source = calloc(1, bytes);

    rig_begin(rig, "copy_weights", 0);
    copy.target = weights(rig, copy.rows, copy.cols).data;
    copy.source = source;
    copy.name = copy.path = "none";
    for (int i = 0; i < 4 && source != NULL; i++) {
        double start = seconds_now(), spent;

        rig->backend->ops->copy_weights(rig->backend, &copy, 1);
        rig->backend->ops->copy_wait(rig->backend, rig->backend->ops->copy_ticket(rig->backend));
        rig->backend->ops->sync(rig->backend, &err);
        spent = seconds_now() - start;
        best = spent < best ? spent : best;
    }
    printf("  %-34s %9.3f ms                 %9.1f GB/s of the file\n",
           "copy_weights, bf16 [12288,3072]", best * 1e3, (double)bytes / best / 1e9);
    free(source);
}

void time_operations(struct rig *rig, int64_t image_tokens)
{
    int64_t all = TEXT + image_tokens;
    int side = (int)(16 * sqrt((double)image_tokens) + 0.5); /* pixels of a square image */

    rig->tight = true;
    printf("%lld image tokens (%d × %d pixels)\n", (long long)image_tokens, side, side);
    time_linear(rig, "linear qkv", all, WIDTH, 3 * WIDTH, false);
    time_linear(rig, "linear up, gelu_tanh", all, WIDTH, 4 * WIDTH, true);
    time_linear(rig, "linear out", all, 5 * WIDTH, WIDTH, false);
    time_linear(rig, "linear qkv, image", image_tokens, WIDTH, 3 * WIDTH, false);
    time_linear(rig, "linear down, image", image_tokens, 4 * WIDTH, WIDTH, false);
    time_linear(rig, "linear qkv, text", TEXT, WIDTH, 3 * WIDTH, false);
    time_linear(rig, "linear down, text", TEXT, 4 * WIDTH, WIDTH, false);
    time_linear(rig, "linear modulation, 1 row", 1, WIDTH, 6 * WIDTH, false);
    time_linear(rig, "linear T5 up", TEXT, T5_WIDTH, T5_HIDDEN, false);
    time_attention(rig, "attention, 24 heads of 128", all, HEADS, HEAD_SIZE, false);
    time_attention(rig, "attention T5, 64 heads, bias", TEXT, 64, 64, true);
    time_attention(rig, "attention VAE, 1 head of 512", 4 * image_tokens, 1, 512, false);
    time_conv(rig, "conv 512 → 512, 1/8", side / 8, 512, 512, false);
    time_conv(rig, "conv 512 → 512, 1/4 from 1/8", side / 8, 512, 512, true);
    time_conv(rig, "conv 256 → 256, 1/2", side / 2, 256, 256, false);
    time_conv(rig, "conv 128 → 128", side, 128, 128, false);
    time_conv(rig, "conv 128 → 3", side, 128, 3, false);
    time_rows(rig, "modulated_norm", all, WIDTH, queue_modulated_norm);
    time_rows(rig, "rms_norm T5", TEXT, T5_WIDTH, queue_rms_norm);
    time_head_norm(rig, all);
    time_group_norm(rig, (int64_t)side * side, 128);
    time_rows(rig, "add", all, WIDTH, queue_add);
    time_rows(rig, "gated_norm", all, WIDTH, queue_gated_norm);
    time_rows(rig, "gelu_multiply T5", TEXT, T5_HIDDEN, queue_gelu_multiply);
    time_rows(rig, "copy", all, WIDTH, queue_copy);
    time_rows(rig, "copy, 1 row", 1, WIDTH, queue_copy);
    time_weights(rig);
}
