/* SPDX-License-Identifier: MIT */
/*
 * Runs a fuzz target without a fuzzer: over every file of a folder, over its beginnings, and over
 * copies with a few bytes changed (always the same ones).
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { BEGINNINGS = 300, MUTATIONS = 300, MAX_BYTES = 1 << 20 };

/* An exact copy on the heap, so that a sanitizer sees one byte too far. */
static void run_copy(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size == 0 ? 1 : size);
    if (copy == NULL) {
        abort();
    }
    memcpy(copy, data, size);
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
}

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void run_mutations(uint8_t *data, size_t size)
{
    uint64_t state = 88172645463325252U;
    for (int i = 0; i < MUTATIONS && size > 0; i++) {
        size_t at = next_random(&state) % size;
        size_t bytes = 1 + next_random(&state) % 3;
        uint8_t kept[3];
        bytes = bytes < size - at ? bytes : size - at;
        memcpy(kept, data + at, bytes);
        for (size_t k = 0; k < bytes; k++) {
            data[at + k] = (uint8_t)next_random(&state);
        }
        run_copy(data, size);
        memcpy(data + at, kept, bytes);
    }
}

static int run_file(const char *folder, const char *name)
{
    static uint8_t data[MAX_BYTES];
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        perror(path);
        return 1;
    }
    size_t size = fread(data, 1, sizeof data, file);
    fclose(file);
    run_copy(data, size);
    size_t step = size / BEGINNINGS + 1;
    for (size_t length = 0; length < size; length += step) {
        run_copy(data, length);
    }
    run_mutations(data, size);
    return 0;
}

int main(int argc, char **argv)
{
    int files = 0;
    DIR *folder = argc == 2 ? opendir(argv[1]) : NULL;
    if (folder == NULL) {
        fprintf(stderr, "usage: %s CORPUS-FOLDER\n", argv[0]);
        return EXIT_FAILURE;
    }
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        if (entry->d_name[0] != '.') {
            if (run_file(argv[1], entry->d_name) != 0) {
                return EXIT_FAILURE;
            }
            files++;
        }
    }
    closedir(folder);
    printf("%d files\n", files);
    return files > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
