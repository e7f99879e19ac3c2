/* SPDX-License-Identifier: MIT */
/* What must be known of a mount point before we mount there, and systemd's protocol. */
#ifndef FLUXFS_FS_MOUNT_H
#define FLUXFS_FS_MOUNT_H

#include <stdbool.h>

#include "engine/error.h"

/* Unmounts a fluxfs whose daemon is dead. Failure: EBUSY if a living one is there, ENOENT or
 * ENOTDIR if there is no such folder, or why the dead one can't be unmounted. */
int mount_prepare(const char *mountpoint, struct error *err);

/* Whether there is something in the folder, which a mount would hide. */
bool mount_hides(const char *mountpoint);

/* Tells systemd, if it started us, e.g. "READY=1". */
void mount_notify_systemd(const char *message);

#endif
