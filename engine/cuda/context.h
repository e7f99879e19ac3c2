/* SPDX-License-Identifier: MIT */
/*
 * The context: what the driver keeps on the device for this process, and how much memory that is.
 *
 * No function of the driver tells it, so that it is measured: before and after it is made, and
 * around whatever makes it grow. Where NVML tells how much this process has, that counts, and a
 * little more that it may count for nobody.
 * Elsewhere it is what the device has less of afterwards, by NVML, which needs no context, or by
 * the driver; other processes may take or give back memory in the same moment: a difference that is
 * no context's is not believed. Where NVML is absent, the context is taken to be as large as they
 * usually are.
 *
 * The runtime retains the context too, from its first call on until the process ends or resets the
 * device. One that is opened again costs what it did before: that can't be measured any more.
 */
#ifndef FLUXFS_ENGINE_CUDA_CONTEXT_H
#define FLUXFS_ENGINE_CUDA_CONTEXT_H

#include <stdbool.h>

#include "engine/cuda/driver.h"

struct context_cost {
    uint64_t bytes;           /* of the device, when it was made */
    uint64_t grown;           /* since then: libraries' memory, kernels */
    uint64_t started;         /* in `grown`: by opening libraries, which each opening does */
    uint64_t untold;          /* in `grown`: what NVML counted for nobody */
    struct device_usage made; /* what was in use then; zeros: not known */
};

struct cuda_context {
    const struct driver *driver; /* borrowed */
    CUdevice device;
    CUcontext context; /* the primary one of the device, which the runtime uses too */
    struct context_cost cost;
    bool again;                /* it was there before it was opened */
    char bus_id[BUS_ID_BYTES]; /* "": not known */
};

/* On the first device, by one thread of the process at a time. ENODEV with the driver's words, and
 * nothing is held. */
int context_open(struct cuda_context *context, const struct driver *driver, struct error *err);
void context_close(struct cuda_context *context); /* what is all zeros is allowed */

/* Free memory of the device now, and its whole. 0 or -EIO. */
int context_memory(const struct cuda_context *context, uint64_t *free_bytes, uint64_t *total_bytes);

/* What is in use now. 0 or -EIO. */
int context_usage(const struct cuda_context *context, struct device_usage *usage);

/* What is in use beyond `before` is the context's from now on. */
void context_grow(struct cuda_context *context, const struct device_usage *before);

/* The same where libraries were opened: of what they took before, only the more counts. */
void context_start(struct cuda_context *context, const struct device_usage *before);

/* For one that was opened again, when it has what it had at first and nothing else of ours is on
 * the device: what it grew by and gave back since no longer counts, as far as NVML tells, or as the
 * device has no more in use. */
void context_trim(struct cuda_context *context);

#endif
