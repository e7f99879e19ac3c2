/* SPDX-License-Identifier: MIT */
/*
 * Where time goes on the device: computing, waiting for weights, copying them, block by block.
 *
 * Marks are put into the streams as work is queued, and read when the device has come past them.
 * They also keep the caller from running far ahead of the device, so that progress, a new budget
 * and a cancellation mean blocks that the device works on.
 */
#ifndef FLUXFS_ENGINE_TIMELINE_H
#define FLUXFS_ENGINE_TIMELINE_H

#include "engine/backend.h"

enum {
    TIMELINE_AHEAD = 8, /* blocks queued and not done; then the caller waits for the oldest */
    TIMELINE_KINDS = 32,
    TIMELINE_COPIES = 64, /* begun and not settled; more go untimed */
};

struct timeline_sums {
    double compute_s, wait_s; /* of the compute stream: at work; idle until weights come */
    double copy_s;            /* of the copy stream, at work */
    uint64_t copy_bytes;      /* that it copied in this time */
};

/* All blocks of one kind. */
struct timeline_kind {
    const char *kind; /* static */
    uint64_t blocks;
    struct timeline_sums sums; /* without copies: what is copied during a block is another one */
    double recent_s; /* of computing with one, of late: with each it comes a quarter nearer */
};

/* What a stream did, in seconds since the first block that was watched began. */
struct timeline_span {
    uint64_t block;                  /* its number; of a copy: the number of that which it is for */
    const char *kind;                /* NULL: a copy */
    double begun_s, ready_s, done_s; /* ready: of a block, as below */
    uint64_t bytes;                  /* of a copy */
};

/* Told of every span once it is settled: a block, then the copies that it was the first to wait
 * for. */
struct timeline_watcher {
    void *owner;
    void (*settled)(void *owner, const struct timeline_span *span); /* NULL: nobody watches */
};

struct timeline_block {
    const char *kind;
    uint64_t begun, ready, done; /* marks: before and after waiting for weights, the same if there
                                    is nothing to wait for; behind its work */
};

struct timeline_copy {
    uint64_t begun, done; /* marks */
    uint64_t turn;        /* the mark where the block began in whose turn it was queued */
    uint64_t before;      /* the number of the block that it is for, as things stood */
    uint64_t waited;      /* the number of the block that waited for it; UINT64_MAX: none did yet */
    uint64_t number;      /* among the copies timed, … */
    uint64_t marks;       /* … and how many marks there were before */
    uint64_t bytes;
};

struct timeline {
    struct backend *backend;
    struct timeline_block blocks[TIMELINE_AHEAD + 1]; /* a ring */
    uint64_t first, next;                             /* numbers of those not settled */
    bool open;                                        /* the last one's end is not marked */
    bool held_up; /* since it began: copies were queued or waited for, so that work begins later */
    struct timeline_copy copies[TIMELINE_COPIES];
    size_t copy_count;
    uint64_t copies_timed, marks; /* since the start, as the next two */
    struct timeline_sums sums;
    struct timeline_kind kinds[TIMELINE_KINDS];
    struct timeline_watcher watcher;
    bool off; /* set between two rounds: nothing is marked and no sum grows, which shows what marks
                 cost */
    uint64_t clock_mark; /* the watcher's: where the block settled last began, … */
    double clock_s;      /* … and when that was */
};

void timeline_init(struct timeline *timeline, struct backend *backend);

/* A block's turn: before its weights are asked for (which ends the block before), and when work
 * queued from now on is its own. */
void timeline_begin(struct timeline *timeline, const char *kind);
void timeline_ready(struct timeline *timeline);
/* Around the copies of one block's weights: of the block whose turn it is, or of one that comes so
 * many blocks later. The end has a number. NULL is allowed. */
void timeline_copy_begin(struct timeline *timeline, size_t ahead, uint64_t bytes);
uint64_t timeline_copy_end(struct timeline *timeline);
/* The block whose turn it is waits for the copies before this end: only then are they known to be
 * done when it is. NULL is allowed. */
void timeline_wait(struct timeline *timeline, uint64_t end);

/* Seconds of computing with a block of this kind, of late; 0: not known. */
double timeline_compute_s(const struct timeline *timeline, const char *kind);

/* Ends the last block. */
void timeline_end(struct timeline *timeline);
/* Settles all blocks, and the copies that they waited for. */
void timeline_settle(struct timeline *timeline);
/* Forgets what is not settled, e.g. after an error. */
void timeline_drop(struct timeline *timeline);

#endif
