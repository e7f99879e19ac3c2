/* SPDX-License-Identifier: MIT */
/* Memory of a device with nothing in front of it and nothing behind, so that whoever reads or
 * writes beyond an operand faults. */
#ifndef FLUXFS_TESTS_KERNELS_EDGE_H
#define FLUXFS_TESTS_KERNELS_EDGE_H

#include <stdbool.h>

#include "alloc/page_source.h"

enum { EDGE_PAGES = 16 };

struct edge {
    struct page_source *source; /* NULL: none */
    uintptr_t address;          /* of the reservation */
    page_handle pages[EDGE_PAGES];
    uint64_t count;    /* of pages */
    uint64_t reserved; /* bytes */
};

/* The address of so many bytes at the end of their pages (less what the alignment takes), or at the
 * start; 0 if it can't be. */
uintptr_t edge_create(struct edge *edge, struct page_source *source, uint64_t bytes,
                      uint64_t alignment, bool at_end);
void edge_destroy(struct edge *edge); /* what is all zeros is allowed */

#endif
