/* SPDX-License-Identifier: MIT */
/*
 * Pages of host memory that behave like a device's: ranges of a memory file, mapped by their offset
 * into a reservation nobody can touch. The CPU back end's memory comes from here, so everything
 * the arena does to a GPU is done to real memory in every test as well.
 *
 * Work on this source is synchronous: every fence has passed when it is recorded. Not locked: the
 * arena calls it under its own mutex.
 */
#ifndef FLUXFS_ALLOC_HOST_PAGES_H
#define FLUXFS_ALLOC_HOST_PAGES_H

#include "alloc/page_source.h"

enum { HOST_PAGE_BYTES = 2 << 20 };

struct host_pages_options {
    uint64_t granule_bytes; /* power of two, multiple of the system's page; 0: HOST_PAGE_BYTES */
    uint64_t limit_bytes;   /* pages beyond this fail with -ENOMEM; 0: as much as the machine has */
};

/* The shortest page, from 64 KiB on, of which `bytes` (0: all the machine has) can be mapped one by
 * one: the system limits the number of mappings. Short pages lose less to rounding. */
uint64_t host_pages_granule(uint64_t bytes);

/* `options` may be NULL. The source's `destroy` closes the file; mappings must be gone by then. */
int host_pages_create(struct page_source **source, const struct host_pages_options *options);

#endif
