/* SPDX-License-Identifier: MIT */
#include "engine/rates.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "alloc/arena.h"
#include "engine/ops.h"

enum {
    REPEATS = 3,        /* the fastest counts, unless they are for warming up */
    HOST_TOKENS = 1024, /* enough there, and done in a moment */
    CONV_SIDE_PX = 128,
    WINDOW = 3,
    LINEARS = 2,
    RUNS_MAX = 1 << 16,
};

/* A trial goes on for so long at least: what it takes to mark it does not count then. */
#define TRIAL_S 0.02
/* What a card does for so long warms it up, and pins what is copied again and again; the last trial
 * counts. */
#define WARM_S 1.0
#define LEAST_S 1e-9
#define NORM_EPS 1e-6f

struct trial {
    struct backend *backend;
    struct compute c;
    int64_t rows, width, channels;
    int heads;
    struct arena *arena;
    uintptr_t memory;
    uint32_t *noise; /* host: small numbers, be they read as fp32 or as bf16 */

    struct tensor up, x, y, token, gate, rope;     /* of a linear layer and attention */
    struct tensor kernel, bias, pixels, convolved; /* of a convolution */
};

static uint64_t aligned(uint64_t bytes)
{
    return (bytes + ARENA_ALIGNMENT - 1) / ARENA_ALIGNMENT * ARENA_ALIGNMENT;
}

static struct tensor place(struct trial *t, uint64_t *at, enum dtype dtype, int64_t rows,
                           int64_t cols)
{
    struct tensor x =
        tensor_of(t->memory == 0 ? NULL : (void *)(t->memory + *at), dtype, rows, cols);

    *at += aligned(tensor_bytes(&x));
    return x;
}

/* Room for it the other way round, too. */
static struct tensor place_weight(struct trial *t, uint64_t *at, int64_t rows, int64_t cols)
{
    struct tensor weight = place(t, at, t->backend->weight, rows, cols);
    uint64_t bytes = backend_weight_bytes(t->backend, WEIGHT_MATRIX, rows, cols);
    uint64_t turned = backend_weight_bytes(t->backend, WEIGHT_MATRIX, cols, rows);

    *at += aligned(bytes > turned ? bytes : turned) - aligned(tensor_bytes(&weight));
    return weight;
}

/* The operands behind the back end's workspace; returns how long all of it is. */
static uint64_t place_all(struct trial *t)
{
    int64_t pixels = (int64_t)CONV_SIDE_PX * CONV_SIDE_PX;
    enum dtype activation = t->backend->activation;
    uint64_t at = aligned(t->backend->workspace_bytes);

    t->up = place_weight(t, &at, 4 * t->width, t->width);
    t->x = place(t, &at, activation, t->rows, 3 * t->width);
    t->y = place(t, &at, activation, t->rows, 4 * t->width);
    t->token = place(t, &at, activation, 1, 2);
    t->gate = place(t, &at, DTYPE_F32, 1, t->width);
    t->rope = place(t, &at, DTYPE_F32, t->rows, t->width / t->heads);
    t->kernel = place_weight(t, &at, t->channels, t->channels * WINDOW * WINDOW);
    t->bias = place(t, &at, t->backend->bias, 1, t->channels);
    t->pixels = place(t, &at, activation, pixels, t->channels);
    t->convolved = place(t, &at, activation, pixels, t->channels);
    return at;
}

/* Elements of the longest operand that is filled. */
static size_t longest(const struct trial *t)
{
    const struct tensor *const all[] = {&t->up, &t->x, &t->y, &t->kernel, &t->pixels};
    size_t most = 0;

    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        size_t count = (size_t)(all[i]->rows * all[i]->cols);

        most = count > most ? count : most;
    }
    return most;
}

/* A weight as a checkpoint has it. In fp32 it stands for one that passes again and again: a card
 * pins a copy of it, so that it comes as fast as weights do in the end. */
static void copy_weight(struct trial *t, struct tensor weight, enum weight_layout layout,
                        enum dtype stored)
{
    const struct backend_ops *ops = t->backend->ops;
    struct weight_copy copy = {.target = weight.data,
                               .source = t->noise,
                               .source_dtype = stored,
                               .lasting = stored == DTYPE_F32,
                               .layout = layout,
                               .rows = weight.rows,
                               .cols = weight.cols,
                               .channels_in = (int)t->channels,
                               .window = WINDOW * WINDOW,
                               .name = "noise",
                               .path = "memory"};

    ops->copy_reuse(t->backend);
    ops->copy_weights(t->backend, &copy, 1);
    ops->copy_wait(t->backend, ops->copy_ticket(t->backend));
}

static double product_of(struct tensor y, struct tensor weight)
{
    return 2 * (double)y.rows * (double)weight.rows * (double)weight.cols;
}

static double bytes_of(struct tensor x)
{
    return (double)x.rows * (double)x.cols * (double)dtype_bytes(x.dtype);
}

/* ---- what is tried ---- */

static void try_link(struct trial *t)
{
    copy_weight(t, t->up, WEIGHT_MATRIX, t->backend->host ? DTYPE_BF16 : DTYPE_F32);
}

/* Both products of an MLP; the second one is of the kind that keeps a card less busy. */
static void try_linear(struct trial *t)
{
    struct tensor down = tensor_of(t->up.data, t->up.dtype, t->up.cols, t->up.rows);

    op_linear(&t->c, (struct linear){.y = t->y,
                                     .x = tensor_cols(t->x, 0, t->width),
                                     .weight = t->up,
                                     .activation = ACTIVATION_GELU_TANH});
    op_linear(&t->c, (struct linear){
                         .y = tensor_cols(t->x, t->width, t->width), .x = t->y, .weight = down});
}

static void try_attention(struct trial *t)
{
    op_attention(&t->c, (struct attention){.y = tensor_cols(t->y, 0, t->width),
                                           .q = tensor_cols(t->x, 0, t->width),
                                           .k = tensor_cols(t->x, t->width, t->width),
                                           .v = tensor_cols(t->x, 2 * t->width, t->width),
                                           .heads = t->heads,
                                           .scale = 1});
}

static void try_conv(struct trial *t)
{
    op_conv(&t->c, (struct conv){.y = t->convolved,
                                 .x = t->pixels,
                                 .weight = t->kernel,
                                 .bias = t->bias,
                                 .height = CONV_SIDE_PX,
                                 .width = CONV_SIDE_PX,
                                 .size = WINDOW});
}

/* What goes over a token's channels with little arithmetic, as an attention piece has it. */
static void try_memory(struct trial *t)
{
    struct tensor x = tensor_cols(t->x, 0, t->width), y = tensor_cols(t->y, 0, t->width);
    struct tensor head = tensor_cols(t->gate, 0, t->width / t->heads);

    op_modulated_norm(&t->c, y, x, t->gate, t->gate, NORM_EPS);
    op_head_norm(&t->c, (struct head_norm){.q = y,
                                           .k = tensor_cols(t->y, t->width, t->width),
                                           .rope = t->rope,
                                           .weights = {{head, head}},
                                           .split = t->rows,
                                           .eps = NORM_EPS});
    op_gated_norm(&t->c, (struct gated_norm){.x = x,
                                             .y = y,
                                             .vectors = {{t->gate, t->gate, t->gate}},
                                             .split = t->rows,
                                             .eps = NORM_EPS});
}

/* The same as described.c counts it. */
static double memory_bytes(const struct trial *t)
{
    struct tensor x = tensor_cols(t->x, 0, t->width);

    return (2 + 2 * 2 + 2 * 2) * bytes_of(x) + 2 * bytes_of(t->rope);
}

static void try_call(struct trial *t)
{
    op_silu(&t->c, t->token, t->token);
}

/* All that it wants, page tables above all: nothing else needs memory meanwhile. */
static void grant_context(struct backend *backend)
{
    backend->context_granted += backend->context_wanted;
    backend->context_bytes += backend->context_wanted;
    backend->context_wanted = 0;
}

/* Seconds that one run takes on a stream, `warm`: when it has gone on for a while; 0 once something
 * failed, which `err` tells. */
static double seconds_of(struct trial *t, enum backend_stream stream, void (*run)(struct trial *),
                         bool warm, struct error *err)
{
    const struct backend_ops *ops = t->backend->ops;
    double best = INFINITY, least_s = warm ? WARM_S / REPEATS : TRIAL_S;
    int runs = 1;

    run(t); /* libraries load their code */
    for (int repeat = 0; repeat < REPEATS;) {
        uint64_t from, to;
        double seconds;

        if (err->code != 0 || ops->sync(t->backend, err) != 0)
            return 0;
        grant_context(t->backend);
        from = ops->mark(t->backend, stream);
        for (int i = 0; i < runs; i++)
            run(t);
        to = ops->mark(t->backend, stream);
        ops->copy_wait(t->backend, ops->copy_ticket(t->backend));
        if (ops->sync(t->backend, err) != 0)
            return 0;
        seconds = ops->mark_seconds(t->backend, from, to);
        if (seconds < least_s && runs < RUNS_MAX) {
            runs *= 2;
            continue;
        }
        best = warm ? seconds / runs : fmin(best, seconds / runs);
        repeat++;
    }
    return fmax(best, LEAST_S);
}

static int trial_open(struct trial *t, struct error *err)
{
    uint64_t page = t->backend->pages->granule_bytes;
    struct arena_request request = {.bytes = place_all(t)};
    struct arena_options options = {.budget_bytes = (request.bytes + page - 1) / page * page};
    int result = arena_create(&t->arena, t->backend->pages, &options);

    if (result == 0)
        result = arena_alloc(t->arena, &request, &t->memory, NULL);
    if (result != 0)
        return error_set(err, -result, "measuring the device: %s of its memory: %s",
                         size_shown(request.bytes).text, strerror(-result));
    t->noise = malloc(longest(t) * sizeof *t->noise);
    if (t->noise == NULL)
        return error_set(err, ENOMEM, "out of host memory");
    t->backend->workspace = (void *)t->memory;
    return 0;
}

/* Numbers in all that is read. */
static void trial_fill(struct trial *t)
{
    size_t count = longest(t);
    uint64_t state = 1;

    for (size_t i = 0; i < count; i++) {
        uint32_t half;

        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        half = 0x3c00 | (uint32_t)(state >> 33 & 0x80ff); /* ±0.008 to ±0.03 */
        t->noise[i] = half << 16 | half;
    }
    place_all(t);
    op_upload(&t->c, t->x, t->noise);
    op_upload(&t->c, t->y, t->noise);
    op_upload(&t->c, t->token, t->noise);
    op_upload(&t->c, t->gate, t->noise);
    op_upload(&t->c, t->rope, t->noise);
    op_upload(&t->c, t->bias, t->noise);
    op_upload(&t->c, t->pixels, t->noise);
    copy_weight(t, t->kernel, WEIGHT_CONV, DTYPE_BF16);
}

static void trial_close(struct trial *t)
{
    t->backend->workspace = NULL;
    arena_destroy(t->arena);
}

int rates_measure(struct device_rates *rates, struct backend *backend,
                  const struct rates_shapes *shapes, void **lasting, struct error *err)
{
    bool few = backend->host && shapes->tokens > HOST_TOKENS, warm = !backend->host;
    struct trial t = {.backend = backend,
                      .c = {.backend = backend},
                      .rows = few ? HOST_TOKENS : shapes->tokens,
                      .width = shapes->width,
                      .channels = shapes->vae_channels,
                      .heads = shapes->heads};

    err->code = 0;
    if (trial_open(&t, err) == 0) {
        trial_fill(&t);
        rates->link_bytes = bytes_of(t.up) / seconds_of(&t, STREAM_COPY, try_link, warm, err);
        rates->linear_flops =
            LINEARS * product_of(t.y, t.up) / seconds_of(&t, STREAM_COMPUTE, try_linear, warm, err);
        rates->attention_flops = 4 * (double)t.rows * (double)t.rows * (double)t.width /
                                 seconds_of(&t, STREAM_COMPUTE, try_attention, warm, err);
        rates->conv_flops = product_of(t.convolved, t.kernel) /
                            seconds_of(&t, STREAM_COMPUTE, try_conv, false, err);
        rates->memory_bytes =
            memory_bytes(&t) / seconds_of(&t, STREAM_COMPUTE, try_memory, false, err);
        rates->call_s = seconds_of(&t, STREAM_COMPUTE, try_call, false, err);
    }
    trial_close(&t);
    *lasting = t.noise;
    return err->code;
}
