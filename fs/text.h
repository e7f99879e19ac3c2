/* SPDX-License-Identifier: MIT */
/* Text from outside: is it sound, and how is it shown in an error. */
#ifndef FLUXFS_FS_TEXT_H
#define FLUXFS_FS_TEXT_H

#include <stdbool.h>
#include <stddef.h>

#include "engine/error.h"

enum { TEXT_SHOWN_BYTES = 64 };

/* Copies at most about 50 bytes of UTF-8, whole characters, "…" where cut, "?" for what can't be
 * shown. Returns `shown`. */
const char *text_show(char shown[TEXT_SHOWN_BYTES], const char *text);

/* EINVAL, naming the fault and the byte, unless this is UTF-8 without control characters other than
 * newline and tab. */
int text_validate(const char *bytes, size_t length, struct error *err);

/* A string that grows. Once memory runs short it stays as it is and `failed` is set. */
struct text {
    char *bytes; /* NUL after the last; NULL while empty */
    size_t length, capacity;
    bool failed;
};

void text_add(struct text *text, const char *bytes, size_t length);
void text_print(struct text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The string, for the caller to free ("" if nothing was added); NULL if memory ran short. The text
 * is empty again. */
char *text_take(struct text *text);

#endif
