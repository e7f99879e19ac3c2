/* SPDX-License-Identifier: MIT */
/* What is read of the queue: from memory under its lock, whole jobs from the disk. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fs/queue_private.h"

int queue_trouble(struct queue *queue, struct error *err)
{
    pthread_mutex_lock(&queue->lock);
    *err = queue->trouble.code != 0 ? queue->trouble : queue->shortage;
    pthread_mutex_unlock(&queue->lock);
    return err->code;
}

void queue_counts(struct queue *queue, struct queue_counts *counts)
{
    pthread_mutex_lock(&queue->lock);
    counts->jobs = queue->index.count;
    memcpy(counts->state, queue->index.state, sizeof counts->state);
    counts->last_id = queue->last_id;
    counts->changes = queue->changes;
    pthread_mutex_unlock(&queue->lock);
}

bool queue_find(struct queue *queue, int64_t id, struct job_info *info)
{
    pthread_mutex_lock(&queue->lock);
    const struct entry *entry = index_find(&queue->index, id);
    if (entry != NULL) {
        *info = entry->info;
    }
    pthread_mutex_unlock(&queue->lock);
    return entry != NULL;
}

static size_t copy_infos(struct entry *const *entries, size_t from, size_t to,
                         struct job_info *infos, size_t capacity)
{
    size_t count = from < to ? to - from : 0;
    count = count < capacity ? count : capacity;
    for (size_t i = 0; i < count; i++) {
        infos[i] = entries[from + i]->info;
    }
    return count;
}

size_t queue_list(struct queue *queue, int64_t after, struct job_info *infos, size_t capacity)
{
    pthread_mutex_lock(&queue->lock);
    const struct queue_index *index = &queue->index;
    size_t count =
        copy_infos(index->entries, index_above(index, after), index->count, infos, capacity);
    pthread_mutex_unlock(&queue->lock);
    return count;
}

size_t queue_order(struct queue *queue, size_t skip, struct job_info *infos, size_t capacity)
{
    pthread_mutex_lock(&queue->lock);
    const struct queue_index *index = &queue->index;
    size_t count = copy_infos(index->order, skip, index->ordered, infos, capacity);
    pthread_mutex_unlock(&queue->lock);
    return count;
}

long queue_rank(struct queue *queue, int64_t id)
{
    pthread_mutex_lock(&queue->lock);
    const struct entry *entry = index_find(&queue->index, id);
    long rank = entry == NULL ? -1 : index_rank(&queue->index, entry);
    pthread_mutex_unlock(&queue->lock);
    return rank;
}

bool queue_image(struct queue *queue, int64_t id, char image[QUEUE_NAME_BYTES])
{
    pthread_mutex_lock(&queue->lock);
    const struct entry *entry = index_find(&queue->index, id);
    const char *name = entry == NULL || entry->image == NULL ? "" : entry->image;
    snprintf(image, QUEUE_NAME_BYTES, "%s", name);
    pthread_mutex_unlock(&queue->lock);
    return image[0] != '\0';
}

bool queue_find_source(struct queue *queue, const char *source, int64_t *id, uint64_t *digest)
{
    pthread_mutex_lock(&queue->lock);
    const struct entry *entry = index_find_source(&queue->index, source);
    if (entry != NULL) {
        *id = entry->info.id;
        *digest = entry->source_digest;
    }
    pthread_mutex_unlock(&queue->lock);
    return entry != NULL;
}

bool queue_find_image(struct queue *queue, const char *image, struct job_info *info)
{
    pthread_mutex_lock(&queue->lock);
    const struct entry *entry = index_find_image(&queue->index, image);
    if (entry != NULL) {
        *info = entry->info;
    }
    pthread_mutex_unlock(&queue->lock);
    return entry != NULL;
}

/* ---- From the disk ---- */

int reader_begin(struct queue *queue, struct error *err)
{
    pthread_mutex_lock(&queue->reader_lock);
    int rc = queue->reader.broken ? store_reopen(&queue->reader, err) : 0;
    if (rc != 0) {
        pthread_mutex_unlock(&queue->reader_lock);
    }
    return rc;
}

void reader_end(struct queue *queue, enum statement statement)
{
    if (queue->reader.statements[statement] != NULL) {
        store_done(&queue->reader, statement);
    }
    pthread_mutex_unlock(&queue->reader_lock);
}

int queue_load(struct queue *queue, int64_t id, struct job *job, struct error *err)
{
    int rc = reader_begin(queue, err);
    if (rc != 0) {
        return rc;
    }
    rc = store_run(&queue->reader, STORE_JOB, err, "i", id);
    if (rc == 1) {
        rc = store_read_job(&queue->reader, job, err);
    } else if (rc == 0) {
        rc = error_set(err, ENOENT, "job %lld: there is none", (long long)id);
    }
    reader_end(queue, STORE_JOB);
    return rc;
}

void job_finish(struct job *job)
{
    prompt_finish(&job->prompt);
    free(job->error);
    free(job->timing_json);
    free(job->vram_csv);
    job->error = NULL;
    job->timing_json = NULL;
    job->vram_csv = NULL;
}
