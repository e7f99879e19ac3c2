/* SPDX-License-Identifier: MIT */
/* The budget, and how the memory stands. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "engine/pipeline.h"

/* Part of the free memory that an automatic budget takes. */
#define AUTO_SHARE 0.75

uint64_t budget_automatic(struct engine *engine)
{
    struct page_source *pages = engine->backend->pages;
    uint64_t free_bytes = 0, total_bytes = 0;
    struct arena_stats stats = {0};

    if (engine->arena != NULL)
        arena_stats(engine->arena, &stats);
    else
        stats.reserved = engine->backend->context_bytes;
    if (pages->ops->memory(pages, &free_bytes, &total_bytes) != 0)
        return (uint64_t)1 << 32;
    return (uint64_t)((double)(free_bytes + stats.reserved) * AUTO_SHARE);
}

void memory_charge_context(struct engine *engine)
{
    if (engine->backend->context_bytes == engine->charged_bytes)
        return;
    engine->charged_bytes = engine->backend->context_bytes;
    /* What doesn't fit now is made room for as blocks are freed. */
    (void)arena_charge(engine->arena, MEMORY_CONTEXT, engine->charged_bytes);
}

int budget_check(const struct engine *engine, uint64_t bytes, struct error *err)
{
    if (bytes >= engine->least_budget)
        return 0;
    return error_set(err, EINVAL,
                     "vram_budget of %.2f MB is too small: the smallest picture takes %.2f MB at "
                     "least",
                     (double)bytes / 1e6, ceil((double)engine->least_budget / 1e4) / 100);
}

void engine_memory(struct engine *engine, struct engine_memory *memory)
{
    struct page_source *pages = engine->backend->pages;
    struct arena_stats stats;

    arena_stats(engine->arena, &stats);
    *memory = (struct engine_memory){
        .budget = stats.budget,
        .reserved = stats.reserved,
        .allocated = stats.allocated,
        .requested = stats.requested,
        .peak_reserved = stats.peak_reserved,
        .free_bytes = stats.free_bytes,
        .slack_bytes = stats.slack_bytes,
        .largest_free_bytes = stats.largest_free_bytes,
        .fragmentation = stats.fragmentation,
        .fragmentation_merged = stats.fragmentation_merged,
        .waste = stats.waste,
        .page_bytes = stats.page_bytes,
        .pages_mapped = stats.pages_mapped,
        .pages_spare = stats.pages_spare,
        .resident_blocks = atomic_load(&engine->resident_blocks),
        .streamed_blocks = atomic_load(&engine->streamed_blocks),
        .allocations = stats.allocations,
        .merges = stats.merges,
        .evictions = stats.evictions,
        .pinned_bytes = engine->backend->ops->pinned_bytes(engine->backend),
    };
    for (int i = 0; i < MEMORY_COMPONENTS; i++)
        memory->component[i] = stats.component[i];
    pages->ops->memory(pages, &memory->device_free, &memory->device_total);
}

size_t engine_memory_map(struct engine *engine, struct memory_run *runs, size_t capacity)
{
    struct arena_run *from = calloc(capacity + 1, sizeof *from);
    size_t count, kept;

    if (from == NULL)
        return 0;
    count = arena_map(engine->arena, from, capacity);
    kept = count < capacity ? count : capacity;
    for (size_t i = 0; i < kept; i++)
        runs[i] = (struct memory_run){from[i].offset_bytes, from[i].bytes, from[i].used,
                                      (enum memory_component)from[i].component};
    free(from);
    return count;
}

int engine_set_budget(struct engine *engine, uint64_t bytes, struct error *err)
{
    if (bytes == 0)
        bytes = budget_automatic(engine);
    if (budget_check(engine, bytes, err) != 0)
        return err->code;
    atomic_store(&engine->wanted_budget, bytes);
    return 0;
}

const char *image_phase_name(enum image_phase phase)
{
    static const char *const names[] = {"waiting", "text",      "denoising", "decoding",
                                        "done",    "cancelled", "failed"};

    return (size_t)phase < sizeof names / sizeof *names ? names[phase] : "unknown";
}

const char *memory_component_name(enum memory_component component)
{
    static const char *const names[] = {"weights",     "text encoders", "vae",
                                        "activations", "workspace",     "context"};

    return (size_t)component < sizeof names / sizeof *names ? names[component] : "unknown";
}
