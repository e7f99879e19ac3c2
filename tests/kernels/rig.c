/* SPDX-License-Identifier: MIT */
#include "tests/kernels/rig.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/cpu/backend.h"
#include "engine/module.h"

/* Around every view; a small integer, so that all types hold it exactly. */
enum { GUARD = 97, MARGIN_MAX = 5 };

/* What matrix units want rows and sizes to be multiples of. */
enum { UNIT = 8 };

#define ARENA_BUDGET ((uint64_t)3 << 30)

const struct tensor rig_absent;

static void *checked(void *pointer)
{
    if (pointer == NULL)
        abort();
    return pointer;
}

static uintptr_t device_alloc(struct rig *rig, uint64_t bytes)
{
    struct arena_request request = {.bytes = bytes};
    uintptr_t address;

    if (arena_alloc(rig->arena, &request, &address, NULL) != 0) {
        fprintf(stderr, "%s: no device memory\n", rig->label);
        exit(EXIT_FAILURE);
    }
    return address;
}

int rig_open(struct rig *rig, const char *name, int threads, const char *directory,
             struct error *err)
{
    struct arena_options options = {.budget_bytes = ARENA_BUDGET};
    int result;

    *rig = (struct rig){0};
    snprintf(rig->label, sizeof rig->label, "%s", name);
    if (strcmp(name, "cpu") == 0)
        result = cpu_backend_create(&rig->backend, threads, 0, NULL, err);
    else if (strncmp(name, "cpu:", 4) == 0)
        result = cpu_backend_create(&rig->backend, threads, 0, name + 4, err);
    else
        result = module_open(&rig->backend, directory, name, err);
    if (result != 0)
        return result;
    result = arena_create(&rig->arena, rig->backend->pages, &options);
    if (result != 0) {
        rig_close(rig);
        return error_set(err, -result, "arena: %s", strerror(-result));
    }
    if (rig->backend->workspace_bytes > 0)
        rig->workspace = device_alloc(rig, rig->backend->workspace_bytes);
    rig->backend->workspace = (void *)rig->workspace;
    return 0;
}

static void drop_operands(struct rig *rig)
{
    for (int i = 0; i < rig->count; i++) {
        struct operand *operand = &rig->operands[i];

        if (operand->edge.source != NULL)
            edge_destroy(&operand->edge);
        else
            arena_free(rig->arena, (uintptr_t)operand->whole.data, 0);
        free(operand->host);
        reference_free(&operand->wanted);
        grid_free(&operand->values);
    }
    rig->count = 0;
}

void rig_close(struct rig *rig)
{
    drop_operands(rig);
    arena_destroy(rig->arena);
    if (rig->backend != NULL)
        rig->backend->ops->destroy(rig->backend);
    *rig = (struct rig){0};
}

/* splitmix64: Steele, Lea, Flood 2014. */
uint64_t rig_random(struct rig *rig)
{
    uint64_t z = rig->random += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

int64_t rig_range(struct rig *rig, int64_t first, int64_t last)
{
    return first + (int64_t)(rig_random(rig) % (uint64_t)(last - first + 1));
}

bool rig_chance(struct rig *rig, int percent)
{
    return rig_range(rig, 1, 100) <= percent;
}

int64_t rig_size(struct rig *rig, int64_t most)
{
    int64_t size = 1;

    if (rig_chance(rig, 30)) {
        size = rig_range(rig, 1, most);
    } else {
        while (2 * size <= most && !rig_chance(rig, 18))
            size *= 2;
        size += rig_range(rig, -1, 1);
    }
    if (rig->aligned && size > UNIT / 2)
        size = (size + UNIT / 2) / UNIT * UNIT;
    return size < 1 ? 1 : size > most ? most : size;
}

void rig_begin(struct rig *rig, const char *operation, uint64_t number)
{
    drop_operands(rig);
    rig->full_rows = false;
    rig->random = rig->seed;
    rig->random = rig_random(rig) ^ number;
    rig->aligned = rig_chance(rig, 40);
    snprintf(rig->label, sizeof rig->label, "%s", operation);
}

void rig_describe(struct rig *rig, const char *format, ...)
{
    size_t length = strlen(rig->label);
    va_list args;

    va_start(args, format);
    vsnprintf(rig->label + length, sizeof rig->label - length, format, args);
    va_end(args);
}

void rig_expect(struct rig *rig, bool ok, const char *format, ...)
{
    va_list args;

    rig->checks++;
    if (ok)
        return;
    rig->failures++;
    fprintf(stderr, "%s: ", rig->label);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
}

double rig_roundoff(enum dtype dtype)
{
    return dtype == DTYPE_BF16 ? 0x1p-8 : dtype == DTYPE_F16 ? 0x1p-11 : 0x1p-24;
}

/* To the nearest value with the bits of mantissa that the type has; the rig's values are within
 * the range of normal numbers of all types. */
static double rounded(double value, enum dtype dtype)
{
    int exponent;
    double fraction = frexp(value, &exponent), scale = 0.5 / rig_roundoff(dtype);

    return ldexp(nearbyint(fraction * 2 * scale), exponent) / (2 * scale);
}

static size_t host_bytes(enum dtype dtype)
{
    return dtype == DTYPE_U8 ? 1 : 4;
}

static double element(const struct operand *operand, const void *from, int64_t index)
{
    if (operand->whole.dtype == DTYPE_I32)
        return ((const int32_t *)from)[index];
    if (operand->whole.dtype == DTYPE_U8)
        return ((const uint8_t *)from)[index];
    return (double)((const float *)from)[index];
}

static void element_set(struct operand *operand, int64_t index, double value)
{
    if (operand->whole.dtype == DTYPE_I32)
        ((int32_t *)operand->host)[index] = (int32_t)value;
    else if (operand->whole.dtype == DTYPE_U8)
        ((uint8_t *)operand->host)[index] = (uint8_t)value;
    else
        ((float *)operand->host)[index] = (float)rounded(value, operand->whole.dtype);
}

static int64_t index_of(const struct operand *operand, int64_t i, int64_t j)
{
    return (operand->row + i) * operand->whole.cols + operand->col + j;
}

static void upload(struct rig *rig, const struct operand *operand)
{
    rig->backend->ops->upload(rig->backend, operand->whole, operand->host);
}

/* Memory of the arena, or such at whose ends the device faults. */
static void *operand_alloc(struct rig *rig, struct operand *operand, bool at_edge)
{
    uint64_t bytes = tensor_bytes(&operand->whole), alignment = dtype_bytes(operand->whole.dtype);
    uintptr_t address = 0;

    if (at_edge)
        address = edge_create(&operand->edge, rig->backend->pages, bytes,
                              rig->aligned ? UNIT * alignment : alignment, rig_chance(rig, 50));
    return (void *)(address != 0 ? address : device_alloc(rig, bytes));
}

/* An operand with guards around it, or at an edge; nothing is uploaded yet. */
static struct operand *operand_add(struct rig *rig, enum dtype dtype, int64_t rows, int64_t cols,
                                   int margin_rows)
{
    struct operand *operand = &rig->operands[rig->count++];
    bool at_edge = !rig->tight && rig_chance(rig, 25), guarded = !rig->tight && !at_edge;
    bool wide = guarded && !rig->full_rows && rig_chance(rig, 60);
    int64_t unit = rig->aligned ? UNIT : 1;
    int64_t left = wide ? rig_range(rig, 0, MARGIN_MAX) * unit : 0;
    int64_t right = wide ? rig_range(rig, 0, MARGIN_MAX) * unit : 0;
    int64_t above = guarded ? rig_range(rig, 0, margin_rows) : 0;
    int64_t below = guarded ? rig_range(rig, 0, margin_rows) : 0;
    int64_t all;

    if (rig->count > RIG_OPERANDS)
        abort();
    *operand = (struct operand){.row = above, .col = left};
    operand->whole = tensor_of(NULL, dtype, above + rows + below, left + cols + right);
    operand->whole.data = operand_alloc(rig, operand, at_edge);
    operand->view = tensor_cols(tensor_rows(operand->whole, above, rows), left, cols);
    all = operand->whole.rows * operand->whole.cols;
    operand->host = checked(malloc((size_t)all * host_bytes(dtype)));
    for (int64_t i = 0; !rig->tight && i < all; i++)
        element_set(operand, i, GUARD);
    return operand;
}

/* How many of so many values differ: those of operands that are only timed repeat. */
static int64_t different(const struct rig *rig, int64_t count)
{
    const int64_t most = 1 << 16;

    return rig->tight && count > most ? most : count;
}

/* Fills `all` bytes with the first so many. */
static void repeat(void *memory, size_t first, size_t all)
{
    for (size_t at = first; at < all; at += first)
        memcpy((char *)memory + at, memory, at + first < all ? first : all - at);
}

static double uniform(struct rig *rig, double centre, double spread)
{
    return centre + spread * ((double)(rig_random(rig) >> 11) * 0x1p-52 - 1);
}

struct operand *rig_input(struct rig *rig, enum dtype dtype, int64_t rows, int64_t cols,
                          double centre, double spread)
{
    struct operand *operand = operand_add(rig, dtype, rows, cols, 2);
    int64_t count = different(rig, rows * cols);

    for (int64_t i = 0; i < count; i++)
        element_set(operand, index_of(operand, i / cols, i % cols), uniform(rig, centre, spread));
    if (count < rows * cols)
        repeat(operand->host, (size_t)count * host_bytes(dtype),
               (size_t)(rows * cols) * host_bytes(dtype));
    upload(rig, operand);
    return operand;
}

struct operand *rig_vector(struct rig *rig, int64_t n, double centre, double spread)
{
    return rig_input(rig, DTYPE_F32, 1, n, centre, spread);
}

struct operand *rig_bias(struct rig *rig, int64_t n)
{
    return rig_input(rig, rig->backend->bias, 1, n, 0, 1);
}

struct operand *rig_output(struct rig *rig, enum dtype dtype, int64_t rows, int64_t cols)
{
    struct operand *operand = operand_add(rig, dtype, rows, cols, 2);

    for (int64_t i = 0; dtype != DTYPE_U8 && i < rows; i++)
        for (int64_t j = 0; j < cols; j++)
            ((float *)operand->host)[index_of(operand, i, j)] = NAN;
    upload(rig, operand);
    operand->written = true;
    return operand;
}

struct tensor rig_work(struct rig *rig, enum dtype dtype, int64_t rows, int64_t cols)
{
    struct operand *operand = rig_output(rig, dtype, rows, cols);

    operand->work = true;
    return operand->view;
}

struct operand *rig_weight_memory(struct rig *rig, int64_t rows, int64_t cols)
{
    uint64_t bytes = backend_weight_bytes(rig->backend, WEIGHT_MATRIX, rows, cols);
    int64_t whole = (int64_t)(bytes / dtype_bytes(rig->backend->weight)) / cols;
    bool full = rig->full_rows;
    struct operand *operand;

    rig->full_rows = true;
    operand = rig_output(rig, rig->backend->weight, whole, cols);
    rig->full_rows = full;
    return operand;
}

/* Rounds values as the weight's type does and copies them as parts of it. */
static void copy_parts(struct rig *rig, const struct operand *operand, float *rows)
{
    enum { PARTS = 3 };
    int64_t count = operand->values.rows, cols = operand->values.cols, first = 0;
    struct weight_copy copies[PARTS];
    struct error err = {0};

    for (int64_t i = 0; i < count * cols; i++)
        rows[i] = (float)operand->values.at[i];
    for (int i = 0; i < PARTS; i++) {
        int64_t last = i == PARTS - 1 ? count : rig_range(rig, first, count);

        copies[i] = (struct weight_copy){.target = operand->view.data,
                                         .first = first,
                                         .source = rows + first * cols,
                                         .source_dtype = DTYPE_F32,
                                         .layout = WEIGHT_MATRIX,
                                         .rows = last - first,
                                         .cols = cols,
                                         .name = "of the rig",
                                         .path = "none"};
        first = last;
    }
    rig->backend->ops->copy_weights(rig->backend, copies, PARTS);
    rig->backend->ops->copy_wait(rig->backend, rig->backend->ops->copy_ticket(rig->backend));
    rig_expect(rig, rig->backend->ops->sync(rig->backend, &err) == 0, "%s", err.text);
}

struct operand *rig_weight(struct rig *rig, int64_t rows, int64_t cols, double spread)
{
    struct operand *operand = rig_weight_memory(rig, rows, cols);
    float *source = checked(malloc((size_t)(rows * cols) * sizeof *source + 1));
    int64_t count = different(rig, rows * cols);

    operand->values = grid_create(rows, cols);
    for (int64_t i = 0; i < count; i++)
        operand->values.at[i] = rounded(uniform(rig, 0, spread), rig->backend->weight);
    if (count < rows * cols)
        repeat(operand->values.at, (size_t)count * sizeof(double),
               (size_t)(rows * cols) * sizeof(double));
    copy_parts(rig, operand, source);
    rig->backend->ops->download(rig->backend, operand->host, operand->whole);
    operand->view.rows = rows;
    operand->written = false;
    free(source);
    return operand;
}

static struct grid grid_copy(struct grid grid)
{
    struct grid copy = grid_create(grid.rows, grid.cols);

    memcpy(copy.at, grid.at, (size_t)(grid.rows * grid.cols) * sizeof *grid.at);
    return copy;
}

struct grid rig_values(const struct operand *operand)
{
    struct grid grid;

    if (operand->values.at != NULL)
        return grid_copy(operand->values);
    grid = grid_create(operand->view.rows, operand->view.cols);
    for (int64_t i = 0; i < grid.rows; i++)
        for (int64_t j = 0; j < grid.cols; j++)
            grid.at[i * grid.cols + j] = element(operand, operand->host, index_of(operand, i, j));
    return grid;
}

void rig_set(struct rig *rig, struct operand *operand, const double *values)
{
    for (int64_t i = 0; i < operand->view.rows; i++)
        for (int64_t j = 0; j < operand->view.cols; j++)
            element_set(operand, index_of(operand, i, j), *values++);
    upload(rig, operand);
}

void rig_want(struct operand *operand, struct reference wanted)
{
    operand->written = true;
    operand->wanted = wanted;
}

/* The reference's bound is that of computing in fp32; storing the result rounds once more. */
static void check_view(struct rig *rig, const struct operand *operand, const void *now)
{
    const struct reference *wanted = &operand->wanted;
    double roundoff = operand->whole.dtype == DTYPE_U8 ? 0 : rig_roundoff(operand->whole.dtype),
           worst = 0;
    int64_t at_row = 0, at_col = 0;

    for (int64_t i = 0; i < operand->view.rows; i++)
        for (int64_t j = 0; j < operand->view.cols; j++) {
            int64_t place = i * operand->view.cols + j;
            double value = wanted->value.at[place];
            double tolerance = wanted->error.at[place] + roundoff * fabs(value);
            double off = fabs(element(operand, now, index_of(operand, i, j)) - value);
            double ratio = off == 0 ? 0 : isnan(off) ? INFINITY : off / tolerance;

            if (ratio > worst) {
                worst = ratio;
                at_row = i;
                at_col = j;
            }
        }
    if (worst > rig->worst)
        rig->worst = worst;
    rig_expect(rig, worst <= 1, "[%lld, %lld] is %.9g, the reference is %.9g ± %.2g",
               (long long)at_row, (long long)at_col,
               element(operand, now, index_of(operand, at_row, at_col)),
               wanted->value.at[at_row * operand->view.cols + at_col],
               wanted->error.at[at_row * operand->view.cols + at_col]);
}

static bool in_view(const struct operand *operand, int64_t row, int64_t col)
{
    return row >= operand->row && row < operand->row + operand->view.rows && col >= operand->col &&
           col < operand->col + operand->view.cols;
}

static void check_surroundings(struct rig *rig, const struct operand *operand, const void *now)
{
    for (int64_t i = 0; i < operand->whole.rows; i++)
        for (int64_t j = 0; j < operand->whole.cols; j++) {
            int64_t place = i * operand->whole.cols + j;

            if (operand->written && in_view(operand, i, j))
                continue;
            if (element(operand, now, place) == element(operand, operand->host, place))
                continue;
            rig_expect(rig, false, "operand %d [%lld, %lld] of its parent is %.9g and was %.9g",
                       (int)(operand - rig->operands), (long long)i, (long long)j,
                       element(operand, now, place), element(operand, operand->host, place));
            return;
        }
    rig_expect(rig, true, " ");
}

void rig_check(struct rig *rig)
{
    struct error err = {0};

    for (int i = 0; i < rig->count; i++) {
        const struct operand *operand = &rig->operands[i];
        size_t count = (size_t)(operand->whole.rows * operand->whole.cols);
        void *now = checked(malloc(count * host_bytes(operand->whole.dtype)));

        rig->backend->ops->download(rig->backend, now, operand->whole);
        rig_expect(rig, rig->backend->ops->sync(rig->backend, &err) == 0, "%s", err.text);
        if (operand->written && !operand->work)
            check_view(rig, operand, now);
        check_surroundings(rig, operand, now);
        free(now);
    }
}
