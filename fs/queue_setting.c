/* SPDX-License-Identifier: MIT */
/* Values kept under keys: those of control/, and one that tries the disk. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "fs/queue_private.h"

static int apply_setting(struct batch *batch, struct change *change, struct error *err)
{
    struct store *store = &batch->queue->writer;
    return change->value == NULL
               ? store_run(store, STORE_REMOVE_SETTING, err, "t", change->key)
               : store_run(store, STORE_SET_SETTING, err, "tt", change->key, change->value);
}

int queue_setting_set(struct queue *queue, const char *key, const char *value, struct error *err)
{
    struct change change = {.apply = apply_setting, .key = key, .value = value};
    return queue_change(queue, &change, err);
}

/* A value that differs each time, or SQLite would have nothing to write. */
int queue_probe(struct queue *queue, struct error *err)
{
    char value[32];
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    snprintf(value, sizeof value, "%lld.%09ld", (long long)now.tv_sec, now.tv_nsec);
    return queue_setting_set(queue, "probe", value, err);
}

int queue_setting_get(struct queue *queue, const char *key, char **value, struct error *err)
{
    int rc = reader_begin(queue, err);
    if (rc != 0) {
        return rc;
    }
    rc = store_run(&queue->reader, STORE_SETTING, err, "t", key);
    if (rc == 1) {
        char *copy = strdup(store_text(&queue->reader, STORE_SETTING, 0));
        rc = copy == NULL ? error_set(err, ENOMEM, "setting %s: out of memory", key) : 0;
        if (rc == 0) {
            *value = copy;
        }
    } else if (rc == 0) {
        rc = error_set(err, ENOENT, "setting %s: there is none", key);
    }
    reader_end(queue, STORE_SETTING);
    return rc;
}

int queue_settings(struct queue *queue,
                   int (*each)(void *owner, const char *key, const char *value), void *owner,
                   struct error *err)
{
    int rc = reader_begin(queue, err);
    if (rc != 0) {
        return rc;
    }
    rc = store_run(&queue->reader, STORE_SETTINGS, err, "");
    while (rc == 1) {
        rc = each(owner, store_text(&queue->reader, STORE_SETTINGS, 0),
                  store_text(&queue->reader, STORE_SETTINGS, 1));
        if (rc == 0) {
            rc = store_next(&queue->reader, STORE_SETTINGS, err);
        }
    }
    reader_end(queue, STORE_SETTINGS);
    return rc;
}
