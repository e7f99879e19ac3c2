/* SPDX-License-Identifier: MIT */
/*
 * The thread that turns pixels into PNG files: stores the image, has the notifier announce it, and
 * then ends the job, in this order, so that whoever hears that a job is done finds its image.
 *
 * While the disk is full or fails it tries again every second and loses nothing; at a stop such
 * jobs stay as they are, and run again after the next start. A job that is cancelled before its
 * image is stored loses that at once.
 */
#ifndef FLUXFS_FS_ENCODER_H
#define FLUXFS_FS_ENCODER_H

#include <stdbool.h>
#include <stdint.h>

#include "fs/events.h"
#include "fs/gallery.h"
#include "fs/notifier.h"
#include "fs/queue.h"
#include "fs/tree.h"

struct encoder;

/* A painted image. Everything is the encoder's from encoder_push on. */
struct encoder_task {
    struct job job;
    uint8_t *pixels;
    char *timing_json, *vram_csv; /* may be NULL */
    char model[96];
};

struct encoder_options {
    struct tree *tree;
    struct queue *queue;
    struct gallery *gallery;
    struct events *events;
    struct notifier *notifier; /* may be NULL */
    void *owner;
    /* The job has ended, on the encoder's thread. */
    void (*ended)(void *owner, int64_t job, enum job_state state);
};

int encoder_create(struct encoder **encoder, const struct encoder_options *options,
                   struct error *err);

/* From now on nothing is tried again, and encoder_push doesn't wait. */
void encoder_stop(struct encoder *encoder);

/* Finishes what it has, unless the disk fails. NULL is allowed. */
void encoder_destroy(struct encoder *encoder);

/* Waits while the encoder has as much as it takes at a time (ENCODER_TASKS), unless the job is
 * being cancelled, which is then done here. */
void encoder_push(struct encoder *encoder, struct encoder_task *task);

/* A job is being cancelled: look whether it is here. */
void encoder_wake(struct encoder *encoder);

/* An image went without anyone unlinking it through the mount: lets inotify know, later. */
void encoder_announce_gone(struct encoder *encoder, const char *name);

void encoder_task_finish(struct encoder_task *task);

enum { ENCODER_TASKS = 4, ENCODER_GONE = 64 };

#endif
