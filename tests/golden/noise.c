/* SPDX-License-Identifier: MIT */
/*
 * usage: test_noise DATA-FOLDER
 *
 * The noise of seeds against PyTorch's CPU generator (noise.safetensors, made by reference.py).
 * Names say what a tensor is: seedSEED.nCOUNT, and .first or .last if it is an end of it only.
 */
#include <inttypes.h>

#include "engine/random.h"
#include "tests/golden/golden.h"

static double worst;

/* Within a few units in the last place: PyTorch's vector code has sines and logarithms of its own.
 */
static void compare_values(const char *name, const float *ours, const struct stored_tensor *theirs)
{
    for (size_t i = 0; i < golden_count(theirs); i++) {
        float wanted;
        memcpy(&wanted, (const char *)theirs->data + i * sizeof wanted, sizeof wanted);
        double difference = fabs((double)ours[i] - wanted) / fmax(1.0, fabs((double)wanted));
        worst = fmax(worst, difference);
        if (!EXPECT(difference <= 1e-6, "%s, value %zu: %.9g, PyTorch has %.9g", name, i,
                    (double)ours[i], (double)wanted))
            return;
    }
}

static void compare_tensor(const struct stored_tensor *theirs)
{
    uint64_t seed;
    size_t count, shown = golden_count(theirs);
    char end[8] = "";
    int fields = sscanf(theirs->name, "seed%" SCNu64 ".n%zu.%7s", &seed, &count, end);
    if (!EXPECT(fields >= 2 && count >= shown && (fields == 3 || count == shown), "%s",
                theirs->name))
        return;
    float *values = malloc(count * sizeof *values);
    if (values == NULL)
        exit(EXIT_FAILURE);
    random_normal(seed, values, count);
    compare_values(theirs->name, strcmp(end, "last") == 0 ? values + count - shown : values,
                   theirs);
    free(values);
}

int main(int argc, char **argv)
{
    char path[4096];
    struct safetensors *file = NULL;
    struct error err = {0};
    size_t count = 0;
    snprintf(path, sizeof path, "%s/noise.safetensors", argc == 2 ? argv[1] : ".");
    if (EXPECT(safetensors_open(path, &file, &err) == 0, "%s", err.text)) {
        const struct stored_tensor *tensors = safetensors_list(file, &count);
        EXPECT(count >= 50, "%zu tensors", count);
        for (size_t i = 0; i < count; i++)
            compare_tensor(&tensors[i]);
    }
    safetensors_close(file);
    printf("%zu tensors, largest difference %.2g\n", count, worst);
    return test_finish();
}
