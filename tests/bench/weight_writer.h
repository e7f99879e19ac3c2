/* SPDX-License-Identifier: MIT */
/*
 * Writes a list of weights as safetensors of seeded random bf16 values: one file, or shards with an
 * index. A value depends on the seed, the tensor's name and its place in the tensor only, so
 * neither threads nor shards change it.
 */
#ifndef FLUXFS_TESTS_BENCH_WEIGHT_WRITER_H
#define FLUXFS_TESTS_BENCH_WEIGHT_WRITER_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/error.h"
#include "tests/bench/weight_list.h"

struct weight_files {
    const char *folder;   /* exists */
    const char *stem;     /* "model": model.safetensors or model-00001-of-00003.safetensors … */
    uint64_t shard_bytes; /* a shard is closed before it would exceed this */
    uint64_t seed;
    int threads;
    bool hollow; /* no values: files of the same length that read as zeros and take no disk */
};

/* Failure: the errno of writing, ENOSPC before anything is written if the disk has too little room,
 * ENOMEM. What was written stays. */
int weight_list_write(const struct weight_list *list, const struct weight_files *files,
                      struct error *err);

#endif
