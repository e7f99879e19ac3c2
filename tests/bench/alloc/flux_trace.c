/* SPDX-License-Identifier: MIT */
#include "flux_trace.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { COMPUTE, COPY };
enum { TEXT_TOKENS = 512, WIDTH = 3072, HEADS = 24, DOUBLE_BLOCKS = 19, SINGLE_BLOCKS = 38 };
enum { T5_WIDTH = 4096, T5_INNER = 10240, T5_HEADS = 64, T5_LAYERS = 24 };
enum { CLIP_WIDTH = 768, CLIP_LAYERS = 12, CLIP_TOKENS = 77 };
enum { BF16 = 2, FP32 = 4 };
enum { GROUP_LIMIT = 64 };

struct builder {
    struct trace trace;
    size_t event_capacity, mark_capacity;
    uint64_t state;
};

/* Blocks that are freed together: the weights of a layer, the temporaries of a function. */
struct group {
    uint64_t blocks[GROUP_LIMIT];
    int count;
};

static void *grow(void *array, size_t count, size_t *capacity, size_t entry_bytes)
{
    if (count < *capacity)
        return array;
    *capacity = 2 * *capacity + 1024;
    array = realloc(array, *capacity * entry_bytes);
    if (!array)
        abort();
    return array;
}

static void add_event(struct builder *b, const struct trace_event *event)
{
    b->trace.events =
        grow(b->trace.events, b->trace.count, &b->event_capacity, sizeof *b->trace.events);
    b->trace.events[b->trace.count++] = *event;
}

static uint64_t take(struct builder *b, uint64_t bytes, int stream)
{
    struct trace_event event = {TRACE_ALLOC, stream, b->trace.blocks++, bytes};

    add_event(b, &event);
    return event.block;
}

static uint64_t temporary(struct builder *b, uint64_t rows, uint64_t columns)
{
    return take(b, rows * columns * BF16, COMPUTE);
}

static void drop(struct builder *b, uint64_t block)
{
    struct trace_event event = {.kind = TRACE_FREE, .block = block};

    add_event(b, &event);
}

static void add(struct builder *b, struct group *group, uint64_t bytes, int stream)
{
    if (group->count == GROUP_LIMIT)
        abort();
    group->blocks[group->count++] = take(b, bytes, stream);
}

static void drop_group(struct builder *b, struct group *group)
{
    for (int i = 0; i < group->count; i++)
        drop(b, group->blocks[i]);
    group->count = 0;
}

static void mark(struct builder *b, const char *name)
{
    struct trace_event event = {.kind = TRACE_MARK, .block = b->trace.mark_count};

    b->trace.marks = grow(b->trace.marks, b->trace.mark_count, &b->mark_capacity, sizeof(char *));
    b->trace.marks[b->trace.mark_count] = strdup(name);
    if (!b->trace.marks[b->trace.mark_count++])
        abort();
    add_event(b, &event);
}

static uint64_t random_below(struct builder *b, uint64_t limit)
{
    b->state = b->state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (b->state >> 33) % limit;
}

/* A linear layer's weight and bias. */
static void load_linear(struct builder *b, struct group *weights, uint64_t in, uint64_t out)
{
    add(b, weights, in * out * BF16, COPY);
    add(b, weights, out * BF16, COPY);
}

/* ---- Text encoders ---- */

static void load_clip_layer(struct builder *b, struct group *weights)
{
    for (int i = 0; i < 4; i++)
        load_linear(b, weights, CLIP_WIDTH, CLIP_WIDTH);
    load_linear(b, weights, CLIP_WIDTH, 4 * CLIP_WIDTH);
    load_linear(b, weights, 4 * CLIP_WIDTH, CLIP_WIDTH);
    for (int i = 0; i < 4; i++)
        add(b, weights, CLIP_WIDTH * BF16, COPY);
}

static void load_t5_layer(struct builder *b, struct group *weights)
{
    for (int i = 0; i < 4; i++)
        add(b, weights, (uint64_t)T5_WIDTH * T5_WIDTH * BF16, COPY);
    for (int i = 0; i < 3; i++)
        add(b, weights, (uint64_t)T5_WIDTH * T5_INNER * BF16, COPY);
    for (int i = 0; i < 2; i++)
        add(b, weights, T5_WIDTH * BF16, COPY);
}

/* Attention with its scores in memory, then a feed-forward layer; the hidden state is replaced. */
static uint64_t run_encoder_layer(struct builder *b, uint64_t hidden, uint64_t tokens,
                                  uint64_t width, uint64_t inner, uint64_t heads)
{
    uint64_t norm = temporary(b, tokens, width), q = temporary(b, tokens, width);
    uint64_t k = temporary(b, tokens, width), v = temporary(b, tokens, width);
    uint64_t scores = take(b, heads * tokens * tokens * FP32, COMPUTE), weights, out, sum;

    drop(b, norm);
    weights = take(b, heads * tokens * tokens * BF16, COMPUTE);
    drop(b, scores);
    out = temporary(b, tokens, width);
    drop(b, weights);
    drop(b, q);
    drop(b, k);
    drop(b, v);
    sum = temporary(b, tokens, width);
    drop(b, out);
    drop(b, hidden);
    hidden = sum;
    norm = temporary(b, tokens, width);
    q = temporary(b, tokens, inner);
    k = temporary(b, tokens, inner);
    drop(b, norm);
    v = temporary(b, tokens, inner);
    drop(b, q);
    drop(b, k);
    out = temporary(b, tokens, width);
    drop(b, v);
    sum = temporary(b, tokens, width);
    drop(b, out);
    drop(b, hidden);
    return sum;
}

struct text {
    uint64_t hidden, pooled;
};

static struct text run_text(struct builder *b)
{
    struct group weights[2] = {{.count = 0}, {.count = 0}};
    struct text text = {.pooled = take(b, CLIP_WIDTH * BF16, COMPUTE)};
    uint64_t hidden = temporary(b, CLIP_TOKENS, CLIP_WIDTH);

    for (int i = 0; i < CLIP_LAYERS; i++) {
        load_clip_layer(b, &weights[i % 2]);
        hidden = run_encoder_layer(b, hidden, CLIP_TOKENS, CLIP_WIDTH, 4 * CLIP_WIDTH, 12);
        drop_group(b, &weights[(i + 1) % 2]);
    }
    drop_group(b, &weights[(CLIP_LAYERS - 1) % 2]);
    drop(b, hidden);
    text.hidden = temporary(b, TEXT_TOKENS, T5_WIDTH);
    for (int i = 0; i < T5_LAYERS; i++) {
        load_t5_layer(b, &weights[i % 2]);
        text.hidden = run_encoder_layer(b, text.hidden, TEXT_TOKENS, T5_WIDTH, T5_INNER, T5_HEADS);
        drop_group(b, &weights[(i + 1) % 2]);
    }
    drop_group(b, &weights[(T5_LAYERS - 1) % 2]);
    return text;
}

/* ---- Transformer ---- */

static void load_block(struct builder *b, struct group *weights, int block)
{
    if (block >= DOUBLE_BLOCKS) {
        load_linear(b, weights, WIDTH, 3 * WIDTH);
        load_linear(b, weights, WIDTH, 7 * WIDTH);
        load_linear(b, weights, 5 * WIDTH, WIDTH);
        add(b, weights, 128 * BF16, COPY);
        add(b, weights, 128 * BF16, COPY);
        return;
    }
    for (int side = 0; side < 2; side++) {
        load_linear(b, weights, WIDTH, 6 * WIDTH);
        for (int i = 0; i < 4; i++)
            load_linear(b, weights, WIDTH, WIDTH);
        load_linear(b, weights, WIDTH, 4 * WIDTH);
        load_linear(b, weights, 4 * WIDTH, WIDTH);
        add(b, weights, 128 * BF16, COPY);
        add(b, weights, 128 * BF16, COPY);
    }
}

/* Queries, keys and values with their rotation, and attention over all tokens: its result. */
static uint64_t run_attention(struct builder *b, uint64_t tokens)
{
    uint64_t raw[3], turned[2], out, lse;

    for (int i = 0; i < 3; i++)
        raw[i] = temporary(b, tokens, WIDTH);
    for (int i = 0; i < 2; i++) {
        uint64_t wide = take(b, tokens * WIDTH * FP32, COMPUTE);
        turned[i] = temporary(b, tokens, WIDTH);
        drop(b, wide);
        drop(b, raw[i]);
    }
    out = temporary(b, tokens, WIDTH);
    lse = take(b, tokens * HEADS * FP32, COMPUTE);
    drop(b, turned[0]);
    drop(b, turned[1]);
    drop(b, raw[2]);
    drop(b, lse);
    return out;
}

/* One side of a double block behind attention: projection, residual, feed-forward, residual. */
static uint64_t run_side(struct builder *b, uint64_t hidden, uint64_t attention, uint64_t tokens)
{
    uint64_t projected = temporary(b, tokens, WIDTH), sum, norm, inner, active, out;

    if (attention != UINT64_MAX)
        drop(b, attention);
    sum = temporary(b, tokens, WIDTH);
    drop(b, projected);
    drop(b, hidden);
    norm = temporary(b, tokens, WIDTH);
    inner = temporary(b, tokens, 4 * WIDTH);
    drop(b, norm);
    active = temporary(b, tokens, 4 * WIDTH);
    drop(b, inner);
    out = temporary(b, tokens, WIDTH);
    drop(b, active);
    hidden = temporary(b, tokens, WIDTH);
    drop(b, sum);
    drop(b, out);
    return hidden;
}

static void run_double_block(struct builder *b, uint64_t *image, uint64_t *text, uint64_t tokens)
{
    uint64_t modulation[2] = {take(b, 6 * WIDTH * BF16, COMPUTE),
                              take(b, 6 * WIDTH * BF16, COMPUTE)};
    uint64_t norm_image = temporary(b, tokens, WIDTH);
    uint64_t norm_text = temporary(b, TEXT_TOKENS, WIDTH);
    uint64_t attention = run_attention(b, tokens + TEXT_TOKENS);

    drop(b, norm_image);
    drop(b, norm_text);
    *text = run_side(b, *text, UINT64_MAX, TEXT_TOKENS);
    *image = run_side(b, *image, attention, tokens);
    drop(b, modulation[0]);
    drop(b, modulation[1]);
}

static void run_single_block(struct builder *b, uint64_t *hidden, uint64_t tokens)
{
    uint64_t modulation = take(b, 3 * WIDTH * BF16, COMPUTE);
    uint64_t norm = temporary(b, tokens, WIDTH), inner = temporary(b, tokens, 4 * WIDTH);
    uint64_t active = temporary(b, tokens, 4 * WIDTH), attention, joined, out, sum;

    drop(b, inner);
    attention = run_attention(b, tokens);
    drop(b, norm);
    joined = temporary(b, tokens, 5 * WIDTH);
    drop(b, attention);
    drop(b, active);
    out = temporary(b, tokens, WIDTH);
    drop(b, joined);
    sum = temporary(b, tokens, WIDTH);
    drop(b, out);
    drop(b, *hidden);
    drop(b, modulation);
    *hidden = sum;
}

/* One pass over all blocks, the weights of the next one arriving while one computes. */
static void run_step(struct builder *b, uint64_t tokens)
{
    struct group weights[2] = {{.count = 0}, {.count = 0}};
    uint64_t image = temporary(b, tokens, WIDTH), text = temporary(b, TEXT_TOKENS, WIDTH), joined;

    load_block(b, &weights[0], 0);
    for (int i = 0; i < DOUBLE_BLOCKS; i++) {
        load_block(b, &weights[(i + 1) % 2], i + 1);
        run_double_block(b, &image, &text, tokens);
        drop_group(b, &weights[i % 2]);
    }
    joined = temporary(b, tokens + TEXT_TOKENS, WIDTH);
    drop(b, image);
    drop(b, text);
    for (int i = DOUBLE_BLOCKS; i < DOUBLE_BLOCKS + SINGLE_BLOCKS; i++) {
        if (i + 1 < DOUBLE_BLOCKS + SINGLE_BLOCKS)
            load_block(b, &weights[(i + 1) % 2], i + 1);
        run_single_block(b, &joined, tokens + TEXT_TOKENS);
        drop_group(b, &weights[i % 2]);
    }
    drop(b, joined);
}

/* ---- VAE ---- */

/* A residual block: norm, convolution, norm, convolution, each with its result beside its input. */
static uint64_t run_resnet(struct builder *b, uint64_t hidden, uint64_t pixels, uint64_t in,
                           uint64_t out)
{
    uint64_t norm = temporary(b, pixels, in), first, second, sum;

    first = temporary(b, pixels, out);
    drop(b, norm);
    norm = temporary(b, pixels, out);
    drop(b, first);
    second = temporary(b, pixels, out);
    drop(b, norm);
    sum = temporary(b, pixels, out);
    drop(b, second);
    drop(b, hidden);
    return sum;
}

static void run_vae(struct builder *b, uint64_t width, uint64_t height)
{
    static const uint64_t channels[] = {512, 512, 256, 128};
    struct group weights = {.count = 0};
    uint64_t pixels = width / 8 * (height / 8), in = 512;
    uint64_t hidden = temporary(b, pixels, in), rgb;

    for (int i = 0; i < 14; i++)
        add(b, &weights, (uint64_t)512 * 512 * 9 * BF16, COPY);
    for (int i = 0; i < 7; i++)
        add(b, &weights, (uint64_t)256 * 256 * 9 * BF16, COPY);
    for (int i = 0; i < 7; i++)
        add(b, &weights, (uint64_t)128 * 128 * 9 * BF16, COPY);
    for (int i = 0; i < 28; i++)
        add(b, &weights, 512 * BF16, COPY);
    for (int level = 0; level < 4; level++) {
        for (int i = 0; i < 3; i++) {
            hidden = run_resnet(b, hidden, pixels, in, channels[level]);
            in = channels[level];
        }
        if (level < 3) {
            uint64_t larger = temporary(b, 4 * pixels, in), smooth;
            drop(b, hidden);
            smooth = temporary(b, 4 * pixels, in);
            drop(b, larger);
            hidden = smooth;
            pixels *= 4;
        }
    }
    rgb = take(b, pixels * 3 * FP32, COMPUTE);
    drop(b, hidden);
    drop_group(b, &weights);
    drop(b, rgb);
}

static void run_image(struct builder *b, int steps)
{
    uint64_t width = 512 + 16 * random_below(b, 33), height = 512 + 16 * random_below(b, 33);
    uint64_t tokens = width / 16 * (height / 16);
    struct text text = run_text(b);
    uint64_t latent = take(b, tokens * 64 * FP32, COMPUTE);

    for (int i = 0; i < steps; i++) {
        uint64_t next;
        run_step(b, tokens);
        next = take(b, tokens * 64 * FP32, COMPUTE);
        drop(b, latent);
        latent = next;
    }
    drop(b, text.hidden);
    drop(b, text.pooled);
    run_vae(b, width, height);
    drop(b, latent);
}

void flux_trace_make(struct trace *trace, const struct flux_trace_options *options)
{
    struct builder b = {.state = options->seed};
    struct group always = {.count = 0}; /* embedders and output layer, resident */

    load_linear(&b, &always, 64, WIDTH);
    load_linear(&b, &always, T5_WIDTH, WIDTH);
    for (int i = 0; i < 3; i++) {
        load_linear(&b, &always, i == 2 ? CLIP_WIDTH : 256, WIDTH);
        load_linear(&b, &always, WIDTH, WIDTH);
    }
    load_linear(&b, &always, WIDTH, 2 * WIDTH);
    load_linear(&b, &always, WIDTH, 64);
    for (int i = 0; i < options->images; i++) {
        run_image(&b, options->steps);
        mark(&b, "image");
    }
    *trace = b.trace;
}
