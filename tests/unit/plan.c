/* SPDX-License-Identifier: MIT */
/* Plans: small ones compared with the best there is, large ones with the lower bound, and a
 * validator that must find each kind of fault. */
#include "tests/test.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "alloc/plan.h"

enum { LIMIT = 600 };

static uint64_t state = 3;

static uint64_t random_below(uint64_t limit)
{
    state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (state >> 33) % limit;
}

static struct plan_result solve(const struct plan_buffer *buffers, size_t count, uint64_t alignment)
{
    static uint64_t offsets[LIMIT];
    struct plan_result result = {0};
    struct plan_fault fault = {0};

    EXPECT(plan_solve(buffers, count, alignment, offsets, &result) == 0);
    EXPECT(plan_validate(buffers, count, alignment, offsets, result.total_bytes, &fault) == 0,
           "fault %d: buffers %zu and %zu", fault.kind, fault.a, fault.b);
    EXPECT(result.total_bytes >= result.lower_bound_bytes);
    return result;
}

static void test_known(void)
{
    static const struct plan_buffer none[] = {{0, 0, 0}};
    static const struct plan_buffer apart[] = {{100, 0, 1}, {300, 2, 3}, {200, 4, 4}};
    static const struct plan_buffer together[] = {{100, 0, 9}, {300, 0, 9}, {200, 9, 9}};
    /* The short-lived ones fit below only if the long one is put on top of them. */
    static const struct plan_buffer stacked[] = {
        {256, 0, 0}, {512, 0, 2}, {256, 2, 2}, {256, 1, 1}};

    EXPECT(solve(none, 0, 256).total_bytes == 0);
    EXPECT(solve(none, 1, 256).total_bytes == 0);
    EXPECT(solve(apart, 3, 1).total_bytes == 300);
    EXPECT(solve(apart, 3, 256).total_bytes == 512);
    EXPECT(solve(together, 3, 1).total_bytes == 600);
    EXPECT(solve(together, 3, 256).total_bytes == 256 + 512 + 256);
    EXPECT(solve(stacked, 4, 256).total_bytes == 768);
}

static void test_refused(void)
{
    static const struct plan_buffer backwards[] = {{1, 0, 0}, {1, 2, 1}};
    static const struct plan_buffer huge[] = {{UINT64_C(1) << 63, 0, 0}, {1, 2, 2}};
    static const struct plan_buffer fine[] = {{1, 0, UINT32_MAX}};
    uint64_t offsets[2] = {77, 77};
    struct plan_result result = {1, 1};

    EXPECT(plan_solve(backwards, 2, 1, offsets, &result) == -EINVAL);
    EXPECT(plan_solve(huge, 2, 1, offsets, &result) == -EOVERFLOW);
    EXPECT(plan_solve(fine, 1, 0, offsets, &result) == -EINVAL);
    EXPECT(plan_solve(fine, 1, 24, offsets, &result) == -EINVAL);
    EXPECT(offsets[0] == 77 && result.total_bytes == 1, "outputs are untouched");
    EXPECT(plan_solve(fine, 1, 1, offsets, &result) == 0 && result.total_bytes == 1);
}

static void test_validator(void)
{
    static const struct plan_buffer buffers[] = {{256, 0, 2}, {256, 2, 3}, {256, 4, 4}};
    static const struct plan_buffer backwards[] = {{256, 3, 2}};
    uint64_t sound[] = {0, 256, 0}, shifted[] = {0, 255, 0}, outside[] = {0, 256, 512};
    uint64_t overlap[] = {0, 128, 0}, wrapped[] = {0, UINT64_MAX - 255, 0};
    struct plan_fault fault;

    EXPECT(plan_validate(buffers, 3, 256, sound, 512, &fault) == 0 && fault.kind == PLAN_SOUND);
    EXPECT(plan_validate(buffers, 3, 256, shifted, 512, &fault) == -EINVAL &&
           fault.kind == PLAN_MISALIGNED && fault.a == 1);
    EXPECT(plan_validate(buffers, 3, 256, outside, 512, &fault) == -EINVAL &&
           fault.kind == PLAN_OUTSIDE && fault.a == 2);
    EXPECT(plan_validate(buffers, 3, 256, wrapped, 512, &fault) == -EINVAL &&
           fault.kind == PLAN_OUTSIDE && fault.a == 1);
    EXPECT(plan_validate(buffers, 3, 128, overlap, 512, &fault) == -EINVAL &&
           fault.kind == PLAN_OVERLAP && fault.a == 0 && fault.b == 1);
    EXPECT(plan_validate(backwards, 1, 256, sound, 512, &fault) == -EINVAL &&
           fault.kind == PLAN_LIFETIME);
    EXPECT(plan_validate(buffers, 3, 0, sound, 512, NULL) == -EINVAL);
}

/* The shortest plan at all, by placing the buffers in every order as low as they go. */
static uint64_t best_total(const struct plan_buffer *buffers, size_t count, uint64_t *offsets,
                           unsigned placed, uint64_t total, uint64_t best)
{
    if (placed == (1U << count) - 1)
        return total;
    for (size_t i = 0; i < count; i++) {
        uint64_t offset = 0, end;

        if (placed & 1U << i)
            continue;
        for (bool moved = true; moved;) {
            moved = false;
            for (size_t j = 0; j < count; j++) {
                if (!(placed & 1U << j) || buffers[j].first_use > buffers[i].last_use ||
                    buffers[i].first_use > buffers[j].last_use)
                    continue;
                if (offset < offsets[j] + buffers[j].bytes &&
                    offsets[j] < offset + buffers[i].bytes) {
                    offset = offsets[j] + buffers[j].bytes;
                    moved = true;
                }
            }
        }
        offsets[i] = offset;
        end = offset + buffers[i].bytes;
        end = end > total ? end : total;
        if (end < best)
            best = best_total(buffers, count, offsets, placed | 1U << i, end, best);
    }
    return best;
}

static void test_against_the_best(void)
{
    uint64_t ours = 0, least = 0, scratch[8];
    int equal = 0, trials = 300;

    for (int trial = 0; trial < trials; trial++) {
        struct plan_buffer buffers[7];
        uint64_t total, best;

        for (size_t i = 0; i < 7; i++) {
            uint32_t first = (uint32_t)random_below(8);
            buffers[i] =
                (struct plan_buffer){1 + random_below(9), first, first + (uint32_t)random_below(5)};
        }
        total = solve(buffers, 7, 1).total_bytes;
        best = best_total(buffers, 7, scratch, 0, 0, UINT64_MAX);
        EXPECT(total >= best, "%" PRIu64 " is shorter than possible", total);
        EXPECT(total <= best + best / 4);
        equal += total == best;
        ours += total;
        least += best;
    }
    printf("%d of %d small plans are as short as possible, %.2f %% longer on average\n", equal,
           trials, 100.0 * ((double)ours / (double)least - 1));
    EXPECT(equal >= trials * 95 / 100);
}

/* Layer after layer of temporaries beside long-lived residuals, like a network's. */
static void test_layers(void)
{
    static struct plan_buffer buffers[LIMIT];
    struct plan_result result;
    uint32_t step = 0;
    size_t count = 0;

    while (count + 6 <= LIMIT) {
        uint64_t width = 1000 * (1 + random_below(4));

        buffers[count++] = (struct plan_buffer){width, step, step + 8};
        buffers[count++] = (struct plan_buffer){3 * width, step + 1, step + 3};
        buffers[count++] = (struct plan_buffer){width, step + 2, step + 4};
        buffers[count++] = (struct plan_buffer){4 * width, step + 4, step + 6};
        buffers[count++] = (struct plan_buffer){4 * width, step + 5, step + 7};
        buffers[count++] = (struct plan_buffer){width, step + 7, step + 9};
        step += 8;
    }
    result = solve(buffers, count, 256);
    printf("%zu buffers in layers: %" PRIu64 " bytes, lower bound %" PRIu64 "\n", count,
           result.total_bytes, result.lower_bound_bytes);
    EXPECT(result.total_bytes <= result.lower_bound_bytes * 103 / 100);
}

static void test_random(void)
{
    static struct plan_buffer buffers[LIMIT];

    for (int trial = 0; trial < 12; trial++) {
        size_t count = 1 + random_below(150);
        struct plan_result result;

        for (size_t i = 0; i < count; i++) {
            uint32_t first = (uint32_t)random_below(200);
            buffers[i] = (struct plan_buffer){random_below(100000), first,
                                              first + (uint32_t)random_below(40)};
        }
        result = solve(buffers, count, 64);
        EXPECT(result.total_bytes <= result.lower_bound_bytes * 115 / 100,
               "%" PRIu64 " for a bound of %" PRIu64, result.total_bytes, result.lower_bound_bytes);
    }
}

int main(void)
{
    test_known();
    test_refused();
    test_validator();
    test_against_the_best();
    test_layers();
    test_random();
    return test_finish();
}
