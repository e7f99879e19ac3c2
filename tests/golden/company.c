/* SPDX-License-Identifier: MIT */
/*
 * Several images at once, and what can befall them: each is the same as one painted alone, and none
 * fails for another's sake, whatever becomes of the budget, of the device, or of the others.
 * usage: company MODEL
 */
#include <errno.h>
#include <math.h>
#include <string.h>
#include <time.h>

#include "engine/pipeline.h"
#include "tests/test.h"

enum { COUNT = 5 };

static struct error err;

/* Sizes, steps and guidance of all kinds. */
static struct image_request request_of(int i)
{
    static const char *const prompts[] = {"a large red circle on a white background",
                                          "a small blue star in the night sky", "a yellow square",
                                          "a green triangle at sunset"};
    struct image_request r = {.prompt = prompts[i % 4],
                              .width_px = 64 + 32 * (i % 3),
                              .height_px = 48 + 16 * (i % 2),
                              .steps = 2 + i % 3,
                              .guidance = 3.5f,
                              .cfg_scale = i == 1 ? 2 : 1,
                              .seed = (uint64_t)i};

    return r;
}

static size_t picture_bytes(int i)
{
    struct image_request r = request_of(i);

    return (size_t)r.width_px * (size_t)r.height_px * 3;
}

static const char *model;
static uint8_t *alone[COUNT]; /* what each request makes by itself */

static struct engine *open_engine(uint64_t budget)
{
    struct engine_options options = {
        .model_path = model, .backend = "cpu", .threads = 2, .vram_budget_bytes = budget};
    struct engine *engine;

    if (engine_open(&engine, &options, &err) != 0) {
        fprintf(stderr, "%s\n", err.text);
        exit(EXIT_FAILURE);
    }
    return engine;
}

static struct image *start(struct engine *engine, int i, const struct image_observer *observer)
{
    struct image_request r = request_of(i);
    struct image *image = NULL;

    EXPECT(image_start(&image, engine, &r, observer, &err) == 0, "%s", err.text);
    return image;
}

static bool same(int i, const struct image *image)
{
    return image_phase(image) == IMAGE_DONE &&
           memcmp(image_pixels(image), alone[i], picture_bytes(i)) == 0;
}

/* Until nobody is active; the number of rounds in which the engine failed. */
static int run(struct engine *engine)
{
    int failures = 0, rounds = 0;
    bool active = true;

    for (; active && EXPECT(rounds < 500); rounds++) {
        active = false;
        failures += engine_advance(engine, &err) != 0;
        for (struct image *image = engine->images; image != NULL; image = image->next)
            active |= image_active(image);
    }
    return failures;
}

static void paint_alone(void)
{
    struct engine *engine = open_engine(0);

    for (int i = 0; i < COUNT; i++) {
        struct image *image = start(engine, i, NULL);

        EXPECT(run(engine) == 0 && image_phase(image) == IMAGE_DONE, "%s", err.text);
        alone[i] = malloc(picture_bytes(i));
        memcpy(alone[i], image_pixels(image), picture_bytes(i));
        image_finish(image);
    }
    engine_close(engine);
}

/* The smallest budget for any of the requests alone. */
static uint64_t least_for_each(struct engine *engine)
{
    uint64_t least = 0;

    for (int i = 0; i < COUNT; i++) {
        struct image *image = start(engine, i, NULL);

        least = image_budget(image) > least ? image_budget(image) : least;
        image_finish(image);
    }
    return least;
}

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
    int most = 0;

    for (int i = 0; i < COUNT; i++) {
        images[i] = start(engine, i, NULL);
        EXPECT(engine_advance(engine, &err) == 0);
    }
    for (int round = 0; round < 100; round++) {
        EXPECT(engine_advance(engine, &err) == 0, "%s", err.text);
        most = have_memory(engine) > most ? have_memory(engine) : most;
    }
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

/* ---- a device that fails ---- */

static struct backend_ops failing_ops;
static const struct backend_ops *real_ops;
static int syncs, failing_sync, copies, failing_copy;

static int sync_or_fail(struct backend *backend, struct error *error)
{
    int result = real_ops->sync(backend, error);
    bool fails = ++syncs == failing_sync || (failing_copy != 0 && copies >= failing_copy);

    if (fails)
        copies = failing_copy = 0;
    return fails ? error_set(error, EIO, "the device is gone") : result;
}

/* The copy that fails, and those behind it, leave rubbish. */
static void copy_or_fail(struct backend *backend, const struct weight_copy *copy, size_t count)
{
    real_ops->copy_weights(backend, copy, count);
    copies++;
    for (size_t i = 0; failing_copy != 0 && copies >= failing_copy && i < count; i++)
        memset(copy[i].target, 0x3f, (size_t)(copy[i].rows * copy[i].cols) * sizeof(float));
}

static void make_failing(struct engine *engine, int sync, int copy)
{
    real_ops = engine->backend->ops;
    failing_ops = *real_ops;
    failing_ops.sync = sync_or_fail;
    failing_ops.copy_weights = copy_or_fail;
    engine->backend->ops = &failing_ops;
    failing_sync = sync;
    failing_copy = copy;
    syncs = copies = 0;
}

/* More prompts than one round takes: those whom the failed round served fail, with its error; the
 * others are painted. */
static void test_failed_round(void)
{
    enum { MANY = PASS_LANES + 2 };
    int served_by_text = 0;

    for (int sync = 1; sync <= 7; sync += 3) {
        struct engine *engine = open_engine(0);
        struct image *images[MANY];
        char prompts[MANY][16];
        int failed = 0, done = 0;

        make_failing(engine, sync, 0);
        for (int i = 0; i < MANY; i++) {
            struct image_request r = request_of(0);

            snprintf(prompts[i], sizeof prompts[i], "number %d", i);
            r.prompt = prompts[i];
            r.width_px = r.height_px = 16;
            EXPECT(image_start(&images[i], engine, &r, NULL, &err) == 0);
        }
        EXPECT(run(engine) == 1, "one round fails");
        for (int i = 0; i < MANY; i++) {
            failed += image_error(images[i], &err) == -EIO;
            done += image_phase(images[i]) == IMAGE_DONE;
            image_finish(images[i]);
        }
        EXPECT(failed + done == MANY && failed > 0, "sync %d: %d failed, %d done", sync, failed,
               done);
        served_by_text = sync == 1 ? failed : served_by_text;
        engine_close(engine);
    }
    EXPECT(served_by_text == PASS_LANES, "%d", served_by_text);
}

/* A copy of weights fails, whichever: what was being painted fails, and nothing of what the copy
 * left is seen in the next picture. */
static void test_failed_copy(uint64_t budget)
{
    int copy = 1, all;

    do {
        struct engine *engine = open_engine(budget);
        struct image *image, *next;

        make_failing(engine, 0, copy);
        image = start(engine, 0, NULL);
        EXPECT(run(engine) == 1 && image_error(image, &err) == -EIO, "copy %d: %s", copy, err.text);
        image_finish(image);
        copies = 0;
        next = start(engine, 0, NULL);
        EXPECT(run(engine) == 0 && same(0, next), "after copy %d failed: %s", copy,
               next->error.text);
        image_finish(next);
        all = copies;
        engine_close(engine);
        copy += 1 + all / 8;
    } while (copy < all && test_failures < 10);
    EXPECT(copy > 100, "%d", copy);
}

/* ---- a slow link ---- */

static double copy_byte_s;

static void copy_slowly(struct backend *backend, const struct weight_copy *copy, size_t count)
{
    real_ops->copy_weights(backend, copy, count);
    for (size_t i = 0; i < count; i++) {
        double s = (double)(copy[i].rows * copy[i].cols) * sizeof(float) * copy_byte_s;
        struct timespec t = {(time_t)s, (long)((s - floor(s)) * 1e9)};

        nanosleep(&t, NULL);
    }
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
        int active = 0;

        for (int i = 0; i < started; i++)
            active += image_active(images[i]);
        while (started < COUNT && active < engine_wanted_images(engine)) {
            images[started] = start(engine, started, NULL);
            started++;
            active++;
        }
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

/* Copying the weights of a step takes so many times as long as computing with them. */
static int wanted_at(struct engine *engine, double copy_share)
{
    double steps = (double)engine->offload.stats.copied_bytes / (double)engine->streamed_bytes;

    engine->timeline.sums.copy_s = copy_share * steps * engine->lane_s;
    return engine_wanted_images(engine);
}

/* Where copying weights takes longer than computing with them, images share each copy: as many as
 * that takes, and as have memory. */
static void test_slow_link(uint64_t least)
{
    struct engine *engine = open_engine(least);
    int most;

    EXPECT(engine_wanted_images(engine) == 1, "nothing is known yet");
    paint_queue(engine);
    EXPECT(engine->streamed_bytes > 0 && engine->lane_s > 0);
    EXPECT(wanted_at(engine, 0.5) == 1 && wanted_at(engine, 1) == 1);
    EXPECT(wanted_at(engine, 2.5) == 3 && wanted_at(engine, 100) == PASS_LANES);
    real_ops = engine->backend->ops;
    failing_ops = *real_ops;
    failing_ops.copy_weights = copy_slowly;
    engine->backend->ops = &failing_ops;
    copy_byte_s = 20 * engine->lane_s / (double)engine->streamed_bytes;
    most = paint_queue(engine);
    EXPECT(most < COUNT, "memory for one only, %d active", most);
    EXPECT(engine_set_budget(engine, least * 3 / 2, &err) == 0);
    most = paint_queue(engine);
    EXPECT(most >= 3, "%d active", most);
    engine_close(engine);
}

/* ---- a device with less memory than the budget ---- */

static struct page_source_ops short_ops;
static const struct page_source_ops *plenty;
static int64_t pages_left; /* that the device gives */
static int creations, failing_creation;

static int create_if_left(struct page_source *source, page_handle *page)
{
    if (++creations == failing_creation || pages_left <= 0)
        return -ENOMEM;
    pages_left--;
    return plenty->create(source, page);
}

static void release_to_others(struct page_source *source, page_handle page)
{
    pages_left++;
    plenty->release(source, page);
}

static void make_short(struct engine *engine, uint64_t bytes)
{
    struct page_source *pages = engine->backend->pages;
    struct arena_stats stats;

    arena_stats(engine->arena, &stats);
    plenty = pages->ops;
    short_ops = *plenty;
    short_ops.create = create_if_left;
    short_ops.release = release_to_others;
    pages->ops = &short_ops;
    pages_left =
        (int64_t)(bytes / stats.page_bytes) - (int64_t)(stats.pages_mapped + stats.pages_spare);
    creations = failing_creation = 0;
}

/* Others have taken the device's memory: as long as there is enough for one image, all are painted.
 * With less they fail, and once there is more the next one is painted. */
static void test_short_device(uint64_t least)
{
    for (int percent = 90; percent <= 250; percent += 40) {
        struct engine *engine = open_engine(16 * least);
        struct image *images[COUNT], *again;
        struct error why;

        make_short(engine, least * (uint64_t)percent / 100);
        for (int i = 0; i < COUNT; i++)
            images[i] = start(engine, i, NULL);
        EXPECT(run(engine) == 0, "%s", err.text);
        for (int i = 0; i < COUNT; i++) {
            EXPECT(same(i, images[i]) ||
                       (percent < 100 && image_error(images[i], &why) == -ENOMEM &&
                        strstr(why.text, "device") != NULL),
                   "%d %%: %d: %s", percent, i, images[i]->error.text);
            image_finish(images[i]);
        }
        pages_left = INT64_MAX / 2;
        EXPECT(engine_advance(engine, &err) == 0);
        again = start(engine, 2, NULL);
        EXPECT(run(engine) == 0 && same(2, again), "%s", again->error.text);
        image_finish(again);
        engine_close(engine);
    }
}

/* The device refuses one page, whichever, and gives the next: nothing is to be noticed. */
static void test_refused_page(void)
{
    struct engine *engine;
    int refused = 0;

    do {
        struct image *images[2];

        engine = open_engine(0);
        make_short(engine, UINT64_C(1) << 40);
        failing_creation = ++refused;
        images[0] = start(engine, 1, NULL);
        images[1] = start(engine, 2, NULL);
        EXPECT(run(engine) == 0, "%s", err.text);
        EXPECT(same(1, images[0]) && same(2, images[1]), "page %d: %s%s", refused,
               images[0]->error.text, images[1]->error.text);
        image_finish(images[0]);
        image_finish(images[1]);
        engine_close(engine);
        refused += creations / 12;
    } while (creations >= failing_creation && test_failures < 10);
    EXPECT(refused > 100, "%d", refused);
}

int main(int argc, char **argv)
{
    struct engine *engine;
    uint64_t least;

    if (argc != 2)
        return EXIT_FAILURE;
    model = argv[1];
    paint_alone();
    engine = open_engine(0);
    least = least_for_each(engine);
    engine_close(engine);
    test_together(0, false);
    test_together(least, true);
    test_changing_budget(least);
    test_lowered_budget();
    test_cancel();
    test_failed_round();
    test_failed_copy(least);
    test_slow_link(least);
    test_short_device(least);
    test_refused_page();
    for (int i = 0; i < COUNT; i++)
        free(alone[i]);
    return test_finish();
}
