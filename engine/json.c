/* SPDX-License-Identifier: MIT */
#include "engine/json.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/file.h"

struct json_file {
    char *path;
    json_t *root;
};

int json_file_parse(const char *path, const void *text, size_t text_bytes, struct json_file **file,
                    struct error *err)
{
    const char *label = file_label(path);
    json_error_t fault;
    json_t *root = json_loadb(text, text_bytes, JSON_REJECT_DUPLICATES, &fault);
    /* Tokenizer configs have 10³⁰ for "no limit"; with such a number all are read as doubles. */
    if (root == NULL && json_error_code(&fault) == json_error_numeric_overflow)
        root =
            json_loadb(text, text_bytes, JSON_REJECT_DUPLICATES | JSON_DECODE_INT_AS_REAL, &fault);
    if (root == NULL)
        return error_set(err, EINVAL, "%s: broken JSON at line %d, column %d: %s", label,
                         fault.line, fault.column, fault.text);
    if (!json_is_object(root)) {
        json_decref(root);
        return error_set(err, EINVAL, "%s: the outermost JSON value is not an object", label);
    }
    struct json_file *made = malloc(sizeof *made);
    char *copy = strdup(path);
    if (made == NULL || copy == NULL) {
        free(made);
        free(copy);
        json_decref(root);
        return error_set(err, ENOMEM, "%s: out of memory", label);
    }
    *made = (struct json_file){.path = copy, .root = root};
    *file = made;
    return 0;
}

int json_file_open(const char *path, uint64_t limit_bytes, struct json_file **file,
                   struct error *err)
{
    struct file_map map;
    int code = file_map_open(&map, path, limit_bytes, err);
    if (code != 0)
        return code;
    code = json_file_parse(path, map.data, map.size_bytes, file, err);
    file_map_close(&map);
    return code;
}

void json_file_close(struct json_file *file)
{
    if (file == NULL)
        return;
    json_decref(file->root);
    free(file->path);
    free(file);
}

const char *json_file_path(const struct json_file *file)
{
    return file->path;
}

const struct json_t *json_file_root(const struct json_file *file)
{
    return file->root;
}

struct json_reader json_reader_start(const struct json_file *file)
{
    return (struct json_reader){.file = file};
}

int json_reader_finish(const struct json_reader *reader, struct error *err)
{
    if (reader->first.code != 0 && err != NULL)
        *err = reader->first;
    return reader->first.code;
}

static const char *reader_label(const struct json_reader *reader)
{
    return file_label(reader->file->path);
}

/* The value, or NULL if it is absent or null, or if an error is already kept. */
static const json_t *find_value(struct json_reader *reader, const char *key)
{
    if (reader->first.code != 0)
        return NULL;
    const json_t *value = json_object_get(reader->file->root, key);
    return json_is_null(value) ? NULL : value;
}

/* The same, and keeps an error if there is none. */
static const json_t *require_value(struct json_reader *reader, const char *key)
{
    const json_t *value = find_value(reader, key);
    if (value == NULL && reader->first.code == 0)
        error_set(&reader->first, EINVAL, "%s: \"%s\" is missing", reader_label(reader), key);
    return value;
}

static bool check_type(struct json_reader *reader, const char *key, bool right, const char *wanted)
{
    if (!right)
        error_set(&reader->first, EINVAL, "%s: \"%s\" is not %s", reader_label(reader), key,
                  wanted);
    return right;
}

static bool read_int(struct json_reader *reader, const char *key, const json_t *value, int min,
                     int max, int *number)
{
    double real = json_number_value(value);
    if (!check_type(reader, key, json_is_number(value) && real == floor(real), "an integer"))
        return false;
    if (real < min || real > max) {
        error_set(&reader->first, EINVAL, "%s: \"%s\" is %.10g, allowed is %d to %d",
                  reader_label(reader), key, real, min, max);
        return false;
    }
    *number = (int)real;
    return true;
}

static double read_double(struct json_reader *reader, const char *key, const json_t *value,
                          double min, double max)
{
    if (!check_type(reader, key, json_is_number(value), "a number"))
        return min;
    double number = json_number_value(value);
    if (!(number >= min && number <= max)) {
        error_set(&reader->first, EINVAL, "%s: \"%s\" is %g, allowed is %g to %g",
                  reader_label(reader), key, number, min, max);
        return min;
    }
    return number;
}

int json_get_int(struct json_reader *reader, const char *key, int min, int max)
{
    const json_t *value = require_value(reader, key);
    int number = min;
    if (value != NULL)
        read_int(reader, key, value, min, max, &number);
    return number;
}

int json_get_int_or(struct json_reader *reader, const char *key, int fallback, int min, int max)
{
    const json_t *value = find_value(reader, key);
    int number = fallback;
    if (value != NULL)
        read_int(reader, key, value, min, max, &number);
    return number;
}

double json_get_double(struct json_reader *reader, const char *key, double min, double max)
{
    const json_t *value = require_value(reader, key);
    return value != NULL ? read_double(reader, key, value, min, max) : min;
}

double json_get_double_or(struct json_reader *reader, const char *key, double fallback, double min,
                          double max)
{
    const json_t *value = find_value(reader, key);
    return value != NULL ? read_double(reader, key, value, min, max) : fallback;
}

bool json_get_bool(struct json_reader *reader, const char *key)
{
    const json_t *value = require_value(reader, key);
    return value != NULL && check_type(reader, key, json_is_boolean(value), "true or false") &&
           json_is_true(value);
}

bool json_get_bool_or(struct json_reader *reader, const char *key, bool fallback)
{
    const json_t *value = find_value(reader, key);
    if (value == NULL || !check_type(reader, key, json_is_boolean(value), "true or false"))
        return fallback;
    return json_is_true(value);
}

const char *json_get_string(struct json_reader *reader, const char *key)
{
    const json_t *value = require_value(reader, key);
    if (value == NULL || !check_type(reader, key, json_is_string(value), "a string"))
        return "";
    return json_string_value(value);
}

const char *json_get_string_or(struct json_reader *reader, const char *key, const char *fallback)
{
    const json_t *value = find_value(reader, key);
    if (value == NULL || !check_type(reader, key, json_is_string(value), "a string"))
        return fallback;
    return json_string_value(value);
}

int json_get_ints(struct json_reader *reader, const char *key, int *values, int capacity, int max)
{
    const json_t *list = require_value(reader, key);
    if (list == NULL || !check_type(reader, key, json_is_array(list), "a list"))
        return 0;
    size_t count = json_array_size(list);
    if (count < 1 || count > (size_t)capacity) {
        error_set(&reader->first, EINVAL, "%s: \"%s\" has %zu elements, allowed is 1 to %d",
                  reader_label(reader), key, count, capacity);
        return 0;
    }
    for (size_t i = 0; i < count; i++) {
        if (!read_int(reader, key, json_array_get(list, i), 1, max, &values[i]))
            return 0;
    }
    return (int)count;
}

int json_get_ints_or(struct json_reader *reader, const char *key, int *values, int capacity,
                     int max, const int *fallback, int fallback_count)
{
    const json_t *list = json_object_get(json_file_root(reader->file), key);

    if (list != NULL && !json_is_null(list))
        return json_get_ints(reader, key, values, capacity, max);
    memcpy(values, fallback, (size_t)fallback_count * sizeof *values);
    return fallback_count;
}
