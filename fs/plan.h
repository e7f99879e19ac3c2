/* SPDX-License-Identifier: MIT */
/* fluxfs --plan: what an engine would do on a device, as a page of text. */
#ifndef FLUXFS_FS_PLAN_H
#define FLUXFS_FS_PLAN_H

#include <stdio.h>

#include "fs/config.h"

/* Failure: as engine_forecast. */
int plan_print(const struct config *config, FILE *out, struct error *err);

#endif
