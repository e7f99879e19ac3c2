/* SPDX-License-Identifier: MIT */
/*
 * Offload over small made-up lists, on a back end that counts and that judges ordering.
 *
 * The fake device has two streams that know of each other only what they were told. Copies happen
 * at once, so that contents can be compared; a race is found by bookkeeping: a copy may overwrite
 * only what no compute work uses that it does not wait for (copy_reuse), and compute work may touch
 * only what no copy writes that it does not wait for (copy_wait).
 */
#include "engine/offload.h"

#include <errno.h>
#include <string.h>

#include "alloc/host_pages.h"
#include "tests/test.h"

enum { PAGE = 16384, BLOCKS_MAX = 16, TOUCHES = 4096 };

/* ---- the device ---- */

/* Memory that a piece of work touches, and its place in its stream. */
struct touch {
    uintptr_t first, end;
    uint64_t time;
};

struct stream {
    uint64_t time;  /* pieces of work queued */
    uint64_t knows; /* of the other stream: it waits for these */
    struct touch touches[TOUCHES];
    size_t count;
};

struct device {
    struct backend base;
    struct stream copy, compute;
    uint64_t copies; /* of weights */
    const char *fault;
};

static struct device *device_of(struct backend *backend)
{
    return (struct device *)backend;
}

/* Queues work on `stream`; whether it runs into work of the other that it does not wait for. */
static bool touch(struct stream *stream, const struct stream *other, void *memory, uint64_t bytes)
{
    struct touch work = {(uintptr_t)memory, (uintptr_t)memory + bytes, ++stream->time};
    bool clean = true;

    for (size_t i = 0; i < other->count; i++)
        clean &= other->touches[i].time <= stream->knows || other->touches[i].end <= work.first ||
                 work.end <= other->touches[i].first;
    if (stream->count == TOUCHES) { /* the oldest half is long done */
        stream->count = TOUCHES / 2;
        memmove(stream->touches, stream->touches + TOUCHES / 2,
                TOUCHES / 2 * sizeof *stream->touches);
    }
    stream->touches[stream->count++] = work;
    return clean;
}

static void fake_copy_weights(struct backend *backend, const struct weight_copy *copies,
                              size_t count)
{
    struct device *device = device_of(backend);

    for (size_t i = 0; i < count; i++) {
        uint64_t bytes = (uint64_t)(copies[i].rows * copies[i].cols) * sizeof(float);

        memcpy(copies[i].target, copies[i].source, bytes);
        if (!touch(&device->copy, &device->compute, copies[i].target, bytes))
            device->fault = "a copy overwrites what compute work still uses";
        device->copies++;
    }
}

static uint64_t fake_copy_ticket(struct backend *backend)
{
    return device_of(backend)->copy.time;
}

static void fake_copy_wait(struct backend *backend, uint64_t ticket)
{
    struct stream *compute = &device_of(backend)->compute;

    compute->knows = ticket > compute->knows ? ticket : compute->knows;
}

static void fake_copy_reuse(struct backend *backend)
{
    device_of(backend)->copy.knows = device_of(backend)->compute.time;
}

static int fake_sync(struct backend *backend, struct error *err)
{
    struct device *device = device_of(backend);

    device->copy.count = device->compute.count = 0;
    return 0;
}

static const struct backend_ops fake_ops = {
    .sync = fake_sync,
    .copy_weights = fake_copy_weights,
    .copy_ticket = fake_copy_ticket,
    .copy_wait = fake_copy_wait,
    .copy_reuse = fake_copy_reuse,
};

static void compute(struct device *device, void *memory, uint64_t bytes)
{
    if (!touch(&device->compute, &device->copy, memory, bytes))
        device->fault = "compute work touches what a copy still writes";
}

/* ---- blocks ---- */

struct fake_block {
    struct block block;
    struct weight weight;
    struct tensor tensor;
    struct stored_tensor stored;
};

struct fake_list {
    struct block_list list;
    struct block *pointers[BLOCKS_MAX];
    struct fake_block blocks[BLOCKS_MAX];
};

static void block_create(struct fake_block *b, int floats, float value)
{
    float *data = malloc((size_t)floats * sizeof *data);

    for (int i = 0; i < floats; i++)
        data[i] = value + (float)i;
    b->stored = (struct stored_tensor){.name = "fake", .path = "fake", .data = data};
    b->tensor = tensor_of(NULL, DTYPE_F32, 1, floats);
    b->weight = (struct weight){
        .target = &b->tensor, .layout = WEIGHT_VECTOR, .parts = 1, .part = {&b->stored}};
    b->block = (struct block){.kind = "fake",
                              .weights = &b->weight,
                              .count = 1,
                              .bytes = ((uint64_t)floats * sizeof(float) + 255) / 256 * 256};
}

static void list_create(struct fake_list *list, size_t count, const int *floats, float value)
{
    for (size_t i = 0; i < count; i++) {
        block_create(&list->blocks[i], floats[i], value + 1000 * (float)i);
        list->pointers[i] = &list->blocks[i].block;
    }
    list->list = (struct block_list){list->pointers, count, BLOCKS_MAX, 0};
    if (offload_measure(&list->list, PAGE) != 0)
        abort();
}

static void list_destroy(struct fake_list *list)
{
    for (size_t i = 0; i < list->list.count; i++)
        free((void *)list->blocks[i].stored.data);
}

static uint64_t list_bytes(const struct fake_list *list)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < list->list.count; i++)
        bytes += list->blocks[i].block.bytes;
    return bytes;
}

/* ---- the rig ---- */

struct rig {
    struct device device;
    struct arena *arena;
    struct offload offload;
    struct error err;
    uint64_t random;
};

static void rig_create(struct rig *rig, uint64_t budget)
{
    struct host_pages_options host = {.granule_bytes = PAGE};
    struct arena_options options = {
        .budget_bytes = budget, .evict = offload_evict, .owner = &rig->offload};

    *rig = (struct rig){.random = 1};
    rig->device.base.ops = &fake_ops;
    if (host_pages_create(&rig->device.base.pages, &host) != 0 ||
        arena_create(&rig->arena, rig->device.base.pages, &options) != 0)
        abort();
    offload_init(&rig->offload, &rig->device.base, rig->arena, NULL);
}

static void rig_destroy(struct rig *rig)
{
    EXPECT(rig->device.fault == NULL, "%s", rig->device.fault);
    offload_finish(&rig->offload);
    arena_destroy(rig->arena);
    rig->device.base.pages->ops->destroy(rig->device.base.pages);
}

static uint64_t below(struct rig *rig, uint64_t limit)
{
    rig->random = rig->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (rig->random >> 33) % limit;
}

/* Copies that compute work was not told of go only where a block is, or comes to be. */
static void check_copies(struct rig *rig)
{
    const struct offload *o = &rig->offload;
    const struct stream *copy = &rig->device.copy;

    for (size_t c = 0; c < copy->count; c++) {
        bool owned = copy->touches[c].time <= rig->device.compute.knows;

        for (size_t l = 0; l < o->list_count; l++)
            for (size_t i = 0; i < o->lists[l]->count; i++)
                owned |= (uintptr_t)o->lists[l]->blocks[i]->memory == copy->touches[c].first;
        owned |= o->ring_address != 0 && copy->touches[c].first >= o->ring_address &&
                 copy->touches[c].first < o->ring_address + o->ring_bytes;
        if (!EXPECT(owned, "a copy goes on in memory that was given back"))
            return;
    }
}

/* Block i of the pass computes: it is there, whole, and nothing races. */
static int run_block(struct rig *rig, struct fake_list *list, size_t i, bool wrap)
{
    const struct fake_block *b = &list->blocks[i];
    struct arena_stats stats;
    int result = offload_acquire(&rig->offload, i, wrap, &rig->err);

    check_copies(rig);
    if (result != 0)
        return result;
    if (!EXPECT(b->block.memory != NULL && b->tensor.data == b->block.memory, "block %zu", i))
        return -EFAULT;
    compute(&rig->device, b->tensor.data, tensor_bytes(&b->tensor));
    EXPECT(memcmp(b->tensor.data, b->stored.data, tensor_bytes(&b->tensor)) == 0, "block %zu", i);
    EXPECT(rig->device.fault == NULL, "block %zu: %s", i, rig->device.fault);
    arena_stats(rig->arena, &stats);
    EXPECT(stats.reserved <= stats.budget);
    return 0;
}

static int run_pass(struct rig *rig, struct fake_list *list, bool wrap)
{
    int result = 0;

    for (size_t i = 0; result == 0 && i < list->list.count; i++)
        result = run_block(rig, list, i, wrap);
    return result;
}

static int begin(struct rig *rig, struct fake_list *list, uint64_t room)
{
    return offload_begin(&rig->offload, &list->list, room, 1, &rig->err);
}

static const int even[] = {8192, 8192, 8192, 8192, 8192, 8192, 8192, 8192};
enum { EVEN = 8, EVEN_BYTES = 32768 };

/* ---- tests ---- */

static void test_all_resident(void)
{
    struct fake_list list;
    struct rig rig;

    list_create(&list, EVEN, even, 1);
    rig_create(&rig, (EVEN + 1) * EVEN_BYTES);
    offload_add(&rig.offload, &list.list, 2);
    EXPECT(begin(&rig, &list, list_bytes(&list)) == 0 && rig.offload.stats.streamed == 0);
    for (int pass = 0; pass < 3; pass++)
        EXPECT(run_pass(&rig, &list, true) == 0, "%s", rig.err.text);
    EXPECT(rig.device.copies == EVEN, "each once: %llu", (unsigned long long)rig.device.copies);
    EXPECT(offload_present_bytes(&rig.offload) == list_bytes(&list));
    offload_end(&rig.offload);
    EXPECT(begin(&rig, &list, list_bytes(&list)) == 0 && run_pass(&rig, &list, true) == 0);
    EXPECT(rig.device.copies == EVEN, "residents stay after a pass");
    offload_drop(&rig.offload);
    EXPECT(offload_present_bytes(&rig.offload) == 0);
    check_copies(&rig);
    rig_destroy(&rig);
    list_destroy(&list);
}

/* In every room from the least to all: streamed blocks are copied once a pass, others once. */
static void test_rooms(void)
{
    struct fake_list list;

    list_create(&list, EVEN, even, 1);
    for (uint64_t room = 0; room <= EVEN * EVEN_BYTES; room += EVEN_BYTES / 2) {
        struct rig rig;
        int result;

        rig_create(&rig, room + 3 * PAGE);
        offload_add(&rig.offload, &list.list, 0);
        result = begin(&rig, &list, room);
        EXPECT(list.list.least_bytes == EVEN_BYTES);
        EXPECT(result == (room < list.list.least_bytes ? -ENOMEM : 0));
        EXPECT(result == 0 || strstr(rig.err.text, "vram_budget") != NULL, "%s", rig.err.text);
        if (result == 0) {
            uint64_t streamed = rig.offload.stats.streamed, first;

            EXPECT(run_pass(&rig, &list, true) == 0 && run_pass(&rig, &list, true) == 0, "%s",
                   rig.err.text);
            first = rig.device.copies;
            EXPECT(run_pass(&rig, &list, true) == 0);
            EXPECT(rig.device.copies - first == streamed, "room %llu: %llu copies, %llu streamed",
                   (unsigned long long)room, (unsigned long long)(rig.device.copies - first),
                   (unsigned long long)streamed);
            offload_end(&rig.offload);
            check_copies(&rig);
        }
        rig_destroy(&rig);
    }
    list_destroy(&list);
}

/* Without wrap the first block is not fetched again at the end. */
static void test_wrap(void)
{
    struct fake_list list;
    struct rig rig;

    list_create(&list, EVEN, even, 1);
    for (int wrap = 0; wrap < 2; wrap++) {
        rig_create(&rig, 3 * EVEN_BYTES);
        offload_add(&rig.offload, &list.list, 0);
        EXPECT(begin(&rig, &list, 2 * EVEN_BYTES) == 0 && run_pass(&rig, &list, wrap) == 0);
        EXPECT(rig.device.copies == EVEN + (uint64_t)wrap);
        EXPECT((list.blocks[0].block.memory != NULL) == wrap);
        rig_destroy(&rig);
    }
    list_destroy(&list);
    list_create(&list, 1, even, 1); /* a list of one */
    rig_create(&rig, 2 * EVEN_BYTES);
    offload_add(&rig.offload, &list.list, 0);
    EXPECT(begin(&rig, &list, EVEN_BYTES) == 0 && run_pass(&rig, &list, true) == 0);
    EXPECT(run_pass(&rig, &list, true) == 0 && rig.device.copies == 1);
    rig_destroy(&rig);
    list_destroy(&list);
}

/* Of a list half is there, and ever less room: what it used gives way, never the last list. */
static void run_shrinking(struct rig *rig, struct fake_list *list, struct fake_list *last)
{
    for (uint64_t room = 6; room >= 2; room--) {
        uint64_t before = rig->device.copies;

        EXPECT(begin(rig, list, room * EVEN_BYTES) == 0 && run_pass(rig, list, false) == 0);
        EXPECT(room > 4 || rig->device.copies - before == EVEN / 2, "room %d", (int)room);
        EXPECT(room == 6 || block_list_present_bytes(&last->list) == list_bytes(last),
               "room %d: the last list gave way", (int)room);
        EXPECT(begin(rig, last, list_bytes(last)) == 0 && run_pass(rig, last, true) == 0);
    }
}

/* Memory for others drives out other lists' blocks, then this pass's, never the one in use. */
static void test_eviction(void)
{
    struct arena_request big = {.bytes = 3 * EVEN_BYTES};
    struct fake_list list, other;
    uintptr_t address;
    struct rig rig;

    list_create(&list, EVEN, even, 1);
    list_create(&other, EVEN, even, 7);
    rig_create(&rig, 17 * EVEN_BYTES);
    offload_add(&rig.offload, &list.list, 0);
    offload_add(&rig.offload, &other.list, 1);
    EXPECT(arena_alloc(rig.arena, &big, &address, NULL) == 0);
    run_shrinking(&rig, &list, &other);
    EXPECT(arena_free(rig.arena, address, 0) == 0);
    big.bytes = 8 * EVEN_BYTES;
    EXPECT(begin(&rig, &other, list_bytes(&other)) == 0 && run_pass(&rig, &other, false) == 0);
    EXPECT(begin(&rig, &list, list_bytes(&list)) == 0 && run_pass(&rig, &list, true) == 0);
    EXPECT(offload_present_bytes(&rig.offload) == 16 * EVEN_BYTES);
    EXPECT(arena_alloc(rig.arena, &big, &address, NULL) == 0);
    EXPECT(offload_present_bytes(&rig.offload) >= 8 * EVEN_BYTES);
    for (size_t i = 0; i < EVEN; i++)
        EXPECT(list.blocks[i].block.memory != NULL, "block %zu of the pass", i);
    EXPECT(arena_free(rig.arena, address, 0) == 0);
    big.bytes = 16 * EVEN_BYTES;
    EXPECT(arena_alloc(rig.arena, &big, &address, NULL) == 0);
    EXPECT(list.blocks[EVEN - 1].block.memory != NULL, "the block in use stays");
    compute(&rig.device, (void *)address, big.bytes);
    EXPECT(rig.device.fault == NULL, "%s", rig.device.fault);
    big.bytes = 2 * EVEN_BYTES;
    EXPECT(arena_alloc(rig.arena, &big, &address, NULL) == -ENOMEM);
    EXPECT(list.blocks[EVEN - 1].block.memory != NULL);
    EXPECT(run_pass(&rig, &list, true) == 0, "with room for one, each comes in its turn");
    offload_end(&rig.offload);
    big.bytes = EVEN_BYTES;
    EXPECT(arena_alloc(rig.arena, &big, &address, NULL) == 0);
    EXPECT(begin(&rig, &list, list_bytes(&list)) == 0);
    EXPECT(run_block(&rig, &list, 0, true) == -ENOMEM, "no room for any");
    EXPECT(strstr(rig.err.text, "vram_budget") != NULL, "%s", rig.err.text);
    rig_destroy(&rig);
    list_destroy(&list);
    list_destroy(&other);
}

/* A pass is broken off at its first block, in the ring; others take the memory of those that were
 * to stay. The next one must not lose block 0, which is there, to block 1 while it computes. */
static void test_ring_spares_block_in_use(void)
{
    struct arena_request others = {.bytes = 4 * EVEN_BYTES};
    struct fake_list list;
    uintptr_t address;
    struct rig rig;

    list_create(&list, EVEN, even, 1);
    rig_create(&rig, 6 * EVEN_BYTES);
    offload_add(&rig.offload, &list.list, 0);
    EXPECT(begin(&rig, &list, 6 * EVEN_BYTES) == 0);
    EXPECT(!rig.offload.resident[0] && rig.offload.resident[1] && !rig.offload.resident[2]);
    EXPECT(run_block(&rig, &list, 0, true) == 0, "%s", rig.err.text);
    EXPECT(arena_alloc(rig.arena, &others, &address, NULL) == 0);
    EXPECT(list.blocks[0].block.memory != NULL && list.blocks[1].block.memory == NULL);
    EXPECT(run_pass(&rig, &list, true) == 0, "%s", rig.err.text);
    EXPECT(run_pass(&rig, &list, true) == 0, "%s", rig.err.text);
    rig_destroy(&rig);
    list_destroy(&list);
}

/* Random lists and rooms, broken off, planned anew, with memory taken and given back in between. */
static void test_random(uint64_t seed)
{
    struct fake_list lists[3];
    uintptr_t taken[4] = {0};
    uint64_t budget = (8 + seed % 40) * PAGE, ran = 0, refused = 0;
    struct rig rig;

    rig_create(&rig, budget);
    rig.random = seed;
    for (int l = 0; l < 3; l++) {
        int floats[BLOCKS_MAX];

        for (int i = 0; i < BLOCKS_MAX; i++)
            floats[i] = 1 + (int)below(&rig, below(&rig, 4) == 0 ? 20000 : 5000);
        list_create(&lists[l], 1 + below(&rig, BLOCKS_MAX), floats, (float)(1 + 7 * l));
        offload_add(&rig.offload, &lists[l].list, l);
    }
    for (int round = 0; round < 60; round++) {
        struct fake_list *list = &lists[below(&rig, 3)];
        uint64_t slot = below(&rig, 4), room = below(&rig, budget);
        struct arena_request request = {.bytes = 1 + below(&rig, budget / 6)};
        int result = 0;

        if (rig.offload.pass != &list->list || below(&rig, 3) == 0)
            result = begin(&rig, list, room);
        check_copies(&rig);
        for (size_t i = 0; result == 0 && i < list->list.count; i++) {
            result = run_block(&rig, list, i, below(&rig, 2) == 0);
            ran += result == 0;
            if (below(&rig, 12) == 0)
                break;
        }
        refused += result != 0;
        EXPECT(result == 0 || (result == -ENOMEM && strlen(rig.err.text) > 10), "%d", result);
        if (result != 0 && rig.offload.pass != NULL)
            offload_end(&rig.offload);
        if (taken[slot] != 0)
            EXPECT(arena_free(rig.arena, taken[slot], 0) == 0);
        taken[slot] = 0;
        if (arena_alloc(rig.arena, &request, &taken[slot], NULL) == 0)
            compute(&rig.device, (void *)taken[slot], request.bytes);
        if (below(&rig, 10) == 0)
            offload_drop(&rig.offload);
        check_copies(&rig);
        EXPECT(rig.device.fault == NULL, "seed %llu: %s", (unsigned long long)seed,
               rig.device.fault);
    }
    EXPECT(ran > 0 || refused > 0);
    rig_destroy(&rig);
    for (int l = 0; l < 3; l++)
        list_destroy(&lists[l]);
}

int main(void)
{
    test_all_resident();
    test_rooms();
    test_wrap();
    test_eviction();
    test_ring_spares_block_in_use();
    for (uint64_t seed = 1; seed <= 200; seed++)
        test_random(seed);
    return test_finish();
}
