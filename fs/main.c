/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "fs/control.h"
#include "fs/handle.h"
#include "fs/log.h"
#include "fs/mount.h"
#include "fs/ops.h"
#include "fs/plan.h"
#include "fs/signals.h"

enum { HEALTH_WAIT_MS = 1000, HEALTH_LOOK_MS = 10 };

/* In background mode the parent waits at the other end for one byte, an exit status, and prints
 * nothing before it has that: the child still has stderr until it is mounted. */
struct launch {
    const struct config *config;
    int report_fd; /* -1 in the foreground, and once reported */
    bool detached; /* so the log goes to syslog */
    bool warned;   /* that prompts wait, and why */
};

static void launch_report(struct launch *launch, unsigned char status)
{
    if (launch->report_fd >= 0) {
        if (write(launch->report_fd, &status, 1) != 1) {
            /* The parent is gone: nobody wants to know. */
        }
        close(launch->report_fd);
        launch->report_fd = -1;
    }
}

static void launch_mounted(void *owner)
{
    struct launch *launch = owner;

    mount_notify_systemd("READY=1\nSTATUS=mounted");
    if (launch->report_fd >= 0) {
        int null = open("/dev/null", O_RDWR | O_CLOEXEC);
        if (null >= 0) {
            dup2(null, STDIN_FILENO);
            dup2(null, STDOUT_FILENO);
            dup2(null, STDERR_FILENO);
            close(null);
        }
        launch_report(launch, EXIT_SUCCESS);
    }
}

/* The first line of a file; "" if there is none. */
static void line_read(const char *path, char *line, int size)
{
    FILE *file = fopen(path, "re");

    if (file == NULL || fgets(line, size, file) == NULL) {
        line[0] = '\0';
    }
    if (file != NULL) {
        fclose(file);
    }
}

/* Why prompts wait, as anyone could read it. Opening the engine is not waited for to its end: with
 * a card it takes long. */
static void tell_health(const char *mountpoint)
{
    const struct timespec pause = {.tv_nsec = HEALTH_LOOK_MS * 1000000L};
    static const char error[] = "error: ";
    char line[1024], *path = NULL;

    if (asprintf(&path, "%s/status/health", mountpoint) < 0) {
        return;
    }
    line_read(path, line, sizeof line);
    for (int ms = 0; strncmp(line, "loading", 7) == 0 && ms < HEALTH_WAIT_MS;
         ms += HEALTH_LOOK_MS) {
        nanosleep(&pause, NULL);
        line_read(path, line, sizeof line);
    }
    free(path);
    if (strncmp(line, error, strlen(error)) == 0) {
        fprintf(stderr, "fluxfs: prompts wait: %s", line + strlen(error));
    }
}

/* The parent's half: waits until the child is mounted or has failed. */
_Noreturn static void launch_wait(const struct launch *launch, int fd, pid_t child)
{
    unsigned char status = EXIT_FAILURE;
    ssize_t got;

    do {
        got = read(fd, &status, 1);
    } while (got < 0 && errno == EINTR);
    if (got != 1) {
        waitpid(child, NULL, 0);
    } else if (status == EXIT_SUCCESS && !launch->warned) {
        tell_health(launch->config->mountpoint);
    }
    _exit(status);
}

static int launch_detach(struct launch *launch, struct error *err)
{
    int fds[2];
    pid_t child;

    /* What a script's shell has open is not to be held as long as this runs: a lock, a pipe. */
    close_range(STDERR_FILENO + 1, ~0U, 0);
    if (pipe2(fds, O_CLOEXEC) != 0) {
        return error_set(err, errno, "pipe: %s", strerror(errno));
    }
    child = fork();
    if (child < 0) {
        return error_set(err, errno, "fork: %s", strerror(errno));
    }
    if (child > 0) {
        close(fds[1]);
        launch_wait(launch, fds[0], child);
    }
    close(fds[0]);
    launch->report_fd = fds[1];
    launch->detached = true;
    log_open(launch->config->log_level, true);
    if (setsid() < 0 || chdir("/") != 0) {
        return error_set(err, errno, "going into the background: %s", strerror(errno));
    }
    return 0;
}

static int serve(struct daemon *daemon, struct signals *signals, struct error *err)
{
    const char *mountpoint = daemon->config->mountpoint;
    struct fuse_session *session;
    int code = ops_session_create(daemon, err);

    if (code != 0) {
        return code;
    }
    session = daemon->session;
    signals_lead(signals, session);
    if (fuse_session_mount(session, mountpoint) != 0) {
        code = error_set(err, EIO, "%s: can't be mounted (libfuse said why)", mountpoint);
    } else {
        code = daemon_start(daemon, err);
        if (code == 0) {
            signals_wake(signals);
            code = ops_session_run(daemon, err);
        }
    }
    signals_stop(signals);
    mount_notify_systemd("STOPPING=1");
    daemon_quiet(daemon);
    fuse_session_unmount(session);
    signals_unblock(signals);
    fuse_session_destroy(session);
    return code;
}

/* Each file of prompts/ that the kernel knows is open here, and there may be thousands. */
static void files_limit_raise(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

/* What is no reason not to mount, but should be seen by whoever types. */
static void warn(struct launch *launch)
{
    const struct config *config = launch->config;
    struct error err;

    if (mount_hides(config->mountpoint)) {
        log_line(LOG_LEVEL_WARNING, "%s is not empty: what lies there is hidden by the mount",
                 config->mountpoint);
    }
    launch->warned = control_check_model(config->model, &err) != 0;
    if (launch->warned) {
        log_line(LOG_LEVEL_WARNING, "%s; prompts wait until it can be read", err.text);
    }
}

/* In the background for whoever types, too. */
static void warn_kept(struct daemon *daemon, const struct launch *launch)
{
    char line[CONTROL_WARNING_BYTES];

    for (enum control_key key = 0; key < CONTROL_KEYS; key++) {
        if (control_warning(&daemon->control, key, daemon->config, line)) {
            log_line(LOG_LEVEL_WARNING, "%s", line);
            if (launch->detached) {
                fprintf(stderr, "fluxfs: %s\n", line);
            }
        }
    }
}

static int check_trace(const char *path, struct error *err)
{
    int fd = path != NULL ? open(path, O_WRONLY | O_CREAT | O_NONBLOCK | O_CLOEXEC, 0666) : -1;

    if (path != NULL && fd < 0) {
        return error_set(err, errno, "trace: %.150s: %s", path, strerror(errno));
    }
    if (fd >= 0) {
        close(fd);
    }
    return 0;
}

static int run(const struct config *config, struct launch *launch, struct error *err)
{
    static struct daemon daemon; /* zeroed, and too large for some stacks */
    struct notifier *notifier = NULL;
    struct signals signals = {0};
    int code = mount_prepare(config->mountpoint, err);

    if (code == 0) {
        code = check_trace(config->trace_path, err);
    }
    if (code == 0) {
        warn(launch);
    }
    if (code == 0 && !config->foreground) {
        code = launch_detach(launch, err);
    }
    if (code != 0) {
        return code;
    }
    if (notifier_create(&notifier, config->mountpoint, err) != 0) {
        log_line(LOG_LEVEL_WARNING, "%s; inotify won't see new images", err->text);
    }
    code = signals_start(&signals, err);
    if (code != 0) {
        notifier_destroy(notifier);
        return code;
    }
    files_limit_raise();
    daemon.mounted = launch_mounted;
    daemon.owner = launch;
    code = daemon_open(&daemon, config, notifier, err);
    if (code == 0) {
        warn_kept(&daemon, launch);
        code = serve(&daemon, &signals, err);
    }
    signals_stop(&signals);
    daemon_close(&daemon);
    return code;
}

/* What is opened later must not take the numbers of those that are closed: whoever writes to them
 * would write there. */
static void standard_files_open(void)
{
    int fd;

    do {
        fd = open("/dev/null", O_RDWR);
    } while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0) {
        close(fd);
    }
}

int main(int argc, char *argv[])
{
    struct config config;
    struct launch launch = {.config = &config, .report_fd = -1};
    struct error err = {0};
    int code;

    standard_files_open();
    code = config_load(&config, argc, argv, &err);
    if (code != 0) {
        fprintf(stderr, "fluxfs: %s\n", err.text);
        return EXIT_FAILURE;
    }
    if (config.action == CONFIG_HELP) {
        config_print_help(stdout);
    } else if (config.action == CONFIG_VERSION) {
        config_print_version(stdout);
    } else if (config.action == CONFIG_PLAN) {
        code = plan_print(&config, stdout, &err);
        if (code != 0) {
            fprintf(stderr, "fluxfs: %s\n", err.text);
        }
    } else {
        log_open(config.log_level, false);
        code = run(&config, &launch, &err);
        if (code != 0) {
            fprintf(stderr, "fluxfs: %s\n", err.text); /* /dev/null once in the background */
            if (launch.detached) {
                log_line(LOG_LEVEL_ERROR, "%s", err.text);
            }
        }
        launch_report(&launch, EXIT_FAILURE);
    }
    config_finish(&config);
    return code == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
