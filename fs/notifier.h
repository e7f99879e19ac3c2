/* SPDX-License-Identifier: MIT */
/*
 * A small process that creates and unlinks image names through the mount, because inotify only sees
 * what passes through it. A process of its own, without /dev/fuse: a thread of the daemon waiting
 * for its own mount would keep a killed daemon from dying.
 *
 * The daemon knows its requests by their pid and answers them without touching a file. Used by one
 * thread. When the process is gone or slow, nothing is lost but the notification.
 */
#ifndef FLUXFS_FS_NOTIFIER_H
#define FLUXFS_FS_NOTIFIER_H

#include <stdbool.h>
#include <sys/types.h>

#include "engine/error.h"

struct notifier;

/* Forks; before any thread, and before /dev/fuse is open. */
int notifier_create(struct notifier **notifier, const char *mountpoint, struct error *err);

/* Ends the process: all calls return false at once from now on. Any thread. */
void notifier_kill(struct notifier *notifier);
void notifier_destroy(struct notifier *notifier); /* NULL is allowed */
pid_t notifier_pid(const struct notifier *notifier);

/* Make inotify see images/NAME come (CREATE, CLOSE_WRITE), go (DELETE), or both. True once it is
 * done, false after five seconds. */
bool notifier_created(struct notifier *notifier, const char *name);
bool notifier_gone(struct notifier *notifier, const char *name);
bool notifier_replaced(struct notifier *notifier, const char *name);

#endif
