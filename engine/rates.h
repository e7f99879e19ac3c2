/* SPDX-License-Identifier: MIT */
/* How fast a back end's device is, found out by trying. */
#ifndef FLUXFS_ENGINE_RATES_H
#define FLUXFS_ENGINE_RATES_H

#include "engine/described.h"

/* What is to be computed on it. */
struct rates_shapes {
    int64_t tokens;       /* text and picture */
    int heads;            /* of the transformer … */
    int64_t width;        /* … and its hidden states' channels */
    int64_t vae_channels; /* of a picture in the middle of the decoder */
};

/* A few seconds. A card that computes at the edge of its power slows down within the first: what it
 * keeps up is what counts. The back end must not be in use otherwise; its memory is given back.
 * *lasting: of the host, free it once the back end is destroyed, which may be reading it. */
int rates_measure(struct device_rates *rates, struct backend *backend,
                  const struct rates_shapes *shapes, void **lasting, struct error *err);

#endif
