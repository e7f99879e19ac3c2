/* SPDX-License-Identifier: MIT */
#include "engine/model/sampler.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "engine/file.h"

int sampler_read(struct sampler_config *config, const struct json_file *json, struct error *err)
{
    struct json_reader r = json_reader_start(json);
    const char *type = json_get_string_or(&r, "time_shift_type", "exponential");

    config->dynamic_shifting = json_get_bool_or(&r, "use_dynamic_shifting", false);
    config->linear = strcmp(type, "linear") == 0;
    config->shift = json_get_double_or(&r, "shift", 1.0, 1e-3, 1e3);
    config->base_shift = json_get_double_or(&r, "base_shift", 0.5, -20, 20);
    config->max_shift = json_get_double_or(&r, "max_shift", 1.15, -20, 20);
    config->base_tokens = json_get_int_or(&r, "base_image_seq_len", 256, 1, 1 << 24);
    config->max_tokens = json_get_int_or(&r, "max_image_seq_len", 4096, 1, 1 << 24);
    if (json_reader_finish(&r, err) != 0)
        return err->code;
    if (!config->linear && strcmp(type, "exponential") != 0)
        return error_set(err, ENOTSUP,
                         "%s: time_shift_type is %s; exponential and linear are "
                         "supported",
                         file_label(json_file_path(json)), type);
    if (config->max_tokens == config->base_tokens)
        return error_set(err, EINVAL, "%s: base_image_seq_len equals max_image_seq_len",
                         file_label(json_file_path(json)));
    return 0;
}

/* A config may ask for any slope: strengths of shift that neither overflow nor turn round. */
#define STRENGTH_MIN 1e-9
#define STRENGTH_MAX 1e9

static double shifted(const struct sampler_config *config, double t, double mu)
{
    if (!config->dynamic_shifting)
        return config->shift * t / (1 + (config->shift - 1) * t);
    double strength = fmin(fmax(config->linear ? mu : exp(mu), STRENGTH_MIN), STRENGTH_MAX);
    return strength / (strength + (1 / t - 1));
}

void sampler_sigmas(const struct sampler_config *config, int steps, int image_tokens, float *sigmas)
{
    double slope = (config->max_shift - config->base_shift) /
                   (double)(config->max_tokens - config->base_tokens);
    double mu = config->base_shift + (image_tokens - config->base_tokens) * slope;

    for (int i = 0; i < steps; i++) {
        double t = steps == 1 ? 1.0 : 1.0 - (1.0 - 1.0 / steps) * i / (steps - 1);

        sigmas[i] = (float)shifted(config, t, mu);
    }
    sigmas[steps] = 0;
}
