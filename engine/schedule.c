/* SPDX-License-Identifier: MIT */
#include "engine/schedule.h"

#include <math.h>

#include "engine/ring.h"

/* Runs until the clocks of the streams no longer drift apart, and those that are then measured;
 * fewer if one ends as it began. */
enum { RUNS_BEFORE = 4, RUNS_MEASURED = 4 };
#define SAME_S 1e-9 /* of a run's seconds */

struct clocks {
    double copy, compute;      /* when what is queued on each stream ends */
    double copied[RING_SLOTS]; /* when what is in a slot has arrived */
};

static double later(double a, double b)
{
    return a > b ? a : b;
}

static double seconds_of(const struct schedule_case *c, size_t i)
{
    return c->compute_s != NULL ? c->compute_s[i] : (double)c->bytes[i] * c->compute_byte_s;
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
    clocks->compute += seconds_of(c, i);
}

/* One pass, where nothing passes through the ring. */
static bool all_stay(const struct schedule_case *c, double *seconds)
{
    *seconds = 0;
    for (size_t i = 0; i < c->count; i++) {
        if (!c->stays[i])
            return false;
        *seconds += seconds_of(c, i);
    }
    return true;
}

/* What is still to come on the copy stream, of all or of a slot, when computing ends. */
static double ahead(const struct clocks *clocks, double end)
{
    return later(end - clocks->compute, 0);
}

/* Whether all lies as it did before a run, and the streams are as far apart: then the next one is
 * its like. */
static bool repeats(const struct ring *ring, const struct clocks *clocks, const struct ring *before,
                    const struct clocks *then)
{
    double same = SAME_S * (clocks->compute - then->compute);

    if (ring->next != before->next ||
        fabs(ahead(clocks, clocks->copy) - ahead(then, then->copy)) > same)
        return false;
    for (int s = 0; s < RING_SLOTS; s++)
        if (ring->slots[s].block != before->slots[s].block ||
            ring->slots[s].offset != before->slots[s].offset ||
            fabs(ahead(clocks, clocks->copied[s]) - ahead(then, then->copied[s])) > same)
            return false;
    return true;
}

double schedule_period(const struct schedule_case *c)
{
    struct ring ring = ring_empty(c->count, c->stays, c->bytes, c->ring_bytes);
    struct clocks clocks = {0};
    double start = 0, period;

    if (all_stay(c, &period))
        return period;
    ring.wrap = true;
    for (int run = 0; run < RUNS_BEFORE + RUNS_MEASURED; run++) {
        const struct ring before = ring;
        const struct clocks then = clocks;

        if (run == RUNS_BEFORE)
            start = clocks.compute;
        for (size_t i = 0; i < c->count; i++)
            use(c, &ring, &clocks, i);
        if (repeats(&ring, &clocks, &before, &then))
            return clocks.compute - then.compute;
    }
    return (clocks.compute - start) / RUNS_MEASURED;
}
