/* SPDX-License-Identifier: MIT */
/*
 * A synthetic trace: what an eager program that offloads FLUX.1-dev block by block would allocate
 * for images of mixed sizes. Shapes of weights and activations are the model's (bf16); the order of
 * temporaries is that of a plain implementation without any plan. It stands in for recorded traces
 * and must be called synthetic wherever its figures appear.
 *
 * Stream 0 computes, stream 1 copies weights one block ahead. A mark follows each image.
 */
#ifndef FLUXFS_TESTS_BENCH_FLUX_TRACE_H
#define FLUXFS_TESTS_BENCH_FLUX_TRACE_H

#include "alloc/trace.h"

struct flux_trace_options {
    int images;
    int steps;     /* of each image; memory repeats from step to step */
    uint64_t seed; /* of the sizes: multiples of 16 between 512 and 1024 */
};

/* To be given to trace_finish. Aborts when there is no memory. */
void flux_trace_make(struct trace *trace, const struct flux_trace_options *options);

#endif
