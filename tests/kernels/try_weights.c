/* SPDX-License-Identifier: MIT */
/* Tensors of a checkpoint on their way to the device: every type, layout and alignment. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kernels/cases.h"

enum { COPIES_MAX = 3, UNALIGNED_MAX = 7 };

/* How a type of file is laid out in bits. */
struct format {
    enum dtype dtype;
    int bytes, mantissa_bits, exponent_bits;
};

static const struct format formats[] = {
    {DTYPE_F32, 4, 23, 8}, {DTYPE_F16, 2, 10, 5}, {DTYPE_BF16, 2, 7, 8}};

static double decode(const struct format *format, uint32_t bits)
{
    int bias = (1 << (format->exponent_bits - 1)) - 1;
    uint32_t mantissa = bits & ((1u << format->mantissa_bits) - 1);
    int exponent = (int)(bits >> format->mantissa_bits) & ((1 << format->exponent_bits) - 1);
    bool negative = bits >> (format->mantissa_bits + format->exponent_bits) & 1;
    double value = exponent == 0 ? ldexp(mantissa, 1 - bias - format->mantissa_bits)
                                 : ldexp(mantissa + (double)(1u << format->mantissa_bits),
                                         exponent - bias - format->mantissa_bits);

    return negative ? -value : value;
}

/* Any finite number of a magnitude that every type of weight can hold; subnormal ones and zeros of
 * both signs now and then. */
static uint32_t random_bits(struct rig *rig, const struct format *format)
{
    uint32_t bits = (uint32_t)rig_random(rig), mask = (1u << format->mantissa_bits) - 1;
    int bias = (1 << (format->exponent_bits - 1)) - 1;
    uint32_t exponent = (uint32_t)rig_range(rig, bias - 13, bias + 14);
    uint32_t sign = bits >> 31 << (format->mantissa_bits + format->exponent_bits);

    if (rig_chance(rig, 4))
        return sign;
    if (rig_chance(rig, 6))
        exponent = 0;
    return sign | exponent << format->mantissa_bits | (bits & mask);
}

static void store(char *to, const struct format *format, uint32_t bits)
{
    uint16_t half = (uint16_t)bits;

    if (format->bytes == 2)
        memcpy(to, &half, sizeof half);
    else
        memcpy(to, &bits, sizeof bits);
}

/* One copy with its source, at a random alignment. */
struct source {
    struct weight_copy copy;
    struct operand *target;
    const struct format *format;
    char *memory, *data;
    char name[32];
};

/* Where element [row, col] of the target's part lies in the file. */
static int64_t place_in_file(const struct weight_copy *copy, int64_t row, int64_t col)
{
    int64_t in = copy->channels_in, window;

    if (copy->layout != WEIGHT_CONV)
        return row * copy->cols + col;
    window = col / in;
    return row * copy->cols + col % in * copy->window + window;
}

static void choose_layout(struct rig *rig, struct weight_copy *copy)
{
    bool vector;

    copy->layout = (enum weight_layout)rig_range(rig, 0, 3);
    vector = weight_is_vector(copy->layout);
    copy->rows = vector ? 1 : rig_size(rig, 70);
    /* Beyond 16384 elements several threads or blocks share the work. */
    copy->cols = rig_size(rig, rig_chance(rig, 25) ? 4100 : 300);
    if (vector && rig_chance(rig, 20))
        copy->cols = 20001;
    if (copy->layout != WEIGHT_CONV)
        return;
    copy->window = rig_chance(rig, 30) ? 1 : 9;
    copy->channels_in = (int)rig_size(rig, rig_chance(rig, 15) ? 2000 : 130);
    copy->rows = rig_size(rig, 20);
    copy->cols = (int64_t)copy->window * copy->channels_in;
}

static void source_create(struct rig *rig, struct source *source, int number)
{
    struct weight_copy *copy = &source->copy;
    int64_t count = copy->rows * copy->cols;

    source->format = &formats[rig_range(rig, 0, 2)];
    source->memory = malloc((size_t)count * 4 + UNALIGNED_MAX);
    if (source->memory == NULL)
        abort();
    source->data = source->memory + rig_range(rig, 0, UNALIGNED_MAX);
    snprintf(source->name, sizeof source->name, "tensor.%d", number);
    copy->source = source->data;
    copy->source_dtype = source->format->dtype;
    copy->name = source->name;
    copy->path = "model/file.safetensors";
    for (int64_t i = 0; i < count; i++)
        store(source->data + i * source->format->bytes, source->format,
              random_bits(rig, source->format));
    rig_describe(rig, "; layout %d [%lld,%lld] from %lld of type %d", copy->layout,
                 (long long)copy->rows, (long long)copy->cols, (long long)copy->first,
                 copy->source_dtype);
}

/* Some tensors, either all parts of one weight or each a weight of its own. */
static int choose_sources(struct rig *rig, struct source *sources)
{
    int count = (int)rig_range(rig, 1, COPIES_MAX);
    bool parts = rig_chance(rig, 50);

    for (int i = 0; i < count; i++) {
        struct weight_copy *copy = &sources[i].copy, *before = copy;

        sources[i] = (struct source){0};
        choose_layout(rig, copy);
        if (i == 0 || !parts)
            continue;
        before = &sources[i - 1].copy;
        *copy = *before;
        copy->first += weight_is_vector(before->layout) ? before->cols : before->rows;
        if (weight_is_vector(copy->layout))
            copy->cols = rig_size(rig, 300);
        else
            copy->rows = rig_size(rig, 40);
    }
    for (int i = count - 1; i >= 0; i--) {
        const struct weight_copy *copy = &sources[i].copy;

        rig->full_rows = true;
        if (i < count - 1 && parts)
            sources[i].target = sources[i + 1].target;
        else if (weight_is_vector(copy->layout))
            sources[i].target =
                rig_output(rig, copy->layout == WEIGHT_BIAS ? rig->backend->bias : DTYPE_F32, 1,
                           copy->first + copy->cols);
        else
            sources[i].target = rig_weight_memory(rig, copy->first + copy->rows, copy->cols);
        sources[i].copy.target = sources[i].target->view.data;
    }
    for (int i = 0; i < count; i++)
        source_create(rig, &sources[i], i);
    return count;
}

static double source_value(const struct source *source, int64_t row, int64_t col)
{
    const char *at = source->data + place_in_file(&source->copy, row, col) * source->format->bytes;
    uint32_t bits;
    uint16_t half;

    if (source->format->bytes == 4) {
        memcpy(&bits, at, sizeof bits);
        return decode(source->format, bits);
    }
    memcpy(&half, at, sizeof half);
    return decode(source->format, half);
}

/* Queues the copies of all sources as one call and lets the compute stream wait for them. */
static void copy_all(struct rig *rig, const struct source *sources, int count)
{
    struct weight_copy copies[COPIES_MAX];
    struct backend *backend = rig->backend;

    for (int i = 0; i < count; i++)
        copies[i] = sources[i].copy;
    backend->ops->copy_reuse(backend);
    backend->ops->copy_weights(backend, copies, (size_t)count);
    backend->ops->copy_wait(backend, backend->ops->copy_ticket(backend));
}

/* The element of a weight made of parts. */
static double weight_value(const struct source *parts, int count, int64_t row, int64_t col)
{
    const struct source *part = parts;

    for (int i = 1; i < count; i++)
        if (parts[i].copy.first <= (weight_is_vector(part->copy.layout) ? col : row))
            part = &parts[i];
    if (weight_is_vector(part->copy.layout))
        return source_value(part, row, col - part->copy.first);
    return source_value(part, row - part->copy.first, col);
}

static void expect_vector(const struct source *parts, int count)
{
    struct operand *target = parts->target;
    struct grid wanted = grid_create(1, target->view.cols);

    for (int64_t i = 0; i < wanted.cols; i++)
        wanted.at[i] = weight_value(parts, count, 0, i);
    rig_want(target, reference_copy(wanted));
    grid_free(&wanted);
}

/* How a matrix lies in memory is the back end's affair: some of its columns, as products with a one
 * among zeros, must be what the file says. */
static void expect_matrix(struct rig *rig, const struct source *parts, int count)
{
    enum { COLUMNS_MAX = 48 };
    const struct weight_copy *last = &parts[count - 1].copy;
    int64_t rows = last->first + last->rows, cols = last->cols;
    int64_t some = cols < COLUMNS_MAX ? cols : COLUMNS_MAX;
    struct grid ones = grid_create(some, cols), wanted = grid_create(some, rows);
    struct operand *x = rig_input(rig, rig->backend->activation, some, cols, 0, 0);
    struct operand *y = rig_output(rig, DTYPE_F32, some, rows);
    struct linear product = {.y = y->view, .x = x->view};

    for (int64_t i = 0; i < some; i++) {
        int64_t column = cols > some ? rig_range(rig, 0, cols - 1) : i;

        ones.at[i * cols + column] = 1;
        for (int64_t row = 0; row < rows; row++)
            wanted.at[i * rows + row] = weight_value(parts, count, row, column);
    }
    rig_set(rig, x, ones.at);
    product.weight = tensor_of(last->target, rig->backend->weight, rows, cols);
    rig->backend->ops->linear(rig->backend, &product);
    parts->target->work = true;
    rig_want(y, reference_copy(wanted));
    for (int64_t i = 0; i < some * rows; i++)
        y->wanted.error.at[i] += rig_roundoff(rig->backend->weight) * fabs(wanted.at[i]);
    grid_free(&ones);
    grid_free(&wanted);
}

void try_weights(struct rig *rig)
{
    struct source sources[COPIES_MAX];
    int count = choose_sources(rig, sources), parts;

    copy_all(rig, sources, count);
    for (int i = 0; i < count; i += parts) {
        parts = 1;
        while (i + parts < count && sources[i + parts].target == sources[i].target)
            parts++;
        if (weight_is_vector(sources[i].copy.layout))
            expect_vector(&sources[i], parts);
        else
            expect_matrix(rig, &sources[i], parts);
    }
    rig_check(rig);
    for (int i = 0; i < count; i++)
        free(sources[i].memory);
}

/* One bad element anywhere is found and said; the error is told once; the first one counts. */
void try_damaged_weights(struct rig *rig)
{
    struct source sources[COPIES_MAX];
    struct backend *backend = rig->backend;
    int count = choose_sources(rig, sources), bad = (int)rig_range(rig, 0, count - 1);
    const struct format *format;
    uint32_t exponent, fraction;
    struct error err = {0};
    int64_t at;

    format = sources[bad].format;
    exponent = ((1u << format->exponent_bits) - 1) << format->mantissa_bits;
    fraction =
        rig_chance(rig, 50) ? 0 : (uint32_t)rig_range(rig, 1, (1 << format->mantissa_bits) - 1);
    at = rig_range(rig, 0, sources[bad].copy.rows * sources[bad].copy.cols - 1);
    store(sources[bad].data + at * format->bytes, format, exponent | fraction);
    rig_describe(rig, "; %s at %lld of tensor %d", fraction ? "NaN" : "infinity", (long long)at,
                 bad);
    copy_all(rig, sources, count);
    rig_expect(rig, backend->ops->sync(backend, &err) == -EINVAL, "not noticed");
    rig_expect(rig,
               strstr(err.text, sources[bad].name) != NULL &&
                   strstr(err.text, "model/file.safetensors") != NULL,
               "\"%s\" does not name tensor %s and its file", err.text, sources[bad].name);
    rig_expect(rig, backend->ops->sync(backend, &err) == 0, "told twice");
    for (int i = 0; i < count; i++)
        free(sources[i].memory);
}
