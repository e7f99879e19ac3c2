/* SPDX-License-Identifier: MIT */
/*
 * Of weights that pass again and again, more than there are page tables for: what is pinned keeps
 * within those that were granted, by the device's count too.
 * usage: pinned MODULE_FOLDER
 */
#include <sys/mman.h>
#include <time.h>

#include "engine/card.h"
#include "engine/module.h"
#include "tests/test.h"

#define MIB ((uint64_t)1 << 20)
#define GRANTED (2 * MIB)
#define WEIGHT_BYTES (32 * MIB)

enum { WEIGHTS = 40, PASSES = 3, WAIT_MS = 20000, STILL_MS = 600, STEP_MS = 20 };

static struct error err;

/* Memory of the device for one weight, which all go to; it stays until the process ends. */
static void *place_for_one(struct backend *backend)
{
    struct page_source *pages = backend->pages;
    uintptr_t base = 0;

    EXPECT(pages->ops->reserve(pages, WEIGHT_BYTES, &base) == 0);
    for (uint64_t at = 0; at < WEIGHT_BYTES; at += pages->granule_bytes) {
        page_handle page;

        EXPECT(pages->ops->create(pages, &page) == 0 &&
               pages->ops->map(pages, base + at, page) == 0);
    }
    EXPECT(pages->ops->set_access(pages, base, WEIGHT_BYTES) == 0);
    return (void *)base;
}

static void pass_all(struct backend *backend, void *target, const char *file)
{
    for (int i = 0; i < WEIGHTS; i++) {
        struct weight_copy copy = {.target = target,
                                   .source = file + (uint64_t)i * WEIGHT_BYTES,
                                   .source_dtype = DTYPE_BF16,
                                   .layout = WEIGHT_MATRIX,
                                   .rows = 1,
                                   .cols = WEIGHT_BYTES / sizeof(uint16_t),
                                   .lasting = true};

        backend->ops->copy_weights(backend, &copy, 1);
    }
    backend->ops->copy_wait(backend, backend->ops->copy_ticket(backend));
    EXPECT(backend->ops->sync(backend, &err) == 0, "%s", err.text);
}

/* Until no more has been pinned for a while. */
static void settle(struct backend *backend)
{
    const struct timespec step = {.tv_nsec = STEP_MS * 1000000};
    uint64_t pinned = backend->ops->pinned_bytes(backend);

    for (int ms = 0, still_ms = 0; ms < WAIT_MS && still_ms < STILL_MS; ms += STEP_MS) {
        nanosleep(&step, NULL);
        EXPECT(backend->ops->sync(backend, &err) == 0, "%s", err.text);
        still_ms = backend->ops->pinned_bytes(backend) == pinned ? still_ms + STEP_MS : 0;
        pinned = backend->ops->pinned_bytes(backend);
    }
}

static uint64_t free_bytes(struct backend *backend)
{
    uint64_t available = 0, total = 0;

    EXPECT(backend->pages->ops->memory(backend->pages, &available, &total) == 0);
    return available;
}

int main(int argc, char **argv)
{
    uint64_t pinned, before;
    struct backend *backend;
    const char *file;
    void *target;

    if (argc != 2)
        return test_skip("usage: pinned MODULE_FOLDER");
    file = mmap(NULL, WEIGHTS * WEIGHT_BYTES, PROT_READ,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (!EXPECT(file != MAP_FAILED) ||
        !EXPECT(module_open(&backend, argv[1], "cuda", &err) == 0, "%s", err.text))
        return EXIT_FAILURE;
    target = place_for_one(backend);
    pinned = backend->ops->pinned_bytes(backend);
    before = free_bytes(backend);
    for (int pass = 0; pass < PASSES; pass++)
        pass_all(backend, target, file);
    settle(backend);
    EXPECT(backend->ops->pinned_bytes(backend) == pinned && free_bytes(backend) == before,
           "without page tables");
    EXPECT(backend->context_wanted >= GRANTED || backend->context_share == 0);
    backend->context_granted += GRANTED;
    settle(backend);
    pinned = backend->ops->pinned_bytes(backend) - pinned;
    before -= free_bytes(backend);
    printf("%.1f MiB pinned, %.2f MiB of the device\n", (double)pinned / MIB, (double)before / MIB);
    EXPECT(pinned > 0 || backend->context_share == 0, "the host has memory, and nothing is pinned");
    EXPECT(pinned <= GRANTED * CUDA_PINNED_PER_TABLE);
    EXPECT(before <= GRANTED);
    return test_finish();
}
