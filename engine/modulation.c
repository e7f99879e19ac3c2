/* SPDX-License-Identifier: MIT */
/*
 * Where an image's modulations are: those of many steps on the device, or, where memory is short,
 * on the host, from which each step's are copied with the weights: those of double blocks while the
 * step before is at its single blocks, those of the others while the step is at its double blocks.
 * Where the device is the host, that would gain nothing, and hide memory from the budget.
 */
#include <errno.h>
#include <stdlib.h>

#include "engine/pipeline.h"

static int at_a_time(const struct image *image)
{
    return image->request.steps < MODULATION_STEPS ? image->request.steps : MODULATION_STEPS;
}

bool modulations_spill(const struct image *image)
{
    return image->held_steps < at_a_time(image);
}

void modulations_hold_one(struct image *image)
{
    image->held_steps = image->engine->backend->host ? at_a_time(image) : 1;
    image->needs.state = image_place(image, 0);
}

void modulations_hold_all(struct image *image)
{
    const struct engine *engine = image->engine;
    uint64_t state;

    image->held_steps = at_a_time(image);
    image->needs.state = image_place(image, 0);
    state = in_pages(engine, image->needs.state);
    /* Not so many that a pass of a larger image would have no room any more. */
    if (!room_for_all(engine, state + image->needs.step) ||
        engine_room(engine) < state + denoise_most(engine, image))
        modulations_hold_one(image);
}

struct tensor modulations_of(const struct image *image, const struct branch *branch)
{
    int row = modulations_spill(image) ? 0 : image->step - image->chunk_first;

    return tensor_rows(branch->modulations, row, 1);
}

/* ---- spilled ones: memory of the host, which takes its time to be had and given back ---- */

static int spill_begin(struct engine *engine, struct branch *branch, size_t bytes)
{
    if (engine->spare_bytes < bytes)
        modulations_rest(engine);
    branch->spilled = engine->spare != NULL ? engine->spare : malloc(bytes);
    branch->spilled_bytes = engine->spare != NULL ? engine->spare_bytes : bytes;
    engine->spare = NULL;
    engine->spare_bytes = 0;
    if (branch->spilled == NULL)
        return -ENOMEM;
    atomic_fetch_add(&engine->spilled_bytes, branch->spilled_bytes);
    return 0;
}

static void spill_end(struct engine *engine, struct branch *branch)
{
    if (branch->spilled == NULL)
        return;
    atomic_fetch_sub(&engine->spilled_bytes, branch->spilled_bytes);
    if (branch->spilled_bytes > engine->spare_bytes) {
        modulations_rest(engine);
        engine->spare = branch->spilled;
        engine->spare_bytes = branch->spilled_bytes;
    } else {
        free(branch->spilled);
    }
    branch->spilled = NULL;
}

void modulations_rest(struct engine *engine)
{
    free(engine->spare);
    engine->spare = NULL;
    engine->spare_bytes = 0;
}

int modulations_begin(struct image *image, int first, int steps)
{
    size_t width = (size_t)image->engine->transformer.modulation_width;

    modulations_forget(image);
    image->chunk_first = first;
    image->chunk_steps = steps;
    for (int part = 0; part < MODULATION_PARTS; part++)
        image->copied_step[part] = -1;
    for (int b = 0; modulations_spill(image) && b < image->branch_count; b++)
        if (spill_begin(image->engine, &image->branches[b],
                        (size_t)steps * width * sizeof(float)) != 0)
            return -ENOMEM;
    return 0;
}

/* Queues the copies of one part of a step's, unless they were queued already. */
static void fetch(struct image *image, int part, int step)
{
    const struct transformer *transformer = &image->engine->transformer;
    struct backend *backend = image->engine->backend;
    int64_t doubles = transformer->modulations[2 * transformer->config.doubles].offset;
    int64_t first = part == MODULATION_DOUBLE ? 0 : doubles;
    int64_t end = part == MODULATION_DOUBLE ? doubles : transformer->modulation_width;

    if (image->copied_step[part] == step)
        return;
    backend->ops->copy_reuse(backend);
    for (int b = 0; b < image->branch_count; b++) {
        struct branch *branch = &image->branches[b];
        struct weight_copy copy = {
            .target = tensor_cols(branch->modulations, first, end - first).data,
            .source = branch->spilled +
                      (step - image->chunk_first) * transformer->modulation_width + first,
            .source_dtype = DTYPE_F32,
            .layout = WEIGHT_VECTOR,
            .rows = 1,
            .cols = end - first,
        };

        backend->ops->copy_weights(backend, &copy, 1);
    }
    image->copied_step[part] = step;
    image->tickets[part] = backend->ops->copy_ticket(backend);
}

void modulations_fetch(struct image *image, size_t i)
{
    struct backend *backend = image->engine->backend;
    size_t doubles = (size_t)image->engine->transformer.config.doubles;
    /* The last double block enters the next one. */
    size_t last = doubles > 0 ? 1 + DOUBLE_PIECES * (doubles - 1) : 0;

    if (!modulations_spill(image))
        return;
    if (i == 0) {
        fetch(image, MODULATION_DOUBLE, image->step);
        fetch(image, MODULATION_OTHER, image->step);
        backend->ops->copy_wait(backend, image->tickets[MODULATION_DOUBLE]);
    }
    if (i == last)
        backend->ops->copy_wait(backend, image->tickets[MODULATION_OTHER]);
    if (i == 1 + DOUBLE_PIECES * doubles &&
        image->step + 1 < image->chunk_first + image->chunk_steps)
        fetch(image, MODULATION_DOUBLE, image->step + 1);
}

void modulations_forget(struct image *image)
{
    struct backend *backend = image->engine->backend;

    image->chunk_steps = 0;
    if (!modulations_spill(image))
        return;
    for (int part = 0; part < MODULATION_PARTS; part++)
        if (image->tickets[part] != 0)
            backend->ops->copy_wait(backend, image->tickets[part]);
    backend->ops->mark_wait(backend, backend->ops->mark(backend, STREAM_COMPUTE));
    for (int b = 0; b < image->branch_count; b++)
        spill_end(image->engine, &image->branches[b]);
}
