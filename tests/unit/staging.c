/* SPDX-License-Identifier: MIT */
/*
 * Staging without a GPU: a pretended copy stream reads each slot as late as it is allowed to, so
 * that a slot filled too early shows as wrong weights.
 */
#include <math.h>
#include <pthread.h>
#include <string.h>

#include "engine/cuda/staging.h"
#include "engine/cuda/weights.h"
#include "tests/test.h"

enum { SLOTS = 3, EVENTS_MAX = 16384 };

/* What the stream was asked for; read by the test when the staging threads are at rest. */
struct stream {
    pthread_mutex_t lock; /* guards all: slots are waited for by the threads that fill */
    struct {
        void *target;
        const void *source;
        size_t bytes;
    } pending[SLOTS];        /* not read yet; target NULL: nothing */
    char events[EVENTS_MAX]; /* s: send, k: send what is kept, h: hold, m: mark, t: time */
    uint64_t numbers[EVENTS_MAX];
    int count, bad, begun, waits;
    int overwritten; /* slots sent again before they were read */
    const char *bad_name;
};

static void note(struct stream *stream, char event, uint64_t number)
{
    if (stream->count == EVENTS_MAX)
        abort();
    stream->events[stream->count] = event;
    stream->numbers[stream->count++] = number;
}

static void stream_begin(void *owner)
{
    struct stream *stream = owner;

    pthread_mutex_lock(&stream->lock);
    stream->begun++;
    pthread_mutex_unlock(&stream->lock);
}

static void slot_read(struct stream *stream, int slot)
{
    if (stream->pending[slot].target != NULL)
        memcpy(stream->pending[slot].target, stream->pending[slot].source,
               stream->pending[slot].bytes);
    stream->pending[slot].target = NULL;
}

static void stream_slot_wait(void *owner, int slot)
{
    struct stream *stream = owner;

    pthread_mutex_lock(&stream->lock);
    stream->waits++;
    slot_read(stream, slot);
    pthread_mutex_unlock(&stream->lock);
}

static void stream_send(void *owner, int slot, void *target, const void *source, size_t bytes)
{
    struct stream *stream = owner;

    if (slot == STAGING_KEPT) {
        note(stream, 'k', bytes);
        memcpy(target, source, bytes);
        return;
    }
    pthread_mutex_lock(&stream->lock);
    stream->overwritten += stream->pending[slot].target != NULL;
    note(stream, 's', bytes);
    stream->pending[slot].target = target;
    stream->pending[slot].source = source;
    stream->pending[slot].bytes = bytes;
    pthread_mutex_unlock(&stream->lock);
}

static void stream_hold(void *owner, uint64_t point)
{
    note(owner, 'h', point);
}

static void stream_mark(void *owner, uint64_t ticket)
{
    note(owner, 'm', ticket);
}

static void stream_time(void *owner, uint64_t mark)
{
    note(owner, 't', mark);
}

static void stream_bad_weights(void *owner, const struct weight_copy *copy)
{
    struct stream *stream = owner;

    stream->bad++;
    stream->bad_name = copy->name;
}

static struct staging *staging_with(struct stream *stream, char *memory, size_t slot_bytes,
                                    int threads, struct host_store *store)
{
    struct staging_options options = {
        .device = {stream, stream_begin, stream_slot_wait, stream_send, stream_hold, stream_mark,
                   stream_time, stream_bad_weights},
        .memory = memory,
        .slot_bytes = slot_bytes,
        .slots = SLOTS,
        .threads = threads,
        .store = store,
    };
    struct staging *staging = NULL;
    struct error err;

    *stream = (struct stream){.lock = PTHREAD_MUTEX_INITIALIZER};
    if (!EXPECT(staging_create(&staging, &options, &err) == 0, "%s", err.text))
        exit(EXIT_FAILURE);
    return staging;
}

static struct staging *staging_of(struct stream *stream, char *memory, size_t slot_bytes,
                                  int threads)
{
    return staging_with(stream, memory, slot_bytes, threads, NULL);
}

/* Waits for all, lets the stream read what is left, and ends. */
static void settle(struct staging *staging, struct stream *stream, int threads)
{
    uint64_t ticket = staging_ticket(staging);

    staging_wait_issued(staging, ticket);
    EXPECT(staging_issued(staging, ticket) && !staging_issued(staging, ticket + 1));
    staging_destroy(staging);
    for (int slot = 0; slot < SLOTS; slot++)
        slot_read(stream, slot);
    EXPECT(stream->begun == threads + 1 && stream->overwritten == 0);
}

static void test_pieces(void)
{
    struct weight_copy matrix = {.layout = WEIGHT_MATRIX, .rows = 10, .cols = 100};
    struct weight_copy vector = {.layout = WEIGHT_VECTOR, .rows = 1, .cols = 100};
    struct weight_copy conv = {.layout = WEIGHT_CONV, .rows = 7, .cols = 90};

    EXPECT(staging_piece(&matrix, 0, 4000) == 1000);
    EXPECT(staging_piece(&matrix, 0, 601) == 300);
    EXPECT(staging_piece(&matrix, 900, 600) == 100);
    EXPECT(staging_piece(&vector, 0, 200) == 50);
    EXPECT(staging_piece(&vector, 50, 1000) == 50);
    EXPECT(staging_piece(&conv, 0, 90 * 2 * 3 + 1) == 270);
    EXPECT(staging_piece(&conv, 540, 90 * 2 * 3) == 90);
    EXPECT(staging_piece(&conv, 0, 90 * 2 - 1) == 0);
}

/* Matrices and vectors of many sizes through small slots arrive whole and in order. */
static void test_contents(int threads)
{
    enum { COPIES = 40, ELEMENTS = 200000 };
    static uint16_t source[ELEMENTS], matrix[ELEMENTS];
    static float vector[ELEMENTS];
    static char memory[SLOTS * 150000];
    struct stream stream;
    struct staging *staging = staging_of(&stream, memory, 150000, threads);
    int64_t at = 0;

    for (int64_t i = 0; i < ELEMENTS; i++)
        source[i] = (uint16_t)(i * 40503 % 0x7f80);
    memset(matrix, 0xff, sizeof matrix);
    memset(vector, 0xff, sizeof vector);
    for (int i = 0; i < COPIES && at < ELEMENTS; i++) {
        int64_t n = i == 20 ? 150000 : i * i + 1;
        struct weight_copy copy = {.first = at, .source = source + at, .source_dtype = DTYPE_BF16};

        n = ELEMENTS - at < n ? ELEMENTS - at : n;
        copy.target = matrix;
        copy.layout = WEIGHT_MATRIX;
        copy.rows = n;
        copy.cols = 1;
        staging_copy(staging, &copy);
        copy.target = vector;
        copy.layout = WEIGHT_VECTOR;
        copy.rows = 1;
        copy.cols = n;
        staging_copy(staging, &copy);
        at += n;
    }
    settle(staging, &stream, threads);
    EXPECT(memcmp(matrix, source, (size_t)at * sizeof *source) == 0, "%d threads", threads);
    for (int64_t i = 0; i < at; i++) {
        uint32_t bits = (uint32_t)source[i] << 16;

        if (memcmp(&vector[i], &bits, sizeof bits) != 0) {
            EXPECT(false, "element %lld, %d threads", (long long)i, threads);
            break;
        }
    }
    EXPECT(at == ELEMENTS || matrix[at] == 0xffff);
    EXPECT(stream.bad == 0);
}

/* Commands come out in the order they went in, whatever their kind. */
static void test_order(void)
{
    enum { ROUNDS = 300 };
    static char memory[SLOTS * 64];
    static uint16_t source[8], target[8];
    struct stream stream;
    struct staging *staging = staging_of(&stream, memory, 64, 2);
    struct weight_copy copy = {.target = target,
                               .source = source,
                               .source_dtype = DTYPE_BF16,
                               .layout = WEIGHT_MATRIX,
                               .rows = 1,
                               .cols = 8};
    int at = 0;

    for (int i = 0; i < ROUNDS; i++) {
        staging_hold(staging, (uint64_t)i);
        staging_copy(staging, &copy);
        EXPECT(staging_ticket(staging) == (uint64_t)i + 1);
    }
    settle(staging, &stream, 2);
    for (int i = 0; i < ROUNDS; i++) {
        EXPECT(stream.events[at] == 'h' && stream.numbers[at] == (uint64_t)i, "round %d", i);
        at++;
        EXPECT(stream.events[at] == 's' && stream.numbers[at] == sizeof target, "round %d", i);
        at++;
        EXPECT(stream.events[at] == 'm' && stream.numbers[at] == (uint64_t)i + 1, "round %d", i);
        at++;
    }
    EXPECT(at + 1 == stream.count && stream.waits == ROUNDS - SLOTS); /* settle marks */
}

static void test_damaged(void)
{
    enum { N = 140000 };
    static float source[N];
    static uint16_t target[N];
    static char memory[SLOTS * N];
    struct stream stream;
    struct staging *staging = staging_of(&stream, memory, N, 3);
    struct weight_copy copy = {.target = target,
                               .source = source,
                               .source_dtype = DTYPE_F32,
                               .layout = WEIGHT_MATRIX,
                               .rows = 2,
                               .cols = N / 2,
                               .name = "good"};

    staging_copy(staging, &copy);
    staging_wait_issued(staging, staging_ticket(staging));
    EXPECT(stream.bad == 0);
    source[100001] = NAN;
    copy.name = "bad";
    staging_copy(staging, &copy);
    settle(staging, &stream, 3);
    EXPECT(stream.bad == 1 && strcmp(stream.bad_name, "bad") == 0);
}

static void *store_allocate(void *owner, size_t bytes)
{
    return malloc(bytes);
}

static void store_release(void *owner, void *memory)
{
    free(memory);
}

static bool store_pin(void *owner, const void *pages, size_t bytes)
{
    return true;
}

static void store_unpin(void *owner, const void *pages)
{
}

static uint64_t store_spare(void *owner, uint64_t in_place)
{
    return 1 << 20;
}

static void store_begin(void *owner)
{
}

/* What the store has goes past the slots, between copies that don't, and arrives in order. */
static void test_kept(void)
{
    enum { N = 1000, ROUNDS = 50 };
    static uint16_t source[N], lasting[N], passing[N];
    static char memory[SLOTS * 64];
    struct host_store_options options = {.begin = store_begin,
                                         .allocate = store_allocate,
                                         .release = store_release,
                                         .pin = store_pin,
                                         .unpin = store_unpin,
                                         .spare = store_spare,
                                         .chunk_bytes = 4096,
                                         .in_place_bytes = 1024,
                                         .page_bytes = 256};
    struct host_store *store = NULL;
    struct stream stream;
    struct error err;

    if (!EXPECT(host_store_create(&store, &options, &err) == 0, "%s", err.text))
        return;
    struct staging *staging = staging_with(&stream, memory, 64, 3, store);
    struct weight_copy copy = {.source = source,
                               .source_dtype = DTYPE_BF16,
                               .layout = WEIGHT_MATRIX,
                               .rows = 1,
                               .cols = N};
    for (int i = 0; i < N; i++)
        source[i] = (uint16_t)(i * 7);
    for (int i = 0; i < ROUNDS; i++) {
        copy.lasting = true;
        copy.target = lasting;
        memset(lasting, 0xff, sizeof lasting);
        staging_copy(staging, &copy);
        copy.lasting = false;
        copy.target = passing;
        staging_copy(staging, &copy);
        staging_wait_issued(staging, staging_ticket(staging));
        host_store_settle(store);
        if (i >= 2)
            EXPECT(memcmp(lasting, source, sizeof source) == 0, "round %d", i);
    }
    settle(staging, &stream, 3);
    EXPECT(memcmp(passing, source, sizeof source) == 0);
    int kept = 0;
    for (int i = 0; i < stream.count; i++)
        kept += stream.events[i] == 'k';
    EXPECT(kept >= ROUNDS - 2 && kept <= 3 * (ROUNDS - 2), "%d", kept);
    host_store_destroy(store);
}

static void test_nothing_queued(void)
{
    static char memory[SLOTS * 64];
    struct stream stream;
    struct staging *staging = staging_of(&stream, memory, 64, 1);

    staging_destroy(staging);
    staging_destroy(NULL);
    EXPECT(stream.count == 0 && stream.begun == 2);
}

int main(void)
{
    test_pieces();
    for (int threads = 1; threads <= 4; threads++)
        test_contents(threads);
    test_order();
    test_damaged();
    test_kept();
    test_nothing_queued();
    return test_finish();
}
