/* SPDX-License-Identifier: MIT */
#include "engine/error.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

void error_write(struct error *err, int errnum, const char *format, ...)
{
    int kept = errno;
    va_list args;

    if (err == NULL)
        return;
    va_start(args, format);
    vsnprintf(err->text, sizeof err->text, format, args);
    va_end(args);
    /* Names and values come from files: none of them may break the line. */
    for (char *c = err->text; *c != '\0'; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = '?';
    err->code = -errnum;
    errno = kept;
}

enum { UNITS = 4 };

static const struct {
    const char *name;
    int shift, decimals;
} units[UNITS] = {{"KiB", 10, 1}, {"MiB", 20, 1}, {"GiB", 30, 2}, {"TiB", 40, 2}};

static int unit_of(uint64_t bytes)
{
    int unit = 0;

    while (unit + 1 < UNITS && bytes >> units[unit + 1].shift != 0)
        unit++;
    return unit;
}

struct size_text size_shown(uint64_t bytes)
{
    struct size_text shown;
    int unit = unit_of(bytes);

    if (bytes < 1024)
        snprintf(shown.text, sizeof shown.text, "%d B", (int)bytes);
    else
        snprintf(shown.text, sizeof shown.text, "%.*f %s", units[unit].decimals,
                 (double)bytes / (double)(UINT64_C(1) << units[unit].shift), units[unit].name);
    return shown;
}

struct size_text size_needed(uint64_t bytes)
{
    struct size_text shown;
    int unit = unit_of(bytes), shift = units[unit].shift;
    uint64_t mask = (UINT64_C(1) << shift) - 1;
    uint64_t hundredths = (bytes >> shift) * 100 + (((bytes & mask) * 100 + mask) >> shift);

    if (bytes < 1024)
        return size_shown(bytes);
    snprintf(shown.text, sizeof shown.text, "%" PRIu64 ".%02d %s", hundredths / 100,
             (int)(hundredths % 100), units[unit].name);
    return shown;
}
