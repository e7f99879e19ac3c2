/* SPDX-License-Identifier: MIT */
#include "fs/notifier.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PATIENCE_MS = 5000, NAME_BYTES = 256 };

struct message {
    uint32_t number;
    bool unlink, create;
    char name[NAME_BYTES];
};

struct notifier {
    pid_t pid;
    int socket;
    uint32_t number;
};

/* ---- In the child. ---- */

static void message_carry_out(const char *mountpoint, const struct message *message)
{
    char path[4096 + NAME_BYTES];
    int length = snprintf(path, sizeof path, "%s/images/%s", mountpoint, message->name);

    if (length < 0 || (size_t)length >= sizeof path) {
        return;
    }
    if (message->unlink) {
        unlink(path);
    }
    if (message->create) {
        int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0444);
        if (fd >= 0) {
            close(fd);
        }
    }
}

_Noreturn static void child_run(int socket, const char *mountpoint, pid_t parent)
{
    struct message message;
    int null;

    /* Ctrl-C reaches the whole process group: the end of the socket is our signal, not that. */
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    prctl(PR_SET_NAME, "fluxfs-notify");
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent || chdir("/") != 0) {
        _exit(EXIT_FAILURE);
    }
    /* Whoever reads our output must not wait for this process too. */
    null = open("/dev/null", O_RDWR);
    dup2(socket, 3);
    for (int fd = 0; fd < 3 && null >= 0; fd++) {
        dup2(null, fd);
    }
    close_range(4, ~0U, 0);
    while (recv(3, &message, sizeof message, 0) == (ssize_t)sizeof message) {
        message_carry_out(mountpoint, &message);
        if (send(3, &message.number, sizeof message.number, MSG_NOSIGNAL) < 0) {
            break;
        }
    }
    _exit(EXIT_SUCCESS);
}

/* ---- In the daemon. ---- */

int notifier_create(struct notifier **notifier, const char *mountpoint, struct error *err)
{
    struct notifier *new = calloc(1, sizeof *new);
    pid_t parent = getpid();
    int sockets[2];

    if (new == NULL) {
        return error_set(err, ENOMEM, "no memory for the notifier");
    }
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) != 0) {
        int code = errno;
        free(new);
        return error_set(err, code, "notifier: socketpair: %s", strerror(code));
    }
    new->pid = fork();
    if (new->pid == 0) {
        close(sockets[0]);
        child_run(sockets[1], mountpoint, parent);
    }
    close(sockets[1]);
    if (new->pid < 0) {
        int code = errno;
        close(sockets[0]);
        free(new);
        return error_set(err, code, "notifier: fork: %s", strerror(code));
    }
    new->socket = sockets[0];
    *notifier = new;
    return 0;
}

void notifier_kill(struct notifier *notifier)
{
    if (notifier != NULL) {
        kill(notifier->pid, SIGKILL);
    }
}

void notifier_destroy(struct notifier *notifier)
{
    if (notifier == NULL) {
        return;
    }
    close(notifier->socket);
    kill(notifier->pid, SIGKILL);
    waitpid(notifier->pid, NULL, 0);
    free(notifier);
}

pid_t notifier_pid(const struct notifier *notifier)
{
    return notifier != NULL ? notifier->pid : -1;
}

static int64_t monotonic_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Answers to earlier messages that came too late are passed over. */
static bool notifier_ask(struct notifier *notifier, const char *name, bool unlink, bool create)
{
    struct message message = {.unlink = unlink, .create = create};
    int64_t end = monotonic_ms() + PATIENCE_MS;
    uint32_t answer;

    if (notifier == NULL || strlen(name) >= sizeof message.name) {
        return false;
    }
    message.number = ++notifier->number;
    memcpy(message.name, name, strlen(name) + 1);
    if (send(notifier->socket, &message, sizeof message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
        return false;
    }
    for (;;) {
        struct pollfd pollfd = {.fd = notifier->socket, .events = POLLIN};
        int64_t left = end - monotonic_ms();
        if (left <= 0 || poll(&pollfd, 1, (int)left) <= 0 ||
            recv(notifier->socket, &answer, sizeof answer, 0) != (ssize_t)sizeof answer) {
            return false;
        }
        if (answer == message.number) {
            return true;
        }
    }
}

bool notifier_created(struct notifier *notifier, const char *name)
{
    return notifier_ask(notifier, name, false, true);
}

bool notifier_gone(struct notifier *notifier, const char *name)
{
    return notifier_ask(notifier, name, true, false);
}

bool notifier_replaced(struct notifier *notifier, const char *name)
{
    return notifier_ask(notifier, name, true, true);
}
