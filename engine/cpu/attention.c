/* SPDX-License-Identifier: MIT */
/*
 * Attention in blocks of queries and keys with a running maximum and sum (online softmax, arXiv
 * 1805.02867), so that the scores of a block stay in the cache whatever the sequence's length.
 *
 * Scores are computed with keys as rows: each query has a lane, all its steps are the same as the
 * others', and what comes out is laid out as the rows of the product with the values.
 */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "engine/cpu/cpu.h"

#define GROUPS 2 /* of PANEL queries, that share the work of rearranging keys and values */
#define KEYS 512 /* at most: fewer for very wide heads */
/* Keys are copied to rows of this many floats more, so that rows don't contend for cache lines. */
#define KEY_PADDING 16

/* Up to PANEL queries. */
struct group {
    int64_t first, count;
    float *queries; /* [size, PANEL], times the scale */
    float *scores;  /* [keys, PANEL], then weights */
    float maximum[PANEL], sum[PANEL], rescale[PANEL];
};

/* The keys that are present. */
struct keys {
    int64_t first, count, most;
    float *memory; /* [count, size + KEY_PADDING]; then values in panels, [count, PANEL] each */
};

struct head {
    const struct attention *args;
    struct backend *backend;
    int64_t column, size;
};

static struct tensor head_of(const struct head *head, struct tensor t)
{
    return tensor_cols(t, head->column, head->size);
}

/* to [cols, PANEL] = factor · rowsᵀ, zeros behind the last row. */
static void turn(float *to, struct tensor rows, float factor)
{
    for (int64_t i = 0; i < PANEL; i++) {
        const float *row = i < rows.rows ? cpu_row(rows, i) : NULL;

        for (int64_t j = 0; j < rows.cols; j++)
            to[j * PANEL + i] = row != NULL ? factor * row[j] : 0.0f;
    }
}

/* The running maximum of each query over these scores too; what was summed up before counts
 * e^(before − now) of it. */
CPU_CLONES static void raise_maximum(const float *restrict scores, int64_t keys,
                                     float *restrict maximum, float *restrict rescale)
{
    float highest[PANEL];

    memcpy(highest, maximum, sizeof highest);
    for (int64_t l = 0; l < keys; l++, scores += PANEL)
        for (int i = 0; i < PANEL; i++)
            highest[i] = highest[i] > scores[i] ? highest[i] : scores[i];
    for (int i = 0; i < PANEL; i++) {
        rescale[i] = maximum[i] > -INFINITY ? cpu_exp(maximum[i] - highest[i]) : 1.0f;
        maximum[i] = highest[i];
    }
}

/* Scores become weights, e^(score − maximum), 0 for those at −∞, and are added to the sums. */
CPU_CLONES static void exponentials(float *restrict scores, int64_t keys,
                                    const float *restrict maximum, float *restrict sum)
{
    for (int64_t l = 0; l < keys; l++, scores += PANEL)
        for (int i = 0; i < PANEL; i++) {
            float weight = cpu_exp(scores[i] - maximum[i]);

            scores[i] = scores[i] > -INFINITY ? weight : 0.0f;
            sum[i] += scores[i];
        }
}

CPU_CLONES static void row_scale(float *y, int64_t n, float factor)
{
    for (int64_t i = 0; i < n; i++)
        y[i] *= factor;
}

static void add_bias(const struct attention *args, int64_t head, const struct keys *keys,
                     struct group *group)
{
    for (int64_t i = 0; i < group->count; i++) {
        const float *bias =
            cpu_row(args->bias, head * args->q.rows + group->first + i) + keys->first;

        for (int64_t l = 0; l < keys->count; l++)
            group->scores[l * PANEL + i] += bias[l];
    }
}

/* A query sees no key behind itself. */
static void mask(const struct keys *keys, struct group *group)
{
    for (int64_t l = 0; l < keys->count; l++)
        for (int64_t i = 0; i < PANEL && group->first + i < keys->first + l; i++)
            group->scores[l * PANEL + i] = -INFINITY;
}

/* Scores of these keys, and what they weigh. */
static void weigh(const struct head *head, const struct keys *keys, struct group *group)
{
    struct product product = {.c = group->scores,
                              .c_row = PANEL,
                              .a = keys->memory,
                              .a_row = head->size + KEY_PADDING,
                              .a_term = 1,
                              .panel = group->queries,
                              .rows = keys->count,
                              .terms = head->size,
                              .segments = 1,
                              .n = PANEL};

    cpu_product(head->backend, &product);
    if (head->args->bias.data != NULL)
        add_bias(head->args, head->column / head->size, keys, group);
    if (head->args->causal)
        mask(keys, group);
    raise_maximum(group->scores, keys->count, group->maximum, group->rescale);
    for (int i = 0; i < PANEL; i++)
        group->sum[i] *= group->rescale[i];
    exponentials(group->scores, keys->count, group->maximum, group->sum);
}

/* y = y·rescale + weights · values */
static void gather(const struct head *head, const struct keys *keys, const struct group *group)
{
    struct tensor y = tensor_rows(head_of(head, head->args->y), group->first, group->count);
    struct product product = {.c_row = y.stride,
                              .a = group->scores,
                              .a_row = 1,
                              .a_term = PANEL,
                              .rows = group->count,
                              .terms = keys->count,
                              .segments = 1,
                              .accumulate = keys->first > 0};

    for (int64_t i = 0; keys->first > 0 && i < group->count; i++)
        row_scale(cpu_row(y, i), head->size, group->rescale[i]);
    for (int64_t column = 0; column < head->size; column += PANEL) {
        int64_t left = head->size - column;

        product.c = cpu_row(y, 0) + column;
        product.panel = keys->memory + column * keys->count;
        product.n = left < PANEL ? left : PANEL;
        cpu_product(head->backend, &product);
    }
}

static void keys_load(const struct head *head, struct keys *keys)
{
    struct tensor k = tensor_rows(head_of(head, head->args->k), keys->first, keys->count);

    for (int64_t l = 0; l < keys->count; l++)
        memcpy(keys->memory + l * (head->size + KEY_PADDING), cpu_row(k, l),
               (size_t)head->size * sizeof(float));
}

/* The first n of PANEL columns; plain loops, since compilers make string instructions of a memcpy
 * that they know to be short, which take longer to begin than to copy. */
CPU_CLONES static void to_panel(float *restrict to, const float *restrict from, int64_t stride,
                                int64_t rows, int64_t n)
{
    if (n < PANEL)
        memset(to, 0, (size_t)(rows * PANEL) * sizeof *to);
    for (int64_t l = 0; l < rows; l++, to += PANEL, from += stride)
        if (n == PANEL)
            for (int64_t j = 0; j < PANEL; j++)
                to[j] = from[j];
        else
            for (int64_t j = 0; j < n; j++)
                to[j] = from[j];
}

static void values_load(const struct head *head, struct keys *keys)
{
    struct tensor v = tensor_rows(head_of(head, head->args->v), keys->first, keys->count);

    for (int64_t column = 0; column < head->size; column += PANEL) {
        int64_t left = head->size - column;

        to_panel(keys->memory + column * keys->count, cpu_row(v, 0) + column, v.stride, keys->count,
                 left < PANEL ? left : PANEL);
    }
}

static void group_begin(const struct head *head, struct group *group)
{
    turn(group->queries, tensor_rows(head_of(head, head->args->q), group->first, group->count),
         head->args->scale);
    for (int i = 0; i < PANEL; i++) {
        group->maximum[i] = -INFINITY;
        group->sum[i] = 0;
    }
}

static void group_end(const struct head *head, const struct group *group)
{
    struct tensor y = tensor_rows(head_of(head, head->args->y), group->first, group->count);

    for (int64_t i = 0; i < group->count; i++)
        row_scale(cpu_row(y, i), head->size, 1.0f / group->sum[i]);
}

struct attention_task {
    const struct attention *args;
    struct backend *backend;
    int64_t queries; /* in a block: of so many groups */
    int64_t keys;    /* in a block */
    int64_t blocks;  /* of queries */
};

static void attention_chunk(void *argument, int64_t item, int worker)
{
    const struct attention_task *task = argument;
    const struct attention *args = task->args;
    int64_t size = args->q.cols / args->heads, all = args->k.rows;
    int64_t first = item % task->blocks * task->queries, left = args->q.rows - first;
    int64_t last = first + (left < task->queries ? left : task->queries);
    struct head head = {args, task->backend, item / task->blocks * size, size};
    struct keys keys = {.memory = cpu_workspace(task->backend, worker), .most = task->keys};
    struct group groups[GROUPS];
    int count = 0;

    for (; first < last; first += PANEL, count++) {
        groups[count] = (struct group){.first = first, .queries = keys.memory};
        groups[count].count = last - first < PANEL ? last - first : PANEL;
        groups[count].scores = groups[count].queries + size * PANEL;
        keys.memory = groups[count].scores + keys.most * PANEL;
        group_begin(&head, &groups[count]);
    }
    if (args->causal && last < all) /* those behind the last query are seen by none */
        all = last;
    for (; keys.first < all; keys.first += keys.count) {
        keys.count = all - keys.first < keys.most ? all - keys.first : keys.most;
        keys_load(&head, &keys);
        for (int g = 0; g < count; g++)
            weigh(&head, &keys, &groups[g]);
        values_load(&head, &keys);
        for (int g = 0; g < count; g++)
            gather(&head, &keys, &groups[g]);
    }
    for (int g = 0; g < count; g++)
        group_end(&head, &groups[g]);
}

/* As many keys at a time as the workspace has room for. */
static int64_t keys_that_fit(int64_t size, int groups)
{
    int64_t padded = cpu_panels(size) * PANEL + KEY_PADDING;
    int64_t room = (int64_t)CPU_WORKSPACE_FLOATS - groups * size * PANEL;
    int64_t keys = room / (padded + (int64_t)groups * PANEL);

    return keys < KEYS ? keys : KEYS;
}

void cpu_attention(struct backend *backend, const struct attention *args)
{
    struct attention_task task = {.args = args, .backend = backend};
    int64_t size = args->q.cols / args->heads;
    int groups = GROUPS;

    while (groups > 1 && keys_that_fit(size, groups) < PANEL)
        groups--;
    task.keys = keys_that_fit(size, groups);
    assert(task.keys > 0);
    task.queries = (int64_t)groups * PANEL;
    task.blocks = (args->q.rows + task.queries - 1) / task.queries;
    cpu_run(backend, task.blocks * args->heads, attention_chunk, &task);
}
