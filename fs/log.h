/* SPDX-License-Identifier: MIT */
/* The daemon's log: stderr while there is a terminal or journal behind it, else syslog. */
#ifndef FLUXFS_FS_LOG_H
#define FLUXFS_FS_LOG_H

#include <stdbool.h>

#include "fs/config.h"

/* Once, before other threads. */
void log_open(enum log_level level, bool to_syslog);

void log_line(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
