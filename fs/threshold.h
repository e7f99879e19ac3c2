/* SPDX-License-Identifier: MIT */
/* Thresholds that are written to an open status/vram: "85%" (of the budget), or "12G". */
#ifndef FLUXFS_FS_THRESHOLD_H
#define FLUXFS_FS_THRESHOLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/engine.h"
#include "engine/error.h"

/* Of the two one is 0; if both are, there is no threshold. */
struct threshold {
    double percent;
    uint64_t bytes;
};

/* Failure: EINVAL with the reason. */
int threshold_parse(struct threshold *threshold, const char *bytes, size_t size, struct error *err);

bool threshold_set(const struct threshold *threshold);

/* Whether so much memory is in use. */
bool threshold_passed(const struct threshold *threshold, const struct engine_memory *memory);

#endif
