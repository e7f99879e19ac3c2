/* SPDX-License-Identifier: MIT */
/*
 * What the golden tests share: reference tensors, how far from them a result is, and a back end's
 * memory for tests that run the models without an engine.
 */
#ifndef FLUXFS_TESTS_GOLDEN_GOLDEN_H
#define FLUXFS_TESTS_GOLDEN_GOLDEN_H

#include <math.h>
#include <string.h>

#include "alloc/arena.h"
#include "engine/backend.h"
#include "engine/safetensors.h"
#include "tests/test.h"

/* In fp32, relative L2 distance: of a stage fed with the reference's own input, and of latents
 * after several steps. */
#define STAGE_TOLERANCE 1e-4
#define FINAL_TOLERANCE 1e-3

struct json_t;

/* DATA_FOLDER/NAME.safetensors and .json */
struct golden {
    const char *label;
    struct safetensors *reference;
    struct json_t *manifest;
};

void golden_open(struct golden *golden, const char *folder, const char *name);
void golden_close(struct golden *golden);

/* A reference tensor that must be there; a missing one ends the test. */
const struct stored_tensor *golden_tensor(const struct golden *golden, const char *name);
bool golden_has(const struct golden *golden, const char *name);
size_t golden_count(const struct stored_tensor *tensor);

/* ‖ours − theirs‖ / ‖theirs‖ */
double golden_distance(const float *ours, const float *theirs, size_t count);

/* How far a back end that keeps hidden states in `activation` may be from a reference tensor: in
 * fp32 as far as is given, in bf16 no farther than diffusers in bf16, and never beyond 2 %. */
double golden_tolerance(const struct golden *golden, const char *name, enum dtype activation,
                        double fp32_tolerance);

/* ---- a back end without an engine ---- */

struct golden_device {
    struct backend *backend;
    struct arena *arena;
};

/* "cpu", or a module of a folder. Exits with "skipped" when there is no such device. */
void golden_device_open(struct golden_device *device, const char *name, const char *modules);
void golden_device_close(struct golden_device *device);
void *golden_device_alloc(struct golden_device *device, uint64_t bytes);
void golden_device_free(struct golden_device *device, void *memory);
/* Ends the test if anything failed on the device. */
void golden_device_sync(struct golden_device *device);

/* The tensor's values, to be freed. */
float *golden_values(struct golden_device *device, struct tensor t);

/* ---- checks, in each test's own count ---- */

__attribute__((unused)) static void golden_expect_values(const struct golden *golden,
                                                         const char *name, const float *ours,
                                                         double tolerance)
{
    const struct stored_tensor *theirs = golden_tensor(golden, name);
    double distance = golden_distance(ours, theirs->data, golden_count(theirs));

    printf("%-14s %-28s %.2e of %.1e\n", golden->label, name, distance, tolerance);
    EXPECT(distance <= tolerance, "%s %s: %g > %g", golden->label, name, distance, tolerance);
}

/* Compares a tensor of the device with a reference. */
__attribute__((unused)) static void golden_expect(const struct golden *golden,
                                                  struct golden_device *device, const char *name,
                                                  struct tensor ours, double fp32_tolerance)
{
    float *values = golden_values(device, ours);

    golden_expect_values(
        golden, name, values,
        golden_tolerance(golden, name, device->backend->activation, fp32_tolerance));
    free(values);
}

#endif
