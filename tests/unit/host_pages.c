/* SPDX-License-Identifier: MIT */
/* Host pages against the contract of page_source.h. */
#include "tests/test.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "alloc/host_pages.h"

static sigjmp_buf escape;

static void on_fault(int signal_number)
{
    siglongjmp(escape, signal_number);
}

/* Whether a byte can be read and written; sanitizers see nothing wrong in trying. */
__attribute__((no_sanitize("address", "thread"))) static bool is_accessible(uintptr_t address)
{
    struct sigaction action = {.sa_handler = on_fault}, segv, bus;
    volatile bool reached = false;

    sigaction(SIGSEGV, &action, &segv);
    sigaction(SIGBUS, &action, &bus);
    if (sigsetjmp(escape, 1) == 0) {
        volatile char *byte = (volatile char *)address;
        *byte = *byte;
        reached = true;
    }
    sigaction(SIGSEGV, &segv, NULL);
    sigaction(SIGBUS, &bus, NULL);
    return reached;
}

static void test_one_page_twice(struct page_source *source)
{
    const struct page_source_ops *ops = source->ops;
    uint64_t granule = source->granule_bytes;
    page_handle page = 0, other = 0;
    uintptr_t base = 0;

    EXPECT(ops->reserve(source, 8 * granule, &base) == 0 && base % granule == 0);
    EXPECT(!is_accessible(base) && !is_accessible(base + 8 * granule - 1));
    EXPECT(ops->create(source, &page) == 0 && ops->create(source, &other) == 0 && page != other);
    EXPECT(ops->map(source, base, page) == 0);
    EXPECT(!is_accessible(base), "a new mapping has no access");
    EXPECT(ops->set_access(source, base, granule) == 0);
    memset((void *)base, 0x5a, granule);
    EXPECT(ops->map(source, base + 3 * granule, page) == 0);
    EXPECT(ops->map(source, base + 4 * granule, other) == 0);
    EXPECT(ops->set_access(source, base + 3 * granule, 2 * granule) == 0);
    EXPECT(memcmp((void *)base, (void *)(base + 3 * granule), granule) == 0);
    EXPECT(*(char *)(base + 4 * granule) == 0, "another page");
    EXPECT(ops->unmap(source, base) == 0);
    EXPECT(!is_accessible(base));
    ((char *)(base + 3 * granule))[granule - 1] = 7;
    EXPECT(ops->map(source, base + granule, page) == 0);
    EXPECT(ops->set_access(source, base + granule, granule) == 0);
    EXPECT(*(char *)(base + granule) == 0x5a && ((char *)(base + granule))[granule - 1] == 7);
    EXPECT(ops->unmap(source, base + granule) == 0 && ops->unmap(source, base + 3 * granule) == 0 &&
           ops->unmap(source, base + 4 * granule) == 0);
    ops->release(source, page);
    ops->release(source, other);
    ops->unreserve(source, base, 8 * granule);
}

static void test_limit(void)
{
    const struct host_pages_options options = {.granule_bytes = 64 << 10,
                                               .limit_bytes = 100 * (64 << 10) + 5};
    struct page_source *source = NULL;
    uint64_t free_bytes, total_bytes;
    page_handle pages[100], more;

    EXPECT(host_pages_create(&source, &options) == 0);
    for (int i = 0; i < 100; i++)
        EXPECT(source->ops->create(source, &pages[i]) == 0);
    EXPECT(source->ops->create(source, &more) == -ENOMEM);
    EXPECT(source->ops->memory(source, &free_bytes, &total_bytes) == 0);
    EXPECT(free_bytes == 0 && total_bytes == 100 * (64 << 10));
    for (int i = 0; i < 100; i++)
        source->ops->release(source, pages[i]);
    EXPECT(source->ops->memory(source, &free_bytes, &total_bytes) == 0 && free_bytes > 0);
    for (int i = 0; i < 100; i++)
        EXPECT(source->ops->create(source, &pages[i]) == 0);
    for (int i = 0; i < 100; i++)
        source->ops->release(source, pages[i]);
    source->ops->destroy(source);
}

static void test_refused(struct page_source *source)
{
    static const struct host_pages_options refused[] = {
        {.granule_bytes = 3 << 20}, {.granule_bytes = 256}, {.limit_bytes = 100}};
    struct page_source *none = NULL;
    uintptr_t base = 0;

    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        EXPECT(host_pages_create(&none, &refused[i]) == -EINVAL && !none);
    EXPECT(source->ops->reserve(source, UINT64_MAX & ~(source->granule_bytes - 1), &base) ==
           -ENOMEM);
    EXPECT(source->ops->reserve(source, UINT64_C(1) << 60, &base) == -ENOMEM);
}

/* Longer pages only when the system's limit of mappings asks for them. */
static void test_granule(void)
{
    uint64_t before = 0;

    EXPECT(host_pages_granule(1) == 64 << 10 && host_pages_granule(150000000) == 64 << 10);
    for (uint64_t bytes = 1 << 20; bytes < UINT64_C(1) << 44; bytes *= 3) {
        uint64_t granule = host_pages_granule(bytes);

        EXPECT((granule & (granule - 1)) == 0 && granule >= before, "%llu for %llu",
               (unsigned long long)granule, (unsigned long long)bytes);
        before = granule;
    }
    EXPECT(host_pages_granule(0) >= 64 << 10 && host_pages_granule(UINT64_MAX) == 1 << 30);
}

int main(void)
{
    struct page_source *source = NULL;

    EXPECT(host_pages_create(&source, NULL) == 0 && source->granule_bytes == HOST_PAGE_BYTES);
    test_one_page_twice(source);
    test_refused(source);
    test_limit();
    test_granule();
    source->ops->destroy(source);
    return test_finish();
}
