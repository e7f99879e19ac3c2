/* SPDX-License-Identifier: MIT */
/* Any bytes as a trace: refused with a line and a reason, or every free in it follows its
 * allocation and comes once. */
#include "alloc/trace.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int condition)
{
    if (!condition)
        abort();
}

static void check_trace(const struct trace *trace)
{
    unsigned char *alive = calloc(trace->blocks + 1, 1);
    uint64_t allocated = 0;

    require(alive != NULL);
    for (size_t i = 0; i < trace->count; i++) {
        const struct trace_event *event = &trace->events[i];

        if (event->kind == TRACE_MARK) {
            require(event->block < trace->mark_count && !strchr(trace->marks[event->block], '\n'));
            continue;
        }
        require(event->block < trace->blocks);
        if (event->kind == TRACE_ALLOC) {
            require(event->block == allocated++ && event->bytes > 0);
            alive[event->block] = 1;
        } else {
            require(alive[event->block] == 1);
            alive[event->block] = 0;
        }
    }
    require(allocated == trace->blocks);
    free(alive);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct trace_fault fault = {0};
    struct trace trace = {0};
    FILE *file = size > 0 ? fmemopen((void *)data, size, "r") : NULL;
    int code;

    if (!file)
        return 0;
    code = trace_read(&trace, file, &fault);
    if (code == 0) {
        check_trace(&trace);
        trace_finish(&trace);
    } else {
        require(code == -EINVAL && fault.line > 0 && fault.why != NULL);
    }
    fclose(file);
    return 0;
}
