/* SPDX-License-Identifier: MIT */
/* Any bytes as the ini file: refused in one line that names it, or a sound configuration. And as a
 * size: what is read comes back from what is written. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fs/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int condition)
{
    if (!condition) {
        abort();
    }
}

static void check_file(const uint8_t *data, size_t size)
{
    struct config config;
    struct error err = {0};
    char path[64];
    int fd = memfd_create("ini", MFD_CLOEXEC);
    require(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    char *argv[] = {"fluxfs", "--config", path, "/", "/mnt", NULL};
    if (config_load(&config, 5, argv, &err) == 0) {
        const struct prompt_values *values = &config.defaults;
        require(config.mountpoint != NULL && config.backend != NULL && config.state_dir != NULL);
        require(config.model != NULL && strcmp(config.model, "/") == 0);
        require(values->steps >= 0 && values->width_px % PROMPT_SIDE_STEP_PX == 0);
        require(values->guidance >= 0 && values->true_cfg >= 1 && values->seed >> 63 == 0);
        require((config.umask & ~0777U) == 0 && config.threads >= 0);
        config_finish(&config);
    } else {
        require(err.code < 0 && err.text[0] != '\0' && strchr(err.text, '\n') == NULL);
    }
    close(fd);
}

static void check_size(const uint8_t *data, size_t size)
{
    char text[64];
    uint64_t bytes, again;
    size_t length = size < sizeof text - 1 ? size : sizeof text - 1;
    memcpy(text, data, length);
    text[length] = '\0';
    if (config_parse_size(&bytes, text, NULL) == 0) {
        config_format_size(text, bytes);
        require(config_parse_size(&again, text, NULL) == 0 && again == bytes);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    check_file(data, size);
    check_size(data, size);
    return 0;
}
