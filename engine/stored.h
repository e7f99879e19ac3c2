/* SPDX-License-Identifier: MIT */
/* Reading rows of a stored matrix on the host: embedding tables, of which few rows are needed. */
#ifndef FLUXFS_ENGINE_STORED_H
#define FLUXFS_ENGINE_STORED_H

#include "engine/safetensors.h"

/* y [count, cols] fp32: the rows of a rank-2 F32, F16 or BF16 tensor that `rows` names. EINVAL if
 * one is out of range or holds NaN or infinity. */
int stored_rows_read(const struct stored_tensor *tensor, const int32_t *rows, int count, float *y,
                     struct error *err);

#endif
