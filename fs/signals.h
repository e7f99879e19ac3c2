/* SPDX-License-Identifier: MIT */
/*
 * SIGTERM, SIGINT and SIGHUP: blocked in every thread and waited for by one. Handlers would not do.
 * Libraries that the engine opens set their own for a while, and what they put back afterwards
 * wakes no system call (cuDNN's compiler was seen to).
 *
 * What has no session to end ends the process, as it would by itself: before one is mounted, and
 * again once it is unmounted, when the engine may be in the middle of something long.
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
    pthread_t thread, looping;
    bool started;
    pthread_mutex_t lock;
    struct fuse_session *session; /* lock; NULL: there is none to end */
    bool loops;                   /* lock; does the thread `looping` */
};

/* In this thread, and those that it starts. SIGPIPE and SIGXFSZ are blocked too, which nobody waits
 * for: writing says that nobody reads, or that the file is as large as it may be. 0 or a negative
 * errno. */
int signals_start(struct signals *signals, struct error *err);

/* The first signal from now on ends the session (borrowed): before it is mounted, so that nothing
 * stays mounted. More of them change nothing. */
void signals_lead(struct signals *signals, struct fuse_session *session);

/* This thread begins the session's loop, and is woken there. Not before: mounting, libfuse takes an
 * interrupted call for a failure. */
void signals_wake(struct signals *signals);

/* The loop is over: it is not disturbed any more, nor is what comes after it. What has not been
 * started is allowed. */
void signals_stop(struct signals *signals);

/* After signals_stop, once it is unmounted: those that come from now on end the process. */
void signals_unblock(const struct signals *signals);

#endif
