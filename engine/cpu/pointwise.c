/* SPDX-License-Identifier: MIT */
#include <math.h>
#include <string.h>

#include "engine/cpu/cpu.h"

CPU_CLONES static void row_silu(float *y, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i] * cpu_sigmoid(x[i]);
}

CPU_CLONES static void row_quick_gelu(float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = x[i] * cpu_sigmoid(1.702f * x[i]);
}

/* ½(1 + tanh u) = σ(2u) */
static inline float gelu_tanh(float x)
{
    return x * cpu_sigmoid(1.5957691216f * (x + 0.044715f * x * x * x));
}

CPU_CLONES static void row_gelu_tanh(float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = gelu_tanh(x[i]);
}

CPU_CLONES static void row_gelu_multiply(float *restrict y, const float *restrict x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = gelu_tanh(y[i]) * x[i];
}

CPU_CLONES static void row_add_scaled(float *restrict y, const float *restrict x, int64_t n,
                                      float factor)
{
    for (int64_t i = 0; i < n; i++)
        y[i] += factor * x[i];
}

CPU_CLONES static void row_guide(float *restrict v, const float *restrict negative, int64_t n,
                                 float scale)
{
    for (int64_t i = 0; i < n; i++)
        v[i] = negative[i] + scale * (v[i] - negative[i]);
}

void cpu_activate(const struct product *product, enum activation activation)
{
    for (int64_t i = 0; activation != ACTIVATION_NONE && i < product->rows; i++) {
        float *row = product->c + i * product->c_row;

        if (activation == ACTIVATION_GELU_TANH)
            row_gelu_tanh(row, product->n);
        else if (activation == ACTIVATION_QUICK_GELU)
            row_quick_gelu(row, product->n);
        else
            row_silu(row, row, product->n);
    }
}

/* An operation on rows; which of the operands are used depends on it. */
struct rows_task {
    struct tensor y, x, a;
    int64_t parts;
    void (*row)(const struct rows_task *task, int64_t i);
};

static void rows_chunk(void *argument, int64_t part, int worker)
{
    const struct rows_task *task = argument;
    struct cpu_range rows = cpu_share(task->y.rows, part, task->parts);

    for (int64_t i = rows.first; i < rows.last; i++)
        task->row(task, i);
}

static void rows_run(struct backend *backend, struct rows_task task)
{
    task.parts = cpu_parts(backend, task.y.rows, task.y.rows * task.y.cols);
    cpu_run(backend, task.parts, rows_chunk, &task);
}

static void add_row(const struct rows_task *t, int64_t i)
{
    row_add_scaled(cpu_row(t->y, i), cpu_row(t->x, i), t->y.cols, 1.0f);
}

void cpu_add(struct backend *backend, struct tensor y, struct tensor x)
{
    rows_run(backend, (struct rows_task){.y = y, .x = x, .row = add_row});
}

static void gelu_multiply_row(const struct rows_task *t, int64_t i)
{
    row_gelu_multiply(cpu_row(t->y, i), cpu_row(t->x, i), t->y.cols);
}

void cpu_gelu_multiply(struct backend *backend, struct tensor y, struct tensor x)
{
    rows_run(backend, (struct rows_task){.y = y, .x = x, .row = gelu_multiply_row});
}

static void silu_row(const struct rows_task *t, int64_t i)
{
    row_silu(cpu_row(t->y, i), cpu_row(t->x, i), t->y.cols);
}

void cpu_silu(struct backend *backend, struct tensor y, struct tensor x)
{
    rows_run(backend, (struct rows_task){.y = y, .x = x, .row = silu_row});
}

static void copy_row(const struct rows_task *t, int64_t i)
{
    memcpy(cpu_row(t->y, i), cpu_row(t->x, i), (size_t)t->y.cols * sizeof(float));
}

void cpu_copy(struct backend *backend, struct tensor y, struct tensor x)
{
    rows_run(backend, (struct rows_task){.y = y, .x = x, .row = copy_row});
}

static void position_bias_row(const struct rows_task *t, int64_t row)
{
    int64_t n = t->x.cols, head = row / n; /* x: buckets, a: table */
    const int32_t *bucket = (const int32_t *)t->x.data + row % n * t->x.stride;
    float *out = cpu_row(t->y, row);

    for (int64_t j = 0; j < n; j++)
        out[j] = cpu_panel(t->a, bucket[j] / PANEL)[head * PANEL + bucket[j] % PANEL];
}

void cpu_position_bias(struct backend *backend, struct tensor y, struct tensor table,
                       struct tensor buckets)
{
    rows_run(backend,
             (struct rows_task){.y = y, .x = buckets, .a = table, .row = position_bias_row});
}

void cpu_euler(struct backend *backend, struct tensor latents, struct tensor velocity, float step)
{
    for (int64_t i = 0; i < latents.rows; i++)
        row_add_scaled(cpu_row(latents, i), cpu_row(velocity, i), latents.cols, step);
}

void cpu_guide(struct backend *backend, struct tensor v, struct tensor negative, float scale)
{
    for (int64_t i = 0; i < v.rows; i++)
        row_guide(cpu_row(v, i), cpu_row(negative, i), v.cols, scale);
}

void cpu_unpatchify(struct backend *backend, struct tensor pixels, struct tensor tokens, int width,
                    float multiply, float shift)
{
    int64_t channels = pixels.cols, across = width / 2;

    for (int64_t p = 0; p < pixels.rows; p++) {
        int64_t y = p / width, x = p % width;
        const float *token = cpu_row(tokens, y / 2 * across + x / 2) + y % 2 * 2 + x % 2;
        float *out = cpu_row(pixels, p);

        for (int64_t c = 0; c < channels; c++)
            out[c] = token[4 * c] * multiply + shift;
    }
}

static void to_rgb_row(const struct rows_task *t, int64_t i)
{
    uint8_t *out = (uint8_t *)t->y.data + i * t->y.stride;

    for (int c = 0; c < 3; c++) {
        float v = cpu_row(t->x, i)[c] * 0.5f + 0.5f;

        v = v > 0 ? v : 0; /* NaN too */
        out[c] = (uint8_t)lrintf(255.0f * (v < 1 ? v : 1));
    }
}

void cpu_to_rgb(struct backend *backend, struct tensor rgb, struct tensor x)
{
    rows_run(backend, (struct rows_task){.y = rgb, .x = x, .row = to_rgb_row});
}
