/* SPDX-License-Identifier: MIT */
/* Normalisations. Values often lie far from zero, where a variance by way of Σx² would fail. */
#include <math.h>

#include "tests/kernels/cases.h"

/* The centre of the values; the spread is 1. */
static double choose_centre(struct rig *rig)
{
    static const double centres[] = {0, 0, 0.5, -3, 60};

    return centres[rig_range(rig, 0, 4)];
}

static float choose_eps(struct rig *rig)
{
    return rig_chance(rig, 50) ? 1e-6f : 1e-5f;
}

/* The operand that the result goes to: x itself now and then. */
static struct operand *choose_target(struct rig *rig, struct operand *x)
{
    if (!rig_chance(rig, 30))
        return rig_output(rig, x->view.dtype, x->view.rows, x->view.cols);
    rig_describe(rig, ", in place");
    return x;
}

static struct operand *choose_rows(struct rig *rig)
{
    bool many = rig_chance(rig, 10); /* so that a block of threads may take several */
    int64_t rows = many ? rig_range(rig, 1020, 1040) : rig_size(rig, 70);
    int64_t cols = rig_size(rig, !many && rig_chance(rig, 30) ? 3100 : 300);
    double centre = choose_centre(rig);

    rig_describe(rig, " [%lld,%lld] around %g", (long long)rows, (long long)cols, centre);
    return rig_input(rig, rig->backend->activation, rows, cols, centre, 1);
}

static void want_norm(struct operand *y, const struct norm_case *wanted)
{
    struct norm_case done = *wanted;

    rig_want(y, reference_norm(wanted));
    grid_free(&done.x);
    grid_free(&done.weight);
    grid_free(&done.bias);
}

void try_layer_norm(struct rig *rig)
{
    struct operand *x = choose_rows(rig), *weight = rig_vector(rig, x->view.cols, 1, 1);
    struct operand *bias = rig_vector(rig, x->view.cols, 0, 1), *y = choose_target(rig, x);
    float eps = choose_eps(rig);
    struct norm_case wanted = {rig_values(x), rig_values(weight), rig_values(bias), (double)eps,
                               true};

    rig->backend->ops->layer_norm(rig->backend, y->view, x->view, weight->view, bias->view, eps);
    want_norm(y, &wanted);
    rig_check(rig);
}

void try_modulated_norm(struct rig *rig)
{
    struct operand *x = choose_rows(rig), *scale = rig_vector(rig, x->view.cols, 0, 1);
    struct operand *shift = rig_vector(rig, x->view.cols, 0, 1), *y = choose_target(rig, x);
    float eps = choose_eps(rig);
    struct norm_case wanted = {rig_values(x), rig_values(scale), rig_values(shift), (double)eps,
                               true};

    for (int64_t j = 0; j < wanted.weight.cols; j++)
        wanted.weight.at[j] += 1;
    rig->backend->ops->modulated_norm(rig->backend, y->view, x->view, shift->view, scale->view,
                                      eps);
    want_norm(y, &wanted);
    rig_check(rig);
}

void try_rms_norm(struct rig *rig)
{
    struct operand *x = choose_rows(rig), *weight = rig_vector(rig, x->view.cols, 1, 1);
    struct operand *y = choose_target(rig, x);
    float eps = choose_eps(rig);
    struct norm_case wanted = {
        .x = rig_values(x), .weight = rig_values(weight), .eps = (double)eps};

    rig->backend->ops->rms_norm(rig->backend, y->view, x->view, weight->view, eps);
    want_norm(y, &wanted);
    rig_check(rig);
}

/* Rows of the first kind: often all. */
static int64_t choose_split(struct rig *rig, int64_t rows)
{
    int64_t split = rig_chance(rig, 40) ? rows : rig_range(rig, 0, rows);

    rig_describe(rig, ", %lld of the first kind", (long long)split);
    return split;
}

void try_head_norm(struct rig *rig)
{
    int64_t rows = rig_size(rig, 140), size = 2 * rig_size(rig, 66);
    int64_t heads = rig_range(rig, 1, rig_chance(rig, 30) ? 60 : 5);
    double centre = choose_centre(rig);
    struct head_norm args = {.eps = 1e-6f};
    struct head_case wanted[2] = {{.eps = (double)args.eps}, {.eps = (double)args.eps}};
    struct operand *x[2], *rope, *weight;

    rig_describe(rig, " %lld rows, %lld heads of %lld", (long long)rows, (long long)heads,
                 (long long)size);
    args.split = wanted[0].split = wanted[1].split = choose_split(rig, rows);
    /* Any factors: a wrong pair, sign or order shows in all of them. */
    rope = rig_input(rig, DTYPE_F32, rows, size, 0, 1);
    args.rope = rope->view;
    for (int i = 0; i < 2; i++) { /* q, k */
        x[i] = rig_input(rig, rig->backend->activation, rows, heads * size, centre, 1);
        *(i == 0 ? &args.q : &args.k) = x[i]->view;
        wanted[i].x = rig_values(x[i]);
        wanted[i].rope = rig_values(rope);
        for (int kind = 0; kind < 2; kind++) {
            weight = rig_vector(rig, size, 1, 1);
            *(i == 0 ? &args.weights[kind].q : &args.weights[kind].k) = weight->view;
            wanted[i].weight[kind] = rig_values(weight);
        }
    }
    rig->backend->ops->head_norm(rig->backend, &args);
    for (int i = 0; i < 2; i++)
        rig_want(x[i], reference_head_norm(&wanted[i]));
    rig_check(rig);
    for (int i = 0; i < 2; i++) {
        grid_free(&wanted[i].x);
        grid_free(&wanted[i].rope);
        grid_free(&wanted[i].weight[0]);
        grid_free(&wanted[i].weight[1]);
    }
}

void try_gated_norm(struct rig *rig)
{
    struct operand *x = choose_rows(rig);
    struct operand *y = rig_input(rig, x->view.dtype, x->view.rows, x->view.cols, 0, 2);
    struct gated_norm args = {.x = x->view, .y = y->view, .eps = choose_eps(rig)};
    struct gated_case wanted = {.x = rig_values(x),
                                .y = rig_values(y),
                                .eps = (double)args.eps,
                                .roundoff = rig_roundoff(x->view.dtype)};
    struct reference x_wanted, y_wanted;

    args.split = wanted.split = choose_split(rig, x->view.rows);
    for (int kind = 0; kind < 2; kind++) {
        struct operand *gate = rig_vector(rig, x->view.cols, 0, 2);
        struct operand *shift = rig_vector(rig, x->view.cols, 0, 1);
        struct operand *scale = rig_vector(rig, x->view.cols, 0, 1);

        args.vectors[kind] = (struct gated_vectors){gate->view, shift->view, scale->view};
        wanted.gate[kind] = rig_values(gate);
        wanted.shift[kind] = rig_values(shift);
        wanted.scale[kind] = rig_values(scale);
    }
    rig->backend->ops->gated_norm(rig->backend, &args);
    reference_gated_norm(&wanted, &x_wanted, &y_wanted);
    rig_want(x, x_wanted);
    rig_want(y, y_wanted);
    rig_check(rig);
    grid_free(&wanted.x);
    grid_free(&wanted.y);
    for (int kind = 0; kind < 2; kind++) {
        grid_free(&wanted.gate[kind]);
        grid_free(&wanted.shift[kind]);
        grid_free(&wanted.scale[kind]);
    }
}

/* All rows in one part, or in several, of which each begins with the same origin. */
static void sum_parts(struct rig *rig, struct tensor sums, struct tensor x)
{
    int parts = (int)(sums.rows - 1) / 2;

    for (int part = 0; part < parts; part++) {
        int64_t first = x.rows * part / parts, end = x.rows * (part + 1) / parts;

        rig->backend->ops->channel_sums(rig->backend, sums, tensor_rows(x, first, end - first),
                                        part);
    }
}

void try_group_norm(struct rig *rig)
{
    int64_t each = rig_size(rig, 17), groups = rig_size(rig, 34), rows = rig_size(rig, 1100);
    int64_t parts = rig_chance(rig, 50) ? 1 : rig_range(rig, 1, rows < 9 ? rows : 9);
    double centre = choose_centre(rig);
    struct operand *x = rig_input(rig, rig->backend->activation, rows, groups * each, centre, 1);
    struct operand *weight = rig_vector(rig, groups * each, 1, 1);
    struct operand *bias = rig_vector(rig, groups * each, 0, 1);
    struct operand *affine = rig_output(rig, DTYPE_F32, 2, groups * each);
    struct tensor sums = rig_work(rig, DTYPE_F32, 1 + 2 * parts, groups * each);
    struct group_norm args = {affine->view, sums,        weight->view,   bias->view,
                              rows,         (int)groups, choose_eps(rig)};
    struct norm_case wanted = {rig_values(x), rig_values(weight), rig_values(bias),
                               (double)args.eps, true};

    rig_describe(rig, " %lld rows in %lld parts, %lld groups of %lld around %g", (long long)rows,
                 (long long)parts, (long long)groups, (long long)each, centre);
    sum_parts(rig, sums, x->view);
    rig->backend->ops->group_norm(rig->backend, &args);
    rig_want(affine, reference_group_norm(&wanted, args.groups));
    rig_check(rig);
    grid_free(&wanted.x);
    grid_free(&wanted.weight);
    grid_free(&wanted.bias);
}

void try_affine(struct rig *rig)
{
    struct operand *x = choose_rows(rig);
    struct operand *affine = rig_input(rig, DTYPE_F32, 2, x->view.cols, 0, 2);
    struct operand *y = choose_target(rig, x);
    struct grid values[2] = {rig_values(x), rig_values(affine)};

    rig->backend->ops->affine(rig->backend, y->view, x->view, affine->view);
    rig_want(y, reference_affine(values[0], values[1]));
    rig_check(rig);
    grid_free(&values[0]);
    grid_free(&values[1]);
}
