/* SPDX-License-Identifier: MIT */
#include "alloc/trace.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct trace_writer {
    FILE *file;
    int code; /* the first error met */
};

int trace_writer_open(struct trace_writer **writer, const char *path)
{
    struct trace_writer *opened = calloc(1, sizeof *opened);

    if (!opened)
        return -ENOMEM;
    opened->file = fopen(path, "we");
    if (!opened->file) {
        int code = -errno;
        free(opened);
        return code;
    }
    *writer = opened;
    return 0;
}

static void note(struct trace_writer *writer, int printed)
{
    if (printed < 0 && writer->code == 0)
        writer->code = errno != 0 ? -errno : -EIO;
}

void trace_write_alloc(struct trace_writer *writer, uint64_t id, uint64_t bytes, int stream)
{
    note(writer, fprintf(writer->file, "a %" PRIu64 " %" PRIu64 " %d\n", id, bytes, stream));
}

void trace_write_free(struct trace_writer *writer, uint64_t id)
{
    note(writer, fprintf(writer->file, "f %" PRIu64 "\n", id));
}

void trace_write_mark(struct trace_writer *writer, const char *name)
{
    note(writer, fprintf(writer->file, "m %.*s\n", (int)strcspn(name, "\n"), name));
}

int trace_writer_close(struct trace_writer *writer)
{
    int code;

    if (!writer)
        return 0;
    code = writer->code;
    if (fclose(writer->file) != 0 && code == 0)
        code = -errno;
    free(writer);
    return code;
}
