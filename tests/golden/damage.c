/* SPDX-License-Identifier: MIT */
#include "tests/golden/damage.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

const char *originals;
char root[64];

_Noreturn void die(const char *what)
{
    perror(what);
    exit(EXIT_FAILURE);
}

static const char *path_of(const char *name)
{
    static char path[4096];

    snprintf(path, sizeof path, "%s/%s", root, name);
    return path;
}

/* ---- files ---- */

struct bytes {
    char *at;
    size_t count;
};

/* With a zero behind the last byte. */
static struct bytes file_read(const char *path)
{
    FILE *file = fopen(path, "rb");
    struct bytes bytes = {0};
    struct stat info;

    if (file == NULL || fstat(fileno(file), &info) != 0)
        die(path);
    bytes.count = (size_t)info.st_size;
    bytes.at = calloc(1, bytes.count + 1);
    if (bytes.at == NULL || fread(bytes.at, 1, bytes.count, file) != bytes.count)
        die(path);
    fclose(file);
    return bytes;
}

static void file_write(const char *path, const void *data, size_t count)
{
    FILE *file;

    unlink(path); /* never through to the original */
    file = fopen(path, "wb");
    if (file == NULL || fwrite(data, 1, count, file) != count || fclose(file) != 0)
        die(path);
}

void tree_copy(const char *from, const char *to)
{
    DIR *folder = opendir(from);
    struct dirent *entry;
    char source[4096], target[4096];

    if (folder == NULL || mkdir(to, 0700) != 0)
        die(from);
    while ((entry = readdir(folder)) != NULL) {
        struct stat info;

        if (entry->d_name[0] == '.')
            continue;
        snprintf(source, sizeof source, "%s/%s", from, entry->d_name);
        snprintf(target, sizeof target, "%s/%s", to, entry->d_name);
        if (stat(source, &info) != 0)
            die(source);
        if (S_ISDIR(info.st_mode)) {
            tree_copy(source, target);
        } else {
            struct bytes bytes = file_read(source);

            file_write(target, bytes.at, bytes.count);
            free(bytes.at);
        }
    }
    closedir(folder);
}

void tree_remove(const char *path)
{
    DIR *folder = opendir(path);
    struct dirent *entry;
    char inside[4096];

    while (folder != NULL && (entry = readdir(folder)) != NULL) {
        snprintf(inside, sizeof inside, "%s/%s", path, entry->d_name);
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            tree_remove(inside);
    }
    if (folder != NULL)
        closedir(folder);
    if (remove(path) != 0 && errno != ENOENT)
        die(path);
}

/* ---- damage ---- */

/* The first `from` between two places of the file becomes `to`. */
static void replace(struct bytes *bytes, size_t first, size_t end, const char *from, const char *to)
{
    size_t from_length = strlen(from), to_length = strlen(to), tail;
    char *place = memmem(bytes->at + first, end - first, from, from_length), *grown;

    if (place == NULL) {
        fprintf(stderr, "no %s to damage\n", from);
        exit(EXIT_FAILURE);
    }
    first = (size_t)(place - bytes->at);
    tail = bytes->count - first - from_length;
    grown = calloc(1, bytes->count + to_length + 1);
    if (grown == NULL)
        die("calloc");
    memcpy(grown, bytes->at, first);
    memcpy(grown + first, to, to_length);
    memcpy(grown + first + to_length, place + from_length, tail);
    free(bytes->at);
    *bytes = (struct bytes){grown, first + to_length + tail};
}

static void edit_header(struct bytes *bytes, const char *from, const char *to)
{
    uint64_t length;

    memcpy(&length, bytes->at, sizeof length);
    replace(bytes, 8, 8 + length, from, to);
    length += strlen(to) - strlen(from);
    memcpy(bytes->at, &length, sizeof length);
}

static void poison(const struct bytes *bytes, const char *name, float value)
{
    uint64_t length;
    json_t *header, *offsets;

    memcpy(&length, bytes->at, sizeof length);
    header = json_loadb(bytes->at + 8, length, 0, NULL);
    offsets = json_object_get(json_object_get(header, name), "data_offsets");
    if (!json_is_array(offsets)) {
        fprintf(stderr, "no tensor %s to damage\n", name);
        exit(EXIT_FAILURE);
    }
    for (json_int_t at = json_integer_value(json_array_get(offsets, 0));
         at < json_integer_value(json_array_get(offsets, 1)); at += 4)
        memcpy(bytes->at + 8 + length + at, &value, sizeof value);
    json_decref(header);
}

static void swap_folders(const char *a, const char *b)
{
    char from[4096], to[4096], aside[4096];

    snprintf(from, sizeof from, "%s/%s", root, a);
    snprintf(to, sizeof to, "%s/%s", root, b);
    snprintf(aside, sizeof aside, "%s/aside", root);
    if (rename(from, aside) != 0 || rename(to, from) != 0 || rename(aside, to) != 0)
        die(from);
}

static void graft_folder(const char *checkpoint, const char *name)
{
    char from[4096];

    tree_remove(path_of(name));
    snprintf(from, sizeof from, "%s/%s/%s", originals, checkpoint, name);
    tree_copy(from, path_of(name));
}

static void set_key(const char *path, const char *key, const char *value)
{
    json_t *file = json_load_file(path, 0, NULL);

    if (json_object_set_new(file, key, json_loads(value, JSON_DECODE_ANY, NULL)) != 0 ||
        unlink(path) != 0 || json_dump_file(file, path, 0) != 0)
        die(path);
    json_decref(file);
}

void inflict(const struct damage *damage)
{
    const char *path = path_of(damage->file);
    struct bytes bytes;
    uint64_t number;

    if (damage->action == REMOVE) {
        tree_remove(path);
        return;
    }
    if (damage->action == SET) {
        set_key(path, damage->from, damage->to);
        return;
    }
    if (damage->action == SWAP) {
        swap_folders(damage->file, damage->to);
        return;
    }
    if (damage->action == GRAFT) {
        graft_folder(damage->to, damage->file);
        return;
    }
    bytes = file_read(path);
    number = damage->action == WRITE ? 0 : strtoull(damage->to, NULL, 10);
    if (damage->action == WRITE)
        file_write(path, damage->to, strlen(damage->to));
    else if (damage->action == EDIT)
        replace(&bytes, 0, bytes.count, damage->from, damage->to);
    else if (damage->action == HEADER)
        edit_header(&bytes, damage->from, damage->to);
    else if (damage->action == TRUNCATE)
        bytes.count = number;
    else if (damage->action == LENGTH)
        memcpy(bytes.at, &number, sizeof number);
    else
        poison(&bytes, damage->from, strtof(damage->to, NULL));
    if (damage->action != WRITE)
        file_write(path, bytes.at, bytes.count);
    free(bytes.at);
}
