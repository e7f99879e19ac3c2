/* SPDX-License-Identifier: MIT */
/*
 * Flow matching: the noise levels (sigmas) of a run.
 * Source: arXiv 2403.03206; diffusers schedulers/scheduling_flow_match_euler_discrete.py.
 */
#ifndef FLUXFS_ENGINE_MODEL_SAMPLER_H
#define FLUXFS_ENGINE_MODEL_SAMPLER_H

#include <stdbool.h>

#include "engine/error.h"
#include "engine/json.h"

struct sampler_config {
    bool dynamic_shifting; /* dev: shift by image size; schnell: by `shift` */
    bool linear;           /* time_shift_type "linear", else "exponential" */
    double shift;
    double base_shift, max_shift;
    int base_tokens, max_tokens;
};

int sampler_read(struct sampler_config *config, const struct json_file *json, struct error *err);

/* sigmas [steps + 1], from 1 (or nearly) down to 0, for an image of so many tokens. */
void sampler_sigmas(const struct sampler_config *config, int steps, int image_tokens,
                    float *sigmas);

#endif
