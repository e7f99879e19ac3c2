/* SPDX-License-Identifier: MIT */
#include "fs/config_key.h"

#include <errno.h>
#include <grp.h>
#include <inttypes.h>
#include <math.h>
#include <pwd.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "fs/text.h"

enum kind { FLAG, STRING, BACKEND, SIZE, LIMIT, COUNT, MODE, USER, GROUP, LEVEL, PROMPT_VALUE };

struct key {
    const char *name;
    enum kind kind;
    size_t offset; /* in struct config; unused by prompt values */
    const char *help;
};

#define AT(field) offsetof(struct config, field)

static const struct key keys[] = {
    {"model", STRING, AT(model),
     "checkpoint folder in the diffusers layout; default: the mini model"},
    {"backend", BACKEND, AT(backend), "auto, cpu or cuda"},
    {"vram_budget", SIZE, AT(vram_budget_bytes), "memory for the engine: 12G, 22.3G, 512M or auto"},
    {"threads", COUNT, AT(threads), "of the CPU back end; 0: one for each core"},
    {"state_dir", STRING, AT(state_dir), "where queue and images are kept"},
    {"module_dir", STRING, AT(module_dir), "where fluxfs-cuda.so lies"},
    {"trace", STRING, AT(trace_path), "record every allocation in this file"},
    {"steps", PROMPT_VALUE, 0, "of prompts that don't say; auto: as the model likes"},
    {"guidance", PROMPT_VALUE, 0, "likewise"},
    {"true_cfg", PROMPT_VALUE, 0, "likewise"},
    {"size", PROMPT_VALUE, 0, "likewise: 768x512, or auto"},
    {"width", PROMPT_VALUE, 0, "likewise"},
    {"height", PROMPT_VALUE, 0, "likewise"},
    {"seed", PROMPT_VALUE, 0, "likewise; random by default"},
    {"count", PROMPT_VALUE, 0, "likewise"},
    {"queue_limit", COUNT, AT(queue_limit), "most jobs that may wait; 0: no limit"},
    {"images_limit", LIMIT, AT(images_limit_bytes),
     "disk use of images, 64M or more, the oldest go; 0: no limit"},
    {"uid", USER, AT(uid), "owner of the files shown: a name or number"},
    {"gid", GROUP, AT(gid), "their group"},
    {"umask", MODE, AT(umask), "taken off their modes, octal"},
    {"allow_other", FLAG, AT(allow_other), "other users may look in"},
    {"read_prompts", FLAG, AT(read_prompts), "… and read prompts that aren't theirs"},
    {"foreground", FLAG, AT(foreground), "as -f"},
    {"log_level", LEVEL, AT(log_level), "error, warning, info or debug"},
};

enum { KEYS = sizeof keys / sizeof *keys };

_Static_assert(KEYS <= 32, "config.given has a bit for each");

static const struct key *key_find(const char *name)
{
    char plain[32];
    size_t length = strlen(name);

    if (length >= sizeof plain)
        return NULL;
    for (size_t i = 0; i <= length; i++)
        plain[i] = name[i] == '-' ? '_' : name[i];
    for (size_t i = 0; i < KEYS; i++)
        if (strcmp(keys[i].name, plain) == 0)
            return &keys[i];
    return NULL;
}

bool config_key_known(const char *name)
{
    return key_find(name) != NULL;
}

bool config_key_is_flag(const char *name)
{
    const struct key *key = key_find(name);

    return key != NULL && key->kind == FLAG;
}

uint32_t config_key_bits(const char *name)
{
    const struct key *key = key_find(name);

    if (key != NULL && strcmp(key->name, "size") == 0)
        return config_key_bits("width") | config_key_bits("height");
    return key != NULL ? UINT32_C(1) << (key - keys) : 0;
}

void config_keys_print(FILE *out)
{
    for (size_t i = 0; i < KEYS; i++)
        fprintf(out, "  %-15s %s\n", keys[i].name, keys[i].help);
}

/* The refusal of a value: "threads: \"x\" is no number …". */
static int refuse(struct error *err, const struct key *key, const char *value, const char *why)
{
    char shown[TEXT_SHOWN_BYTES];

    return error_set(err, EINVAL, "%s: \"%s\" %s", key->name, text_show(shown, value), why);
}

static int parse_number(uint32_t *number, const char *value, int base)
{
    char *end;
    unsigned long parsed;

    errno = 0;
    parsed = strtoul(value, &end, base);
    if (value[0] < '0' || value[0] > '9' || *end != '\0' || errno != 0 || parsed > INT32_MAX)
        return -EINVAL;
    *number = (uint32_t)parsed;
    return 0;
}

static int set_string(char **field, const char *value, struct error *err)
{
    char *copy = strdup(value);

    if (copy == NULL)
        return error_set(err, ENOMEM, "out of memory");
    free(*field);
    *field = copy;
    return 0;
}

static int set_flag(bool *field, const struct key *key, const char *value, struct error *err)
{
    static const char *const yes[] = {"yes", "true", "on", "1"}, *const no[] = {"no", "false",
                                                                                "off", "0"};

    for (size_t i = 0; i < 4; i++)
        if (strcasecmp(value, yes[i]) == 0 || strcasecmp(value, no[i]) == 0) {
            *field = strcasecmp(value, yes[i]) == 0;
            return 0;
        }
    return refuse(err, key, value, "is neither yes nor no");
}

static int set_owner(uint32_t *field, const struct key *key, const char *value, struct error *err)
{
    const struct passwd *user = key->kind == USER ? getpwnam(value) : NULL;
    const struct group *group = key->kind == GROUP ? getgrnam(value) : NULL;

    if (user != NULL)
        *field = user->pw_uid;
    else if (group != NULL)
        *field = group->gr_gid;
    else if (parse_number(field, value, 10) != 0)
        return refuse(err, key, value,
                      key->kind == USER ? "is no user of this machine"
                                        : "is no group of this machine");
    return 0;
}

static int set_level(enum log_level *field, const struct key *key, const char *value,
                     struct error *err)
{
    static const char *const levels[] = {"error", "warning", "info", "debug"};

    for (int i = 0; i < 4; i++)
        if (strcmp(value, levels[i]) == 0) {
            *field = (enum log_level)i;
            return 0;
        }
    return refuse(err, key, value, "is none of error, warning, info, debug");
}

static int set_size(uint64_t *field, const struct key *key, const char *value, struct error *err)
{
    struct error inner;
    int code = key->kind == LIMIT ? config_parse_images_limit(field, value, &inner)
                                  : config_parse_size(field, value, &inner);

    if (code != 0)
        return error_set(err, EINVAL, "%s: %s", key->name, inner.text);
    return 0;
}

static int set_prompt_value(struct config *config, const struct key *key, const char *value,
                            struct error *err)
{
    struct error inner;

    if (prompt_values_set(&config->defaults, key->name, value, NULL, &inner) == 0)
        return 0;
    return error_set(err, EINVAL, "%s: %s", key->name, inner.text);
}

static int key_set(struct config *config, const struct key *key, const char *value,
                   struct error *err)
{
    void *field = (char *)config + key->offset;
    uint32_t mode;

    switch (key->kind) {
    case FLAG:
        return set_flag(field, key, value, err);
    case BACKEND:
        if (strcmp(value, "auto") != 0 && strcmp(value, "cpu") != 0 && strcmp(value, "cuda") != 0)
            return refuse(err, key, value, "is none of auto, cpu, cuda");
        return set_string(field, value, err);
    case STRING:
        return value[0] == '\0' ? refuse(err, key, value, "is empty")
                                : set_string(field, value, err);
    case SIZE:
    case LIMIT:
        return set_size(field, key, value, err);
    case COUNT:
        return parse_number(field, value, 10) == 0 ? 0 : refuse(err, key, value, "is no count");
    case MODE:
        if (parse_number(&mode, value, 8) != 0 || mode > 0777)
            return refuse(err, key, value, "is no octal mode such as 022");
        *(mode_t *)field = mode;
        return 0;
    case USER:
    case GROUP:
        return set_owner(field, key, value, err);
    case LEVEL:
        return set_level(field, key, value, err);
    case PROMPT_VALUE:
        return set_prompt_value(config, key, value, err);
    }
    return 0;
}

/* How many letters two words differ by at the same places or in length: for a hint. */
static size_t difference(const char *a, const char *b)
{
    size_t count = 0;

    for (; *a != '\0' && *b != '\0'; a++, b++)
        count += *a != *b && !(*a == '-' && *b == '_');
    return count + strlen(a) + strlen(b);
}

int config_key_set(struct config *config, const char *name, const char *value, struct error *err)
{
    const struct key *key = key_find(name);
    char shown[TEXT_SHOWN_BYTES];

    if (key != NULL && value == NULL && key->kind == FLAG)
        value = "yes";
    if (key != NULL && value == NULL)
        return error_set(err, EINVAL, "%s: its value is missing (%s=…)", key->name, key->name);
    if (key != NULL)
        return key_set(config, key, value, err);
    for (size_t i = 0; i < KEYS; i++)
        if (difference(name, keys[i].name) <= 2)
            return error_set(err, EINVAL, "%s: unknown; did you mean %s?", text_show(shown, name),
                             keys[i].name);
    return error_set(err, EINVAL, "%s: unknown; fluxfs --help lists what there is",
                     text_show(shown, name));
}

/* ---- sizes ---- */

static const char size_letters[] = "KMGT";

static int size_shift(const char *unit)
{
    const char *letter;

    if (*unit == '\0' || strcasecmp(unit, "B") == 0)
        return 0;
    letter = strchr(size_letters, *unit & ~0x20);
    if (letter == NULL || *letter == '\0')
        return -1;
    unit++;
    if (*unit != '\0' && strcasecmp(unit, "B") != 0 && strcasecmp(unit, "iB") != 0)
        return -1;
    return 10 * (int)(letter - size_letters + 1);
}

static bool parse_bytes(uint64_t *bytes, const char *text)
{
    char *end;
    unsigned long long parsed;

    errno = 0;
    parsed = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0 || parsed > INT64_MAX)
        return false;
    *bytes = parsed;
    return true;
}

/* Nobody means so few bytes: 12 was to be 12G. Taken literally it would delete every image. What is
 * offered is `least` or more. */
static int check_unit(double value, uint64_t least, struct error *err)
{
    char number[32], offer[80];

    if (value <= 0 || value >= CONFIG_UNITLESS_MIN)
        return 0;
    snprintf(number, sizeof number, "%.10g", value);
    if (ldexp(value, 20) >= (double)least)
        snprintf(offer, sizeof offer, "%sG, or %sM", number, number);
    else if (ldexp(value, 30) >= (double)least)
        snprintf(offer, sizeof offer, "%sG", number);
    else
        snprintf(offer, sizeof offer, "%" PRIu64 "M or more", least >> 20);
    return error_set(err, EINVAL, "%s is %s byte%s: write %s", number, number,
                     value == 1 ? "" : "s", offer);
}

/* `least` is 0 where "auto" is possible. */
static int parse_size(uint64_t *bytes, const char *text, uint64_t least, struct error *err)
{
    char shown[TEXT_SHOWN_BYTES], *end;
    uint64_t whole;
    double value;
    int shift;

    if (least == 0 && strcmp(text, "auto") == 0) {
        *bytes = 0;
        return 0;
    }
    /* A plain number is taken to the last byte, which a double might not hold. */
    if (parse_bytes(&whole, text)) {
        if (check_unit((double)whole, least, err) != 0)
            return -EINVAL;
        *bytes = whole;
        return 0;
    }
    value = strtod(text, &end);
    while (*end == ' ')
        end++;
    shift = size_shift(end);
    if (text[0] < '0' || text[0] > '9' || text[1] == 'x' || text[1] == 'X' || shift < 0)
        return error_set(err, EINVAL, "\"%s\" is no size (try %s)", text_show(shown, text),
                         least == 0 ? "12G, 22.3G, 512M or auto" : "12G, 512M, or 0 for no limit");
    if (*end == '\0' && check_unit(value, least, err) != 0)
        return -EINVAL;
    value = ldexp(value, shift);
    if (!(value < 0x1p63))
        return error_set(err, EINVAL, "\"%s\" is more than any machine has",
                         text_show(shown, text));
    *bytes = (uint64_t)value;
    return 0;
}

int config_parse_size(uint64_t *bytes, const char *text, struct error *err)
{
    return parse_size(bytes, text, 0, err);
}

int config_parse_images_limit(uint64_t *bytes, const char *text, struct error *err)
{
    char shown[TEXT_SHOWN_BYTES];
    uint64_t limit;

    if (parse_size(&limit, text, CONFIG_IMAGES_LIMIT_MIN, err) != 0)
        return -EINVAL;
    if (limit != 0 && limit < CONFIG_IMAGES_LIMIT_MIN)
        return error_set(
            err, EINVAL, "%s is less than %d MiB: write %dM or more, or 0 for no limit",
            text_show(shown, text), CONFIG_IMAGES_LIMIT_MIN >> 20, CONFIG_IMAGES_LIMIT_MIN >> 20);
    *bytes = limit;
    return 0;
}

void config_format_size(char text[32], uint64_t bytes)
{
    bool unitless = bytes >= CONFIG_UNITLESS_MIN;
    int unit = 0;

    if (bytes == 0) {
        snprintf(text, 32, "auto");
        return;
    }
    while (unit < 4 && bytes % 1024 == 0) {
        bytes /= 1024;
        unit++;
    }
    if (unit == 0)
        snprintf(text, 32, "%" PRIu64 "%s", bytes, unitless ? "" : "B");
    else
        snprintf(text, 32, "%" PRIu64 "%c", bytes, size_letters[unit - 1]);
}
