/* SPDX-License-Identifier: MIT */
/*
 * Writes a checkpoint of random weights in the diffusers layout, of the shapes that the config.json
 * files of a folder give, so that speed and memory can be measured at full size.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "engine/file.h"
#include "tests/bench/weight_list.h"
#include "tests/bench/weight_writer.h"

enum {
    COMPONENTS = 4,
    CONFIG_LIMIT_BYTES = 1 << 20,
    TOKENIZER_LIMIT_BYTES = 64 << 20,
};

static const struct {
    const char *name, *stem;
} components[COMPONENTS] = {
    {"text_encoder", "model"},
    {"text_encoder_2", "model"},
    {"transformer", "diffusion_pytorch_model"},
    {"vae", "diffusion_pytorch_model"},
};

struct options {
    const char *out;
    char like[PATH_MAX];    /* the folder of the configs */
    const char *tokenizers; /* NULL: those of `like`, if it has any */
    bool without[COMPONENTS];
    bool list;   /* only print what would be written */
    bool hollow; /* no values */
    uint64_t seed, shard_bytes;
    int threads;
};

static const char usage[] =
    "usage: synthetic-checkpoint OUT [--like flux1-dev|flux1-schnell|mini|FOLDER] [--seed N]\n"
    "           [--without COMPONENT]… [--tokenizers FOLDER] [--shard-mb N] [--threads N]\n"
    "           [--hollow]\n"
    "       synthetic-checkpoint --list [--like …] [--without COMPONENT]…\n"
    "Writes random bf16 weights in the diffusers layout to OUT, which must not exist or be empty.\n"
    "  --like        shapes and configs: a checkpoint's folder (its weights are not read)\n"
    "  --without     leaves out text_encoder, text_encoder_2, transformer or vae\n"
    "  --tokenizers  where vocab.json, merges.txt, spiece.model are, or the folders tokenizer and\n"
    "                tokenizer_2 that have them\n"
    "  --shard-mb    the largest weight file, in 10⁶ bytes (10000)\n"
    "  --hollow      no values: files of the right length that read as zeros and take no disk\n"
    "  --list        prints each tensor's shape, and the number of parameters\n";

static int path_join(char path[PATH_MAX], const char *folder, const char *name, struct error *err)
{
    int length = snprintf(path, PATH_MAX, "%s/%s", folder, name);
    if (length < 0 || length >= PATH_MAX)
        return error_set(err, ENAMETOOLONG, "%s/%s: too long a path", file_label(folder), name);
    return 0;
}

/* ---- Options ---- */

static int parse_number(uint64_t *value, const char *option, const char *text, uint64_t min,
                        uint64_t max, struct error *err)
{
    char *end;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || *text == '-' || number < min || number > max)
        return error_set(err, EINVAL, "--%s: %s is no number from %" PRIu64 " to %" PRIu64, option,
                         text, min, max);
    *value = number;
    return 0;
}

static int parse_without(struct options *options, const char *name, struct error *err)
{
    for (int i = 0; i < COMPONENTS; i++) {
        if (strcmp(components[i].name, name) == 0) {
            options->without[i] = true;
            return 0;
        }
    }
    return error_set(err, EINVAL, "--without: no component is called %s", name);
}

static int parse_like(struct options *options, const char *name, struct error *err)
{
    if (strcmp(name, "mini") == 0)
        return path_join(options->like, SYNTHETIC_MINI, ".", err);
    if (strcmp(name, "flux1-dev") == 0 || strcmp(name, "flux1-schnell") == 0)
        return path_join(options->like, SYNTHETIC_CONFIGS, name, err);
    return path_join(options->like, name, ".", err);
}

static int parse_option(struct options *options, const char *name, const char *value,
                        struct error *err)
{
    uint64_t number = 0;
    int code;
    if (strcmp(name, "like") == 0)
        return parse_like(options, value, err);
    if (strcmp(name, "without") == 0)
        return parse_without(options, value, err);
    if (strcmp(name, "seed") == 0)
        return parse_number(&options->seed, name, value, 0, UINT64_MAX, err);
    if (strcmp(name, "shard-mb") == 0) {
        code = parse_number(&number, name, value, 1, 1000000, err);
        if (code == 0)
            options->shard_bytes = number * 1000000;
        return code;
    }
    if (strcmp(name, "threads") == 0) {
        code = parse_number(&number, name, value, 1, 256, err);
        if (code == 0)
            options->threads = (int)number;
        return code;
    }
    if (strcmp(name, "tokenizers") == 0)
        options->tokenizers = value;
    else if (strcmp(name, "hollow") == 0)
        options->hollow = true;
    else
        options->list = true;
    return 0;
}

static int parse_options(struct options *options, int argc, char **argv, struct error *err)
{
    static const struct option words[] = {
        {"like", required_argument, NULL, 'o'},
        {"seed", required_argument, NULL, 'o'},
        {"without", required_argument, NULL, 'o'},
        {"shard-mb", required_argument, NULL, 'o'},
        {"tokenizers", required_argument, NULL, 'o'},
        {"threads", required_argument, NULL, 'o'},
        {"list", no_argument, NULL, 'o'},
        {"hollow", no_argument, NULL, 'o'},
        {0},
    };
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    *options = (struct options){.shard_bytes = UINT64_C(10000000000), .threads = 1};
    if (cores > 1)
        options->threads = cores > 256 ? 256 : (int)cores;
    int code = parse_like(options, "flux1-dev", err), which, option;
    while (code == 0 && (option = getopt_long(argc, argv, "", words, &which)) != -1)
        code = option == 'o' ? parse_option(options, words[which].name, optarg, err)
                             : error_set(err, EINVAL, "bad options");
    if (code == 0 && argc - optind != (options->list ? 0 : 1))
        code = error_set(err, EINVAL, options->list ? "--list takes no OUT" : "one OUT is needed");
    if (code == 0)
        options->out = argv[optind];
    return code;
}

/* ---- Small files ---- */

static int make_folder(const char *path, struct error *err)
{
    if (mkdir(path, 0777) != 0 && errno != EEXIST)
        return error_set(err, errno, "%s: %s", file_label(path), strerror(errno));
    return 0;
}

/* Copies FROM/NAME to OUT/TO if there is such a file. */
static int copy_file(const char *from, const char *name, const struct options *options,
                     const char *to, struct error *err)
{
    char source[PATH_MAX], target[PATH_MAX];
    struct file_map map;
    int code = path_join(source, from, name, err);
    if (code == 0)
        code = path_join(target, options->out, to, err);
    if (code != 0 || access(source, F_OK) != 0)
        return code;
    code = file_map_open(&map, source, TOKENIZER_LIMIT_BYTES, err);
    if (code != 0)
        return code;
    FILE *out = fopen(target, "wbe");
    bool good = out != NULL && fwrite(map.data, 1, map.size_bytes, out) == map.size_bytes;
    if (out != NULL && fclose(out) != 0)
        good = false;
    if (!good)
        code = error_set(err, errno, "%s: %s", file_label(target), strerror(errno));
    file_map_close(&map);
    return code;
}

static int copy_tokenizers(const struct options *options, struct error *err)
{
    static const char *const files[] = {
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json",
        "tokenizer_2/spiece.model",
        "tokenizer_2/tokenizer.json",
        "tokenizer_2/tokenizer_config.json",
    };
    int code = 0;
    for (size_t i = 0; code == 0 && i < sizeof files / sizeof files[0]; i++) {
        code = copy_file(options->like, files[i], options, files[i], err);
        if (code != 0 || options->tokenizers == NULL)
            continue;
        code = copy_file(options->tokenizers, strchr(files[i], '/') + 1, options, files[i], err);
        if (code == 0)
            code = copy_file(options->tokenizers, files[i], options, files[i], err);
    }
    return code;
}

static int copy_configs(const struct options *options, struct error *err)
{
    static const char *const folders[] = {"", "scheduler", "tokenizer", "tokenizer_2"};
    char path[PATH_MAX];
    int code = 0;
    for (size_t i = 0; code == 0 && i < sizeof folders / sizeof folders[0]; i++) {
        code = path_join(path, options->out, folders[i], err);
        if (code == 0)
            code = make_folder(path, err);
    }
    if (code == 0)
        code = copy_file(options->like, "model_index.json", options, "model_index.json", err);
    if (code == 0)
        code = copy_file(options->like, "scheduler/scheduler_config.json", options,
                         "scheduler/scheduler_config.json", err);
    return code == 0 ? copy_tokenizers(options, err) : code;
}

/* ---- Components ---- */

static void print_list(const char *component, const struct weight_list *list)
{
    for (size_t i = 0; i < list->count; i++) {
        const struct weight *weight = &list->items[i];
        printf("%s %s", component, weight->name);
        for (int axis = 0; axis < weight->rank; axis++)
            printf("%s%" PRId64, axis == 0 ? " " : "x", weight->shape[axis]);
        putchar('\n');
    }
    printf("%s: %zu tensors, %" PRIu64 " parameters\n", component, list->count,
           weight_list_count(list));
}

static int write_component(const struct options *options, int number,
                           const struct weight_list *list, struct error *err)
{
    char folder[PATH_MAX], config[128];
    int code = path_join(folder, options->out, components[number].name, err);
    if (code == 0)
        code = make_folder(folder, err);
    snprintf(config, sizeof config, "%s/config.json", components[number].name);
    if (code == 0)
        code = copy_file(options->like, config, options, config, err);
    struct weight_files files = {
        .folder = folder,
        .stem = components[number].stem,
        .shard_bytes = options->shard_bytes,
        .seed = options->seed,
        .threads = options->threads,
        .hollow = options->hollow,
    };
    return code == 0 ? weight_list_write(list, &files, err) : code;
}

static int make_component(const struct options *options, int number, uint64_t *bytes,
                          struct error *err)
{
    char path[PATH_MAX], name[128];
    struct json_file *config = NULL;
    struct weight_list list = {0};
    snprintf(name, sizeof name, "%s/config.json", components[number].name);
    int code = path_join(path, options->like, name, err);
    if (code == 0)
        code = json_file_open(path, CONFIG_LIMIT_BYTES, &config, err);
    if (code == 0)
        code = weight_list_build(&list, components[number].name, config, err);
    if (code == 0 && options->list)
        print_list(components[number].name, &list);
    else if (code == 0)
        code = write_component(options, number, &list, err);
    *bytes += 2 * weight_list_count(&list);
    weight_list_finish(&list);
    json_file_close(config);
    return code;
}

/* Nothing is ever overwritten. */
static int check_out(const char *out, struct error *err)
{
    if (rmdir(out) != 0 && errno != ENOENT)
        return error_set(err, errno, "%s: %s; give a folder that is empty or doesn't exist", out,
                         strerror(errno));
    return 0;
}

int main(int argc, char **argv)
{
    struct options options;
    struct error err = {0};
    struct timespec start, end;
    uint64_t bytes = 0;
    clock_gettime(CLOCK_MONOTONIC, &start);
    int code = parse_options(&options, argc, argv, &err);
    if (code != 0)
        fputs(usage, stderr);
    if (code == 0 && !options.list)
        code = check_out(options.out, &err);
    if (code == 0 && !options.list)
        code = copy_configs(&options, &err);
    for (int i = 0; code == 0 && i < COMPONENTS; i++) {
        if (!options.without[i])
            code = make_component(&options, i, &bytes, &err);
    }
    if (code != 0) {
        fprintf(stderr, "synthetic-checkpoint: %s\n", err.text);
        return EXIT_FAILURE;
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    double seconds =
        (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) / 1e9;
    if (!options.list)
        printf("%s: %.2f GB in %.1f s\n", options.out, (double)bytes / 1e9, seconds);
    return EXIT_SUCCESS;
}
