/* SPDX-License-Identifier: MIT */
#include "fs/control.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "fs/board.h"
#include "fs/config_key.h"

enum { MAX_VALUE_BYTES = 4096, KEY_BYTES = 64 };

static const char *const names[CONTROL_KEYS] = {
    [CONTROL_STEPS] = "steps",
    [CONTROL_GUIDANCE] = "guidance",
    [CONTROL_TRUE_CFG] = "true_cfg",
    [CONTROL_WIDTH] = "width",
    [CONTROL_HEIGHT] = "height",
    [CONTROL_SEED] = "seed",
    [CONTROL_COUNT] = "count",
    [CONTROL_VRAM_BUDGET] = "vram_budget",
    [CONTROL_IMAGES_LIMIT] = "images_limit",
    [CONTROL_PAUSE] = "pause",
    [CONTROL_MODEL] = "model",
};

const char *control_key_name(enum control_key key)
{
    return names[key];
}

static int pause_parse(bool *paused, const char *value, struct error *err)
{
    static const char *const words[] = {"0", "1", "no", "yes", "off", "on"};

    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        if (strcmp(value, words[i]) == 0) {
            *paused = i % 2 == 1;
            return 0;
        }
    }
    return error_set(err, EINVAL, "pause: write 1 to pause, 0 to go on");
}

int control_check_model(const char *folder, struct error *err)
{
    struct stat st;
    struct error why;

    if (strlen(folder) > MAX_VALUE_BYTES || stat(folder, &st) != 0) {
        return error_set(err, EINVAL, "model: %.150s: no such folder", folder);
    }
    if (engine_check_model(folder, &why) != 0) {
        return error_set(err, EINVAL, "model: %s", why.text);
    }
    return 0;
}

static int model_parse(char *model, size_t size, const char *value, struct error *err)
{
    if (value[0] != '/') {
        return error_set(err, EINVAL, "model: give the absolute path of a checkpoint folder");
    }
    if (strlen(value) >= size) {
        return error_set(err, EINVAL, "model: %.150s: no such folder", value);
    }
    if (control_check_model(value, err) != 0) {
        return -EINVAL;
    }
    memmove(model, value, strlen(value) + 1);
    return 0;
}

static int value_parse(struct control_values *values, enum control_key key, const char *value,
                       struct error *err)
{
    switch (key) {
    case CONTROL_VRAM_BUDGET:
        return config_parse_size(&values->vram_budget_bytes, value, err);
    case CONTROL_IMAGES_LIMIT:
        return config_parse_images_limit(&values->images_limit_bytes, value, err);
    case CONTROL_PAUSE:
        return pause_parse(&values->paused, value, err);
    case CONTROL_MODEL:
        return model_parse(values->model, sizeof values->model, value, err);
    default:
        return prompt_values_set(&values->prompt, names[key], value, NULL, err);
    }
}

/* As value_parse takes it back. */
static void value_format(char text[MAX_VALUE_BYTES], enum control_key key,
                         const struct control_values *values)
{
    switch (key) {
    case CONTROL_VRAM_BUDGET:
        config_format_size(text, values->vram_budget_bytes);
        break;
    case CONTROL_IMAGES_LIMIT:
        config_format_size(text, values->images_limit_bytes);
        if (values->images_limit_bytes == 0) {
            strcpy(text, "0");
        }
        break;
    case CONTROL_PAUSE:
        strcpy(text, values->paused ? "1" : "0");
        break;
    case CONTROL_MODEL:
        strcpy(text, values->model);
        break;
    default:
        prompt_values_get(&values->prompt, names[key], text, NULL);
    }
}

/* Copies one key's value from one set to the other. */
static void value_copy(struct control_values *to, enum control_key key,
                       const struct control_values *from)
{
    char text[PROMPT_VALUE_BYTES];

    switch (key) {
    case CONTROL_VRAM_BUDGET:
        to->vram_budget_bytes = from->vram_budget_bytes;
        break;
    case CONTROL_IMAGES_LIMIT:
        to->images_limit_bytes = from->images_limit_bytes;
        break;
    case CONTROL_PAUSE:
        to->paused = from->paused;
        break;
    case CONTROL_MODEL:
        memcpy(to->model, from->model, sizeof to->model);
        break;
    default:
        if (prompt_values_get(&from->prompt, names[key], text, NULL) == 0) {
            prompt_values_set(&to->prompt, names[key], text, NULL, NULL);
        }
    }
}

/* No limit was shown, kept and taken as these words by versions before. */
static const char *kept_value(enum control_key key, const char *value)
{
    bool old = strcmp(value, "none") == 0 || strcmp(value, "auto") == 0;

    return key == CONTROL_IMAGES_LIMIT && old ? "0" : value;
}

int control_init(struct control *control, const struct config *config, struct queue *queue,
                 struct events *events, struct error *err)
{
    *control = (struct control){.lock = events->lock, .queue = queue};
    control->configured = (struct control_values){
        .prompt = config->defaults,
        .vram_budget_bytes = config->vram_budget_bytes,
        .images_limit_bytes = config->images_limit_bytes,
    };
    if (strlen(config->model) >= sizeof control->configured.model) {
        return error_set(err, ENAMETOOLONG, "model: the path is longer than %zu bytes",
                         sizeof control->configured.model - 1);
    }
    memcpy(control->configured.model, config->model, strlen(config->model) + 1);
    control->values = control->configured;
    for (enum control_key key = 0; key < CONTROL_KEYS; key++) {
        char setting[KEY_BYTES];
        char *value;
        control->changed_ns[key] = clock_ns();
        snprintf(setting, sizeof setting, "control.%s", names[key]);
        if (queue_setting_get(queue, setting, &value, NULL) == 0) {
            struct control_values kept = control->values;
            struct error why;
            if (value_parse(&kept, key, kept_value(key, value), &why) == 0) {
                control->values = kept;
            } else {
                events_add_error(events, "control/%s: the value kept is no good any more: %s",
                                 names[key], why.text);
            }
            free(value);
        }
    }
    return 0;
}

/* The value without blanks around it, as a string. */
static int value_trim(char value[MAX_VALUE_BYTES], const char *bytes, size_t length,
                      enum control_key key, struct error *err)
{
    while (length > 0 && strchr(" \t\r\n", bytes[length - 1]) != NULL) {
        length--;
    }
    while (length > 0 && strchr(" \t", bytes[0]) != NULL) {
        bytes++;
        length--;
    }
    if (length == 0) {
        return error_set(err, EINVAL, "%s: no value", names[key]);
    }
    if (length >= MAX_VALUE_BYTES || memchr(bytes, '\0', length) != NULL ||
        memchr(bytes, '\n', length) != NULL) {
        return error_set(err, EINVAL, "%s: write one value on one line", names[key]);
    }
    memcpy(value, bytes, length);
    value[length] = '\0';
    return 0;
}

int control_set(struct control *control, enum control_key key, const char *bytes, size_t length,
                struct error *err)
{
    char value[MAX_VALUE_BYTES], setting[KEY_BYTES];
    struct control_values values;
    bool reset;
    int code = value_trim(value, bytes, length, key, err);

    if (code != 0) {
        return code;
    }
    control_values(control, &values);
    reset = strcmp(value, "default") == 0;
    if (reset) {
        value_copy(&values, key, &control->configured);
    } else {
        code = value_parse(&values, key, value, err);
    }
    if (code == 0 && control->actor.apply != NULL) {
        code = control->actor.apply(control->actor.owner, key, &values, err);
    }
    if (code == 0) {
        snprintf(setting, sizeof setting, "control.%s", names[key]);
        code = queue_setting_set(control->queue, setting, reset ? NULL : value, err);
    }
    if (code == 0) {
        pthread_mutex_lock(control->lock);
        value_copy(&control->values, key, &values);
        control->changed_ns[key] = clock_ns();
        pthread_mutex_unlock(control->lock);
        if (control->actor.changed != NULL) {
            control->actor.changed(control->actor.owner, key);
        }
    }
    return code;
}

void control_values(struct control *control, struct control_values *values)
{
    pthread_mutex_lock(control->lock);
    *values = control->values;
    pthread_mutex_unlock(control->lock);
}

int64_t control_changed_ns(struct control *control, enum control_key key)
{
    int64_t changed_ns;

    pthread_mutex_lock(control->lock);
    changed_ns = control->changed_ns[key];
    pthread_mutex_unlock(control->lock);
    return changed_ns;
}

void control_show(struct control *control, enum control_key key, struct text *text)
{
    struct control_values values;
    char shown[MAX_VALUE_BYTES];

    control_values(control, &values);
    value_format(shown, key, &values);
    text_print(text, "%s\n", shown);
}

bool control_warning(struct control *control, enum control_key key, const struct config *config,
                     char line[CONTROL_WARNING_BYTES])
{
    struct control_values values;
    char kept[MAX_VALUE_BYTES], given[MAX_VALUE_BYTES];

    control_values(control, &values);
    if (key == CONTROL_PAUSE && values.paused) {
        snprintf(line, CONTROL_WARNING_BYTES,
                 "control/pause holds 1 from before: prompts wait; write 0 to it to go on");
        return true;
    }
    if ((config->given & config_key_bits(names[key])) == 0) {
        return false;
    }
    value_format(kept, key, &values);
    value_format(given, key, &control->configured);
    if (strcmp(kept, given) == 0) {
        return false;
    }
    snprintf(line, CONTROL_WARNING_BYTES,
             "control/%s holds %.300s from before, which goes over the %.300s given; write default "
             "to it to undo that",
             names[key], kept, given);
    return true;
}
