/* SPDX-License-Identifier: MIT */
#include "fs/prompt.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "fs/text.h"

#define SEED_LIMIT (UINT64_C(1) << 63)

static const float guidance_max = 100.0F;

struct prompt_values prompt_values_default(void)
{
    return (struct prompt_values){.count = 1, .guidance = 3.5F, .true_cfg = 1, .seed_random = true};
}

static int value_error(struct error *err, const char *name, const char *value, const char *need)
{
    char shown[TEXT_SHOWN_BYTES];
    return error_set(err, EINVAL, "%s %s: must be %s", name, text_show(shown, value), need);
}

/* Decimal digits and nothing else, at most `max`. */
static bool parse_whole(const char *text, uint64_t max, uint64_t *number)
{
    uint64_t sum = 0;
    const char *at = text;
    for (; *at >= '0' && *at <= '9'; at++) {
        if (__builtin_mul_overflow(sum, UINT64_C(10), &sum) ||
            __builtin_add_overflow(sum, (uint64_t)(*at - '0'), &sum)) {
            return false;
        }
    }
    if (at == text || *at != '\0' || sum > max) {
        return false;
    }
    *number = sum;
    return true;
}

static int set_whole(int *to, const char *name, const char *value, int max, struct error *err)
{
    uint64_t number;
    if (!parse_whole(value, (uint64_t)max, &number) || number == 0) {
        char need[64];
        snprintf(need, sizeof need, "a whole number from 1 to %d", max);
        return value_error(err, name, value, need);
    }
    *to = (int)number;
    return 0;
}

static int set_float(float *to, const char *name, const char *value, float min, struct error *err)
{
    char need[64];
    char *end;
    /* strtof alone would take nan, inf, hexadecimal and leading blanks. */
    bool plain = value[0] != '\0' && value[strspn(value, "0123456789+-.eE")] == '\0';
    float number = strtof(value, &end);
    if (!plain || *end != '\0' || !isfinite(number) || number < min || number > guidance_max) {
        snprintf(need, sizeof need, "a number from %g to %g, like 3.5", (double)min,
                 (double)guidance_max);
        return value_error(err, name, value, need);
    }
    *to = number + 0.0F; /* −0 becomes 0 */
    return 0;
}

static int set_side(int *to, const char *name, const char *value, struct error *err)
{
    uint64_t number;
    if (strcmp(value, "auto") == 0) {
        *to = 0;
        return 0;
    }
    if (!parse_whole(value, PROMPT_MAX_SIDE_PX, &number) || number < PROMPT_SIDE_STEP_PX) {
        char need[64];
        snprintf(need, sizeof need, "from %d to %d pixels, a multiple of %d", PROMPT_SIDE_STEP_PX,
                 PROMPT_MAX_SIDE_PX, PROMPT_SIDE_STEP_PX);
        return value_error(err, name, value, need);
    }
    if (number % PROMPT_SIDE_STEP_PX != 0) {
        char need[64];
        int below = (int)number / PROMPT_SIDE_STEP_PX * PROMPT_SIDE_STEP_PX;
        snprintf(need, sizeof need, "a multiple of %d: try %d or %d", PROMPT_SIDE_STEP_PX, below,
                 below + PROMPT_SIDE_STEP_PX);
        return value_error(err, name, value, need);
    }
    *to = (int)number;
    return 0;
}

static int set_steps(struct prompt_values *values, const char *value, struct error *err)
{
    if (strcmp(value, "auto") == 0) {
        values->steps = 0;
        return 0;
    }
    return set_whole(&values->steps, "steps", value, PROMPT_MAX_STEPS, err);
}

static int set_guidance(struct prompt_values *values, const char *value, struct error *err)
{
    return set_float(&values->guidance, "guidance", value, 0, err);
}

static int set_true_cfg(struct prompt_values *values, const char *value, struct error *err)
{
    return set_float(&values->true_cfg, "true-cfg", value, 1, err);
}

static int set_width(struct prompt_values *values, const char *value, struct error *err)
{
    return set_side(&values->width_px, "width", value, err);
}

static int set_height(struct prompt_values *values, const char *value, struct error *err)
{
    return set_side(&values->height_px, "height", value, err);
}

static int set_size(struct prompt_values *values, const char *value, struct error *err)
{
    static const char times[] = "×";
    char width[16], height[16];
    int sides[2];
    size_t length = strcspn(value, "xX");
    size_t skip = 1;
    const char *cross = strstr(value, times);
    if (cross != NULL && (size_t)(cross - value) < length) {
        length = (size_t)(cross - value);
        skip = sizeof times - 1;
    }
    /* A number alone, or "auto", is a square. */
    const char *second = value[length] == '\0' ? value : value + length + skip;
    if (length >= sizeof width || strlen(second) >= sizeof height) {
        return value_error(err, "size", value, "WIDTHxHEIGHT in pixels, like 768x512");
    }
    memcpy(width, value, length);
    width[length] = '\0';
    strcpy(height, second);
    if (width[0] == '\0' || height[0] == '\0') {
        return value_error(err, "size", value, "WIDTHxHEIGHT in pixels, like 768x512");
    }
    int rc = set_side(&sides[0], "size: width", width, err);
    if (rc == 0) {
        rc = set_side(&sides[1], "size: height", height, err);
    }
    if (rc == 0) {
        values->width_px = sides[0];
        values->height_px = sides[1];
    }
    return rc;
}

static int set_seed(struct prompt_values *values, const char *value, struct error *err)
{
    uint64_t seed;
    if (strcmp(value, "random") == 0 || strcmp(value, "-1") == 0) {
        values->seed_random = true;
        values->seed = 0;
        return 0;
    }
    if (!parse_whole(value, SEED_LIMIT - 1, &seed)) {
        return value_error(err, "seed", value,
                           "a whole number below 9223372036854775808 (2^63), or random");
    }
    values->seed_random = false;
    values->seed = seed;
    return 0;
}

static int set_count(struct prompt_values *values, const char *value, struct error *err)
{
    return set_whole(&values->count, "count", value, PROMPT_MAX_COUNT, err);
}

static const struct value_kind {
    const char *name;
    unsigned given;
    int (*set)(struct prompt_values *values, const char *value, struct error *err);
} value_kinds[] = {
    {"steps", PROMPT_STEPS, set_steps},
    {"guidance", PROMPT_GUIDANCE, set_guidance},
    {"true-cfg", PROMPT_TRUE_CFG, set_true_cfg},
    {"size", PROMPT_WIDTH | PROMPT_HEIGHT, set_size},
    {"width", PROMPT_WIDTH, set_width},
    {"height", PROMPT_HEIGHT, set_height},
    {"seed", PROMPT_SEED, set_seed},
    {"count", PROMPT_COUNT, set_count},
};

static bool names_equal(const char *a, const char *b)
{
    for (; *a != '\0' && *b != '\0'; a++, b++) {
        if ((*a == '_' ? '-' : *a) != *b) {
            return false;
        }
    }
    return *a == *b;
}

static const struct value_kind *kind_find(const char *name, struct error *err)
{
    char shown[TEXT_SHOWN_BYTES];
    if (strcmp(name, "cfg") == 0) {
        name = "guidance";
    }
    for (size_t i = 0; i < sizeof value_kinds / sizeof value_kinds[0]; i++) {
        if (names_equal(name, value_kinds[i].name)) {
            return &value_kinds[i];
        }
    }
    error_set(err, ENOENT, "%s: no such value", text_show(shown, name));
    return NULL;
}

int prompt_values_set(struct prompt_values *values, const char *name, const char *value,
                      unsigned *given, struct error *err)
{
    const struct value_kind *kind = kind_find(name, err);
    if (kind == NULL) {
        return -ENOENT;
    }
    int rc = kind->set(values, value, err);
    if (rc == 0 && given != NULL) {
        *given |= kind->given;
    }
    return rc;
}

static void format_float(char text[PROMPT_VALUE_BYTES], float number)
{
    for (int digits = 1; digits <= 9; digits++) {
        snprintf(text, PROMPT_VALUE_BYTES, "%.*g", digits, (double)number);
        if (strtof(text, NULL) == number) {
            break;
        }
    }
}

static void format_open(char text[PROMPT_VALUE_BYTES], int number)
{
    if (number == 0) {
        strcpy(text, "auto");
    } else {
        snprintf(text, PROMPT_VALUE_BYTES, "%d", number);
    }
}

static void format_size(char text[PROMPT_VALUE_BYTES], const struct prompt_values *values)
{
    char width[PROMPT_VALUE_BYTES], height[PROMPT_VALUE_BYTES];
    format_open(width, values->width_px);
    format_open(height, values->height_px);
    if (values->width_px == 0 && values->height_px == 0) {
        strcpy(text, "auto");
    } else {
        snprintf(text, PROMPT_VALUE_BYTES, "%.12sx%.12s", width, height);
    }
}

int prompt_values_get(const struct prompt_values *values, const char *name,
                      char text[PROMPT_VALUE_BYTES], struct error *err)
{
    const struct value_kind *kind = kind_find(name, err);
    if (kind == NULL) {
        return -ENOENT;
    }
    switch (kind->given) {
    case PROMPT_STEPS:
        format_open(text, values->steps);
        break;
    case PROMPT_GUIDANCE:
        format_float(text, values->guidance);
        break;
    case PROMPT_TRUE_CFG:
        format_float(text, values->true_cfg);
        break;
    case PROMPT_WIDTH:
        format_open(text, values->width_px);
        break;
    case PROMPT_HEIGHT:
        format_open(text, values->height_px);
        break;
    case PROMPT_SEED:
        if (values->seed_random) {
            strcpy(text, "random");
        } else {
            snprintf(text, PROMPT_VALUE_BYTES, "%" PRIu64, values->seed);
        }
        break;
    case PROMPT_COUNT:
        snprintf(text, PROMPT_VALUE_BYTES, "%d", values->count);
        break;
    default:
        format_size(text, values);
    }
    return 0;
}

void prompt_values_settle(struct prompt_values *values, int default_steps, int native_px)
{
    if (values->steps == 0) {
        values->steps = default_steps;
    }
    if (values->width_px == 0) {
        values->width_px = native_px;
    }
    if (values->height_px == 0) {
        values->height_px = native_px;
    }
    if (values->seed_random) {
        uint32_t drawn;
        if (getrandom(&drawn, sizeof drawn, 0) != (ssize_t)sizeof drawn) {
            /* Only before the kernel's first seeding is done, or under a strange seccomp filter. */
            struct timespec now;
            clock_gettime(CLOCK_REALTIME, &now);
            drawn = (uint32_t)now.tv_nsec ^ (uint32_t)now.tv_sec;
        }
        values->seed = drawn;
        values->seed_random = false;
    }
}
