/* SPDX-License-Identifier: MIT */
/* The plan of residents against every choice there is, on short lists, and against what must hold
 * of every list and room. */
#include "engine/residency.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "engine/schedule.h"
#include "tests/test.h"

enum { COUNT_MAX = 135 };

static uint64_t state = 1;

static uint64_t below(uint64_t limit)
{
    state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (state >> 33) % limit;
}

/* A list with its own arrays. */
struct list {
    struct residency_case c;
    uint64_t bytes[COUNT_MAX], held[COUNT_MAX];
};

static uint64_t in_pages(const struct list *list, uint64_t bytes)
{
    return (bytes + list->c.page_bytes - 1) / list->c.page_bytes * list->c.page_bytes;
}

static void list_init(struct list *list, uint64_t page)
{
    *list = (struct list){.c = {.page_bytes = page}};
    list->c.bytes = list->bytes;
    list->c.held = list->held;
}

static void list_add(struct list *list, uint64_t bytes)
{
    list->bytes[list->c.count] = bytes;
    list->held[list->c.count++] = in_pages(list, bytes);
}

static uint64_t sum(const uint64_t *values, size_t count)
{
    uint64_t all = 0;

    for (size_t i = 0; i < count; i++)
        all += values[i];
    return all;
}

static double sum_of(const double *values, size_t count)
{
    double all = 0;

    for (size_t i = 0; i < count; i++)
        all += values[i];
    return all;
}

/* What a choice takes at least, and streams. */
static uint64_t needed(const struct list *list, const bool *resident, uint64_t *streamed)
{
    uint64_t stay = 0, longest = 0;

    *streamed = 0;
    for (size_t i = 0; i < list->c.count; i++) {
        if (resident[i])
            stay += list->held[i];
        else
            *streamed += list->bytes[i];
        if (!resident[i] && list->bytes[i] > longest)
            longest = list->bytes[i];
    }
    return stay + in_pages(list, longest);
}

/* The fewest bytes that have to be streamed, by trying every choice; UINT64_MAX if none fits. */
static uint64_t best_streamed(const struct list *list, uint64_t *least)
{
    uint64_t best = UINT64_MAX;

    *least = UINT64_MAX;
    for (uint32_t choice = 0; choice < 1u << list->c.count; choice++) {
        bool resident[16];
        uint64_t bytes, streamed;

        for (size_t i = 0; i < list->c.count; i++)
            resident[i] = choice >> i & 1;
        bytes = needed(list, resident, &streamed);
        *least = bytes < *least ? bytes : *least;
        if (bytes <= list->c.room && streamed < best)
            best = streamed;
    }
    return best;
}

/* Whether there is a plan, and that it adds up. */
static bool check_plan(const struct list *list, struct residency *plan)
{
    bool resident[COUNT_MAX];
    uint64_t least = residency_least(&list->c), room = list->c.room, streamed;
    int result = residency_plan(&list->c, resident, plan);

    EXPECT(result == (room >= least ? 0 : -ENOMEM), "room %llu, least %llu: %d",
           (unsigned long long)room, (unsigned long long)least, result);
    if (result != 0)
        return false;
    EXPECT(needed(list, resident, &streamed) <= room && streamed == plan->streamed_bytes);
    EXPECT(plan->resident + plan->streamed == list->c.count);
    EXPECT(plan->resident_bytes + in_pages(list, plan->ring_bytes) <= room);
    EXPECT((plan->streamed == 0) == (sum(list->held, list->c.count) <= room),
           "all stay exactly if all fit");
    for (size_t i = 0; i < list->c.count; i++)
        EXPECT(resident[i] || list->bytes[i] <= plan->ring_bytes);
    return true;
}

/* Every room on short lists; how much more is streamed than must. */
static void test_short_lists(void)
{
    double streamed = 0, best = 0, resident = 0;

    for (int round = 0; round < 400; round++) {
        struct list list;
        struct residency plan;
        uint64_t must, least;

        list_init(&list, 1 + below(4));
        for (size_t i = 1 + below(9); i > 0; i--)
            list_add(&list, 1 + below(round % 2 == 0 ? 3 : 40));
        for (list.c.room = 0; list.c.room <= sum(list.held, list.c.count) + 1; list.c.room++) {
            must = best_streamed(&list, &least);
            EXPECT(residency_least(&list.c) == least, "%llu", (unsigned long long)least);
            if (!check_plan(&list, &plan))
                continue;
            EXPECT(plan.streamed_bytes >= must);
            streamed += (double)plan.streamed_bytes;
            best += (double)must;
            resident += (double)(sum(list.bytes, list.c.count) - must);
        }
    }
    printf("short lists: %.1f %% more is streamed than must be, %.1f %% of what could stay\n",
           100 * (streamed / best - 1), 100 * (streamed - best) / resident);
    EXPECT(streamed < 1.2 * best);
}

/* FLUX.1-dev in bf16, in MB: 19 double blocks of three pieces, 38 single blocks of two. */
static void flux(struct list *list)
{
    list_init(list, 2);
    for (int i = 0; i < 19 * 3; i++)
        list_add(list, 151);
    for (int i = 0; i < 38; i++) {
        list_add(list, 57);
        list_add(list, 170);
    }
}

/* When copying a byte takes twice as long as computing with it. */
static double period(const struct list *list, const bool *resident, uint64_t ring_bytes)
{
    return schedule_period(&(struct schedule_case){.count = list->c.count,
                                                   .stays = resident,
                                                   .bytes = list->bytes,
                                                   .ring_bytes = ring_bytes,
                                                   .copy_byte_s = 2,
                                                   .compute_byte_s = 1});
}

/* The best of many random choices that fit into the room. */
static double best_by_chance(const struct list *list)
{
    double best = 1e300;

    for (int round = 0; round < 100; round++) {
        bool resident[COUNT_MAX] = {false};
        uint64_t streamed, left;

        for (int tries = 0; tries < 1000; tries++) {
            size_t i = below(list->c.count);

            resident[i] = !resident[i];
            if (resident[i] && needed(list, resident, &streamed) > list->c.room)
                resident[i] = false;
        }
        if (needed(list, resident, &streamed) > list->c.room)
            continue;
        left = list->c.room;
        for (size_t i = 0; i < list->c.count; i++)
            left -= resident[i] ? list->held[i] : 0;
        best = fmin(best, period(list, resident, left));
    }
    return best;
}

/* A step takes little longer than copying what must be copied, or computing, whichever is longer;
 * and chance finds nothing much faster. */
static void test_time(void)
{
    struct list list;
    uint64_t total;

    flux(&list);
    total = sum(list.held, list.c.count);
    for (uint64_t percent = 5; percent < 100; percent += 5) {
        bool resident[COUNT_MAX];
        struct residency plan;
        double least, takes;

        list.c.room = total * percent / 100;
        EXPECT(check_plan(&list, &plan));
        EXPECT(residency_plan(&list.c, resident, &plan) == 0);
        least = 2 * (double)plan.streamed_bytes;
        least = least > (double)total ? least : (double)total;
        takes = period(&list, resident, plan.ring_bytes);
        printf("%2llu %% of the bytes: %3zu stay, %3zu stream, a ring of %3llu MB, a step takes "
               "%.3f of copying or computing alone\n",
               (unsigned long long)percent, plan.resident, plan.streamed,
               (unsigned long long)plan.ring_bytes, takes / least);
        EXPECT(takes < 1.15 * least, "%llu %%: %g", (unsigned long long)percent, takes / least);
        EXPECT(takes <= 1.01 * best_by_chance(&list), "%llu %%: %g", (unsigned long long)percent,
               best_by_chance(&list) / takes);
        EXPECT(plan.resident_bytes + plan.ring_bytes + 170 > list.c.room, "room is left");
    }
}

/* Seconds of a run as measured speeds have it. */
static double measured_period(const struct list *list, const bool *resident,
                              const struct residency *plan)
{
    return schedule_period(&(struct schedule_case){.count = list->c.count,
                                                   .stays = resident,
                                                   .bytes = list->bytes,
                                                   .ring_bytes = plan->ring_bytes,
                                                   .copy_byte_s = list->c.copy_byte_s,
                                                   .compute_s = list->c.compute_s,
                                                   .in_turn = list->c.in_turn});
}

/* A card three times as fast as its link, at 1024x1024: the text's MLPs have an eighth of the
 * computing that the picture's have, for as many bytes. */
static void measure(struct list *list, double *compute_s)
{
    for (size_t i = 0; i < list->c.count; i++)
        compute_s[i] = (double)list->bytes[i] * (i < 1 + 3 * 19 && i % 3 == 0 ? 0.125 : 1.1);
    list->c.compute_s = compute_s;
    list->c.copy_byte_s = 3;
}

/* With figures the plan is never slower than without, by the measured clock; and much faster where
 * link and card are about equally busy. */
static void test_figures(void)
{
    double compute_s[COUNT_MAX], best_gain = 1;
    struct list list;
    uint64_t total;

    flux(&list);
    total = sum(list.held, list.c.count);
    for (uint64_t percent = 5; percent < 100; percent += 5) {
        bool resident[COUNT_MAX];
        struct residency plan;
        double guessed, takes;

        list.c.room = total * percent / 100;
        list.c.compute_s = NULL;
        EXPECT(residency_plan(&list.c, resident, &plan) == 0);
        measure(&list, compute_s);
        guessed = measured_period(&list, resident, &plan);
        EXPECT(check_plan(&list, &plan));
        EXPECT(residency_plan(&list.c, resident, &plan) == 0);
        takes = measured_period(&list, resident, &plan);
        printf("%2llu %% of the bytes, figures known: a step takes %.3f of what it took\n",
               (unsigned long long)percent, takes / guessed);
        EXPECT(takes <= guessed * (1 + 1e-9), "%llu %%: %g, %g guessed",
               (unsigned long long)percent, takes, guessed);
        best_gain = takes / guessed < best_gain ? takes / guessed : best_gain;
    }
    EXPECT(best_gain < 0.85, "%g", best_gain);
}

/* Any figures: as good as without them, and what fits is kept. In turn, the fewest bytes win. */
static void test_any_figures(void)
{
    for (int round = 0; round < 300; round++) {
        double compute_s[16];
        struct list list;
        struct residency plan;
        bool resident[16];
        double guessed, takes;

        list_init(&list, 1 + below(4));
        for (size_t i = 1 + below(9); i > 0; i--)
            list_add(&list, 1 + below(40));
        list.c.room = residency_least(&list.c) + below(60);
        EXPECT(residency_plan(&list.c, resident, &plan) == 0);
        for (size_t i = 0; i < list.c.count; i++)
            compute_s[i] = (double)(1 + below(100));
        list.c.compute_s = compute_s;
        list.c.copy_byte_s = (double)(1 + below(30)) / 4;
        list.c.in_turn = below(2) == 0;
        guessed = measured_period(&list, resident, &plan);
        check_plan(&list, &plan);
        EXPECT(residency_plan(&list.c, resident, &plan) == 0);
        takes = measured_period(&list, resident, &plan);
        EXPECT(takes <= guessed * (1 + 1e-9), "%g, %g guessed", takes, guessed);
        if (list.c.in_turn && plan.streamed <= 2 && plan.streamed_bytes <= plan.ring_bytes)
            EXPECT(fabs(takes - sum_of(compute_s, list.c.count)) < 1e-9 * takes);
    }
}

/* Figures that differ a little, as measured ones do, change no plan; less room or more, and another
 * link, do. */
static void test_replan(void)
{
    double compute_s[COUNT_MAX], exact_s[COUNT_MAX];
    bool resident[COUNT_MAX], again[COUNT_MAX];
    struct residency plan, replan;
    struct residency_before before = {resident, 0};
    struct list list;

    flux(&list);
    measure(&list, exact_s);
    list.c.room = sum(list.held, list.c.count) / 3;
    EXPECT(residency_replan(&list.c, &(struct residency_before){0}, resident, &plan) == 0);
    before.ring_bytes = plan.ring_bytes;
    list.c.compute_s = compute_s;
    for (int round = 0; round < 20; round++) {
        for (size_t i = 0; i < list.c.count; i++)
            compute_s[i] = exact_s[i] * (0.99 + (double)below(100) / 5000);
        EXPECT(residency_replan(&list.c, &before, again, &replan) == 0);
        EXPECT(memcmp(again, resident, list.c.count) == 0 &&
               replan.streamed_bytes == plan.streamed_bytes &&
               replan.ring_bytes == plan.ring_bytes);
    }
    list.c.room = plan.resident_bytes + plan.ring_bytes - 1;
    EXPECT(residency_replan(&list.c, &before, again, &replan) == 0);
    EXPECT(replan.resident_bytes + replan.ring_bytes <= list.c.room);
    list.c.room = sum(list.held, list.c.count);
    EXPECT(residency_replan(&list.c, &before, again, &replan) == 0 && replan.streamed == 0);
    list.c.room = 0;
    EXPECT(residency_replan(&list.c, &before, again, &replan) == -ENOMEM);
}

static void test_edges(void)
{
    struct residency plan;
    struct list list;

    list_init(&list, 1);
    EXPECT(residency_least(&list.c) == 0 && check_plan(&list, &plan));
    list_add(&list, 7);
    for (list.c.room = 0; list.c.room <= 8; list.c.room++)
        check_plan(&list, &plan);
    list_init(&list, 1);
    list_add(&list, UINT64_C(1) << 40);
    list_add(&list, 1);
    list_add(&list, UINT64_C(1) << 40);
    list_add(&list, UINT64_C(1) << 39);
    for (list.c.room = 0; list.c.room < UINT64_C(1) << 42; list.c.room += UINT64_C(1) << 37)
        check_plan(&list, &plan);
    list.c.room = UINT64_MAX;
    EXPECT(check_plan(&list, &plan) && plan.streamed == 0);
    /* What stays may take less than a page, what streams never does. */
    list_init(&list, 100);
    for (int i = 0; i < 8; i++)
        list_add(&list, 10);
    for (int i = 0; i < 8; i++)
        list.held[i] = 12;
    list.c.room = 96;
    EXPECT(check_plan(&list, &plan) && plan.streamed == 0);
    list.c.room = 95;
    EXPECT(residency_least(&list.c) == 96 && !check_plan(&list, &plan));
    list.c.room = 100;
    list_add(&list, 10);
    EXPECT(check_plan(&list, &plan) && plan.streamed == 9, "the ring's page is all there is");
}

int main(void)
{
    test_short_lists();
    test_time();
    test_figures();
    test_any_figures();
    test_replan();
    test_edges();
    return test_finish();
}
