/* SPDX-License-Identifier: MIT */
/*
 * How long a pass over blocks takes on a device that copies and computes at the same time, or in
 * turn.
 *
 * Both happen in order, each on a stream of its own. A copy into a slot begins when the copy before
 * it has ended and so has the work that was queued when the slot was chosen (ring.h); work with a
 * block begins when the work before it has ended, and its copy.
 */
#ifndef FLUXFS_ENGINE_SCHEDULE_H
#define FLUXFS_ENGINE_SCHEDULE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct schedule_case {
    size_t count;
    const bool *stays; /* blocks that are there and do not pass through the ring */
    const uint64_t *bytes;
    uint64_t ring_bytes;
    double copy_byte_s; /* seconds to copy a byte */
    /* Seconds to compute with each block; NULL: so many for each of its bytes. */
    const double *compute_s;
    double compute_byte_s;
    bool in_turn; /* nothing computes while a copy runs */
};

/* Seconds from one run of the pass to the next, when it is run again and again. */
double schedule_period(const struct schedule_case *c);

#endif
