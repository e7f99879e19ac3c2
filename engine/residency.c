/* SPDX-License-Identifier: MIT */
#include "engine/residency.h"

#include <errno.h>
#include <math.h>

#include "engine/schedule.h"

static uint64_t in_pages(const struct residency_case *c, uint64_t bytes)
{
    return (bytes + c->page_bytes - 1) / c->page_bytes * c->page_bytes;
}

/* What decides: blocks longer than some stay; those with little to compute for their size stay
 * before others do, for a copy finds little to hide behind there. */
struct choice {
    uint64_t longest_bytes; /* that may pass */
    uint64_t ring_bytes;
    double density; /* seconds of computing for a byte, up to which blocks come first */
};

static double density_of(const struct residency_case *c, size_t i)
{
    return c->compute_s != NULL ? c->compute_s[i] / (double)c->bytes[i] : 0;
}

static bool is_first(const struct residency_case *c, const struct choice *choice, size_t i)
{
    return density_of(c, i) <= choice->density;
}

/* Some of the blocks that may pass, of those that come first or of the others, stay, spread by
 * error diffusion: each earns the same share of its size, and stays once its whole size is earned.
 */
static void spread(const struct residency_case *c, const struct choice *choice, bool first,
                   uint64_t *room, bool *resident)
{
    uint64_t all = 0, used = 0;
    double share, earned = 0;

    for (size_t i = 0; i < c->count; i++)
        if (c->bytes[i] <= choice->longest_bytes && is_first(c, choice, i) == first)
            all += c->held[i];
    share = all > 0 ? (double)*room / (double)all : 0;
    for (size_t i = 0; i < c->count; i++) {
        if (c->bytes[i] > choice->longest_bytes || is_first(c, choice, i) != first)
            continue;
        earned += (double)c->held[i] * share;
        resident[i] = earned >= (double)c->held[i] * 0.999999 && used + c->held[i] <= *room;
        if (resident[i]) {
            earned -= (double)c->held[i];
            used += c->held[i];
        }
    }
    *room -= used;
}

static bool choose(const struct residency_case *c, const struct choice *choice, bool *resident)
{
    uint64_t room = c->room, ring = in_pages(c, choice->ring_bytes);

    if (ring > room)
        return false;
    room -= ring;
    for (size_t i = 0; i < c->count; i++) {
        resident[i] = c->bytes[i] > choice->longest_bytes;
        if (resident[i] && c->held[i] > room)
            return false;
        room -= resident[i] ? c->held[i] : 0;
    }
    spread(c, choice, true, &room, resident);
    spread(c, choice, false, &room, resident);
    /* What rounding left over may hold further blocks. */
    for (size_t i = c->count; i-- > 0;) {
        if (!resident[i] && c->held[i] <= room) {
            resident[i] = true;
            room -= c->held[i];
        }
    }
    return true;
}

/* The next longer block, above `bytes`; 0 if there is none. */
static uint64_t next_longest(const struct residency_case *c, uint64_t bytes)
{
    uint64_t next = 0;

    for (size_t i = 0; i < c->count; i++)
        if (c->bytes[i] > bytes && (next == 0 || c->bytes[i] < next))
            next = c->bytes[i];
    return next;
}

/* The longest `run` blocks that follow each other, of those that may pass. */
static uint64_t longest_run(const struct residency_case *c, uint64_t longest_bytes, size_t run)
{
    uint64_t most = 0;

    for (size_t first = 0; first < c->count; first++) {
        uint64_t bytes = 0;
        size_t taken = 0;

        for (size_t n = 0; n < c->count && taken < run; n++) {
            uint64_t next = c->bytes[(first + n) % c->count];

            bytes += next <= longest_bytes ? next : 0;
            taken += next <= longest_bytes;
        }
        most = bytes > most ? bytes : most;
    }
    return most;
}

/* What blocks that can't pass, and those shorter than a page, leave to the ring. */
static uint64_t left_for(const struct residency_case *c, uint64_t longest_bytes)
{
    uint64_t stay = 0;

    for (size_t i = 0; i < c->count; i++)
        if (c->bytes[i] > longest_bytes || c->held[i] < c->page_bytes)
            stay += c->held[i];
    return stay < c->room ? (c->room - stay) / c->page_bytes * c->page_bytes : 0;
}

/* The next higher density of some block, above `density`; infinite if there is none. */
static double next_density(const struct residency_case *c, double density)
{
    double next = INFINITY;

    for (size_t i = 0; i < c->count; i++)
        if (density_of(c, i) > density)
            next = fmin(next, density_of(c, i));
    return next;
}

/* As long as nothing is measured: copying a block takes about twice as long as computing with it,
 * where streaming pays at all; on cards from the fastest to middling ones between 1.5 and 3 times.
 */
#define COPY_SHARE 2.0

double residency_period(const struct residency_case *c, const bool *resident, uint64_t ring_bytes)
{
    return schedule_period(
        &(struct schedule_case){.count = c->count,
                                .stays = resident,
                                .bytes = c->bytes,
                                .ring_bytes = ring_bytes,
                                .copy_byte_s = c->compute_s != NULL ? c->copy_byte_s : COPY_SHARE,
                                .compute_s = c->compute_s,
                                .compute_byte_s = 1,
                                .in_turn = c->in_turn});
}

/* The best so far, and how long a run takes with it. */
struct found {
    struct choice choice;
    double period;
};

static void try_densities(const struct residency_case *c, struct choice choice, bool *resident,
                          struct found *best)
{
    choice.density = -1;
    while (choice.density < INFINITY && choose(c, &choice, resident)) {
        double period = residency_period(c, resident, choice.ring_bytes);

        if (period < best->period)
            *best = (struct found){choice, period};
        choice.density = next_density(c, choice.density);
    }
}

/* Adds up a choice. */
static struct residency measure(const struct residency_case *c, const bool *resident,
                                uint64_t ring_bytes)
{
    struct residency plan = {0};

    for (size_t i = 0; i < c->count; i++) {
        if (resident[i]) {
            plan.resident++;
            plan.resident_bytes += c->held[i];
        } else {
            plan.streamed++;
            plan.streamed_bytes += c->bytes[i];
            plan.ring_bytes = ring_bytes;
        }
    }
    return plan;
}

int residency_plan(const struct residency_case *c, bool *resident, struct residency *plan)
{
    struct found best = {.period = INFINITY};
    uint64_t longest = 0;

    /* A short ring leaves more room, but keeps long blocks in it, or copies from going on while
     * blocks before are in use. */
    do {
        const uint64_t rings[] = {longest_run(c, longest, 3), 2 * longest,
                                  longest_run(c, longest, 2), left_for(c, longest), longest};

        for (size_t i = 0; i < sizeof rings / sizeof *rings; i++)
            if (rings[i] >= longest && rings[i] <= 3 * longest)
                try_densities(c, (struct choice){longest, rings[i], 0}, resident, &best);
        if (longest == 0 && best.period < INFINITY)
            break; /* all stay, which nothing is faster than */
        longest = next_longest(c, longest);
    } while (longest > 0);
    if (best.period == INFINITY)
        return -ENOMEM;
    choose(c, &best.choice, resident);
    *plan = measure(c, resident, best.choice.ring_bytes);
    return 0;
}

static bool fits(const struct residency_case *c, const struct residency_before *before)
{
    uint64_t used = in_pages(c, before->ring_bytes);

    for (size_t i = 0; i < c->count; i++) {
        used += before->resident[i] ? c->held[i] : 0;
        if (!before->resident[i] && c->bytes[i] > before->ring_bytes)
            return false;
    }
    return used <= c->room;
}

/* What a new plan must gain, in time or in bytes over the link. */
#define GAIN_TIME 0.98
#define GAIN_BYTES 0.9

int residency_replan(const struct residency_case *c, const struct residency_before *before,
                     bool *resident, struct residency *plan)
{
    struct residency kept;
    int result = residency_plan(c, resident, plan);

    if (result != 0 || before->resident == NULL || !fits(c, before))
        return result;
    kept = measure(c, before->resident, before->ring_bytes);
    if (GAIN_TIME * residency_period(c, before->resident, before->ring_bytes) >
            residency_period(c, resident, plan->ring_bytes) ||
        GAIN_BYTES * (double)kept.streamed_bytes > (double)plan->streamed_bytes)
        return 0;
    for (size_t i = 0; i < c->count; i++)
        resident[i] = before->resident[i];
    *plan = kept;
    return 0;
}

uint64_t residency_least(const struct residency_case *c)
{
    uint64_t longest = 0, least = UINT64_MAX;

    do {
        uint64_t bytes = in_pages(c, longest);

        for (size_t i = 0; i < c->count; i++)
            bytes += c->bytes[i] > longest ? c->held[i] : 0;
        least = bytes < least ? bytes : least;
        longest = next_longest(c, longest);
    } while (longest > 0);
    return least;
}
