/* SPDX-License-Identifier: MIT */
/* Any bytes as a prompt: refused with a reason, or accepted and then the same after writing it out
 * as PNG text and reading that. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "fs/prompt.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int condition)
{
    if (!condition) {
        abort();
    }
}

static void check_round_trip(struct prompt *prompt)
{
    struct prompt_values other = {.steps = 3, .count = 1, .guidance = 1, .true_cfg = 9};
    struct prompt again = {0};
    struct error err = {0};
    prompt_values_settle(&prompt->values, 20, 256);
    char *text = prompt_format_parameters(prompt, "a \"model\", odd");
    require(text != NULL);
    if (strlen(text) <= PROMPT_MAX_BYTES) {
        require(prompt_parse(&again, text, strlen(text), &other, &err) == 0);
        require(strcmp(again.text, prompt->text) == 0);
        require(strcmp(again.negative, prompt->negative) == 0);
        require(again.values.steps == prompt->values.steps);
        require(again.values.guidance == prompt->values.guidance);
        require(again.values.true_cfg == prompt->values.true_cfg);
        require(again.values.width_px == prompt->values.width_px);
        require(again.values.height_px == prompt->values.height_px);
        require(again.values.seed == prompt->values.seed);
        prompt_finish(&again);
    }
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct prompt_values defaults = prompt_values_default();
    struct prompt prompt = {0};
    struct error err = {0};
    prompt_complete((const char *)data, size);
    int rc = prompt_parse(&prompt, (const char *)data, size, &defaults, &err);
    if (rc != 0) {
        require(rc == err.code && err.text[0] != '\0' && strchr(err.text, '\n') == NULL);
        require(prompt.text == NULL);
        return 0;
    }
    require(prompt.text[0] != '\0' && strlen(prompt.text) <= size);
    check_round_trip(&prompt);
    char *lines = prompt_format_values(&prompt);
    require(lines != NULL);
    free(lines);
    prompt_finish(&prompt);
    return 0;
}
