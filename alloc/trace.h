/* SPDX-License-Identifier: MIT */
/*
 * Traces of allocations: a text file, one event a line, numbers in decimal.
 *
 *     a ID BYTES STREAM     an allocation; IDs are not used twice
 *     f ID                  its free
 *     m NAME                a mark, e.g. the end of an image (rest of the line)
 *     # …                   a comment; empty lines are skipped
 */
#ifndef FLUXFS_ALLOC_TRACE_H
#define FLUXFS_ALLOC_TRACE_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* Recording. Write errors are kept and reported by trace_writer_close: an allocation must not fail
 * because a disk is full. Not locked: the arena writes under its own mutex. */
struct trace_writer;

int trace_writer_open(struct trace_writer **writer, const char *path);
void trace_write_alloc(struct trace_writer *writer, uint64_t id, uint64_t bytes, int stream);
void trace_write_free(struct trace_writer *writer, uint64_t id);
void trace_write_mark(struct trace_writer *writer, const char *name);
int trace_writer_close(struct trace_writer *writer); /* the first error met; NULL is allowed */

enum trace_kind { TRACE_ALLOC, TRACE_FREE, TRACE_MARK };

struct trace_event {
    enum trace_kind kind;
    int stream;     /* of an allocation */
    uint64_t block; /* number of the allocation within the trace, from 0; of a mark: its number */
    uint64_t bytes; /* of an allocation, never 0 */
};

/* A whole trace, checked: each free names a living block, each ID is allocated once. */
struct trace {
    struct trace_event *events;
    size_t count;
    uint64_t blocks; /* allocations in it */
    char **marks;    /* names, by number */
    size_t mark_count;
};

struct trace_fault {
    size_t line;     /* from 1; 0: not about a line */
    const char *why; /* static */
};

/* Reads a trace to its end. -EINVAL with line and reason in `fault` (may be NULL), -EIO, -ENOMEM;
 * `trace` is untouched then. */
int trace_read(struct trace *trace, FILE *file, struct trace_fault *fault);
void trace_finish(struct trace *trace);

#endif
