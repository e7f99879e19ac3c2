/* SPDX-License-Identifier: MIT */
/* Files a test writes for itself, in a folder of its own that scratch_finish removes. */
#ifndef FLUXFS_TESTS_UNIT_SCRATCH_H
#define FLUXFS_TESTS_UNIT_SCRATCH_H

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char scratch_folder[64];

__attribute__((unused)) static void scratch_start(void)
{
    snprintf(scratch_folder, sizeof scratch_folder, "/tmp/fluxfs-test-XXXXXX");
    if (mkdtemp(scratch_folder) == NULL) {
        perror(scratch_folder);
        exit(EXIT_FAILURE);
    }
}

/* The path of a file in the folder; valid until the next call. */
__attribute__((unused)) static const char *scratch_path(const char *name)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", scratch_folder, name);
    return path;
}

__attribute__((unused)) static const char *scratch_write(const char *name, const void *data,
                                                         size_t bytes)
{
    const char *path = scratch_path(name);
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(data, 1, bytes, file) != bytes || fclose(file) != 0) {
        perror(path);
        exit(EXIT_FAILURE);
    }
    return path;
}

__attribute__((unused)) static void scratch_clear(void)
{
    DIR *folder = opendir(scratch_folder);
    for (struct dirent *entry; folder != NULL && (entry = readdir(folder)) != NULL;) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            unlinkat(dirfd(folder), entry->d_name, 0);
    }
    if (folder != NULL)
        closedir(folder);
}

__attribute__((unused)) static void scratch_finish(void)
{
    scratch_clear();
    rmdir(scratch_folder);
}

/* Each test begins with an empty folder. */
__attribute__((unused)) static void scratch_run(void (*const *tests)(void), size_t count)
{
    scratch_start();
    for (size_t i = 0; i < count; i++) {
        tests[i]();
        scratch_clear();
    }
    scratch_finish();
}

#endif
