/* SPDX-License-Identifier: MIT */
/*
 * The thread that wakes those who wait on files: pollers whose file has changed, and blocked reads
 * that have an answer now. Also takes samples for the memory curves.
 */
#ifndef FLUXFS_FS_WATCH_H
#define FLUXFS_FS_WATCH_H

#include "fs/daemon.h"

int watch_create(struct watch **watch, struct daemon *daemon, struct error *err);

/* Starts the thread; before it, wakes are kept. */
int watch_start(struct watch *watch, struct error *err);

/* Something may have changed. Any thread, any lock held; never waits. */
void watch_wake(struct watch *watch);

/* Answers all blocked reads and joins the thread. NULL is allowed. */
void watch_stop(struct watch *watch);
void watch_destroy(struct watch *watch);

#endif
