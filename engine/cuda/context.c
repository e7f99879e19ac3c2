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

static uint64_t cost_of(const struct cuda_context *context, const uint64_t *used_before,
                        const uint64_t *used_after)
{
    uint64_t free_bytes = 0, total_bytes = 0;

    if (used_before != NULL && used_after != NULL && *used_after >= *used_before + CONTEXT_LEAST &&
        *used_after <= *used_before + CONTEXT_MOST)
        return *used_after - *used_before;
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

int context_open(struct cuda_context *context, const struct driver *driver, struct error *err)
{
    struct cuda_context made = {.driver = driver};
    uint64_t before, after;
    const char *why = "?";
    char bus_id[BUS_ID_BYTES] = "";
    bool known = false;
    CUresult code = driver->init(0);

    if (code == CUDA_SUCCESS)
        code = driver->device_get(&made.device, 0);
    if (code == CUDA_SUCCESS && driver->device_bus_id(bus_id, sizeof bus_id, made.device) == 0)
        known = driver->memory_used(bus_id, &before) == 0;
    if (code == CUDA_SUCCESS)
        code = make(&made);
    if (code != CUDA_SUCCESS) {
        driver->get_error_string(code, &why);
        return error_set(err, ENODEV, "back end cuda: no context on the first GPU: %s", why);
    }
    known = known && driver->memory_used(bus_id, &after) == 0;
    made.bytes = cost_of(&made, known ? &before : NULL, known ? &after : NULL);
    *context = made;
    return 0;
}

void context_close(struct cuda_context *context)
{
    if (context->context != NULL)
        context->driver->context_release(context->device);
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

void context_grow(struct cuda_context *context, uint64_t free_before)
{
    uint64_t free_bytes, total_bytes;

    if (context_memory(context, &free_bytes, &total_bytes) == 0 && free_bytes < free_before &&
        free_before - free_bytes <= GROWTH_MOST)
        context->grown += free_before - free_bytes;
}
