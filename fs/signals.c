/* SPDX-License-Identifier: MIT */
#include "fs/signals.h"

#include <string.h>
#include <sys/statvfs.h>

#include "fs/handle.h"

void signals_block(struct signals *signals)
{
    static const int numbers[] = {SIGTERM, SIGINT, SIGHUP};
    sigset_t blocked;

    sigemptyset(&signals->awaited);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        struct sigaction action;

        if (sigaction(numbers[i], NULL, &action) == 0 && action.sa_handler != SIG_IGN) {
            sigaddset(&signals->awaited, numbers[i]);
        }
    }
    blocked = signals->awaited;
    sigaddset(&blocked, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &blocked, NULL);
}

static void *signals_main(void *owner)
{
    const struct signals *signals = owner;
    struct statvfs ignored;
    int number;

    while (sigwait(&signals->awaited, &number) == 0) {
        fuse_session_exit(signals->session);
        /* Threads that wait for a request see it at the next: this one, which is always asked. */
        if (statvfs(signals->mountpoint, &ignored) != 0) {
            /* It is unmounted: no thread waits. */
        }
    }
    return NULL;
}

int signals_start(struct signals *signals, struct fuse_session *session, const char *mountpoint,
                  struct error *err)
{
    int code;

    signals->session = session;
    signals->mountpoint = mountpoint;
    code = pthread_create(&signals->thread, NULL, signals_main, signals);
    signals->started = code == 0;
    return code == 0 ? 0 : error_set(err, code, "a thread for signals: %s", strerror(code));
}

void signals_stop(struct signals *signals)
{
    if (signals->started) {
        pthread_cancel(signals->thread); /* as it waits */
        pthread_join(signals->thread, NULL);
    }
    signals->started = false;
}
