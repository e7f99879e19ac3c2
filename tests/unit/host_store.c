/* SPDX-License-Identifier: MIT */
/* The host store without a GPU: what is kept, when, and within which memory. */
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "engine/cuda/host_store.h"
#include "engine/cuda/weights.h"
#include "alloc/host_memory.h"
#include "tests/test.h"

enum { CHUNK = 4096, WEIGHTS = 16, ELEMENTS = 500, PAGE = 512, IN_PLACE = 2048 };

struct machine {
    _Atomic uint64_t spare; /* what is left to pin */
    atomic_int begun, chunks, pins;
    bool refuses, refuses_pages;
};

static void machine_begin(void *owner)
{
    ((struct machine *)owner)->begun++;
}

static void *machine_allocate(void *owner, size_t bytes)
{
    struct machine *machine = owner;

    if (machine->refuses)
        return NULL;
    machine->spare -= bytes;
    machine->chunks++;
    return malloc(bytes);
}

static void machine_release(void *owner, void *memory)
{
    ((struct machine *)owner)->chunks--;
    free(memory);
}

static bool machine_pin(void *owner, const void *pages, size_t bytes)
{
    struct machine *machine = owner;

    EXPECT((uintptr_t)pages % PAGE == 0 && bytes % PAGE == 0 && bytes > 0);
    if (machine->refuses_pages)
        return false;
    machine->pins++;
    return true;
}

static void machine_unpin(void *owner, const void *pages)
{
    EXPECT((uintptr_t)pages % PAGE == 0);
    ((struct machine *)owner)->pins--;
}

/* As /proc/meminfo, which counts page cache as free, pinned or not. */
static uint64_t machine_spare(void *owner, uint64_t in_place)
{
    uint64_t spare = ((struct machine *)owner)->spare;

    return spare > in_place ? spare - in_place : 0;
}

static struct host_store *store_of(struct machine *machine)
{
    struct host_store_options options = {.owner = machine,
                                         .begin = machine_begin,
                                         .allocate = machine_allocate,
                                         .release = machine_release,
                                         .pin = machine_pin,
                                         .unpin = machine_unpin,
                                         .spare = machine_spare,
                                         .chunk_bytes = CHUNK,
                                         .in_place_bytes = IN_PLACE,
                                         .page_bytes = PAGE};
    struct host_store *store = NULL;
    struct error err;

    if (!EXPECT(host_store_create(&store, &options, &err) == 0, "%s", err.text))
        exit(EXIT_FAILURE);
    return store;
}

static float values[WEIGHTS][ELEMENTS];
static _Alignas(PAGE) uint16_t stored[8 * PAGE];

static struct weight_copy weight(int i, int64_t n)
{
    return (struct weight_copy){.source = values[i],
                                .source_dtype = DTYPE_F32,
                                .layout = WEIGHT_MATRIX,
                                .rows = 1,
                                .cols = n,
                                .lasting = true};
}

/* As the file has it, from a byte on that is no page's. */
static struct weight_copy stored_weight(int64_t first, int64_t n)
{
    return (struct weight_copy){.source = stored + first,
                                .source_dtype = DTYPE_BF16,
                                .layout = WEIGHT_MATRIX,
                                .rows = 1,
                                .cols = n,
                                .lasting = true};
}

static void fill_values(void)
{
    for (int i = 0; i < WEIGHTS; i++)
        for (int j = 0; j < ELEMENTS; j++)
            values[i][j] = (float)(i * 1000 + j);
    for (int i = 0; i < 8 * PAGE; i++)
        stored[i] = (uint16_t)(i * 3);
}

static const struct host_weight *pass(struct host_store *store, const struct weight_copy *copy)
{
    host_store_passed(store, copy);
    host_store_passed(store, copy);
    host_store_settle(store);
    return host_store_find(store, copy);
}

static bool right(const struct host_weight *kept, const struct weight_copy *copy)
{
    int64_t n = copy->rows * copy->cols;
    char wanted[16384], found[16384];
    size_t at = 0, bytes = (size_t)n * weights_element_bytes(copy);

    weights_fill(copy, 0, n, wanted);
    for (int i = 0; kept != NULL && i < 3; i++) {
        if (kept->piece[i].bytes > 0)
            memcpy(found + at, kept->piece[i].data, kept->piece[i].bytes);
        at += kept->piece[i].bytes;
    }
    return kept != NULL && at == bytes && memcmp(found, wanted, bytes) == 0;
}

static void test_second_passage(void)
{
    struct machine machine = {.spare = UINT64_MAX};
    struct host_store *store = store_of(&machine);
    struct weight_copy copy = weight(0, ELEMENTS);

    host_store_passed(store, &copy);
    host_store_settle(store);
    EXPECT(host_store_find(store, &copy) == NULL && host_store_bytes(store) == 0);
    host_store_passed(store, &copy);
    host_store_settle(store);
    EXPECT(right(host_store_find(store, &copy), &copy));
    EXPECT(host_store_bytes(store) == CHUNK);
    host_store_destroy(store);
    EXPECT(machine.begun == 1 && machine.chunks == 0 && machine.pins == 0);
}

static void test_all_copied(void)
{
    struct machine machine = {.spare = UINT64_MAX};
    struct host_store *store = store_of(&machine);
    const struct host_weight *kept[WEIGHTS];
    struct weight_copy copy;

    for (int i = 0; i < WEIGHTS; i++) {
        copy = weight(i, ELEMENTS - i);
        kept[i] = pass(store, &copy);
    }
    for (int i = 0; i < WEIGHTS; i++) {
        copy = weight(i, ELEMENTS - i);
        EXPECT(right(kept[i], &copy), "weight %d", i);
    }
    /* 16 weights of up to 1024 bytes, four in a chunk */
    EXPECT(host_store_bytes(store) == 4 * CHUNK, "%llu",
           (unsigned long long)host_store_bytes(store));
    /* The same place taken for something else is another weight. */
    copy = weight(3, 7);
    EXPECT(right(pass(store, &copy), &copy));
    copy = weight(3, ELEMENTS - 3);
    EXPECT(right(pass(store, &copy), &copy));
    host_store_destroy(store);
}

/* Wherever a weight begins and ends, its whole pages are pinned and its edges copied. */
static void test_in_place(void)
{
    struct machine machine = {.spare = UINT64_MAX};
    struct host_store *store = store_of(&machine);
    static const int64_t firsts[] = {0, 1, PAGE / 2 - 1, PAGE / 2}, sizes[] = {1024, 1025, 3333};
    int pinned = 0;

    for (size_t i = 0; i < 4; i++) {
        for (size_t j = 0; j < 3; j++) {
            struct weight_copy copy = stored_weight(firsts[i], sizes[j]);

            EXPECT(right(pass(store, &copy), &copy), "at %zu, %zu", i, j);
            EXPECT(machine.pins == ++pinned);
        }
    }
    /* Small ones, and those that are not as stored, are copied. */
    struct weight_copy copy = stored_weight(7, IN_PLACE / 2 - 1);
    EXPECT(right(pass(store, &copy), &copy) && machine.pins == pinned);
    copy = stored_weight(9, 1024);
    copy.layout = WEIGHT_VECTOR;
    EXPECT(right(pass(store, &copy), &copy) && machine.pins == pinned);
    host_store_destroy(store);
    EXPECT(machine.chunks == 0 && machine.pins == 0);
}

/* It is copied then, and takes no more of a chunk than that. */
static void test_pages_refused(void)
{
    struct machine machine = {.spare = 2 * CHUNK, .refuses_pages = true};
    struct host_store *store = store_of(&machine);
    struct weight_copy copy = stored_weight(3, 1500), other = weight(0, ELEMENTS);

    EXPECT(right(pass(store, &copy), &copy) && machine.pins == 0 && machine.chunks == 1);
    EXPECT(right(pass(store, &other), &other) && machine.chunks == 1);
    host_store_destroy(store);
}

static void test_memory_ends(void)
{
    struct machine machine = {.spare = CHUNK};
    struct host_store *store = store_of(&machine);
    struct weight_copy copy;
    int kept = 0;

    for (int i = 0; i < WEIGHTS; i++) {
        copy = weight(i, ELEMENTS);
        kept += pass(store, &copy) != NULL;
    }
    EXPECT(kept == 4 && host_store_bytes(store) == CHUNK, "%d", kept);
    EXPECT(host_store_wanted(store) == (WEIGHTS - 4) * 2 * ELEMENTS);
    /* Once there is some again, those that wait get it in their order, at the next chance. */
    machine.spare = CHUNK;
    copy = weight(WEIGHTS - 1, ELEMENTS);
    EXPECT(pass(store, &copy) == NULL && host_store_bytes(store) == CHUNK);
    for (int chance = 0; chance < 2; chance++) {
        host_store_retry(store);
        host_store_settle(store);
    }
    for (int i = 0; i < WEIGHTS; i++) {
        copy = weight(i, ELEMENTS);
        EXPECT((i < 8) == right(host_store_find(store, &copy), &copy), "weight %d", i);
    }
    EXPECT(host_store_bytes(store) == 2 * CHUNK);
    EXPECT(host_store_wanted(store) == (WEIGHTS - 8) * 2 * ELEMENTS);
    host_store_destroy(store);

    machine = (struct machine){.spare = UINT64_MAX, .refuses = true};
    store = store_of(&machine);
    copy = weight(0, ELEMENTS);
    EXPECT(pass(store, &copy) == NULL && host_store_bytes(store) == 0);
    host_store_destroy(store);
}

/* What is pinned in place counts, though the machine doesn't say so, and so does the chunk that its
 * edges take. */
static void test_pages_end(void)
{
    for (uint64_t more = 0; more <= 6 * PAGE; more += PAGE) {
        struct machine machine = {.spare = CHUNK + more};
        struct host_store *store = store_of(&machine);
        int kept = 0;

        for (int i = 0; i < 6; i++) {
            struct weight_copy copy = stored_weight(1 + i, IN_PLACE / 2 + PAGE / 2);

            kept += pass(store, &copy) != NULL && machine.pins > kept;
        }
        EXPECT(kept == (more >= IN_PLACE), "%d with %d more", kept, (int)more);
        EXPECT(host_store_bytes(store) <= CHUNK + more, "%llu",
               (unsigned long long)host_store_bytes(store));
        host_store_destroy(store);
    }
}

static void test_not_kept(void)
{
    struct machine machine = {.spare = UINT64_MAX};
    struct host_store *store = store_of(&machine);
    static float large[CHUNK];
    struct weight_copy copy = weight(0, CHUNK);

    copy.source = large; /* two chunks */
    EXPECT(pass(store, &copy) == NULL && host_store_bytes(store) == 0);
    values[5][100] = NAN; /* damaged meanwhile */
    copy = weight(5, ELEMENTS);
    EXPECT(pass(store, &copy) == NULL);
    values[5][100] = 1;
    EXPECT(right(pass(store, &copy), &copy));
    host_store_destroy(store);
    host_store_destroy(NULL);
}

/* A quarter of the memory is left to others, whatever they do while we look. */
static void test_spare(void)
{
    struct host_memory memory = host_memory();
    uint64_t left = memory.total_bytes / 8, spare = host_memory_spare(0);

    EXPECT(spare <= memory.available_bytes - left || (memory.available_bytes < left && spare == 0),
           "%llu of %llu", (unsigned long long)spare, (unsigned long long)memory.available_bytes);
    EXPECT(host_memory_spare(memory.total_bytes / 2) <= memory.total_bytes / 4, "pinned in place");
    EXPECT(host_memory_spare(memory.total_bytes) == 0 && host_memory_spare(UINT64_MAX) == 0);
}

int main(void)
{
    fill_values();
    test_second_passage();
    test_all_copied();
    test_in_place();
    test_pages_refused();
    test_memory_ends();
    test_pages_end();
    test_not_kept();
    test_spare();
    return test_finish();
}
