/* SPDX-License-Identifier: MIT */
/*
 * Mappings of files that fail to give their pages.
 *
 * When a mapped file is cut short or its disk fails, the kernel answers reads with SIGBUS, which
 * ends the process. For ranges registered here they give zeros instead, from the first page that
 * failed to the end of the range, and the range is marked. The handler is installed with the first
 * range; SIGBUS elsewhere goes to whoever handled it before.
 */
#ifndef FLUXFS_ENGINE_FILE_FAULT_H
#define FLUXFS_ENGINE_FILE_FAULT_H

#include <stdbool.h>
#include <stddef.h>

struct file_fault;

/* The range must be mapped, page-aligned, and stay so until it is removed. Any thread. NULL when
 * too many ranges are registered. */
struct file_fault *file_fault_add(const void *data, size_t size_bytes);
/* NULL is allowed. */
void file_fault_remove(struct file_fault *fault);
/* True once a read within the range has failed. */
bool file_fault_seen(const struct file_fault *fault);

#endif
