/* SPDX-License-Identifier: MIT */
/*
 * Offload changes no pixel: the same picture under every budget, whatever else happens meanwhile.
 * usage: budget MODEL [card]
 */
#include <errno.h>
#include <string.h>

#include "engine/pipeline.h"
#include "tests/test.h"

static struct error err;
static const struct image_request request = {.prompt = "a large red circle on a white background",
                                             .width_px = 64,
                                             .height_px = 48,
                                             .steps = 4,
                                             .guidance = 3.5f,
                                             .cfg_scale = 1,
                                             .seed = 5};

static size_t picture_bytes(const struct image_request *r)
{
    return (size_t)r->width_px * (size_t)r->height_px * 3;
}

static int threads = 2;
static bool card; /* the device is taken for one with memory of its own: modulations may spill */
static uint64_t most_spilled;

static int try_open(const char *model, uint64_t budget, struct engine **engine)
{
    struct engine_options options = {
        .model_path = model, .backend = "cpu", .threads = threads, .vram_budget_bytes = budget};
    int result = engine_open(engine, &options, &err);

    if (result == 0)
        (*engine)->backend->host = !card;
    return result;
}

static struct engine *open_engine(const char *model, uint64_t budget)
{
    struct engine *engine;

    if (try_open(model, budget, &engine) != 0) {
        fprintf(stderr, "%s\n", err.text);
        exit(EXIT_FAILURE);
    }
    return engine;
}

static void expect_within_budget(struct engine *engine)
{
    struct engine_memory memory;

    engine_memory(engine, &memory);
    EXPECT(memory.peak_reserved <= memory.budget, "%.1f of %.1f MB", memory.peak_reserved / 1e6,
           memory.budget / 1e6);
    EXPECT(memory.spilled_bytes == 0);
}

/* Watches one picture: the plan may change after the first step, by what it took; then it holds and
 * nothing is driven out. */
struct watch {
    struct engine *engine;
    uint64_t evictions, driven_out;
};

static void look(void *owner, struct image *image, const struct image_progress *progress)
{
    struct watch *watch = owner;
    struct engine_memory memory;

    engine_memory(watch->engine, &memory);
    if (progress->phase == IMAGE_DENOISE && progress->step > 2)
        watch->driven_out += memory.evictions - watch->evictions;
    watch->evictions = memory.evictions;
    most_spilled = memory.spilled_bytes > most_spilled ? memory.spilled_bytes : most_spilled;
}

/* The picture of `r`, to be freed, or NULL. */
static uint8_t *paint(struct engine *engine, const struct image_request *r)
{
    struct watch watch = {.engine = engine};
    struct image_observer observer = {&watch, look};
    struct image *image;
    uint8_t *pixels = NULL;

    if (image_start(&image, engine, r, &observer, &err) != 0)
        return NULL;
    while (image_phase(image) < IMAGE_DONE && engine_advance(engine, &err) == 0)
        ;
    if (image_phase(image) == IMAGE_DONE) {
        pixels = malloc(picture_bytes(r));
        memcpy(pixels, image_pixels(image), picture_bytes(r));
    }
    EXPECT(watch.driven_out == 0, "%llu blocks were driven out in steps",
           (unsigned long long)watch.driven_out);
    image_error(image, &err);
    image_finish(image);
    return pixels;
}

static bool same(const struct image_request *r, const uint8_t *pixels, const uint8_t *expected)
{
    return pixels != NULL && memcmp(pixels, expected, picture_bytes(r)) == 0;
}

/* The budget that a refusal says would do. */
static uint64_t named_budget(const char *refusal)
{
    const char *end = strstr(refusal, " MiB at least");

    while (end != NULL && end > refusal && end[-1] != ' ')
        end--;
    return end != NULL ? (uint64_t)(strtod(end, NULL) * 1048576) : 0;
}

/* The same picture with so much memory, activations included. */
static void test_budget(const char *model, const struct image_request *r, const uint8_t *expected,
                        uint64_t budget)
{
    struct engine *engine = open_engine(model, budget);
    struct engine_memory memory;
    uint8_t *pixels = paint(engine, r);

    engine_memory(engine, &memory);
    printf("%dx%d in %6.2f MB: %llu transformer blocks stay, %llu pass, peak %.2f MB, %llu "
           "evictions\n",
           r->width_px, r->height_px, (double)budget / 1e6,
           (unsigned long long)memory.resident_blocks, (unsigned long long)memory.streamed_blocks,
           (double)memory.peak_reserved / 1e6, (unsigned long long)memory.evictions);
    EXPECT(same(r, pixels, expected), "%.2f MB: %s", (double)budget / 1e6,
           pixels == NULL ? err.text : "other pixels");
    expect_within_budget(engine);
    free(pixels);
    engine_close(engine);
}

static uint64_t page_bytes(struct engine *engine)
{
    struct engine_memory memory;

    engine_memory(engine, &memory);
    return memory.page_bytes;
}

/* The smallest budget that an engine opens with: a page less is refused, and names it. */
static uint64_t test_smallest(const char *model)
{
    struct image_request smallest = {
        .prompt = "x", .width_px = 16, .height_px = 16, .steps = 1, .cfg_scale = 1};
    struct engine *engine = NULL;
    uint64_t least, page;
    uint8_t *pixels;

    EXPECT(try_open(model, 1000000, &engine) == -EINVAL, "a budget of 1 MB");
    least = named_budget(err.text);
    engine = open_engine(model, least);
    page = page_bytes(engine);
    pixels = paint(engine, &smallest);
    EXPECT(pixels != NULL, "%s", err.text);
    expect_within_budget(engine);
    EXPECT(engine_set_budget(engine, least - page, &err) == -EINVAL &&
           named_budget(err.text) == least);
    free(pixels);
    engine_close(engine);
    EXPECT(try_open(model, least - page, &engine) == -EINVAL && named_budget(err.text) == least);
    return least;
}

/* The same for one picture. */
static uint64_t test_least(const char *model, const struct image_request *r,
                           const uint8_t *expected, uint64_t smallest)
{
    uint64_t least;
    struct engine *engine = open_engine(model, smallest);

    EXPECT(engine_check(engine, r, &err) == -ENOMEM);
    least = named_budget(err.text);
    EXPECT(least > smallest && engine_set_budget(engine, least, &err) == 0 &&
               engine_check(engine, r, &err) == 0,
           "%s", err.text);
    EXPECT(engine_set_budget(engine, least - page_bytes(engine), &err) == 0 &&
           engine_check(engine, r, &err) == -ENOMEM && named_budget(err.text) == least);
    engine_close(engine);
    test_budget(model, r, expected, least);
    return least;
}

/* From `least` to a budget in which everything stays, and with 40 % of the weights. */
static void test_budgets(const char *model, const struct image_request *r, const uint8_t *expected,
                         uint64_t least, int steps)
{
    struct engine *engine = open_engine(model, 0);
    uint64_t weights = engine_info(engine)->weight_bytes, most;
    uint8_t *pixels = paint(engine, r);
    struct engine_memory memory;

    engine_memory(engine, &memory);
    EXPECT(same(r, pixels, expected) && memory.streamed_blocks == 0, "%s", err.text);
    engine_close(engine);
    free(pixels);
    most = weights + memory.component[MEMORY_ACTIVATIONS];
    for (int i = 1; i <= steps; i++)
        test_budget(model, r, expected, least + (most - least) * (uint64_t)i / (uint64_t)steps);
    printf("%dx%d: the least is %.1f %% of the weights\n", r->width_px, r->height_px,
           100 * (double)least / (double)weights);
    EXPECT(least <= weights * 2 / 5, "40 %% of the weights are %.2f MB, the least is %.2f",
           (double)weights * 0.4e-6, (double)least * 1e-6);
    test_budget(model, r, expected, weights * 2 / 5);
}

/* The picture that an engine without a limit paints. */
static uint8_t *paint_freely(const char *model, const struct image_request *r)
{
    struct engine *engine = open_engine(model, 0);
    uint8_t *pixels = paint(engine, r);

    if (!EXPECT(pixels != NULL, "%s", err.text))
        exit(test_finish());
    expect_within_budget(engine);
    engine_close(engine);
    return pixels;
}

/* Halves and doubles the budget every few blocks. */
struct shaker {
    struct engine *engine;
    uint64_t least, most;
    int calls;
};

static void shake(void *owner, struct image *image, const struct image_progress *progress)
{
    struct shaker *shaker = owner;
    struct error ignored;

    if (++shaker->calls % 3 == 0)
        engine_set_budget(shaker->engine, shaker->calls % 2 != 0 ? shaker->least : shaker->most,
                          &ignored);
}

static void test_changing_budget(const char *model, const uint8_t *expected, uint64_t least)
{
    struct engine *engine = open_engine(model, least);
    struct shaker shaker = {engine, least, least + engine_info(engine)->weight_bytes, 0};
    struct image_observer observer = {&shaker, shake};
    struct image *image;

    EXPECT(image_start(&image, engine, &request, &observer, &err) == 0);
    while (image_phase(image) < IMAGE_DONE && engine_advance(engine, &err) == 0)
        ;
    EXPECT(image_phase(image) == IMAGE_DONE && same(&request, image_pixels(image), expected),
           "changing budget: %s", err.text);
    EXPECT(shaker.calls > 20);
    image_finish(image);
    engine_close(engine);
}

/* ---- a budget lowered while a picture is decoded ---- */

static struct page_source_ops slow_ops;

/* Work that is queued is done when somebody waits for it, no sooner, as on a busy card. */
static int fence_not_yet(struct page_source *source, page_fence fence)
{
    return 0;
}

struct decoder {
    struct engine *engine;
    uint64_t budget;
    int blocks, over; /* since that budget is in force */
};

static void lower_decoding(void *owner, struct image *image, const struct image_progress *progress)
{
    struct decoder *decoder = owner;
    struct engine_memory memory;

    engine_memory(decoder->engine, &memory);
    if (progress->phase == IMAGE_DECODE && progress->block == 2)
        engine_set_budget(decoder->engine, decoder->budget, &err);
    decoder->blocks += memory.budget == decoder->budget;
    decoder->over += memory.budget == decoder->budget && memory.reserved > memory.budget;
}

/* The workspace of the whole picture is more than the new budget; strips have room, and what they
 * don't need is given back before they begin. */
static void test_lowered_decoding(const char *model, const struct image_request *r,
                                  const uint8_t *expected)
{
    struct decoder decoder = {.engine = open_engine(model, 0)};
    struct image_observer observer = {&decoder, lower_decoding};
    struct page_source *pages = decoder.engine->backend->pages;
    struct image *image;

    slow_ops = *pages->ops;
    slow_ops.fence_query = fence_not_yet;
    pages->ops = &slow_ops;
    EXPECT(image_start(&image, decoder.engine, r, &observer, &err) == 0, "%s", err.text);
    decoder.budget = image_budget(image);
    while (image_active(image) && engine_advance(decoder.engine, &err) == 0)
        ;
    EXPECT(image_phase(image) == IMAGE_DONE && same(r, image_pixels(image), expected), "%s",
           image->error.text);
    EXPECT(decoder.blocks > 5 && decoder.over == 0, "%d of %d blocks", decoder.over,
           decoder.blocks);
    image_finish(image);
    engine_close(decoder.engine);
}

/* The timeline is there for figures only: without it nothing is marked, and all else is the same.
 */
static void test_timeline_off(const char *model, const uint8_t *expected, uint64_t budget)
{
    struct engine *engine = open_engine(model, budget);
    const struct timeline *timeline = &engine->timeline;

    for (int i = 0; i < 4; i++) {
        uint64_t marks = timeline->marks;
        struct timeline_sums sums = timeline->sums;
        uint8_t *pixels;

        engine->timeline.off = i % 2 == 0;
        pixels = paint(engine, &request);
        EXPECT(same(&request, pixels, expected), "picture %d: %s", i, err.text);
        EXPECT((timeline->marks == marks) == timeline->off);
        EXPECT((timeline->sums.compute_s == sums.compute_s) == timeline->off);
        EXPECT((timeline->sums.copy_s == sums.copy_s) == timeline->off);
        free(pixels);
    }
    engine_close(engine);
}

/* Whether less than half of what the text takes counts as computing. The noise of a large picture,
 * which is drawn beside it, takes longer than the text itself, but the device no time. */
static bool text_computes_less(struct engine *engine, const char *prompt)
{
    struct image_request large = request;
    struct image *image;
    struct image_timing timing = {0};

    large.prompt = prompt;
    large.width_px = large.height_px = 2048;
    if (!EXPECT(image_start(&image, engine, &large, NULL, &err) == 0, "%s", err.text))
        return false;
    EXPECT(engine_advance(engine, &err) == 0 && image->kept != NULL);
    image_timing(image, &timing);
    image_finish(image);
    return timing.compute_s < timing.text_s / 2;
}

static void test_noise_is_no_computing(struct engine *engine)
{
    bool less = false;

    for (int i = 0; i < 5 && !less; i++) { /* where others take the processor */
        char prompt[32];

        snprintf(prompt, sizeof prompt, "circle %d", i);
        less = text_computes_less(engine, prompt);
    }
    EXPECT(less, "drawing noise counts as computing with the text");
}

/* An idle engine keeps weights alone, and a budget set then takes effect without a picture. */
static void test_idle(struct engine *engine)
{
    struct engine_memory busy, idle;

    engine_memory(engine, &busy);
    EXPECT(engine_advance(engine, &err) == 0);
    engine_memory(engine, &idle);
    EXPECT(idle.allocated < busy.allocated && idle.component[MEMORY_ACTIVATIONS] == 0);
    EXPECT(engine_set_budget(engine, 40000000, &err) == 0 && engine_advance(engine, &err) == 0);
    engine_memory(engine, &idle);
    EXPECT(idle.budget == 40000000 && idle.reserved <= idle.budget);
}

static void test_refusals(struct engine *engine)
{
    struct image_request bad = request;

    bad.width_px = 100;
    EXPECT(engine_check(engine, &bad, &err) == -EINVAL && strstr(err.text, "multiples of 16"));
    bad = request;
    bad.steps = 0;
    EXPECT(engine_check(engine, &bad, &err) == -EINVAL);
    bad = request;
    bad.guidance = (float)(0.0 / 0.0 * 1.0);
    EXPECT(engine_check(engine, &bad, &err) == -EINVAL);
    bad = request;
    bad.seed = UINT64_C(1) << 63;
    EXPECT(engine_check(engine, &bad, &err) == -EINVAL);
    bad = request;
    bad.width_px = bad.height_px = 4096;
    EXPECT(engine_set_budget(engine, 100000000, &err) == 0);
    EXPECT(engine_check(engine, &bad, &err) == -ENOMEM && strstr(err.text, "vram_budget"), "%s",
           err.text);
    EXPECT(engine_set_budget(engine, 1000, &err) == -EINVAL && strstr(err.text, "least"));
}

/* How the work is shared out changes no pixel either. */
static void test_threads(const char *model, const struct image_request *r, const uint8_t *expected)
{
    static const int counts[] = {1, 3, 5};

    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        uint8_t *pixels;

        threads = counts[i];
        pixels = paint_freely(model, r);
        EXPECT(same(r, pixels, expected), "%d threads: other pixels", threads);
        free(pixels);
    }
    threads = 2;
}

int main(int argc, char **argv)
{
    struct image_request full = request;
    struct engine *engine;
    uint8_t *expected, *expected_full;
    uint64_t smallest, least;

    if (argc < 2)
        return EXIT_FAILURE;
    card = argc > 2 && strcmp(argv[2], "card") == 0;
    expected = paint_freely(argv[1], &request);
    full.width_px = full.height_px = 256;
    expected_full = paint_freely(argv[1], &full);
    test_threads(argv[1], &full, expected_full);
    engine = open_engine(argv[1], 0);
    free(paint(engine, &request));
    test_noise_is_no_computing(engine);
    test_idle(engine);
    test_refusals(engine);
    engine_close(engine);
    smallest = test_smallest(argv[1]);
    least = test_least(argv[1], &request, expected, smallest);
    EXPECT(least <= 9100000, "%.2f MB", (double)least * 1e-6);
    test_budgets(argv[1], &request, expected, least, 8);
    test_changing_budget(argv[1], expected, least);
    test_timeline_off(argv[1], expected, least);
    least = test_least(argv[1], &full, expected_full, smallest);
    EXPECT(least <= 16400000, "%.2f MB", (double)least * 1e-6);
    test_budgets(argv[1], &full, expected_full, least, 3);
    test_lowered_decoding(argv[1], &full, expected_full);
    EXPECT((most_spilled > 0) == card, "%llu bytes spilled", (unsigned long long)most_spilled);
    free(expected);
    free(expected_full);
    return test_finish();
}
