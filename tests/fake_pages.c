/* SPDX-License-Identifier: MIT */
#include "tests/fake_pages.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "alloc/host_pages.h"

/* Where the reservation of a source without memory pretends to lie. */
#define PRETENDED_BASE (UINT64_C(1) << 44)

enum { FENCE_STREAM_SHIFT = 48 };

static struct fake_pages *fake_of(struct page_source *source)
{
    return (struct fake_pages *)source;
}

static void accuse(struct fake_pages *fake, const char *fault)
{
    if (!fake->fault)
        fake->fault = fault;
}

/* Counts a call; whether it is one that fails. */
static bool call_fails(struct fake_pages *fake)
{
    fake->calls++;
    return fake->fail_at != 0 && fake->calls >= fake->fail_at &&
           fake->calls <= fake->fail_at + fake->fail_repeat;
}

static int fake_reserve(struct page_source *source, uint64_t bytes, uintptr_t *address)
{
    struct fake_pages *fake = fake_of(source);
    int code = 0;

    if (call_fails(fake))
        return fake->fail_code;
    if (bytes == 0 || bytes % source->granule_bytes != 0)
        accuse(fake, "a reservation that is not whole pages");
    fake->base = PRETENDED_BASE;
    if (fake->inner)
        code = fake->inner->ops->reserve(fake->inner, bytes, &fake->base);
    if (code != 0)
        return code;
    fake->place_count = bytes / source->granule_bytes;
    fake->places = calloc(fake->place_count, sizeof *fake->places);
    fake->accessible = calloc(fake->place_count, sizeof *fake->accessible);
    if (!fake->places || !fake->accessible)
        abort();
    *address = fake->base;
    return 0;
}

static void fake_unreserve(struct page_source *source, uintptr_t address, uint64_t bytes)
{
    struct fake_pages *fake = fake_of(source);

    if (address != fake->base || bytes != fake->place_count * source->granule_bytes)
        accuse(fake, "unreserve of what was not reserved");
    for (uint64_t i = 0; i < fake->place_count; i++) {
        if (fake->places[i] != 0)
            accuse(fake, "unreserve with a page still mapped");
    }
    if (fake->inner)
        fake->inner->ops->unreserve(fake->inner, address, bytes);
    free(fake->places);
    free(fake->accessible);
    fake->places = NULL;
    fake->accessible = NULL;
    fake->place_count = 0;
}

static void make_handle_room(struct fake_pages *fake)
{
    uint64_t capacity = fake->handle_capacity > 0 ? 2 * fake->handle_capacity : 64;

    if (fake->handle_count < fake->handle_capacity)
        return;
    fake->mappings = realloc(fake->mappings, capacity * sizeof *fake->mappings);
    fake->live = realloc(fake->live, capacity * sizeof *fake->live);
    fake->vacant = realloc(fake->vacant, capacity * sizeof *fake->vacant);
    fake->inner_handles = realloc(fake->inner_handles, capacity * sizeof *fake->inner_handles);
    if (!fake->mappings || !fake->live || !fake->vacant || !fake->inner_handles)
        abort();
    fake->handle_capacity = capacity;
}

static int fake_create(struct page_source *source, page_handle *page)
{
    struct fake_pages *fake = fake_of(source);
    uint64_t number;
    int code = 0;

    fake->creates++;
    if (call_fails(fake))
        return fake->fail_code;
    if ((fake->live_count + 1) * source->granule_bytes > fake->total_bytes)
        return -ENOMEM;
    make_handle_room(fake);
    number = fake->vacant_count > 0 ? fake->vacant[fake->vacant_count - 1] : fake->handle_count;
    if (fake->inner)
        code = fake->inner->ops->create(fake->inner, &fake->inner_handles[number]);
    if (code != 0)
        return code;
    if (fake->vacant_count > 0)
        fake->vacant_count--;
    else
        fake->handle_count++;
    fake->live[number] = true;
    fake->mappings[number] = 0;
    fake->live_count++;
    *page = number;
    return 0;
}

static void fake_release(struct page_source *source, page_handle page)
{
    struct fake_pages *fake = fake_of(source);

    if (page >= fake->handle_count || !fake->live[page]) {
        accuse(fake, "release of a page that does not live");
        return;
    }
    if (fake->mappings[page] > 0)
        accuse(fake, "release of a page still mapped");
    if (fake->inner)
        fake->inner->ops->release(fake->inner, fake->inner_handles[page]);
    fake->live[page] = false;
    fake->live_count--;
    fake->vacant[fake->vacant_count++] = page;
}

/* The page's number within the reservation, or UINT64_MAX. */
static uint64_t place_of(struct fake_pages *fake, uintptr_t address)
{
    uint64_t offset = address - fake->base;

    if (offset % fake->source.granule_bytes != 0 ||
        offset / fake->source.granule_bytes >= fake->place_count)
        return UINT64_MAX;
    return offset / fake->source.granule_bytes;
}

static int fake_map(struct page_source *source, uintptr_t address, page_handle page)
{
    struct fake_pages *fake = fake_of(source);
    uint64_t place = place_of(fake, address);
    int code = 0;

    fake->maps++;
    if (call_fails(fake))
        return fake->fail_code;
    if (fake->unmappable > 0) {
        fake->unmappable--;
        return -ENOMEM;
    }
    if (place == UINT64_MAX || page >= fake->handle_count || !fake->live[page] ||
        fake->places[place] != 0) {
        accuse(fake, "map of no page, or to no free place");
        return -EINVAL;
    }
    if (fake->inner)
        code = fake->inner->ops->map(fake->inner, address, fake->inner_handles[page]);
    if (code != 0)
        return code;
    fake->places[place] = page + 1;
    fake->accessible[place] = false;
    fake->mappings[page]++;
    return 0;
}

static int fake_set_access(struct page_source *source, uintptr_t address, uint64_t bytes)
{
    struct fake_pages *fake = fake_of(source);
    uint64_t place = place_of(fake, address), count = bytes / source->granule_bytes;

    if (call_fails(fake))
        return fake->fail_code;
    if (place == UINT64_MAX || bytes % source->granule_bytes != 0 || count == 0 ||
        count > fake->place_count - place) {
        accuse(fake, "set_access of a range outside");
        return -EINVAL;
    }
    for (uint64_t i = 0; i < count; i++) {
        if (fake->places[place + i] == 0)
            accuse(fake, "set_access of a place without a page");
        fake->accessible[place + i] = true;
    }
    return fake->inner ? fake->inner->ops->set_access(fake->inner, address, bytes) : 0;
}

static int fake_unmap(struct page_source *source, uintptr_t address)
{
    struct fake_pages *fake = fake_of(source);
    uint64_t place = place_of(fake, address);

    fake->unmaps++;
    if (call_fails(fake))
        return fake->fail_code;
    if (place == UINT64_MAX || fake->places[place] == 0) {
        accuse(fake, "unmap of nothing");
        return -EINVAL;
    }
    if (fake_is_busy(fake, -1, address, source->granule_bytes))
        accuse(fake, "unmap under queued work");
    fake->mappings[fake->places[place] - 1]--;
    fake->places[place] = 0;
    fake->accessible[place] = false;
    return fake->inner ? fake->inner->ops->unmap(fake->inner, address) : 0;
}

static int fake_fence_record(struct page_source *source, int stream, page_fence *fence)
{
    struct fake_pages *fake = fake_of(source);

    fake->records++;
    if (call_fails(fake))
        return fake->fail_code;
    *fence = (uint64_t)stream << FENCE_STREAM_SHIFT | fake->queued[stream];
    return 0;
}

static bool has_passed(const struct fake_pages *fake, page_fence fence)
{
    uint64_t position = fence & ((UINT64_C(1) << FENCE_STREAM_SHIFT) - 1);

    return fake->done[fence >> FENCE_STREAM_SHIFT] >= position;
}

static int fake_fence_query(struct page_source *source, page_fence fence)
{
    struct fake_pages *fake = fake_of(source);

    fake->queries++;
    if (call_fails(fake))
        return fake->fail_code;
    return has_passed(fake, fence);
}

static int fake_fence_wait(struct page_source *source, page_fence fence)
{
    struct fake_pages *fake = fake_of(source);
    int stream = (int)(fence >> FENCE_STREAM_SHIFT);

    fake->waits++;
    if (call_fails(fake))
        return fake->fail_code;
    if (!has_passed(fake, fence))
        fake_finish(fake, stream,
                    (fence & ((UINT64_C(1) << FENCE_STREAM_SHIFT) - 1)) - fake->done[stream]);
    return 0;
}

static int fake_memory(struct page_source *source, uint64_t *free_bytes, uint64_t *total_bytes)
{
    struct fake_pages *fake = fake_of(source);

    if (call_fails(fake))
        return fake->fail_code;
    *total_bytes = fake->total_bytes;
    *free_bytes = fake->total_bytes - fake->live_count * source->granule_bytes;
    return 0;
}

static void fake_destroy(struct page_source *source)
{
    fake_pages_destroy(fake_of(source));
}

static const struct page_source_ops fake_ops = {
    .reserve = fake_reserve,
    .unreserve = fake_unreserve,
    .create = fake_create,
    .release = fake_release,
    .map = fake_map,
    .set_access = fake_set_access,
    .unmap = fake_unmap,
    .fence_record = fake_fence_record,
    .fence_query = fake_fence_query,
    .fence_wait = fake_fence_wait,
    .memory = fake_memory,
    .destroy = fake_destroy,
};

int fake_pages_create(struct fake_pages **fake, const struct fake_options *options)
{
    struct fake_pages *created = calloc(1, sizeof *created);
    struct host_pages_options host = {.granule_bytes = options->granule_bytes};
    int code = 0;

    if (!created)
        return -ENOMEM;
    created->source = (struct page_source){&fake_ops, options->granule_bytes};
    created->total_bytes = options->total_bytes;
    if (options->real)
        code = host_pages_create(&created->inner, &host);
    if (code != 0) {
        free(created);
        return code;
    }
    *fake = created;
    return 0;
}

void fake_pages_destroy(struct fake_pages *fake)
{
    if (!fake)
        return;
    if (fake->inner)
        fake->inner->ops->destroy(fake->inner);
    free(fake->mappings);
    free(fake->live);
    free(fake->vacant);
    free(fake->inner_handles);
    free(fake);
}

void fake_queue(struct fake_pages *fake, int stream, uintptr_t address, uint64_t bytes)
{
    fake->queued[stream]++;
    if (fake->instant)
        fake->done[stream] = fake->queued[stream];
    else if (fake->busy_count < FAKE_BUSY)
        fake->busy[fake->busy_count++] =
            (struct fake_busy){address, bytes, stream, fake->queued[stream]};
    else
        abort();
}

void fake_finish(struct fake_pages *fake, int stream, uint64_t count)
{
    int kept = 0;

    fake->done[stream] += count;
    if (fake->done[stream] > fake->queued[stream])
        fake->done[stream] = fake->queued[stream];
    for (int i = 0; i < fake->busy_count; i++) {
        struct fake_busy busy = fake->busy[i];
        if (busy.position > fake->done[busy.stream])
            fake->busy[kept++] = busy;
    }
    fake->busy_count = kept;
}

bool fake_is_busy(const struct fake_pages *fake, int stream, uintptr_t address, uint64_t bytes)
{
    for (int i = 0; i < fake->busy_count; i++) {
        const struct fake_busy *busy = &fake->busy[i];

        if (busy->stream != stream && busy->address < address + bytes &&
            address < busy->address + busy->bytes)
            return true;
    }
    return false;
}
