/* SPDX-License-Identifier: MIT */
/*
 * Random allocations and frees on real memory, against a plain list of what should live. Every
 * block is filled with a pattern of its own, read back through its address and, page by page,
 * through a second mapping of the page behind it; arena_check runs after every operation.
 */
#include "tests/fake_pages.h"
#include "tests/test.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "alloc/arena.h"

enum { GRANULE = 64 << 10, BLOCKS = 96, OPERATIONS = 6000, STREAMS = 3 };

struct block {
    uintptr_t address; /* 0: none */
    uint64_t bytes;
    uint64_t pattern;
    int stream;
};

struct model {
    struct fake_pages *fake;
    struct arena *arena;
    struct block blocks[BLOCKS];
    uint64_t state; /* of the random numbers */
    uint64_t requested;
    uintptr_t window; /* a place for the second mapping */
};

static uint64_t random_below(struct model *model, uint64_t limit)
{
    model->state = model->state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (model->state >> 33) % limit;
}

static uint64_t word_at(const struct block *block, uint64_t i)
{
    return (block->pattern ^ i) * UINT64_C(0x9e3779b97f4a7c15);
}

static void fill(const struct block *block)
{
    uint64_t *words = (uint64_t *)block->address;

    for (uint64_t i = 0; i < block->bytes / 8; i++)
        words[i] = word_at(block, i);
}

static void verify(const struct block *block)
{
    const uint64_t *words = (const uint64_t *)block->address;

    for (uint64_t i = 0; i < block->bytes / 8; i++) {
        if (words[i] != word_at(block, i)) {
            EXPECT(words[i] == word_at(block, i), "block of %" PRIu64 " bytes, word %" PRIu64,
                   block->bytes, i);
            return;
        }
    }
}

/* Reads a block through the pages behind it, mapped one after another at the window. */
static void verify_through_pages(struct model *model, const struct block *block)
{
    struct fake_pages *fake = model->fake;
    struct page_source *inner = fake->inner;
    uint64_t done = 0;

    while (done < block->bytes / 8 * 8) {
        uint64_t offset = block->address + done - fake->base;
        uint64_t within = offset % GRANULE, step = GRANULE - within;
        page_handle page = fake->places[offset / GRANULE] - 1;
        const uint64_t *words = (const uint64_t *)(model->window + within);

        step = step < block->bytes / 8 * 8 - done ? step : block->bytes / 8 * 8 - done;
        EXPECT(inner->ops->map(inner, model->window, fake->inner_handles[page]) == 0);
        EXPECT(inner->ops->set_access(inner, model->window, GRANULE) == 0);
        for (uint64_t i = 0; i < step / 8; i++) {
            if (words[i] != word_at(block, done / 8 + i)) {
                EXPECT(words[i] == word_at(block, done / 8 + i), "through the page");
                break;
            }
        }
        EXPECT(inner->ops->unmap(inner, model->window) == 0);
        done += step;
    }
}

static void check_overlap(const struct model *model, const struct block *block)
{
    for (int i = 0; i < BLOCKS; i++) {
        const struct block *other = &model->blocks[i];
        if (other->address == 0 || other == block)
            continue;
        EXPECT(other->address + other->bytes <= block->address ||
               block->address + block->bytes <= other->address);
    }
}

static void check_all(struct model *model)
{
    struct arena_stats stats;
    const char *fault = "none";

    EXPECT(arena_check(model->arena, &fault) == 0, "%s", fault);
    EXPECT(!model->fake->fault, "%s", model->fake->fault);
    arena_stats(model->arena, &stats);
    EXPECT(stats.requested == model->requested, "%" PRIu64 " and %" PRIu64, stats.requested,
           model->requested);
    EXPECT(stats.reserved == model->fake->live_count * GRANULE);
    EXPECT(stats.reserved <= stats.budget);
    EXPECT(stats.allocated >= stats.requested && stats.mapped >= stats.allocated);
    EXPECT(stats.fragmentation >= stats.fragmentation_merged && stats.fragmentation_merged >= 0);
}

static void model_alloc(struct model *model, struct block *block)
{
    uint64_t limit = random_below(model, 4) == 0 ? 40 * GRANULE : 3 * GRANULE;
    struct arena_request request = {
        .bytes = 8 + random_below(model, random_below(model, 2) == 0 ? limit : GRANULE / 16),
        .stream = (int)random_below(model, STREAMS),
        .component = (int)random_below(model, 4),
    };
    struct arena_shortage shortage = {0};
    uintptr_t address = 0;
    int code = arena_alloc(model->arena, &request, &address, &shortage);

    if (code != 0) {
        EXPECT(code == -ENOMEM && address == 0, "code %d", code);
        EXPECT(shortage.requested_bytes == request.bytes && shortage.budget_bytes > 0);
        return;
    }
    EXPECT(address % ARENA_ALIGNMENT == 0);
    EXPECT(!fake_is_busy(model->fake, request.stream, address, request.bytes),
           "reused before the fence of another stream");
    *block =
        (struct block){address, request.bytes, random_below(model, UINT32_MAX), request.stream};
    model->requested += request.bytes;
    check_overlap(model, block);
    fill(block);
}

static void model_free(struct model *model, struct block *block)
{
    int stream = random_below(model, 4) == 0 ? (int)random_below(model, STREAMS) : block->stream;

    verify(block);
    verify_through_pages(model, block);
    if (stream != block->stream) /* which must be ordered after the stream of the allocation */
        fake_finish(model->fake, block->stream, UINT64_MAX / 2);
    if (model->fake->busy_count < FAKE_BUSY / 2)
        fake_queue(model->fake, stream, block->address, block->bytes);
    EXPECT(arena_free(model->arena, block->address, stream) == 0);
    EXPECT(arena_free(model->arena, block->address, stream) == -EINVAL, "freed twice");
    model->requested -= block->bytes;
    *block = (struct block){0};
}

static void model_step(struct model *model)
{
    struct block *block = &model->blocks[random_below(model, BLOCKS)];
    uint64_t dice = random_below(model, 100);

    if (dice < 2)
        arena_trim(model->arena);
    else if (dice < 15)
        fake_finish(model->fake, (int)random_below(model, STREAMS), 1 + random_below(model, 4));
    else if (block->address == 0)
        model_alloc(model, block);
    else
        model_free(model, block);
}

static void test_seed(uint64_t seed, uint64_t budget_pages)
{
    const struct fake_options fake_options = {GRANULE, UINT64_C(1) << 30, true};
    struct arena_options options = {.budget_bytes = budget_pages * GRANULE,
                                    .reservation_bytes = 4 * budget_pages * GRANULE};
    struct model model = {.state = seed};
    struct arena_stats stats;

    EXPECT(fake_pages_create(&model.fake, &fake_options) == 0);
    EXPECT(arena_create(&model.arena, &model.fake->source, &options) == 0);
    EXPECT(model.fake->inner->ops->reserve(model.fake->inner, GRANULE, &model.window) == 0);
    for (int i = 0; i < OPERATIONS; i++) {
        int before = test_failures;

        model_step(&model);
        check_all(&model);
        if (test_failures > before) {
            fprintf(stderr, "seed %" PRIu64 ", operation %d\n", seed, i);
            break;
        }
    }
    arena_stats(model.arena, &stats);
    printf("seed %" PRIu64 ": %" PRIu64 " allocations, %" PRIu64 " misses, %" PRIu64
           " merges, %" PRIu64 " waits, %" PRIu64 " failures\n",
           seed, stats.allocations, stats.misses, stats.merges, stats.waits, stats.failures);
    arena_destroy(model.arena); /* with blocks still living */
    EXPECT(!model.fake->fault, "%s", model.fake->fault);
    EXPECT(model.fake->live_count == 0);
    model.fake->inner->ops->unreserve(model.fake->inner, model.window, GRANULE);
    fake_pages_destroy(model.fake);
}

int main(void)
{
    test_seed(1, 200);
    test_seed(2, 400);
    test_seed(3, 60);
    test_seed(4, 1000);
    return test_finish();
}
