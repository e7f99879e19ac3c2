/* SPDX-License-Identifier: MIT */
/*
 * The contents of status/ and jobs/<id>/: text made on demand from the board, the queue and the
 * gallery. Nothing here waits for the worker; only jobs/<id>/ reads the disk.
 *
 * status/ files are lines `key value`, for people and for scripts alike; sizes carry a unit.
 * all.json (status_export.c) has the same in a versioned shape, which fluxfs(1) tells.
 */
#ifndef FLUXFS_FS_STATUS_H
#define FLUXFS_FS_STATUS_H

#include <stdint.h>

#include "engine/engine.h"
#include "fs/board.h"
#include "fs/control.h"
#include "fs/events.h"
#include "fs/gallery.h"
#include "fs/queue.h"
#include "fs/text.h"
#include "fs/tree.h"
#include "fs/worker.h"

/* The versions of all that contents are made from: while they stand still, what was made is kept.
 */
struct status_inputs {
    uint64_t board, memory, queue, gallery;
    int64_t events_ns, pause_ns;
};

struct status {
    struct tree *tree;
    struct queue *queue;
    struct gallery *gallery;
    struct board *board;
    struct events *events;
    struct control *control;
    struct worker *worker; /* NULL until it runs; written before anything is mounted */
    int64_t started_ns;
    struct {
        struct status_inputs inputs;
        struct text text;
        int64_t changed_ns; /* when the content last differed */
    } kept[STATUS_FILES];   /* guarded by the tree lock */
};

void status_finish(struct status *status);

/* Appends the content, as the viewer may see it, and tells when it last changed. Failure: ENOMEM.
 * Not for STATUS_EVENTS. */
int status_render(struct status *status, enum status_file file, const struct viewer *viewer,
                  struct text *text, int64_t *changed_ns);

/* The same for a file of a job; not for JOB_FILE_WAIT and JOB_FILE_CTL, which are empty.
 * Failure: ENOENT, or the disk's errno. */
int status_render_job(struct status *status, int64_t job, enum job_file file, struct text *text,
                      int64_t *changed_ns, struct error *err);

/* Memory in use, in per cent of the budget; 0 while there is none. */
double status_vram_percent(const struct engine_memory *memory);

/* "green" below 75 % of the budget, "yellow" below 90 %, else "red". */
const char *status_vram_level(const struct engine_memory *memory);

const char *status_health_name(enum health health);

/* That of the engine, and of the disk: what is tried until it works, and whether prompts can be
 * kept. The reason is "" if all is well and nothing to be said. */
enum health status_health(struct status *status, const struct board_state *state,
                          char reason[EVENTS_LINE_BYTES]);

/* Appends "job 17 step 12/28 block 31/135 single attention, 43 %, 5.1 s left". */
void status_add_progress(struct text *text, const struct board_image *image);

/* What jobs keep of an image's timing, to free; NULL when memory is short. */
char *status_timing_json(const struct image_timing *timing, double total_s);

/* status_export.c: for Prometheus, and all.json. */
void status_add_metrics(struct status *status, struct text *text);
void status_add_json(struct status *status, struct text *text);

#endif
