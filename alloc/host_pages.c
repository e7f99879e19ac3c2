/* SPDX-License-Identifier: MIT */
#include "alloc/host_pages.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "alloc/host_memory.h"

enum { LEAST_GRANULE = 64 << 10, MOST_GRANULE = 1 << 30, USUAL_MAPPINGS = 65530 };

/* A page's handle is its number in the file. */
struct host_pages {
    struct page_source source;
    int file;
    uint64_t limit_pages;
    uint64_t file_pages;         /* length of the file */
    _Atomic uint64_t live_pages; /* read by `memory` on any thread */
    page_handle *vacant;         /* pages of the file that hold no memory, as a stack */
    size_t vacant_count, vacant_capacity;
};

static struct host_pages *host_of(struct page_source *source)
{
    return (struct host_pages *)source;
}

static int host_reserve(struct page_source *source, uint64_t bytes, uintptr_t *address)
{
    uint64_t granule = source->granule_bytes, padded;
    uintptr_t start, aligned;
    void *area;

    /* mmap aligns to the system's page only: take more, give the ends back. */
    if (bytes == 0 || __builtin_add_overflow(bytes, granule, &padded) || padded > SIZE_MAX / 2)
        return -ENOMEM;
    area = mmap(NULL, padded, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED)
        return -errno;
    start = (uintptr_t)area;
    aligned = (start + granule - 1) & ~(uintptr_t)(granule - 1);
    if (aligned > start)
        munmap(area, aligned - start);
    if (start + padded > aligned + bytes)
        munmap((void *)(aligned + bytes), start + padded - (aligned + bytes));
    *address = aligned;
    return 0;
}

static void host_unreserve(struct page_source *source, uintptr_t address, uint64_t bytes)
{
    munmap((void *)address, bytes);
}

/* Room in the stack is made here, so that `release` can't fail. */
static int add_file_page(struct host_pages *host)
{
    uint64_t granule = host->source.granule_bytes;

    if (host->file_pages >= host->vacant_capacity) {
        size_t capacity = host->vacant_capacity > 0 ? 2 * host->vacant_capacity : 64;
        page_handle *grown = realloc(host->vacant, capacity * sizeof *grown);

        if (!grown)
            return -ENOMEM;
        host->vacant = grown;
        host->vacant_capacity = capacity;
    }
    if (ftruncate(host->file, (off_t)((host->file_pages + 1) * granule)) != 0)
        return -errno;
    host->vacant[host->vacant_count++] = host->file_pages++;
    return 0;
}

static int host_create(struct page_source *source, page_handle *page)
{
    struct host_pages *host = host_of(source);
    off_t granule = (off_t)source->granule_bytes;
    page_handle taken;
    int code;

    if (host->live_pages >= host->limit_pages)
        return -ENOMEM;
    if (host->vacant_count == 0) {
        code = add_file_page(host);
        if (code != 0)
            return code;
    }
    taken = host->vacant[host->vacant_count - 1];
    /* Commit the memory now: an error here is better than a SIGBUS at first touch. */
    if (fallocate(host->file, 0, (off_t)taken * granule, granule) != 0)
        return errno == ENOSPC ? -ENOMEM : -errno;
    host->vacant_count--;
    host->live_pages++;
    *page = taken;
    return 0;
}

static void host_release(struct page_source *source, page_handle page)
{
    struct host_pages *host = host_of(source);
    off_t granule = (off_t)source->granule_bytes;

    /* If the hole can't be punched, the memory is kept for the page's next use. */
    (void)fallocate(host->file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)page * granule,
                    granule);
    host->vacant[host->vacant_count++] = page;
    host->live_pages--;
}

static int host_map(struct page_source *source, uintptr_t address, page_handle page)
{
    void *area = mmap((void *)address, source->granule_bytes, PROT_NONE, MAP_SHARED | MAP_FIXED,
                      host_of(source)->file, (off_t)(page * source->granule_bytes));

    return area == MAP_FAILED ? -errno : 0;
}

static int host_set_access(struct page_source *source, uintptr_t address, uint64_t bytes)
{
    return mprotect((void *)address, bytes, PROT_READ | PROT_WRITE) == 0 ? 0 : -errno;
}

static int host_unmap(struct page_source *source, uintptr_t address)
{
    void *area = mmap((void *)address, source->granule_bytes, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);

    return area == MAP_FAILED ? -errno : 0;
}

static int host_fence_record(struct page_source *source, int stream, page_fence *fence)
{
    *fence = 0;
    return 0;
}

static int host_fence_query(struct page_source *source, page_fence fence)
{
    return 1;
}

static int host_fence_wait(struct page_source *source, page_fence fence)
{
    return 0;
}

static int host_memory_left(struct page_source *source, uint64_t *free_bytes, uint64_t *total_bytes)
{
    const struct host_pages *host = host_of(source);
    uint64_t left = (host->limit_pages - host->live_pages) * source->granule_bytes;
    uint64_t available = host_memory().available_bytes;

    *free_bytes = left < available ? left : available;
    *total_bytes = host->limit_pages * source->granule_bytes;
    return 0;
}

static void host_destroy(struct page_source *source)
{
    struct host_pages *host = host_of(source);

    close(host->file);
    free(host->vacant);
    free(host);
}

static const struct page_source_ops host_ops = {
    .reserve = host_reserve,
    .unreserve = host_unreserve,
    .create = host_create,
    .release = host_release,
    .map = host_map,
    .set_access = host_set_access,
    .unmap = host_unmap,
    .fence_record = host_fence_record,
    .fence_query = host_fence_query,
    .fence_wait = host_fence_wait,
    .memory = host_memory_left,
    .destroy = host_destroy,
};

uint64_t host_pages_granule(uint64_t bytes)
{
    FILE *file = fopen("/proc/sys/vm/max_map_count", "re");
    uint64_t granule = LEAST_GRANULE, mappings = USUAL_MAPPINGS;
    unsigned long long number;

    if (file && fscanf(file, "%llu", &number) == 1 && number > 0)
        mappings = number;
    if (file)
        fclose(file);
    if (bytes == 0)
        bytes = host_memory().total_bytes;
    /* The rest of the process has mappings too. */
    while (granule < MOST_GRANULE && bytes / granule > mappings / 4 * 3)
        granule *= 2;
    return granule;
}

int host_pages_create(struct page_source **source, const struct host_pages_options *options)
{
    uint64_t granule = options ? options->granule_bytes : 0;
    uint64_t limit = options ? options->limit_bytes : 0;
    uint64_t system_page = (uint64_t)sysconf(_SC_PAGESIZE);
    struct host_pages *host;
    int code;

    if (granule == 0)
        granule = HOST_PAGE_BYTES;
    if ((granule & (granule - 1)) != 0 || granule < system_page || granule > UINT64_C(1) << 40)
        return -EINVAL;
    if (limit == 0)
        limit = host_memory().total_bytes;
    if (limit < granule)
        return -EINVAL;
    host = calloc(1, sizeof *host);
    if (!host)
        return -ENOMEM;
    host->source = (struct page_source){.ops = &host_ops, .granule_bytes = granule};
    host->limit_pages = limit / granule;
    host->file = memfd_create("fluxfs-pages", MFD_CLOEXEC);
    if (host->file < 0) {
        code = -errno;
        free(host);
        return code;
    }
    *source = &host->source;
    return 0;
}
