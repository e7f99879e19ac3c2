/* SPDX-License-Identifier: MIT */
/* The ini files of the configuration. */
#ifndef FLUXFS_FS_CONFIG_INI_H
#define FLUXFS_FS_CONFIG_INI_H

#include "fs/config.h"

/* Reads the file named, or if NULL the system's and the user's, where there are any. Errors name
 * file and line: EINVAL, or reading's errno. */
int config_ini_load(struct config *config, const char *named, struct error *err);

#endif
