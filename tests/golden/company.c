/* SPDX-License-Identifier: MIT */
/*
 * Several images at once: each is the same as one painted alone, and none fails for another's sake,
 * whatever becomes of the budget, or of the others.
 * usage: company MODEL [card]
 */
#include "tests/golden/company.h"

static int have_memory(const struct engine *engine)
{
    int count = 0;

    for (const struct image *image = engine->images; image != NULL; image = image->next)
        count += image->memory != 0;
    return count;
}

/* All at once, joining one after the other: with much memory they go in step, with little in turn.
 */
static void test_together(uint64_t budget, bool in_turn)
{
    struct engine *engine = open_engine(budget);
    struct image *images[COUNT];
    struct engine_memory memory;
    int most = 0, spilled = 0;

    for (int i = 0; i < COUNT; i++) {
        images[i] = start(engine, i, NULL);
        EXPECT(engine_advance(engine, &err) == 0);
    }
    for (int round = 0; round < 100; round++) {
        EXPECT(engine_advance(engine, &err) == 0, "%s", err.text);
        most = have_memory(engine) > most ? have_memory(engine) : most;
        engine_memory(engine, &memory);
        spilled += memory.spilled_bytes > 0;
    }
    EXPECT(memory.spilled_bytes == 0 && (spilled > 0) == (card && in_turn), "%d", spilled);
    EXPECT(in_turn ? most < COUNT - 1 : most >= 3, "%d at most had memory", most);
    for (int i = 0; i < COUNT; i++) {
        EXPECT(same(i, images[i]), "%d", i);
        image_finish(images[i]);
    }
    engine_close(engine);
}

/* ---- budgets that change ---- */

struct shaker {
    struct engine *engine;
    uint64_t budgets[3];
    int every, calls;
};

static void shake(void *owner, struct image *image, const struct image_progress *progress)
{
    struct shaker *shaker = owner;
    struct error ignored;

    if (++shaker->calls % shaker->every == 0)
        engine_set_budget(shaker->engine, shaker->budgets[shaker->calls / shaker->every % 3],
                          &ignored);
}

/* At any block the budget goes down to what one image alone needs, and up again. */
static void test_changing_budget(uint64_t least)
{
    for (int every = 2; every < 40; every = 3 * every + 1) {
        struct engine *engine = open_engine(0);
        struct shaker shaker = {engine, {least, 4 * least, least + 3000000}, every, 0};
        struct image_observer observer = {&shaker, shake};
        struct image *images[COUNT];
        struct engine_memory memory;

        for (int i = 0; i < COUNT; i++)
            images[i] = start(engine, i, &observer);
        EXPECT(run(engine) == 0, "%s", err.text);
        for (int i = 0; i < COUNT; i++) {
            EXPECT(same(i, images[i]), "every %d: %d: %s", every, i, images[i]->error.text);
            image_finish(images[i]);
        }
        engine_memory(engine, &memory);
        EXPECT(memory.reserved <= memory.budget);
        engine_close(engine);
    }
}

static const struct backend_ops *watched_ops;
static int64_t modulation_width;
static int whole_products, short_products;

enum { MANY_STEPS = 6 };

static void linear_watched(struct backend *backend, const struct linear *args)
{
    if (args->y.stride == modulation_width) {
        whole_products += args->y.rows == MANY_STEPS;
        short_products += args->y.rows != MANY_STEPS;
    }
    watched_ops->linear(backend, args);
}

/* Modulations are computed for all steps, also of an image that left the device on its way and
 * comes back: elsewhere than on a CPU a product of fewer rows may be rounded otherwise. */
static void test_modulations_again(uint64_t least, int every)
{
    struct engine *engine = open_engine(0);
    struct shaker shaker = {engine, {least, 4 * least, least + 3000000}, every, 0};
    struct image_observer observer = {&shaker, shake};
    struct image_request r = request_of(0);
    struct backend_ops ops = *engine->backend->ops;
    struct image *images[COUNT];

    watched_ops = engine->backend->ops;
    ops.linear = linear_watched;
    engine->backend->ops = &ops;
    modulation_width = engine->transformer.modulation_width;
    whole_products = short_products = 0;
    r.steps = MANY_STEPS;
    for (int i = 0; i < COUNT; i++)
        EXPECT(image_start(&images[i], engine, &r, &observer, &err) == 0);
    EXPECT(run(engine) == 0, "%s", err.text);
    for (int i = 0; i < COUNT; i++)
        image_finish(images[i]);
    EXPECT(short_products == 0 &&
               whole_products > COUNT * (int)engine->transformer.modulation_count,
           "%d and %d", short_products, whole_products);
    engine_close(engine);
}

struct miser {
    struct engine *engine;
    uint64_t budget;
};

static void lower(void *owner, struct image *image, const struct image_progress *progress)
{
    struct miser *miser = owner;
    struct error ignored;

    if (progress->phase == IMAGE_DENOISE && progress->step == 2)
        engine_set_budget(miser->engine, miser->budget, &ignored);
}

/* A budget that one image can't be made with: that one fails, and says what it would take. */
static void test_lowered_budget(void)
{
    struct engine *engine = open_engine(0);
    struct miser miser = {engine, 0};
    struct image_observer observer = {&miser, lower};
    struct image_request r = request_of(0);
    struct image *small = start(engine, 0, NULL), *large;

    r.width_px = r.height_px = 256;
    EXPECT(image_start(&large, engine, &r, &observer, &err) == 0);
    EXPECT(image_budget(small) < image_budget(large));
    miser.budget = image_budget(large) - 1;
    EXPECT(run(engine) == 0, "%s", err.text);
    EXPECT(same(0, small), "%s", small->error.text);
    EXPECT(image_error(large, &err) == -ENOMEM && strstr(err.text, "256x256") != NULL &&
               strstr(err.text, "at least") != NULL,
           "%s", err.text);
    image_finish(small);
    image_finish(large);
    engine_close(engine);
}

/* ---- cancelling ---- */

struct canceller {
    int at, calls, after;
};

static void cancel(void *owner, struct image *image, const struct image_progress *progress)
{
    struct canceller *canceller = owner;

    canceller->after += atomic_load(&image->cancelled);
    if (++canceller->calls == canceller->at)
        image_cancel(image);
}

/* At any block, those of the text encoders included, it ends before the next one. */
static void test_cancel(void)
{
    struct engine *engine = open_engine(0);
    struct canceller canceller = {0};

    do {
        struct image_observer observer = {&canceller, cancel};
        struct image *image, *other = NULL;
        bool company = canceller.at % 2 == 1;

        canceller = (struct canceller){.at = canceller.at + 7};
        engine_close(engine); /* no prompt is known any more */
        engine = open_engine(0);
        image = start(engine, 1, &observer);
        if (company)
            other = start(engine, 0, NULL);
        EXPECT(run(engine) == 0, "%s", err.text);
        EXPECT(image_phase(image) ==
               (canceller.calls < canceller.at ? IMAGE_DONE : IMAGE_CANCELLED));
        EXPECT(canceller.after == 0, "%d blocks after being cancelled at the %dth", canceller.after,
               canceller.at);
        EXPECT(other == NULL || same(0, other), "cancelled at the %dth block", canceller.at);
        image_finish(other);
        image_finish(image);
    } while (canceller.calls >= canceller.at && test_failures < 10);
    EXPECT(canceller.at > 60, "%d", canceller.at);
    engine_close(engine);
}
/* ---- a slow link ---- */

/* The device's clock is pretended: what lies between two marks of computing takes a millisecond,
 * and a copy what it is told to. */
static const struct backend_ops *fast_ops;
static double clock_s, mark_s[BACKEND_MARKS], copy_byte_s;
static uint64_t marks;

static uint64_t mark_pretended(struct backend *backend, enum backend_stream stream)
{
    clock_s += stream == STREAM_COMPUTE ? 1e-3 : 0;
    mark_s[++marks % BACKEND_MARKS] = clock_s;
    return marks;
}

static double seconds_pretended(struct backend *backend, uint64_t from, uint64_t to)
{
    return mark_s[to % BACKEND_MARKS] - mark_s[from % BACKEND_MARKS];
}

static void copy_slowly(struct backend *backend, const struct weight_copy *copy, size_t count)
{
    fast_ops->copy_weights(backend, copy, count);
    for (size_t i = 0; i < count; i++)
        clock_s += (double)(copy[i].rows * copy[i].cols) * sizeof(float) * copy_byte_s;
}

static struct image *oldest(struct image **images, int started)
{
    for (int i = 0; i < started; i++)
        if (image_active(images[i]))
            return images[i];
    return NULL;
}

/* Starts images as the engine wants them, those that wait first; returns the most that were active
 * at once. */
static int paint_queue(struct engine *engine)
{
    struct image *images[COUNT];
    int started = 0, most = 0;

    while (started < COUNT || oldest(images, started) != NULL) {
        const struct image *first;
        int active;

        while (started < COUNT && images_active(images, started) <
                                      engine_wanted_images(engine, (size_t)(COUNT - started))) {
            images[started] = start(engine, started, NULL);
            started++;
        }
        active = images_active(images, started);
        most = active > most ? active : most;
        EXPECT(engine_advance(engine, &err) == 0, "%s", err.text);
        first = oldest(images, started);
        EXPECT(first == NULL || first->memory != 0 || first->phase <= IMAGE_TEXT ||
                   first->step == first->request.steps,
               "the oldest comes first");
    }
    for (int i = 0; i < COUNT; i++) {
        EXPECT(same(i, images[i]), "%d: %s", i, images[i]->error.text);
        image_finish(images[i]);
    }
    return most;
}

enum { MANY = 840 }; /* a multiple of every number that may go in step */

/* Copying the weights of a step takes so many times as long as computing with them. */
static int wanted_at(struct engine *engine, double copy_share)
{
    double steps = (double)engine->timeline.sums.copy_bytes / (double)engine->streamed_bytes;

    engine->timeline.sums.copy_s = copy_share * steps * engine->lane_s;
    return engine_wanted_images(engine, MANY);
}

/* Where copying weights takes longer than computing with them, images share each copy: as many as
 * that takes, and as have memory. */
static void test_slow_link(uint64_t least)
{
    struct engine *engine = open_engine(least);
    struct backend_ops slow_ops;
    int most, wanted;

    fast_ops = engine->backend->ops;
    slow_ops = *fast_ops;
    slow_ops.mark = mark_pretended;
    slow_ops.mark_seconds = seconds_pretended;
    slow_ops.copy_weights = copy_slowly;
    engine->backend->ops = &slow_ops;
    EXPECT(engine_wanted_images(engine, MANY) == 1, "nothing is known yet");
    paint_queue(engine);
    EXPECT(engine->streamed_bytes > 0 && engine->lane_s > 0);
    EXPECT(wanted_at(engine, 0.5) == 1 && wanted_at(engine, 1) == 1);
    /* A card copies while it computes: more may even out what each block has of the two. */
    wanted = wanted_at(engine, 2.5);
    EXPECT(wanted >= 3 && wanted <= (card ? 5 : 3) && wanted_at(engine, 100) == PASS_LANES,
           "%d wanted", wanted);
    copy_byte_s = 20 * engine->lane_s / (double)engine->streamed_bytes;
    most = paint_queue(engine);
    EXPECT(most < COUNT, "memory for one only, %d active", most);
    EXPECT(engine_set_budget(engine, least * 3 / 2, &err) == 0);
    most = paint_queue(engine);
    EXPECT(most >= 3, "%d active", most);
    engine_close(engine);
}

/* Prompts that wait go through the text encoders with one that is painted, if there is room, and
 * never by themselves; their pictures need no encoders then, and have the same bits. */
static void test_expected(uint64_t budget)
{
    struct engine *engine = open_engine(budget);
    const char *prompts[] = {request_of(2).prompt, "\xff is no text", request_of(1).prompt,
                             request_of(2).prompt, ""};
    struct image *image;

    engine_expect(engine, prompts, 5);
    EXPECT(engine->expected_count == 4 && engine_wanted_prompts(engine) == 0);
    EXPECT(engine_advance(engine, &err) == 0 && !engine->expected[0]->ready);
    image = start(engine, 0, NULL);
    EXPECT(run(engine) == 0 && same(0, image));
    image_finish(image);
    if (budget == 0) {
        engine_expect(engine, NULL, 0);
        for (int i = 1; i <= 2; i++) {
            image = start(engine, i, NULL); /* the first has the negative prompt "" */
            EXPECT(!encode_needed(image));
            EXPECT(run(engine) == 0 && same(i, image) && image->timing.text_s == 0);
            image_finish(image);
        }
    }
    image = start(engine, 3, NULL);
    EXPECT(encode_needed(image) && run(engine) == 0 && same(3, image));
    image_finish(image);
    engine_close(engine);
}

/* A back end that always wants more of its own gets what pictures leave, and never more. */
static void test_greedy_back_end(uint64_t budget)
{
    struct engine *engine = open_engine(budget);
    struct image *images[COUNT];
    struct engine_memory memory;

    for (int i = 0; i < COUNT; i++)
        images[i] = start(engine, i, NULL);
    engine_memory(engine, &memory);
    engine->backend->context_share = 1;
    engine->backend->context_wanted = 3 * memory.page_bytes;
    EXPECT(run(engine) == 0, "%s", err.text);
    EXPECT(engine->backend->context_granted > 0);
    for (int i = 0; i < COUNT; i++) {
        EXPECT(same(i, images[i]), "%d: %s", i, images[i]->error.text);
        image_finish(images[i]);
    }
    engine_memory(engine, &memory);
    EXPECT(memory.peak_reserved <= budget, "%.2f of %.2f MB", (double)memory.peak_reserved / 1e6,
           (double)budget / 1e6);
    engine_close(engine);
}

/* As many prompts as make up for the weights that must come: none where they are there. */
static void test_wanted_prompts(uint64_t least)
{
    struct engine *engine = open_engine(least);
    struct image *image = start(engine, 0, NULL), *other;
    uint64_t weights = 0;

    EXPECT(engine_wanted_prompts(engine) == 0, "nothing is known yet");
    EXPECT(run(engine) == 0 && engine->prompt_s > 0);
    EXPECT(engine_wanted_prompts(engine) == 0, "nobody needs the encoders");
    other = start(engine, 2, NULL);
    offload_drop(&engine->offload);
    for (size_t i = 0; i < engine->clip.blocks.count; i++)
        weights += engine->clip.blocks.blocks[i]->bytes;
    for (size_t i = 0; i < engine->t5.blocks.count; i++)
        weights += engine->t5.blocks.blocks[i]->bytes;
    engine->timeline.sums.copy_bytes = weights;
    engine->timeline.sums.copy_s = 3 * engine->prompt_s;
    EXPECT(engine_wanted_prompts(engine) == 2, "%zu", engine_wanted_prompts(engine));
    engine->timeline.sums.copy_s = engine->prompt_s;
    EXPECT(engine_wanted_prompts(engine) == 0);
    engine->timeline.sums.copy_s = 100 * engine->prompt_s;
    EXPECT(engine_wanted_prompts(engine) == PASS_LANES - 1);
    image_finish(image);
    image_finish(other);
    engine_close(engine);
}

int main(int argc, char **argv)
{
    uint64_t least = company_begin(argc, argv);

    if (least == 0)
        return EXIT_FAILURE;
    test_together(0, false);
    test_together(least, true);
    test_changing_budget(least);
    test_modulations_again(least, 37);
    test_modulations_again(least, 76);
    test_lowered_budget();
    test_cancel();
    test_slow_link(least);
    test_expected(0);
    test_expected(least);
    test_wanted_prompts(least);
    for (uint64_t more = 1; more <= 8; more++)
        test_greedy_back_end(least + more * least / 8);
    return company_end();
}
