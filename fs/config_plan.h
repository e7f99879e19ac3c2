/* SPDX-License-Identifier: MIT */
/* The options that only --plan has: the device to plan for. */
#ifndef FLUXFS_FS_CONFIG_PLAN_H
#define FLUXFS_FS_CONFIG_PLAN_H

#include "fs/config.h"

/* argv[*i], if it is one of them, is read, and its value too, in whose place *i then is. 1: it was;
 * 0: it is something else; -EINVAL: its value is missing or wrong. */
int config_plan_option(struct config_plan *plan, int argc, char *const argv[], int *i,
                       struct error *err);

/* Is this option, "--vram=24G" or "--vram", one of them? */
bool config_plan_has(const char *option);

#endif
