/* SPDX-License-Identifier: MIT */
/* What the files of the emulated driver share: one lock, the books, and calls that fail. */
#ifndef FLUXFS_TESTS_KERNELS_EMULATE_CALLS_H
#define FLUXFS_TESTS_KERNELS_EMULATE_CALLS_H

#include "engine/cuda/driver.h"
#include "tests/kernels/emulate/device.h"

extern struct device_books call_books; /* the lock */

void call_lock(void);

/* Locks and counts a call. False: it is one that fails, with that code, and nothing is locked. */
bool call_begin(CUresult *code);

/* Unlocks; returns the code. */
CUresult call_end(CUresult code);

/* Notes the first rule that was broken; the code of a call that breaks one. */
CUresult call_break(const char *rule);

/* Whether the device has no room for so much more. The lock. */
bool device_lacks(size_t bytes);

/* ---- runtime.c ---- */

size_t pinned_bytes(void); /* of host memory; no lock */

/* ---- virtual.c ---- */

size_t virtual_bytes(void); /* of pages in use; the lock */
void virtual_fill(struct driver *driver);

#endif
