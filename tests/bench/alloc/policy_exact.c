/* SPDX-License-Identifier: MIT */
#include "policy.h"

#include <stdlib.h>

enum { ROUNDING = 512, CLASS_LIMIT = 1 << 14 };

struct size_class {
    uint64_t bytes; /* 0: vacant */
    uint64_t cached;
};

struct exact {
    uint64_t budget, reserved, peak, free_bytes, driver_calls;
    bool flushes;
    uint64_t *sizes;                        /* by block, rounded */
    struct size_class classes[CLASS_LIMIT]; /* by a hash of the size */
    uint16_t taken[CLASS_LIMIT];            /* places of those in use */
    size_t taken_count;
};

static struct exact *create(const struct policy_options *options, bool flushes)
{
    struct exact *exact = calloc(1, sizeof *exact);

    if (!exact || !(exact->sizes = calloc(options->block_count, sizeof *exact->sizes)))
        abort();
    exact->budget = options->budget_bytes;
    exact->flushes = flushes;
    return exact;
}

static void *exact_create(const struct policy_options *options)
{
    return create(options, false);
}

static void *exact_create_flush(const struct policy_options *options)
{
    return create(options, true);
}

static struct size_class *class_of(struct exact *exact, uint64_t bytes)
{
    size_t at = (size_t)(bytes / ROUNDING * UINT64_C(0x9e3779b97f4a7c15) >> 40) % CLASS_LIMIT;

    for (int tries = 0; exact->classes[at].bytes != 0 && exact->classes[at].bytes != bytes;) {
        at = (at + 1) % CLASS_LIMIT;
        if (++tries == CLASS_LIMIT)
            abort();
    }
    if (exact->classes[at].bytes == 0) {
        exact->classes[at].bytes = bytes;
        exact->taken[exact->taken_count++] = (uint16_t)at;
    }
    return &exact->classes[at];
}

static void flush(struct exact *exact)
{
    for (size_t i = 0; i < exact->taken_count; i++) {
        exact->driver_calls += exact->classes[exact->taken[i]].cached;
        exact->classes[exact->taken[i]].cached = 0;
    }
    exact->reserved -= exact->free_bytes;
    exact->free_bytes = 0;
}

static bool exact_alloc(void *state, uint64_t block, uint64_t bytes, int stream)
{
    struct exact *exact = state;
    struct size_class *size_class;

    bytes = (bytes + ROUNDING - 1) / ROUNDING * ROUNDING;
    size_class = class_of(exact, bytes);
    if (size_class->cached > 0) {
        size_class->cached--;
        exact->free_bytes -= bytes;
    } else {
        if (exact->reserved + bytes > exact->budget && exact->flushes)
            flush(exact);
        if (exact->reserved + bytes > exact->budget)
            return false;
        exact->reserved += bytes;
        exact->driver_calls++;
        if (exact->reserved > exact->peak)
            exact->peak = exact->reserved;
    }
    exact->sizes[block] = bytes;
    return true;
}

static void exact_free(void *state, uint64_t block)
{
    struct exact *exact = state;

    class_of(exact, exact->sizes[block])->cached++;
    exact->free_bytes += exact->sizes[block];
}

static void exact_describe(void *state, struct policy_state *description)
{
    const struct exact *exact = state;
    uint64_t largest = 0;

    for (size_t i = 0; i < exact->taken_count; i++) {
        const struct size_class *size_class = &exact->classes[exact->taken[i]];
        if (size_class->cached > 0 && size_class->bytes > largest)
            largest = size_class->bytes;
    }
    *description = (struct policy_state){exact->reserved, exact->peak, exact->free_bytes, largest,
                                         exact->driver_calls};
}

static void exact_destroy(void *state)
{
    struct exact *exact = state;

    free(exact->sizes);
    free(exact);
}

const struct policy policy_exact = {
    "exact sizes, no splitting",
    exact_create,
    exact_alloc,
    exact_free,
    exact_describe,
    exact_destroy,
};

const struct policy policy_exact_flush = {
    "the same, flushed when full",
    exact_create_flush,
    exact_alloc,
    exact_free,
    exact_describe,
    exact_destroy,
};
