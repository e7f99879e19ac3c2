/* SPDX-License-Identifier: MIT */
/*
 * A model of PyTorch's caching allocator with its default settings and with expandable segments, by
 * the rules of c10/cuda/CUDACachingAllocator.cpp (PyTorch 2.x), written anew:
 *
 * Requests are rounded up to 512 bytes. Those up to 1 MiB and those above have pools of their own,
 * for each stream. A request takes the shortest free piece that is long enough, the lowest address
 * among equals, and leaves the rest of it free if that is 512 bytes or more, in the pools of long
 * pieces more than 1 MiB. Freed pieces join their free neighbours.
 *
 * By default a miss takes a segment from the driver: 2 MiB for the pools of short pieces, 20 MiB
 * for requests below 10 MiB, else the request rounded up to 2 MiB. When the driver has no more,
 * every segment that is wholly free is given back, and the miss tries once more.
 *
 * With expandable segments a pool has a stretch of address space into which pages of 2 MiB (short
 * pieces) or 20 MiB are mapped: a miss maps what is lacking behind the lowest free end. When the
 * driver has no more, all pages wholly within free pieces are unmapped. The rest of a piece stays
 * free from 512 bytes on, and among the free pieces that are long enough the search goes on as long
 * as the next could grow to less.
 */
#include "policy.h"

#include <stdlib.h>
#include <string.h>

enum { ROUNDING = 512, STREAMS = 8 };
#define MIB (UINT64_C(1) << 20)
#define SHORT_LIMIT MIB
#define SHORT_SEGMENT (2 * MIB)
#define MIDDLE_LIMIT (10 * MIB)
#define MIDDLE_SEGMENT (20 * MIB)
#define LONG_ROUNDING (2 * MIB)
#define RESERVATION (UINT64_C(1) << 46) /* longer than anything asked for */

struct piece {
    struct piece *before, *after; /* neighbours in the same segment */
    uint64_t address, bytes;
    bool used, mapped;
    struct pool *pool;
};

/* Pieces in order: by length and then address, or by address alone. */
struct list {
    struct piece **pieces;
    size_t count, capacity;
    bool by_address;
};

struct pool {
    struct list vacant;   /* mapped and free */
    struct list unmapped; /* address space to grow into */
    bool is_short;
};

struct pytorch {
    uint64_t budget, reserved, peak, free_bytes, driver_calls, next_address;
    bool expandable;
    struct piece **blocks; /* by block */
    uint64_t block_count;
    struct pool pools[STREAMS][2];
};

static void *allocate(size_t count, size_t bytes)
{
    void *memory = calloc(count + 1, bytes);

    if (!memory)
        abort();
    return memory;
}

/* ---- Lists ---- */

static bool list_precedes(const struct list *list, const struct piece *a, const struct piece *b)
{
    if (!list->by_address && a->bytes != b->bytes)
        return a->bytes < b->bytes;
    return a->address < b->address;
}

/* The first place whose piece does not precede `key`. */
static size_t list_find(const struct list *list, const struct piece *key)
{
    size_t low = 0, high = list->count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (list_precedes(list, list->pieces[middle], key))
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void list_add(struct list *list, struct piece *piece)
{
    size_t at = list_find(list, piece);

    if (list->count == list->capacity) {
        list->capacity = 2 * list->capacity + 64;
        list->pieces = realloc(list->pieces, list->capacity * sizeof(struct piece *));
        if (!list->pieces)
            abort();
    }
    memmove(&list->pieces[at + 1], &list->pieces[at], (list->count - at) * sizeof(struct piece *));
    list->pieces[at] = piece;
    list->count++;
}

static void list_remove(struct list *list, const struct piece *piece)
{
    size_t at = list_find(list, piece);

    list->count--;
    memmove(&list->pieces[at], &list->pieces[at + 1], (list->count - at) * sizeof(struct piece *));
}

/* ---- Pieces ---- */

static struct list *list_of(struct piece *piece)
{
    return piece->mapped ? &piece->pool->vacant : &piece->pool->unmapped;
}

static void enlist(struct pytorch *state, struct piece *piece)
{
    piece->used = false;
    list_add(list_of(piece), piece);
    if (piece->mapped)
        state->free_bytes += piece->bytes;
}

static void delist(struct pytorch *state, struct piece *piece)
{
    list_remove(list_of(piece), piece);
    if (piece->mapped)
        state->free_bytes -= piece->bytes;
}

/* Cuts a piece that is in no list; the new one behind it is in none either. */
static struct piece *cut(struct piece *piece, uint64_t bytes)
{
    struct piece *rest = allocate(1, sizeof *rest);

    *rest = *piece;
    rest->before = piece;
    rest->address += bytes;
    rest->bytes -= bytes;
    if (rest->after)
        rest->after->before = rest;
    piece->after = rest;
    piece->bytes = bytes;
    return rest;
}

/* Takes a free neighbour of the same kind into a piece that is in no list. */
static void absorb(struct pytorch *state, struct piece *piece, struct piece *side)
{
    if (!side || side->used || side->mapped != piece->mapped)
        return;
    delist(state, side);
    piece->bytes += side->bytes;
    if (side == piece->before) {
        piece->address = side->address;
        piece->before = side->before;
        if (piece->before)
            piece->before->after = piece;
    } else {
        piece->after = side->after;
        if (piece->after)
            piece->after->before = piece;
    }
    free(side);
}

static void absorb_sides(struct pytorch *state, struct piece *piece)
{
    absorb(state, piece, piece->before);
    absorb(state, piece, piece->after);
}

static struct piece *add_piece(struct pytorch *state, struct pool *pool, uint64_t bytes,
                               bool mapped)
{
    struct piece *piece = allocate(1, sizeof *piece);

    piece->address = state->next_address;
    piece->bytes = bytes;
    piece->pool = pool;
    piece->mapped = mapped;
    state->next_address += bytes;
    enlist(state, piece);
    return piece;
}

static bool take_from_driver(struct pytorch *state, uint64_t bytes, uint64_t calls)
{
    if (bytes > state->budget || state->reserved > state->budget - bytes)
        return false;
    state->reserved += bytes;
    state->driver_calls += calls;
    if (state->reserved > state->peak)
        state->peak = state->reserved;
    return true;
}

/* ---- Expandable segments ---- */

static uint64_t granule_of(const struct pool *pool)
{
    return pool->is_short ? SHORT_SEGMENT : MIDDLE_SEGMENT;
}

static bool can_hold(const struct piece *piece, uint64_t bytes)
{
    uint64_t room = 0;

    for (; piece && !piece->used && room < bytes; piece = piece->after)
        room += piece->bytes;
    return room >= bytes;
}

/* Where free and unmapped pieces in a row are long enough, the lowest address first. */
static struct piece *find_room(struct pytorch *state, struct pool *pool, uint64_t bytes)
{
    for (size_t i = 0; i < pool->unmapped.count; i++) {
        struct piece *piece = pool->unmapped.pieces[i];

        if (piece->before && !piece->before->used)
            piece = piece->before;
        if (can_hold(piece, bytes))
            return piece;
    }
    return add_piece(state, pool, RESERVATION, false);
}

/* Maps pages for `bytes` at the start of an unmapped piece and joins it with its neighbours. */
static bool map_piece(struct pytorch *state, struct piece *piece, uint64_t bytes)
{
    uint64_t granule = granule_of(piece->pool), mapped = (bytes + granule - 1) / granule * granule;

    /* create, map, set access */
    if (!take_from_driver(state, mapped, 2 * (mapped / granule) + 1))
        return false;
    delist(state, piece);
    if (mapped < piece->bytes)
        enlist(state, cut(piece, mapped));
    piece->mapped = true;
    absorb_sides(state, piece);
    enlist(state, piece);
    return true;
}

static struct piece *expand(struct pytorch *state, struct pool *pool, uint64_t bytes)
{
    struct piece *piece = find_room(state, pool, bytes);

    if (!piece->mapped && !map_piece(state, piece, bytes < piece->bytes ? bytes : piece->bytes))
        return NULL;
    while (piece->bytes < bytes) {
        struct piece *next = piece->after;
        uint64_t lacking = bytes - piece->bytes;

        if (!map_piece(state, next, lacking < next->bytes ? lacking : next->bytes))
            return NULL;
        piece = next;
    }
    return piece;
}

/* Unmaps the pages that lie wholly within a free piece. */
static void unmap_piece(struct pytorch *state, struct piece *piece)
{
    uint64_t granule = granule_of(piece->pool);
    uint64_t first = (piece->address + granule - 1) / granule * granule;
    uint64_t end = (piece->address + piece->bytes) / granule * granule;

    if (end <= first)
        return;
    delist(state, piece);
    if (piece->address + piece->bytes > end)
        enlist(state, cut(piece, end - piece->address));
    if (piece->address < first) {
        struct piece *rest = cut(piece, first - piece->address);
        enlist(state, piece);
        piece = rest;
    }
    state->reserved -= piece->bytes;
    state->driver_calls += 2 * (piece->bytes / granule);
    piece->mapped = false;
    absorb_sides(state, piece);
    enlist(state, piece);
}

static uint64_t expandable_bytes(const struct piece *piece)
{
    return piece->bytes + (piece->after && !piece->after->mapped ? piece->after->bytes : 0);
}

/* ---- Taking and giving ---- */

static uint64_t segment_bytes(uint64_t bytes)
{
    if (bytes <= SHORT_LIMIT)
        return SHORT_SEGMENT;
    if (bytes < MIDDLE_LIMIT)
        return MIDDLE_SEGMENT;
    return (bytes + LONG_ROUNDING - 1) / LONG_ROUNDING * LONG_ROUNDING;
}

static struct piece *add_segment(struct pytorch *state, struct pool *pool, uint64_t bytes)
{
    uint64_t segment = segment_bytes(bytes);

    if (!take_from_driver(state, segment, 1))
        return NULL;
    return add_piece(state, pool, segment, true);
}

static struct piece *find_vacant(const struct pytorch *state, const struct pool *pool,
                                 uint64_t bytes)
{
    const struct list *list = &pool->vacant;
    struct piece key = {.bytes = bytes};
    size_t at = list_find(list, &key);

    if (at == list->count)
        return NULL;
    while (state->expandable && at + 1 < list->count &&
           expandable_bytes(list->pieces[at + 1]) < expandable_bytes(list->pieces[at]))
        at++;
    return list->pieces[at];
}

static void release_vacant(struct pytorch *state, struct pool *pool)
{
    struct list *list = &pool->vacant;
    size_t count = list->count;
    struct piece **pieces = allocate(count, sizeof(struct piece *));

    if (count > 0)
        memcpy(pieces, list->pieces, count * sizeof(struct piece *));
    for (size_t i = 0; i < count; i++) {
        if (state->expandable) {
            unmap_piece(state, pieces[i]);
        } else if (!pieces[i]->before && !pieces[i]->after) {
            delist(state, pieces[i]);
            state->reserved -= pieces[i]->bytes;
            state->driver_calls++;
            free(pieces[i]);
        }
    }
    free(pieces);
}

static struct piece *miss(struct pytorch *state, struct pool *pool, uint64_t bytes)
{
    return state->expandable ? expand(state, pool, bytes) : add_segment(state, pool, bytes);
}

static bool pytorch_alloc(void *pointer, uint64_t block, uint64_t bytes, int stream)
{
    struct pytorch *state = pointer;
    struct pool *pool;
    struct piece *piece;
    uint64_t least;

    bytes = (bytes + ROUNDING - 1) / ROUNDING * ROUNDING;
    pool = &state->pools[stream % STREAMS][bytes > SHORT_LIMIT];
    piece = find_vacant(state, pool, bytes);
    if (!piece)
        piece = miss(state, pool, bytes);
    if (!piece) {
        for (int i = 0; i < 2 * STREAMS; i++)
            release_vacant(state, &state->pools[i / 2][i % 2]);
        piece = miss(state, pool, bytes);
    }
    if (!piece)
        return false;
    delist(state, piece);
    piece->used = true;
    least = pool->is_short || state->expandable ? ROUNDING : SHORT_LIMIT + 1;
    if (piece->bytes - bytes >= least)
        enlist(state, cut(piece, bytes));
    state->blocks[block] = piece;
    return true;
}

static void pytorch_free(void *pointer, uint64_t block)
{
    struct pytorch *state = pointer;
    struct piece *piece = state->blocks[block];

    state->blocks[block] = NULL;
    absorb_sides(state, piece);
    enlist(state, piece);
}

static void pytorch_describe(void *pointer, struct policy_state *description)
{
    const struct pytorch *state = pointer;
    uint64_t largest = 0;

    for (int i = 0; i < 2 * STREAMS; i++) {
        const struct list *list = &state->pools[i / 2][i % 2].vacant;
        if (list->count > 0 && list->pieces[list->count - 1]->bytes > largest)
            largest = list->pieces[list->count - 1]->bytes;
    }
    *description = (struct policy_state){state->reserved, state->peak, state->free_bytes, largest,
                                         state->driver_calls};
}

/* ---- Beginning and end ---- */

static struct pytorch *create(const struct policy_options *options, bool expandable)
{
    struct pytorch *state = allocate(1, sizeof *state);

    state->budget = options->budget_bytes;
    state->block_count = options->block_count;
    state->expandable = expandable;
    state->blocks = allocate(options->block_count, sizeof(struct piece *));
    for (int i = 0; i < STREAMS; i++) {
        state->pools[i][0].is_short = true;
        state->pools[i][0].unmapped.by_address = state->pools[i][1].unmapped.by_address = true;
    }
    return state;
}

static void *default_create(const struct policy_options *options)
{
    return create(options, false);
}

static void *expandable_create(const struct policy_options *options)
{
    return create(options, true);
}

static void list_finish(struct list *list)
{
    for (size_t i = 0; i < list->count; i++)
        free(list->pieces[i]);
    free(list->pieces);
}

static void pytorch_destroy(void *pointer)
{
    struct pytorch *state = pointer;

    for (uint64_t i = 0; i < state->block_count; i++) {
        if (state->blocks[i])
            pytorch_free(state, i);
    }
    for (int i = 0; i < 2 * STREAMS; i++) {
        list_finish(&state->pools[i / 2][i % 2].vacant);
        list_finish(&state->pools[i / 2][i % 2].unmapped);
    }
    free(state->blocks);
    free(state);
}

const struct policy policy_pytorch = {
    "PyTorch's default (model)",
    default_create,
    pytorch_alloc,
    pytorch_free,
    pytorch_describe,
    pytorch_destroy,
};

const struct policy policy_pytorch_expandable = {
    "PyTorch's expandable (model)",
    expandable_create,
    pytorch_alloc,
    pytorch_free,
    pytorch_describe,
    pytorch_destroy,
};
