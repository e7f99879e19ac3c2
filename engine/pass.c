/* SPDX-License-Identifier: MIT */
/*
 * Passes: running the blocks of one list over what is active, under the budget.
 */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "engine/pipeline.h"

void pass_close(struct engine *engine)
{
    offload_end(&engine->offload);
    if (engine->workspace != 0)
        arena_free(engine->arena, engine->workspace, 0);
    engine->workspace = 0;
    engine->workspace_bytes = 0;
}

/* Seconds until the device is asked again for what it did not give; doubled each time, up to so
 * many that a step done again costs little. */
#define PATIENCE_S 5.0
#define PATIENCE_MOST_S 80.0

/* What a device needs of its own when it loads code for an operation, and seldom more. */
#define CODE_BYTES ((uint64_t)64 << 20)

/* The device has no more than that, and that is the limit for some time. */
static int limit(struct engine *engine, uint64_t bytes, struct error *err)
{
    engine->ceiling = bytes;
    engine->ceiling_wait_s =
        engine->ceiling_wait_s > 0 ? fmin(2 * engine->ceiling_wait_s, PATIENCE_MOST_S) : PATIENCE_S;
    engine->ceiling_until_s = engine_now(engine) + engine->ceiling_wait_s;
    return error_set(err, EAGAIN, "the device has no memory beyond %s", size_shown(bytes).text);
}

/* What fits into the budget was not to be had. */
static int memory_short(struct engine *engine, struct error *err)
{
    struct arena_stats stats;

    arena_stats(engine->arena, &stats);
    if (stats.reserved + stats.page_bytes > engine->budget)
        return err->code;
    return limit(engine, stats.reserved, err);
}

/* The device had no memory for its own affairs, and some of ours is given back for that. Not all
 * was done that was queued, so that no image's state can be trusted. */
static int code_short(struct engine *engine, struct error *err)
{
    struct arena_stats stats;

    for (struct image *image = engine->images; image != NULL; image = image->next)
        image_rewind(image);
    arena_stats(engine->arena, &stats);
    engine->code_bytes = CODE_BYTES;
    return limit(engine, stats.reserved > CODE_BYTES ? stats.reserved - CODE_BYTES : 0, err);
}

int pass_allocate(struct engine *engine, uint64_t bytes, const char *what, uintptr_t *address,
                  struct error *err)
{
    struct arena_request request = {bytes, 0, MEMORY_ACTIVATIONS};
    struct arena_shortage shortage = {0};
    int result = arena_alloc(engine->arena, &request, address, &shortage);

    if (result == 0)
        return 0;
    *address = 0;
    if (result != -ENOMEM)
        return error_set(err, -result, "device memory: %s", strerror(-result));
    error_set(err, ENOMEM,
              "no room for %s of %s: %s of %s are in use; raise vram_budget or make the image "
              "smaller",
              size_shown(bytes).text, what, size_shown(shortage.reserved_bytes).text,
              size_shown(shortage.budget_bytes).text);
    return memory_short(engine, err);
}

/* What an image needs once passes beside other weights that are there, if it can, or at least
 * beside those of the steps: to load them anew would cost as much as it saves, or more. */
static uint64_t room_beside(const struct engine *engine, const struct block_list *list,
                            uint64_t room)
{
    const struct block_list *step = &engine->transformer.step;
    uint64_t kept = offload_present_bytes(&engine->offload) - block_list_present_bytes(list);

    if (list == step)
        return room;
    if (room < kept + list->least_bytes)
        kept = block_list_present_bytes(step);
    return room >= kept + list->least_bytes ? room - kept : list->least_bytes;
}

static int plan_weights(struct engine *engine, struct block_list *list, struct error *err)
{
    uint64_t room = engine_room(engine), workspace = in_pages(engine, engine->workspace_bytes);
    uint64_t later = context_later(engine);
    double times = 1;
    int result;

    if (room < workspace + list->least_bytes)
        return error_set(err, EAGAIN, "there is less memory than there was");
    room = room_beside(engine, list, room - workspace);
    if (room >= list->least_bytes + later)
        room -= later;
    if (list == &engine->transformer.step && engine->lanes > 0)
        times = (double)engine->present_lanes / (double)engine->lanes;
    result = offload_begin(&engine->offload, list, room, times, err);
    if (result == -ENOMEM)
        return memory_short(engine, err);
    if (result == 0 && list == &engine->transformer.step) {
        atomic_store(&engine->resident_blocks, engine->offload.stats.resident);
        atomic_store(&engine->streamed_blocks, engine->offload.stats.streamed);
        engine->streamed_bytes = engine->offload.stats.streamed_bytes;
    }
    return result;
}

int pass_open(struct engine *engine, struct block_list *list, uint64_t workspace_bytes,
              struct error *err)
{
    if (engine->offload.pass == list && engine->workspace_bytes == workspace_bytes &&
        !offload_outdated(&engine->offload))
        return 0;
    pass_close(engine);
    if (pass_allocate(engine, workspace_bytes, "workspace", &engine->workspace, err) != 0)
        return err->code;
    engine->workspace_bytes = workspace_bytes;
    return plan_weights(engine, list, err);
}

static uint64_t budget_allowed(const struct engine *engine)
{
    uint64_t wanted = budget_wanted(engine);

    return wanted < engine->ceiling ? wanted : engine->ceiling;
}

/* A budget set meanwhile takes effect here, between two blocks. The weights are planned anew, so
 * that the ring does not stand in the way. */
static int change_budget(struct engine *engine, struct error *err)
{
    struct block_list *list = engine->offload.pass;

    offload_end(&engine->offload);
    engine->budget = budget_allowed(engine);
    arena_set_budget(engine->arena, engine->budget);
    return plan_weights(engine, list, err);
}

/* Memory that the device could not give may be there again. */
static void lift_ceiling(struct engine *engine)
{
    if (engine->ceiling < budget_wanted(engine) && engine_now(engine) > engine->ceiling_until_s)
        engine->ceiling = UINT64_MAX;
}

/* Where that was wanting: whether the device has memory for its own affairs. */
static bool has_code_bytes(const struct engine *engine)
{
    struct page_source *pages = engine->backend->pages;
    uint64_t free_bytes = 0, total_bytes = 0;

    return engine->code_bytes == 0 || pages->ops->memory(pages, &free_bytes, &total_bytes) != 0 ||
           free_bytes >= engine->code_bytes;
}

bool pass_obtain(struct engine *engine, uint64_t bytes)
{
    uint64_t wanted = budget_wanted(engine);

    if (engine->ceiling >= wanted || bytes > wanted)
        return false;
    pass_close(engine);
    arena_set_budget(engine->arena, wanted);
    if (arena_prepare(engine->arena, bytes) != 0 || !has_code_bytes(engine)) {
        arena_set_budget(engine->arena, engine->budget);
        return false;
    }
    engine->ceiling = UINT64_MAX;
    engine->budget = wanted;
    return true;
}

/* What a pass had no room to give back while it ran: it is free now, but for work still queued. */
static bool is_over_budget(const struct engine *engine)
{
    struct arena_stats stats;

    arena_stats(engine->arena, &stats);
    return stats.reserved > engine->budget;
}

void pass_budget(struct engine *engine)
{
    (void)budget_watch(engine);
    lift_ceiling(engine);
    if (budget_allowed(engine) == engine->budget && !is_over_budget(engine))
        return;
    pass_close(engine);
    engine->budget = budget_allowed(engine);
    arena_set_budget(engine->arena, engine->budget);
}

void pass_rest(struct engine *engine)
{
    pass_close(engine);
    modulations_rest(engine);
    engine->ceiling = UINT64_MAX;
    engine->ceiling_wait_s = 0;
    engine->code_bytes = 0;
}

int pass_block(struct engine *engine, size_t i, bool wrap, struct error *err)
{
    int result = 0;

    if (budget_allowed(engine) != engine->budget)
        result = change_budget(engine, err);
    if (result == 0) {
        timeline_begin(&engine->timeline, engine->offload.pass->blocks[i]->kind);
        result = offload_acquire(&engine->offload, i, wrap, err);
    }
    if (result != 0) {
        timeline_drop(&engine->timeline);
        return result == -ENOMEM ? memory_short(engine, err) : result;
    }
    timeline_ready(&engine->timeline);
    return 0;
}

/* Weights that could not be read are zeros, which nothing else would notice. */
static int check_files(const struct engine *engine, struct error *err)
{
    const struct checkpoint *files[] = {engine->clip_files, engine->t5_files,
                                        engine->transformer_files, engine->vae_files};
    int result = 0;

    for (size_t i = 0; i < sizeof files / sizeof files[0] && result == 0; i++)
        result = checkpoint_check(files[i], err);
    return result;
}

int pass_sync(struct engine *engine, struct error *err)
{
    int result;

    timeline_end(&engine->timeline);
    result = engine->backend->ops->sync(engine->backend, err);
    if (result == 0)
        result = check_files(engine, err);
    if (result == 0)
        timeline_settle(&engine->timeline);
    if (result != 0) {
        timeline_drop(&engine->timeline);
        pass_close(engine);
        offload_drop(&engine->offload);
    }
    memory_charge_context(engine);
    return result == -ENOMEM ? code_short(engine, err) : result;
}

struct compute pass_compute(const struct engine *engine, struct scratch *scratch)
{
    return (struct compute){.backend = engine->backend, .scratch = scratch};
}

struct compute pass_rehearsal(const struct engine *engine, struct scratch *scratch)
{
    scratch_record(scratch);
    return (struct compute){.backend = engine->backend, .scratch = scratch, .rehearsal = true};
}

struct scratch pass_cursor(const struct engine *engine, const struct scratch *plan)
{
    struct scratch cursor = *plan;

    scratch_replay(&cursor, (void *)engine->workspace);
    return cursor;
}
