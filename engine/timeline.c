/* SPDX-License-Identifier: MIT */
#include "engine/timeline.h"

#include <string.h>

void timeline_init(struct timeline *timeline, struct backend *backend)
{
    *timeline = (struct timeline){.backend = backend};
}

static uint64_t mark(struct timeline *t, enum backend_stream stream)
{
    t->marks++;
    return t->backend->ops->mark(t->backend, stream);
}

static double seconds(struct timeline *t, uint64_t from, uint64_t to)
{
    return t->backend->ops->mark_seconds(t->backend, from, to);
}

static struct timeline_block *block_at(struct timeline *t, uint64_t number)
{
    return &t->blocks[number % (TIMELINE_AHEAD + 1)];
}

/* The sums of a kind; beyond TIMELINE_KINDS of them the last one takes all. */
static struct timeline_kind *kind_of(struct timeline *t, const char *kind)
{
    size_t i = 0;

    while (i + 1 < TIMELINE_KINDS && t->kinds[i].kind != NULL &&
           strcmp(t->kinds[i].kind, kind) != 0)
        i++;
    if (t->kinds[i].kind == NULL)
        t->kinds[i].kind = kind;
    return &t->kinds[i];
}

/* When a mark was passed, by one where a block began before. */
static double clock_at(struct timeline *t, uint64_t begun, uint64_t mark)
{
    return t->clock_s - seconds(t, begun, t->clock_mark) + seconds(t, begun, mark);
}

static void tell_block(struct timeline *t, const struct timeline_block *block)
{
    if (t->watcher.settled == NULL)
        return;
    if (t->clock_mark != 0)
        t->clock_s += seconds(t, t->clock_mark, block->begun);
    t->clock_mark = block->begun;
    t->watcher.settled(t->watcher.owner, &(struct timeline_span){
                                             .block = t->first,
                                             .kind = block->kind,
                                             .begun_s = t->clock_s,
                                             .ready_s = clock_at(t, block->begun, block->ready),
                                             .done_s = clock_at(t, block->begun, block->done),
                                         });
}

static void copy_settle(struct timeline *t, const struct timeline_copy *copy)
{
    /* Nobody waited for so long that its marks, and that of its turn, may stand for others now. */
    if (t->marks - copy->marks >= BACKEND_MARKS / 2)
        return;
    t->sums.copy_s += seconds(t, copy->begun, copy->done);
    t->sums.copy_bytes += copy->bytes;
    if (t->watcher.settled == NULL)
        return;
    t->watcher.settled(t->watcher.owner, &(struct timeline_span){
                                             .block = copy->before,
                                             .begun_s = clock_at(t, copy->turn, copy->begun),
                                             .done_s = clock_at(t, copy->turn, copy->done),
                                             .bytes = copy->bytes,
                                         });
}

/* The copies that the compute stream has waited for when it is past block `number`. */
static void copies_settle(struct timeline *t, uint64_t number)
{
    size_t kept = 0;

    for (size_t i = 0; i < t->copy_count; i++) {
        if (t->copies[i].waited <= number)
            copy_settle(t, &t->copies[i]);
        else
            t->copies[kept++] = t->copies[i];
    }
    t->copy_count = kept;
}

static void settle_oldest(struct timeline *t)
{
    const struct timeline_block *block = block_at(t, t->first);
    struct timeline_kind *kind = kind_of(t, block->kind);
    double compute, wait;

    t->backend->ops->mark_wait(t->backend, block->done);
    wait = seconds(t, block->begun, block->ready);
    compute = seconds(t, block->ready, block->done);
    t->sums.wait_s += wait;
    t->sums.compute_s += compute;
    kind->sums.wait_s += wait;
    kind->sums.compute_s += compute;
    kind->recent_s += kind->blocks == 0 ? compute : (compute - kind->recent_s) / 4;
    kind->blocks++;
    tell_block(t, block);
    copies_settle(t, t->first++);
}

/* A mark, which ends the block that is open. */
static uint64_t block_end(struct timeline *t)
{
    uint64_t now = mark(t, STREAM_COMPUTE);

    if (t->open)
        block_at(t, t->next - 1)->done = now;
    t->open = false;
    return now;
}

void timeline_begin(struct timeline *t, const char *kind)
{
    uint64_t now;

    if (t->off)
        return;
    now = block_end(t);
    while (t->next - t->first >= TIMELINE_AHEAD)
        settle_oldest(t);
    *block_at(t, t->next++) = (struct timeline_block){.kind = kind, .begun = now};
    t->open = true;
    t->held_up = false;
}

void timeline_ready(struct timeline *t)
{
    struct timeline_block *block = block_at(t, t->next - 1);

    if (!t->off)
        block->ready = t->held_up ? mark(t, STREAM_COMPUTE) : block->begun;
}

void timeline_copy_begin(struct timeline *t, size_t ahead, uint64_t bytes)
{
    if (t == NULL || t->off)
        return;
    t->held_up = true;
    if (t->copy_count == TIMELINE_COPIES)
        return;
    t->copies[t->copy_count++] = (struct timeline_copy){
        .number = ++t->copies_timed,
        .marks = t->marks,
        .begun = mark(t, STREAM_COPY),
        .turn = block_at(t, t->next - 1)->begun,
        .before = t->next - 1 + ahead,
        .waited = UINT64_MAX,
        .bytes = bytes,
    };
}

uint64_t timeline_copy_end(struct timeline *t)
{
    if (t == NULL)
        return 0;
    if (t->copy_count > 0 && t->copies[t->copy_count - 1].done == 0)
        t->copies[t->copy_count - 1].done = mark(t, STREAM_COPY);
    return t->copies_timed;
}

void timeline_wait(struct timeline *t, uint64_t end)
{
    for (size_t i = 0; t != NULL && !t->off && i < t->copy_count; i++) {
        struct timeline_copy *copy = &t->copies[i];

        if (copy->waited == UINT64_MAX && copy->done != 0 && copy->number <= end) {
            copy->waited = t->next - 1;
            t->held_up = true;
        }
    }
}

double timeline_compute_s(const struct timeline *t, const char *kind)
{
    for (int i = 0; i < TIMELINE_KINDS && t->kinds[i].kind != NULL; i++)
        if (strcmp(t->kinds[i].kind, kind) == 0)
            return t->kinds[i].recent_s;
    return 0;
}

void timeline_end(struct timeline *t)
{
    if (t->open)
        block_end(t);
}

void timeline_settle(struct timeline *t)
{
    while (t->first < t->next)
        settle_oldest(t);
}

void timeline_drop(struct timeline *t)
{
    t->first = t->next;
    t->open = false;
    t->copy_count = 0;
}
