/* SPDX-License-Identifier: MIT */
/* Any bytes as the text before, and any as the line of parameters. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "fs/prompt.h"
#include "fs/prompt_a1111.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *at = (const char *)data;
    struct prompt_values values = prompt_values_default();
    struct error err = {0};
    unsigned given = 0;
    const char *line = a1111_find_parameters(at, at + size);
    const char *negative = a1111_find_negative(at, at + size);
    if ((line != NULL && (line < at || line >= at + size)) ||
        (negative != NULL && (negative < at || negative >= at + size))) {
        abort();
    }
    /* Also lines that would not be taken for parameters. */
    int rc = a1111_read_parameters(&values, &given, line == NULL ? at : line, at + size, &err);
    if (rc != 0 && err.text[0] == '\0') {
        abort();
    }
    if (values.steps < 0 || values.steps > PROMPT_MAX_STEPS || values.width_px % 16 != 0 ||
        !(values.guidance >= 0) || !(values.true_cfg >= 1) || values.seed >> 63 != 0) {
        abort();
    }
    return 0;
}
