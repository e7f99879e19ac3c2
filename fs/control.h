/* SPDX-License-Identifier: MIT */
/*
 * The files of control/: one value each. A value written is checked, applied, and kept in the
 * queue's settings, so it outlives the daemon; "default" takes back what the configuration says.
 */
#ifndef FLUXFS_FS_CONTROL_H
#define FLUXFS_FS_CONTROL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "fs/config.h"
#include "fs/events.h"
#include "fs/gallery.h"
#include "fs/prompt.h"
#include "fs/queue.h"
#include "fs/text.h"

enum control_key {
    CONTROL_STEPS, /* defaults of prompts */
    CONTROL_GUIDANCE,
    CONTROL_TRUE_CFG,
    CONTROL_WIDTH,
    CONTROL_HEIGHT,
    CONTROL_SEED,
    CONTROL_COUNT,
    CONTROL_VRAM_BUDGET,
    CONTROL_IMAGES_LIMIT,
    CONTROL_PAUSE,
    CONTROL_MODEL,
    CONTROL_KEYS,
};

enum { CONTROL_WARNING_BYTES = 800 };

struct control_values {
    struct prompt_values prompt;
    uint64_t vram_budget_bytes, images_limit_bytes;
    bool paused;
    char model[4096];
};

/* Who acts on a value. May refuse it: then nothing has changed. Called without locks. */
struct control_actor {
    void *owner;
    int (*apply)(void *owner, enum control_key key, const struct control_values *values,
                 struct error *err);
    void (*changed)(void *owner, enum control_key key); /* the value is in force */
};

struct control {
    pthread_mutex_t *lock; /* the tree lock */
    struct queue *queue;
    struct control_actor actor;
    struct control_values configured;
    struct control_values values;     /* guarded by lock */
    int64_t changed_ns[CONTROL_KEYS]; /* guarded by lock */
};

/* Takes the configuration's values, then those kept in the queue over them; one that is no good any
 * more (a model's folder is gone) is told of and left out. Nobody acts yet. */
int control_init(struct control *control, const struct config *config, struct queue *queue,
                 struct events *events, struct error *err);

/* The value as written to the file: blanks around it don't count. Failure: EINVAL with the reason,
 * or the disk's errno. Writers of the same key come one after another. */
int control_set(struct control *control, enum control_key key, const char *bytes, size_t length,
                struct error *err);

/* Appends the value and a newline. */
void control_show(struct control *control, enum control_key key, struct text *text);

/* Whether a folder could hold a checkpoint. EINVAL: there is none, or the config or weights of a
 * part are missing or broken. */
int control_check_model(const char *folder, struct error *err);

/* What should be told at a mount: a value kept that goes over one of the command line, or that
 * painting is paused. False: nothing. */
bool control_warning(struct control *control, enum control_key key, const struct config *config,
                     char line[CONTROL_WARNING_BYTES]);

void control_values(struct control *control, struct control_values *values);
int64_t control_changed_ns(struct control *control, enum control_key key);
const char *control_key_name(enum control_key key);

#endif
