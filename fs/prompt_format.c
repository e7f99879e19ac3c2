/* SPDX-License-Identifier: MIT */
#include "fs/prompt.h"

#include <stdlib.h>
#include <string.h>

#include "fs/prompt_a1111.h"
#include "fs/text.h"

static void add_value(struct text *text, const char *before, const struct prompt_values *values,
                      const char *name)
{
    char value[PROMPT_VALUE_BYTES];
    if (prompt_values_get(values, name, value, NULL) == 0) {
        text_print(text, "%s%s", before, value);
    }
}

/* Model names come from folders, and can be anything. */
static void add_model(struct text *text, const char *model)
{
    if (text_validate(model, strlen(model), NULL) != 0 || strpbrk(model, "\n\t") != NULL) {
        return;
    }
    bool plain = strpbrk(model, ",:\"\\") == NULL;
    text_print(text, ", Model: %s", plain ? "" : "\"");
    for (const char *at = model; *at != '\0'; at++) {
        if (*at == '"' || *at == '\\') {
            text_add(text, "\\", 1);
        }
        text_add(text, at, 1);
    }
    text_print(text, "%s", plain ? "" : "\"");
}

char *prompt_format_parameters(const struct prompt *prompt, const char *model)
{
    const struct prompt_values *values = &prompt->values;
    struct text text = {0};
    text_print(&text, "%s\n", prompt->text);
    if (prompt->negative[0] != '\0') {
        text_print(&text, A1111_NEGATIVE " %s\n", prompt->negative);
    }
    add_value(&text, "Steps: ", values, "steps");
    text_print(&text, ", Sampler: Euler");
    if (values->true_cfg > 1 || prompt->negative[0] != '\0') {
        add_value(&text, ", CFG scale: ", values, "true-cfg");
        add_value(&text, ", Distilled CFG Scale: ", values, "guidance");
    } else {
        add_value(&text, ", CFG scale: ", values, "guidance");
    }
    add_value(&text, ", Seed: ", values, "seed");
    add_value(&text, ", Size: ", values, "size");
    if (model != NULL && model[0] != '\0') {
        add_model(&text, model);
    }
    return text_take(&text);
}

static void add_escaped(struct text *text, const char *name, const char *value)
{
    text_print(text, "%s=", name);
    for (const char *at = value; *at != '\0'; at++) {
        if (*at == '\n') {
            text_add(text, "\\n", 2);
        } else if (*at == '\\') {
            text_add(text, "\\\\", 2);
        } else {
            text_add(text, at, 1);
        }
    }
    text_add(text, "\n", 1);
}

char *prompt_format_values(const struct prompt *prompt)
{
    const struct prompt_values *values = &prompt->values;
    const struct {
        const char *before, *name;
        bool open;
    } lines[] = {
        {"steps=", "steps", values->steps == 0},
        {"guidance=", "guidance", false},
        {"true_cfg=", "true-cfg", false},
        {"width=", "width", values->width_px == 0},
        {"height=", "height", values->height_px == 0},
        {"seed=", "seed", values->seed_random},
    };
    struct text text = {0};
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        if (!lines[i].open) {
            add_value(&text, lines[i].before, values, lines[i].name);
            text_add(&text, "\n", 1);
        }
    }
    if (prompt->negative[0] != '\0') {
        add_escaped(&text, "negative", prompt->negative);
    }
    if (prompt->name[0] != '\0') {
        add_escaped(&text, "name", prompt->name);
    }
    return text_take(&text);
}
