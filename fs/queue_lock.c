/* SPDX-License-Identifier: MIT */
/* The state folder, and the lock that keeps other daemons out of it. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "fs/queue_private.h"

/* The folders above the last one of a path, as mkdir -p makes them. */
static int make_parents(const char *folder)
{
    char *path = strdup(folder);
    int rc = path == NULL ? -ENOMEM : 0;

    for (char *slash = path; rc == 0 && (slash = strchr(slash + 1, '/')) != NULL; *slash = '/') {
        *slash = '\0';
        if (mkdir(path, 0755) != 0 && errno != EEXIST) {
            rc = -errno;
        }
    }
    free(path);
    return rc;
}

/* Failure: EWOULDBLOCK when it is still locked after so long. */
static int lock_wait(int fd, unsigned wait_ms)
{
    enum { STEP_MS = 20 };

    while (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK || wait_ms < STEP_MS) {
            return -errno;
        }
        usleep(1000 * STEP_MS);
        wait_ms -= STEP_MS;
    }
    return 0;
}

/* The process that holds the lock, as the kernel lists it: "1: FLOCK  ADVISORY  WRITE 812 08:01:77
 * 0 EOF". 0: not in the list, since it runs in another container or the file system numbers its
 * folders otherwise. */
static int lock_holder(int fd)
{
    FILE *file = fopen("/proc/locks", "re");
    struct stat st;
    char line[256];
    int holder = 0;

    while (file != NULL && fstat(fd, &st) == 0 && holder == 0 &&
           fgets(line, sizeof line, file) != NULL) {
        unsigned device[2];
        unsigned long long inode;
        int pid;

        if (sscanf(line, "%*s FLOCK %*s WRITE %d %x:%x:%llu", &pid, &device[0], &device[1],
                   &inode) == 4 &&
            inode == st.st_ino && makedev(device[0], device[1]) == st.st_dev) {
            holder = pid;
        }
    }
    if (file != NULL) {
        fclose(file);
    }
    return holder;
}

static int refuse_busy(const char *folder, int fd, struct error *err)
{
    char process[32] = "";
    int holder = lock_holder(fd);

    if (holder > 0) {
        snprintf(process, sizeof process, " (process %d)", holder);
    }
    return error_set(err, EBUSY,
                     "%.80s: another fluxfs%s uses this state folder: if it is the one before, "
                     "still ending, wait; else give each mount its own with state_dir",
                     folder, process);
}

int queue_lock_folder(const char *folder, unsigned wait_ms, int *lock_fd, struct error *err)
{
    int rc = make_parents(folder);

    if (rc == 0 && mkdir(folder, 0700) != 0 && errno != EEXIST) {
        rc = -errno;
    }
    if (rc != 0) {
        return error_set(err, -rc, "%s: can't make the state folder: %s", folder, strerror(-rc));
    }
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        return error_set(err, errno, "%s: can't open the state folder: %s", folder,
                         strerror(errno));
    }
    rc = faccessat(fd, ".", W_OK | X_OK, AT_EACCESS) != 0 ? -errno : 0;
    if (rc != 0) { /* else SQLite would say no more than that it can't open a file */
        close(fd);
        return error_set(err, -rc, "%s: can't write to the state folder: %s", folder,
                         strerror(-rc));
    }
    rc = lock_wait(fd, wait_ms);
    if (rc != 0) {
        rc = rc == -EWOULDBLOCK ? refuse_busy(folder, fd, err)
                                : error_set(err, -rc, "%s: %s", folder, strerror(-rc));
        close(fd);
        return rc;
    }
    *lock_fd = fd;
    return 0;
}
