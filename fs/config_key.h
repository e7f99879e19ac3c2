/* SPDX-License-Identifier: MIT */
/* The keys of the configuration, one by one: how each is read, and what it is for. */
#ifndef FLUXFS_FS_CONFIG_KEY_H
#define FLUXFS_FS_CONFIG_KEY_H

#include "fs/config.h"

/* Sets one key from its text; `-` may stand for `_`. A NULL value is "yes" for a flag and an error
 * for others. EINVAL, and a text that begins with the key. */
int config_key_set(struct config *config, const char *key, const char *value, struct error *err);

bool config_key_known(const char *key);
bool config_key_is_flag(const char *key);

/* One bit for the key, of `size` those of width and height; 0 if it is none. */
uint32_t config_key_bits(const char *key);

/* A line for each key, for --help. */
void config_keys_print(FILE *out);

#endif
