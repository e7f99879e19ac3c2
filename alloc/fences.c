/* SPDX-License-Identifier: MIT */
#include "alloc/arena_internal.h"

#include <string.h>

/* With several streams a fence follows every so many frees, so that one is likely to have passed
 * when another stream runs short; with a single one none is needed before memory is. */
enum { FREES_PER_FENCE = 64 };

static int record(struct arena *arena, int number)
{
    struct stream *stream = &arena->streams[number];
    page_fence fence;
    int code;

    if (stream->frees == 0 || stream->fence_count == ARENA_FENCES)
        return 0;
    code = arena->source->ops->fence_record(arena->source, number, &fence);
    if (code < 0)
        return code;
    stream->fences[stream->fence_count].fence = fence;
    stream->fences[stream->fence_count].sequence = stream->open;
    stream->fence_count++;
    stream->open++;
    stream->frees = 0;
    return 0;
}

static void pass_oldest(struct stream *stream)
{
    stream->passed = stream->fences[0].sequence;
    stream->fence_count--;
    memmove(&stream->fences[0], &stream->fences[1], stream->fence_count * sizeof stream->fences[0]);
}

/* Opens the runs of a stream whose frees are over. */
static void open_passed(struct arena *arena, int number)
{
    uint64_t passed = arena->streams[number].passed;

    for (struct run *run = &arena->runs[0]; run; run = run_next(arena, run)) {
        uint32_t first = run->first, count = run->count;

        if (run->state != RUN_FREE || run->owner != 1 + number || run->sequence > passed)
            continue;
        run_cut(arena, first, count);
        run = run_insert_free(arena, first, count, OWNER_ANY, 0);
    }
}

static int poll_stream(struct arena *arena, int number)
{
    struct stream *stream = &arena->streams[number];
    uint64_t passed = stream->passed;
    int code = record(arena, number);

    while (code == 0 && stream->fence_count > 0) {
        code = arena->source->ops->fence_query(arena->source, stream->fences[0].fence);
        if (code <= 0)
            break;
        pass_oldest(stream);
        code = record(arena, number); /* in case there was no room for it */
    }
    if (stream->passed != passed)
        open_passed(arena, number);
    return code < 0 ? code : 0;
}

uint64_t stream_note_free(struct arena *arena, int number)
{
    struct stream *stream = &arena->streams[number];
    uint64_t sequence = stream->open;

    arena->streams_seen |= 1U << number;
    stream->frees++;
    /* An error shows again when the fence is needed. */
    if (stream->frees >= FREES_PER_FENCE && !single_stream(arena))
        (void)record(arena, number);
    return sequence;
}

static int poll_streams(struct arena *arena)
{
    int result = 0;

    slab_drop_empty(arena);
    for (int i = 0; i < ARENA_STREAMS; i++) {
        int code = arena->streams_seen & 1U << i ? poll_stream(arena, i) : 0;
        if (result == 0)
            result = code;
    }
    slab_settle(arena);
    return result;
}

int fences_poll(struct arena *arena)
{
    int code = poll_streams(arena);

    /* Slots that became vacant may have emptied slabs, whose pages want a fence of their own. */
    if (code == 0 && arena->empty_slabs > 0)
        code = poll_streams(arena);
    return code;
}

int fences_wait(struct arena *arena)
{
    for (int i = 0; i < ARENA_STREAMS; i++) {
        struct stream *stream = &arena->streams[i];
        int code = record(arena, i);

        if (code < 0)
            return code;
        if (stream->fence_count == 0)
            continue;
        code = arena->source->ops->fence_wait(arena->source, stream->fences[0].fence);
        if (code < 0)
            return code;
        arena->counters.waits++;
        pass_oldest(stream);
        open_passed(arena, i);
        slab_settle(arena);
        return 1;
    }
    return 0;
}
