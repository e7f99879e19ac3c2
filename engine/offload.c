/* SPDX-License-Identifier: MIT */
#include "engine/offload.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/residency.h"

enum { COMPUTE_STREAM = 0 };

void offload_init(struct offload *offload, struct backend *backend, struct arena *arena,
                  struct timeline *timeline)
{
    *offload = (struct offload){.backend = backend, .arena = arena, .timeline = timeline};
}

void offload_add(struct offload *offload, struct block_list *list, int component)
{
    offload->components[offload->list_count] = component;
    offload->lists[offload->list_count++] = list;
}

static bool in_ring(const struct offload *offload, const struct block *block)
{
    for (int s = 0; offload->pass != NULL && s < RING_SLOTS; s++)
        if (offload->ring.slots[s].block != RING_EMPTY &&
            offload->pass->blocks[offload->ring.slots[s].block] == block)
            return true;
    return false;
}

/* A free orders memory after the compute stream only, so that stream must know of the copy. */
static void block_drop(struct offload *offload, struct block *block)
{
    offload->backend->ops->copy_wait(offload->backend, block->ticket);
    arena_free(offload->arena, (uintptr_t)block->memory, COMPUTE_STREAM);
    block_bind(block, NULL);
}

static void ring_drop(struct offload *offload)
{
    if (offload->ring_address == 0)
        return;
    for (int s = 0; s < RING_SLOTS; s++)
        if (offload->ring.slots[s].block != RING_EMPTY)
            block_bind(offload->pass->blocks[offload->ring.slots[s].block], NULL);
    offload->backend->ops->copy_wait(offload->backend, offload->ring_ticket);
    arena_free(offload->arena, offload->ring_address, COMPUTE_STREAM);
    offload->ring_address = 0;
    offload->ring_ticket = 0;
    offload->ring_bytes = 0;
}

void offload_drop(struct offload *offload)
{
    offload_end(offload);
    for (size_t l = 0; l < offload->list_count; l++)
        for (size_t i = 0; i < offload->lists[l]->count; i++)
            if (offload->lists[l]->blocks[i]->memory != NULL)
                block_drop(offload, offload->lists[l]->blocks[i]);
}

void offload_finish(struct offload *offload)
{
    if (offload->arena != NULL)
        offload_drop(offload);
    for (size_t l = 0; l < offload->list_count; l++)
        free(offload->plans[l].resident);
    free(offload->resident);
    free(offload->bytes);
    *offload = (struct offload){0};
}

uint64_t offload_present_bytes(const struct offload *offload)
{
    uint64_t bytes = 0;

    for (size_t l = 0; l < offload->list_count; l++)
        bytes += block_list_present_bytes(offload->lists[l]);
    return bytes;
}

/* Drops blocks of one list, those first whose turn comes last, until enough is freed; of the pass
 * those that are planned to stay only if `planned`. */
static uint64_t list_evict(struct offload *offload, const struct block_list *list, bool planned,
                           uint64_t needed)
{
    size_t count = list->count, next = list == offload->pass ? offload->turn : 0;
    uint64_t freed = 0;

    for (size_t n = 1; n <= count && freed < needed; n++) {
        size_t i = (next + count - n) % count;
        struct block *block = list->blocks[i];

        if (block->memory == NULL || block == offload->in_use || in_ring(offload, block))
            continue;
        if (list == offload->pass && offload->resident[i] && !planned)
            continue;
        if (list == offload->pass)
            offload->stays[i] = offload->resident[i];
        freed += block->bytes;
        block_drop(offload, block);
        offload->stats.evictions++;
    }
    return freed;
}

bool offload_evict(void *owner, uint64_t needed)
{
    struct offload *offload = owner;
    uint64_t freed = 0;

    for (size_t l = 0; l < offload->list_count && freed < needed; l++)
        freed += list_evict(offload, offload->lists[l], false, needed - freed);
    if (offload->pass != NULL && freed < needed && !offload->spare_planned)
        freed += list_evict(offload, offload->pass, true, needed - freed);
    return freed > 0;
}

static int allocate(struct offload *offload, uint64_t bytes, bool spare_planned, uintptr_t *address)
{
    struct arena_request request = {bytes, COMPUTE_STREAM, offload->component};
    int result;

    offload->spare_planned = spare_planned;
    result = arena_alloc(offload->arena, &request, address, NULL);
    offload->spare_planned = false;
    return result;
}

static int out_of_memory(const struct offload *offload, int code, uint64_t bytes, struct error *err)
{
    struct arena_stats stats;

    arena_stats(offload->arena, &stats);
    return error_set(
        err, -code,
        "no room for %s of weights: %s of %s are in use; raise vram_budget or make the image "
        "smaller",
        size_shown(bytes).text, size_shown(stats.allocated).text, size_shown(stats.budget).text);
}

/* A list as the planner sees it; to be freed by case_finish. */
struct list_case {
    struct residency_case c;
    uint64_t *bytes, *held;
    double *compute_s;
};

static int case_create(struct list_case *of, const struct block_list *list, uint64_t page_bytes)
{
    of->bytes = calloc(list->count + 1, sizeof *of->bytes);
    of->held = calloc(list->count + 1, sizeof *of->held);
    of->compute_s = calloc(list->count + 1, sizeof *of->compute_s);
    of->c = (struct residency_case){
        .bytes = of->bytes, .held = of->held, .count = list->count, .page_bytes = page_bytes};
    if (of->bytes == NULL || of->held == NULL || of->compute_s == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < list->count; i++)
        of->bytes[i] = list->blocks[i]->bytes;
    return 0;
}

static void case_finish(struct list_case *of)
{
    free(of->bytes);
    free(of->held);
    free(of->compute_s);
}

/* How long a block of each kind took of late, and a copy; false if one never ran yet. */
static bool look_at_clock(const struct offload *offload, const struct block_list *list,
                          double *compute_s, double *copy_byte_s)
{
    const struct timeline *timeline = offload->timeline;

    if (timeline == NULL || timeline->sums.copy_s <= 0)
        return false;
    *copy_byte_s = timeline->sums.copy_s / (double)timeline->sums.copy_bytes;
    for (size_t i = 0; i < list->count; i++) {
        double seconds = timeline_compute_s(timeline, list->blocks[i]->kind);

        if (seconds <= 0)
            return false;
        compute_s[i] = seconds;
    }
    return true;
}

/* Every block that stays has pages of its own. */
static void hold_apart(struct list_case *of)
{
    uint64_t page = of->c.page_bytes;

    for (size_t i = 0; i < of->c.count; i++)
        of->held[i] = (of->bytes[i] + page - 1) / page * page;
}

/* Short blocks share pages with others of about their size, as they do in the arena; returns what
 * may be lost on the last page of each size. */
static uint64_t hold_together(struct list_case *of, const struct arena *arena)
{
    uint64_t lost = 0;

    for (size_t i = 0; i < of->c.count; i++) {
        bool first = true;

        of->held[i] = arena_footprint(arena, of->bytes[i]);
        for (size_t j = 0; j < i; j++)
            first &= of->held[j] != of->held[i];
        if (first && of->held[i] < of->c.page_bytes)
            lost += of->c.page_bytes;
    }
    return lost;
}

int offload_measure(struct block_list *list, uint64_t page_bytes)
{
    struct list_case of;
    int result = case_create(&of, list, page_bytes);

    if (result == 0) {
        hold_apart(&of);
        list->least_bytes = residency_least(&of.c);
    }
    case_finish(&of);
    return result;
}

static int plan(const struct offload *offload, struct list_case *of, size_t l, bool *resident,
                uint64_t room, struct residency *plan)
{
    const struct residency_before before = {offload->plans[l].resident,
                                            offload->plans[l].ring_bytes};
    uint64_t lost = hold_together(of, offload->arena);

    of->c.room = room > lost ? room - lost : 0;
    if (residency_replan(&of->c, &before, resident, plan) == 0)
        return 0;
    hold_apart(of);
    of->c.room = room;
    return residency_replan(&of->c, &before, resident, plan);
}

static size_t list_number(const struct offload *offload, const struct block_list *list)
{
    size_t l = 0;

    while (offload->lists[l] != list)
        l++;
    return l;
}

static int remember(struct offload *offload, size_t l, uint64_t ring_bytes)
{
    size_t count = offload->lists[l]->count;
    bool *resident = realloc(offload->plans[l].resident, count + 1);

    if (resident == NULL)
        return -ENOMEM;
    memcpy(resident, offload->resident, count);
    offload->plans[l].resident = resident;
    offload->plans[l].ring_bytes = ring_bytes;
    return 0;
}

static int grow(struct offload *offload, size_t count)
{
    bool *grown;
    uint64_t *bytes;

    if (count <= offload->capacity)
        return 0;
    grown = realloc(offload->resident, 3 * count * sizeof *grown);
    offload->resident = grown != NULL ? grown : offload->resident;
    bytes = realloc(offload->bytes, count * sizeof *bytes);
    offload->bytes = bytes != NULL ? bytes : offload->bytes;
    if (grown == NULL || bytes == NULL)
        return -ENOMEM;
    offload->stays = grown + count;
    offload->other = grown + 2 * count;
    offload->capacity = count;
    return 0;
}

/* What is measured, if it is, with so many times the computing; whether it is. */
static bool case_measure(const struct offload *offload, struct list_case *of,
                         const struct block_list *list, double times)
{
    bool measured = look_at_clock(offload, list, of->compute_s, &of->c.copy_byte_s);

    for (size_t i = 0; measured && i < list->count; i++)
        of->compute_s[i] *= times;
    of->c.compute_s = measured ? of->compute_s : NULL;
    of->c.in_turn = offload->backend->host;
    return measured;
}

static int plan_list(struct offload *offload, const struct block_list *list, uint64_t room,
                     double times, struct residency *residency, struct error *err)
{
    size_t l = list_number(offload, list);
    struct list_case of;
    int result = case_create(&of, list, offload->backend->pages->granule_bytes);

    if (result == 0)
        result = grow(offload, list->count);
    if (result == 0)
        offload->guessed = !case_measure(offload, &of, list, times);
    if (result != 0)
        error_set(err, ENOMEM, "out of host memory");
    else if (plan(offload, &of, l, offload->resident, room, residency) != 0)
        result = error_set(err, ENOMEM,
                           "weights need %s at least and %s are left for them; raise "
                           "vram_budget or make the image smaller",
                           size_needed(list->least_bytes).text, size_shown(room).text);
    else if (remember(offload, l, residency->ring_bytes) != 0)
        result = error_set(err, ENOMEM, "out of host memory");
    offload->room = room;
    case_finish(&of);
    return result;
}

bool offload_outdated(struct offload *offload)
{
    const struct block_list *list = offload->pass;
    struct residency residency;
    struct list_case of;
    bool outdated = false;

    if (list == NULL || !offload->guessed)
        return false;
    if (case_create(&of, list, offload->backend->pages->granule_bytes) == 0 &&
        case_measure(offload, &of, list, 1)) {
        offload->guessed = false;
        outdated = plan(offload, &of, list_number(offload, list), offload->other, offload->room,
                        &residency) == 0 &&
                   memcmp(offload->other, offload->resident, list->count) != 0;
    }
    case_finish(&of);
    return outdated;
}

int offload_begin(struct offload *offload, struct block_list *list, uint64_t room, double times,
                  struct error *err)
{
    struct residency residency;
    int result;

    offload_end(offload);
    result = plan_list(offload, list, room, times, &residency, err);
    if (result != 0)
        return result;
    offload->pass = list;
    offload->turn = 0;
    offload->component = offload->components[list_number(offload, list)];
    for (size_t i = 0; i < list->count; i++) {
        offload->stays[i] = offload->resident[i] || list->blocks[i]->memory != NULL;
        offload->bytes[i] = list->blocks[i]->bytes;
    }
    offload->ring = ring_empty(list->count, offload->stays, offload->bytes, residency.ring_bytes);
    offload->stats.resident = residency.resident;
    offload->stats.streamed = residency.streamed;
    offload->stats.streamed_bytes = residency.streamed_bytes;
    if (residency.streamed <= RING_SLOTS && residency.streamed_bytes <= residency.ring_bytes)
        offload->stats.streamed_bytes = 0; /* the ring holds them */
    if (residency.ring_bytes == 0)
        return 0;
    result = allocate(offload, residency.ring_bytes, false, &offload->ring_address);
    if (result != 0) {
        offload->pass = NULL;
        return out_of_memory(offload, result, residency.ring_bytes, err);
    }
    offload->ring_bytes = residency.ring_bytes;
    return 0;
}

double offload_period(const struct offload *offload, const struct block_list *list, uint64_t room,
                      double times)
{
    const bool *resident = offload->plans[list_number(offload, list)].resident;
    uint64_t longest = 0, ring, taken;
    struct list_case of;
    double period = 0;

    if (case_create(&of, list, offload->backend->pages->granule_bytes) == 0 && resident != NULL &&
        case_measure(offload, &of, list, times)) {
        taken = hold_together(&of, offload->arena);
        for (size_t i = 0; i < list->count; i++) {
            longest = of.bytes[i] > longest ? of.bytes[i] : longest;
            taken += of.held[i] < of.c.page_bytes ? of.held[i] : 0; /* these stay in any case */
        }
        room = room > taken ? room - taken : 0;
        room -= room % of.c.page_bytes;
        ring = 3 * longest < room ? 3 * longest : room;
        period = ring < longest ? INFINITY : residency_period(&of.c, resident, ring);
    }
    case_finish(&of);
    return period;
}

void offload_end(struct offload *offload)
{
    ring_drop(offload);
    offload->pass = NULL;
    offload->in_use = NULL;
}

/* What is at the address may still be in use by work queued before, in the ring and, since the
 * arena hands out what was freed on the compute stream at once, elsewhere too. */
static void block_load(struct offload *offload, size_t j, uintptr_t address)
{
    const struct block_list *pass = offload->pass;
    struct block *block = pass->blocks[j];

    block_bind(block, (void *)address);
    offload->backend->ops->copy_reuse(offload->backend);
    timeline_copy_begin(offload->timeline, (j + pass->count - offload->turn) % pass->count,
                        block->bytes);
    block_fill(block, offload->backend);
    block->copied = timeline_copy_end(offload->timeline); /* before the ticket, which covers it */
    block->ticket = offload->backend->ops->copy_ticket(offload->backend);
}

static void load_at(struct offload *offload, uint64_t offset, size_t j)
{
    struct ring before = offload->ring;

    ring_put(&offload->ring, offset, j);
    for (int s = 0; s < RING_SLOTS; s++)
        if (before.slots[s].block != RING_EMPTY &&
            ring_slot(&offload->ring, before.slots[s].block) < 0)
            block_bind(offload->pass->blocks[before.slots[s].block], NULL);
    block_load(offload, j, offload->ring_address + offset);
    offload->ring_ticket = offload->pass->blocks[j]->ticket;
}

/* Loads a block that is to stay. -ENOMEM: there is no room where it could. */
static int load_resident(struct offload *offload, size_t j)
{
    struct block *block = offload->pass->blocks[j];
    bool must = offload->ring_bytes < block->bytes; /* it can't pass through the ring */
    uintptr_t address;
    int result = allocate(offload, block->bytes, true, &address);

    if (result != 0 && must)
        result = allocate(offload, block->bytes, false, &address);
    if (result == 0)
        block_load(offload, j, address);
    return result;
}

/* Loads block j, which is not there and is needed before any other; unless it has to wait for the
 * ring until the block in use is done. */
static int load(struct offload *offload, size_t j, struct error *err)
{
    struct block *block = offload->pass->blocks[j];
    uint64_t offset;

    if (offload->resident[j]) {
        int result = load_resident(offload, j);

        if (result == 0)
            return 0;
        if (offload->ring_bytes < block->bytes)
            return out_of_memory(offload, result, block->bytes, err);
        offload->resident[j] = offload->stays[j] = false;
    }
    if (ring_find(&offload->ring, offload->turn, j, 0, &offset))
        load_at(offload, offset, j);
    return 0;
}

int offload_acquire(struct offload *offload, size_t i, bool wrap, struct error *err)
{
    const struct block_list *pass = offload->pass;
    size_t next = i + 1 < pass->count ? i + 1 : wrap ? 0 : i;
    struct error early;
    uint64_t offset;

    offload->in_use = pass->blocks[i];
    offload->turn = i;
    offload->ring.wrap = wrap;
    if (pass->blocks[i]->memory == NULL && load(offload, i, err) != 0)
        return err->code;
    /* Early: where a block in use that another plan left there takes its room, in its turn. */
    if (pass->blocks[next]->memory == NULL && offload->resident[next] &&
        load(offload, next, &early) != 0 && early.code != -ENOMEM)
        return error_set(err, -early.code, "%s", early.text);
    while (ring_next(&offload->ring, i, &next, &offset))
        load_at(offload, offset, next);
    offload->backend->ops->copy_wait(offload->backend, pass->blocks[i]->ticket);
    timeline_wait(offload->timeline, pass->blocks[i]->copied);
    return 0;
}
