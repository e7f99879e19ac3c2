/* SPDX-License-Identifier: MIT */
/* The adapter between FUSE's low-level interface and everything else. */
#ifndef FLUXFS_FS_OPS_H
#define FLUXFS_FS_OPS_H

#include "fs/daemon.h"

/* Makes the session (not yet mounted) and stores it in the daemon. */
int ops_session_create(struct daemon *daemon, struct error *err);

/* Serves requests until unmounted or told to stop by a signal. Returns 0 or a negative errno. */
int ops_session_run(struct daemon *daemon, struct error *err);

#endif
