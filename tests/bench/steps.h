/* SPDX-License-Identifier: MIT */
/* What both streams did in the steps of a picture, block by block. */
#ifndef FLUXFS_TESTS_BENCH_STEPS_H
#define FLUXFS_TESTS_BENCH_STEPS_H

#include "engine/timeline.h"

enum { STEPS_SPANS = 1024 };

struct steps {
    bool on; /* what is settled now is to be printed */
    struct timeline_span spans[STEPS_SPANS];
    size_t count;
};

/* A timeline's watcher, whose owner is a `struct steps`. */
void steps_settled(void *steps, const struct timeline_span *span);

/* A row for each block, in milliseconds, and what of the copy stream's time was lost. */
void steps_print(const struct steps *steps);

#endif
