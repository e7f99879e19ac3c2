/* SPDX-License-Identifier: MIT */
/* The virtual memory of the emulated GPU: pages of a file in memory, mapped into reservations. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/kernels/emulate/calls.h"
#include "tests/kernels/emulate/device.h"

enum { PAGE_BYTES = 2 << 20, PAGES_MAX = 16384, RESERVATIONS = 8 };

struct reservation {
    CUdeviceptr start;
    size_t pages;     /* 0: none */
    uint32_t *places; /* page + 1 mapped there, or 0 */
    bool *accessible;
};

/* All under the lock of calls.h. */
static int file = -1;
static struct {
    bool live; /* created and not released */
    unsigned mappings;
} pages[PAGES_MAX];
static size_t pages_used;
static struct reservation reservations[RESERVATIONS];

size_t virtual_bytes(void)
{
    return pages_used * PAGE_BYTES;
}

bool device_is_accessible(const void *address, size_t bytes)
{
    CUdeviceptr start = (CUdeviceptr)address;
    bool accessible = false;

    call_lock();
    for (size_t i = 0; i < RESERVATIONS; i++) {
        const struct reservation *r = &reservations[i];

        if (r->pages == 0 || start < r->start || start + bytes > r->start + r->pages * PAGE_BYTES)
            continue;
        accessible = true;
        for (size_t p = (start - r->start) / PAGE_BYTES;
             p <= (start + bytes - 1 - r->start) / PAGE_BYTES; p++)
            accessible = accessible && r->accessible[p];
    }
    call_end(CUDA_SUCCESS);
    return accessible;
}

static CUresult granularity(size_t *bytes, const CUmemAllocationProp *properties,
                            CUmemAllocationGranularity_flags option)
{
    CUresult code;

    if (!call_begin(&code))
        return code;
    *bytes = (size_t)device_word("granule", PAGE_BYTES >> 10) << 10;
    return call_end(CUDA_SUCCESS);
}

static CUresult address_reserve(CUdeviceptr *address, size_t bytes, size_t alignment,
                                CUdeviceptr wanted, unsigned long long flags)
{
    size_t slack = alignment > PAGE_BYTES ? alignment : PAGE_BYTES, i = 0;
    struct reservation made = {.pages = bytes / PAGE_BYTES};
    CUresult code;
    char *start;

    if (!call_begin(&code))
        return code;
    while (i < RESERVATIONS && reservations[i].pages != 0)
        i++;
    if (bytes == 0 || bytes % PAGE_BYTES != 0 || wanted != 0 || flags != 0)
        return call_end(call_break("a reservation that is not whole pages"));
    start =
        mmap(NULL, bytes + slack, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED || i == RESERVATIONS)
        return call_end(CUDA_ERROR_OUT_OF_MEMORY);
    made.start = ((CUdeviceptr)start + slack - 1) / slack * slack;
    made.places = calloc(made.pages, sizeof *made.places);
    made.accessible = calloc(made.pages, sizeof *made.accessible);
    if (made.places == NULL || made.accessible == NULL)
        abort();
    reservations[i] = made;
    call_books.reservations++;
    *address = made.start;
    return call_end(CUDA_SUCCESS);
}

static CUresult address_free(CUdeviceptr address, size_t bytes)
{
    struct reservation *r = NULL;
    CUresult code;

    if (!call_begin(&code))
        return code;
    for (size_t i = 0; i < RESERVATIONS; i++)
        if (reservations[i].pages != 0 && reservations[i].start == address)
            r = &reservations[i];
    if (r == NULL || r->pages * PAGE_BYTES != bytes)
        return call_end(call_break("a reservation freed that was not made so"));
    for (size_t p = 0; p < r->pages; p++)
        if (r->places[p] != 0)
            return call_end(call_break("a reservation freed with a page still mapped"));
    munmap((void *)address, bytes);
    free(r->places);
    free(r->accessible);
    *r = (struct reservation){0};
    call_books.reservations--;
    return call_end(CUDA_SUCCESS);
}

/* What nobody has written yet is NaN in fp32 and in bf16. */
static bool poison(size_t page)
{
    void *memory;

    if (device_word("clean", -1) == 0)
        return true;
    memory = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, file,
                  (off_t)(page * PAGE_BYTES));

    if (memory == MAP_FAILED)
        return false;
    memset(memory, 0xff, PAGE_BYTES);
    munmap(memory, PAGE_BYTES);
    return true;
}

static CUresult create(CUmemGenericAllocationHandle *handle, size_t bytes,
                       const CUmemAllocationProp *properties, unsigned long long flags)
{
    CUresult code;
    size_t page = 0;

    if (!call_begin(&code))
        return code;
    if (bytes != PAGE_BYTES || properties->type != CU_MEM_ALLOCATION_TYPE_PINNED ||
        properties->location.type != CU_MEM_LOCATION_TYPE_DEVICE || flags != 0)
        return call_end(call_break("a page of another kind or size than one"));
    if (file < 0) {
        file = memfd_create("emulated GPU", MFD_CLOEXEC);
        if (ftruncate(file, (off_t)PAGES_MAX * PAGE_BYTES) != 0)
            abort();
    }
    while (page < PAGES_MAX && (pages[page].live || pages[page].mappings > 0))
        page++;
    if (device_lacks(PAGE_BYTES) || page == PAGES_MAX || !poison(page))
        return call_end(CUDA_ERROR_OUT_OF_MEMORY);
    pages[page].live = true;
    pages_used++;
    call_books.handles++;
    *handle = page + 1;
    return call_end(CUDA_SUCCESS);
}

/* Memory is free when the handle is released and nothing shows it. */
static void give_back_if_unused(size_t page)
{
    if (pages[page].live || pages[page].mappings > 0)
        return;
    fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(page * PAGE_BYTES),
              PAGE_BYTES);
    pages_used--;
}

static CUresult release(CUmemGenericAllocationHandle handle)
{
    CUresult code;

    if (!call_begin(&code))
        return code;
    if (handle == 0 || handle > PAGES_MAX || !pages[handle - 1].live)
        return call_end(call_break("a handle released that is none"));
    pages[handle - 1].live = false;
    call_books.handles--;
    give_back_if_unused((size_t)handle - 1);
    return call_end(CUDA_SUCCESS);
}

/* The reservation that holds a whole range, or NULL, and where in it that is. */
static struct reservation *find(CUdeviceptr address, size_t bytes, size_t *place)
{
    for (size_t i = 0; i < RESERVATIONS; i++) {
        struct reservation *r = &reservations[i];

        if (r->pages == 0 || address < r->start || (address - r->start) % PAGE_BYTES != 0 ||
            bytes == 0 || bytes % PAGE_BYTES != 0)
            continue;
        *place = (address - r->start) / PAGE_BYTES;
        if (*place < r->pages && bytes / PAGE_BYTES <= r->pages - *place)
            return r;
    }
    return NULL;
}

static CUresult map(CUdeviceptr address, size_t bytes, size_t offset,
                    CUmemGenericAllocationHandle handle, unsigned long long flags)
{
    struct reservation *r;
    CUresult code;
    size_t place;

    if (!call_begin(&code))
        return code;
    r = find(address, bytes, &place);
    if (r == NULL || bytes != PAGE_BYTES || offset != 0 || flags != 0 || handle == 0 ||
        handle > PAGES_MAX || !pages[handle - 1].live || r->places[place] != 0)
        return call_end(call_break("a map of no whole page, or to no free place"));
    if (mmap((void *)address, bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, file,
             (off_t)((handle - 1) * PAGE_BYTES)) == MAP_FAILED)
        return call_end(CUDA_ERROR_OUT_OF_MEMORY);
    r->places[place] = (uint32_t)handle;
    r->accessible[place] = false;
    pages[handle - 1].mappings++;
    call_books.mappings++;
    return call_end(CUDA_SUCCESS);
}

static CUresult unmap(CUdeviceptr address, size_t bytes)
{
    struct reservation *r;
    CUresult code;
    size_t place, page;

    if (!call_begin(&code))
        return code;
    r = find(address, bytes, &place);
    if (r == NULL || bytes != PAGE_BYTES || r->places[place] == 0)
        return call_end(call_break("an unmap of what is not one mapping"));
    page = r->places[place] - 1;
    if (mmap((void *)address, bytes, PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
        abort();
    r->places[place] = 0;
    r->accessible[place] = false;
    pages[page].mappings--;
    call_books.mappings--;
    give_back_if_unused(page);
    return call_end(CUDA_SUCCESS);
}

static CUresult set_access(CUdeviceptr address, size_t bytes, const CUmemAccessDesc *access,
                           size_t count)
{
    struct reservation *r;
    CUresult code;
    size_t place;

    if (!call_begin(&code))
        return code;
    r = find(address, bytes, &place);
    if (r == NULL || count != 1 || access->flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE)
        return call_end(call_break("access to a range outside, or of another kind"));
    for (size_t i = 0; i < bytes / PAGE_BYTES; i++)
        if (r->places[place + i] == 0)
            return call_end(call_break("access to a range that is not mapped throughout"));
    if (mprotect((void *)address, bytes, PROT_READ | PROT_WRITE) != 0)
        abort();
    memset(r->accessible + place, true, bytes / PAGE_BYTES);
    return call_end(CUDA_SUCCESS);
}

void virtual_fill(struct driver *driver)
{
    driver->granularity = granularity;
    driver->address_reserve = address_reserve;
    driver->address_free = address_free;
    driver->create = create;
    driver->release = release;
    driver->map = map;
    driver->unmap = unmap;
    driver->set_access = set_access;
}
