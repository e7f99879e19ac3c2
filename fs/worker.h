/* SPDX-License-Identifier: MIT */
/*
 * The thread that owns the engine: opens it, takes jobs from the queue, paints, and hands pixels to
 * the encoder. Says what it does on the board.
 *
 * When the engine can't be opened it is tried again every ten seconds; jobs wait. So they do when a
 * weight turns out to be damaged, which only painting shows: the engine is closed, for it is a new
 * one that reads a repaired file. When the engine fails otherwise (the device is lost) it is opened
 * anew at once, and a job that it was painting at two failures in a row has failed. After a failure
 * it is not in good health before it has painted something.
 *
 * A job that the present budget has no room for waits, and those behind it; so does one again whose
 * picture was begun and lost its room. They go on when the budget allows it.
 */
#ifndef FLUXFS_FS_WORKER_H
#define FLUXFS_FS_WORKER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/engine.h"
#include "fs/board.h"
#include "fs/control.h"
#include "fs/encoder.h"
#include "fs/events.h"
#include "fs/queue.h"
#include "fs/text.h"
#include "fs/tree.h"

struct worker;

struct worker_options {
    struct tree *tree; /* for its lock */
    struct queue *queue;
    struct board *board;
    struct events *events;
    struct encoder *encoder;
    struct control *control;
    const char *backend, *module_dir, *trace_path;
    int threads;
    void *owner;
    void (*published)(void *owner); /* something new is on the board; must return quickly */
};

int worker_create(struct worker **worker, const struct worker_options *options, struct error *err);

/* Stops after the present block; active jobs wait again in the queue. Others may still call. */
void worker_stop(struct worker *worker);
void worker_destroy(struct worker *worker); /* once stopped; NULL is allowed */

/* ---- Any thread, no lock held. ---- */

/* The queue or control/ changed: look again. */
void worker_wake(struct worker *worker);

/* A closed engine is opened now, without waiting any longer. */
void worker_retry(struct worker *worker);

/* The job, if active, stops after the present block. */
void worker_cancel(struct worker *worker, int64_t job);

/* The job's image is stored (or not): the encoder's `ended`. */
void worker_job_ended(struct worker *worker, int64_t job, enum job_state state);

/* Whether a prompt can be painted as things stand: EINVAL, and the engine's reason, if not. While
 * no engine is open nobody knows, and it is taken. */
int worker_check(struct worker *worker, const struct prompt *prompt, struct error *err);

/* Failure: EINVAL as engine_set_budget; while no engine is open the budget is taken as it is. */
int worker_set_budget(struct worker *worker, uint64_t bytes, struct error *err);
/* Applies the budget that control/vram_budget has now, in case the engine opened, or another write
 * came, between the check of a value and its being there. */
void worker_follow_budget(struct worker *worker);

/* How the engine's memory stands, as of a millisecond ago: asking the engine takes its locks, which
 * a painting must not feel however many read. Returns the version of what was told, which changes
 * with each look at the engine; 0, and zeros, while none is open. */
uint64_t worker_memory(struct worker *worker, struct engine_memory *memory);
size_t worker_memory_map(struct worker *worker, struct memory_run *runs, size_t capacity);

/* Adds a line to the memory curve of each active job; called now and then. */
void worker_sample(struct worker *worker);

/* Appends the curve of an active job so far; false if the job isn't active. */
bool worker_samples(struct worker *worker, int64_t job, struct text *text);

#endif
