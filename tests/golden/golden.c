/* SPDX-License-Identifier: MIT */
#include "tests/golden/golden.h"

#include <errno.h>
#include <jansson.h>

#include "engine/cpu/backend.h"
#include "engine/module.h"

/* No stage of the tiny checkpoints loses more than this to bf16, where diffusers, which rounds
 * noise levels too and carries errors from stage to stage, loses up to a quarter. */
#define BF16_TOLERANCE_MAX 0.02
/* Where both do the same, the order of summation decides who is nearer. */
#define BF16_ROOM 1.1

#define ARENA_BUDGET ((uint64_t)1 << 30)

static void fail(const char *what, const char *why)
{
    fprintf(stderr, "%s: %s\n", what, why);
    exit(EXIT_FAILURE);
}

void golden_open(struct golden *golden, const char *folder, const char *name)
{
    struct error err;
    json_error_t error;
    char path[4096];

    *golden = (struct golden){.label = name};
    snprintf(path, sizeof path, "%s/%s.safetensors", folder, name);
    if (safetensors_open(path, &golden->reference, &err) != 0)
        fail(name, err.text);
    snprintf(path, sizeof path, "%s/%s.json", folder, name);
    golden->manifest = json_load_file(path, 0, &error);
    if (golden->manifest == NULL)
        fail(path, error.text);
}

void golden_close(struct golden *golden)
{
    safetensors_close(golden->reference);
    json_decref(golden->manifest);
}

bool golden_has(const struct golden *golden, const char *name)
{
    return safetensors_find(golden->reference, name) != NULL;
}

const struct stored_tensor *golden_tensor(const struct golden *golden, const char *name)
{
    const struct stored_tensor *tensor = safetensors_find(golden->reference, name);

    if (tensor == NULL)
        fail("no reference tensor", name);
    return tensor;
}

size_t golden_count(const struct stored_tensor *tensor)
{
    size_t count = 1;

    for (int i = 0; i < tensor->rank; i++)
        count *= (size_t)tensor->shape[i];
    return count;
}

double golden_distance(const float *ours, const float *theirs, size_t count)
{
    double difference = 0, norm = 0;

    for (size_t i = 0; i < count; i++) {
        difference += ((double)ours[i] - theirs[i]) * ((double)ours[i] - theirs[i]);
        norm += (double)theirs[i] * theirs[i];
    }
    return sqrt(difference / norm);
}

double golden_tolerance(const struct golden *golden, const char *name, enum dtype activation,
                        double fp32_tolerance)
{
    const json_t *entry = json_object_get(json_object_get(golden->manifest, "tensors"), name);
    double theirs = json_number_value(json_object_get(entry, "bf16_error"));

    if (activation == DTYPE_F32)
        return fp32_tolerance;
    return fmin(theirs * BF16_ROOM, BF16_TOLERANCE_MAX);
}

/* ---- a back end without an engine ---- */

void golden_device_open(struct golden_device *device, const char *name, const char *modules)
{
    struct arena_options options = {.budget_bytes = ARENA_BUDGET};
    struct error err = {0};
    int result = strcmp(name, "cpu") == 0 ? cpu_backend_create(&device->backend, 2, 0, NULL, &err)
                                          : module_open(&device->backend, modules, name, &err);

    if (result == -ENODEV || result == -ENOENT)
        exit(test_skip(err.text));
    if (result == 0)
        result = arena_create(&device->arena, device->backend->pages, &options);
    if (result != 0)
        fail(name, err.code != 0 ? err.text : strerror(-result));
    device->backend->workspace = golden_device_alloc(device, device->backend->workspace_bytes);
}

void golden_device_close(struct golden_device *device)
{
    golden_device_free(device, device->backend->workspace);
    arena_destroy(device->arena);
    device->backend->ops->destroy(device->backend);
}

void *golden_device_alloc(struct golden_device *device, uint64_t bytes)
{
    struct arena_request request = {.bytes = bytes + 1};
    uintptr_t address;

    if (arena_alloc(device->arena, &request, &address, NULL) != 0)
        fail(device->backend->name, "no device memory");
    return (void *)address;
}

void golden_device_free(struct golden_device *device, void *memory)
{
    if (memory != NULL)
        arena_free(device->arena, (uintptr_t)memory, 0);
}

void golden_device_sync(struct golden_device *device)
{
    struct error err;

    if (device->backend->ops->sync(device->backend, &err) != 0)
        fail(device->backend->name, err.text);
}

float *golden_values(struct golden_device *device, struct tensor t)
{
    float *values = malloc((size_t)t.rows * (size_t)t.cols * sizeof *values);

    if (values == NULL)
        abort();
    device->backend->ops->download(device->backend, values, t);
    golden_device_sync(device);
    return values;
}
