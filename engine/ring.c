/* SPDX-License-Identifier: MIT */
#include "engine/ring.h"

struct ring ring_empty(size_t count, const bool *stays, const uint64_t *bytes, uint64_t size_bytes)
{
    struct ring ring = {.count = count, .stays = stays, .bytes = bytes, .size_bytes = size_bytes};

    for (int s = 0; s < RING_SLOTS; s++)
        ring.slots[s].block = RING_EMPTY;
    return ring;
}

int ring_slot(const struct ring *ring, size_t j)
{
    for (int s = 0; s < RING_SLOTS; s++)
        if (ring->slots[s].block == j)
            return s;
    return -1;
}

/* Whether block j at an offset lies on what is in a slot. */
static bool overlaps(const struct ring *ring, const struct ring_slot *slot, uint64_t offset,
                     size_t j)
{
    return slot->block != RING_EMPTY && slot->offset < offset + ring->bytes[j] &&
           offset < slot->offset + ring->bytes[slot->block];
}

/* How many blocks come before block j is used, counted from block i; those before i come with the
 * next run, or never. */
static size_t distance(const struct ring *ring, size_t i, size_t j)
{
    if (j >= i)
        return j - i;
    return ring->wrap ? j + ring->count - i : SIZE_MAX;
}

/* Whether block j finds a place at an offset, and all that it drives out is used late enough. */
static bool goes(const struct ring *ring, size_t i, uint64_t offset, size_t j, size_t least)
{
    bool free = false;

    if (offset + ring->bytes[j] > ring->size_bytes)
        return false;
    for (int s = 0; s < RING_SLOTS; s++) {
        const struct ring_slot *slot = &ring->slots[s];
        bool hit = overlaps(ring, slot, offset, j);

        free |= hit || slot->block == RING_EMPTY;
        if (hit && (slot->block == i || distance(ring, i, slot->block) < least))
            return false;
    }
    return free;
}

bool ring_find(const struct ring *ring, size_t i, size_t j, size_t least, uint64_t *offset)
{
    *offset = ring->next;
    if (goes(ring, i, *offset, j, least))
        return true;
    *offset = 0;
    if (goes(ring, i, *offset, j, least))
        return true;
    for (int s = 0; s < RING_SLOTS; s++) {
        if (ring->slots[s].block == RING_EMPTY)
            continue;
        *offset = ring->slots[s].offset + ring->bytes[ring->slots[s].block];
        if (goes(ring, i, *offset, j, least))
            return true;
    }
    return false;
}

void ring_put(struct ring *ring, uint64_t offset, size_t j)
{
    int empty = -1;

    for (int s = 0; s < RING_SLOTS; s++) {
        if (overlaps(ring, &ring->slots[s], offset, j))
            ring->slots[s].block = RING_EMPTY;
        if (ring->slots[s].block == RING_EMPTY)
            empty = s;
    }
    ring->slots[empty] = (struct ring_slot){j, offset};
    ring->next = offset + ring->bytes[j];
}

bool ring_next(const struct ring *ring, size_t i, size_t *j, uint64_t *offset)
{
    for (size_t n = 1; n < ring->count && (ring->wrap || i + n < ring->count); n++) {
        *j = (i + n) % ring->count;
        if (!ring->stays[*j] && ring_slot(ring, *j) < 0)
            return ring_find(ring, i, *j, n + 1, offset);
    }
    return false;
}
