/* SPDX-License-Identifier: MIT */
/*
 * The timeline over a pretended device whose two streams have clocks of their own: the sums must be
 * what those clocks say, however far the device is behind.
 */
#include <math.h>
#include <string.h>

#include "engine/timeline.h"
#include "tests/test.h"

enum { MARKS = 4096 };

struct device {
    struct backend base;
    double now[2];          /* of each stream: when what is queued will be done */
    double marks[MARKS];    /* when each will be passed */
    uint64_t count, waited; /* marks made; the last that was waited for */
    uint64_t unsettled;     /* marks read before they were waited for */
    bool at_rest;
    uint64_t copied; /* the end of the last copy */
};

static struct device *device_of(struct backend *backend)
{
    return (struct device *)backend;
}

static uint64_t device_mark(struct backend *backend, enum backend_stream stream)
{
    struct device *device = device_of(backend);

    device->marks[++device->count % MARKS] = device->now[stream];
    return device->count;
}

static void device_mark_wait(struct backend *backend, uint64_t mark)
{
    struct device *device = device_of(backend);

    EXPECT(mark > device->waited && mark <= device->count);
    device->waited = mark;
}

/* A mark may be read when one behind it on the compute stream was waited for, which all of them are
 * here, since each block waits for its copies. */
static double device_mark_seconds(struct backend *backend, uint64_t from, uint64_t to)
{
    struct device *device = device_of(backend);

    EXPECT(from > 0 && from <= to && device->count - from < BACKEND_MARKS);
    device->unsettled += to > device->waited && !device->at_rest;
    return device->marks[to % MARKS] - device->marks[from % MARKS];
}

static const struct backend_ops device_ops = {
    .mark = device_mark,
    .mark_wait = device_mark_wait,
    .mark_seconds = device_mark_seconds,
};

/* Copies the weights of the block whose turn it is or of the next one. */
static double copy(struct device *device, struct timeline *t, double copy_s)
{
    double begin = device->now[STREAM_COPY] > device->now[STREAM_COMPUTE] - 1
                       ? device->now[STREAM_COPY]
                       : device->now[STREAM_COMPUTE] - 1;

    device->now[STREAM_COPY] = begin;
    timeline_copy_begin(t, 1, 10);
    device->now[STREAM_COPY] += copy_s;
    device->copied = timeline_copy_end(t);
    return device->now[STREAM_COPY];
}

/* Passes of 40 blocks, each third one streamed, one ahead; returns what the sums must be. */
static struct timeline_sums run(struct device *device, struct timeline *t, int passes)
{
    struct timeline_sums wanted = {0};
    double there[2] = {0, 0};

    for (int i = 0; i < 40 * passes; i++) {
        double compute_s = 0.5 + 0.25 * (i % 5), wait_s;
        double *now = &device->now[STREAM_COMPUTE];

        timeline_begin(t, i % 40 < 19 ? "double" : "single");
        if ((i + 1) % 3 == 0) {
            there[(i + 1) % 2] = copy(device, t, 3.0);
            wanted.copy_s += 3.0;
        }
        wait_s = i % 3 == 0 && there[i % 2] > *now ? there[i % 2] - *now : 0;
        *now += wait_s;
        wanted.wait_s += wait_s;
        if (i % 3 == 0)
            timeline_wait(t, device->copied);
        timeline_ready(t);
        *now += compute_s;
        wanted.compute_s += compute_s;
        EXPECT(t->next - t->first <= TIMELINE_AHEAD + 1);
        if (i % 40 == 39) {
            timeline_end(t);
            device->at_rest = true;
            timeline_settle(t);
            device->at_rest = false;
            EXPECT(t->first == t->next && t->copy_count <= 1, "that of the next pass");
            *now += 100; /* idle between passes: nobody's time */
        }
    }
    return wanted;
}

static void test_sums(void)
{
    struct device device = {.base.ops = &device_ops};
    struct timeline t;
    struct timeline_sums wanted;

    timeline_init(&t, &device.base);
    wanted = run(&device, &t, 7);
    EXPECT(fabs(t.sums.compute_s - wanted.compute_s) < 1e-9);
    EXPECT(fabs(t.sums.wait_s - wanted.wait_s) < 1e-9 && wanted.wait_s > 10);
    EXPECT(fabs(t.sums.copy_s - wanted.copy_s) < 1e-9);
    EXPECT(t.sums.copy_bytes == (uint64_t)(10 * wanted.copy_s / 3 + 0.5));
    EXPECT(timeline_compute_s(&t, "double") > 0.5 && timeline_compute_s(&t, "double") < 1.5);
    EXPECT(timeline_compute_s(&t, "unknown") == 0);
    EXPECT(device.unsettled == 0, "%d", (int)device.unsettled);
    EXPECT(strcmp(t.kinds[0].kind, "double") == 0 && t.kinds[0].blocks == 7 * 19);
    EXPECT(strcmp(t.kinds[1].kind, "single") == 0 && t.kinds[1].blocks == 7 * 21);
    EXPECT(fabs(t.kinds[0].sums.compute_s + t.kinds[1].sums.compute_s - wanted.compute_s) < 1e-9);
}

struct seen {
    double computed_s, copied_s, last_s;
    uint64_t blocks, copies;
};

static void see(void *owner, const struct timeline_span *span)
{
    struct seen *seen = owner;

    EXPECT(span->begun_s <= span->done_s);
    if (span->kind == NULL) {
        seen->copied_s += span->done_s - span->begun_s;
        seen->copies++;
        return;
    }
    EXPECT(span->block == seen->blocks++);
    EXPECT(span->begun_s >= seen->last_s && span->ready_s >= span->begun_s);
    seen->computed_s += span->done_s - span->ready_s;
    seen->last_s = span->done_s;
}

/* Whoever watches learns when each block and copy began and ended, by one clock. */
static void test_watcher(void)
{
    struct device device = {.base.ops = &device_ops};
    struct seen seen = {0};
    struct timeline t;

    timeline_init(&t, &device.base);
    t.watcher = (struct timeline_watcher){&seen, see};
    run(&device, &t, 3);
    EXPECT(seen.blocks == 120 && seen.copies == 39 && t.copy_count == 1);
    EXPECT(fabs(seen.computed_s - t.sums.compute_s) < 1e-9);
    EXPECT(fabs(seen.copied_s - t.sums.copy_s) < 1e-9);
    EXPECT(fabs(seen.last_s - (device.now[STREAM_COMPUTE] - 100)) < 1e-9, "idle time counts");
}

/* Switched off it marks nothing, whatever was under way, and goes on where it was. */
static void test_off(void)
{
    struct device device = {.base.ops = &device_ops};
    struct timeline_sums before;
    struct timeline t;
    uint64_t marks;

    timeline_init(&t, &device.base);
    run(&device, &t, 1);
    before = t.sums;
    marks = device.count;
    t.off = true;
    run(&device, &t, 1);
    EXPECT(device.count == marks && t.sums.compute_s == before.compute_s);
    EXPECT(t.sums.wait_s == before.wait_s && t.sums.copy_s == before.copy_s);
    t.off = false;
    run(&device, &t, 2);
    EXPECT(fabs(t.sums.compute_s - 3 * before.compute_s) < 1e-9);
    EXPECT(t.sums.copy_bytes > 2 * before.copy_bytes && device.unsettled == 0);
}

/* A block that failed, and everything that was under way, is forgotten. */
static void test_drop(void)
{
    struct device device = {.base.ops = &device_ops};
    struct timeline t;

    timeline_init(&t, &device.base);
    timeline_begin(&t, "double");
    timeline_copy_begin(&t, 0, 10);
    timeline_copy_end(&t);
    timeline_ready(&t);
    device.now[STREAM_COMPUTE] += 5;
    timeline_begin(&t, "double");
    timeline_drop(&t);
    timeline_end(&t);
    timeline_settle(&t);
    EXPECT(t.sums.compute_s == 0 && t.sums.copy_s == 0 && t.first == t.next);
    run(&device, &t, 1);
    EXPECT(t.sums.compute_s > 0);
}

/* So many blocks that wait for no copy. */
static void run_others(struct device *device, struct timeline *t, int count)
{
    for (int i = 0; i < count; i++) {
        timeline_begin(t, "other");
        timeline_ready(t);
        device->now[STREAM_COMPUTE] += 1;
    }
    timeline_end(t);
    timeline_settle(t);
}

/* One mark between two blocks, a second one where weights may be waited for. */
static void test_marks(void)
{
    struct device device = {.base.ops = &device_ops};
    struct timeline t;

    timeline_init(&t, &device.base);
    run_others(&device, &t, 10);
    EXPECT(device.count == 11 && t.sums.compute_s == 10 && t.sums.wait_s == 0);
    timeline_begin(&t, "double");
    copy(&device, &t, 1);
    timeline_ready(&t);
    timeline_begin(&t, "double");
    timeline_wait(&t, device.copied);
    timeline_ready(&t);
    timeline_end(&t);
    EXPECT(device.count == 11 + 2 + 2 + 2 + 1, "%d", (int)device.count);
    run_others(&device, &t, 10);
    EXPECT(device.count == 18 + 11, "%d", (int)device.count);
}

/* A copy for a block that comes later than it seemed, since another pass came between: it counts
 * once it was waited for, so that it is surely done, and not at all if its marks are gone then. */
static void test_early_copy(void)
{
    for (int others = 3; others < 2 * BACKEND_MARKS; others += BACKEND_MARKS) {
        struct device device = {.base.ops = &device_ops};
        uint64_t counted = others == 3 ? 10 : 0;
        struct timeline t;

        timeline_init(&t, &device.base);
        timeline_begin(&t, "double");
        timeline_ready(&t);
        copy(&device, &t, 1000);
        run_others(&device, &t, others);
        EXPECT(t.sums.copy_bytes == 0 && t.sums.copy_s == 0 && t.copy_count == 1);
        timeline_begin(&t, "double");
        timeline_wait(&t, device.copied);
        timeline_ready(&t);
        run_others(&device, &t, 1);
        EXPECT(t.copy_count == 0 && t.sums.copy_bytes == counted, "%d others: %d bytes", others,
               (int)t.sums.copy_bytes);
        EXPECT(t.sums.copy_s == 100 * (double)counted);
    }
}

/* More copies than are remembered, and more kinds. */
static void test_limits(void)
{
    static char names[TIMELINE_KINDS + 4][4];
    struct device device = {.base.ops = &device_ops};
    struct timeline t;
    uint64_t blocks = 0;

    timeline_init(&t, &device.base);
    for (int i = 0; i < TIMELINE_KINDS + 4; i++) {
        snprintf(names[i], sizeof names[i], "%d", i);
        timeline_begin(&t, names[i]);
        timeline_ready(&t);
        device.now[STREAM_COMPUTE] += 1;
    }
    for (int i = 0; i < 2 * TIMELINE_COPIES; i++)
        copy(&device, &t, 1);
    timeline_wait(&t, device.copied);
    timeline_begin(&t, names[0]);
    timeline_ready(&t);
    timeline_end(&t);
    device.at_rest = true;
    timeline_settle(&t);
    for (int i = 0; i < TIMELINE_KINDS; i++)
        blocks += t.kinds[i].blocks;
    EXPECT(blocks == TIMELINE_KINDS + 5 && t.sums.compute_s == TIMELINE_KINDS + 4);
    EXPECT(t.sums.copy_s == TIMELINE_COPIES);
    timeline_copy_begin(NULL, 0, 10);
    timeline_copy_end(NULL);
    timeline_wait(NULL, 1);
}

int main(void)
{
    test_sums();
    test_watcher();
    test_off();
    test_drop();
    test_marks();
    test_early_copy();
    test_limits();
    return test_finish();
}
