/* SPDX-License-Identifier: MIT */
#include "engine/error.h"

#include <errno.h>
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
