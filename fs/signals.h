/* SPDX-License-Identifier: MIT */
/*
 * SIGTERM, SIGINT and SIGHUP, at which the session ends: blocked in every thread and waited for by
 * one. A handler would not do. Libraries that the engine opens set handlers of their own for a
 * while, and what they put back afterwards wakes no system call (cuDNN's compiler was seen to).
 */
#ifndef FLUXFS_FS_SIGNALS_H
#define FLUXFS_FS_SIGNALS_H

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>

#include "engine/error.h"

struct fuse_session;

struct signals {
    sigset_t awaited; /* but for those that were ignored from the start, as by nohup */
    struct fuse_session *session;
    const char *mountpoint;
    pthread_t thread;
    bool started;
};

/* In this thread, and those that it starts. SIGPIPE too, which nobody waits for: writing says that
 * nobody reads. */
void signals_block(struct signals *signals);

/* The first of them ends the loop of the session, which is mounted there; both are borrowed. 0 or
 * a negative errno. */
int signals_start(struct signals *signals, struct fuse_session *session, const char *mountpoint,
                  struct error *err);

/* After the session was unmounted. What has not been started is allowed. */
void signals_stop(struct signals *signals);

#endif
