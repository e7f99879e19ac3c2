/* SPDX-License-Identifier: MIT */
/*
 * Any bytes as operations on an arena over a source that watches the driver's rules, fails at
 * times and has a clock. Living blocks never overlap, no block is handed out under another
 * stream's work, and check() is content after every operation.
 */
#include <errno.h>
#include <stdlib.h>

#include "alloc/arena.h"
#include "tests/fake_pages.h"

enum { PAGE = 64 << 10, BLOCKS = 32, STREAMS = 3, OPERATIONS = 400, BUDGET_PAGES = 40 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct block {
    uintptr_t address; /* 0: none */
    uint64_t bytes;
    int stream;
};

struct world {
    struct fake_pages *fake;
    struct arena *arena;
    struct block blocks[BLOCKS];
};

static void require(int condition)
{
    if (!condition)
        abort();
}

static void check_world(const struct world *world)
{
    const char *fault;
    struct arena_stats stats;

    require(arena_check(world->arena, &fault) == 0);
    require(!world->fake->fault);
    arena_stats(world->arena, &stats);
    require(stats.reserved == world->fake->live_count * PAGE);
    require(stats.fragmentation_merged <= stats.fragmentation && stats.fragmentation <= 1);
}

static void try_alloc(struct world *world, struct block *block, uint64_t bytes, int stream)
{
    struct arena_request request = {.bytes = bytes, .stream = stream};
    struct arena_shortage shortage;

    if (arena_alloc(world->arena, &request, &block->address, &shortage) != 0)
        return;
    block->bytes = bytes;
    block->stream = stream;
    require(!fake_is_busy(world->fake, stream, block->address, bytes));
    for (int i = 0; i < BLOCKS; i++) {
        const struct block *other = &world->blocks[i];
        require(other == block || other->address == 0 ||
                other->address + other->bytes <= block->address ||
                block->address + block->bytes <= other->address);
    }
}

static void release(struct world *world, struct block *block, int stream)
{
    if (stream != block->stream) /* which must be ordered after the stream of the allocation */
        fake_finish(world->fake, block->stream, UINT64_MAX / 2);
    if (world->fake->busy_count < FAKE_BUSY)
        fake_queue(world->fake, stream, block->address, block->bytes);
    require(arena_free(world->arena, block->address, stream) == 0);
    require(arena_free(world->arena, block->address, stream) == -EINVAL);
    block->address = 0;
}

/* Four bytes: what to do, to which block, and a number. */
static void step(struct world *world, const uint8_t *bytes)
{
    struct block *block = &world->blocks[bytes[1] % BLOCKS];
    uint64_t number = bytes[2] + 256U * bytes[3];
    int stream = bytes[1] / BLOCKS % STREAMS, code;

    switch (bytes[0] % 8) {
    case 0:
        fake_finish(world->fake, stream, number);
        break;
    case 1:
        code = arena_set_budget(world->arena, number % (2 * BUDGET_PAGES) * PAGE);
        require(code == 0 || code == -EAGAIN || world->fake->fail_at != 0);
        break;
    case 2:
        (void)arena_trim(world->arena);
        break;
    case 3: /* a call in the near future fails */
        world->fake->fail_at = world->fake->calls + 1 + number % 16;
        world->fake->fail_repeat = number / 16 % 4;
        world->fake->fail_code = number & 1024 ? -ENOMEM : -EIO;
        break;
    case 4:
        (void)arena_charge(world->arena, stream, number % 8 * PAGE);
        (void)arena_charge(world->arena, stream, 0);
        break;
    default:
        if (block->address != 0)
            release(world, block, stream);
        else
            try_alloc(world, block, bytes[0] & 64 ? number * 16 : number, stream);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct fake_options fake_options = {PAGE, BUDGET_PAGES * 3 / 2 * PAGE, false};
    const struct arena_options options = {.budget_bytes = BUDGET_PAGES * PAGE,
                                          .reservation_bytes = 3 * BUDGET_PAGES * PAGE};
    struct world world = {0};

    require(fake_pages_create(&world.fake, &fake_options) == 0);
    require(arena_create(&world.arena, &world.fake->source, &options) == 0);
    for (size_t i = 0; i + 4 <= size && i < 4 * OPERATIONS; i += 4) {
        step(&world, data + i);
        check_world(&world);
    }
    world.fake->fail_at = 0;
    arena_destroy(world.arena);
    require(!world.fake->fault && world.fake->live_count == 0);
    fake_pages_destroy(world.fake);
    return 0;
}
