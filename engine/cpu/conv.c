/* SPDX-License-Identifier: MIT */
/*
 * Convolution tile by tile: a tile's input is normalised into a buffer with a border around it. In
 * there the windows of neighbouring pixels overlap, which a product (product.h) takes as it is:
 * three stretches of three pixels each, multiplied by the weights.
 */
#include <assert.h>
#include <string.h>

#include "engine/cpu/cpu.h"

/* Of the input, so that it stays in a core's second-level cache. */
#define TILE_FLOATS (112 * 1024)

struct tile {
    int top, left, height, width; /* of y */
    float *input;                 /* [(height + 2)·(width + 2), channels] */
};

CPU_CLONES static void row_normalise(float *restrict y, const float *restrict x,
                                     const float *restrict factor, const float *restrict offset,
                                     int64_t n)
{
    for (int64_t j = 0; j < n; j++) {
        float v = x[j] * factor[j] + offset[j];
        y[j] = v * cpu_sigmoid(v);
    }
}

/* The tile's part of f(x), enlarged if asked, with a border of one pixel. */
static void tile_load(const struct conv *args, const struct tile *tile)
{
    int shift = args->upsample ? 1 : 0;
    int height = args->height << shift, width = args->width << shift;
    int top = args->first + tile->top;
    int64_t channels = args->x.cols;
    float *to = tile->input;

    for (int y = top - 1; y <= top + tile->height; y++) {
        for (int x = tile->left - 1; x <= tile->left + tile->width; x++, to += channels) {
            const float *from;

            if (y < 0 || y >= height || x < 0 || x >= width) {
                memset(to, 0, (size_t)channels * sizeof *to);
                continue;
            }
            from = cpu_row(args->x, (int64_t)(y >> shift) * args->width + (x >> shift));
            if (args->affine.data != NULL)
                row_normalise(to, from, cpu_row(args->affine, 0), cpu_row(args->affine, 1),
                              channels);
            else
                memcpy(to, from, (size_t)channels * sizeof *to);
        }
    }
}

static void tile_convolve(struct backend *backend, const struct conv *args, const struct tile *tile)
{
    int64_t channels = args->x.cols, across = (tile->width + 2) * channels;
    int64_t width = (int64_t)args->width << (args->upsample ? 1 : 0);
    struct product product = {.a_row = channels,
                              .a_term = 1,
                              .a_segment = across,
                              .c_row = args->y.stride,
                              .rows = tile->width,
                              .terms = 3 * channels,
                              .segments = 3,
                              .accumulate = args->accumulate};

    tile_load(args, tile);
    for (int64_t column = 0; column < args->y.cols; column += PANEL) {
        int64_t left = args->y.cols - column;

        product.panel = cpu_panel(args->weight, column / PANEL);
        product.bias = (const float *)args->bias.data + column;
        product.n = left < PANEL ? left : PANEL;
        for (int y = 0; y < tile->height; y++) {
            product.a = tile->input + y * across;
            product.c = cpu_row(args->y, (tile->top + y) * width + tile->left) + column;
            cpu_product(backend, &product);
        }
    }
}

/* The side of a square tile whose input fits. */
static int tile_side(int64_t channels)
{
    int side = 1;

    while ((side + 3) * (side + 3) * channels <= TILE_FLOATS)
        side++;
    return side;
}

struct conv_task {
    const struct conv *args;
    struct backend *backend;
    int height, width, down, across; /* of y; tiles */
};

static void conv_chunk(void *argument, int64_t i, int worker)
{
    const struct conv_task *task = argument;
    int row = (int)(i / task->across), column = (int)(i % task->across);
    struct tile tile = {.input = cpu_workspace(task->backend, worker)};

    /* Tiles of equal size rather than a narrow one at the end. */
    tile.top = task->height * row / task->down;
    tile.height = task->height * (row + 1) / task->down - tile.top;
    tile.left = task->width * column / task->across;
    tile.width = task->width * (column + 1) / task->across - tile.left;
    tile_convolve(task->backend, task->args, &tile);
}

static void convolve(struct backend *backend, const struct conv *args)
{
    int shift = args->upsample ? 1 : 0, side = tile_side(args->x.cols);
    struct conv_task task = {.args = args, .backend = backend, .width = args->width << shift};
    int parts;

    task.height = (int)(args->y.rows / task.width);
    task.down = (task.height + side - 1) / side;
    task.across = (task.width + side - 1) / side;
    /* A small picture fits into one tile, but not into one thread. */
    parts = (int)cpu_parts(backend, task.height, args->y.rows * args->weight.cols);
    if (task.down * task.across < parts)
        task.down = (parts + task.across - 1) / task.across;
    cpu_run(backend, (int64_t)task.down * task.across, conv_chunk, &task);
}

/* Without a window: some pixels after another, whose results are kept aside until all are there,
 * since y may lie in the memory of x. */
struct mix_task {
    struct backend *backend;
    const struct conv *args;
    struct tensor x, y, results;
    int64_t parts;
};

static void mix_chunk(void *argument, int64_t part, int worker)
{
    const struct mix_task *task = argument;
    struct cpu_range rows = cpu_share(task->x.rows, part, task->parts);
    struct product product = {.a = cpu_row(task->x, rows.first),
                              .a_row = task->x.stride,
                              .a_term = 1,
                              .c_row = task->results.stride,
                              .rows = rows.last - rows.first,
                              .terms = task->x.cols,
                              .segments = 1};

    for (int64_t column = 0; column < task->y.cols; column += PANEL) {
        int64_t left = task->y.cols - column;

        product.panel = cpu_panel(task->args->weight, column / PANEL);
        product.bias = (const float *)task->args->bias.data + column;
        product.c = cpu_row(task->results, rows.first) + column;
        product.n = left < PANEL ? left : PANEL;
        cpu_product(task->backend, &product);
    }
}

static void mix_channels(struct backend *backend, const struct conv *args)
{
    int64_t n = args->y.cols, threads = cpu_of(backend)->threads;
    int64_t most = threads * (int64_t)CPU_WORKSPACE_FLOATS / n, count;
    struct mix_task task = {.backend = backend, .args = args};

    assert(args->affine.data == NULL && most > 0);
    for (int64_t p = 0; p < args->y.rows; p += count) {
        count = args->y.rows - p < most ? args->y.rows - p : most;
        task.x = tensor_rows(args->x, (int64_t)args->first * args->width + p, count);
        task.y = tensor_rows(args->y, p, count);
        task.results = tensor_of(backend->workspace, DTYPE_F32, count, n);
        task.parts = cpu_parts(backend, count, count * n);
        cpu_run(backend, task.parts, mix_chunk, &task);
        if (args->accumulate)
            cpu_add(backend, task.y, task.results);
        else
            cpu_copy(backend, task.y, task.results);
    }
}

void cpu_conv(struct backend *backend, const struct conv *args)
{
    if (args->size == 1)
        mix_channels(backend, args);
    else
        convolve(backend, args);
}
