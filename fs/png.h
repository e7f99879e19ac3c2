/* SPDX-License-Identifier: MIT */
/*
 * PNG files: RGB, 8 bits, with the A1111 text `parameters` in them (tEXt, or iTXt where the text
 * isn't Latin-1).
 */
#ifndef FLUXFS_FS_PNG_H
#define FLUXFS_FS_PNG_H

#include <stddef.h>
#include <stdint.h>

#include "engine/error.h"

enum { PNG_MAX_SIDE_PX = 16384, PNG_MAX_PIXELS = 1 << 27 };

struct png_image {
    const uint8_t *rgb; /* rows × width × 3, no padding */
    int width_px;       /* 1 … PNG_MAX_SIDE_PX */
    int height_px;
    const char *parameters; /* UTF-8; NULL: no text */
};

/* Temporaries of png_write_file begin with this. */
#define PNG_TEMPORARY_PREFIX ".png-"

/* The bytes of a PNG file, to free. Failure: EINVAL (size, or text not UTF-8), ENOMEM. */
int png_encode(const struct png_image *image, uint8_t **bytes, size_t *length, struct error *err);

/* Writes `name` in a folder such that it appears whole or not at all, and durable before this
 * returns: temporary file, fsync, rename (an older file of the name gives way), fsync of the
 * folder. Failure: as png_encode, or the disk's errno; nothing is left behind. */
int png_write_file(int folder_fd, const char *name, const struct png_image *image,
                   struct error *err);

/* The same with a file made already (png_encode). */
int png_write_bytes(int folder_fd, const char *name, const uint8_t *bytes, size_t length,
                    struct error *err);

/* The `parameters` text of the PNG behind a descriptor, to free; read from offset 0, whatever the
 * descriptor's own. Failure: ENODATA if it has none, EINVAL if it is no sound PNG, ENOMEM. */
int png_read_parameters(int fd, char **parameters, struct error *err);

/* The pixels of any PNG within the limits above as RGB8 (alpha dropped, grey and palettes
 * expanded, 16 bits cut), to free. Failure: EINVAL if it is no sound PNG, ENOMEM. */
int png_read_pixels(int fd, uint8_t **rgb, int *width_px, int *height_px, struct error *err);

#endif
