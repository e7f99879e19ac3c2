/* SPDX-License-Identifier: MIT */
/* An input as a file in memory, for what is opened by path. */
#ifndef FLUXFS_TESTS_FUZZ_AS_FILE_H
#define FLUXFS_TESTS_FUZZ_AS_FILE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

struct as_file {
    int fd;
    char path[32];
};

static struct as_file as_file_open(const uint8_t *data, size_t size)
{
    struct as_file file = {.fd = memfd_create("input", MFD_CLOEXEC)};
    if (file.fd < 0 || write(file.fd, data, size) != (ssize_t)size)
        abort();
    snprintf(file.path, sizeof file.path, "/proc/self/fd/%d", file.fd);
    return file;
}

static void as_file_close(struct as_file *file)
{
    close(file->fd);
}

#endif
