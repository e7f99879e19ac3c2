/* SPDX-License-Identifier: MIT */
#include "fs/events.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "fs/board.h"
#include "fs/content.h"
#include "fs/log.h"

void events_init(struct events *events, pthread_mutex_t *lock)
{
    *events = (struct events){.lock = lock, .changed_ns = clock_ns()};
}

void events_finish(struct events *events)
{
    content_finish(&events->lines);
}

/* Forgets whole lines from the front, about half of them. With the tree lock. */
static void events_forget(struct events *events)
{
    const char *half = events->lines.bytes + events->lines.length / 2;
    const char *end = strchr(half, '\n');
    size_t length = end != NULL ? (size_t)(end + 1 - events->lines.bytes) : events->lines.length;

    content_drop_front(&events->lines, length);
    events->start += length;
}

/* Errors go to status/error as well. `public` is what the stream says, if not the line. */
static void line_add(struct events *events, char *line, const struct events_error *error,
                     const char *public)
{
    struct text *lines = &events->lines;
    int64_t now = clock_ns();

    for (char *at = line; *at != '\0'; at++) {
        *at = *at == '\n' ? ' ' : *at;
    }
    pthread_mutex_lock(events->lock);
    lines->failed = false;
    content_add_time(lines, now);
    text_print(lines, " %s\n", public != NULL ? public : line);
    if (lines->length > EVENTS_MAX_BYTES) {
        events_forget(events);
    }
    events->changed_ns = now;
    if (error != NULL) {
        struct events_error *kept = &events->errors[events->error_count++ % EVENTS_ERRORS];
        *kept = *error;
        kept->ns = events->state_ns = now;
        snprintf(kept->text, sizeof kept->text, "%s", line);
    }
    pthread_mutex_unlock(events->lock);
    log_line(error != NULL ? LOG_LEVEL_WARNING : LOG_LEVEL_INFO, "%s", line);
    if (events->wake != NULL) {
        events->wake(events->owner);
    }
}

void events_add(struct events *events, const char *format, ...)
{
    char line[EVENTS_LINE_BYTES];
    va_list args;

    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    line_add(events, line, NULL, NULL);
}

void events_add_error(struct events *events, const char *format, ...)
{
    char line[EVENTS_LINE_BYTES];
    va_list args;

    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    line_add(events, line, &(struct events_error){0}, NULL);
}

void events_add_error_of(struct events *events, uid_t uid, const char *public, const char *format,
                         ...)
{
    struct events_error error = {.personal = events->discreet, .uid = uid};
    char line[EVENTS_LINE_BYTES];
    va_list args;

    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    line_add(events, line, &error, events->discreet ? public : NULL);
}

void events_begin_trouble(struct events *events, const char *format, ...)
{
    char line[EVENTS_LINE_BYTES];
    va_list args;

    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    pthread_mutex_lock(events->lock);
    memcpy(events->trouble, line, sizeof line);
    events->troubles++;
    events->state_ns = clock_ns();
    pthread_mutex_unlock(events->lock);
    events_add_error(events, "%s; trying again until it works", line);
}

void events_end_trouble(struct events *events, bool works)
{
    pthread_mutex_lock(events->lock);
    events->troubles--;
    events->state_ns = clock_ns();
    pthread_mutex_unlock(events->lock);
    if (works) {
        events_add(events, "it works again");
    }
}

bool events_trouble(struct events *events, char text[EVENTS_LINE_BYTES])
{
    bool any;

    pthread_mutex_lock(events->lock);
    any = events->troubles > 0;
    snprintf(text, sizeof events->trouble, "%s", any ? events->trouble : "");
    pthread_mutex_unlock(events->lock);
    return any;
}

void events_range(struct events *events, uint64_t *start, uint64_t *end, int64_t *changed_ns)
{
    pthread_mutex_lock(events->lock);
    *start = events->start;
    *end = events->start + events->lines.length;
    *changed_ns = events->changed_ns;
    pthread_mutex_unlock(events->lock);
}

uint64_t events_read(struct events *events, uint64_t offset, size_t length, struct text *text)
{
    size_t skip;

    pthread_mutex_lock(events->lock);
    offset = offset < events->start ? events->start : offset;
    skip = offset - events->start;
    if (skip < events->lines.length) {
        size_t left = events->lines.length - skip;
        text_add(text, events->lines.bytes + skip, left < length ? left : length);
    }
    pthread_mutex_unlock(events->lock);
    return offset;
}

int64_t events_state_ns(struct events *events)
{
    int64_t state_ns;

    pthread_mutex_lock(events->lock);
    state_ns = events->state_ns;
    pthread_mutex_unlock(events->lock);
    return state_ns;
}

int64_t events_show_error(struct events *events, uid_t uid, bool all, struct text *text)
{
    int64_t ns = 0;

    pthread_mutex_lock(events->lock);
    for (unsigned i = 1; i <= EVENTS_ERRORS && i <= events->error_count && ns == 0; i++) {
        const struct events_error *error =
            &events->errors[(events->error_count - i) % EVENTS_ERRORS];
        if (all || !error->personal || error->uid == uid) {
            text_print(text, "%s\n", error->text);
            ns = error->ns;
        }
    }
    pthread_mutex_unlock(events->lock);
    return ns;
}
