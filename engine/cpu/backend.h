/* SPDX-License-Identifier: MIT */
/* The CPU back end: fp32 throughout; everything runs as it is called. */
#ifndef FLUXFS_ENGINE_CPU_BACKEND_H
#define FLUXFS_ENGINE_CPU_BACKEND_H

#include "engine/backend.h"

/* `threads` 0: one for each core that this process may use. `memory_bytes`: what will be asked of
 * it, as far as is known (0: anything), which decides how long its pages are. `kernel` (product.h)
 * NULL: the fastest that this machine has; ENOTSUP if it doesn't have the one named. */
int cpu_backend_create(struct backend **backend, int threads, uint64_t memory_bytes,
                       const char *kernel, struct error *err);

#endif
