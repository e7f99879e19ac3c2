/* SPDX-License-Identifier: MIT */
/* The contents of generated files: what status files and handles do with a struct text. */
#ifndef FLUXFS_FS_CONTENT_H
#define FLUXFS_FS_CONTENT_H

#include <stdint.h>

#include "fs/text.h"

void content_finish(struct text *text); /* leaves an empty one */
void content_clear(struct text *text);  /* empty, but keeps the memory */
void content_drop_front(struct text *text, size_t length);
uint64_t content_hash(const struct text *text); /* FNV-1a */

void content_add_string(struct text *text, const char *string);
void content_add_time(struct text *text, int64_t ns); /* "2026-11-24T11:19:02Z" */

#endif
