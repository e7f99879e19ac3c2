/* SPDX-License-Identifier: MIT */
#include "fs/config_plan.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fs/text.h"

enum { JOBS_MAX = 64 };

/* Of GB/s and of TFLOP/s: beyond these it is a slip, and the times would be nonsense. */
#define RATE_LEAST 0.01
#define RATE_MOST 1e6

static int read_number(double *number, const char *name, const char *value, struct error *err)
{
    char shown[TEXT_SHOWN_BYTES], *end;
    double parsed = strtod(value, &end);

    if (value[0] < '0' || value[0] > '9' || *end != '\0' || !isfinite(parsed) || parsed <= 0)
        return error_set(err, EINVAL, "--%s: \"%s\" is no number above 0", name,
                         text_show(shown, value));
    *number = parsed;
    return 0;
}

static int read_rate(double *rate, const char *name, const char *value, struct error *err)
{
    char shown[TEXT_SHOWN_BYTES];
    double parsed;

    if (read_number(&parsed, name, value, err) != 0)
        return err->code;
    if (parsed < RATE_LEAST || parsed > RATE_MOST)
        return error_set(err, EINVAL, "--%s: %s: %g to %.0f %s are possible", name,
                         text_show(shown, value), RATE_LEAST, RATE_MOST,
                         strcmp(name, "tflops") == 0 ? "TFLOP/s" : "GB/s");
    *rate = parsed;
    return 0;
}

static int read_value(struct config_plan *plan, const char *name, const char *value,
                      struct error *err)
{
    struct error inner;
    double jobs;

    if (strcmp(name, "vram") == 0) {
        if (config_parse_size(&plan->vram_bytes, value, &inner) != 0)
            return error_set(err, EINVAL, "--vram: %s", inner.text);
        return 0;
    }
    if (strcmp(name, "link") == 0)
        return read_rate(&plan->link_gb_s, name, value, err);
    if (strcmp(name, "tflops") == 0)
        return read_rate(&plan->tflops, name, value, err);
    if (strcmp(name, "bandwidth") == 0)
        return read_rate(&plan->bandwidth_gb_s, name, value, err);
    if (read_number(&jobs, name, value, err) != 0)
        return err->code;
    if (jobs > JOBS_MAX || jobs != floor(jobs))
        return error_set(err, EINVAL, "--jobs: %s: 1 to %d are possible", value, JOBS_MAX);
    plan->jobs = (uint32_t)jobs;
    return 0;
}

/* The option's name without dashes and value; NULL if it is none of ours. */
static const char *find_name(const char *option)
{
    static const char *const names[] = {"vram", "link", "tflops", "bandwidth", "jobs"};
    size_t length;

    if (strncmp(option, "--", 2) != 0)
        return NULL;
    length = strcspn(option + 2, "=");
    for (size_t n = 0; n < sizeof names / sizeof *names; n++)
        if (strlen(names[n]) == length && strncmp(option + 2, names[n], length) == 0)
            return names[n];
    return NULL;
}

bool config_plan_has(const char *option)
{
    return find_name(option) != NULL;
}

int config_plan_option(struct config_plan *plan, int argc, char *const argv[], int *i,
                       struct error *err)
{
    const char *name = find_name(argv[*i]), *value;

    if (name == NULL)
        return 0;
    value = strchr(argv[*i], '=');
    if (value == NULL && *i + 1 >= argc)
        return error_set(err, EINVAL, "--%s: its value is missing", name);
    value = value != NULL ? value + 1 : argv[++*i];
    return read_value(plan, name, value, err) != 0 ? err->code : 1;
}
