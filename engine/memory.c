/* SPDX-License-Identifier: MIT */
/* The budget, and how the memory stands. */
#include <errno.h>
#include <stdlib.h>

#include "engine/pipeline.h"

/* What an automatic budget leaves to others: a part of a card, within limits, for what they need in
 * passing; of this machine's own memory a quarter, for the weights' files are read there too. */
#define MARGIN_SHARE 32
#define MARGIN_LEAST ((uint64_t)128 << 20)
#define MARGIN_MOST ((uint64_t)1 << 30)
#define HOST_MARGIN_SHARE 4

/* What the back end may be granted of the budget. Within 1.3 GiB that is enough for the weights of
 * FLUX.1-dev's steps, which pass most often and come first, and leaves room for four pictures. */
#define CONTEXT_SHARE 38

/* Where the device can't tell. */
#define USUAL_BUDGET ((uint64_t)1 << 32)

/* In wanted_budget, beside the bytes: they are to follow what is free. */
#define BUDGET_AUTOMATIC ((uint64_t)1 << 63)

/* What an automatic budget would be now, and the margin that it leaves; false: nobody knows. */
static bool look_at_device(struct engine *engine, uint64_t *bytes, uint64_t *margin)
{
    struct page_source *pages = engine->backend->pages;
    uint64_t free_bytes = 0, total_bytes = 0, ours;
    struct arena_stats stats = {0};

    if (engine->arena != NULL)
        arena_stats(engine->arena, &stats);
    else
        stats.reserved = engine->backend->context_bytes;
    if (pages->ops->memory(pages, &free_bytes, &total_bytes) != 0)
        return false;
    ours = free_bytes + stats.reserved;
    *margin = total_bytes / MARGIN_SHARE;
    *margin = *margin < MARGIN_LEAST ? MARGIN_LEAST : *margin > MARGIN_MOST ? MARGIN_MOST : *margin;
    if (engine->backend->host)
        *margin = ours / HOST_MARGIN_SHARE;
    *bytes = ours > *margin ? ours - *margin : 0;
    return true;
}

uint64_t budget_wanted(const struct engine *engine)
{
    return atomic_load(&engine->wanted_budget) & ~BUDGET_AUTOMATIC;
}

void budget_want(struct engine *engine, uint64_t bytes)
{
    uint64_t margin, wanted = bytes;

    if (bytes == 0)
        wanted =
            BUDGET_AUTOMATIC | (look_at_device(engine, &bytes, &margin) ? bytes : USUAL_BUDGET);
    atomic_store(&engine->wanted_budget, wanted);
}

uint64_t budget_possible(struct engine *engine)
{
    uint64_t wanted = atomic_load(&engine->wanted_budget), bytes = 0, margin;

    if ((wanted & BUDGET_AUTOMATIC) == 0 || !look_at_device(engine, &bytes, &margin))
        return wanted & ~BUDGET_AUTOMATIC;
    return bytes > (wanted & ~BUDGET_AUTOMATIC) ? bytes : wanted & ~BUDGET_AUTOMATIC;
}

/* No picture is given up for the sake of a margin. */
static uint64_t least_wanted(const struct engine *engine)
{
    uint64_t least = least_budget(engine);

    for (const struct image *image = engine->images; image != NULL; image = image->next)
        if (image_active(image) && image_budget(image) > least)
            least = image_budget(image);
    return least;
}

bool budget_watch(struct engine *engine)
{
    uint64_t before = atomic_load(&engine->wanted_budget), bytes, margin;
    uint64_t wanted = before & ~BUDGET_AUTOMATIC, least = least_wanted(engine);

    if (wanted == before || !look_at_device(engine, &bytes, &margin))
        return false;
    bytes = bytes > least ? bytes : least;
    /* Half of the margin may be taken, and twice as much be free, before anything is done: unless
     * someone can't go on. */
    if (bytes + margin / 2 >= wanted && bytes <= wanted + margin && wanted >= least)
        return false;
    /* Unless another was set just now. */
    return atomic_compare_exchange_strong(&engine->wanted_budget, &before,
                                          bytes | BUDGET_AUTOMATIC);
}

static uint64_t lesser(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t beyond(uint64_t all, uint64_t taken)
{
    return all > taken ? all - taken : 0;
}

/* What the present pass leaves beside its workspace and ring. */
static uint64_t pass_room(const struct engine *engine)
{
    uint64_t room = engine_room(engine);
    uint64_t taken =
        in_pages(engine, engine->workspace_bytes) + in_pages(engine, engine->offload.ring_bytes);

    return beyond(room, taken);
}

uint64_t context_later(const struct engine *engine)
{
    const struct backend *backend = engine->backend;
    uint64_t page = backend->pages->granule_bytes, most;

    if (backend->context_share == 0)
        return 0;
    most = engine->info.weight_bytes / backend->context_share + page;
    most = lesser(most, engine->budget / CONTEXT_SHARE);
    return beyond(most - most % page, backend->context_granted);
}

/* What the device can give. A budget that is not beyond what it has makes room for more as it is
 * charged; beyond that only what is free is there. */
static uint64_t device_room(const struct engine *engine)
{
    struct page_source *pages = engine->backend->pages;
    uint64_t free_bytes = 0, total_bytes = 0;
    struct arena_stats stats;

    arena_stats(engine->arena, &stats);
    if (pages->ops->memory(pages, &free_bytes, &total_bytes) != 0 ||
        engine->budget <= stats.reserved + free_bytes)
        return UINT64_MAX;
    return free_bytes;
}

/* What no picture needs of those that are active or were found possible, in whole pages. */
static uint64_t context_room(const struct engine *engine)
{
    uint64_t page = engine->backend->pages->granule_bytes;
    uint64_t room = pass_room(engine);

    room = lesser(room,
                  beyond(engine->budget, fixed_bytes(engine) + atomic_load(&engine->asked_bytes)));
    room = lesser(room, beyond(engine->budget, least_budget(engine)));
    room = lesser(room, beyond(engine_room(engine), denoise_most(engine, NULL)));
    room = lesser(room, context_later(engine));
    if (room > 0)
        room = lesser(room, device_room(engine));
    return room - room % page;
}

/* The back end may have that for its own affairs. */
static void grant_context(struct engine *engine)
{
    struct backend *backend = engine->backend;
    uint64_t granted = backend->context_wanted;

    if (granted == 0)
        return;
    granted = lesser(granted, context_room(engine));
    if (granted == 0 ||
        arena_charge_within(engine->arena, MEMORY_CONTEXT, backend->context_bytes + granted) != 0)
        return;
    backend->context_granted += granted;
    backend->context_bytes += granted;
    engine->charged_bytes = backend->context_bytes;
}

void memory_charge_context(struct engine *engine)
{
    grant_context(engine);
    if (engine->backend->context_bytes == engine->charged_bytes)
        return;
    engine->charged_bytes = engine->backend->context_bytes;
    /* What doesn't fit now is made room for as blocks are freed. */
    (void)arena_charge(engine->arena, MEMORY_CONTEXT, engine->charged_bytes);
}

int budget_check(const struct engine *engine, uint64_t bytes, struct error *err)
{
    uint64_t least = least_budget(engine);

    if (bytes >= least)
        return 0;
    return error_set(
        err, EINVAL,
        "vram_budget of %s is too small: the smallest picture, of one step, takes %s at least",
        size_shown(bytes).text, size_needed(least).text);
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
        .spilled_bytes = atomic_load(&engine->spilled_bytes),
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
    if (bytes != 0 && budget_check(engine, bytes, err) != 0)
        return err->code;
    budget_want(engine, bytes);
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
