/* SPDX-License-Identifier: MIT */
#include "engine/scratch.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "alloc/plan.h"

/* Rehearsed addresses are numbers, spaced so that views of one buffer never meet another's. */
#define SCRATCH_ALIGNMENT 256
#define REHEARSED_SPACING ((uintptr_t)1 << 40)

void scratch_finish(struct scratch *scratch)
{
    free(scratch->buffers);
    *scratch = (struct scratch){0};
}

void scratch_record(struct scratch *scratch)
{
    scratch->count = 0;
    scratch->clock = 0;
    scratch->recording = true;
    scratch->failed = false;
}

static struct scratch_buffer *buffer_append(struct scratch *scratch)
{
    if (scratch->count == scratch->capacity) {
        size_t capacity = scratch->capacity ? 2 * scratch->capacity : 64;
        struct scratch_buffer *grown =
            realloc(scratch->buffers, capacity * sizeof *scratch->buffers);
        if (grown == NULL)
            return NULL;
        scratch->buffers = grown;
        scratch->capacity = capacity;
    }
    return &scratch->buffers[scratch->count++];
}

void *scratch_take(struct scratch *scratch, uint64_t bytes)
{
    struct scratch_buffer *buffer;

    if (!scratch->recording) {
        assert(scratch->next < scratch->count);
        buffer = &scratch->buffers[scratch->next++];
        assert(buffer->bytes == bytes);
        return scratch->base + buffer->offset_bytes;
    }
    buffer = buffer_append(scratch);
    if (buffer == NULL) {
        scratch->failed = true;
        return NULL;
    }
    *buffer = (struct scratch_buffer){
        .bytes = bytes, .first_use = scratch->clock++, .last_use = UINT32_MAX};
    return (void *)(scratch->count * REHEARSED_SPACING);
}

void scratch_give(struct scratch *scratch, const void *buffer)
{
    size_t index = (uintptr_t)buffer / REHEARSED_SPACING;

    if (!scratch->recording || buffer == NULL)
        return;
    assert(index >= 1 && index <= scratch->count);
    scratch->buffers[index - 1].last_use = scratch->clock++;
}

int scratch_plan(struct scratch *scratch)
{
    struct plan_buffer *buffers = calloc(scratch->count + 1, sizeof *buffers);
    uint64_t *offsets = calloc(scratch->count + 1, sizeof *offsets);
    struct plan_result result = {0};
    int code = -ENOMEM;

    if (scratch->failed || buffers == NULL || offsets == NULL)
        goto out;
    for (size_t i = 0; i < scratch->count; i++) {
        /* What is never given back lives to the end of the pass. */
        uint32_t last = scratch->buffers[i].last_use;
        buffers[i] = (struct plan_buffer){scratch->buffers[i].bytes, scratch->buffers[i].first_use,
                                          last == UINT32_MAX ? scratch->clock : last};
    }
    code = plan_solve(buffers, scratch->count, SCRATCH_ALIGNMENT, offsets, &result);
    if (code != 0)
        goto out;
    for (size_t i = 0; i < scratch->count; i++)
        scratch->buffers[i].offset_bytes = offsets[i];
    scratch->total_bytes = result.total_bytes;
out:
    scratch->recording = false;
    free(buffers);
    free(offsets);
    return code;
}

void scratch_replay(struct scratch *scratch, void *base)
{
    scratch->base = base;
    scratch->next = 0;
}
