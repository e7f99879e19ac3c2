/* SPDX-License-Identifier: MIT */
/* The CUDA page source's contract, its errors, and what the context costs. */
#include "tests/unit/cuda_fixture.h"

#include <pthread.h>

/* ---- The contract of page_source.h ---- */

static void test_one_page_twice(void)
{
    struct fixture f;
    const struct page_source_ops *ops;
    uint64_t free_before = 0, free_after = 0, total;
    page_handle page = 0, other = 0;
    uintptr_t base = 0;

    device_is("lazy");
    fixture_open(&f);
    ops = f.pages->ops;
    EXPECT(f.pages->granule_bytes == PAGE);
    EXPECT(ops->memory(f.pages, &free_before, &total) == 0 && total == 8192 * MIB);
    EXPECT(ops->reserve(f.pages, UINT64_C(64) * PAGE, &base) == 0 && base % PAGE == 0);
    EXPECT(ops->create(f.pages, &page) == 0 && ops->create(f.pages, &other) == 0);
    EXPECT(ops->memory(f.pages, &free_after, &total) == 0 && free_after == free_before - 2 * PAGE);
    EXPECT(ops->map(f.pages, base, page) == 0);
    EXPECT(!device_is_accessible((void *)base, PAGE), "a new mapping has no access");
    EXPECT(ops->set_access(f.pages, base, PAGE) == 0);
    memset((void *)base, 0x5a, PAGE);
    EXPECT(ops->map(f.pages, base + 3 * PAGE, page) == 0);
    EXPECT(ops->map(f.pages, base + 4 * PAGE, other) == 0);
    EXPECT(ops->set_access(f.pages, base + 3 * PAGE, 2 * PAGE) == 0, "one call for both");
    EXPECT(memcmp((void *)base, (void *)(base + 3 * PAGE), PAGE) == 0);
    EXPECT(*(unsigned char *)(base + 4 * PAGE) == 0xff, "another page");
    EXPECT(ops->unmap(f.pages, base) == 0 && !device_is_accessible((void *)base, 1));
    EXPECT(*(unsigned char *)(base + 4 * PAGE - 1) == 0x5a);
    EXPECT(ops->unmap(f.pages, base + 3 * PAGE) == 0 && ops->unmap(f.pages, base + 4 * PAGE) == 0);
    ops->release(f.pages, page);
    ops->release(f.pages, other);
    ops->unreserve(f.pages, base, UINT64_C(64) * PAGE);
    EXPECT(ops->memory(f.pages, &free_after, &total) == 0 && free_after == free_before);
    EXPECT(f.faults == 0, "%s", f.fault);
    fixture_close(&f);
}

static void no_work(void *args)
{
}

static void test_fences(void)
{
    struct fixture f;
    const struct page_source_ops *ops;
    page_fence fences[PAGE_FENCES], more;

    device_is("lazy");
    fixture_open(&f);
    ops = f.pages->ops;
    for (int i = 0; i < PAGE_FENCES; i++) {
        device_queue(f.stream, no_work, "", 1);
        EXPECT(ops->fence_record(f.pages, i % 8, &fences[i]) == 0);
        EXPECT(ops->fence_query(f.pages, fences[i]) == 0);
    }
    EXPECT(ops->fence_record(f.pages, 0, &more) == -EAGAIN, "more than a source has");
    EXPECT(ops->fence_wait(f.pages, fences[100]) == 0);
    EXPECT(ops->fence_query(f.pages, fences[99]) == 1, "all before it have passed");
    EXPECT(ops->fence_query(f.pages, fences[101]) == 0, "and none behind it");
    EXPECT(ops->fence_record(f.pages, 0, &more) == 0, "those that were seen serve again");
    EXPECT(ops->fence_wait(f.pages, more) == 0 && ops->fence_query(f.pages, fences[127]) == 1);
    EXPECT(f.faults == 0, "%s", f.fault);
    fixture_close(&f);
}

static void *read_memory(void *pointer)
{
    struct fixture *f = pointer;
    uint64_t free_bytes = 0, total_bytes = 0;

    EXPECT(f->pages->ops->memory(f->pages, &free_bytes, &total_bytes) == 0 && free_bytes > 0);
    return NULL;
}

/* A thread that the driver has never seen has no context. */
static void test_new_thread(void)
{
    struct fixture f;
    pthread_t thread;

    device_is("");
    fixture_open(&f);
    EXPECT(pthread_create(&thread, NULL, read_memory, &f) == 0);
    pthread_join(thread, NULL);
    fixture_close(&f);
}

static void test_refused(void)
{
    struct cuda_pages_options options = {.fault = note_fault};
    struct page_source *pages = NULL;
    struct fixture f;

    device_is("");
    fixture_open(&f);
    options.context = &f.context;
    device_is("no-virtual-memory");
    EXPECT(cuda_pages_create(&pages, &options, &f.err) == -ENODEV && pages == NULL);
    device_is("");
    device_fail(2, 0, CUDA_ERROR_INVALID_VALUE);
    EXPECT(cuda_pages_create(&pages, &options, &f.err) == -EIO && pages == NULL);
    EXPECT(strcmp(f.err.text, "back end cuda: page size: invalid argument") == 0, "%s", f.err.text);
    device_is("granule=64");
    EXPECT(cuda_pages_create(&pages, &options, &f.err) == 0 && pages->granule_bytes == PAGE);
    pages->ops->destroy(pages);
    device_is("granule=16384");
    EXPECT(cuda_pages_create(&pages, &options, &f.err) == 0 && pages->granule_bytes == 8 * PAGE);
    pages->ops->destroy(pages);
    device_is("");
    fixture_close(&f);
}

/* ---- Errors ---- */

struct world {
    struct fixture f;
    uintptr_t base;
    page_handle page, spare;
    page_fence fence;
};

enum operation { RESERVE, CREATE, MAP, SET_ACCESS, UNMAP, RECORD, QUERY, WAIT, OPERATIONS };

static int operate(struct world *w, enum operation operation)
{
    const struct page_source_ops *ops = w->f.pages->ops;
    uintptr_t address = 1;
    page_handle page = 1;
    page_fence fence = 1;
    int code = 0;

    switch (operation) {
    case RESERVE:
        code = ops->reserve(w->f.pages, PAGE, &address);
        break;
    case CREATE:
        code = ops->create(w->f.pages, &page);
        break;
    case MAP:
        return ops->map(w->f.pages, w->base + PAGE, w->spare);
    case SET_ACCESS:
        return ops->set_access(w->f.pages, w->base, PAGE);
    case UNMAP:
        return ops->unmap(w->f.pages, w->base);
    case RECORD:
        code = ops->fence_record(w->f.pages, 0, &fence);
        break;
    case QUERY:
        return ops->fence_query(w->f.pages, w->fence);
    default:
        return ops->fence_wait(w->f.pages, w->fence);
    }
    EXPECT(address == 1 && page == 1 && fence == 1, "operation %d: outputs are untouched",
           operation);
    return code;
}

static void test_error(struct world *w, enum operation operation, CUresult result)
{
    static const char *const calls[] = {"cuMemAddressReserve", "cuMemCreate",       "cuMemMap",
                                        "cuMemSetAccess",      "cuMemUnmap",        "cuEventCreate",
                                        "cuEventQuery",        "cuEventSynchronize"};
    int code, faults = w->f.faults;

    device_fail(2, 0, (int)result); /* the first chooses the context */
    code = operate(w, operation);
    device_fail(0, 0, CUDA_SUCCESS);
    if (result == CUDA_ERROR_OUT_OF_MEMORY) {
        EXPECT(code == -ENOMEM && w->f.faults == faults, "%s: %d", calls[operation], code);
        return;
    }
    EXPECT(code == -EIO && w->f.faults == faults + 1, "%s: %d", calls[operation], code);
    EXPECT(strncmp(w->f.fault, calls[operation], strlen(calls[operation])) == 0, "%s: \"%s\"",
           calls[operation], w->f.fault);
    EXPECT(w->f.fault[strlen(w->f.fault) - 1] != ' ', "\"%s\"", w->f.fault);
}

static void test_errors(void)
{
    const struct page_source_ops *ops;
    struct world w = {0};

    device_is("lazy");
    fixture_open(&w.f);
    ops = w.f.pages->ops;
    EXPECT(ops->reserve(w.f.pages, 4 * PAGE, &w.base) == 0);
    EXPECT(ops->create(w.f.pages, &w.page) == 0 && ops->create(w.f.pages, &w.spare) == 0);
    EXPECT(ops->map(w.f.pages, w.base, w.page) == 0);
    EXPECT(ops->fence_record(w.f.pages, 0, &w.fence) == 0);
    for (enum operation operation = 0; operation < OPERATIONS; operation++)
        for (int i = 0; i < CODES; i++)
            test_error(&w, operation, codes[i]);
    EXPECT(ops->unmap(w.f.pages, w.base) == 0);
    ops->release(w.f.pages, w.page);
    ops->release(w.f.pages, w.spare);
    ops->unreserve(w.f.pages, w.base, 4 * PAGE);
    fixture_close(&w.f);
}

/* It would go on costing memory: it is the next one made. */
static void test_page_not_taken_back(void)
{
    struct device_books books;
    page_handle page = 0, again = 0;
    struct fixture f;

    device_is("");
    fixture_open(&f);
    EXPECT(f.pages->ops->create(f.pages, &page) == 0);
    device_fail(2, 0, CUDA_ERROR_INVALID_VALUE);
    f.pages->ops->release(f.pages, page);
    EXPECT(f.faults == 1 && strcmp(f.fault, "cuMemRelease: invalid argument") == 0, "%s", f.fault);
    EXPECT(f.pages->ops->create(f.pages, &again) == 0 && again == page);
    device_read_books(&books);
    EXPECT(books.handles == 1);
    device_fail(2, 0, CUDA_ERROR_INVALID_VALUE);
    f.pages->ops->release(f.pages, page);
    fixture_close(&f);
}
/* ---- What the context costs ---- */

static uint64_t cost(const char *device)
{
    struct fixture f;
    uint64_t bytes;

    device_is(device);
    fixture_open(&f);
    bytes = f.context.cost.bytes / MIB;
    fixture_close(&f);
    return bytes;
}

static void test_context_cost(void)
{
    EXPECT(cost("context=200") == 200);
    EXPECT(cost("context=200 others=4000") == 200, "whatever others have");
    EXPECT(cost("context=200 nvml=100") == 200, "and whatever they take meanwhile");
    EXPECT(cost("context=200 nvml=10") == 210, "but for little, which may be counted for nobody");
    EXPECT(cost("context=200 nvml=10 no-processes") == 210, "unless that can't be told apart");
    EXPECT(cost("context=200 nvml=5000 no-processes") == 200, "more than a context takes");
    EXPECT(cost("context=200 no-nvml") == 200, "all that is in use");
    EXPECT(cost("context=200 no-nvml others=4000") == 640, "no more than is usual");
    EXPECT(cost("context=4 no-nvml") == 4);
}

/* The runtime retains it once it is used, and who opens it again finds it there. */
static void test_context_again(void)
{
    struct device_usage before = {0};
    struct fixture f;

    device_is("context=200");
    fixture_open(&f);
    EXPECT(!f.context.again && f.context.cost.bytes == 200 * MIB);
    device_hold(true);
    EXPECT(context_usage(&f.context, &before) == 0);
    device_is("context=200 grown=30 others=5");
    context_grow(&f.context, &before);
    fixture_close(&f);

    device_is("context=200 grown=30 others=4000");
    fixture_open(&f);
    EXPECT(f.context.again && f.context.cost.bytes == 200 * MIB &&
           f.context.cost.grown == 35 * MIB);
    context_trim(&f.context);
    EXPECT(f.context.cost.grown == 35 * MIB, "nothing was given back");
    device_is("context=200 grown=10 others=4000 no-processes");
    context_trim(&f.context);
    EXPECT(f.context.cost.grown == 35 * MIB, "nobody tells");
    device_is("context=200 grown=25 no-processes");
    context_trim(&f.context);
    EXPECT(f.context.cost.grown == 25 * MIB, "no more is in use");
    device_is("context=200 grown=10 others=4000");
    context_trim(&f.context);
    EXPECT(f.context.cost.grown == 15 * MIB, "but for what was counted for nobody");
    fixture_close(&f);

    device_is("context=300");
    device_hold(false);
    fixture_open(&f);
    EXPECT(!f.context.again && f.context.cost.bytes == 300 * MIB && f.context.cost.grown == 0);
    device_is("context=300 grown=10");
    context_trim(&f.context);
    EXPECT(f.context.cost.grown == 0, "a first one is only measured");
    fixture_close(&f);
}

/* Of one that grows while the device becomes another, in MiB. */
static uint64_t growth(struct fixture *f, const char *from, const char *to)
{
    uint64_t grown = f->context.cost.grown;
    struct device_usage before = {0};

    device_is(from);
    EXPECT(context_usage(&f->context, &before) == 0);
    device_is(to);
    context_grow(&f->context, &before);
    return (f->context.cost.grown - grown) / MIB;
}

static void test_context_growth(void)
{
    struct device_usage before = {0};
    struct fixture f;

    device_is("");
    fixture_open(&f);
    EXPECT(growth(&f, "", "") == 0);
    EXPECT(growth(&f, "", "grown=10") == 10);
    EXPECT(growth(&f, "grown=10", "") == 0, "nothing is given back");
    EXPECT(growth(&f, "others=100", "others=400 grown=10") == 10, "others take meanwhile");
    EXPECT(growth(&f, "others=100", "others=20 grown=10") == 10, "others give back meanwhile");
    EXPECT(growth(&f, "others=100", "others=105 grown=10") == 15, "it may be counted for nobody");
    EXPECT(growth(&f, "", "grown=600") == 600, "however much it is");
    device_is("");
    EXPECT(context_usage(&f.context, &before) == 0);
    device_is("grown=10");
    device_fail(2, 0, CUDA_ERROR_LAUNCH_FAILED);
    context_grow(&f.context, &before);
    EXPECT(f.context.cost.grown == 645 * MIB);
    fixture_close(&f);
}

/* Where nobody tells how much is ours. */
static void test_growth_untold(void)
{
    static const char *const words[] = {"no-nvml", "no-processes"};

    for (int i = 0; i < 2; i++) {
        char from[64], to[64];
        struct fixture f;

        device_is(words[i]);
        fixture_open(&f);
        snprintf(from, sizeof from, "%s others=100", words[i]);
        snprintf(to, sizeof to, "%s others=100 grown=10", words[i]);
        EXPECT(growth(&f, from, to) == 10);
        EXPECT(growth(&f, to, from) == 0, "nothing is given back");
        snprintf(to, sizeof to, "%s others=120 grown=10", words[i]);
        EXPECT(growth(&f, from, to) == 30, "others can't be told apart");
        snprintf(to, sizeof to, "%s others=2000", words[i]);
        EXPECT(growth(&f, from, to) == 0, "unless it is more than a library takes");
        EXPECT(growth(&f, "others=100", to) == 0, "not told any more");
        fixture_close(&f);
    }
}

static void test_no_context(void)
{
    struct cuda_context context = {0};
    struct device_books books;
    struct driver driver;
    struct error err;

    EXPECT(driver_open(&driver, &err) == 0);
    device_is("memory=64");
    EXPECT(context_open(&context, &driver, &err) == -ENODEV && context.context == NULL);
    EXPECT(strstr(err.text, "out of memory") != NULL, "%s", err.text);
    device_is("");
    for (int call = 1; call <= 6; call++) { /* init, device, bus, state, context, its choice */
        device_fail((uint64_t)call, 0, CUDA_ERROR_ILLEGAL_ADDRESS);
        if (context_open(&context, &driver, &err) == 0) {
            EXPECT(call == 3 || call == 4, "call %d", call);
            context_close(&context);
        }
        device_fail(0, 0, CUDA_SUCCESS);
        device_read_books(&books);
        EXPECT(books.contexts == 0, "call %d: a context is left", call);
    }
    context_close(&context);
}

int main(void)
{
    test_one_page_twice();
    test_fences();
    test_new_thread();
    test_refused();
    test_errors();
    test_page_not_taken_back();
    test_context_cost();
    test_context_again();
    test_context_growth();
    test_growth_untold();
    test_no_context();
    return test_finish();
}
