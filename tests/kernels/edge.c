/* SPDX-License-Identifier: MIT */
#include "tests/kernels/edge.h"

/* The reservation has one page more in front and one behind. */
static uintptr_t page_address(const struct edge *edge, uint64_t i)
{
    return edge->address + (i + 1) * edge->source->granule_bytes;
}

uintptr_t edge_create(struct edge *edge, struct page_source *source, uint64_t bytes,
                      uint64_t alignment, bool at_end)
{
    const struct page_source_ops *ops = source->ops;
    uint64_t granule = source->granule_bytes, count = (bytes + granule - 1) / granule;
    uintptr_t end;

    *edge = (struct edge){.source = source, .reserved = (count + 2) * granule};
    if (count == 0 || count > EDGE_PAGES ||
        ops->reserve(source, edge->reserved, &edge->address) != 0) {
        edge->source = NULL;
        return 0;
    }
    for (; edge->count < count; edge->count++) {
        if (ops->create(source, &edge->pages[edge->count]) != 0)
            break;
        if (ops->map(source, page_address(edge, edge->count), edge->pages[edge->count]) != 0) {
            ops->release(source, edge->pages[edge->count]);
            break;
        }
    }
    if (edge->count < count ||
        ops->set_access(source, page_address(edge, 0), count * granule) != 0) {
        edge_destroy(edge);
        return 0;
    }
    end = page_address(edge, count) - bytes;
    return at_end ? end - end % alignment : page_address(edge, 0);
}

void edge_destroy(struct edge *edge)
{
    struct page_source *source = edge->source;

    if (source == NULL)
        return;
    for (uint64_t i = 0; i < edge->count; i++)
        if (source->ops->unmap(source, page_address(edge, i)) == 0)
            source->ops->release(source, edge->pages[i]);
    source->ops->unreserve(source, edge->address, edge->reserved);
    *edge = (struct edge){0};
}
