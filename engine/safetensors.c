/* SPDX-License-Identifier: MIT */
#include "engine/safetensors.h"

#include <errno.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/file.h"
#include "engine/json.h"

/* Headers of real files stay below one MiB. A parsed one may take 50 times its length in memory,
 * which is why the format's own limit of 100 MB is too generous for files one does not trust. */
#define HEADER_MAX_BYTES (16u << 20)

struct safetensors {
    char *path;
    struct file_map map;
    struct json_file *header; /* owns the names */
    struct stored_tensor *tensors;
    size_t count;
};

static const struct {
    const char *name;
    size_t bytes;
} types[] = {
    [STORED_F32] = {"F32", 4}, [STORED_F16] = {"F16", 2},         [STORED_BF16] = {"BF16", 2},
    [STORED_F64] = {"F64", 8}, [STORED_F8_E4M3] = {"F8_E4M3", 1}, [STORED_F8_E5M2] = {"F8_E5M2", 1},
    [STORED_I64] = {"I64", 8}, [STORED_I32] = {"I32", 4},         [STORED_I16] = {"I16", 2},
    [STORED_I8] = {"I8", 1},   [STORED_U64] = {"U64", 8},         [STORED_U32] = {"U32", 4},
    [STORED_U16] = {"U16", 2}, [STORED_U8] = {"U8", 1},           [STORED_BOOL] = {"BOOL", 1},
};

size_t stored_type_bytes(enum stored_type type)
{
    return type < STORED_OTHER ? types[type].bytes : 0;
}

static enum stored_type type_from_name(const char *name)
{
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        if (strcmp(types[i].name, name) == 0)
            return (enum stored_type)i;
    }
    return STORED_OTHER;
}

static int refuse(const struct stored_tensor *tensor, const char *why, struct error *err)
{
    return error_set(err, EINVAL, "%s: tensor %s: %s", file_label(tensor->path), tensor->name, why);
}

/* The rest of a tensor whose type is known: its shape, and how long its data must be. */
static int read_shape(struct stored_tensor *tensor, const json_t *shape, uint64_t *size_bytes,
                      struct error *err)
{
    if (!json_is_array(shape))
        return refuse(tensor, "\"shape\" is missing or not a list", err);
    size_t rank = json_array_size(shape);
    if (rank > STORED_RANK_MAX)
        return refuse(tensor, "more than 8 dimensions", err);
    uint64_t size = stored_type_bytes(tensor->type);
    bool empty = false;
    for (size_t i = 0; i < rank; i++) {
        const json_t *side = json_array_get(shape, i);
        if (!json_is_integer(side) || json_integer_value(side) < 0)
            return refuse(tensor, "a dimension is not a non-negative integer", err);
        tensor->shape[i] = json_integer_value(side);
        empty |= tensor->shape[i] == 0;
        if (tensor->shape[i] > 0 && __builtin_mul_overflow(size, (uint64_t)tensor->shape[i], &size))
            return refuse(tensor, "the product of its dimensions overflows", err);
    }
    tensor->rank = (int)rank;
    *size_bytes = empty ? 0 : size;
    return 0;
}

static int read_extent(struct stored_tensor *tensor, const json_t *offsets,
                       const struct file_map *data, struct error *err)
{
    const json_t *first = json_array_get(offsets, 0);
    const json_t *last = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(last))
        return refuse(tensor, "\"data_offsets\" is missing or not two integers", err);
    json_int_t begin = json_integer_value(first);
    json_int_t end = json_integer_value(last);
    if (begin < 0 || end < begin)
        return refuse(tensor, "its data ends before it begins", err);
    if ((uint64_t)end > data->size_bytes)
        return error_set(err, EINVAL,
                         "%s: tensor %s: its data ends at byte %lld of %llu: "
                         "the file is truncated or its header wrong",
                         file_label(tensor->path), tensor->name, (long long)end,
                         (unsigned long long)data->size_bytes);
    tensor->data = data->data + begin;
    tensor->size_bytes = (uint64_t)(end - begin);
    return 0;
}

static int read_tensor(struct stored_tensor *tensor, const json_t *entry,
                       const struct file_map *data, struct error *err)
{
    if (!json_is_object(entry))
        return refuse(tensor, "its header entry is not an object", err);
    tensor->type_name = json_string_value(json_object_get(entry, "dtype"));
    if (tensor->type_name == NULL)
        return refuse(tensor, "\"dtype\" is missing or not a string", err);
    tensor->type = type_from_name(tensor->type_name);

    uint64_t size_bytes = 0;
    int code = read_shape(tensor, json_object_get(entry, "shape"), &size_bytes, err);
    if (code == 0)
        code = read_extent(tensor, json_object_get(entry, "data_offsets"), data, err);
    if (code == 0 && tensor->type != STORED_OTHER && tensor->size_bytes != size_bytes)
        return error_set(
            err, EINVAL, "%s: tensor %s: %llu bytes of data, its shape and %s need %llu",
            file_label(tensor->path), tensor->name, (unsigned long long)tensor->size_bytes,
            tensor->type_name, (unsigned long long)size_bytes);
    return code;
}

static int compare_places(const void *a, const void *b)
{
    const struct stored_tensor *left = a, *right = b;
    uintptr_t l = (uintptr_t)left->data, r = (uintptr_t)right->data;
    if (l != r)
        return l < r ? -1 : 1;
    /* Empty ones first: they share their place with the tensor that follows. */
    return (left->size_bytes > right->size_bytes) - (left->size_bytes < right->size_bytes);
}

static int compare_names(const void *a, const void *b)
{
    const struct stored_tensor *left = a, *right = b;
    return strcmp(left->name, right->name);
}

static int check_overlaps(struct safetensors *file, struct error *err)
{
    if (file->count == 0)
        return 0;
    qsort(file->tensors, file->count, sizeof *file->tensors, compare_places);
    const struct stored_tensor *last = &file->tensors[0];
    for (size_t i = 1; i < file->count; i++) {
        const struct stored_tensor *tensor = &file->tensors[i];
        if ((uintptr_t)tensor->data < (uintptr_t)last->data + last->size_bytes)
            return error_set(err, EINVAL, "%s: tensor %s: its data overlaps that of tensor %s",
                             file_label(file->path), tensor->name, last->name);
        last = tensor;
    }
    return 0;
}

static int read_tensors(struct safetensors *file, uint64_t data_begin, struct error *err)
{
    struct file_map data = {.data = file->map.data + data_begin,
                            .size_bytes = file->map.size_bytes - data_begin};
    /* jansson's iterators want a mutable object, and don't change it. */
    json_t *root = (json_t *)json_file_root(file->header);
    file->tensors = calloc(json_object_size(root) + 1, sizeof *file->tensors);
    if (file->tensors == NULL)
        return error_set(err, ENOMEM, "%s: out of memory", file_label(file->path));
    const char *name;
    json_t *entry;
    json_object_foreach(root, name, entry)
    {
        if (strcmp(name, "__metadata__") == 0)
            continue;
        struct stored_tensor *tensor = &file->tensors[file->count++];
        *tensor = (struct stored_tensor){.name = name, .path = file->path};
        int code = read_tensor(tensor, entry, &data, err);
        if (code != 0)
            return code;
    }
    int code = check_overlaps(file, err);
    if (code == 0 && file->count > 0)
        qsort(file->tensors, file->count, sizeof *file->tensors, compare_names);
    return code;
}

/* What a clone without git-lfs has in the place of a large file. */
static bool is_lfs_pointer(const struct safetensors *file)
{
    static const char start[] = "version https://git-lfs";

    return file->map.size_bytes >= sizeof start - 1 &&
           memcmp(file->map.data, start, sizeof start - 1) == 0;
}

static int read_header(struct safetensors *file, struct error *err)
{
    const char *label = file_label(file->path);
    if (file->map.size_bytes < 8)
        return error_set(err, EINVAL, "%s: truncated: %llu bytes are no safetensors file", label,
                         (unsigned long long)file->map.size_bytes);
    if (is_lfs_pointer(file))
        return error_set(err, EINVAL,
                         "%s: a Git LFS pointer instead of the weights; \"git lfs pull\" in its "
                         "folder fetches them",
                         label);
    uint64_t header_bytes = 0;
    for (int i = 7; i >= 0; i--)
        header_bytes = header_bytes << 8 | file->map.data[i];
    if (header_bytes > HEADER_MAX_BYTES)
        return error_set(err, EINVAL, "%s: a header of %llu bytes, at most %u are allowed", label,
                         (unsigned long long)header_bytes, HEADER_MAX_BYTES);
    if (header_bytes > file->map.size_bytes - 8)
        return error_set(err, EINVAL, "%s: truncated: a header of %llu bytes, but only %llu follow",
                         label, (unsigned long long)header_bytes,
                         (unsigned long long)file->map.size_bytes - 8);
    int code = json_file_parse(file->path, file->map.data + 8, header_bytes, &file->header, err);
    return code == 0 ? read_tensors(file, 8 + header_bytes, err) : code;
}

int safetensors_open(const char *path, struct safetensors **file, struct error *err)
{
    struct safetensors *made = calloc(1, sizeof *made);
    if (made == NULL || (made->path = strdup(path)) == NULL) {
        free(made);
        return error_set(err, ENOMEM, "%s: out of memory", file_label(path));
    }
    int code = file_map_open(&made->map, path, INT64_MAX, err);
    if (code == 0)
        code = read_header(made, err);
    if (code != 0)
        safetensors_close(made);
    else
        *file = made;
    return code;
}

void safetensors_close(struct safetensors *file)
{
    if (file == NULL)
        return;
    free(file->tensors);
    json_file_close(file->header);
    file_map_close(&file->map);
    free(file->path);
    free(file);
}

int safetensors_check(const struct safetensors *file, struct error *err)
{
    return file_map_check(&file->map, file->path, err);
}

const struct stored_tensor *safetensors_list(const struct safetensors *file, size_t *count)
{
    *count = file->count;
    return file->tensors;
}

const struct stored_tensor *safetensors_find(const struct safetensors *file, const char *name)
{
    struct stored_tensor wanted = {.name = name};
    if (file->count == 0)
        return NULL;
    return bsearch(&wanted, file->tensors, file->count, sizeof wanted, compare_names);
}

static void print_shape(char *text, size_t text_bytes, int rank, const int64_t *shape)
{
    size_t used = 0;
    text[0] = '\0';
    for (int i = 0; i < rank && used < text_bytes; i++)
        used += (size_t)snprintf(text + used, text_bytes - used, "%s%lld", i > 0 ? ", " : "",
                                 (long long)shape[i]);
}

int stored_tensor_check(const struct stored_tensor *tensor, int rank, const int64_t *shape,
                        struct error *err)
{
    const char *label = file_label(tensor->path);
    if (tensor->rank == STORED_RANK_ANY)
        return 0;
    if (tensor->type > STORED_BF16)
        return error_set(err, ENOTSUP, "%s: tensor %s: its type is %s, not F32, F16 or BF16", label,
                         tensor->name, tensor->type_name);
    if (tensor->rank == rank && memcmp(tensor->shape, shape, (size_t)rank * sizeof *shape) == 0)
        return 0;
    char found[96], wanted[96];
    print_shape(found, sizeof found, tensor->rank, tensor->shape);
    print_shape(wanted, sizeof wanted, rank, shape);
    return error_set(err, EINVAL, "%s: tensor %s: its shape is [%s], the config asks for [%s]",
                     label, tensor->name, found, wanted);
}
