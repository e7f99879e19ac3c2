/* SPDX-License-Identifier: MIT */
/*
 * Threads that share out the chunks of one task after another.
 *
 * Chunks are taken one by one, by whoever has time: on a machine that also does other things a
 * thread that does not get to run holds nobody up. The caller works too, and waits only for chunks
 * that somebody has begun.
 */
#ifndef FLUXFS_ENGINE_CPU_PARALLEL_H
#define FLUXFS_ENGINE_CPU_PARALLEL_H

#include <stdint.h>

struct parallel;

/* Does chunk `chunk`; `worker` (0 … threads − 1) is never the same in two threads at once. */
typedef void parallel_task(void *args, int64_t chunk, int worker);

/* 0 or a negative errno. One thread may call `run` at a time. */
int parallel_create(struct parallel **parallel, int threads);
void parallel_destroy(struct parallel *parallel); /* NULL is allowed */
void parallel_run(struct parallel *parallel, int64_t chunks, parallel_task *task, void *args);

#endif
