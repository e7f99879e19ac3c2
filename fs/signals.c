/* SPDX-License-Identifier: MIT */
#include "fs/signals.h"

#include <string.h>
#include <time.h>
#include <unistd.h>

#include "fs/handle.h"

enum { WAKE_MS = 10 };

/* What does nothing by default, so that nothing happens where the handler is gone. */
#define WAKE SIGURG

static void wake(int number)
{
    (void)number;
}

_Noreturn static void end_process(int number)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, number);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    raise(number);
    _exit(128 + number); /* a container's first process ignores it */
}

/* The loop's thread sleeps in a call that ends early for a signal only, or is just about to: it is
 * sent one again and again. Its handler is set each time as libraries may have changed it. Waking
 * the loop by a request to the mount would take that there is a way to it still. */
static void *signals_main(void *owner)
{
    const struct timespec pause = {.tv_nsec = WAKE_MS * 1000000L};
    const struct sigaction action = {.sa_handler = wake};
    struct signals *signals = owner;
    int number;

    if (sigwait(&signals->awaited, &number) != 0) {
        return NULL;
    }
    pthread_mutex_lock(&signals->lock);
    if (signals->session == NULL) {
        end_process(number);
    }
    fuse_session_exit(signals->session);
    pthread_mutex_unlock(&signals->lock);
    for (;;) {
        sigaction(WAKE, &action, NULL);
        pthread_mutex_lock(&signals->lock);
        if (signals->loops) {
            pthread_kill(signals->looping, WAKE);
        }
        pthread_mutex_unlock(&signals->lock);
        sigtimedwait(&signals->awaited, NULL, &pause); /* until cancelled */
    }
}

static void awaited_find(sigset_t *awaited)
{
    static const int numbers[] = {SIGTERM, SIGINT, SIGHUP};

    sigemptyset(awaited);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        struct sigaction action;

        if (sigaction(numbers[i], NULL, &action) == 0 && action.sa_handler != SIG_IGN) {
            sigaddset(awaited, numbers[i]);
        }
    }
}

int signals_start(struct signals *signals, struct error *err)
{
    sigset_t blocked;
    int code;

    *signals = (struct signals){0};
    awaited_find(&signals->awaited);
    blocked = signals->awaited;
    sigaddset(&blocked, SIGPIPE);
    sigaddset(&blocked, SIGXFSZ);
    pthread_sigmask(SIG_BLOCK, &blocked, NULL);
    pthread_mutex_init(&signals->lock, NULL);
    code = pthread_create(&signals->thread, NULL, signals_main, signals);
    signals->started = code == 0;
    return code == 0 ? 0 : error_set(err, code, "a thread for signals: %s", strerror(code));
}

void signals_lead(struct signals *signals, struct fuse_session *session)
{
    pthread_mutex_lock(&signals->lock);
    signals->session = session;
    pthread_mutex_unlock(&signals->lock);
}

void signals_wake(struct signals *signals)
{
    pthread_mutex_lock(&signals->lock);
    signals->looping = pthread_self();
    signals->loops = true;
    pthread_mutex_unlock(&signals->lock);
}

void signals_stop(struct signals *signals)
{
    if (signals->started) {
        pthread_cancel(signals->thread); /* as it waits */
        pthread_join(signals->thread, NULL);
        pthread_mutex_destroy(&signals->lock);
    }
    signals->started = false;
}

void signals_unblock(const struct signals *signals)
{
    const struct timespec now = {0};

    while (sigtimedwait(&signals->awaited, NULL, &now) > 0) {
        /* It came while the session ended. */
    }
    pthread_sigmask(SIG_UNBLOCK, &signals->awaited, NULL);
}
