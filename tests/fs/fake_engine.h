/* SPDX-License-Identifier: MIT */
/* What the two halves of the fake engine share: itself, and the tests' wishes. */
#ifndef FLUXFS_TESTS_FS_FAKE_ENGINE_H
#define FLUXFS_TESTS_FS_FAKE_ENGINE_H

#include <pthread.h>
#include <stdatomic.h>

#include "engine/engine.h"

#define MIB (UINT64_C(1) << 20)
#define BLOCKS 7
#define PROMPTS 8

struct image {
    struct image *next;
    struct engine *engine;
    struct image_request request;
    struct image_observer observer;
    struct image_progress progress;
    struct image_timing timing;
    struct error error;
    uint8_t *pixels;
    atomic_bool cancelled;
};

struct engine {
    struct engine_info info;
    struct image *images;
    char *model_path;
    bool damaged;                               /* are its weights */
    long passed;                                /* blocks */
    uint64_t expected[PROMPTS], known[PROMPTS]; /* hashes of prompts: to come; embedded ahead */
    size_t expected_count, known_count;
    double device_free_s; /* when the device is through with what it has */
    pthread_mutex_t lock;
    struct engine_memory memory; /* guarded by lock */
};

/* A number of the environment. */
long fake_number(const char *name, long fallback);

/* How many blocks may be passed. */
long fake_hold(void);

void fake_sleep_us(long us);

#endif
