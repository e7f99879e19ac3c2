/* SPDX-License-Identifier: MIT */
/* The part of the fake engine that has no state. */
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "engine/engine.h"

int engine_forecast(struct engine_forecast *forecast, const struct engine_options *options,
                    const struct engine_device *device, const struct image_request *request,
                    int jobs, struct error *err)
{
    return error_set(err, ENOTSUP, "no device, painting gradients: there is nothing to plan");
}

int engine_check_model(const char *path, struct error *err)
{
    char unreadable[4200];

    snprintf(unreadable, sizeof unreadable, "%s/unreadable", path);
    return access(unreadable, F_OK) == 0 ? error_set(err, EINVAL, "%s: is unreadable", path) : 0;
}

const char *image_phase_name(enum image_phase phase)
{
    static const char *const names[] = {
        [IMAGE_WAITING] = "waiting", [IMAGE_TEXT] = "text", [IMAGE_DENOISE] = "denoise",
        [IMAGE_DECODE] = "decode",   [IMAGE_DONE] = "done", [IMAGE_CANCELLED] = "cancelled",
        [IMAGE_FAILED] = "failed",
    };
    return names[phase];
}

const char *memory_component_name(enum memory_component component)
{
    static const char *const names[] = {
        [MEMORY_WEIGHTS] = "weights",
        [MEMORY_TEXT_ENCODERS] = "text encoders",
        [MEMORY_VAE] = "vae",
        [MEMORY_ACTIVATIONS] = "activations",
        [MEMORY_WORKSPACE] = "workspace",
        [MEMORY_CONTEXT] = "context",
    };
    return names[component];
}
