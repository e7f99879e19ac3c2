/* SPDX-License-Identifier: MIT */
/* How much memory this machine has, or what a container or a service leaves of it. */
#ifndef FLUXFS_ALLOC_HOST_MEMORY_H
#define FLUXFS_ALLOC_HOST_MEMORY_H

#include <stdint.h>

struct host_memory {
    uint64_t total_bytes; /* the machine's, or the lowest limit of our control groups */
    uint64_t
        available_bytes; /* without swapping; page cache counts, for it yields, pinned or not */
};

/* Of both versions of control groups. What can't be read is 0. Any thread. */
struct host_memory host_memory(void);

/* The same by the files below `root`, for tests. */
struct host_memory host_memory_below(const char *root);

#endif
