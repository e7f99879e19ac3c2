/* SPDX-License-Identifier: MIT */
/*
 * The algorithms that were the fastest for a shape, kept in a file: measured once on a machine, so
 * that later starts lose no time, and compute the same bits.
 *
 * The file is text, one shape a line under a line that names device and library; another device or
 * version, or a line that makes no sense, is as if it were not there. It is written whole and
 * renamed, each time with what others have added to it since: of a shape the first choice stays.
 *
 * What can't be written must not be used, as the next start would measure again. So a folder that
 * fails once, of a full disk, say, is left alone until the next start; what is measured when it
 * works again may be other algorithms than those that were used meanwhile.
 */
#ifndef FLUXFS_ENGINE_CUDA_GEMM_CACHE_H
#define FLUXFS_ENGINE_CUDA_GEMM_CACHE_H

#include <cublasLt.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What an algorithm is chosen for. */
struct gemm_shape {
    int64_t m, n, k, y_stride, x_stride, w_stride;
    int y_dtype; /* enum dtype */
    bool plain_w, biased, tiled;
    int epilogue; /* cublasLtEpilogue_t */
};

bool gemm_shape_same(const struct gemm_shape *a, const struct gemm_shape *b);

struct gemm_choice {
    struct gemm_shape shape;
    cublasLtMatmulAlgo_t algorithm;
};

struct gemm_cache {
    char path[4096]; /* "" if there is no place for it, or no longer */
    char head[256];  /* its first line */
    struct gemm_choice *choices;
    size_t count, capacity;
};

/* More than so many were not written by us. */
enum { GEMM_CHOICES_MAX = 4096 };

/* In the folder $CACHE_DIRECTORY, $XDG_CACHE_HOME/fluxfs or $HOME/.cache/fluxfs. */
void gemm_cache_open(struct gemm_cache *cache, const char *device, size_t library_version);
const struct gemm_choice *gemm_cache_find(const struct gemm_cache *cache,
                                          const struct gemm_shape *shape);
/* Whether a choice that is not there yet could be kept. */
bool gemm_cache_has_room(const struct gemm_cache *cache);
/* Writes it to the file, unless another process was first: then `choice` becomes that one's. False:
 * it can't be kept. */
bool gemm_cache_keep(struct gemm_cache *cache, struct gemm_choice *choice);
void gemm_cache_finish(struct gemm_cache *cache);

#endif
