/* SPDX-License-Identifier: MIT */
/*
 * Files read by mapping them, and how messages name them.
 */
#ifndef FLUXFS_ENGINE_FILE_H
#define FLUXFS_ENGINE_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "engine/error.h"

struct file_fault;

/* A whole file, read-only. The pages are those of the page cache: nothing is read before it is
 * touched. Where the file can't be read any more, since somebody cut it short or its disk fails,
 * there are zeros, and file_map_check tells. */
struct file_map {
    const unsigned char *data; /* never NULL once open, even for an empty file */
    uint64_t size_bytes;
    struct file_fault *fault; /* NULL if the file is empty */
    int fd;
};

/* Maps a regular file of at most `limit_bytes`. Fails with the errno of open(2) or mmap(2), EINVAL
 * if it isn't a regular file, EFBIG if it is larger than the limit. */
int file_map_open(struct file_map *map, const char *path, uint64_t limit_bytes, struct error *err);
/* After reading: EIO if some of what was read was not the file's. The path is for the message. */
int file_map_check(const struct file_map *map, const char *path, struct error *err);
void file_map_close(struct file_map *map); /* also one that is all zero */

/* Starts reading the pages that hold these bytes of a mapping, and returns at once. */
void file_bytes_prefetch(const void *data, uint64_t size_bytes);
/* Gives back the process's own use of the pages wholly inside these bytes; they stay in the page
 * cache while there is room, and stay readable. */
void file_bytes_release(const void *data, uint64_t size_bytes);

/* "folder/name", to be freed; NULL when out of memory. */
char *file_path(const char *folder, const char *name);

/* The part of a path that a message of 256 bytes has room for: all of it if short, else its last
 * two components. Points into `path`. */
const char *file_label(const char *path);

#endif
