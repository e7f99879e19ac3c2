/* SPDX-License-Identifier: MIT */
/*
 * Where an image's modulations are: those of many steps on the device, or, where memory is short,
 * on the host, from which each step's are copied with the weights while the step before is
 * computed. Where the device is the host, that would gain nothing, and hide memory from the budget.
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

void modulations_hold_few(struct image *image)
{
    int all = at_a_time(image);
    bool few = all > MODULATION_ROWS && !image->engine->backend->host;

    image->held_steps = few ? MODULATION_ROWS : all;
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
        modulations_hold_few(image);
}

struct tensor modulations_of(const struct image *image, const struct branch *branch)
{
    int row =
        modulations_spill(image) ? image->step % MODULATION_ROWS : image->step - image->chunk_first;

    return tensor_rows(branch->modulations, row, 1);
}

int modulations_begin(struct image *image, int first, int steps)
{
    size_t width = (size_t)image->engine->transformer.modulation_width;

    modulations_forget(image);
    image->chunk_first = first;
    image->chunk_steps = steps;
    image->fetched_steps = image->step;
    for (int b = 0; modulations_spill(image) && b < image->branch_count; b++) {
        struct branch *branch = &image->branches[b];
        size_t bytes = (size_t)steps * width * sizeof *branch->spilled;

        branch->spilled = malloc(bytes);
        if (branch->spilled == NULL)
            return -ENOMEM;
        branch->spilled_bytes = bytes;
        atomic_fetch_add(&image->engine->spilled_bytes, bytes);
    }
    return 0;
}

/* Queues the copies of one step's. */
static void fetch(struct image *image, int step)
{
    struct backend *backend = image->engine->backend;
    int64_t width = image->engine->transformer.modulation_width;

    backend->ops->copy_reuse(backend);
    for (int b = 0; b < image->branch_count; b++) {
        struct branch *branch = &image->branches[b];
        struct weight_copy copy = {
            .target = tensor_rows(branch->modulations, step % MODULATION_ROWS, 1).data,
            .source = branch->spilled + (step - image->chunk_first) * width,
            .source_dtype = DTYPE_F32,
            .layout = WEIGHT_VECTOR,
            .rows = 1,
            .cols = width,
        };

        backend->ops->copy_weights(backend, &copy, 1);
    }
    image->tickets[step % MODULATION_ROWS] = backend->ops->copy_ticket(backend);
}

void modulations_fetch(struct image *image)
{
    struct backend *backend = image->engine->backend;

    if (!modulations_spill(image))
        return;
    for (int ahead = 0; ahead < MODULATION_ROWS; ahead++) {
        if (image->fetched_steps == image->chunk_first + image->chunk_steps)
            break;
        if (image->fetched_steps == image->step + ahead)
            fetch(image, image->fetched_steps++);
    }
    backend->ops->copy_wait(backend, image->tickets[image->step % MODULATION_ROWS]);
}

void modulations_forget(struct image *image)
{
    struct backend *backend = image->engine->backend;

    image->chunk_steps = 0;
    if (!modulations_spill(image))
        return;
    for (int row = 0; row < MODULATION_ROWS; row++)
        if (image->tickets[row] != 0)
            backend->ops->copy_wait(backend, image->tickets[row]);
    backend->ops->mark_wait(backend, backend->ops->mark(backend, STREAM_COMPUTE));
    for (int b = 0; b < image->branch_count; b++) {
        struct branch *branch = &image->branches[b];

        free(branch->spilled);
        atomic_fetch_sub(&image->engine->spilled_bytes, branch->spilled_bytes);
        branch->spilled = NULL;
        branch->spilled_bytes = 0;
    }
}
