/* SPDX-License-Identifier: MIT */
#include "tests/bench/weight_writer.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "tests/bench/bf16_random.h"

enum {
    CHUNK_BYTES = 4 << 20,
    CHUNK_VALUES = CHUNK_BYTES / 2,
    PATH_BYTES = 4096,
};

struct shard {
    char name[128];
    size_t first, count; /* of the list's weights */
    int fd;              /* −1 while closed */
    uint64_t data_start; /* where the header ends */
};

/* Where a weight lies, and which chunks of the whole work are its. */
struct place {
    struct shard *shard;
    uint64_t offset; /* in the file */
    uint64_t first_chunk;
};

struct writer {
    const struct weight_list *list;
    const struct weight_files *files;
    struct shard *shards;
    size_t shard_count;
    struct place *places; /* one a weight */
    uint64_t chunk_count;
    struct bf16_normal *normal;
    atomic_uint_fast64_t next_chunk;
    atomic_int failed; /* the first errno, or 0 */
};

/* ---- Layout ---- */

/* Fills `shards` (room for one a weight) with the runs of weights that each holds. */
static void split_shards(struct writer *writer)
{
    uint64_t used = 0;
    struct shard *shard = NULL;
    for (size_t i = 0; i < writer->list->count; i++) {
        uint64_t bytes = 2 * weight_count(&writer->list->items[i]);
        if (shard == NULL || used + bytes > writer->files->shard_bytes) {
            shard = &writer->shards[writer->shard_count++];
            *shard = (struct shard){.first = i, .fd = -1};
            used = 0;
        }
        shard->count++;
        used += bytes;
    }
    for (size_t i = 0; i < writer->shard_count; i++) {
        char *name = writer->shards[i].name;
        if (writer->shard_count == 1)
            snprintf(name, sizeof writer->shards[i].name, "%s.safetensors", writer->files->stem);
        else
            snprintf(name, sizeof writer->shards[i].name, "%s-%05zu-of-%05zu.safetensors",
                     writer->files->stem, i + 1, writer->shard_count);
    }
}

/* The header without the 8 bytes before it; to be freed. NULL if there is no memory. */
static char *format_header(const struct weight_list *list, const struct shard *shard, size_t *bytes)
{
    char *text = NULL;
    FILE *out = open_memstream(&text, bytes);
    if (out == NULL)
        return NULL;
    uint64_t offset = 0;
    fprintf(out, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (size_t i = shard->first; i < shard->first + shard->count; i++) {
        const struct weight *weight = &list->items[i];
        uint64_t end = offset + 2 * weight_count(weight);
        fprintf(out, ",\"%s\":{\"dtype\":\"BF16\",\"shape\":[", weight->name);
        for (int axis = 0; axis < weight->rank; axis++)
            fprintf(out, "%s%" PRId64, axis == 0 ? "" : ",", weight->shape[axis]);
        fprintf(out, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", offset, end);
        offset = end;
    }
    fputc('}', out);
    while (ftell(out) % 8 != 0) /* so that the data is aligned */
        fputc(' ', out);
    bool good = !ferror(out);
    if (fclose(out) != 0 || !good) {
        free(text);
        return NULL;
    }
    return text;
}

static int write_fully(int fd, const void *data, size_t bytes, uint64_t offset)
{
    while (bytes > 0) {
        ssize_t done = pwrite(fd, data, bytes, (off_t)offset);
        if (done < 0 && errno != EINTR)
            return errno;
        if (done > 0) {
            data = (const char *)data + done;
            bytes -= (size_t)done;
            offset += (uint64_t)done;
        }
    }
    return 0;
}

/* Creates the shard's file with its header and lays out its weights behind it. */
static int start_shard(struct writer *writer, struct shard *shard, struct error *err)
{
    char path[PATH_BYTES];
    size_t bytes;
    char *header = format_header(writer->list, shard, &bytes);
    if (header == NULL)
        return error_set(err, ENOMEM, "no memory for the header of %s", shard->name);
    snprintf(path, sizeof path, "%s/%s", writer->files->folder, shard->name);
    shard->fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    int failed = shard->fd < 0 ? errno : 0;
    unsigned char length[8];
    for (int i = 0; i < 8; i++)
        length[i] = (unsigned char)((uint64_t)bytes >> 8 * i);
    if (failed == 0)
        failed = write_fully(shard->fd, length, sizeof length, 0);
    if (failed == 0)
        failed = write_fully(shard->fd, header, bytes, sizeof length);
    free(header);
    if (failed != 0)
        return error_set(err, failed, "%s: %s", path, strerror(failed));

    uint64_t offset = sizeof length + bytes;
    for (size_t i = shard->first; i < shard->first + shard->count; i++) {
        uint64_t size = 2 * weight_count(&writer->list->items[i]);
        writer->places[i] = (struct place){shard, offset, writer->chunk_count};
        writer->chunk_count += (size + CHUNK_BYTES - 1) / CHUNK_BYTES;
        offset += size;
    }
    if (writer->files->hollow && ftruncate(shard->fd, (off_t)offset) != 0)
        return error_set(err, errno, "%s: %s", path, strerror(errno));
    return 0;
}

static int write_index(const struct writer *writer, struct error *err)
{
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "%s/%s.safetensors.index.json", writer->files->folder,
             writer->files->stem);
    FILE *out = fopen(path, "wxe");
    if (out == NULL)
        return error_set(err, errno, "%s: %s", path, strerror(errno));
    fprintf(out, "{\n \"metadata\": {\"total_size\": %" PRIu64 "},\n \"weight_map\": {",
            2 * weight_list_count(writer->list));
    for (size_t i = 0; i < writer->list->count; i++)
        fprintf(out, "%s\n  \"%s\": \"%s\"", i == 0 ? "" : ",", writer->list->items[i].name,
                writer->places[i].shard->name);
    fprintf(out, "\n }\n}\n");
    bool good = !ferror(out);
    if (fclose(out) != 0 || !good)
        return error_set(err, EIO, "%s: can't be written", path);
    return 0;
}

static int check_room(const struct writer *writer, struct error *err)
{
    struct statvfs disk;
    uint64_t needed = 2 * weight_list_count(writer->list);
    if (statvfs(writer->files->folder, &disk) != 0)
        return error_set(err, errno, "%s: %s", writer->files->folder, strerror(errno));
    uint64_t room = (uint64_t)disk.f_bavail * disk.f_frsize;
    if (needed > room)
        return error_set(err, ENOSPC, "%s: %.1f GB needed, the disk has room for %.1f GB",
                         writer->files->folder, (double)needed / 1e9, (double)room / 1e9);
    return 0;
}

/* ---- Values ---- */

/* The weight whose chunks include this one. */
static size_t find_weight(const struct writer *writer, uint64_t chunk)
{
    size_t low = 0, high = writer->list->count;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (writer->places[middle].first_chunk <= chunk)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static int write_chunk(struct writer *writer, uint64_t chunk, struct bf16_table *table,
                       uint16_t *values)
{
    size_t number = find_weight(writer, chunk);
    const struct weight *weight = &writer->list->items[number];
    const struct place *place = &writer->places[number];
    uint64_t first = (chunk - place->first_chunk) * CHUNK_VALUES;
    uint64_t left = weight_count(weight) - first;
    size_t count = left < CHUNK_VALUES ? (size_t)left : CHUNK_VALUES;
    bf16_table_set(table, writer->normal, weight->mean, weight->deviation);
    bf16_fill(values, count, first, bf16_key(writer->files->seed, weight->name), table);
    return write_fully(place->shard->fd, values, 2 * count, place->offset + 2 * first);
}

static void *write_chunks(void *context)
{
    struct writer *writer = context;
    struct bf16_table *table = calloc(1, sizeof *table);
    uint16_t *values = malloc(CHUNK_BYTES);
    int failed = table == NULL || values == NULL ? ENOMEM : 0;
    while (failed == 0 && atomic_load(&writer->failed) == 0) {
        uint64_t chunk = atomic_fetch_add(&writer->next_chunk, 1);
        if (chunk >= writer->chunk_count)
            break;
        failed = write_chunk(writer, chunk, table, values);
    }
    int none = 0;
    if (failed != 0)
        atomic_compare_exchange_strong(&writer->failed, &none, failed);
    free(values);
    free(table);
    return NULL;
}

/* The calling thread works too, so that it also works when no other can be had. */
static int write_values(struct writer *writer, struct error *err)
{
    pthread_t threads[256];
    int started = 0, most = (int)(sizeof threads / sizeof threads[0]);
    while (started < writer->files->threads - 1 && started < most &&
           pthread_create(&threads[started], NULL, write_chunks, writer) == 0)
        started++;
    write_chunks(writer);
    for (int i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    int failed = atomic_load(&writer->failed);
    if (failed != 0)
        return error_set(err, failed, "%s: writing weights: %s", writer->files->folder,
                         strerror(failed));
    return 0;
}

static int close_shards(struct writer *writer)
{
    int failed = 0;
    for (size_t i = 0; i < writer->shard_count; i++) {
        if (writer->shards[i].fd >= 0 && close(writer->shards[i].fd) != 0)
            failed = errno;
    }
    return failed;
}

int weight_list_write(const struct weight_list *list, const struct weight_files *files,
                      struct error *err)
{
    struct writer writer = {.list = list, .files = files};
    writer.shards = calloc(list->count, sizeof *writer.shards);
    writer.places = calloc(list->count, sizeof *writer.places);
    writer.normal = bf16_normal_create();
    int code;
    if (!writer.shards || !writer.places || !writer.normal) {
        code = error_set(err, ENOMEM, "no memory for %zu tensors", list->count);
        goto out;
    }
    code = files->hollow ? 0 : check_room(&writer, err);
    if (code != 0)
        goto out;
    split_shards(&writer);
    for (size_t i = 0; code == 0 && i < writer.shard_count; i++)
        code = start_shard(&writer, &writer.shards[i], err);
    if (code == 0 && !files->hollow)
        code = write_values(&writer, err);
    if (code == 0 && writer.shard_count > 1)
        code = write_index(&writer, err);
    int failed = close_shards(&writer);
    if (code == 0 && failed != 0)
        code = error_set(err, failed, "%s: %s", files->folder, strerror(failed));
out:
    free(writer.shards);
    free(writer.places);
    free(writer.normal);
    return code;
}
