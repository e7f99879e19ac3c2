/* SPDX-License-Identifier: MIT */
#include "alloc/arena_internal.h"

#include <assert.h>

struct place {
    unsigned row, column;
};

/* Lengths below INDEX_COLUMNS have a column each; above, every power of two is divided evenly. */
static struct place place_of(uint32_t count)
{
    unsigned log2 = 31 - (unsigned)__builtin_clz(count);

    if (count < INDEX_COLUMNS)
        return (struct place){0, count};
    return (struct place){log2 - 4, (count >> (log2 - 5)) & (INDEX_COLUMNS - 1)};
}

struct run *run_next(struct arena *arena, const struct run *run)
{
    uint32_t end = run_end(run);

    return end < arena->page_count ? &arena->runs[end] : NULL;
}

static struct run *run_previous(struct arena *arena, const struct run *run)
{
    return run->first > 0 ? &arena->runs[arena->runs[run->first - 1].first] : NULL;
}

struct run *run_set(struct arena *arena, uint32_t first, uint32_t count, enum run_state state)
{
    struct run *run = &arena->runs[first];

    arena->runs[first + count - 1].first = first;
    run->first = first;
    run->count = count;
    run->state = (uint8_t)state;
    run->owner = OWNER_ANY;
    return run;
}

static void index_add(struct arena *arena, struct run *run)
{
    struct run_index *index = &arena->index[run->owner];
    struct place place = place_of(run->count);
    uint32_t *head = &index->heads[place.row][place.column];

    run->previous = NO_PAGE;
    run->next = NO_PAGE;
    if (index->columns[place.row] & UINT32_C(1) << place.column) {
        run->next = *head;
        arena->runs[*head].previous = run->first;
    }
    *head = run->first;
    index->columns[place.row] |= UINT32_C(1) << place.column;
    index->rows |= UINT32_C(1) << place.row;
}

static void index_remove(struct arena *arena, struct run *run)
{
    struct run_index *index = &arena->index[run->owner];
    struct place place = place_of(run->count);

    if (run->next != NO_PAGE)
        arena->runs[run->next].previous = run->previous;
    if (run->previous != NO_PAGE) {
        arena->runs[run->previous].next = run->next;
        return;
    }
    index->heads[place.row][place.column] = run->next;
    if (run->next == NO_PAGE) {
        index->columns[place.row] &= ~(UINT32_C(1) << place.column);
        if (index->columns[place.row] == 0)
            index->rows &= ~(UINT32_C(1) << place.row);
    }
}

/* The head of the first list at `place` or behind it. */
static struct run *index_seek(struct arena *arena, uint8_t owner, struct place place)
{
    const struct run_index *index = &arena->index[owner];
    uint32_t columns, rows;

    if (place.column >= INDEX_COLUMNS) {
        place.row++;
        place.column = 0;
    }
    if (place.row >= INDEX_ROWS)
        return NULL;
    columns = index->columns[place.row] & UINT32_MAX << place.column;
    if (columns == 0) {
        rows = index->rows & (uint32_t)(UINT64_C(0xffffffff) << (place.row + 1));
        if (rows == 0)
            return NULL;
        place.row = (unsigned)__builtin_ctz(rows);
        columns = index->columns[place.row];
    }
    return &arena->runs[index->heads[place.row][__builtin_ctz(columns)]];
}

struct run *index_first(struct arena *arena, uint8_t owner)
{
    return index_seek(arena, owner, place_of(1));
}

struct run *index_next(struct arena *arena, const struct run *run)
{
    struct place place = place_of(run->count);

    if (run->next != NO_PAGE)
        return &arena->runs[run->next];
    place.column++;
    return index_seek(arena, run->owner, place);
}

/* With one stream everything queued is in order, so its pending frees and memory open to everybody
 * are the same to it. With several, joining them would hold open memory back from the others. */
static bool can_join(const struct arena *arena, const struct run *run, uint8_t owner)
{
    if (!run || run->state != RUN_FREE)
        return false;
    return run->owner == owner || single_stream(arena);
}

struct run *run_insert_free(struct arena *arena, uint32_t first, uint32_t count, uint8_t owner,
                            uint64_t sequence)
{
    struct run *run = run_set(arena, first, count, RUN_FREE);
    struct run *sides[2] = {run_previous(arena, run), run_next(arena, run)};

    if (owner == OWNER_ANY)
        sequence = 0;
    for (int i = 0; i < 2; i++) {
        struct run *side = sides[i];

        if (!can_join(arena, side, owner))
            continue;
        index_remove(arena, side);
        if (side->owner != OWNER_ANY) {
            owner = side->owner;
            sequence = side->sequence > sequence ? side->sequence : sequence;
        }
        count += side->count;
        if (side->first < first) {
            run->state = RUN_INSIDE;
            first = side->first;
            run = side;
        } else {
            side->state = RUN_INSIDE;
        }
    }
    run = run_set(arena, first, count, RUN_FREE);
    run->owner = owner;
    run->sequence = sequence;
    index_add(arena, run);
    return run;
}

struct run *run_insert_hole(struct arena *arena, uint32_t first, uint32_t count)
{
    struct run *run = run_set(arena, first, count, RUN_HOLE);
    struct run *side = run_next(arena, run);

    if (side && side->state == RUN_HOLE) {
        count += side->count;
        side->state = RUN_INSIDE;
    }
    side = run_previous(arena, run);
    if (side && side->state == RUN_HOLE) {
        count += side->count;
        run->state = RUN_INSIDE;
        first = side->first;
    }
    return run_set(arena, first, count, RUN_HOLE);
}

/* Puts a piece of a run that was cut back, as a run of its own. */
static void keep_piece(struct arena *arena, const struct run *whole, uint32_t first, uint32_t end)
{
    struct run *piece;

    if (first >= end)
        return;
    piece = run_set(arena, first, end - first, whole->state);
    if (whole->state == RUN_FREE) {
        piece->owner = whole->owner;
        piece->sequence = whole->sequence;
        index_add(arena, piece);
    }
}

void run_cut(struct arena *arena, uint32_t first, uint32_t count)
{
    uint32_t end = first + count, at = first;

    while (arena->runs[at].state == RUN_INSIDE)
        at--;
    while (at < end) {
        struct run whole = arena->runs[at];

        assert(whole.state == RUN_FREE || whole.state == RUN_HOLE);
        if (whole.state == RUN_FREE)
            index_remove(arena, &arena->runs[at]);
        arena->runs[at].state = RUN_INSIDE;
        keep_piece(arena, &whole, whole.first, first);
        keep_piece(arena, &whole, end, run_end(&whole));
        at = run_end(&whole);
    }
}

/* The shortest that fits among the first few entries of the list `run` heads. */
static struct run *shortest_in_list(struct arena *arena, struct run *run, uint32_t count)
{
    struct run *best = NULL;

    for (int i = 0; run && i < SEARCH_LIMIT; i++) {
        if (run->count >= count && (!best || run->count < best->count))
            best = run;
        run = run->next != NO_PAGE ? &arena->runs[run->next] : NULL;
    }
    return best;
}

static struct run *index_find(struct arena *arena, uint8_t owner, uint32_t count)
{
    struct place place = place_of(count);
    const struct run_index *index = &arena->index[owner];
    struct run *best = NULL;

    if (index->rows == 0)
        return NULL;
    if (index->columns[place.row] & UINT32_C(1) << place.column)
        best = shortest_in_list(arena, &arena->runs[index->heads[place.row][place.column]], count);
    if (best)
        return best;
    place.column++; /* from here on every run is long enough */
    return shortest_in_list(arena, index_seek(arena, owner, place), count);
}

uint32_t run_take_fit(struct arena *arena, uint32_t count, int stream)
{
    struct run *own = index_find(arena, (uint8_t)(1 + stream), count);
    struct run *open = index_find(arena, OWNER_ANY, count);
    struct run *best = own && (!open || own->count <= open->count) ? own : open;
    uint32_t first;

    if (!best)
        return NO_PAGE;
    first = best->first;
    run_cut(arena, first, count);
    return first;
}
