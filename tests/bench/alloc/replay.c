/* SPDX-License-Identifier: MIT */
/*
 * alloc-replay: allocators side by side on the same trace.
 *
 *     alloc-replay [--budget PERCENT] [--page KIB] [--goals] [--flux IMAGES]… [TRACE]…
 *
 * --flux makes a synthetic trace of so many images (flux_trace.h). --page is the arena's page from
 * there on, 2048 KiB as on a GPU unless told otherwise. --goals plays the arena alone and fails
 * when a trace misses a goal. For each trace and allocator:
 *
 *   peak         most bytes held at a time when the budget sets no limit
 *   U            1 − peak requested ÷ peak held, then
 *   R            1 − requested ÷ held, then, on average over all events
 *   end, worst   fragmentation after the last image, and the worst of those after each image
 *   ever         the worst at any moment when as much as 5 % of the peak requested is free, without
 *                a limit or under the one below
 *   least        the smallest budget at which the whole trace completes, to 2 MiB
 *   E            1 − peak requested ÷ that
 *   failed       images with a failed allocation under a budget of PERCENT (110) of the peak
 *                requested, and the failures; fragmentation `tight`: the worst after an image there
 *   driver       calls of the driver in that run, for each thousand events
 *   ns           an allocation or free there on average, driver calls at no cost
 *
 * Fragmentation is 1 − longest run that can be had without growing ÷ all free bytes held. The model
 * of PyTorch is policy_pytorch.c; what PyTorch itself reported on a trace stands at its head.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "flux_trace.h"
#include "policy.h"

enum { DEFAULT_PERCENT = 110, DEFAULT_PAGE_KIB = 2048, STEPS = 4, SEED = 17 };
#define MIB (UINT64_C(1) << 20)
#define UNLIMITED (UINT64_C(1) << 39)

static const struct policy *const policies[] = {
    &policy_exact,   &policy_exact_flush,        &policy_best_fit,
    &policy_pytorch, &policy_pytorch_expandable, &policy_arena};

struct outcome {
    uint64_t peak_reserved, failures, failed_images, driver_calls;
    double fragmentation_end, fragmentation_worst, fragmentation_ever, waste_sum;
};

struct settings {
    int percent, page_kib;
    bool goals;
};

/* What is replayed. */
struct subject {
    const struct trace *trace;
    uint64_t *bytes; /* by block */
    uint64_t peak_requested, tight_budget, page_bytes;
};

struct replay {
    const struct policy *policy;
    void *state;
    uint64_t requested, peak_requested;
    bool *placed; /* by block: allocated without failing */
    struct outcome outcome;
};

static double fragmentation(const struct policy_state *state)
{
    return state->free_bytes > 0 ? 1 - (double)state->largest_bytes / (double)state->free_bytes : 0;
}

static double larger(double a, double b)
{
    return a > b ? a : b;
}

static void observe(struct replay *replay, bool after_image)
{
    struct policy_state state;
    double now;

    replay->policy->describe(replay->state, &state);
    now = fragmentation(&state);
    replay->outcome.peak_reserved = state.peak_reserved_bytes;
    replay->outcome.driver_calls = state.driver_calls;
    if (state.reserved_bytes > 0)
        replay->outcome.waste_sum += 1 - (double)replay->requested / (double)state.reserved_bytes;
    if (state.free_bytes >= replay->peak_requested / 20)
        replay->outcome.fragmentation_ever = larger(replay->outcome.fragmentation_ever, now);
    if (!after_image)
        return;
    replay->outcome.fragmentation_end = now;
    replay->outcome.fragmentation_worst = larger(replay->outcome.fragmentation_worst, now);
}

/* Plays a trace; `watch` looks at fragmentation after each event, `patient` goes on after a
 * failure. */
static struct outcome play(const struct subject *subject, const struct policy *policy,
                           uint64_t budget, bool watch, bool patient)
{
    const struct trace *trace = subject->trace;
    struct replay replay = {.policy = policy, .peak_requested = subject->peak_requested};
    const struct policy_options options = {budget, trace->blocks, subject->page_bytes};
    uint64_t failures_before = 0;

    replay.state = policy->create(&options);
    replay.placed = calloc(trace->blocks + 1, sizeof *replay.placed);
    if (!replay.placed)
        abort();
    for (size_t i = 0; i < trace->count && (patient || replay.outcome.failures == 0); i++) {
        const struct trace_event *event = &trace->events[i];

        if (event->kind == TRACE_ALLOC) {
            replay.placed[event->block] =
                policy->alloc(replay.state, event->block, event->bytes, event->stream);
            replay.outcome.failures += !replay.placed[event->block];
            replay.requested += replay.placed[event->block] ? event->bytes : 0;
        } else if (event->kind == TRACE_FREE) {
            if (!replay.placed[event->block])
                continue;
            replay.requested -= subject->bytes[event->block];
            policy->free(replay.state, event->block);
        } else {
            replay.outcome.failed_images += replay.outcome.failures > failures_before;
            failures_before = replay.outcome.failures;
        }
        if (watch || event->kind == TRACE_MARK)
            observe(&replay, event->kind == TRACE_MARK);
    }
    policy->destroy(replay.state);
    free(replay.placed);
    return replay.outcome;
}

/* The size of each block, and the most that lives at a time. */
static void measure(struct subject *subject)
{
    const struct trace *trace = subject->trace;
    uint64_t now = 0;

    subject->bytes = calloc(trace->blocks + 1, sizeof *subject->bytes);
    if (!subject->bytes)
        abort();
    for (size_t i = 0; i < trace->count; i++) {
        const struct trace_event *event = &trace->events[i];

        if (event->kind == TRACE_ALLOC)
            now += subject->bytes[event->block] = event->bytes;
        else if (event->kind == TRACE_FREE)
            now -= subject->bytes[event->block];
        if (now > subject->peak_requested)
            subject->peak_requested = now;
    }
}

/* To within a page of 2 MiB. */
static uint64_t find_smallest_budget(const struct subject *subject, const struct policy *policy,
                                     uint64_t high)
{
    uint64_t low = (subject->peak_requested - 1) / (2 * MIB);

    high = high / (2 * MIB) + 1;
    while (high - low > 1) {
        uint64_t middle = low + (high - low) / 2;
        if (play(subject, policy, middle * 2 * MIB, false, false).failures == 0)
            high = middle;
        else
            low = middle;
    }
    return high * 2 * MIB;
}

static double seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

struct report {
    double least_bytes, excess; /* smallest budget; E */
    double ever;                /* fragmentation at any moment */
    struct outcome loose, tight;
    double tight_ns; /* an event */
};

static struct report try_policy(const struct subject *subject, const struct policy *policy)
{
    struct report report = {.loose = play(subject, policy, UNLIMITED, true, true)};
    double start = seconds();

    (void)play(subject, policy, subject->tight_budget, false, true);
    report.tight_ns = 1e9 * (seconds() - start) / (double)subject->trace->count;
    report.tight = play(subject, policy, subject->tight_budget, true, true);
    report.ever = larger(report.loose.fragmentation_ever, report.tight.fragmentation_ever);
    report.least_bytes = (double)find_smallest_budget(subject, policy, report.loose.peak_reserved);
    report.excess = 1 - (double)subject->peak_requested / report.least_bytes;
    return report;
}

static void print_policy(const struct subject *subject, const struct policy *policy,
                         const struct report *report)
{
    const struct outcome *loose = &report->loose, *tight = &report->tight;
    double held = (double)loose->peak_reserved, events = (double)subject->trace->count;
    char failed[64];

    snprintf(failed, sizeof failed, "%" PRIu64 " (%" PRIu64 ")", tight->failed_images,
             tight->failures);
    printf("  %-28s %7.0f %5.1f %5.1f %5.1f %5.1f %5.1f %7.0f %6.2f %11s %5.1f %6.0f %4.0f\n",
           policy->name, held / (double)MIB, 100 * (1 - (double)subject->peak_requested / held),
           100 * loose->waste_sum / events, 100 * loose->fragmentation_end,
           100 * loose->fragmentation_worst, 100 * report->ever, report->least_bytes / (double)MIB,
           100 * report->excess, failed, 100 * tight->fragmentation_worst,
           1e3 * (double)tight->driver_calls / events, report->tight_ns);
}

static void print_heading(void)
{
    printf("  %-28s %7s %5s %5s %5s %5s %5s %7s %6s %11s %5s %6s %4s\n", "", "peak", "U", "R",
           "end", "worst", "ever", "least", "E", "failed", "tight", "driver", "ns");
    printf("  %-28s %7s %5s %5s %5s %5s %5s %7s %6s %11s %5s %6s %4s\n", "", "MiB", "%", "%", "%",
           "%", "%", "MiB", "%", "images (n)", "%", "/ 1e3", "");
}

/* What is promised of the arena on every trace. */
static bool meets_goals(const struct report *report)
{
    return report->excess <= 0.03 && report->loose.fragmentation_end <= 0.01 &&
           report->ever <= 0.05 && report->tight.failures == 0;
}

/* Whether the arena meets its goals. */
static bool replay(const char *name, const struct trace *trace, const struct settings *settings)
{
    struct subject subject = {.trace = trace, .page_bytes = (uint64_t)settings->page_kib << 10};
    size_t first = settings->goals ? sizeof policies / sizeof *policies - 1 : 0;
    bool good = false;

    measure(&subject);
    subject.tight_budget = subject.peak_requested / 100 * (uint64_t)settings->percent;
    printf("%s: %zu events, %zu marks, peak requested %.0f MiB, tight budget %.0f MiB, pages of %d "
           "KiB\n",
           name, trace->count, trace->mark_count, (double)subject.peak_requested / (double)MIB,
           (double)subject.tight_budget / (double)MIB, settings->page_kib);
    print_heading();
    for (size_t i = first; i < sizeof policies / sizeof *policies; i++) {
        struct report report = try_policy(&subject, policies[i]);

        print_policy(&subject, policies[i], &report);
        good = meets_goals(&report);
    }
    free(subject.bytes);
    return good;
}

static int replay_file(const char *path, const struct settings *settings)
{
    struct trace_fault fault;
    struct trace trace;
    FILE *file = fopen(path, "re");
    bool good;
    int code;

    if (!file) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        return EXIT_FAILURE;
    }
    code = trace_read(&trace, file, &fault);
    fclose(file);
    if (code != 0 || trace.blocks == 0) {
        fprintf(stderr, "%s:%zu: %s\n", path, code != 0 ? fault.line : 0,
                code != 0 ? fault.why : "nothing is allocated");
        return EXIT_FAILURE;
    }
    good = replay(path, &trace, settings);
    trace_finish(&trace);
    if (good || !settings->goals)
        return EXIT_SUCCESS;
    fprintf(stderr, "%s: the arena misses a goal\n", path);
    return EXIT_FAILURE;
}

static void replay_flux(int images, const struct settings *settings)
{
    struct flux_trace_options options = {.images = images, .steps = STEPS, .seed = SEED};
    struct trace trace;
    char name[80];

    flux_trace_make(&trace, &options);
    snprintf(name, sizeof name, "synthetic, %d images of 512 to 1024 px a side", images);
    (void)replay(name, &trace, settings);
    trace_finish(&trace);
}

static int usage(void)
{
    fputs("usage: alloc-replay [--budget PERCENT] [--page KIB] [--goals] [--flux IMAGES]... "
          "[TRACE]...\n",
          stderr);
    return 2;
}

/* An option with its number: 0, or an exit status. */
static int apply(struct settings *settings, const char *option, int number)
{
    if (number <= 0 || number > 100000)
        return usage();
    if (strcmp(option, "--budget") == 0)
        settings->percent = number;
    else if (strcmp(option, "--flux") == 0)
        replay_flux(number, settings);
    else if (strcmp(option, "--page") == 0 && (number & (number - 1)) == 0)
        settings->page_kib = number;
    else
        return usage();
    return EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
    struct settings settings = {DEFAULT_PERCENT, DEFAULT_PAGE_KIB, false};
    int status = argc > 1 ? EXIT_SUCCESS : usage();

    for (int i = 1; i < argc && status == EXIT_SUCCESS; i++) {
        if (strcmp(argv[i], "--goals") == 0) {
            settings.goals = true;
        } else if (strncmp(argv[i], "--", 2) == 0) {
            status = apply(&settings, argv[i], i + 1 < argc ? atoi(argv[i + 1]) : 0);
            i++;
        } else {
            status = replay_file(argv[i], &settings);
        }
    }
    return status;
}
