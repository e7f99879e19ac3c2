/* SPDX-License-Identifier: MIT */
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/cpu/cpu.h"

#define SUMS 16 /* partial sums, as many as a vector has lanes */

CPU_CLONES static float row_sum(const float *x, int64_t n)
{
    float lanes[SUMS] = {0}, sum = 0;
    int64_t i = 0;

    for (; i + SUMS <= n; i += SUMS)
        for (int l = 0; l < SUMS; l++)
            lanes[l] += x[i + l];
    for (; i < n; i++)
        sum += x[i];
    for (int l = 0; l < SUMS; l++)
        sum += lanes[l];
    return sum;
}

/* Σ (x − mean)² */
CPU_CLONES static float row_squares(const float *x, int64_t n, float mean)
{
    float lanes[SUMS] = {0}, sum = 0;
    int64_t i = 0;

    for (; i + SUMS <= n; i += SUMS) {
        for (int l = 0; l < SUMS; l++) {
            float d = x[i + l] - mean;
            lanes[l] += d * d;
        }
    }
    for (; i < n; i++)
        sum += (x[i] - mean) * (x[i] - mean);
    for (int l = 0; l < SUMS; l++)
        sum += lanes[l];
    return sum;
}

CPU_CLONES static void row_affine(float *y, const float *x, int64_t n, float mean, float inverse,
                                  const float *restrict weight, const float *restrict bias)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = (x[i] - mean) * inverse * weight[i] + bias[i];
}

CPU_CLONES static void row_modulate(float *y, const float *x, int64_t n, float mean, float inverse,
                                    const float *restrict shift, const float *restrict scale)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = (x[i] - mean) * inverse * (1.0f + scale[i]) + shift[i];
}

CPU_CLONES static void row_weigh(float *y, const float *x, int64_t n, float inverse,
                                 const float *restrict weight)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i] * inverse * weight[i];
}

static float row_deviation(const float *x, int64_t n, float mean, float eps)
{
    return 1.0f / sqrtf(row_squares(x, n, mean) / (float)n + eps);
}

/* A normalisation of rows; which of the operands are used depends on the kind. */
struct norm_task {
    struct tensor y, x, a, b;
    float eps;
    int64_t parts;
};

static float row_mean(const float *x, int64_t n)
{
    return row_sum(x, n) / (float)n;
}

static void layer_norm_chunk(void *argument, int64_t part, int worker)
{
    const struct norm_task *t = argument;
    struct cpu_range rows = cpu_share(t->x.rows, part, t->parts);

    for (int64_t i = rows.first; i < rows.last; i++) {
        const float *in = cpu_row(t->x, i);
        float mean = row_mean(in, t->x.cols);

        row_affine(cpu_row(t->y, i), in, t->x.cols, mean,
                   row_deviation(in, t->x.cols, mean, t->eps), t->a.data, t->b.data);
    }
}

static void modulated_norm_chunk(void *argument, int64_t part, int worker)
{
    const struct norm_task *t = argument;
    struct cpu_range rows = cpu_share(t->x.rows, part, t->parts);

    for (int64_t i = rows.first; i < rows.last; i++) {
        const float *in = cpu_row(t->x, i);
        float mean = row_mean(in, t->x.cols);

        row_modulate(cpu_row(t->y, i), in, t->x.cols, mean,
                     row_deviation(in, t->x.cols, mean, t->eps), t->a.data, t->b.data);
    }
}

static void rms_norm_chunk(void *argument, int64_t part, int worker)
{
    const struct norm_task *t = argument;
    struct cpu_range rows = cpu_share(t->x.rows, part, t->parts);

    for (int64_t i = rows.first; i < rows.last; i++)
        row_weigh(cpu_row(t->y, i), cpu_row(t->x, i), t->x.cols,
                  row_deviation(cpu_row(t->x, i), t->x.cols, 0.0f, t->eps), t->a.data);
}

static void norm_run(struct backend *backend, struct norm_task *task, parallel_task *chunk)
{
    task->parts = cpu_parts(backend, task->x.rows, task->x.rows * task->x.cols);
    cpu_run(backend, task->parts, chunk, task);
}

void cpu_layer_norm(struct backend *backend, struct tensor y, struct tensor x, struct tensor weight,
                    struct tensor bias, float eps)
{
    struct norm_task task = {y, x, weight, bias, eps, 0};

    norm_run(backend, &task, layer_norm_chunk);
}

void cpu_modulated_norm(struct backend *backend, struct tensor y, struct tensor x,
                        struct tensor shift, struct tensor scale, float eps)
{
    struct norm_task task = {y, x, shift, scale, eps, 0};

    norm_run(backend, &task, modulated_norm_chunk);
}

void cpu_rms_norm(struct backend *backend, struct tensor y, struct tensor x, struct tensor weight,
                  float eps)
{
    struct norm_task task = {y, x, weight, {0}, eps, 0};

    norm_run(backend, &task, rms_norm_chunk);
}

CPU_CLONES static void row_rotate(float *restrict x, const float *restrict weight,
                                  const float *restrict rope, int64_t n, float inverse)
{
    for (int64_t i = 0; i < n; i += 2) {
        float a = x[i] * inverse * weight[i], b = x[i + 1] * inverse * weight[i + 1];

        x[i] = a * rope[i] - b * rope[i + 1];
        x[i + 1] = b * rope[i] + a * rope[i + 1];
    }
}

struct head_task {
    const struct head_norm *args;
    int64_t parts;
};

static void row_heads(struct tensor x, int64_t row, const float *weight, const float *rope,
                      int64_t size, float eps)
{
    for (int64_t j = 0; j < x.cols; j += size) {
        float *head = cpu_row(x, row) + j;

        row_rotate(head, weight, rope, size, row_deviation(head, size, 0.0f, eps));
    }
}

static void head_norm_chunk(void *argument, int64_t part, int worker)
{
    const struct head_task *t = argument;
    const struct head_norm *args = t->args;
    struct cpu_range rows = cpu_share(args->q.rows, part, t->parts);

    for (int64_t i = rows.first; i < rows.last; i++) {
        const struct head_weights *weights = &args->weights[i >= args->split];
        const float *rope = cpu_row(args->rope, i);

        row_heads(args->q, i, weights->q.data, rope, args->rope.cols, args->eps);
        row_heads(args->k, i, weights->k.data, rope, args->rope.cols, args->eps);
    }
}

void cpu_head_norm(struct backend *backend, const struct head_norm *args)
{
    struct head_task task = {args,
                             cpu_parts(backend, args->q.rows, 2 * args->q.rows * args->q.cols)};

    cpu_run(backend, task.parts, head_norm_chunk, &task);
}

CPU_CLONES static void row_gated_add(float *restrict x, const float *restrict gate,
                                     const float *restrict y, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] += gate[i] * y[i];
}

struct gated_task {
    const struct gated_norm *args;
    int64_t parts;
};

static void gated_norm_chunk(void *argument, int64_t part, int worker)
{
    const struct gated_task *t = argument;
    const struct gated_norm *args = t->args;
    struct cpu_range rows = cpu_share(args->x.rows, part, t->parts);
    int64_t n = args->x.cols;

    for (int64_t i = rows.first; i < rows.last; i++) {
        const struct gated_vectors *v = &args->vectors[i >= args->split];
        float *x = cpu_row(args->x, i), *y = cpu_row(args->y, i), mean;

        row_gated_add(x, v->gate.data, y, n);
        mean = row_mean(x, n);
        row_modulate(y, x, n, mean, row_deviation(x, n, mean, args->eps), v->shift.data,
                     v->scale.data);
    }
}

void cpu_gated_norm(struct backend *backend, const struct gated_norm *args)
{
    struct gated_task task = {args,
                              cpu_parts(backend, args->x.rows, 2 * args->x.rows * args->x.cols)};

    cpu_run(backend, task.parts, gated_norm_chunk, &task);
}

/* Sums of x and x² of each channel over some rows, in fp32 over a few rows, then in fp64. x counts
 * from the channel's origin: a mean far from zero would swallow the variance. */
#define SUM_ROWS 32
#define SHARE_ROWS 256
#define CHANNELS_MAX 4096

CPU_CLONES static void rows_sum(const float *x, int64_t stride, int64_t rows, int64_t n,
                                const float *restrict origin, float *restrict sum,
                                float *restrict squares)
{
    memset(sum, 0, (size_t)n * sizeof *sum);
    memset(squares, 0, (size_t)n * sizeof *squares);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < n; j++) {
            float v = x[i * stride + j] - origin[j];
            sum[j] += v;
            squares[j] += v * v;
        }
}

struct sums_task {
    struct tensor x;
    const float *origin;
    struct backend *backend;
    int64_t shares;
};

/* A share's totals, [2·channels], lie in the workspace of the first thread: neither who did which
 * share nor how many threads there are changes the order of summation. */
static double *share_totals(const struct sums_task *task, int64_t share)
{
    return (double *)cpu_workspace(task->backend, 0) + share * 2 * task->x.cols;
}

static void sums_chunk(void *argument, int64_t share, int worker)
{
    const struct sums_task *task = argument;
    const struct tensor x = task->x;
    struct cpu_range rows = cpu_share(x.rows, share, task->shares);
    double *totals = share_totals(task, share);
    float sum[CHANNELS_MAX], squares[CHANNELS_MAX];

    memset(totals, 0, (size_t)(2 * x.cols) * sizeof *totals);
    for (int64_t i = rows.first; i < rows.last; i += SUM_ROWS) {
        int64_t count = rows.last - i < SUM_ROWS ? rows.last - i : SUM_ROWS;

        rows_sum(cpu_row(x, i), x.stride, count, x.cols, task->origin, sum, squares);
        for (int64_t j = 0; j < x.cols; j++) {
            totals[j] += sum[j];
            totals[x.cols + j] += squares[j];
        }
    }
}

void cpu_channel_sums(struct backend *backend, struct tensor sums, struct tensor x, int part)
{
    int64_t n = x.cols;
    int64_t most = (int64_t)(CPU_WORKSPACE_FLOATS * sizeof(float) / sizeof(double)) / (2 * n);
    struct sums_task task = {x, cpu_row(sums, 0), backend, x.rows / SHARE_ROWS + 1};
    float *sum = cpu_row(sums, 1 + 2 * part), *squares = cpu_row(sums, 2 + 2 * part);

    assert(n <= CHANNELS_MAX);
    if (part == 0)
        memcpy(cpu_row(sums, 0), cpu_row(x, 0), (size_t)n * sizeof(float));
    task.shares = task.shares < most ? task.shares : most;
    cpu_run(backend, task.shares, sums_chunk, &task);
    for (int64_t j = 0; j < n; j++) {
        double total[2] = {0, 0};

        for (int64_t share = 0; share < task.shares; share++) {
            total[0] += share_totals(&task, share)[j];
            total[1] += share_totals(&task, share)[n + j];
        }
        sum[j] = (float)total[0];
        squares[j] = (float)total[1];
    }
}

/* Adds up channel j of all parts: what is summed up counts from the channel's origin. */
static void channel_total(const struct group_norm *args, int64_t j, double *sum, double *squares)
{
    *sum = *squares = 0;
    for (int64_t row = 1; row < args->sums.rows; row += 2) {
        *sum += (double)cpu_row(args->sums, row)[j];
        *squares += (double)cpu_row(args->sums, row + 1)[j];
    }
}

/* The mean of channels first … first + each − 1, and 1/√(variance + eps). */
static double group_statistics(const struct group_norm *args, int64_t first, int64_t each,
                               double *inverse)
{
    const float *origin = cpu_row(args->sums, 0);
    double rows = (double)args->rows, count = rows * (double)each, mean = 0, deviation = 0;
    double sum, squares;

    for (int64_t j = first; j < first + each; j++) {
        channel_total(args, j, &sum, &squares);
        mean += (rows * (double)origin[j] + sum) / count;
    }
    for (int64_t j = first; j < first + each; j++) {
        double off = mean - (double)origin[j];

        channel_total(args, j, &sum, &squares);
        deviation += squares - 2 * off * sum + rows * off * off;
    }
    *inverse = 1.0 / sqrt((deviation > 0 ? deviation / count : 0) + (double)args->eps);
    return mean;
}

void cpu_group_norm(struct backend *backend, const struct group_norm *args)
{
    int64_t n = args->sums.cols, each = n / args->groups;
    const float *weight = args->weight.data, *bias = args->bias.data;
    float *factor = cpu_row(args->affine, 0), *offset = cpu_row(args->affine, 1);

    for (int64_t first = 0; first < n; first += each) {
        double inverse, mean = group_statistics(args, first, each, &inverse);

        for (int64_t j = first; j < first + each; j++) {
            factor[j] = (float)(inverse * (double)weight[j]);
            offset[j] = (float)((double)bias[j] - mean * inverse * (double)weight[j]);
        }
    }
}

CPU_CLONES static void row_scale_shift(float *y, const float *x, const float *restrict factor,
                                       const float *restrict offset, int64_t n)
{
    for (int64_t j = 0; j < n; j++)
        y[j] = x[j] * factor[j] + offset[j];
}

static void affine_chunk(void *argument, int64_t part, int worker)
{
    const struct norm_task *t = argument;
    struct cpu_range rows = cpu_share(t->x.rows, part, t->parts);

    for (int64_t i = rows.first; i < rows.last; i++)
        row_scale_shift(cpu_row(t->y, i), cpu_row(t->x, i), cpu_row(t->a, 0), cpu_row(t->a, 1),
                        t->x.cols);
}

void cpu_affine(struct backend *backend, struct tensor y, struct tensor x, struct tensor affine)
{
    struct norm_task task = {.y = y, .x = x, .a = affine};

    norm_run(backend, &task, affine_chunk);
}
