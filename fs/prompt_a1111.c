/* SPDX-License-Identifier: MIT */
#include "fs/prompt_a1111.h"

#include <errno.h>
#include <string.h>
#include <strings.h>

#include "fs/text.h"

enum { KEY_BYTES = 32, VALUE_BYTES = 64 };

/* `name` is NULL for keys that only mark such a line. */
static const struct known_key {
    const char *key, *name;
} known_keys[] = {
    {"Steps", "steps"},
    {"CFG scale", "guidance"},
    {"Distilled CFG Scale", "guidance"},
    {"True CFG scale", "true-cfg"},
    {"Guidance", "guidance"},
    {"Seed", "seed"},
    {"Size", "size"},
    {"Sampler", NULL},
    {"Schedule type", NULL},
    {"Model", NULL},
    {"Model hash", NULL},
};

struct pair {
    char key[KEY_BYTES];     /* cut if longer: none of ours is */
    char value[VALUE_BYTES]; /* unquoted, cut */
};

static bool is_key_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == ' ' ||
           c == '_' || c == '-' || c == '/';
}

static void copy_cut(char *to, size_t room, const char *at, const char *end)
{
    while (at < end && end[-1] == ' ') {
        end--;
    }
    size_t length = (size_t)(end - at) < room - 1 ? (size_t)(end - at) : room - 1;
    memcpy(to, at, length);
    to[length] = '\0';
}

/* The next "Key: value" of "Key: value, Key: "quoted, value"". False at the end, or where the line
 * isn't of that form. */
static bool pair_next(const char **at, const char *end, struct pair *pair)
{
    const char *key = *at;
    while (key < end && *key == ' ') {
        key++;
    }
    const char *colon = key;
    while (colon < end && is_key_char(*colon)) {
        colon++;
    }
    if (colon == key || colon == end || *colon != ':') {
        return false;
    }
    const char *value = colon + 1;
    while (value < end && *value == ' ') {
        value++;
    }
    bool quoted = value < end && *value == '"';
    const char *stop = quoted ? ++value : value;
    while (stop < end && *stop != (quoted ? '"' : ',')) {
        stop += quoted && *stop == '\\' && stop + 1 < end ? 2 : 1;
    }
    copy_cut(pair->key, sizeof pair->key, key, colon);
    copy_cut(pair->value, sizeof pair->value, value, stop);
    const char *comma = memchr(stop, ',', (size_t)(end - stop));
    *at = comma == NULL ? end : comma + 1;
    return true;
}

static const struct known_key *key_find(const char *key)
{
    for (size_t i = 0; i < sizeof known_keys / sizeof known_keys[0]; i++) {
        if (strcasecmp(key, known_keys[i].key) == 0) {
            return &known_keys[i];
        }
    }
    return NULL;
}

const char *a1111_find_negative(const char *at, const char *end)
{
    while (at < end) {
        if (end - at >= A1111_NEGATIVE_BYTES &&
            memcmp(at, A1111_NEGATIVE, A1111_NEGATIVE_BYTES) == 0) {
            return at;
        }
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        if (newline == NULL) {
            break;
        }
        at = newline + 1;
    }
    return NULL;
}

const char *a1111_find_parameters(const char *at, const char *end)
{
    const char *last = memrchr(at, '\n', (size_t)(end - at));
    const char *line = last == NULL ? at : last + 1;
    const char *next = line;
    struct pair pair;
    if (!pair_next(&next, end, &pair) || key_find(pair.key) == NULL) {
        return NULL;
    }
    if (strcasecmp(pair.key, "Steps") == 0 && pair.value[0] != '\0' &&
        pair.value[strspn(pair.value, "0123456789")] == '\0') {
        return line;
    }
    size_t pairs = 1;
    while (pairs < 3 && pair_next(&next, end, &pair)) {
        pairs++;
    }
    return pairs == 3 ? line : NULL;
}

static int read_pair(struct prompt_values *values, unsigned *given, const char *name,
                     const struct pair *pair, struct error *err)
{
    struct error inner = {0};
    if (prompt_values_set(values, name, pair->value, given, &inner) != 0) {
        return error_set(err, EINVAL, "\"%s:\" in the last line: %s", pair->key, inner.text);
    }
    return 0;
}

int a1111_read_parameters(struct prompt_values *values, unsigned *given, const char *at,
                          const char *end, struct error *err)
{
    const char *next = at;
    struct pair pair;
    bool distilled = false;
    bool scaled = false;
    while (pair_next(&next, end, &pair)) {
        distilled = distilled || strcasecmp(pair.key, "Distilled CFG Scale") == 0;
        scaled = scaled || strcasecmp(pair.key, "CFG scale") == 0;
    }
    if (scaled) {
        values->true_cfg = 1;
    }
    next = at;
    while (pair_next(&next, end, &pair)) {
        const struct known_key *known = key_find(pair.key);
        if (known == NULL || known->name == NULL) {
            continue;
        }
        bool true_cfg = distilled && strcasecmp(pair.key, "CFG scale") == 0;
        int rc = read_pair(values, given, true_cfg ? "true-cfg" : known->name, &pair, err);
        if (rc != 0) {
            return rc;
        }
    }
    return 0;
}
