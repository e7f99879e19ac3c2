/* SPDX-License-Identifier: MIT */
#include "alloc/arena_internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "alloc/trace.h"

/* When not even a page can be had, a slot of up to so many classes above will do. */
enum { ROOMIER_CLASSES = 4 };

/* Slabs of small slots are 1/32 of a page, those of middling ones 1/4: at least 8 slots each. */
enum { SMALL_SLOTS = 256, SMALL_SHIFT = 5, MIDDLE_SLOTS = 32, MIDDLE_SHIFT = 2 };

struct slab_shape {
    uint64_t bytes; /* of the slab */
    uint32_t slot_bytes, slot_count;
    uint8_t slab_class;
};

static struct slab_shape shape_of(const struct arena *arena, uint64_t bytes)
{
    uint64_t least = arena->page_bytes / SLOTS_LIMIT;
    uint32_t count, log2, half, shift;

    bytes = bytes > least ? bytes : least;
    bytes = (bytes + ARENA_ALIGNMENT - 1) & ~(uint64_t)(ARENA_ALIGNMENT - 1);
    count = (uint32_t)arena->page_bytes / (uint32_t)bytes;
    log2 = 31 - (uint32_t)__builtin_clz(count);
    half = count >> (log2 - 1) & 1;
    count = (2 + half) << (log2 - 1);
    shift = count >= SMALL_SLOTS ? SMALL_SHIFT : count >= MIDDLE_SLOTS ? MIDDLE_SHIFT : 0;
    return (struct slab_shape){
        .bytes = arena->page_bytes >> shift,
        .slot_bytes = (uint32_t)arena->page_bytes / count & ~(uint32_t)(ARENA_ALIGNMENT - 1),
        .slot_count = count >> shift,
        .slab_class = (uint8_t)(2 * (log2 - 1) + half),
    };
}

uint64_t arena_footprint(const struct arena *arena, uint64_t bytes)
{
    if (slab_suits(arena, bytes))
        return shape_of(arena, bytes).slot_bytes;
    return (bytes + arena->page_bytes - 1) >> arena->page_shift << arena->page_shift;
}

static struct slab **list_of(struct arena *arena, const struct slab *slab)
{
    return &arena->slab_lists[slab->stream][slab->slab_class];
}

static void list_add(struct arena *arena, struct slab *slab)
{
    struct slab **head = list_of(arena, slab);

    slab->previous = NULL;
    slab->next = *head;
    if (*head)
        (*head)->previous = slab;
    *head = slab;
}

static void list_remove(struct arena *arena, struct slab *slab)
{
    if (slab->next)
        slab->next->previous = slab->previous;
    if (slab->previous)
        slab->previous->next = slab->next;
    else
        *list_of(arena, slab) = slab->next;
}

static void mark_vacant(struct slab *slab, uint32_t slot)
{
    slab->vacant[slot / 64] |= UINT64_C(1) << slot % 64;
    slab->slots[slot].state = SLOT_VACANT;
    slab->vacant_count++;
}

static uint32_t slot_of(const struct slab *slab, uint64_t offset)
{
    return (uint32_t)(offset - slab->offset) / slab->slot_bytes;
}

static uint64_t slot_offset(const struct slab *slab, uint32_t slot)
{
    return slab->offset + (uint64_t)slot * slab->slot_bytes;
}

/* The first vacant slot, no longer vacant. */
static uint32_t take_vacant(struct arena *arena, struct slab *slab)
{
    uint32_t word = 0, bit;

    while (slab->vacant[word] == 0)
        word++;
    bit = (uint32_t)__builtin_ctzll(slab->vacant[word]);
    slab->vacant[word] &= slab->vacant[word] - 1;
    if (slab->vacant_count == slab->slot_count)
        arena->empty_slabs--;
    slab->vacant_count--;
    if (slab->vacant_count == 0)
        list_remove(arena, slab);
    return 64 * word + bit;
}

static int slab_find(struct arena *arena, uint64_t bytes, int stream, struct slab **slab);

/* Memory for a slab: a page of its own, or a slot of another slab. */
static int slab_place(struct arena *arena, const struct slab_shape *shape, struct slab *slab)
{
    uint32_t place;
    int code;

    if (shape->bytes == arena->page_bytes) {
        code = run_obtain(arena, 1, slab->stream, &place);
        if (code != 0)
            return code;
        run_set(arena, place, 1, RUN_SLAB);
        arena->slabs[place] = slab;
        slab->offset = place * arena->page_bytes;
        return 0;
    }
    code = slab_find(arena, shape->bytes, slab->stream, &slab->parent);
    if (code != 0)
        return code;
    place = take_vacant(arena, slab->parent);
    slab->parent->slots[place].state = SLOT_SLAB;
    slab->parent->slots[place].slab = slab;
    slab->offset = slot_offset(slab->parent, place);
    return 0;
}

/* A slab, empty and in its list. */
static int slab_create(struct arena *arena, const struct slab_shape *shape, int stream,
                       struct slab **slab)
{
    struct slab *created = calloc(1, sizeof *created + shape->slot_count * sizeof(struct slot));
    int code;

    if (!created)
        return -ENOMEM;
    created->slot_bytes = shape->slot_bytes;
    created->slot_count = shape->slot_count;
    created->slab_class = shape->slab_class;
    created->stream = (uint8_t)stream;
    code = slab_place(arena, shape, created);
    if (code != 0) {
        free(created);
        return code;
    }
    for (uint32_t i = 0; i < created->slot_count; i++)
        mark_vacant(created, i);
    arena->empty_slabs++;
    list_add(arena, created);
    *slab = created;
    return 0;
}

static void vacate(struct arena *arena, struct slab *slab, uint32_t number)
{
    mark_vacant(slab, number);
    if (slab->vacant_count == 1)
        list_add(arena, slab);
    arena->empty_slabs += slab->vacant_count == slab->slot_count;
}

/* Gives an empty slab's memory back: its page becomes free memory of the slab's stream, its slot a
 * vacant one of the parent. */
static void slab_destroy(struct arena *arena, struct slab *slab)
{
    struct slab *parent = slab->parent;
    uint32_t page = (uint32_t)(slab->offset >> arena->page_shift);

    assert(slab->vacant_count == slab->slot_count);
    list_remove(arena, slab);
    arena->empty_slabs--;
    if (parent) {
        vacate(arena, parent, slot_of(parent, slab->offset));
    } else {
        arena->slabs[page] = NULL;
        (void)run_insert_free(arena, page, 1, (uint8_t)(1 + slab->stream),
                              stream_note_free(arena, slab->stream));
    }
    free(slab);
}

/* One empty slab stays with its class, so that a block that comes and goes costs no page. */
static void retire_if_empty(struct arena *arena, struct slab *slab)
{
    while (slab && slab->vacant_count == slab->slot_count &&
           (slab->next || slab->previous || arena->over_budget)) {
        struct slab *parent = slab->parent;
        slab_destroy(arena, slab);
        slab = parent;
    }
}

static struct slab *find_roomier(struct arena *arena, const struct slab_shape *shape, int stream)
{
    for (int i = 1; i <= ROOMIER_CLASSES && i <= shape->slab_class; i++) {
        struct slab *slab = arena->slab_lists[stream][shape->slab_class - i];
        if (slab)
            return slab;
    }
    return NULL;
}

/* A slab with a vacant slot for so many bytes. */
static int slab_find(struct arena *arena, uint64_t bytes, int stream, struct slab **slab)
{
    struct slab_shape shape = shape_of(arena, bytes);
    struct slab *found = arena->slab_lists[stream][shape.slab_class];

    if (!found && pages_creatable(arena) == 0 && arena->pages_spare == 0)
        found = find_roomier(arena, &shape, stream);
    if (!found)
        return slab_create(arena, &shape, stream, slab);
    *slab = found;
    return 0;
}

int slab_alloc(struct arena *arena, const struct arena_request *request, uintptr_t *address)
{
    struct slab *slab;
    struct slot *slot;
    uint32_t number;
    int code = slab_find(arena, request->bytes, request->stream, &slab);

    if (code != 0)
        return code;
    number = take_vacant(arena, slab);
    slot = &slab->slots[number];
    slot->state = SLOT_USED;
    slot->requested_bytes = (uint32_t)request->bytes;
    slot->component = (uint8_t)request->component;
    slot->id = arena->next_id;
    account_block(arena, request->component, request->bytes, slab->slot_bytes);
    *address = arena->base + slot_offset(slab, number);
    return 0;
}

static void wait_for_fence(struct arena *arena, struct slab *slab, struct slot *slot, int stream)
{
    slot->state = SLOT_WAITING;
    slot->stream = (uint8_t)stream;
    slot->sequence = stream_note_free(arena, stream);
    if (slab->waiting_count++ == 0) {
        slab->next_waiting = arena->waiting_slabs;
        arena->waiting_slabs = slab;
    }
}

int slab_free(struct arena *arena, uint64_t offset, int stream)
{
    struct slab *slab = arena->slabs[offset >> arena->page_shift];
    uint32_t number = slot_of(slab, offset);
    struct slot *slot;

    while (number < slab->slot_count && slab->slots[number].state == SLOT_SLAB) {
        slab = slab->slots[number].slab;
        number = slot_of(slab, offset);
    }
    slot = &slab->slots[number];
    if (number >= slab->slot_count || slot_offset(slab, number) != offset ||
        slot->state != SLOT_USED)
        return -EINVAL;
    account_release(arena, slot->component, slot->requested_bytes, slab->slot_bytes);
    if (arena->trace)
        trace_write_free(arena->trace, slot->id);
    if (stream == slab->stream) {
        vacate(arena, slab, number);
        retire_if_empty(arena, slab);
    } else {
        wait_for_fence(arena, slab, slot, stream);
    }
    return 0;
}

static void settle_slots(struct arena *arena, struct slab *slab)
{
    for (uint32_t i = 0; i < slab->slot_count && slab->waiting_count > 0; i++) {
        struct slot *slot = &slab->slots[i];

        if (slot->state == SLOT_WAITING && slot->sequence <= arena->streams[slot->stream].passed) {
            slab->waiting_count--;
            vacate(arena, slab, i);
        }
    }
}

void slab_settle(struct arena *arena)
{
    struct slab *slab = arena->waiting_slabs;

    arena->waiting_slabs = NULL;
    while (slab) {
        struct slab *next = slab->next_waiting;

        settle_slots(arena, slab);
        if (slab->waiting_count > 0) {
            slab->next_waiting = arena->waiting_slabs;
            arena->waiting_slabs = slab;
        } else {
            retire_if_empty(arena, slab);
        }
        slab = next;
    }
}

void slab_drop_empty(struct arena *arena)
{
    for (int stream = 0; stream < ARENA_STREAMS; stream++) {
        /* Smallest slots first: their slabs may be all that others hold. */
        for (int i = SLAB_CLASSES - 1; i >= 0 && arena->empty_slabs > 0; i--) {
            struct slab *slab = arena->slab_lists[stream][i];

            while (slab) {
                struct slab *next = slab->next;
                if (slab->vacant_count == slab->slot_count)
                    slab_destroy(arena, slab);
                slab = next;
            }
        }
    }
}

/* With the slabs in its slots, which go two levels down at most. */
static void slab_forget(struct slab *slab)
{
    for (uint32_t i = 0; i < slab->slot_count; i++) {
        if (slab->slots[i].state == SLOT_SLAB)
            slab_forget(slab->slots[i].slab);
    }
    free(slab);
}

void slab_finish(struct arena *arena)
{
    for (struct run *run = &arena->runs[0]; run; run = run_next(arena, run)) {
        if (run->state == RUN_SLAB)
            slab_forget(arena->slabs[run->first]);
    }
}
