/* SPDX-License-Identifier: MIT */
/*
 * A device that is only described: how much memory it has, and how fast it is.
 *
 * It is a back end whose operations do nothing but move clocks, one for each stream, and whose
 * pages are only counted. An engine on it plans, loads and evicts as it would on such a device, at
 * any size and in no time, and the clocks tell how long that would have taken (forecast.h).
 */
#ifndef FLUXFS_ENGINE_DESCRIBED_H
#define FLUXFS_ENGINE_DESCRIBED_H

#include "engine/backend.h"

/* A second's work. An operation takes as long as the larger of its arithmetic and its operands'
 * way through memory. */
struct device_rates {
    double linear_flops, attention_flops, conv_flops; /* a multiplication and an addition are two */
    double memory_bytes;
    double link_bytes; /* of weights, as they lie on the device */
    double call_s;     /* seconds that an operation takes at least */
};

/* `like`: the back end whose types, pages and needs it has; NULL: a graphics card's. */
int described_create(struct backend **backend, const struct backend *like, uint64_t memory_bytes,
                     struct error *err);
/* Before it is used. */
void described_set_rates(struct backend *backend, const struct device_rates *rates);

/* Some 30 years: what is later is all the same to marks. */
#define DESCRIBED_LONGEST_S 1e9

/* Seconds since the start, when all that was queued is done. */
double described_now(const struct backend *backend);

#endif
