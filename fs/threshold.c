/* SPDX-License-Identifier: MIT */
#include "fs/threshold.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fs/config.h"
#include "fs/status.h"
#include "fs/text.h"

int threshold_parse(struct threshold *threshold, const char *bytes, size_t size, struct error *err)
{
    struct threshold parsed = {0};
    char value[32], shown[TEXT_SHOWN_BYTES], *end;

    while (size > 0 && strchr(" \t\r\n", bytes[size - 1]) != NULL) {
        size--;
    }
    if (size == 0 || size >= sizeof value) {
        return error_set(err, EINVAL,
                         "write a threshold: per cent of the budget (85%%) or a size (12G)");
    }
    memcpy(value, bytes, size);
    value[size] = '\0';
    parsed.percent = strtod(value, &end);
    if (end == value || strcmp(end, "%") != 0) {
        parsed.percent = 0;
        if (config_parse_size(&parsed.bytes, value, NULL) != 0) {
            return error_set(
                err, EINVAL,
                "\"%s\" is no threshold: write per cent of the budget (85%%) or a size "
                "(12G, 512M)",
                text_show(shown, value));
        }
    }
    if (parsed.bytes == 0 && !(parsed.percent > 0 && parsed.percent <= 100)) {
        return error_set(err, EINVAL, "%s: a threshold is above 0 and within the budget", value);
    }
    *threshold = parsed;
    return 0;
}

bool threshold_set(const struct threshold *threshold)
{
    return threshold->percent > 0 || threshold->bytes > 0;
}

bool threshold_passed(const struct threshold *threshold, const struct engine_memory *memory)
{
    return threshold->percent > 0 ? status_vram_percent(memory) >= threshold->percent
                                  : memory->reserved >= threshold->bytes;
}
