/* SPDX-License-Identifier: MIT */
/*
 * What the worker makes known after each block: state of the engine, and progress of each image.
 * One writer; readers on any thread copy the newest whole snapshot and never wait, not for the
 * writer either.
 */
#ifndef FLUXFS_FS_BOARD_H
#define FLUXFS_FS_BOARD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/engine.h"

enum { BOARD_IMAGES = 12, BOARD_SLOTS = 8 };

enum health { HEALTH_LOADING, HEALTH_OK, HEALTH_ERROR };

struct board_image {
    int64_t job;
    int64_t started_ns; /* since the epoch */
    int width_px, height_px;
    bool saving; /* painted; the PNG is on its way to the disk */
    struct image_progress progress;
    struct image_timing timing; /* as of the last round */
};

/* The engine's info, by value. Empty while it loads. */
struct board_device {
    char model[96], backend[16], device[128], warning[256];
    uint64_t parameters, weight_bytes;
    int native_px, default_steps, max_side_px, max_tokens;
    bool has_guidance;
};

struct board_state {
    uint64_t version; /* grows by one with each publication */
    int64_t published_ns;
    enum health health;
    char health_text[384]; /* why not, if HEALTH_ERROR; what is loading, or to be loaded */
    char shortage[448];    /* which job waits for memory, and for how much; "": none */
    double load_s;         /* how long loading took */
    struct board_device device;
    int images;
    struct board_image image[BOARD_IMAGES];
    struct board_image last;          /* the newest image that is done; job 0: none yet */
    uint64_t done, failed, cancelled; /* since the start */
    struct image_timing total;        /* summed over the images done since the start */
};

#define BOARD_WORDS ((sizeof(struct board_state) + 7) / 8)

struct board_slot {
    atomic_uint_least64_t sequence; /* odd while it is being written */
    atomic_uint_least64_t words[BOARD_WORDS];
};

struct board {
    atomic_uint current;
    atomic_uint_least64_t version; /* of the newest state */
    struct board_slot slots[BOARD_SLOTS];
};

/* Publishes a state: sets its version and time. One thread only. */
void board_publish(struct board *board, struct board_state *state);

void board_read(struct board *board, struct board_state *state);

/* That of the newest state, or of one just before it. */
uint64_t board_version(struct board *board);

int64_t clock_ns(void); /* since the epoch */

#endif
