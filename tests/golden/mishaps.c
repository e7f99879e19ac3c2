/* SPDX-License-Identifier: MIT */
/*
 * A device that fails while several images are painted, or has less memory than the budget: those
 * that need not fail are painted all the same, and what comes next is as if nothing had been.
 * usage: mishaps MODEL [card]
 */
#include "tests/golden/company.h"

/* ---- a device that fails ---- */

static struct backend_ops failing_ops;
static const struct backend_ops *real_ops;
static int syncs, failing_sync, failure, copies, failing_copy;
static struct engine *failing_engine;

/* Of steps, decoding or text whose operations were not all done, nothing is to be used. */
static void spoil_latents(void)
{
    for (struct image *image = failing_engine->images; image != NULL; image = image->next)
        if (image->memory != 0)
            memset(image->latents.data, 0x3f, tensor_bytes(&image->latents));
}

static int sync_or_fail(struct backend *backend, struct error *error)
{
    int result = real_ops->sync(backend, error);
    bool fails = ++syncs == failing_sync || (failing_copy != 0 && copies >= failing_copy);

    if (!fails)
        return result;
    copies = failing_copy = 0;
    spoil_latents();
    return error_set(error, failure, "the device is gone");
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
    failing_engine = engine;
    failure = EIO;
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
/* The device has no memory for an operation's code, whenever: some of ours is given back, and all
 * pictures are what they would have been. */
static void test_short_of_code(uint64_t budget)
{
    enum { FEW = 2 };
    int sync = 0, all;

    do {
        struct engine *engine = open_engine(budget);
        struct image *images[FEW];

        make_failing(engine, ++sync, 0);
        failure = ENOMEM;
        for (int i = 0; i < FEW; i++)
            images[i] = start(engine, i + 1, NULL);
        EXPECT(run(engine) == 0, "sync %d: %s", sync, err.text);
        all = syncs;
        for (int i = 0; i < FEW; i++) {
            EXPECT(same(i + 1, images[i]), "sync %d: %d: %s", sync, i, images[i]->error.text);
            image_finish(images[i]);
        }
        engine_close(engine);
    } while (sync < all && test_failures < 10);
    EXPECT(sync > 10, "%d", sync);
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
 * With less they wait, whatever they have done by then, and go on once there is more. */
static void test_short_device(uint64_t least)
{
    for (int percent = 10; percent <= 250; percent += 40) {
        struct engine *engine = open_engine(16 * least);
        struct image *images[COUNT];
        int result;

        make_short(engine, least * (uint64_t)percent / 100);
        for (int i = 0; i < COUNT; i++)
            images[i] = start(engine, i, NULL);
        result = run(engine);
        EXPECT(result == (percent < 100 ? -EAGAIN : 0), "%d %%: %s", percent, err.text);
        if (result == -EAGAIN) {
            EXPECT(strstr(err.text, "for the device has no more") != NULL, "%s", err.text);
            for (int i = 0; i < 3; i++)
                EXPECT(engine_advance(engine, &err) == -EAGAIN);
            pages_left = INT64_MAX / 2;
            EXPECT(run(engine) == 0, "%d %%: %s", percent, err.text);
        }
        for (int i = 0; i < COUNT; i++) {
            EXPECT(same(i, images[i]), "%d %%: %d: %s", percent, i, images[i]->error.text);
            image_finish(images[i]);
        }
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
    uint64_t least = company_begin(argc, argv);

    if (least == 0)
        return EXIT_FAILURE;
    test_failed_round();
    test_failed_copy(least);
    test_short_of_code(0);
    test_short_of_code(least + least / 2);
    test_short_device(least);
    test_refused_page();
    return company_end();
}
