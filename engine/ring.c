/* SPDX-License-Identifier: MIT */
#include "engine/ring.h"

struct ring ring_empty(size_t count, const bool *stays, const uint64_t *bytes, uint64_t size_bytes)
{
    return (struct ring){.count = count,
                         .stays = stays,
                         .bytes = bytes,
                         .size_bytes = size_bytes,
                         .held = {RING_EMPTY, RING_EMPTY}};
}

int ring_slot(const struct ring *ring, size_t j)
{
    for (int s = 0; s < RING_SLOTS; s++)
        if (ring->held[s] == j)
            return s;
    return -1;
}

uint64_t ring_offset(const struct ring *ring, int slot, size_t j)
{
    return slot == 0 ? 0 : ring->size_bytes - ring->bytes[j];
}

/* Whether block j in a slot leaves the other one's as it is. */
static bool fits(const struct ring *ring, int slot, size_t j)
{
    size_t other = ring->held[1 - slot];

    return other == RING_EMPTY || ring->bytes[other] + ring->bytes[j] <= ring->size_bytes;
}

/* How many blocks come before block j is used, counted from block i; those before i come with the
 * next run, or never. */
static size_t distance(const struct ring *ring, size_t i, size_t j)
{
    if (j == RING_EMPTY)
        return SIZE_MAX;
    if (j >= i)
        return j - i;
    return ring->wrap ? j + ring->count - i : SIZE_MAX;
}

/* How soon one of those will be used that block j in a slot drives out; 0: it is in use. */
static size_t soonest(const struct ring *ring, size_t i, int slot, size_t j)
{
    size_t here = distance(ring, i, ring->held[slot]);
    size_t there = fits(ring, slot, j) ? SIZE_MAX : distance(ring, i, ring->held[1 - slot]);

    return here < there ? here : there;
}

int ring_find(const struct ring *ring, size_t i, size_t j, size_t least)
{
    size_t farthest = least > 0 ? least : 1;
    int found = -1;

    for (int s = 0; s < RING_SLOTS; s++) {
        size_t away = soonest(ring, i, s, j);

        if (away >= farthest) {
            found = s;
            farthest = away;
        }
    }
    return found;
}

void ring_put(struct ring *ring, int slot, size_t j)
{
    if (!fits(ring, slot, j))
        ring->held[1 - slot] = RING_EMPTY;
    ring->held[slot] = j;
}

bool ring_next(const struct ring *ring, size_t i, size_t *j, int *slot)
{
    for (size_t n = 1; n < ring->count && (ring->wrap || i + n < ring->count); n++) {
        *j = (i + n) % ring->count;
        if (ring->stays[*j] || ring_slot(ring, *j) >= 0)
            continue;
        *slot = ring_find(ring, i, *j, n + 1);
        return *slot >= 0;
    }
    return false;
}
