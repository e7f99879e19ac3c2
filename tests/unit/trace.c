/* SPDX-License-Identifier: MIT */
/* Traces: what an arena records reads back as what happened; everything malformed is refused with
 * its line. */
#include "tests/test.h"

#include <errno.h>
#include <string.h>

#include "alloc/arena.h"
#include "alloc/host_pages.h"
#include "alloc/trace.h"
#include "scratch.h"

static int read_text(struct trace *trace, const char *text, size_t length,
                     struct trace_fault *fault)
{
    FILE *file = fmemopen((void *)text, length, "r");
    int code;

    if (!EXPECT(file != NULL))
        return -EIO;
    code = trace_read(trace, file, fault);
    fclose(file);
    return code;
}

static void test_read(void)
{
    static const char text[] =
        "# a comment\n\na 7 100 0\na 18446744073709551615 4096 2\nm image 1\n"
        "f 7\nf 18446744073709551615";
    struct trace trace = {0};

    EXPECT(read_text(&trace, text, sizeof text - 1, NULL) == 0);
    EXPECT(trace.count == 5 && trace.blocks == 2 && trace.mark_count == 1);
    EXPECT(trace.events[0].kind == TRACE_ALLOC && trace.events[0].bytes == 100);
    EXPECT(trace.events[1].block == 1 && trace.events[1].stream == 2);
    EXPECT(trace.events[2].kind == TRACE_MARK && strcmp(trace.marks[0], "image 1") == 0);
    EXPECT(trace.events[3].kind == TRACE_FREE && trace.events[3].block == 0);
    EXPECT(trace.events[4].kind == TRACE_FREE && trace.events[4].block == 1);
    trace_finish(&trace);
    EXPECT(!trace.events && trace.count == 0);
}

static void test_refused(void)
{
    static const struct {
        const char *text;
        size_t line;
    } cases[] = {
        {"a 1 100 0\na 1 50 0\n", 2},
        {"a 1 100 0\nf 1\na 1 50 0\n", 3},
        {"f 1\n", 1},
        {"a 1 100 0\nf 1\nf 1\n", 3},
        {"a 1 0 0\n", 1},
        {"a 1 100\n", 1},
        {"a 1 100 \n", 1},
        {"a 1 100 0 \n", 1},
        {"a 1 100 0 0\n", 1},
        {"a  1 100 0\n", 1},
        {"a 1 100 256\n", 1},
        {"a -1 100 0\n", 1},
        {"a 1 18446744073709551616 0\n", 1},
        {"a 1 0x10 0\n", 1},
        {"\n\nfree 1\n", 3},
        {"f\n", 1},
        {"f 1 \n", 1},
        {" a 1 100 0\n", 1},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct trace trace = {.count = 99};
        struct trace_fault fault = {0};
        int code = read_text(&trace, cases[i].text, strlen(cases[i].text), &fault);

        EXPECT(code == -EINVAL, "case %zu: %d", i, code);
        EXPECT(fault.line == cases[i].line && fault.why, "case %zu: line %zu", i, fault.line);
        EXPECT(trace.count == 99, "outputs are untouched");
    }
    EXPECT(read_text(&(struct trace){0}, "a 1 2\0 0\n", 9, NULL) == -EINVAL, "a zero byte");
}

static void test_many_ids(void)
{
    static char text[200000];
    struct trace trace = {0};
    size_t length = 0;

    for (unsigned i = 0; i < 4000; i++)
        length += (size_t)sprintf(text + length, "a %u 8 1\n", i * 1048576U);
    for (unsigned i = 0; i < 4000; i++)
        length += (size_t)sprintf(text + length, "f %u\n", (i ^ 1) * 1048576U);
    EXPECT(read_text(&trace, text, length, NULL) == 0);
    EXPECT(trace.blocks == 4000 && trace.count == 8000);
    EXPECT(trace.events[4000].block == 1 && trace.events[4001].block == 0);
    trace_finish(&trace);
}

static void test_recording(void)
{
    struct arena_options options = {.budget_bytes = 64 << 20, .reservation_bytes = 64 << 20};
    struct arena_request small = {.bytes = 1000, .stream = 1}, large = {.bytes = 3 << 20};
    struct page_source *source = NULL;
    struct arena *arena = NULL;
    struct trace trace = {0};
    uintptr_t a = 0, b = 0;
    FILE *file;

    EXPECT(trace_writer_open(&options.trace, scratch_path("trace")) == 0);
    EXPECT(host_pages_create(&source, NULL) == 0);
    EXPECT(arena_create(&arena, source, &options) == 0);
    EXPECT(arena_alloc(arena, &small, &a, NULL) == 0 && arena_alloc(arena, &large, &b, NULL) == 0);
    EXPECT(arena_free(arena, a, 0) == 0);
    arena_mark(arena, "one\nline");
    EXPECT(arena_free(arena, b, 0) == 0);
    arena_destroy(arena);
    source->ops->destroy(source);
    EXPECT(trace_writer_close(options.trace) == 0);
    file = fopen(scratch_path("trace"), "re");
    if (!EXPECT(file != NULL))
        return;
    EXPECT(trace_read(&trace, file, NULL) == 0);
    fclose(file);
    EXPECT(trace.count == 5 && trace.blocks == 2);
    EXPECT(trace.events[0].bytes == 1000 && trace.events[0].stream == 1);
    EXPECT(trace.events[1].bytes == 3 << 20 && trace.events[1].stream == 0);
    EXPECT(trace.events[2].kind == TRACE_FREE && trace.events[2].block == 0);
    EXPECT(strcmp(trace.marks[0], "one") == 0 && trace.events[4].block == 1);
    trace_finish(&trace);
}

/* A full disk shows when the trace is closed, not in the allocations. */
static void test_write_error(void)
{
    struct trace_writer *writer = NULL;

    EXPECT(trace_writer_open(&writer, "/nowhere/trace") == -ENOENT && !writer);
    EXPECT(trace_writer_close(NULL) == 0);
    if (access("/dev/full", W_OK) != 0)
        return;
    EXPECT(trace_writer_open(&writer, "/dev/full") == 0);
    for (uint64_t i = 0; i < 10000; i++)
        trace_write_alloc(writer, i, 8, 0);
    EXPECT(trace_writer_close(writer) == -ENOSPC);
}

int main(void)
{
    scratch_start();
    test_read();
    test_refused();
    test_many_ids();
    test_recording();
    test_write_error();
    scratch_finish();
    return test_finish();
}
