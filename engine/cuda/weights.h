/* SPDX-License-Identifier: MIT */
/* Weights on their way to the device: what a file holds becomes what the device computes with. */
#ifndef FLUXFS_ENGINE_CUDA_WEIGHTS_H
#define FLUXFS_ENGINE_CUDA_WEIGHTS_H

#include "engine/backend.h"

/* Bytes of one element of the target: fp32 in vectors, bf16 in all others. */
static inline size_t weights_element_bytes(const struct weight_copy *copy)
{
    return copy->layout == WEIGHT_VECTOR ? sizeof(float) : sizeof(uint16_t);
}

/* Pieces of a target begin at multiples of this many elements: convolutions are laid out anew, one
 * output channel at a time. */
static inline int64_t weights_grain(const struct weight_copy *copy)
{
    return copy->layout == WEIGHT_CONV ? copy->cols : 1;
}

/* Whether the file holds the elements just as the device wants them. */
static inline bool weights_as_stored(const struct weight_copy *copy)
{
    return copy->source_dtype == DTYPE_BF16 &&
           (copy->layout == WEIGHT_MATRIX || copy->layout == WEIGHT_BIAS);
}

/* Writes elements first … first + count − 1 of the target to `piece` (host memory), rounded to
 * nearest even where bf16 is narrower. The source may lie at any byte. False if one of them is not
 * a finite number, also when only bf16 can't hold it. */
bool weights_fill(const struct weight_copy *copy, int64_t first, int64_t count, void *piece);

#endif
