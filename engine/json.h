/* SPDX-License-Identifier: MIT */
/*
 * JSON files of a checkpoint, read with their types and ranges checked.
 *
 * A reader keeps the first error, so that a config is read as a plain list of fields and checked
 * once at the end:
 *
 *     struct json_reader reader = json_reader_start(file);
 *     config->layers = json_get_int(&reader, "num_layers", 1, 1000);
 *     config->guidance = json_get_bool_or(&reader, "guidance_embeds", false);
 *     return json_reader_finish(&reader, err);
 *
 * After an error every get returns its fallback, or the least value allowed, false or "".
 */
#ifndef FLUXFS_ENGINE_JSON_H
#define FLUXFS_ENGINE_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/error.h"

struct json_file;
struct json_t; /* jansson's value */

/* Parses a file of at most `limit_bytes` whose outermost value is an object. Refused: what isn't
 * UTF-8 or JSON, a key that occurs twice in one object, nesting deeper than 2048. */
int json_file_open(const char *path, uint64_t limit_bytes, struct json_file **file,
                   struct error *err);
/* The same from memory; `path` is only for messages. */
int json_file_parse(const char *path, const void *text, size_t text_bytes, struct json_file **file,
                    struct error *err);
void json_file_close(struct json_file *file);

const char *json_file_path(const struct json_file *file);
/* The outermost object; for those who walk it with jansson. */
const struct json_t *json_file_root(const struct json_file *file);

struct json_reader {
    const struct json_file *file;
    struct error first;
};

struct json_reader json_reader_start(const struct json_file *file);
/* 0, or the first error, which names the file and the key. */
int json_reader_finish(const struct json_reader *reader, struct error *err);

/* The plain ones refuse a key that is absent or null; the `_or` ones then return the fallback.
 * Both refuse a wrong type and a value outside min … max. A number without a fraction, however
 * written, is an integer and a double. Strings live as long as the file. */
int json_get_int(struct json_reader *reader, const char *key, int min, int max);
int json_get_int_or(struct json_reader *reader, const char *key, int fallback, int min, int max);
double json_get_double(struct json_reader *reader, const char *key, double min, double max);
double json_get_double_or(struct json_reader *reader, const char *key, double fallback, double min,
                          double max);
bool json_get_bool(struct json_reader *reader, const char *key);
bool json_get_bool_or(struct json_reader *reader, const char *key, bool fallback);
const char *json_get_string(struct json_reader *reader, const char *key);
const char *json_get_string_or(struct json_reader *reader, const char *key, const char *fallback);
/* A list of 1 … capacity integers, each from 1 to max; returns how many, 0 after an error. */
int json_get_ints(struct json_reader *reader, const char *key, int *values, int capacity, int max);
int json_get_ints_or(struct json_reader *reader, const char *key, int *values, int capacity,
                     int max, const int *fallback, int fallback_count);

#endif
