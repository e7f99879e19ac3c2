/* SPDX-License-Identifier: MIT */
#include "tests/bench/steps.h"

#include <math.h>
#include <stdio.h>

void steps_settled(void *owner, const struct timeline_span *span)
{
    struct steps *steps = owner;

    if (steps->on && steps->count < STEPS_SPANS)
        steps->spans[steps->count++] = *span;
}

static const struct timeline_span *copy_for(const struct steps *steps, uint64_t block)
{
    for (size_t i = 0; i < steps->count; i++)
        if (steps->spans[i].kind == NULL && steps->spans[i].block == block)
            return &steps->spans[i];
    return NULL;
}

/* What was waited for longer than the weights took to come is the host's delay. */
static double late_s(const struct timeline_span *block, const struct timeline_span *copy)
{
    double there_s = copy != NULL ? fmax(copy->done_s, block->begun_s) : block->begun_s;

    return fmax(0, block->ready_s - there_s);
}

void steps_print(const struct steps *steps)
{
    double begin_s = steps->count > 0 ? steps->spans[0].begun_s : 0, end_s = begin_s;
    double compute_s = 0, wait_s = 0, late = 0, copy_s = 0, copied = 0;

    printf("%-18s %9s %8s %8s %8s   %9s %8s %8s  ms\n", "block", "begins", "waits", "(late)",
           "computes", "its copy", "takes", "GB/s");
    for (size_t i = 0; i < steps->count; i++) {
        const struct timeline_span *block = &steps->spans[i];
        const struct timeline_span *copy = copy_for(steps, block->block);

        if (block->kind == NULL)
            continue;
        printf("%-18s %9.3f %8.3f %8.3f %8.3f", block->kind, (block->begun_s - begin_s) * 1e3,
               (block->ready_s - block->begun_s) * 1e3, late_s(block, copy) * 1e3,
               (block->done_s - block->ready_s) * 1e3);
        end_s = block->done_s;
        compute_s += block->done_s - block->ready_s;
        wait_s += block->ready_s - block->begun_s;
        late += late_s(block, copy);
        if (copy != NULL) {
            double takes_s = copy->done_s - copy->begun_s;

            printf("   %9.3f %8.3f %8.1f", (copy->begun_s - begin_s) * 1e3, takes_s * 1e3,
                   (double)copy->bytes / takes_s / 1e9);
            copy_s += takes_s;
            copied += (double)copy->bytes;
        }
        printf("\n");
    }
    printf(
        "%.1f ms: computing %.1f, waiting %.1f (%.1f of it for the host); %.2f GB copied in %.1f "
        "ms\n",
        (end_s - begin_s) * 1e3, compute_s * 1e3, wait_s * 1e3, late * 1e3, copied / 1e9,
        copy_s * 1e3);
}
