/* SPDX-License-Identifier: MIT */
/* Scratch: what lives at the same time does not overlap, and a replay gets the rehearsed places. */
#include "engine/scratch.h"

#include <string.h>

#include "tests/test.h"

enum { BUFFERS = 200, STEPS = 600 };

static uint64_t state;

static uint64_t below(uint64_t limit)
{
    state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (state >> 33) % limit;
}

struct buffer {
    unsigned char *data;
    uint64_t bytes;
    unsigned char mark;
    bool alive;
};

struct script {
    struct scratch *scratch;
    struct buffer buffers[BUFFERS];
    int count;
    bool rehearsal;
    char *base;
};

static void take(struct script *s)
{
    struct buffer *b = &s->buffers[s->count];

    b->bytes = below(4) == 0 ? 1 + below(5000) : 1 + below(300);
    b->data = scratch_take(s->scratch, b->bytes);
    b->alive = true;
    b->mark = (unsigned char)(1 + s->count % 255);
    s->count++;
    if (s->rehearsal)
        return;
    EXPECT((char *)b->data >= s->base &&
           (char *)b->data + b->bytes <= s->base + s->scratch->total_bytes);
    EXPECT((size_t)((char *)b->data - s->base) % 256 == 0);
    memset(b->data, b->mark, b->bytes);
}

static void verify(const struct buffer *b)
{
    for (uint64_t i = 0; i < b->bytes; i++)
        if (b->data[i] != b->mark) {
            EXPECT(false, "byte %llu was overwritten", (unsigned long long)i);
            return;
        }
    EXPECT(true);
}

static void give(struct script *s, struct buffer *b)
{
    if (!s->rehearsal)
        verify(b);
    scratch_give(s->scratch, b->data);
    b->alive = false;
}

/* The same takes and gives for the same seed, as a pass makes them; some are never given back. */
static void run(struct script *s, uint64_t seed)
{
    state = seed;
    s->count = 0;
    for (int step = 0; step < STEPS; step++) {
        uint64_t which = below(BUFFERS);

        if (below(3) == 0 && s->count < BUFFERS)
            take(s);
        else if ((int)which < s->count && s->buffers[which].alive && which % 7 != 0)
            give(s, &s->buffers[which]);
    }
    for (int i = 0; i < s->count; i++)
        if (!s->rehearsal && s->buffers[i].alive)
            verify(&s->buffers[i]);
}

static void test_random_passes(void)
{
    struct scratch scratch = {0};

    for (uint64_t seed = 1; seed <= 40; seed++) {
        struct script script = {.scratch = &scratch, .rehearsal = true};
        uint64_t first;

        scratch_record(&scratch);
        run(&script, seed);
        EXPECT(scratch_plan(&scratch) == 0);
        first = scratch.total_bytes;
        script.base = aligned_alloc(256, first + 256);
        script.rehearsal = false;
        for (int replay = 0; replay < 2; replay++) {
            scratch_replay(&scratch, script.base);
            run(&script, seed);
        }
        free(script.base);
        EXPECT(scratch.total_bytes == first);
    }
    scratch_finish(&scratch);
}

/* One after another share their memory; together they don't. */
static void test_lifetimes(void)
{
    struct scratch s = {0};
    void *a, *b;

    scratch_record(&s);
    a = scratch_take(&s, 1000);
    scratch_give(&s, a);
    b = scratch_take(&s, 1000);
    scratch_give(&s, b);
    EXPECT(a != b, "rehearsed addresses differ");
    EXPECT(scratch_plan(&s) == 0 && s.total_bytes == 1024, "%llu",
           (unsigned long long)s.total_bytes);
    scratch_record(&s);
    a = scratch_take(&s, 1000);
    b = scratch_take(&s, 1000);
    scratch_give(&s, a);
    scratch_give(&s, b);
    EXPECT(scratch_plan(&s) == 0 && s.total_bytes == 2048);
    scratch_record(&s); /* nothing at all */
    EXPECT(scratch_plan(&s) == 0 && s.total_bytes == 0);
    scratch_give(&s, NULL);
    scratch_finish(&s);
}

int main(void)
{
    test_random_passes();
    test_lifetimes();
    return test_finish();
}
