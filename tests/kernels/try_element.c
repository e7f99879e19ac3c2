/* SPDX-License-Identifier: MIT */
/* Element by element, the ends of the pipeline, and moving data. */
#include <stdlib.h>
#include <string.h>

#include "tests/kernels/cases.h"

struct pair {
    struct operand *y, *x;
    struct grid y_values, x_values;
};

/* Two matrices of one shape and random values; y is what the operation changes. */
static struct pair pair_create(struct rig *rig, enum dtype y, enum dtype x, double spread)
{
    int64_t rows = rig_size(rig, 140), cols = rig_size(rig, rig_chance(rig, 20) ? 3100 : 300);
    struct pair pair = {.y = rig_input(rig, y, rows, cols, 0, spread),
                        .x = rig_input(rig, x, rows, cols, 0, spread)};

    rig_describe(rig, " [%lld,%lld]", (long long)rows, (long long)cols);
    pair.y_values = rig_values(pair.y);
    pair.x_values = rig_values(pair.x);
    return pair;
}

static void pair_check(struct rig *rig, struct pair *pair, struct reference wanted)
{
    rig_want(pair->y, wanted);
    rig_check(rig);
    grid_free(&pair->y_values);
    grid_free(&pair->x_values);
}

void try_add(struct rig *rig)
{
    enum dtype dtype = rig->backend->activation;
    struct pair p = pair_create(rig, dtype, dtype, 3);

    rig->backend->ops->add(rig->backend, p.y->view, p.x->view);
    pair_check(rig, &p, reference_add(p.y_values, p.x_values, 1));
}

void try_gelu_multiply(struct rig *rig)
{
    enum dtype dtype = rig->backend->activation;
    struct pair p = pair_create(rig, dtype, dtype, rig_chance(rig, 30) ? 40 : 4);

    rig->backend->ops->gelu_multiply(rig->backend, p.y->view, p.x->view);
    pair_check(rig, &p, reference_gelu_multiply(p.y_values, p.x_values));
}

void try_silu(struct rig *rig)
{
    enum dtype dtype = rig->backend->activation;
    struct pair p = pair_create(rig, dtype, dtype, rig_chance(rig, 30) ? 100 : 4);

    if (rig_chance(rig, 50)) {
        rig_describe(rig, ", in place");
        rig->backend->ops->silu(rig->backend, p.y->view, p.y->view);
        pair_check(rig, &p, reference_silu(p.y_values));
        return;
    }
    rig->backend->ops->silu(rig->backend, p.y->view, p.x->view);
    pair_check(rig, &p, reference_silu(p.x_values));
}

void try_copy(struct rig *rig)
{
    enum dtype types[] = {DTYPE_F32, rig->backend->activation};
    struct pair p =
        pair_create(rig, types[rig_range(rig, 0, 1)], types[rig_range(rig, 0, 1)], 1000);

    rig->backend->ops->copy(rig->backend, p.y->view, p.x->view);
    pair_check(rig, &p, reference_copy(p.x_values));
}

void try_euler(struct rig *rig)
{
    struct pair p = pair_create(rig, DTYPE_F32, DTYPE_F32, 3);
    float step = -(float)rig_range(rig, 1, 100) / 128.0f;

    rig->backend->ops->euler(rig->backend, p.y->view, p.x->view, step);
    pair_check(rig, &p, reference_add(p.y_values, p.x_values, (double)step));
}

void try_guide(struct rig *rig)
{
    struct pair p = pair_create(rig, DTYPE_F32, DTYPE_F32, 3);
    float scale = (float)rig_range(rig, 0, 100) / 8.0f;

    rig->backend->ops->guide(rig->backend, p.y->view, p.x->view, scale);
    pair_check(rig, &p, reference_guide(p.y_values, p.x_values, (double)scale));
}

void try_position_bias(struct rig *rig)
{
    int64_t n = rig_size(rig, 70), heads = rig_range(rig, 1, 9), rows = rig_size(rig, 33);
    struct operand *table = rig_weight(rig, rows, heads, 5);
    struct operand *buckets = rig_input(rig, DTYPE_I32, n, n, 0, 0);
    struct operand *y = rig_output(rig, DTYPE_F32, heads * n, n);
    struct grid numbers = grid_create(n, n), values = rig_values(table);

    rig_describe(rig, " %lld tokens, %lld heads, %lld buckets", (long long)n, (long long)heads,
                 (long long)rows);
    for (int64_t i = 0; i < n * n; i++)
        numbers.at[i] = (double)rig_range(rig, 0, rows - 1);
    rig_set(rig, buckets, numbers.at);
    rig->backend->ops->position_bias(rig->backend, y->view, table->view, buckets->view);
    rig_want(y, reference_position_bias(values, numbers));
    rig_check(rig);
    grid_free(&numbers);
    grid_free(&values);
}

void try_unpatchify(struct rig *rig)
{
    int64_t height = 2 * rig_size(rig, 17), width = 2 * rig_size(rig, 17);
    int64_t channels = rig_size(rig, 17);
    struct operand *tokens = rig_input(rig, DTYPE_F32, height * width / 4, 4 * channels, 0, 3);
    struct operand *pixels = rig_output(rig, rig->backend->activation, height * width, channels);
    struct grid values = rig_values(tokens);

    rig_describe(rig, " %lld × %lld, %lld channels", (long long)height, (long long)width,
                 (long long)channels);
    rig->backend->ops->unpatchify(rig->backend, pixels->view, tokens->view, (int)width, 2.75f,
                                  0.125f);
    rig_want(pixels, reference_unpatchify(values, (int)width, 2.75, 0.125));
    rig_check(rig);
    grid_free(&values);
}

void try_to_rgb(struct rig *rig)
{
    int64_t rows = rig_size(rig, 2100);
    /* Within the range, beyond it, and far beyond. */
    double spread = rig_chance(rig, 60) ? 1.2 : rig_chance(rig, 50) ? 30 : 1e30;
    struct operand *x = rig_input(rig, rig->backend->activation, rows, 3, 0, spread);
    struct operand *rgb = rig_output(rig, DTYPE_U8, rows, 3);
    struct grid values = rig_values(x);

    rig_describe(rig, " %lld pixels within ±%g", (long long)rows, spread);
    rig->backend->ops->to_rgb(rig->backend, rgb->view, x->view);
    rig_want(rgb, reference_to_rgb(values));
    rig_check(rig);
    grid_free(&values);
}

/* Up and down again gives the same values; the host's memory may be overwritten at once. */
void try_transfer(struct rig *rig)
{
    enum dtype types[] = {DTYPE_F32, DTYPE_I32, DTYPE_U8, rig->backend->activation};
    enum dtype dtype = types[rig_range(rig, 0, 3)];
    struct operand *x = rig_input(rig, dtype, rig_size(rig, 140), rig_size(rig, 1100), 100, 100);
    size_t bytes = (size_t)(x->whole.rows * x->whole.cols) * (dtype == DTYPE_U8 ? 1 : 4);
    void *kept = malloc(bytes);

    if (kept == NULL)
        abort();
    rig_describe(rig, " type %d, [%lld,%lld]", dtype, (long long)x->whole.rows,
                 (long long)x->whole.cols);
    memcpy(kept, x->host, bytes);
    rig->backend->ops->upload(rig->backend, x->whole, kept);
    memset(kept, 0x5a, bytes);
    free(kept);
    rig_check(rig);
}
