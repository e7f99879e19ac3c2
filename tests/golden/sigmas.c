/* SPDX-License-Identifier: MIT */
/*
 * Noise levels against diffusers' scheduler, for every configuration, size and number of steps in
 * sigmas.safetensors: SCHEDULER.WIDTHxHEIGHT.STEPS.
 * usage: sigmas DATA_FOLDER
 */
#include <jansson.h>

#include "engine/model/sampler.h"
#include "tests/golden/golden.h"

static struct sampler_config read_config(const json_t *schedulers, const char *name)
{
    char *text = json_dumps(json_object_get(schedulers, name), 0);
    struct sampler_config config = {0};
    struct json_file *file = NULL;
    struct error err = {0};

    if (text == NULL || json_file_parse(name, text, strlen(text), &file, &err) != 0 ||
        sampler_read(&config, file, &err) != 0) {
        fprintf(stderr, "%s: %s\n", name, err.text);
        exit(EXIT_FAILURE);
    }
    json_file_close(file);
    free(text);
    return config;
}

static void compare(const json_t *schedulers, const struct stored_tensor *wanted)
{
    const float *theirs = wanted->data;
    struct sampler_config config;
    char scheduler[32];
    int width, height, steps;
    float ours[1001];

    if (!EXPECT(sscanf(wanted->name, "%31[^.].%dx%d.%d", scheduler, &width, &height, &steps) == 4))
        return;
    EXPECT(wanted->rank == 1 && wanted->shape[0] == steps + 1 && steps <= 1000);
    config = read_config(schedulers, scheduler);
    sampler_sigmas(&config, steps, width / 16 * (height / 16), ours);
    /* theirs are computed in fp32, step by step */
    for (int i = 0; i <= steps; i++)
        EXPECT(fabsf(ours[i] - theirs[i]) <= 1e-6f, "%s: sigma %d is %.9g, diffusers has %.9g",
               wanted->name, i, (double)ours[i], (double)theirs[i]);
}

/* Absurd slopes of the shift still give noise levels from 1 down to 0. */
static void test_extremes(void)
{
    static const double shifts[] = {-20, 20};
    float sigmas[21];

    for (int i = 0; i < 8; i++) {
        struct sampler_config config = {.dynamic_shifting = true,
                                        .linear = i & 1,
                                        .base_shift = shifts[i >> 1 & 1],
                                        .max_shift = shifts[i >> 2 & 1],
                                        .base_tokens = 256,
                                        .max_tokens = 257};
        sampler_sigmas(&config, 20, 65536, sigmas);
        EXPECT(sigmas[0] <= 1 && sigmas[20] == 0);
        for (int s = 0; s < 20; s++)
            EXPECT(sigmas[s] > 0 && sigmas[s + 1] <= sigmas[s], "%d: %g", s, (double)sigmas[s]);
    }
}

int main(int argc, char **argv)
{
    const struct stored_tensor *list;
    struct safetensors *file;
    struct error err;
    char path[4096];
    size_t count;
    json_t *data;

    if (argc != 2)
        return EXIT_FAILURE;
    snprintf(path, sizeof path, "%s/sigmas.json", argv[1]);
    data = json_load_file(path, 0, NULL);
    snprintf(path, sizeof path, "%s/sigmas.safetensors", argv[1]);
    if (data == NULL || safetensors_open(path, &file, &err) != 0) {
        fprintf(stderr, "%s: not readable\n", path);
        return EXIT_FAILURE;
    }
    list = safetensors_list(file, &count);
    EXPECT(count > 100, "%zu", count);
    for (size_t i = 0; i < count; i++)
        compare(json_object_get(data, "schedulers"), &list[i]);
    test_extremes();
    safetensors_close(file);
    json_decref(data);
    return test_finish();
}
