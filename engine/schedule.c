/* SPDX-License-Identifier: MIT */
#include "engine/schedule.h"

#include "engine/ring.h"

/* Runs until the clocks of the streams no longer drift apart, and those that are then measured. */
enum { RUNS_BEFORE = 4, RUNS_MEASURED = 4 };

struct clocks {
    double copy, compute;      /* when what is queued on each stream ends */
    double copied[RING_SLOTS]; /* when what is in a slot has arrived */
};

static double later(double a, double b)
{
    return a > b ? a : b;
}

static void load(const struct schedule_case *c, struct ring *ring, struct clocks *clocks,
                 uint64_t offset, size_t j)
{
    ring_put(ring, offset, j);
    clocks->copy = later(clocks->copy, clocks->compute) + (double)c->bytes[j] * c->copy_byte_s;
    clocks->copied[ring_slot(ring, j)] = clocks->copy;
    if (c->in_turn)
        clocks->compute = clocks->copy;
}

static void use(const struct schedule_case *c, struct ring *ring, struct clocks *clocks, size_t i)
{
    uint64_t offset;
    size_t j;

    if (!c->stays[i] && ring_slot(ring, i) < 0 && ring_find(ring, i, i, 0, &offset))
        load(c, ring, clocks, offset, i);
    while (ring_next(ring, i, &j, &offset))
        load(c, ring, clocks, offset, j);
    if (!c->stays[i])
        clocks->compute = later(clocks->compute, clocks->copied[ring_slot(ring, i)]);
    clocks->compute +=
        c->compute_s != NULL ? c->compute_s[i] : (double)c->bytes[i] * c->compute_byte_s;
}

double schedule_period(const struct schedule_case *c)
{
    struct ring ring = ring_empty(c->count, c->stays, c->bytes, c->ring_bytes);
    struct clocks clocks = {0};
    double start = 0;

    ring.wrap = true;
    for (int run = 0; run < RUNS_BEFORE + RUNS_MEASURED; run++) {
        if (run == RUNS_BEFORE)
            start = clocks.compute;
        for (size_t i = 0; i < c->count; i++)
            use(c, &ring, &clocks, i);
    }
    return (clocks.compute - start) / RUNS_MEASURED;
}
