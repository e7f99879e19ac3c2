/* SPDX-License-Identifier: MIT */
#include "engine/cuda/pages.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#include "engine/card.h"

struct fence {
    CUevent event; /* NULL before the first use */
    bool pending;
};

struct cuda_pages {
    struct page_source source;
    struct cuda_pages_options options;
    CUmemAllocationProp properties;
    CUmemAccessDesc access;
    /* Guarded by the arena's lock, under which all is called. */
    struct fence fences[PAGE_FENCES];
    page_handle *kept; /* pages that the driver didn't take back: they serve as the next ones */
    size_t kept_count, kept_capacity;
};

static struct cuda_pages *pages_of(struct page_source *source)
{
    return (struct cuda_pages *)source;
}

static int code_of(const struct cuda_pages *pages, const char *call, CUresult result)
{
    const char *why = "?";

    if (result == CUDA_SUCCESS)
        return 0;
    if (result == CUDA_ERROR_OUT_OF_MEMORY)
        return -ENOMEM;
    pages->options.context->driver->get_error_string(result, &why);
    pages->options.fault(pages->options.owner, call, why != NULL ? why : "?");
    return -EIO;
}

/* The driver works on the context of the calling thread, which may be new. */
static const struct driver *driver_of(const struct cuda_pages *pages)
{
    const struct cuda_context *context = pages->options.context;

    (void)code_of(pages, "cuCtxSetCurrent", context->driver->context_set(context->context));
    return context->driver;
}

static int pages_reserve(struct page_source *source, uint64_t bytes, uintptr_t *address)
{
    struct cuda_pages *pages = pages_of(source);
    CUdeviceptr start = 0;
    int code =
        code_of(pages, "cuMemAddressReserve",
                driver_of(pages)->address_reserve(&start, bytes, source->granule_bytes, 0, 0));

    if (code == 0)
        *address = (uintptr_t)start;
    return code;
}

static void pages_unreserve(struct page_source *source, uintptr_t address, uint64_t bytes)
{
    struct cuda_pages *pages = pages_of(source);

    (void)code_of(pages, "cuMemAddressFree", driver_of(pages)->address_free(address, bytes));
}

static int pages_create(struct page_source *source, page_handle *page)
{
    struct cuda_pages *pages = pages_of(source);
    CUmemGenericAllocationHandle handle;
    int code;

    if (pages->kept_count > 0) {
        *page = pages->kept[--pages->kept_count];
        return 0;
    }
    code = code_of(pages, "cuMemCreate",
                   driver_of(pages)->create(&handle, source->granule_bytes, &pages->properties, 0));

    if (code == 0)
        *page = handle;
    return code;
}

static void pages_release(struct page_source *source, page_handle page)
{
    struct cuda_pages *pages = pages_of(source);

    if (code_of(pages, "cuMemRelease", driver_of(pages)->release(page)) == 0)
        return;
    if (pages->kept_count == pages->kept_capacity) {
        size_t capacity = 2 * pages->kept_capacity + 64;
        page_handle *grown = realloc(pages->kept, capacity * sizeof *grown);

        if (grown == NULL)
            return; /* it is lost with the context */
        pages->kept = grown;
        pages->kept_capacity = capacity;
    }
    pages->kept[pages->kept_count++] = page;
}

static int pages_map(struct page_source *source, uintptr_t address, page_handle page)
{
    struct cuda_pages *pages = pages_of(source);

    return code_of(pages, "cuMemMap",
                   driver_of(pages)->map(address, source->granule_bytes, 0, page, 0));
}

static int pages_set_access(struct page_source *source, uintptr_t address, uint64_t bytes)
{
    struct cuda_pages *pages = pages_of(source);

    return code_of(pages, "cuMemSetAccess",
                   driver_of(pages)->set_access(address, bytes, &pages->access, 1));
}

static int pages_unmap(struct page_source *source, uintptr_t address)
{
    struct cuda_pages *pages = pages_of(source);

    return code_of(pages, "cuMemUnmap", driver_of(pages)->unmap(address, source->granule_bytes));
}

static int pages_fence_record(struct page_source *source, int stream, page_fence *fence)
{
    struct cuda_pages *pages = pages_of(source);
    const struct driver *driver = driver_of(pages);
    struct fence *chosen = NULL;
    int code = 0;

    for (int i = 0; i < PAGE_FENCES && chosen == NULL; i++)
        if (!pages->fences[i].pending)
            chosen = &pages->fences[i];
    if (chosen == NULL)
        return -EAGAIN;
    /* Whoever waits for one lacks memory: better to sleep than to hold a core. */
    if (chosen->event == NULL)
        code = code_of(
            pages, "cuEventCreate",
            driver->event_create(&chosen->event, CU_EVENT_DISABLE_TIMING | CU_EVENT_BLOCKING_SYNC));
    if (code == 0)
        code = code_of(pages, "cuEventRecord",
                       driver->event_record(chosen->event, pages->options.stream));
    if (code != 0)
        return code;
    chosen->pending = true;
    *fence = (page_fence)(chosen - pages->fences);
    return 0;
}

static int pages_fence_query(struct page_source *source, page_fence number)
{
    struct cuda_pages *pages = pages_of(source);
    struct fence *fence = &pages->fences[number];
    CUresult result = driver_of(pages)->event_query(fence->event);
    int code;

    if (result == CUDA_ERROR_NOT_READY)
        return 0;
    code = code_of(pages, "cuEventQuery", result);
    if (code != 0)
        return code;
    fence->pending = false;
    return 1;
}

static int pages_fence_wait(struct page_source *source, page_fence number)
{
    struct cuda_pages *pages = pages_of(source);
    struct fence *fence = &pages->fences[number];
    int code =
        code_of(pages, "cuEventSynchronize", driver_of(pages)->event_synchronize(fence->event));

    if (code == 0)
        fence->pending = false;
    return code;
}

static int pages_memory(struct page_source *source, uint64_t *free_bytes, uint64_t *total_bytes)
{
    return context_memory(pages_of(source)->options.context, free_bytes, total_bytes);
}

static void pages_destroy(struct page_source *source)
{
    struct cuda_pages *pages = pages_of(source);
    const struct driver *driver = driver_of(pages);

    for (int i = 0; i < PAGE_FENCES; i++)
        if (pages->fences[i].event != NULL)
            driver->event_destroy(pages->fences[i].event);
    for (size_t i = 0; i < pages->kept_count; i++)
        driver->release(pages->kept[i]);
    free(pages->kept);
    free(pages);
}

static const struct page_source_ops pages_ops = {
    .reserve = pages_reserve,
    .unreserve = pages_unreserve,
    .create = pages_create,
    .release = pages_release,
    .map = pages_map,
    .set_access = pages_set_access,
    .unmap = pages_unmap,
    .fence_record = pages_fence_record,
    .fence_query = pages_fence_query,
    .fence_wait = pages_fence_wait,
    .memory = pages_memory,
    .destroy = pages_destroy,
};

static int find_granule(const struct cuda_context *context, const CUmemAllocationProp *properties,
                        size_t *granule, struct error *err)
{
    const struct driver *driver = context->driver;
    const char *why = "?";
    int supported = 0;
    CUresult code = driver->device_attribute(
        &supported, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, context->device);

    if (code == CUDA_SUCCESS && !supported)
        return error_set(err, ENODEV,
                         "back end cuda: the first GPU has no virtual memory management");
    if (code == CUDA_SUCCESS)
        code = driver->granularity(granule, properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
    if (code != CUDA_SUCCESS) {
        driver->get_error_string(code, &why);
        return error_set(err, EIO, "back end cuda: page size: %s", why);
    }
    /* The driver's are powers of two. */
    if (*granule < CUDA_PAGE_BYTES)
        *granule = CUDA_PAGE_BYTES;
    return 0;
}

int cuda_pages_create(struct page_source **out, const struct cuda_pages_options *options,
                      struct error *err)
{
    const CUmemLocation location = {.type = CU_MEM_LOCATION_TYPE_DEVICE,
                                    .id = options->context->device};
    const CUmemAllocationProp properties = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                            .location = location};
    struct cuda_pages *pages;
    size_t granule = 0;

    if (find_granule(options->context, &properties, &granule, err) != 0)
        return err->code;
    pages = calloc(1, sizeof *pages);
    if (pages == NULL)
        return error_set(err, ENOMEM, "out of host memory");
    pages->source.ops = &pages_ops;
    pages->source.granule_bytes = granule;
    pages->options = *options;
    pages->properties = properties;
    pages->access =
        (CUmemAccessDesc){.location = location, .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    *out = &pages->source;
    return 0;
}
