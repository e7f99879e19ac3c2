/* SPDX-License-Identifier: MIT */
/* A1111's parameter text, read: for prompt.c. See prompt.h for the form. */
#ifndef FLUXFS_FS_PROMPT_A1111_H
#define FLUXFS_FS_PROMPT_A1111_H

#include "fs/prompt.h"

#define A1111_NEGATIVE "Negative prompt:"
enum { A1111_NEGATIVE_BYTES = sizeof A1111_NEGATIVE - 1 };

/* The first line that begins with A1111_NEGATIVE, or NULL. */
const char *a1111_find_negative(const char *at, const char *end);

/* The last line, if it is one of parameters, else NULL. The text doesn't end in a blank. */
const char *a1111_find_parameters(const char *at, const char *end);

/* Sets what such a line says. Failure: EINVAL, naming the key. */
int a1111_read_parameters(struct prompt_values *values, unsigned *given, const char *at,
                          const char *end, struct error *err);

#endif
