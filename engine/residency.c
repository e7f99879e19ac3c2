/* SPDX-License-Identifier: MIT */
#include "engine/residency.h"

#include <errno.h>
#include <math.h>

#include "engine/schedule.h"

static uint64_t ring_of(const struct residency_case *c, uint64_t slot_bytes)
{
    uint64_t bytes = slot_bytes * (uint64_t)c->slots;

    return (bytes + c->page_bytes - 1) / c->page_bytes * c->page_bytes;
}

/* Adds up a choice. */
static struct residency measure(const struct residency_case *c, const bool *resident)
{
    struct residency plan = {0};

    for (size_t i = 0; i < c->count; i++) {
        if (resident[i]) {
            plan.resident++;
            plan.resident_bytes += c->held[i];
        } else {
            plan.streamed++;
            plan.streamed_bytes += c->bytes[i];
            plan.slot_bytes = c->bytes[i] > plan.slot_bytes ? c->bytes[i] : plan.slot_bytes;
        }
    }
    plan.ring_bytes = ring_of(c, plan.slot_bytes);
    return plan;
}

/* What decides: blocks longer than a slot stay; those with little to compute for their size stay
 * before others do, for a copy finds little to hide behind there. */
struct choice {
    uint64_t slot_bytes;
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
        if (c->bytes[i] <= choice->slot_bytes && is_first(c, choice, i) == first)
            all += c->held[i];
    share = all > 0 ? (double)*room / (double)all : 0;
    for (size_t i = 0; i < c->count; i++) {
        if (c->bytes[i] > choice->slot_bytes || is_first(c, choice, i) != first)
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
    uint64_t room = c->room;

    if (ring_of(c, choice->slot_bytes) > room)
        return false;
    room -= ring_of(c, choice->slot_bytes);
    for (size_t i = 0; i < c->count; i++) {
        resident[i] = c->bytes[i] > choice->slot_bytes;
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

/* The next longer slot that some block fills, above `slot_bytes`; 0 if there is none. */
static uint64_t next_slot(const struct residency_case *c, uint64_t slot_bytes)
{
    uint64_t next = 0;

    for (size_t i = 0; i < c->count; i++)
        if (c->bytes[i] > slot_bytes && (next == 0 || c->bytes[i] < next))
            next = c->bytes[i];
    return next;
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

double residency_period(const struct residency_case *c, const bool *resident)
{
    return schedule_period(
        &(struct schedule_case){.count = c->count,
                                .stays = resident,
                                .bytes = c->bytes,
                                .copy_byte_s = c->compute_s != NULL ? c->copy_byte_s : COPY_SHARE,
                                .compute_s = c->compute_s,
                                .compute_byte_s = 1,
                                .in_turn = c->in_turn});
}

/* The best density for slots of one length, and how long a run takes then. */
static double best_density(const struct residency_case *c, struct choice *choice, bool *resident)
{
    double best = INFINITY, best_at = -1;

    choice->density = -1;
    while (choice->density < INFINITY && choose(c, choice, resident)) {
        double now = residency_period(c, resident);

        best_at = now < best ? choice->density : best_at;
        best = fmin(best, now);
        choice->density = next_density(c, choice->density);
    }
    choice->density = best_at;
    return best;
}

int residency_plan(const struct residency_case *c, bool *resident, struct residency *plan)
{
    struct choice choice = {0}, best = {0};
    double least = INFINITY;

    /* A slot for short blocks leaves more room, but keeps the long ones in it. */
    do {
        double now = best_density(c, &choice, resident);

        if (now < least) {
            least = now;
            best = choice;
        }
        choice.slot_bytes = next_slot(c, choice.slot_bytes);
    } while (choice.slot_bytes > 0);
    if (least == INFINITY)
        return -ENOMEM;
    choose(c, &best, resident);
    *plan = measure(c, resident);
    return 0;
}

uint64_t residency_least(const struct residency_case *c)
{
    uint64_t slot_bytes = 0, least = UINT64_MAX;

    do {
        uint64_t bytes = ring_of(c, slot_bytes);

        for (size_t i = 0; i < c->count; i++)
            bytes += c->bytes[i] > slot_bytes ? c->held[i] : 0;
        least = bytes < least ? bytes : least;
        slot_bytes = next_slot(c, slot_bytes);
    } while (slot_bytes > 0);
    return least;
}
