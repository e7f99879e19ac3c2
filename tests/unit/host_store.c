/* SPDX-License-Identifier: MIT */
/* The host store without a GPU: what is kept, when, and within which memory. */
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "engine/cuda/host_store.h"
#include "engine/cuda/weights.h"
#include "tests/test.h"

enum { CHUNK = 4096, WEIGHTS = 16, ELEMENTS = 500 };

struct machine {
    _Atomic uint64_t spare; /* what is left to pin */
    atomic_int begun, pinned;
    bool refuses;
};

static void machine_begin(void *owner)
{
    ((struct machine *)owner)->begun++;
}

static void *machine_pin(void *owner, size_t bytes)
{
    struct machine *machine = owner;

    if (machine->refuses)
        return NULL;
    machine->spare -= bytes;
    machine->pinned++;
    return malloc(bytes);
}

static void machine_unpin(void *owner, void *memory)
{
    ((struct machine *)owner)->pinned--;
    free(memory);
}

static uint64_t machine_spare(void *owner)
{
    return ((struct machine *)owner)->spare;
}

static struct host_store *store_of(struct machine *machine)
{
    struct host_store_options options = {machine,       machine_begin, machine_pin,
                                         machine_unpin, machine_spare, CHUNK};
    struct host_store *store = NULL;
    struct error err;

    if (!EXPECT(host_store_create(&store, &options, &err) == 0, "%s", err.text))
        exit(EXIT_FAILURE);
    return store;
}

static float values[WEIGHTS][ELEMENTS];

static struct weight_copy weight(int i, int64_t n)
{
    return (struct weight_copy){.source = values[i],
                                .source_dtype = DTYPE_F32,
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
}

/* Asks twice, and once more when the store is at rest. */
static const void *pass(struct host_store *store, int i, int64_t n)
{
    struct weight_copy copy = weight(i, n);

    host_store_find(store, &copy);
    host_store_find(store, &copy);
    host_store_settle(store);
    return host_store_find(store, &copy);
}

static bool right(const void *kept, int i, int64_t n)
{
    uint16_t wanted[ELEMENTS];
    struct weight_copy copy = weight(i, n);

    weights_fill(&copy, 0, n, wanted);
    return kept != NULL && memcmp(kept, wanted, (size_t)n * sizeof *wanted) == 0;
}

static void test_second_passage(void)
{
    struct machine machine = {.spare = UINT64_MAX};
    struct host_store *store = store_of(&machine);
    struct weight_copy copy = weight(0, ELEMENTS);

    EXPECT(host_store_find(store, &copy) == NULL);
    host_store_settle(store);
    EXPECT(host_store_find(store, &copy) == NULL && host_store_bytes(store) <= CHUNK);
    host_store_settle(store);
    EXPECT(right(host_store_find(store, &copy), 0, ELEMENTS));
    EXPECT(host_store_bytes(store) == CHUNK);
    host_store_destroy(store);
    EXPECT(machine.begun == 1 && machine.pinned == 0);
}

static void test_all_kept(void)
{
    struct machine machine = {.spare = UINT64_MAX};
    struct host_store *store = store_of(&machine);
    const void *kept[WEIGHTS];

    for (int i = 0; i < WEIGHTS; i++)
        kept[i] = pass(store, i, ELEMENTS - i);
    for (int i = 0; i < WEIGHTS; i++)
        EXPECT(right(kept[i], i, ELEMENTS - i), "weight %d", i);
    /* 16 weights of up to 1024 bytes, four in a chunk */
    EXPECT(host_store_bytes(store) == 4 * CHUNK, "%llu",
           (unsigned long long)host_store_bytes(store));
    /* The same place taken for something else is another weight. */
    EXPECT(right(pass(store, 3, 7), 3, 7) && right(pass(store, 3, ELEMENTS - 3), 3, ELEMENTS - 3));
    host_store_destroy(store);
}

static void test_memory_ends(void)
{
    struct machine machine = {.spare = CHUNK};
    struct host_store *store = store_of(&machine);
    int kept = 0;

    for (int i = 0; i < WEIGHTS; i++)
        kept += pass(store, i, ELEMENTS) != NULL;
    EXPECT(kept == 4 && host_store_bytes(store) == CHUNK, "%d", kept);
    /* Once there is some again, the next passage takes it. */
    machine.spare = CHUNK;
    EXPECT(right(pass(store, 10, ELEMENTS), 10, ELEMENTS));
    EXPECT(host_store_bytes(store) == 2 * CHUNK);
    host_store_destroy(store);

    machine = (struct machine){.spare = UINT64_MAX, .refuses = true};
    store = store_of(&machine);
    EXPECT(pass(store, 0, ELEMENTS) == NULL && host_store_bytes(store) == 0);
    host_store_destroy(store);
}

static void test_not_kept(void)
{
    struct machine machine = {.spare = UINT64_MAX};
    struct host_store *store = store_of(&machine);
    static float large[CHUNK];
    struct weight_copy copy = weight(0, CHUNK);

    copy.source = large; /* two chunks */
    host_store_find(store, &copy);
    host_store_find(store, &copy);
    host_store_settle(store);
    EXPECT(host_store_find(store, &copy) == NULL && host_store_bytes(store) == 0);
    values[5][100] = NAN; /* damaged: each passage must say so */
    EXPECT(pass(store, 5, ELEMENTS) == NULL);
    host_store_settle(store);
    values[5][100] = 1;
    EXPECT(right(pass(store, 5, ELEMENTS), 5, ELEMENTS));
    host_store_destroy(store);
    host_store_destroy(NULL);
}

int main(void)
{
    fill_values();
    test_second_passage();
    test_all_kept();
    test_memory_ends();
    test_not_kept();
    EXPECT(host_memory_spare() < UINT64_C(1) << 50);
    return test_finish();
}
