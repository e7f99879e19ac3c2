/* SPDX-License-Identifier: MIT */
/* Any bytes as a PNG: read or refused. */
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fs/png.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct error err = {0};
    char *text;
    uint8_t *rgb;
    int width, height;
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size) {
        abort();
    }
    if (png_read_parameters(fd, &text, &err) == 0) {
        free(text);
    }
    /* Pixels only of small images: inflating big ones is all the time there is. */
    if (size > 24 && data[16] == 0 && data[17] == 0 && data[20] == 0 && data[21] == 0 &&
        png_read_pixels(fd, &rgb, &width, &height, &err) == 0) {
        if (rgb == NULL || width <= 0 || height <= 0) {
            abort();
        }
        free(rgb);
    }
    close(fd);
    return 0;
}
