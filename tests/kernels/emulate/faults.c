/* SPDX-License-Identifier: MIT */
/*
 * What can be wrong with a device, on the emulated one: each in one clear line, and nothing hangs
 * or crashes.
 * usage: faults MODULE_FOLDER MODEL
 */
#include <errno.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/card.h"
#include "engine/engine.h"
#include "tests/test.h"

enum { REFUSED = 10, FAILED, PAINTED, BROKEN };

static const char *modules, *model;
static uint64_t budget; /* bytes; 0: automatic */

static bool one_line(const struct error *err)
{
    return err->code < 0 && err->text[0] != '\0' && strchr(err->text, '\n') == NULL;
}

/* Paints a small picture on a device of that kind, in a process of its own, whose device is new.
 * `text` gets the error. */
static int paint(const char *device, char *text, size_t text_bytes)
{
    const struct image_request request = {.prompt = "a small blue star",
                                          .width_px = 48,
                                          .height_px = 32,
                                          .steps = 2,
                                          .guidance = 3.5f,
                                          .cfg_scale = 1,
                                          .seed = 5};
    struct engine_options options = {
        .model_path = model, .backend = "cuda", .module_dir = modules, .vram_budget_bytes = budget};
    struct error err = {0}, why = {0};
    struct engine *engine;
    struct image *image;
    int result;

    setenv("FLUXFS_EMULATE", device, 1);
    if (engine_open(&engine, &options, &err) != 0) {
        snprintf(text, text_bytes, "%s", err.text);
        return one_line(&err) ? REFUSED : BROKEN;
    }
    if (image_start(&image, engine, &request, NULL, &err) != 0)
        return BROKEN;
    while (image_phase(image) < IMAGE_DONE)
        engine_advance(engine, &err);
    result = image_phase(image) == IMAGE_DONE ? PAINTED : FAILED;
    if (result == FAILED) {
        image_error(image, &why);
        snprintf(text, text_bytes, "%s", why.text);
        result = one_line(&why) ? FAILED : BROKEN;
    }
    image_finish(image);
    engine_close(engine);
    /* A device that was lost while it computed serves the next engine. */
    if (result == FAILED && strstr(device, "lost=") != NULL) {
        if (engine_open(&engine, &options, &err) != 0)
            return BROKEN;
        engine_close(engine);
    }
    return result;
}

static int paint_apart(const char *device, char *text, size_t text_bytes)
{
    int pipe_ends[2], status = 0;
    ssize_t got;
    pid_t child;

    if (pipe(pipe_ends) != 0 || (child = fork()) < 0)
        return BROKEN;
    if (child == 0) {
        alarm(600);
        int result = paint(device, text, text_bytes);
        if (write(pipe_ends[1], text, strlen(text)) < 0)
            result = BROKEN;
        _exit(result);
    }
    close(pipe_ends[1]);
    got = read(pipe_ends[0], text, text_bytes - 1);
    text[got > 0 ? got : 0] = '\0';
    close(pipe_ends[0]);
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : BROKEN;
}

static void test_refusals(void)
{
    static const struct {
        const char *device, *words;
        uint64_t budget_mib;
    } cases[] = {
        {"no-device", "no NVIDIA GPU is visible", 0},
        {"old-driver", "driver is older than CUDA", 0},
        {"old-card", "can't compute in bf16; 8.0 or higher is needed", 0},
        {"memory=128", "vram_budget", 0},
        {"lost=0", "unspecified launch failure", 0},
        {"memory=32", "no context on the first GPU: out of memory", 0},
        {"no-virtual-memory", "no virtual memory management", 0},
        {"memory=4096 others=3980", "to begin with: of its 4.00 GiB other programs leave", 1000},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[512] = "";
        int result;

        budget = cases[i].budget_mib << 20;
        result = paint_apart(cases[i].device, text, sizeof text);
        printf("%-12s %s\n", cases[i].device, text);
        EXPECT(result == REFUSED || (result == FAILED && i == 4), "%s: %d", cases[i].device,
               result);
        EXPECT(strstr(text, cases[i].words) != NULL, "%s: \"%s\"", cases[i].device, text);
    }
    budget = 0;
}

/* The device is lost at any moment of a picture. */
static void test_lost(void)
{
    int result = FAILED, runs = 0;

    for (int works = 1; result != PAINTED && works < 1000000; works += works / 3 + 1) {
        char device[32], text[512] = "";

        snprintf(device, sizeof device, "lost=%d", works);
        result = paint_apart(device, text, sizeof text);
        EXPECT(result == REFUSED || result == FAILED || result == PAINTED, "%s: %d, \"%s\"", device,
               result, text);
        EXPECT(result == PAINTED || strstr(text, "back end cuda: ") != NULL, "%s: \"%s\"", device,
               text);
        runs++;
    }
    EXPECT(result == PAINTED && runs > 10, "%d runs", runs);
}

/* ---- The context is part of the budget ---- */

struct watch {
    struct engine *engine;
    uint64_t blocks, over, most_used;
};

/* By the device's own count, all that is in use is ours. */
static void look(void *owner, struct image *image, const struct image_progress *progress)
{
    struct watch *watch = owner;
    struct engine_memory memory;
    uint64_t used;

    engine_memory(watch->engine, &memory);
    used = memory.device_total - memory.device_free;
    watch->blocks++;
    watch->over += used > memory.budget || memory.reserved > memory.budget;
    watch->most_used = used > watch->most_used ? used : watch->most_used;
}

static const struct image_request request = {.prompt = "a small blue star",
                                             .width_px = 48,
                                             .height_px = 32,
                                             .steps = 2,
                                             .guidance = 3.5f,
                                             .cfg_scale = 1};

static void test_budget_with_context(void)
{
    const uint64_t context = ((uint64_t)200 << 20) + CUDA_CODE_BYTES;
    struct engine_options options = {.model_path = model,
                                     .backend = "cuda",
                                     .module_dir = modules,
                                     .vram_budget_bytes = context};
    struct watch watch = {0};
    struct image_observer observer = {&watch, look};
    struct engine_memory memory;
    struct image *image = NULL;
    struct error err = {0};

    setenv("FLUXFS_EMULATE", "context=200", 1);
    EXPECT(engine_open(&watch.engine, &options, &err) == -EINVAL, "no room beside the context");
    options.vram_budget_bytes = (uint64_t)400 << 20;
    if (!EXPECT(engine_open(&watch.engine, &options, &err) == 0, "%s", err.text))
        return;
    engine_memory(watch.engine, &memory);
    EXPECT(memory.component[MEMORY_CONTEXT] == context, "%.1f MiB",
           (double)memory.component[MEMORY_CONTEXT] / (1 << 20));
    EXPECT(memory.reserved >= context && memory.budget == options.vram_budget_bytes);
    EXPECT(image_start(&image, watch.engine, &request, &observer, &err) == 0, "%s", err.text);
    while (image != NULL && image_phase(image) < IMAGE_DONE)
        engine_advance(watch.engine, &err);
    EXPECT(image != NULL && image_phase(image) == IMAGE_DONE, "%s", err.text);
    printf("%.1f of %.1f MiB in use at most\n", (double)watch.most_used / (1 << 20),
           (double)memory.budget / (1 << 20));
    EXPECT(watch.blocks > 10 && watch.over == 0 && watch.most_used > (uint64_t)200 << 20);
    EXPECT(engine_set_budget(watch.engine, context, &err) == -EINVAL);
    image_finish(image);
    engine_close(watch.engine);
}

/* What counts as the context's after a picture, in MiB. */
static uint64_t context_after(const char *device)
{
    struct engine_options options = {.model_path = model,
                                     .backend = "cuda",
                                     .module_dir = modules,
                                     .vram_budget_bytes = (uint64_t)4 << 30};
    struct engine_memory memory = {0};
    struct image *image = NULL;
    struct engine *engine;
    struct error err = {0};

    setenv("FLUXFS_EMULATE", device, 1);
    if (!EXPECT(engine_open(&engine, &options, &err) == 0, "%s", err.text))
        return 0;
    EXPECT(image_start(&image, engine, &request, NULL, &err) == 0, "%s", err.text);
    while (image != NULL && image_phase(image) < IMAGE_DONE)
        engine_advance(engine, &err);
    EXPECT(image != NULL && image_phase(image) == IMAGE_DONE, "%s", err.text);
    image_finish(image);
    engine_memory(engine, &memory);
    engine_close(engine);
    return memory.component[MEMORY_CONTEXT] >> 20;
}

/* The same after the libraries could not be opened at first, nor between two engines; 0 unless both
 * count the same. */
static uint64_t context_after_failures(const char *device)
{
    struct engine_options options = {.model_path = model, .backend = "cuda", .module_dir = modules};
    char unpinned[128];
    uint64_t mib[2];

    snprintf(unpinned, sizeof unpinned, "%s unpinned", device);
    for (int i = 0; i < 2; i++) {
        struct engine *engine;
        struct error err = {0};

        setenv("FLUXFS_EMULATE", unpinned, 1);
        EXPECT(engine_open(&engine, &options, &err) == -ENOMEM, "%s", err.text);
        mib[i] = context_after(device);
    }
    return mib[0] == mib[1] ? mib[0] : 0;
}

/* One of these in a process of its own, whose device is new; 0 if anything failed. */
static uint64_t apart(uint64_t (*count)(const char *device), const char *device)
{
    uint64_t mib = 0;
    int pipe_ends[2];
    pid_t child;

    if (!EXPECT(pipe(pipe_ends) == 0))
        return 0;
    child = fork();
    if (child == 0) {
        mib = count(device);
        _exit(write(pipe_ends[1], &mib, sizeof mib) != sizeof mib);
    }
    close(pipe_ends[1]);
    EXPECT(read(pipe_ends[0], &mib, sizeof mib) == sizeof mib);
    close(pipe_ends[0]);
    waitpid(child, NULL, 0);
    return mib;
}

/* What libraries take at the first use of each plan is ours, whatever others do meanwhile. */
static void test_growth_in_company(void)
{
    uint64_t alone = apart(context_after, "context=200 grows=8");
    uint64_t swinging = apart(context_after, "context=200 grows=8 others=100 swings=300");

    printf("a context of 200 MiB grew to %llu\n", (unsigned long long)alone);
    EXPECT(alone > 200 + 2 * (CUDA_CODE_BYTES >> 20) && alone < 1000);
    EXPECT(swinging == alone, "%llu MiB, alone %llu", (unsigned long long)swinging,
           (unsigned long long)alone);
}

/* The smallest budget that a refusal names, in MiB. */
static uint64_t smallest_named(void)
{
    struct engine_options options = {.model_path = model,
                                     .backend = "cuda",
                                     .module_dir = modules,
                                     .vram_budget_bytes = (uint64_t)1 << 20};
    struct engine *engine;
    struct error err = {0};
    const char *at;
    double mib = 0;

    if (!EXPECT(engine_open(&engine, &options, &err) == -EINVAL, "opened within 1 MiB"))
        return 0;
    at = strstr(err.text, "takes ");
    EXPECT(at != NULL && sscanf(at, "takes %lf MiB at least", &mib) == 1, "%s", err.text);
    return (uint64_t)mib;
}

/* A context outlives its engine; the next one counts it as what it cost and has grown to since. */
static void test_context_again(void)
{
    const char *company = "context=200 others=4000", *growing = "context=200 others=4000 grows=1";
    const uint64_t context = 200 + (CUDA_CODE_BYTES >> 20);
    uint64_t named, grown;

    setenv("FLUXFS_EMULATE", company, 1);
    named = smallest_named();
    EXPECT(named > context && named < 400, "%llu MiB", (unsigned long long)named);
    EXPECT(smallest_named() == named, "after a refusal");
    EXPECT(context_after(company) == context && smallest_named() == named, "after a picture");
    grown = context_after(growing) - context;
    EXPECT(grown > 0 && grown < 300, "%llu MiB", (unsigned long long)grown);
    EXPECT(smallest_named() == named + grown, "%llu MiB, and it has grown by %llu",
           (unsigned long long)smallest_named(), (unsigned long long)grown);
}

/* A model that can't be read is told before anything is asked of the device. */
static void test_model_first(void)
{
    struct engine_options options = {
        .model_path = "/nowhere", .backend = "cuda", .module_dir = modules};
    struct engine *engine;
    struct error err;

    setenv("FLUXFS_EMULATE", "no-device", 1);
    EXPECT(engine_open(&engine, &options, &err) == -ENOENT && strstr(err.text, "/nowhere") != NULL,
           "%s", err.text);
}

/* Kernels for another card are tried, and the device's name says so. */
static void test_lesser_card(void)
{
    static const struct {
        const char *capability, *name;
    } cases[] = {{"86", "taken for one of 8.6"}, {"75", "GiB"}, {"90", "GiB"}, {"x", "GiB"}};
    struct engine_options options = {.model_path = model, .backend = "cuda", .module_dir = modules};

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t length = strlen(cases[i].name), name_length;
        struct engine *engine;
        struct error err;

        setenv("FLUXFS_EMULATE", "", 1);
        setenv("FLUXFS_CAPABILITY", cases[i].capability, 1);
        if (!EXPECT(engine_open(&engine, &options, &err) == 0, "%s", err.text))
            continue;
        name_length = strlen(engine_info(engine)->device_name);
        EXPECT(name_length > length &&
                   strcmp(engine_info(engine)->device_name + name_length - length, cases[i].name) ==
                       0,
               "%s: %s", cases[i].capability, engine_info(engine)->device_name);
        engine_close(engine);
    }
    unsetenv("FLUXFS_CAPABILITY");
}

/* What was measured of products stays, as they are the card's own. */
static void test_lesser_card_keeps_products(void)
{
    char folder[] = "/tmp/fluxfs-products-XXXXXX", path[64], first[2][256] = {"", ""};

    if (!EXPECT(mkdtemp(folder) != NULL))
        return;
    setenv("CACHE_DIRECTORY", folder, 1);
    snprintf(path, sizeof path, "%s/cuda-products", folder);
    for (int lesser = 0; lesser < 2; lesser++) {
        FILE *file;

        if (lesser)
            setenv("FLUXFS_CAPABILITY", "86", 1);
        apart(context_after, "");
        file = fopen(path, "re");
        if (EXPECT(file != NULL, "%s: nothing was measured", path)) {
            EXPECT(fgets(first[lesser], sizeof first[lesser], file) != NULL);
            fclose(file);
        }
    }
    EXPECT(strcmp(first[0], first[1]) == 0, "%sand now %s", first[0], first[1]);
    unsetenv("FLUXFS_CAPABILITY");
    unsetenv("CACHE_DIRECTORY");
    unlink(path);
    rmdir(folder);
}

/* What libraries take counts once, also where they were not open when the context was made. */
static void test_context_started(void)
{
    static const char *const devices[] = {"context=200 started=100 others=4000",
                                          "context=200 started=100 others=4000 no-processes"};

    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++) {
        uint64_t whole = apart(context_after, devices[i]);
        uint64_t late = apart(context_after_failures, devices[i]);

        EXPECT(whole == 300 + (CUDA_OWN_CODE_BYTES >> 20), "%s: %llu MiB", devices[i],
               (unsigned long long)whole);
        EXPECT(late == whole, "%s: %llu MiB, %llu at once", devices[i], (unsigned long long)late,
               (unsigned long long)whole);
    }
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return test_skip("usage: faults MODULE_FOLDER MODEL");
    modules = argv[1];
    model = argv[2];
    test_refusals();
    test_lost();
    test_growth_in_company();
    test_context_started();
    /* From here on the device has been used by this process, and is new in none that it forks. */
    test_budget_with_context();
    test_context_again();
    test_model_first();
    test_lesser_card();
    test_lesser_card_keeps_products();
    return test_finish();
}
