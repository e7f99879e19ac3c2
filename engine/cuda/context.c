/* SPDX-License-Identifier: MIT */
#include "engine/cuda/context.h"

#include <errno.h>
#include <stdbool.h>

/* What a context may take: from 60 MB on small cards to 600 on large ones were seen. */
#define CONTEXT_LEAST ((uint64_t)16 << 20)
#define CONTEXT_USUAL ((uint64_t)640 << 20)
#define CONTEXT_MOST ((uint64_t)2 << 30)
/* The most that a library loads or a kernel needs at once. */
#define GROWTH_MOST ((uint64_t)512 << 20)
/* What a plan's first use takes that NVML counts for no process: some 20 MB were seen in all. */
#define UNTOLD_MOST ((uint64_t)64 << 20)

/* What the context cost that is still there, or was when it was last closed: the process has one.
 */
static struct context_cost kept;

static bool is_context(uint64_t before, uint64_t after)
{
    return after >= before + CONTEXT_LEAST && after <= before + CONTEXT_MOST;
}

static uint64_t beyond(uint64_t after, uint64_t before)
{
    return after > before ? after - before : 0;
}

/* What is in use more than before. Some of that NVML may count for nobody, which is taken to be
 * ours, unless it is so much that others must have it. */
static uint64_t growth(const struct device_usage *before, const struct device_usage *after)
{
    uint64_t all = beyond(after->all_bytes, before->all_bytes);
    uint64_t own = beyond(after->own_bytes, before->own_bytes);

    return all > own && all - own <= UNTOLD_MOST ? all : own;
}

/* `before` and `after` NULL: not known. */
static uint64_t cost_of(const struct cuda_context *context, const struct device_usage *before,
                        const struct device_usage *after)
{
    uint64_t free_bytes = 0, total_bytes = 0;

    if (before != NULL && after != NULL && is_context(before->own_bytes, after->own_bytes))
        return growth(before, after);
    if (before != NULL && after != NULL && is_context(before->all_bytes, after->all_bytes))
        return after->all_bytes - before->all_bytes;
    /* All that is in use, and not more: on a card of our own that is exact. */
    if (context_memory(context, &free_bytes, &total_bytes) == 0 && total_bytes >= free_bytes &&
        total_bytes - free_bytes < CONTEXT_USUAL)
        return total_bytes - free_bytes;
    return CONTEXT_USUAL;
}

static CUresult make(struct cuda_context *context)
{
    const struct driver *driver = context->driver;
    CUresult code = driver->context_retain(&context->context, context->device);

    if (code != CUDA_SUCCESS)
        return code;
    code = driver->context_set(context->context);
    if (code != CUDA_SUCCESS)
        driver->context_release(context->device);
    return code;
}

static bool is_there(const struct driver *driver, CUdevice device)
{
    unsigned flags;
    int active = 0;

    return driver->context_state(device, &flags, &active) == CUDA_SUCCESS && active != 0;
}

/* `before` NULL: not known. */
static void measure(struct cuda_context *context, const struct device_usage *before)
{
    struct device_usage after;
    bool known = before != NULL && context->driver->usage(context->bus_id, &after) == 0;

    context->cost.bytes = cost_of(context, known ? before : NULL, known ? &after : NULL);
    if (known)
        context->cost.made = after;
}

int context_open(struct cuda_context *context, const struct driver *driver, struct error *err)
{
    struct cuda_context made = {.driver = driver};
    struct device_usage before;
    const char *why = "?";
    bool known = false;
    CUresult code = driver->init(0);

    if (code == CUDA_SUCCESS)
        code = driver->device_get(&made.device, 0);
    if (code == CUDA_SUCCESS &&
        driver->device_bus_id(made.bus_id, sizeof made.bus_id, made.device) == 0)
        known = driver->usage(made.bus_id, &before) == 0;
    if (code == CUDA_SUCCESS) {
        made.again = kept.bytes != 0 && is_there(driver, made.device);
        code = make(&made);
    }
    if (code != CUDA_SUCCESS) {
        driver->get_error_string(code, &why);
        return error_set(err, ENODEV, "back end cuda: no context on the first GPU: %s", why);
    }
    if (made.again)
        made.cost = kept;
    else
        measure(&made, known ? &before : NULL);
    *context = made;
    return 0;
}

void context_close(struct cuda_context *context)
{
    if (context->context != NULL) {
        kept = context->cost;
        context->driver->context_release(context->device);
    }
    *context = (struct cuda_context){0};
}

int context_memory(const struct cuda_context *context, uint64_t *free_bytes, uint64_t *total_bytes)
{
    size_t available, total;

    if (context->driver->context_set(context->context) != CUDA_SUCCESS ||
        context->driver->memory_info(&available, &total) != CUDA_SUCCESS)
        return -EIO;
    *free_bytes = available;
    *total_bytes = total;
    return 0;
}

int context_usage(const struct cuda_context *context, struct device_usage *usage)
{
    uint64_t free_bytes, total_bytes;
    struct device_usage told;

    if (context_memory(context, &free_bytes, &total_bytes) != 0)
        return -EIO;
    if (context->driver->usage(context->bus_id, &told) != 0)
        told.own_bytes = 0;
    *usage = (struct device_usage){total_bytes - free_bytes, told.own_bytes};
    return 0;
}

/* `untold`: how much of it NVML counted for nobody. */
static uint64_t grown_since(const struct cuda_context *context, const struct device_usage *before,
                            uint64_t *untold)
{
    struct device_usage after;

    *untold = 0;
    if (context_usage(context, &after) != 0)
        return 0;
    if (before->own_bytes != 0 && after.own_bytes != 0) {
        *untold = growth(before, &after) - beyond(after.own_bytes, before->own_bytes);
        return growth(before, &after);
    }
    return beyond(after.all_bytes, before->all_bytes) <= GROWTH_MOST
               ? beyond(after.all_bytes, before->all_bytes)
               : 0;
}

void context_grow(struct cuda_context *context, const struct device_usage *before)
{
    uint64_t untold;

    context->cost.grown += grown_since(context, before, &untold);
    context->cost.untold += untold;
}

void context_start(struct cuda_context *context, const struct device_usage *before)
{
    uint64_t untold, more = beyond(grown_since(context, before, &untold), context->cost.started);

    context->cost.started += more;
    context->cost.grown += more;
    context->cost.untold += untold < more ? untold : more;
}

/* The most that the context can have grown by. */
static uint64_t growth_most(const struct cuda_context *context)
{
    const struct context_cost *cost = &context->cost;
    uint64_t free_bytes, total_bytes;
    struct device_usage now;

    if (cost->made.own_bytes != 0 && context->driver->usage(context->bus_id, &now) == 0 &&
        now.own_bytes != 0)
        return beyond(now.own_bytes, cost->made.own_bytes) + cost->untold;
    if (context_memory(context, &free_bytes, &total_bytes) != 0)
        return UINT64_MAX;
    return beyond(total_bytes - free_bytes, cost->bytes);
}

void context_trim(struct cuda_context *context)
{
    uint64_t most = context->again ? growth_most(context) : UINT64_MAX;

    if (most < context->cost.grown)
        context->cost.grown = most;
    if (most < context->cost.started)
        context->cost.started = most;
}
