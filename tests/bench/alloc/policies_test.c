/* SPDX-License-Identifier: MIT */
/* The models of other allocators, on cases worked out by hand from their rules. */
#include "tests/test.h"

#include "policy.h"

#define KIB (UINT64_C(1) << 10)
#define MIB (UINT64_C(1) << 20)
enum { BLOCKS = 16 };

static const struct policy *policy;
static void *state;

static void open_policy(const struct policy *chosen, uint64_t budget_mib)
{
    const struct policy_options options = {budget_mib * MIB, BLOCKS, 2 * MIB};

    policy = chosen;
    state = policy->create(&options);
}

static void close_policy(void)
{
    policy->destroy(state);
}

static bool take(uint64_t block, uint64_t bytes, int stream)
{
    return policy->alloc(state, block, bytes, stream);
}

static void give(uint64_t block)
{
    policy->free(state, block);
}

/* Held, free and the longest free run are so many KiB. */
static void expect(uint64_t reserved_kib, uint64_t free_kib, uint64_t largest_kib)
{
    struct policy_state now;

    policy->describe(state, &now);
    EXPECT(now.reserved_bytes == reserved_kib * KIB, "%s: %llu KiB held", policy->name,
           (unsigned long long)(now.reserved_bytes / KIB));
    EXPECT(now.free_bytes == free_kib * KIB, "%s: %llu KiB free", policy->name,
           (unsigned long long)(now.free_bytes / KIB));
    EXPECT(now.largest_bytes == largest_kib * KIB, "%s: a run of %llu KiB", policy->name,
           (unsigned long long)(now.largest_bytes / KIB));
}

static void test_exact(void)
{
    open_policy(&policy_exact, 10);
    EXPECT(take(0, 6 * MIB, 0));
    give(0);
    EXPECT(!take(1, 5 * MIB, 0), "what is cached serves its own size only");
    expect(6 * 1024, 6 * 1024, 6 * 1024);
    EXPECT(take(1, 6 * MIB, 0));
    close_policy();
    open_policy(&policy_exact_flush, 10);
    EXPECT(take(0, 6 * MIB, 0));
    give(0);
    EXPECT(take(1, 5 * MIB, 0), "what is cached is given back");
    expect(5 * 1024, 0, 0);
    close_policy();
}

static void test_best_fit(void)
{
    open_policy(&policy_best_fit, 10);
    EXPECT(take(0, 7 * MIB, 0));
    expect(8 * 1024, 1024, 1024);
    EXPECT(take(1, 3 * MIB, 0) == false, "2 MiB are left of the budget");
    EXPECT(take(1, MIB, 1), "the rest of a segment, whatever the stream");
    give(0);
    expect(8 * 1024, 7 * 1024, 7 * 1024);
    give(1);
    EXPECT(take(2, 10 * MIB, 0), "a segment that is free goes back");
    expect(10 * 1024, 0, 0);
    close_policy();
}

static void test_default_segments(void)
{
    open_policy(&policy_pytorch, 100);
    EXPECT(take(0, 1, 0));
    EXPECT(take(1, MIB, 0), "up to 1 MiB is short");
    give(1);
    give(0);
    expect(2 * 1024, 2 * 1024, 2 * 1024);
    EXPECT(take(2, MIB + 1, 0), "what is longer has a segment of 20 MiB");
    EXPECT(take(3, 10 * MIB - 512, 0), "in which the next fits");
    EXPECT(take(4, 10 * MIB, 0) && take(5, 13 * MIB, 0), "and one of its own size, even and odd");
    give(2);
    give(3);
    give(4);
    give(5);
    expect((2 + 20 + 10 + 14) * 1024, 46 * 1024, 20 * 1024);
    EXPECT(take(6, 19 * MIB, 0), "1 MiB is not worth to be cut off");
    expect(46 * 1024, 26 * 1024, 14 * 1024);
    EXPECT(take(7, 13 * MIB - KIB, 0), "more than that is");
    expect(46 * 1024, 12 * 1024 + 1025, 10 * 1024);
    close_policy();
}

static void test_default_streams_and_budget(void)
{
    open_policy(&policy_pytorch, 40);
    EXPECT(take(0, 20 * MIB, 0));
    give(0);
    EXPECT(take(1, 12 * MIB, 1), "another stream has memory of its own");
    expect(32 * 1024, 20 * 1024, 20 * 1024);
    EXPECT(take(2, 12 * MIB, 1), "for which that of others is given back when it is full");
    expect(24 * 1024, 0, 0);
    EXPECT(!take(3, 18 * MIB, 0) && take(3, 16 * MIB, 0));
    close_policy();
}

static void test_expandable(void)
{
    open_policy(&policy_pytorch_expandable, 100);
    EXPECT(take(0, 21 * MIB, 0));
    expect(40 * 1024, 19 * 1024, 19 * 1024);
    EXPECT(take(1, 25 * MIB, 0), "grows by what the free end lacks");
    expect(60 * 1024, 14 * 1024, 14 * 1024);
    EXPECT(take(2, KIB, 0) && take(3, 8 * MIB, 1),
           "short ones and other streams: pages of their own");
    expect((60 + 2 + 20) * 1024, 14 * 1024 + 2047 + 12 * 1024, 14 * 1024);
    give(0);
    EXPECT(take(4, 14 * MIB, 0), "the end, which is the shortest that fits");
    close_policy();
}

/* What is wholly free is unmapped at the limit, and the rest of a page stays. */
static void test_expandable_unmaps(void)
{
    open_policy(&policy_pytorch_expandable, 100);
    EXPECT(take(0, 45 * MIB, 0) && take(1, 10 * MIB, 0) && take(2, 5 * MIB, 0));
    expect(60 * 1024, 0, 0);
    give(0);
    EXPECT(take(3, 75 * MIB, 1), "two pages of the first 45 MiB go, 5 MiB of the third stay");
    expect(20 * 1024 + 80 * 1024, 5 * 1024 + 5 * 1024, 5 * 1024);
    EXPECT(!take(4, 6 * MIB, 0) && take(4, 5 * MIB, 0));
    give(3);
    EXPECT(take(5, 41 * MIB, 0), "mapped again where it was, behind none that is used");
    close_policy();
}

int main(void)
{
    test_exact();
    test_best_fit();
    test_default_segments();
    test_default_streams_and_budget();
    test_expandable();
    test_expandable_unmaps();
    return test_finish();
}
