/* SPDX-License-Identifier: MIT */
/* What the two tokenizers ask about a text. */
#ifndef FLUXFS_ENGINE_MODEL_TEXT_H
#define FLUXFS_ENGINE_MODEL_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/error.h"

/* EINVAL and the place if the text isn't UTF-8. */
int text_check(const char *text, size_t text_bytes, struct error *err);

/* The character at the beginning, and its length in bytes (text_bytes must not be 0). A byte that
 * begins no character is one of its own, U+FFFD. */
size_t text_character(const char *text, size_t text_bytes, int32_t *character);

/* Unicode's White_Space. */
bool text_is_space(int32_t character);

#endif
