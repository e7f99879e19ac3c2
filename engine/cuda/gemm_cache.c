/* SPDX-License-Identifier: MIT */
#include "engine/cuda/gemm_cache.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define WORDS (sizeof(cublasLtMatmulAlgo_t) / sizeof(uint64_t))

bool gemm_shape_same(const struct gemm_shape *a, const struct gemm_shape *b)
{
    return a->m == b->m && a->n == b->n && a->k == b->k && a->y_stride == b->y_stride &&
           a->x_stride == b->x_stride && a->w_stride == b->w_stride && a->y_dtype == b->y_dtype &&
           a->plain_w == b->plain_w && a->epilogue == b->epilogue && a->biased == b->biased &&
           a->tiled == b->tiled;
}

const struct gemm_choice *gemm_cache_find(const struct gemm_cache *cache,
                                          const struct gemm_shape *shape)
{
    for (size_t i = 0; i < cache->count; i++)
        if (gemm_shape_same(&cache->choices[i].shape, shape))
            return &cache->choices[i];
    return NULL;
}

static bool append(struct gemm_cache *cache, const struct gemm_choice *choice)
{
    if (cache->count == GEMM_CHOICES_MAX)
        return false;
    if (cache->choices == NULL || cache->count == cache->capacity) {
        size_t capacity = cache->capacity ? 2 * cache->capacity : 64;
        struct gemm_choice *grown = realloc(cache->choices, capacity * sizeof *grown);

        if (grown == NULL)
            return false;
        cache->choices = grown;
        cache->capacity = capacity;
    }
    cache->choices[cache->count++] = *choice;
    return true;
}

/* What is there already stays. */
static void append_new(struct gemm_cache *cache, const struct gemm_choice *choice)
{
    if (gemm_cache_find(cache, &choice->shape) == NULL)
        append(cache, choice);
}

/* ---- the file ---- */

/* Makes the folders that are named behind the first `kept` characters. */
static void make_folders(char *folder, size_t kept)
{
    for (char *at = folder + kept; (at = strchr(at + 1, '/')) != NULL;) {
        *at = '\0';
        mkdir(folder, 0777);
        *at = '/';
    }
    mkdir(folder, 0777);
}

/* Where the file lies. */
static void find_path(char *path, size_t size)
{
    static const struct {
        const char *variable, *folder;
    } places[] = {
        {"CACHE_DIRECTORY", ""}, {"XDG_CACHE_HOME", "/fluxfs"}, {"HOME", "/.cache/fluxfs"}};

    path[0] = '\0';
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        const char *base = getenv(places[i].variable);
        char folder[4000];

        if (base == NULL || base[0] != '/')
            continue;
        if (snprintf(folder, sizeof folder, "%s%s", base, places[i].folder) >= (int)sizeof folder)
            return;
        make_folders(folder, strlen(base));
        if (access(folder, W_OK) == 0)
            snprintf(path, size, "%s/cuda-products", folder);
        return;
    }
}

static bool read_choice(const char *line, struct gemm_choice *choice)
{
    struct gemm_shape *s = &choice->shape;
    int plain_w, biased, tiled, used = 0;

    if (sscanf(line,
               "%" SCNd64 " %" SCNd64 " %" SCNd64 " %" SCNd64 " %" SCNd64 " %" SCNd64
               " %d %d %d %d %d%n",
               &s->m, &s->n, &s->k, &s->y_stride, &s->x_stride, &s->w_stride, &s->y_dtype, &plain_w,
               &biased, &tiled, &s->epilogue, &used) != 11)
        return false;
    s->plain_w = plain_w != 0;
    s->biased = biased != 0;
    s->tiled = tiled != 0;
    for (size_t i = 0; i < WORDS; i++) {
        int more = 0;

        if (sscanf(line + used, " %" SCNx64 "%n", &choice->algorithm.data[i], &more) != 1)
            return false;
        used += more;
    }
    return line[used] == '\n';
}

static void write_choice(FILE *file, const struct gemm_choice *choice)
{
    const struct gemm_shape *s = &choice->shape;

    fprintf(file,
            "%" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64
            " %d %d %d %d %d",
            s->m, s->n, s->k, s->y_stride, s->x_stride, s->w_stride, s->y_dtype, s->plain_w,
            s->biased, s->tiled, s->epilogue);
    for (size_t i = 0; i < WORDS; i++)
        fprintf(file, " %" PRIx64, choice->algorithm.data[i]);
    fputc('\n', file);
}

static void read_file(struct gemm_cache *cache)
{
    char line[1024];
    struct gemm_choice choice;
    FILE *file = fopen(cache->path, "re");

    if (file == NULL)
        return;
    if (fgets(line, sizeof line, file) != NULL && strcmp(line, cache->head) == 0)
        while (fgets(line, sizeof line, file) != NULL)
            if (read_choice(line, &choice))
                append_new(cache, &choice);
    fclose(file);
}

void gemm_cache_open(struct gemm_cache *cache, const char *device, size_t library_version)
{
    *cache = (struct gemm_cache){0};
    find_path(cache->path, sizeof cache->path);
    snprintf(cache->head, sizeof cache->head, "fluxfs products 4, cuBLASLt %zu, %s\n",
             library_version, device);
    if (cache->path[0] != '\0')
        read_file(cache);
}

static bool write_file(const struct gemm_cache *cache)
{
    char temporary[sizeof cache->path + 32];
    FILE *file;
    bool good;

    snprintf(temporary, sizeof temporary, "%s.%ld", cache->path, (long)getpid());
    file = fopen(temporary, "we");
    if (file == NULL)
        return false;
    fputs(cache->head, file);
    for (size_t i = 0; i < cache->count; i++)
        write_choice(file, &cache->choices[i]);
    good = !ferror(file);
    good = fclose(file) == 0 && good;
    if (good && rename(temporary, cache->path) == 0)
        return true;
    unlink(temporary);
    return false;
}

/* The folder, locked against other processes that write; closing it unlocks it. Where it can't be
 * locked, two that write at the same moment may lose what one of them adds. */
static int lock_folder(const struct gemm_cache *cache)
{
    char folder[sizeof cache->path];
    int fd;

    snprintf(folder, sizeof folder, "%s", cache->path);
    *strrchr(folder, '/') = '\0';
    fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0)
        (void)flock(fd, LOCK_EX);
    return fd;
}

/* What the file has, then ours, then the choice; false: there was no room for it, or no memory. */
static bool merge(struct gemm_cache *merged, const struct gemm_cache *cache,
                  const struct gemm_choice *choice)
{
    *merged = *cache;
    merged->choices = NULL;
    merged->count = merged->capacity = 0;
    read_file(merged);
    for (size_t i = 0; i < cache->count; i++)
        append_new(merged, &cache->choices[i]);
    append_new(merged, choice);
    return gemm_cache_find(merged, &choice->shape) != NULL;
}

bool gemm_cache_has_room(const struct gemm_cache *cache)
{
    return cache->path[0] != '\0' && cache->count < GEMM_CHOICES_MAX;
}

bool gemm_cache_keep(struct gemm_cache *cache, struct gemm_choice *choice)
{
    struct gemm_cache merged;
    bool kept;
    int folder;

    if (!gemm_cache_has_room(cache))
        return false;
    folder = lock_folder(cache);
    kept = merge(&merged, cache, choice) && write_file(&merged);
    if (folder >= 0)
        close(folder);
    if (kept) {
        *choice = *gemm_cache_find(&merged, &choice->shape);
        free(cache->choices);
        *cache = merged;
    } else {
        free(merged.choices);
        cache->path[0] = '\0';
    }
    return kept;
}

void gemm_cache_finish(struct gemm_cache *cache)
{
    free(cache->choices);
    *cache = (struct gemm_cache){0};
}
