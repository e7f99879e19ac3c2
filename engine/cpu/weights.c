/* SPDX-License-Identifier: MIT */
/*
 * Weights on their way into fp32 and into panels (product.h): bf16 and fp16 are widened, NaN and
 * infinity are noticed.
 */
#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "engine/cpu/cpu.h"

/* Elements that one thread widens at a time. */
#define RUN 16384

static inline float from_bits(uint32_t bits)
{
    union {
        uint32_t bits;
        float value;
    } u = {bits};
    return u.value;
}

/* The functions below return non-zero if any element is not a finite number. */

CPU_CLONES static uint32_t widen_bf16(float *restrict y, const uint16_t *restrict x, int64_t n)
{
    uint32_t bad = 0;

    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)x[i] << 16;
        bad |= (bits & 0x7f800000u) == 0x7f800000u;
        y[i] = from_bits(bits);
    }
    return bad;
}

/* Exponent and mantissa moved to their places and rebiased by a multiplication, which makes
 * subnormal numbers come out right too. */
CPU_CLONES static uint32_t widen_f16(float *restrict y, const uint16_t *restrict x, int64_t n)
{
    uint32_t bad = 0;

    for (int64_t i = 0; i < n; i++) {
        uint32_t h = x[i];
        float magnitude = from_bits((h & 0x7fffu) << 13) * 0x1p112f;
        bad |= (h & 0x7c00u) == 0x7c00u;
        y[i] = (h & 0x8000u) != 0 ? -magnitude : magnitude;
    }
    return bad;
}

CPU_CLONES static uint32_t check_f32(float *restrict y, const uint32_t *restrict x, int64_t n)
{
    uint32_t bad = 0;

    for (int64_t i = 0; i < n; i++) {
        bad |= (x[i] & 0x7f800000u) == 0x7f800000u;
        y[i] = from_bits(x[i]);
    }
    return bad;
}

static uint32_t widen(float *y, const char *source, enum dtype dtype, int64_t first, int64_t n)
{
    const void *x = source + (size_t)first * dtype_bytes(dtype);

    /* A file may place a tensor at any byte: realign what is not at a multiple of its size. */
    uint32_t aligned[RUN];
    if ((uintptr_t)x % dtype_bytes(dtype) != 0)
        x = memcpy(aligned, x, (size_t)n * dtype_bytes(dtype));
    if (dtype == DTYPE_BF16)
        return widen_bf16(y, x, n);
    if (dtype == DTYPE_F16)
        return widen_f16(y, x, n);
    return check_f32(y, x, n);
}

struct copy_task {
    const struct weight_copy *copy;
    _Atomic uint32_t bad;
};

/* Some columns of a tensor in a panel of the target. */
struct patch {
    int64_t panel;
    int first, last; /* rows of the panel that the tensor fills; it ends in them if last < PANEL */
    int64_t column;  /* of the tensor as the file has it … */
    int count;       /* … and of them, at most PATCH */
};

/* Columns that are turned at a time, in the first-level cache. */
#define PATCH 128

/* A convolution's columns are [in, window] in the file and [window, in] in the target. */
static inline int64_t target_column(const struct weight_copy *copy, int64_t column)
{
    if (copy->layout != WEIGHT_CONV)
        return column;
    return column % copy->window * copy->channels_in + column / copy->window;
}

static uint32_t patch_fill(const struct weight_copy *copy, const struct patch *patch)
{
    float rows[PANEL][PATCH];
    float *panel = (float *)copy->target + patch->panel * PANEL * copy->cols;
    int64_t row = patch->panel * PANEL - copy->first; /* of the tensor, in row 0 of the panel */
    uint32_t bad = 0;

    for (int i = patch->first; i < patch->last; i++)
        bad |= widen(rows[i], copy->source, copy->source_dtype,
                     (row + i) * copy->cols + patch->column, patch->count);
    /* What is behind the last row of a weight is zero; behind a part's, until the next part. */
    memset(rows[patch->last], 0, sizeof *rows * (size_t)(PANEL - patch->last));
    for (int j = 0; j < patch->count; j++) {
        float *to = panel + target_column(copy, patch->column + j) * PANEL;

        for (int i = patch->first; i < PANEL; i++)
            to[i] = rows[i][j];
    }
    return bad;
}

static void panel_chunk(void *argument, int64_t chunk, int worker)
{
    struct copy_task *task = argument;
    const struct weight_copy *copy = task->copy;
    struct patch patch = {.panel = copy->first / PANEL + chunk};
    int64_t before = copy->first - patch.panel * PANEL, behind = before + copy->rows;

    patch.first = before > 0 ? (int)before : 0;
    patch.last = behind < PANEL ? (int)behind : PANEL;
    for (; patch.column < copy->cols; patch.column += PATCH) {
        patch.count = copy->cols - patch.column < PATCH ? (int)(copy->cols - patch.column) : PATCH;
        if (patch_fill(copy, &patch))
            atomic_store(&task->bad, 1);
    }
}

static void vector_chunk(void *argument, int64_t chunk, int worker)
{
    struct copy_task *task = argument;
    const struct weight_copy *copy = task->copy;
    int64_t first = chunk * RUN, left = copy->cols - first;

    if (widen((float *)copy->target + copy->first + first, copy->source, copy->source_dtype, first,
              left < RUN ? left : RUN))
        atomic_store(&task->bad, 1);
}

void cpu_copy_weights(struct backend *backend, const struct weight_copy *copies, size_t count)
{
    struct cpu_backend *cpu = cpu_of(backend);

    for (size_t i = 0; i < count; i++) {
        struct copy_task task = {.copy = &copies[i]};
        int64_t first = copies[i].first, last = first + copies[i].rows;

        if (weight_is_vector(copies[i].layout))
            cpu_run(backend, (copies[i].cols + RUN - 1) / RUN, vector_chunk, &task);
        else
            cpu_run(backend, cpu_panels(last) - first / PANEL, panel_chunk, &task);
        if (atomic_load(&task.bad) && copies[i].name != NULL && cpu->error.code == 0)
            error_set(&cpu->error, EINVAL,
                      "%s: tensor %s: NaN or infinite weights; the file is damaged, fetch it again",
                      copies[i].path, copies[i].name);
    }
}
