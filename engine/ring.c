/* SPDX-License-Identifier: MIT */
#include "engine/ring.h"

#include <stdint.h>

struct ring ring_empty(size_t count, const bool *stays)
{
    struct ring ring = {.count = count, .stays = stays};

    for (int s = 0; s < RING_SLOTS; s++)
        ring.held[s] = RING_EMPTY;
    return ring;
}

int ring_slot(const struct ring *ring, size_t j)
{
    for (int s = 0; s < RING_SLOTS; s++)
        if (ring->held[s] == j)
            return s;
    return -1;
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

int ring_find(const struct ring *ring, size_t i, size_t least)
{
    size_t farthest = least;
    int found = -1;

    for (int s = 0; s < RING_SLOTS; s++) {
        size_t away = distance(ring, i, ring->held[s]);

        if (ring->held[s] != i && away >= farthest) {
            found = s;
            farthest = away;
        }
    }
    return found;
}

bool ring_next(const struct ring *ring, size_t i, size_t *j, int *slot)
{
    for (size_t n = 1; n < ring->count && (ring->wrap || i + n < ring->count); n++) {
        *j = (i + n) % ring->count;
        if (ring->stays[*j] || ring_slot(ring, *j) >= 0)
            continue;
        *slot = ring_find(ring, i, n + 1);
        return *slot >= 0;
    }
    return false;
}
