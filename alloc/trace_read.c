/* SPDX-License-Identifier: MIT */
#include "alloc/trace.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

/* Longest mark kept. */
enum { MARK_LIMIT = 200 };

/* IDs seen, by open addressing; a power of two entries, at most half of them taken. */
struct id_entry {
    uint64_t id, block;
    bool taken, alive;
};

struct reader {
    struct trace trace;
    size_t event_capacity, mark_capacity;
    struct id_entry *ids;
    size_t id_capacity;
    struct trace_fault fault;
};

static int refuse(struct reader *reader, const char *why)
{
    reader->fault.why = why;
    return -EINVAL;
}

/* Makes room for one more in an array that doubles. */
static int grow(void **array, size_t count, size_t *capacity, size_t entry_bytes)
{
    size_t wanted = *capacity > 0 ? 2 * *capacity : 256;
    void *grown;

    if (count < *capacity)
        return 0;
    if (wanted > SIZE_MAX / entry_bytes)
        return -ENOMEM;
    grown = realloc(*array, wanted * entry_bytes);
    if (!grown)
        return -ENOMEM;
    *array = grown;
    *capacity = wanted;
    return 0;
}

/* The entry of an ID, or the vacant one where it belongs. */
static struct id_entry *id_find(struct id_entry *ids, size_t capacity, uint64_t id)
{
    size_t at = (size_t)(id * UINT64_C(0x9e3779b97f4a7c15) >> 20) & (capacity - 1);

    while (ids[at].taken && ids[at].id != id)
        at = (at + 1) & (capacity - 1);
    return &ids[at];
}

static int ids_make_room(struct reader *reader)
{
    size_t capacity = reader->id_capacity > 0 ? 2 * reader->id_capacity : 1024;
    struct id_entry *ids;

    if (2 * (reader->trace.blocks + 1) <= reader->id_capacity)
        return 0;
    ids = calloc(capacity, sizeof *ids);
    if (!ids)
        return -ENOMEM;
    for (size_t i = 0; i < reader->id_capacity; i++) {
        if (reader->ids[i].taken)
            *id_find(ids, capacity, reader->ids[i].id) = reader->ids[i];
    }
    free(reader->ids);
    reader->ids = ids;
    reader->id_capacity = capacity;
    return 0;
}

static int add_event(struct reader *reader, const struct trace_event *event)
{
    int code = grow((void **)&reader->trace.events, reader->trace.count, &reader->event_capacity,
                    sizeof *reader->trace.events);

    if (code == 0)
        reader->trace.events[reader->trace.count++] = *event;
    return code;
}

/* A decimal number with `after` behind it: a space, which is skipped, or the end. */
static bool parse_number(const char **text, char after, uint64_t *value)
{
    const char *at = *text;
    uint64_t number = 0;

    if (*at < '0' || *at > '9')
        return false;
    for (; *at >= '0' && *at <= '9'; at++) {
        if (__builtin_mul_overflow(number, 10, &number) ||
            __builtin_add_overflow(number, (uint64_t)(*at - '0'), &number))
            return false;
    }
    if (*at != after)
        return false;
    *text = after == ' ' ? at + 1 : at;
    *value = number;
    return true;
}

static int read_alloc(struct reader *reader, const char *text)
{
    struct trace_event event = {.kind = TRACE_ALLOC, .block = reader->trace.blocks};
    struct id_entry *entry;
    uint64_t id, stream;
    int code;

    if (!parse_number(&text, ' ', &id) || !parse_number(&text, ' ', &event.bytes) ||
        !parse_number(&text, '\0', &stream))
        return refuse(reader, "an allocation is 'a ID BYTES STREAM'");
    if (event.bytes == 0)
        return refuse(reader, "an allocation of no bytes");
    if (stream > 255)
        return refuse(reader, "a stream above 255");
    code = ids_make_room(reader);
    if (code != 0)
        return code;
    entry = id_find(reader->ids, reader->id_capacity, id);
    if (entry->taken)
        return refuse(reader, "an ID that was allocated before");
    event.stream = (int)stream;
    code = add_event(reader, &event);
    if (code != 0)
        return code;
    *entry = (struct id_entry){id, event.block, true, true};
    reader->trace.blocks++;
    return 0;
}

static int read_free(struct reader *reader, const char *text)
{
    struct trace_event event = {.kind = TRACE_FREE};
    struct id_entry *entry = NULL;
    uint64_t id;

    if (!parse_number(&text, '\0', &id))
        return refuse(reader, "a free is 'f ID'");
    if (reader->id_capacity > 0)
        entry = id_find(reader->ids, reader->id_capacity, id);
    if (!entry || !entry->taken)
        return refuse(reader, "a free of an ID never allocated");
    if (!entry->alive)
        return refuse(reader, "a second free of an ID");
    entry->alive = false;
    event.block = entry->block;
    return add_event(reader, &event);
}

static int read_mark(struct reader *reader, const char *text)
{
    struct trace_event event = {.kind = TRACE_MARK, .block = reader->trace.mark_count};
    char *name;
    int code = grow((void **)&reader->trace.marks, reader->trace.mark_count, &reader->mark_capacity,
                    sizeof *reader->trace.marks);

    if (code != 0)
        return code;
    name = strndup(text, MARK_LIMIT);
    if (!name)
        return -ENOMEM;
    reader->trace.marks[reader->trace.mark_count++] = name;
    return add_event(reader, &event);
}

static int read_line(struct reader *reader, const char *line, size_t length)
{
    if (strlen(line) != length)
        return refuse(reader, "a zero byte");
    if (line[0] == '\0' || line[0] == '#')
        return 0;
    if (line[1] == ' ') {
        switch (line[0]) {
        case 'a':
            return read_alloc(reader, line + 2);
        case 'f':
            return read_free(reader, line + 2);
        case 'm':
            return read_mark(reader, line + 2);
        default:
            break;
        }
    }
    return refuse(reader, "neither 'a', 'f', 'm' nor a comment");
}

int trace_read(struct trace *trace, FILE *file, struct trace_fault *fault)
{
    struct reader reader = {0};
    char *line = NULL;
    size_t capacity = 0;
    ssize_t length = 0;
    int code = 0;

    while (code == 0 && (length = getline(&line, &capacity, file)) >= 0) {
        reader.fault.line++;
        if (length > 0 && line[length - 1] == '\n')
            line[--length] = '\0';
        code = read_line(&reader, line, (size_t)length);
    }
    if (code == 0 && ferror(file))
        code = -EIO;
    free(line);
    free(reader.ids);
    if (code == 0) {
        *trace = reader.trace;
        return 0;
    }
    trace_finish(&reader.trace);
    if (code != -EINVAL)
        reader.fault = (struct trace_fault){0, code == -EIO ? "can't be read" : "no memory"};
    if (fault)
        *fault = reader.fault;
    return code;
}

void trace_finish(struct trace *trace)
{
    for (size_t i = 0; i < trace->mark_count; i++)
        free(trace->marks[i]);
    free(trace->marks);
    free(trace->events);
    *trace = (struct trace){0};
}
