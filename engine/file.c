/* SPDX-License-Identifier: MIT */
#include "engine/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/file_fault.h"

enum { LABEL_BYTES = 80 };

static const unsigned char nothing[1];

static int map_descriptor(struct file_map *map, int fd, const char *label, uint64_t limit_bytes,
                          struct error *err)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return error_set(err, errno, "%s: %s", label, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return error_set(err, EINVAL, "%s: not a regular file", label);
    uint64_t size = (uint64_t)st.st_size;
    if (size > limit_bytes)
        return error_set(err, EFBIG, "%s: %llu bytes, at most %llu are allowed", label,
                         (unsigned long long)size, (unsigned long long)limit_bytes);
    struct file_map made = {.data = nothing, .size_bytes = size, .fd = fd};
    if (size > 0) {
        void *data = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
        if (data == MAP_FAILED)
            return error_set(err, errno, "%s: cannot be mapped: %s", label, strerror(errno));
        made.data = data;
        made.fault = file_fault_add(data, size);
        if (made.fault == NULL) {
            munmap(data, size);
            return error_set(err, EMFILE, "%s: too many files are mapped", label);
        }
    }
    *map = made;
    return 0;
}

int file_map_open(struct file_map *map, const char *path, uint64_t limit_bytes, struct error *err)
{
    const char *label = file_label(path);
    /* O_NONBLOCK: a FIFO in a checkpoint must be refused, not waited for. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return error_set(err, errno, "%s: %s", label, strerror(errno));
    int code = map_descriptor(map, fd, label, limit_bytes, err);
    if (code != 0)
        close(fd);
    return code;
}

int file_map_check(const struct file_map *map, const char *path, struct error *err)
{
    struct stat st;
    /* A page that the file ends in has zeros behind its end, and nobody is told. */
    if (fstat(map->fd, &st) == 0 && (uint64_t)st.st_size < map->size_bytes)
        return error_set(err, EIO,
                         "%s: cut short to %llu bytes while in use; put back the whole file",
                         file_label(path), (unsigned long long)st.st_size);
    if (map->fault != NULL && file_fault_seen(map->fault))
        return error_set(err, EIO,
                         "%s: can't be read, its disk fails or was away; see the system's log",
                         file_label(path));
    return 0;
}

void file_map_close(struct file_map *map)
{
    if (map->data == NULL)
        return;
    file_fault_remove(map->fault);
    if (map->size_bytes > 0)
        munmap((void *)map->data, map->size_bytes);
    close(map->fd);
    *map = (struct file_map){0};
}

void file_bytes_prefetch(const void *data, uint64_t size_bytes)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = (uintptr_t)data & ~(page - 1);
    uintptr_t end = (uintptr_t)data + size_bytes;
    if (begin < end)
        madvise((void *)begin, end - begin, MADV_WILLNEED);
}

void file_bytes_release(const void *data, uint64_t size_bytes)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = ((uintptr_t)data + page - 1) & ~(page - 1);
    uintptr_t end = ((uintptr_t)data + size_bytes) & ~(page - 1);
    if (begin < end)
        madvise((void *)begin, end - begin, MADV_DONTNEED);
}

char *file_path(const char *folder, const char *name)
{
    char *path = NULL;
    return asprintf(&path, "%s/%s", folder, name) < 0 ? NULL : path;
}

const char *file_label(const char *path)
{
    size_t length = strlen(path);
    if (length <= LABEL_BYTES)
        return path;
    int slashes = 0;
    for (size_t i = length; i > 0; i--) {
        if (path[i - 1] == '/' && ++slashes == 2)
            return path + i;
    }
    return path;
}
