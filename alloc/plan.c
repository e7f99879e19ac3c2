/* SPDX-License-Identifier: MIT */
#include "alloc/plan.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* How often the buffer at the very top is given precedence and everything is placed again, while
 * the plan is longer than the lower bound. */
enum { REPAIRS = 64 };

struct solver {
    const struct plan_buffer *buffers;
    size_t count;
    uint64_t *sizes;   /* aligned */
    size_t *order;     /* in which buffers are placed */
    size_t *placed;    /* those placed so far, by offset */
    uint64_t *offsets; /* of the attempt under way */
    uint64_t *best;    /* offsets of the shortest plan found */
    uint64_t best_total;
};

struct change {
    uint64_t step;
    uint64_t bytes;
    bool ends;
};

static int check_input(const struct plan_buffer *buffers, size_t count, uint64_t alignment)
{
    uint64_t sum = 0;

    if (alignment == 0 || (alignment & (alignment - 1)) != 0 || alignment > UINT64_C(1) << 62)
        return -EINVAL;
    for (size_t i = 0; i < count; i++) {
        if (buffers[i].first_use > buffers[i].last_use)
            return -EINVAL;
        if (__builtin_add_overflow(sum, buffers[i].bytes, &sum) ||
            __builtin_add_overflow(sum, alignment, &sum) || sum > UINT64_C(1) << 63)
            return -EOVERFLOW;
    }
    return 0;
}

static int compare_changes(const void *left, const void *right)
{
    const struct change *a = left, *b = right;

    if (a->step != b->step)
        return a->step < b->step ? -1 : 1;
    return (int)b->ends - (int)a->ends; /* what ends at a step makes room for what starts there */
}

static int find_lower_bound(const struct solver *solver, uint64_t *bound_bytes)
{
    struct change *changes = calloc(2 * solver->count + 1, sizeof *changes);
    uint64_t alive = 0, most = 0;

    if (!changes)
        return -ENOMEM;
    for (size_t i = 0; i < solver->count; i++) {
        const struct plan_buffer *buffer = &solver->buffers[i];
        changes[2 * i] = (struct change){buffer->first_use, solver->sizes[i], false};
        changes[2 * i + 1] =
            (struct change){(uint64_t)buffer->last_use + 1, solver->sizes[i], true};
    }
    qsort(changes, 2 * solver->count, sizeof *changes, compare_changes);
    for (size_t i = 0; i < 2 * solver->count; i++) {
        alive = changes[i].ends ? alive - changes[i].bytes : alive + changes[i].bytes;
        if (alive > most)
            most = alive;
    }
    free(changes);
    *bound_bytes = most;
    return 0;
}

static bool alive_together(const struct plan_buffer *a, const struct plan_buffer *b)
{
    return a->first_use <= b->last_use && b->first_use <= a->last_use;
}

/* The tightest gap between the placed buffers that live at the same time, or above them all. */
static uint64_t find_offset(const struct solver *solver, size_t placed_count, size_t index)
{
    uint64_t size = solver->sizes[index], cursor = 0;
    uint64_t best_offset = 0, best_gap = UINT64_MAX;

    for (size_t i = 0; i < placed_count; i++) {
        size_t other = solver->placed[i];
        uint64_t start = solver->offsets[other], end = start + solver->sizes[other];

        if (!alive_together(&solver->buffers[index], &solver->buffers[other]))
            continue;
        if (start >= cursor && start - cursor >= size && start - cursor < best_gap) {
            best_gap = start - cursor;
            best_offset = cursor;
        }
        if (end > cursor)
            cursor = end;
    }
    return best_gap == UINT64_MAX ? cursor : best_offset;
}

/* Places all buffers in the present order; returns the buffer that reaches highest. */
static size_t place_all(struct solver *solver)
{
    size_t placed_count = 0, top = 0;
    uint64_t total = 0;

    for (size_t i = 0; i < solver->count; i++) {
        size_t index = solver->order[i], at = placed_count;
        uint64_t offset = find_offset(solver, placed_count, index);

        solver->offsets[index] = offset;
        if (solver->sizes[index] == 0)
            continue;
        while (at > 0 && solver->offsets[solver->placed[at - 1]] > offset)
            at--;
        memmove(&solver->placed[at + 1], &solver->placed[at],
                (placed_count - at) * sizeof *solver->placed);
        solver->placed[at] = index;
        placed_count++;
        if (offset + solver->sizes[index] > total) {
            total = offset + solver->sizes[index];
            top = index;
        }
    }
    if (total < solver->best_total) {
        solver->best_total = total;
        memcpy(solver->best, solver->offsets, solver->count * sizeof *solver->best);
    }
    return top;
}

static int prefer(uint64_t a, uint64_t b)
{
    return a > b ? -1 : a < b;
}

static uint64_t lifetime(const struct plan_buffer *buffer)
{
    return (uint64_t)buffer->last_use - buffer->first_use + 1;
}

static int larger_first(const void *left, const void *right, void *owner)
{
    const struct solver *solver = owner;
    size_t a = *(const size_t *)left, b = *(const size_t *)right;
    int order = prefer(solver->sizes[a], solver->sizes[b]);

    if (order == 0)
        order = prefer(lifetime(&solver->buffers[a]), lifetime(&solver->buffers[b]));
    return order != 0 ? order : prefer(b, a);
}

static int longer_first(const void *left, const void *right, void *owner)
{
    const struct solver *solver = owner;
    size_t a = *(const size_t *)left, b = *(const size_t *)right;
    int order = prefer(lifetime(&solver->buffers[a]), lifetime(&solver->buffers[b]));

    return order != 0 ? order : larger_first(left, right, owner);
}

static int earlier_first(const void *left, const void *right, void *owner)
{
    const struct solver *solver = owner;
    size_t a = *(const size_t *)left, b = *(const size_t *)right;
    int order = prefer(solver->buffers[b].first_use, solver->buffers[a].first_use);

    return order != 0 ? order : larger_first(left, right, owner);
}

static void move_to_front(size_t *order, size_t index)
{
    size_t at = 0;

    while (order[at] != index)
        at++;
    memmove(&order[1], &order[0], at * sizeof *order);
    order[0] = index;
}

static void search(struct solver *solver, uint64_t bound_bytes)
{
    static int (*const orders[])(const void *, const void *, void *) = {larger_first, longer_first,
                                                                        earlier_first};

    for (size_t i = 0; i < sizeof orders / sizeof *orders; i++) {
        size_t top;
        int repairs = REPAIRS;

        qsort_r(solver->order, solver->count, sizeof *solver->order, orders[i], solver);
        top = place_all(solver);
        while (solver->best_total > bound_bytes && repairs-- > 0) {
            move_to_front(solver->order, top);
            top = place_all(solver);
        }
        if (solver->best_total == bound_bytes)
            break;
    }
}

int plan_solve(const struct plan_buffer *buffers, size_t count, uint64_t alignment,
               uint64_t *offsets, struct plan_result *result)
{
    struct solver solver = {.buffers = buffers, .count = count, .best_total = UINT64_MAX};
    uint64_t bound_bytes = 0;
    int code = check_input(buffers, count, alignment);

    if (code != 0)
        return code;
    solver.sizes = calloc(count + 1, sizeof *solver.sizes);
    solver.order = calloc(count + 1, sizeof *solver.order);
    solver.placed = calloc(count + 1, sizeof *solver.placed);
    solver.offsets = calloc(count + 1, sizeof *solver.offsets);
    solver.best = calloc(count + 1, sizeof *solver.best);
    if (!solver.sizes || !solver.order || !solver.placed || !solver.offsets || !solver.best) {
        code = -ENOMEM;
        goto out;
    }
    for (size_t i = 0; i < count; i++) {
        solver.sizes[i] = (buffers[i].bytes + alignment - 1) & ~(alignment - 1);
        solver.order[i] = i;
    }
    code = find_lower_bound(&solver, &bound_bytes);
    if (code != 0)
        goto out;
    search(&solver, bound_bytes);
    if (count > 0)
        memcpy(offsets, solver.best, count * sizeof *offsets);
    *result = (struct plan_result){solver.best_total, bound_bytes};
out:
    free(solver.sizes);
    free(solver.order);
    free(solver.placed);
    free(solver.offsets);
    free(solver.best);
    return code;
}
