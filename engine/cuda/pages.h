/* SPDX-License-Identifier: MIT */
/*
 * The device's memory as pages (alloc/page_source.h): one handle of 2 MiB each, mapped whole into a
 * reservation, since neither a part of a handle can be mapped nor a part of a mapping unmapped. All
 * that is freed is ordered in the compute stream, whatever the arena calls its streams.
 *
 * Uses the driver alone, on any thread; only `memory` may run beside the others.
 */
#ifndef FLUXFS_ENGINE_CUDA_PAGES_H
#define FLUXFS_ENGINE_CUDA_PAGES_H

#include "alloc/page_source.h"
#include "engine/cuda/context.h"

struct cuda_pages_options {
    const struct cuda_context *context; /* borrowed */
    CUstream stream;                    /* where the memory is used */
    /* Told of each error that is no lack of memory, which -EIO hides: the call and the driver's
     * words, which may be about work queued earlier. */
    void (*fault)(void *owner, const char *call, const char *why);
    void *owner;
};

/* ENODEV: the device has no virtual memory; EIO, ENOMEM (of the host). */
int cuda_pages_create(struct page_source **pages, const struct cuda_pages_options *options,
                      struct error *err);

#endif
