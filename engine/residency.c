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

/* Blocks that would not fit into a slot of `slot_bytes` stay. Of the others some do, spread by
 * error diffusion: each earns the same share of its size, and stays once its whole size is earned.
 */
static bool choose(const struct residency_case *c, uint64_t slot_bytes, bool *resident)
{
    uint64_t room = c->room, others = 0, used = 0;
    double share, earned = 0;

    if (ring_of(c, slot_bytes) > room)
        return false;
    room -= ring_of(c, slot_bytes);
    for (size_t i = 0; i < c->count; i++) {
        resident[i] = c->bytes[i] > slot_bytes;
        if (!resident[i])
            others += c->held[i];
        else if (c->held[i] > room)
            return false;
        else
            room -= c->held[i];
    }
    share = others > 0 ? (double)room / (double)others : 0;
    for (size_t i = 0; i < c->count; i++) {
        if (c->bytes[i] > slot_bytes)
            continue;
        earned += (double)c->held[i] * share;
        resident[i] = earned >= (double)c->held[i] * 0.999999 && used + c->held[i] <= room;
        if (resident[i]) {
            earned -= (double)c->held[i];
            used += c->held[i];
        }
    }
    /* What rounding left over may hold further blocks. */
    for (size_t i = c->count; i-- > 0;) {
        if (!resident[i] && used + c->held[i] <= room) {
            resident[i] = true;
            used += c->held[i];
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

/* Copying a block takes about twice as long as computing with it, where streaming pays at all: on
 * cards from the fastest to middling ones between 1.5 and 3 times. */
#define COPY_SHARE 2.0

static double period(const struct residency_case *c, const bool *resident)
{
    return schedule_period(&(struct schedule_case){.count = c->count,
                                                   .stays = resident,
                                                   .bytes = c->bytes,
                                                   .copy_byte_s = COPY_SHARE,
                                                   .compute_byte_s = 1});
}

int residency_plan(const struct residency_case *c, bool *resident, struct residency *plan)
{
    uint64_t slot_bytes = 0, best_slot = 0;
    double best = INFINITY;

    /* A slot for short blocks leaves more room, but keeps the long ones in it. */
    do {
        if (choose(c, slot_bytes, resident)) {
            double now = period(c, resident);

            best_slot = now < best ? slot_bytes : best_slot;
            best = now < best ? now : best;
        }
        slot_bytes = next_slot(c, slot_bytes);
    } while (slot_bytes > 0);
    if (best == INFINITY)
        return -ENOMEM;
    choose(c, best_slot, resident);
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
