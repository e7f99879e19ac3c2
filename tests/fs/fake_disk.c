/* SPDX-License-Identifier: MIT */
/*
 * A disk that fails or is slow on demand, for the whole program, SQLite included: these functions
 * stand before those of libc. While the file that FLUXFS_FAKE_DISK names exists, each of its lines
 *   KIND ERRNO MICROSECONDS
 * has all calls of a kind (read, write or sync) take so much longer and, unless ERRNO is 0, fail
 * with it. Only files and folders are meant, not stderr, sockets or /dev/fuse.
 */
#undef _FILE_OFFSET_BITS /* pread and pread64 are two symbols here */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void *real(const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);

    if (found == NULL) {
        abort();
    }
    return found;
}

/* The rules as they stand, or NULL. System calls, for libc's functions lead back here. */
static const char *rules_read(char *rules, size_t size)
{
    const char *path = getenv("FLUXFS_FAKE_DISK");
    long fd = path != NULL ? syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0) : -1;
    long got;

    if (fd < 0) {
        return NULL;
    }
    got = syscall(SYS_read, fd, rules, size - 1);
    syscall(SYS_close, fd);
    rules[got > 0 ? got : 0] = '\0';
    return rules;
}

/* True if this call is to fail, with errno set. */
static bool faulty(int fd, const char *kind)
{
    char rules[256], name[16];
    const char *line = rules_read(rules, sizeof rules);
    int saved = errno, code = 0;
    long us = 0;
    struct stat st;

    if (line == NULL || (fd >= 0 && fd <= STDERR_FILENO) ||
        (fd >= 0 && (fstat(fd, &st) != 0 || !(S_ISREG(st.st_mode) || S_ISDIR(st.st_mode))))) {
        errno = saved;
        return false;
    }
    for (; line != NULL; line = strchr(line, '\n'), line += line != NULL) {
        if (sscanf(line, "%15s %d %ld", name, &code, &us) == 3 && strcmp(name, kind) == 0) {
            struct timespec time = {us / 1000000, us % 1000000 * 1000};
            nanosleep(&time, NULL);
            errno = code != 0 ? code : saved;
            return code != 0;
        }
    }
    errno = saved;
    return false;
}

/* The cast is POSIX's own way from dlsym's pointer to a function. */
#define ON_DISK(kind, name, type, params, args)                                                    \
    type name params;                                                                              \
    type name params                                                                               \
    {                                                                                              \
        type(*call) params;                                                                        \
        if (faulty(fd, kind)) {                                                                    \
            return -1;                                                                             \
        }                                                                                          \
        *(void **)&call = real(#name);                                                             \
        return call args;                                                                          \
    }

ON_DISK("read", pread, ssize_t, (int fd, void *to, size_t size, off_t at), (fd, to, size, at))
ON_DISK("read", pread64, ssize_t, (int fd, void *to, size_t size, off64_t at), (fd, to, size, at))
ON_DISK("write", write, ssize_t, (int fd, const void *from, size_t size), (fd, from, size))
ON_DISK("write", pwrite, ssize_t, (int fd, const void *from, size_t size, off_t at),
        (fd, from, size, at))
ON_DISK("write", pwrite64, ssize_t, (int fd, const void *from, size_t size, off64_t at),
        (fd, from, size, at))
ON_DISK("write", ftruncate, int, (int fd, off_t size), (fd, size))
ON_DISK("write", ftruncate64, int, (int fd, off64_t size), (fd, size))
ON_DISK("sync", fsync, int, (int fd), (fd))
ON_DISK("sync", fdatasync, int, (int fd), (fd))
