/* SPDX-License-Identifier: MIT */
/* What ops_watch.c (the thread, and pollers) and ops_wait.c (blocked reads) share. */
#ifndef FLUXFS_FS_WATCH_PRIVATE_H
#define FLUXFS_FS_WATCH_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "fs/watch.h"

struct sleeper;

struct watch {
    struct daemon *daemon;
    pthread_t thread;
    bool started;
    int eventfd;
    atomic_bool stopping;
    int64_t told_ns[3]; /* the thread's own: times of images/, jobs/ and queue/ the kernel knows */
    struct sleeper *sleepers; /* guarded by the tree lock */
};

/* Whether there is nothing left to wait for: it is through, or forgotten. */
bool watch_job_ended(struct daemon *daemon, int64_t job);

/* Answers those blocked reads that have an answer; at a stop, all. */
void sleepers_look(struct watch *watch);

#endif
