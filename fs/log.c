/* SPDX-License-Identifier: MIT */
#include "fs/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <syslog.h>

static enum log_level log_level = LOG_LEVEL_WARNING;
static bool log_to_syslog;

static const int priorities[] = {
    [LOG_LEVEL_ERROR] = LOG_ERR,
    [LOG_LEVEL_WARNING] = LOG_WARNING,
    [LOG_LEVEL_INFO] = LOG_INFO,
    [LOG_LEVEL_DEBUG] = LOG_DEBUG,
};

void log_open(enum log_level level, bool to_syslog)
{
    log_level = level;
    log_to_syslog = to_syslog;
    if (to_syslog) {
        openlog("fluxfs", LOG_PID, LOG_DAEMON);
    }
}

void log_line(enum log_level level, const char *format, ...)
{
    char line[1024];
    va_list args;

    if (level > log_level) {
        return;
    }
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    if (log_to_syslog) {
        syslog(priorities[level], "%s", line);
    } else if (getenv("JOURNAL_STREAM") != NULL) {
        fprintf(stderr, "<%d>%s\n", priorities[level], line);
    } else {
        fprintf(stderr, "fluxfs: %s\n", line);
    }
}
