/* SPDX-License-Identifier: MIT */
/*
 * status/events: one line for each change, kept in memory, and status/error: the last thing that
 * was refused or went wrong. Where a mount is discreet, words of prompts are told to their writer
 * and to whoever mounts only.
 */
#ifndef FLUXFS_FS_EVENTS_H
#define FLUXFS_FS_EVENTS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "fs/text.h"

enum {
    EVENTS_LINE_BYTES = 512,
    EVENTS_ERRORS = 16,
    EVENTS_MAX_BYTES = 1 << 20, /* then the older half is forgotten */
};

struct events_error {
    char text[EVENTS_LINE_BYTES];
    int64_t ns; /* 0: none */
    bool personal;
    uid_t uid; /* of whom, if it is */
};

struct events {
    pthread_mutex_t *lock; /* the tree lock */
    bool discreet;
    void (*wake)(void *owner);
    void *owner;
    struct text lines; /* guarded by lock, as all below */
    uint64_t start;    /* bytes forgotten: the stream's offset of the first byte of lines */
    int64_t changed_ns;
    struct events_error errors[EVENTS_ERRORS]; /* the newest ones */
    unsigned error_count;                      /* so many came */
    char trouble[EVENTS_LINE_BYTES];           /* the newest of what is tried again and again */
    int troubles;
    int64_t state_ns; /* when error or trouble last changed */
};

void events_init(struct events *events, pthread_mutex_t *lock);
void events_finish(struct events *events);

/* Appends the time, the line and a newline, and wakes those who wait. */
void events_add(struct events *events, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* The same, and keeps the line for status/error. */
void events_add_error(struct events *events, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* The same for a matter of one user: if discreet, the stream has the public line in its place. */
void events_add_error_of(struct events *events, uid_t uid, const char *public, const char *format,
                         ...) __attribute__((format(printf, 4, 5)));

/* Something is tried until it works: an error line, and from now on bad health, until
 * events_end_trouble. */
void events_begin_trouble(struct events *events, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void events_end_trouble(struct events *events, bool works);

/* False, and "", if all is well. */
bool events_trouble(struct events *events, char text[EVENTS_LINE_BYTES]);

/* The range of stream offsets there is, and when it last grew. */
void events_range(struct events *events, uint64_t *start, uint64_t *end, int64_t *changed_ns);

/* Appends up to `length` bytes from a stream offset, or from the start if that is later; returns
 * the offset of what was appended. */
uint64_t events_read(struct events *events, uint64_t offset, size_t length, struct text *text);

/* When what status/error and events_trouble tell last changed. */
int64_t events_state_ns(struct events *events);

/* Appends status/error's line for a user, or for whoever may know `all`; returns when it was
 * written, or 0 if there is none. */
int64_t events_show_error(struct events *events, uid_t uid, bool all, struct text *text);

#endif
