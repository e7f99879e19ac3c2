/* SPDX-License-Identifier: MIT */
#include "fs/mount.h"

#include <dirent.h>
#include <errno.h>
#include <spawn.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

/* Undoes the octal escapes (\040) of mountinfo, in place. */
static void octal_unescape(char *text)
{
    char *to = text;

    while (*text != '\0') {
        if (text[0] == '\\' && strspn(text + 1, "01234567") >= 3) {
            *to++ = (char)((text[1] - '0') << 6 | (text[2] - '0') << 3 | (text[3] - '0'));
            text += 4;
        } else {
            *to++ = *text++;
        }
    }
    *to = '\0';
}

/* Whether a fluxfs is mounted there, dead or alive: the fifth field of a line is the place, the
 * type follows " - ". */
static bool is_our_mount(const char *mountpoint)
{
    FILE *file = fopen("/proc/self/mountinfo", "re");
    char *line = NULL;
    size_t capacity = 0;
    bool found = false;

    while (file != NULL && !found && getline(&line, &capacity, file) > 0) {
        char *place = line, *type = strstr(line, " - ");
        for (int i = 0; i < 4 && place != NULL; i++) {
            place = strchr(place, ' ');
            place = place != NULL ? place + 1 : NULL;
        }
        if (place != NULL && type != NULL && strncmp(type, " - fuse.fluxfs ", 15) == 0) {
            place[strcspn(place, " ")] = '\0';
            octal_unescape(place);
            found = strcmp(place, mountpoint) == 0;
        }
    }
    free(line);
    if (file != NULL) {
        fclose(file);
    }
    return found;
}

static int unmount_dead(const char *mountpoint)
{
    char program[] = "fusermount3", unmount[] = "-u", lazy[] = "-z", *place = strdup(mountpoint);
    char *argv[] = {program, unmount, lazy, place, NULL};
    int status = -1;
    pid_t pid;

    if (umount2(mountpoint, MNT_DETACH | UMOUNT_NOFOLLOW) == 0) {
        status = 0;
    } else if (place != NULL && posix_spawnp(&pid, program, NULL, NULL, argv, environ) == 0) {
        waitpid(pid, &status, 0);
    }
    free(place);
    return status == 0 ? 0 : -EBUSY;
}

int mount_prepare(const char *mountpoint, struct error *err)
{
    struct statvfs statvfs_unused;
    struct stat st;

    /* stat alone may be answered from what the kernel remembers of a mount that is dead. */
    if (statvfs(mountpoint, &statvfs_unused) != 0 || stat(mountpoint, &st) != 0) {
        if (errno == ENOTCONN || errno == ECONNABORTED) {
            if (is_our_mount(mountpoint) && unmount_dead(mountpoint) == 0) {
                return mount_prepare(mountpoint, err);
            }
            return error_set(err, EBUSY, "%s: a mount whose program is gone: fusermount3 -u %s",
                             mountpoint, mountpoint);
        }
        return error_set(err, errno, "%s: %s%s", mountpoint, strerror(errno),
                         errno == ENOENT ? "; make it: mkdir -p" : "");
    }
    if (!S_ISDIR(st.st_mode)) {
        return error_set(err, ENOTDIR, "%s: is no directory", mountpoint);
    }
    if (is_our_mount(mountpoint)) {
        return error_set(err, EBUSY, "%s: a fluxfs is mounted here already", mountpoint);
    }
    return 0;
}

bool mount_hides(const char *mountpoint)
{
    DIR *folder = opendir(mountpoint);
    const struct dirent *entry = NULL;
    bool found = false;

    while (folder != NULL && !found && (entry = readdir(folder)) != NULL) {
        found = strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    }
    if (folder != NULL) {
        closedir(folder);
    }
    return found;
}

void mount_notify_systemd(const char *message)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = path != NULL ? strlen(path) : 0;
    int fd;

    if (length < 2 || length >= sizeof address.sun_path) {
        return;
    }
    memcpy(address.sun_path, path, length);
    if (path[0] == '@') {
        address.sun_path[0] = '\0'; /* Linux's abstract names */
    }
    fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd >= 0) {
        sendto(fd, message, strlen(message), MSG_NOSIGNAL, (struct sockaddr *)&address,
               (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length));
        close(fd);
    }
}
