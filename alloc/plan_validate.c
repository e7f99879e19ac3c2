/* SPDX-License-Identifier: MIT */
/*
 * Deliberately naive: every pair is compared, so that no trick of the solver's can hide here.
 */
#include "alloc/plan.h"

#include <errno.h>

static int report(struct plan_fault *fault, enum plan_fault_kind kind, size_t a, size_t b)
{
    if (fault)
        *fault = (struct plan_fault){kind, a, b};
    return kind == PLAN_SOUND ? 0 : -EINVAL;
}

int plan_validate(const struct plan_buffer *buffers, size_t count, uint64_t alignment,
                  const uint64_t *offsets, uint64_t total_bytes, struct plan_fault *fault)
{
    for (size_t i = 0; i < count; i++) {
        if (buffers[i].first_use > buffers[i].last_use)
            return report(fault, PLAN_LIFETIME, i, i);
        if (alignment == 0 || offsets[i] % alignment != 0)
            return report(fault, PLAN_MISALIGNED, i, i);
        if (buffers[i].bytes > total_bytes || offsets[i] > total_bytes - buffers[i].bytes)
            return report(fault, PLAN_OUTSIDE, i, i);
    }
    for (size_t i = 0; i < count; i++) {
        uint64_t end_i = offsets[i] + buffers[i].bytes;

        for (size_t j = i + 1; j < count; j++) {
            uint64_t end_j = offsets[j] + buffers[j].bytes;

            if (buffers[i].bytes == 0 || buffers[j].bytes == 0)
                continue;
            if (buffers[i].last_use < buffers[j].first_use ||
                buffers[j].last_use < buffers[i].first_use)
                continue;
            if (end_i > offsets[j] && end_j > offsets[i])
                return report(fault, PLAN_OVERLAP, i, j);
        }
    }
    return report(fault, PLAN_SOUND, 0, 0);
}
