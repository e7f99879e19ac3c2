/* SPDX-License-Identifier: MIT */
#include "engine/checkpoint.h"

#include <errno.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/file.h"

#define CONFIG_MAX_BYTES (1u << 20)
#define INDEX_MAX_BYTES (16u << 20)

enum { SHARDS_MAX = 1000 };

struct shard {
    const char *name; /* borrowed from the index; NULL for the only file */
    struct safetensors *file;
};

struct checkpoint {
    char *folder;
    struct json_file *config;
    struct json_file *index; /* NULL if there is one file */
    struct shard *shards;
    size_t shard_count;
    const struct stored_tensor **tensors; /* sorted by name */
    size_t tensor_count;
    bool imagined; /* no files: every tensor is this one */
    struct stored_tensor any;
};

static int no_memory(const struct checkpoint *checkpoint, struct error *err)
{
    return error_set(err, ENOMEM, "%s: out of memory", file_label(checkpoint->folder));
}

static int open_json(const struct checkpoint *checkpoint, const char *name, uint64_t limit_bytes,
                     struct json_file **file, struct error *err)
{
    char *path = file_path(checkpoint->folder, name);
    if (path == NULL)
        return no_memory(checkpoint, err);
    int code = json_file_open(path, limit_bytes, file, err);
    free(path);
    return code;
}

static bool has_file(const struct checkpoint *checkpoint, const char *name)
{
    char *path = file_path(checkpoint->folder, name);
    bool found = path != NULL && access(path, F_OK) == 0;
    free(path);
    return found;
}

static int add_shard(struct checkpoint *checkpoint, const char *name, struct safetensors **file,
                     struct error *err)
{
    if (checkpoint->shard_count == SHARDS_MAX)
        return error_set(err, EINVAL, "%s: its index names more than %d files",
                         file_label(checkpoint->folder), SHARDS_MAX);
    size_t count = checkpoint->shard_count + 1;
    struct shard *grown = realloc(checkpoint->shards, count * sizeof *grown);
    if (grown == NULL)
        return no_memory(checkpoint, err);
    checkpoint->shards = grown;
    char *path = file_path(checkpoint->folder, name);
    if (path == NULL)
        return no_memory(checkpoint, err);
    int code = safetensors_open(path, file, err);
    free(path);
    if (code == 0)
        checkpoint->shards[checkpoint->shard_count++] = (struct shard){.name = name, .file = *file};
    return code;
}

static int open_single(struct checkpoint *checkpoint, const char *name, struct error *err)
{
    struct safetensors *file = NULL;
    int code = add_shard(checkpoint, name, &file, err);
    if (code != 0)
        return code;
    size_t count;
    const struct stored_tensor *list = safetensors_list(file, &count);
    checkpoint->tensors = calloc(count + 1, sizeof(void *));
    if (checkpoint->tensors == NULL)
        return no_memory(checkpoint, err);
    for (size_t i = 0; i < count; i++)
        checkpoint->tensors[i] = &list[i];
    checkpoint->tensor_count = count;
    return 0;
}

/* Opens the shard at its first mention. Neighbours in an index mostly share one, so the search
 * begins at the newest. */
static int find_shard(struct checkpoint *checkpoint, const char *name, struct safetensors **file,
                      struct error *err)
{
    for (size_t i = checkpoint->shard_count; i > 0; i--) {
        if (strcmp(checkpoint->shards[i - 1].name, name) == 0) {
            *file = checkpoint->shards[i - 1].file;
            return 0;
        }
    }
    return add_shard(checkpoint, name, file, err);
}

static bool is_plain_name(const char *name)
{
    return name[0] != '\0' && strchr(name, '/') == NULL && strcmp(name, ".") != 0 &&
           strcmp(name, "..") != 0;
}

static int find_indexed(struct checkpoint *checkpoint, const char *name, const json_t *value,
                        const struct stored_tensor **tensor, struct error *err)
{
    const char *label = file_label(json_file_path(checkpoint->index));
    const char *shard = json_string_value(value);
    if (shard == NULL)
        return error_set(err, EINVAL, "%s: the file of tensor %s is not a string", label, name);
    if (!is_plain_name(shard))
        return error_set(err, EINVAL, "%s: tensor %s: its file is not a plain name in this folder",
                         label, name);
    struct safetensors *file;
    int code = find_shard(checkpoint, shard, &file, err);
    if (code != 0)
        return code;
    *tensor = safetensors_find(file, name);
    if (*tensor == NULL)
        return error_set(err, ENOENT, "%s: tensor %s is not in %s, where the index puts it", label,
                         name, shard);
    return 0;
}

static int compare_names(const void *a, const void *b)
{
    const struct stored_tensor *const *left = a, *const *right = b;
    return strcmp((*left)->name, (*right)->name);
}

static int open_indexed(struct checkpoint *checkpoint, const char *name, struct error *err)
{
    int code = open_json(checkpoint, name, INDEX_MAX_BYTES, &checkpoint->index, err);
    if (code != 0)
        return code;
    json_t *map = json_object_get(json_file_root(checkpoint->index), "weight_map");
    if (!json_is_object(map) || json_object_size(map) == 0)
        return error_set(err, EINVAL, "%s: \"weight_map\" is missing or empty",
                         file_label(json_file_path(checkpoint->index)));
    checkpoint->tensors = calloc(json_object_size(map), sizeof(void *));
    if (checkpoint->tensors == NULL)
        return no_memory(checkpoint, err);
    const char *key;
    json_t *value;
    json_object_foreach(map, key, value)
    {
        const struct stored_tensor **slot = &checkpoint->tensors[checkpoint->tensor_count];
        code = find_indexed(checkpoint, key, value, slot, err);
        if (code != 0)
            return code;
        checkpoint->tensor_count++;
    }
    qsort(checkpoint->tensors, checkpoint->tensor_count, sizeof(void *), compare_names);
    return 0;
}

static int open_files(struct checkpoint *checkpoint, struct error *err)
{
    static const char *const stems[] = {"diffusion_pytorch_model", "model"};
    int code = open_json(checkpoint, "config.json", CONFIG_MAX_BYTES, &checkpoint->config, err);
    for (int i = 0; i < 2 && code == 0; i++) {
        char single[64], index[96];
        snprintf(single, sizeof single, "%s.safetensors", stems[i]);
        snprintf(index, sizeof index, "%s.index.json", single);
        if (has_file(checkpoint, index))
            return open_indexed(checkpoint, index, err);
        if (has_file(checkpoint, single))
            return open_single(checkpoint, single, err);
    }
    if (code != 0)
        return code;
    return error_set(err, ENOENT,
                     "%s: no weights: neither diffusion_pytorch_model.safetensors nor "
                     "model.safetensors, nor an index of either",
                     file_label(checkpoint->folder));
}

static int open_folder(const char *folder, bool imagined, struct checkpoint **checkpoint,
                       struct error *err)
{
    struct checkpoint *made = calloc(1, sizeof *made);
    if (made == NULL || (made->folder = strdup(folder)) == NULL) {
        free(made);
        return error_set(err, ENOMEM, "%s: out of memory", file_label(folder));
    }
    made->imagined = imagined;
    made->any = (struct stored_tensor){
        .name = "?", .path = made->folder, .type = STORED_BF16, .rank = STORED_RANK_ANY};
    int code = imagined ? open_json(made, "config.json", CONFIG_MAX_BYTES, &made->config, err)
                        : open_files(made, err);
    if (code != 0)
        checkpoint_close(made);
    else
        *checkpoint = made;
    return code;
}

int checkpoint_open(const char *folder, struct checkpoint **checkpoint, struct error *err)
{
    return open_folder(folder, false, checkpoint, err);
}

int checkpoint_imagine(const char *folder, struct checkpoint **checkpoint, struct error *err)
{
    return open_folder(folder, true, checkpoint, err);
}

void checkpoint_close(struct checkpoint *checkpoint)
{
    if (checkpoint == NULL)
        return;
    for (size_t i = 0; i < checkpoint->shard_count; i++)
        safetensors_close(checkpoint->shards[i].file);
    free(checkpoint->shards);
    free(checkpoint->tensors);
    json_file_close(checkpoint->index);
    json_file_close(checkpoint->config);
    free(checkpoint->folder);
    free(checkpoint);
}

int checkpoint_check(const struct checkpoint *checkpoint, struct error *err)
{
    int code = 0;
    for (size_t i = 0; i < checkpoint->shard_count && code == 0; i++)
        code = safetensors_check(checkpoint->shards[i].file, err);
    return code;
}

const char *checkpoint_folder(const struct checkpoint *checkpoint)
{
    return checkpoint->folder;
}

const struct json_file *checkpoint_config(const struct checkpoint *checkpoint)
{
    return checkpoint->config;
}

const struct stored_tensor *const *checkpoint_list(const struct checkpoint *checkpoint,
                                                   size_t *count)
{
    *count = checkpoint->tensor_count;
    return checkpoint->tensors;
}

int checkpoint_find(const struct checkpoint *checkpoint, const char *name,
                    const struct stored_tensor **tensor, struct error *err)
{
    struct stored_tensor wanted = {.name = name};
    const struct stored_tensor *key = &wanted;
    const struct stored_tensor **found = NULL;
    if (checkpoint->imagined) {
        *tensor = &checkpoint->any;
        return 0;
    }
    if (checkpoint->tensor_count > 0)
        found = bsearch(&key, checkpoint->tensors, checkpoint->tensor_count, sizeof(void *),
                        compare_names);
    if (found == NULL)
        return error_set(err, ENOENT, "%s: tensor %s is missing", file_label(checkpoint->folder),
                         name);
    *tensor = *found;
    return 0;
}
