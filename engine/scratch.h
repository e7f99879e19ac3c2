/* SPDX-License-Identifier: MIT */
/*
 * Scratch memory of a pass whose buffers are known before it runs.
 *
 * A pass is first rehearsed: the model code runs with operations switched off and its scratch
 * records each buffer's size and lifetime. The plan (alloc/plan.h) then gives every buffer a place
 * in one block, and each real run of the same pass takes the same buffers in the same order: an
 * allocation is an addition.
 */
#ifndef FLUXFS_ENGINE_SCRATCH_H
#define FLUXFS_ENGINE_SCRATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct scratch_buffer {
    uint64_t bytes, offset_bytes;
    uint32_t first_use, last_use; /* in the order of takes and gives */
};

struct scratch {
    struct scratch_buffer *buffers;
    size_t count, capacity;
    uint32_t clock;       /* while recording */
    size_t next;          /* while replaying */
    uint64_t total_bytes; /* of the planned block */
    char *base;           /* of the block, or NULL */
    bool recording;
    bool failed; /* out of host memory while recording */
};

void scratch_finish(struct scratch *scratch);

/* Rehearsal: between begin and end, takes return addresses that must not be used. `end` plans;
 * 0 or -ENOMEM (of the host). */
void scratch_record(struct scratch *scratch);
int scratch_plan(struct scratch *scratch);

/* A real run over a block of at least total_bytes. */
void scratch_replay(struct scratch *scratch, void *base);

void *scratch_take(struct scratch *scratch, uint64_t bytes);
void scratch_give(struct scratch *scratch, const void *buffer);

#endif
