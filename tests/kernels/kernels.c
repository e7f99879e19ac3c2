/* SPDX-License-Identifier: MIT */
/*
 * Every operation of a back end against the double-precision reference, on random shapes.
 *
 * usage: kernels BACKEND [seed=N] [cases=N] [only=OPERATION] [modules=FOLDER]
 *        kernels BACKEND time [tokens=N] [only=PART_OF_NAME] [modules=FOLDER]
 *
 * BACKEND is "cpu", "cpu:KERNEL" for one of its products, or the name of a module in FOLDER. A
 * failure prints the seed and the number of the case. Without a seed it is FLUXFS_SEED's, or 1.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kernels/cases.h"

enum { SKIPPED = 77 /* meson's code for it */, FAILURES_SHOWN = 5 };

static const struct {
    const char *name;
    void (*try)(struct rig *rig);
    int cases;
} operations[] = {
    {"linear", try_linear, 150},
    {"attention", try_attention, 150},
    {"conv", try_conv, 150},
    {"conv_in_place", try_conv_in_place, 40},
    {"layer_norm", try_layer_norm, 60},
    {"modulated_norm", try_modulated_norm, 60},
    {"rms_norm", try_rms_norm, 60},
    {"head_norm", try_head_norm, 60},
    {"gated_norm", try_gated_norm, 60},
    {"group_norm", try_group_norm, 100},
    {"affine", try_affine, 40},
    {"add", try_add, 40},
    {"gelu_multiply", try_gelu_multiply, 40},
    {"silu", try_silu, 40},
    {"copy", try_copy, 40},
    {"position_bias", try_position_bias, 40},
    {"euler", try_euler, 40},
    {"guide", try_guide, 40},
    {"unpatchify", try_unpatchify, 40},
    {"to_rgb", try_to_rgb, 60},
    {"transfer", try_transfer, 40},
    {"weights", try_weights, 80},
    {"damaged_weights", try_damaged_weights, 60},
};

enum { OPERATIONS = sizeof operations / sizeof *operations };

struct options {
    const char *backend, *only, *modules;
    uint64_t seed;
    int64_t tokens;
    int cases; /* of each operation; 0: as many as the table says */
    bool time;
};

static bool option_of(const char *argument, const char *name, const char **value)
{
    size_t length = strlen(name);

    *value = argument + length + 1;
    return strncmp(argument, name, length) == 0 && argument[length] == '=';
}

static bool read_options(struct options *options, int argc, char **argv)
{
    const char *value = getenv("FLUXFS_SEED");

    *options = (struct options){.seed = 1, .tokens = 256};
    if (value != NULL)
        options->seed = strtoull(value, NULL, 10);
    if (argc < 2)
        return false;
    options->backend = argv[1];
    for (int i = 2; i < argc; i++) {
        if (option_of(argv[i], "seed", &value))
            options->seed = strtoull(value, NULL, 10);
        else if (option_of(argv[i], "cases", &value))
            options->cases = (int)strtol(value, NULL, 10);
        else if (option_of(argv[i], "tokens", &value))
            options->tokens = strtoll(value, NULL, 10);
        else if (option_of(argv[i], "only", &value))
            options->only = value;
        else if (option_of(argv[i], "modules", &value))
            options->modules = value;
        else if (strcmp(argv[i], "time") == 0)
            options->time = true;
        else
            return false;
    }
    return true;
}

static void try_operation(struct rig *rig, int which, int cases)
{
    int before = rig->failures;

    rig->worst = 0;
    for (int number = 0; number < cases && rig->failures - before < FAILURES_SHOWN; number++) {
        int failures = rig->failures;

        rig_begin(rig, operations[which].name, (uint64_t)number);
        operations[which].try(rig);
        if (rig->failures > failures)
            fprintf(stderr, "  case %d of seed %" PRIu64 "\n", number, rig->seed);
    }
    printf("  %-16s %4d cases, error at most %.2f of the tolerance%s\n", operations[which].name,
           cases, rig->worst, rig->failures > before ? " FAILED" : "");
}

/* With `threads` of the CPU; other back ends know none. */
static int run(const struct options *options, int threads)
{
    struct rig rig;
    struct error err = {0};
    int result = rig_open(&rig, options->backend, threads, options->modules, &err);
    bool passed;

    if (result != 0) {
        fprintf(stderr, "%s\n", err.text);
        return result == -ENOENT || result == -ENODEV || result == -ENOTSUP ? SKIPPED
                                                                            : EXIT_FAILURE;
    }
    rig.seed = options->seed;
    rig.only = options->only;
    printf("%s (%s), seed %" PRIu64 "\n", rig.backend->name, rig.backend->device_name, rig.seed);
    if (options->time)
        time_operations(&rig, options->tokens);
    for (int i = 0; i < OPERATIONS && !options->time; i++)
        if (options->only == NULL || strcmp(options->only, operations[i].name) == 0)
            try_operation(&rig, i, options->cases > 0 ? options->cases : operations[i].cases);
    if (!options->time)
        printf("%d checks, %d failed\n", rig.checks, rig.failures);
    passed = rig.failures == 0 && (rig.checks > 0 || options->time);
    rig_close(&rig);
    return passed ? EXIT_SUCCESS : EXIT_FAILURE;
}

int main(int argc, char **argv)
{
    struct options options;
    int result;

    if (!read_options(&options, argc, argv)) {
        fprintf(stderr,
                "usage: %s BACKEND [time] [seed=N] [cases=N] [tokens=N] [only=OPERATION] "
                "[modules=FOLDER]\n",
                argv[0]);
        return EXIT_FAILURE;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (options.time || strcmp(options.backend, "cpu") != 0)
        return run(&options, strncmp(options.backend, "cpu", 3) == 0 ? 2 : 0);
    result = run(&options, 1);
    for (int threads = 2; threads <= 3; threads++)
        if (run(&options, threads) != EXIT_SUCCESS)
            result = EXIT_FAILURE;
    return result;
}
