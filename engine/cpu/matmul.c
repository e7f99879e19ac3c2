/* SPDX-License-Identifier: MIT */
#include <string.h>

#include "engine/cpu/cpu.h"

/* Of x, what is multiplied at a time, at most: it stays in a core's second-level cache while panels
 * of the weight pass, each of which is read once for so many rows. */
#define ROW_BLOCK 384
#define TERM_BLOCK 384
/* Rows that contend for the same lines of the first-level cache, being at multiples of a page, are
 * copied to this distance. */
#define PAGE_FLOATS 1024
#define BLOCK_STRIDE (TERM_BLOCK + 16)

struct linear_task {
    const struct linear *args;
    struct backend *backend;
    int64_t row_blocks, groups; /* of rows, of panels */
};

/* Some terms of the given rows and panels of y. */
static void multiply(const struct linear_task *task, struct cpu_range rows, struct cpu_range panels,
                     struct cpu_range terms, float *block)
{
    const struct linear *args = task->args;
    bool begin = terms.first == 0, end = terms.last == args->x.cols;
    struct product product = {.a = cpu_row(args->x, rows.first) + terms.first,
                              .a_row = args->x.stride,
                              .a_term = 1,
                              .c_row = args->y.stride,
                              .rows = rows.last - rows.first,
                              .terms = terms.last - terms.first,
                              .segments = 1,
                              .accumulate = !begin};

    if (args->x.stride % PAGE_FLOATS == 0 && panels.last - panels.first > 1) {
        for (int64_t i = 0; i < product.rows; i++)
            memcpy(block + i * BLOCK_STRIDE, product.a + i * product.a_row,
                   (size_t)product.terms * sizeof(float));
        product.a = block;
        product.a_row = BLOCK_STRIDE;
    }
    for (int64_t panel = panels.first; panel < panels.last; panel++) {
        int64_t column = panel * PANEL, left = args->y.cols - column;

        product.c = cpu_row(args->y, rows.first) + column;
        product.panel = cpu_panel(args->weight, panel) + terms.first * PANEL;
        product.n = left < PANEL ? left : PANEL;
        if (begin && args->bias.data != NULL)
            product.bias = (const float *)args->bias.data + column;
        cpu_product(task->backend, &product);
        if (end)
            cpu_activate(&product, args->activation);
    }
}

static void linear_chunk(void *argument, int64_t chunk, int worker)
{
    const struct linear_task *task = argument;
    const struct linear *args = task->args;
    int64_t k = args->x.cols, stretches = (k + TERM_BLOCK - 1) / TERM_BLOCK;
    struct cpu_range rows = cpu_share(args->y.rows, chunk / task->groups, task->row_blocks);
    struct cpu_range panels =
        cpu_share(cpu_panels(args->y.cols), chunk % task->groups, task->groups);

    for (int64_t i = 0; i < stretches; i++)
        multiply(task, rows, panels, cpu_share(k, i, stretches),
                 cpu_workspace(task->backend, worker));
}

/* Multiplications that are worth a thread's while, and rows that are worth reading a panel for. */
#define PART_PRODUCTS (1 << 20)
#define ROWS_WORTH 24

void cpu_linear(struct backend *backend, const struct linear *args)
{
    int64_t m = args->y.rows, panels = cpu_panels(args->y.cols);
    int64_t worth = m * args->y.cols * args->x.cols / PART_PRODUCTS;
    int64_t parts = cpu_parts(backend, worth, INT64_MAX);
    struct linear_task task = {.args = args, .backend = backend};
    int64_t rows = m / ROWS_WORTH > 1 ? m / ROWS_WORTH : 1; /* blocks of them, at most */

    task.groups = parts < panels ? parts : panels;
    task.row_blocks = (parts + task.groups - 1) / task.groups;
    task.row_blocks = task.row_blocks < rows ? task.row_blocks : rows;
    if (task.row_blocks * ROW_BLOCK < m)
        task.row_blocks = (m + ROW_BLOCK - 1) / ROW_BLOCK;
    cpu_run(backend, task.row_blocks * task.groups, linear_chunk, &task);
}
