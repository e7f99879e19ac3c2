/* SPDX-License-Identifier: MIT */
/*
 * A hash table from byte strings to numbers ≥ 0, for vocabularies: filled once, then only searched.
 * It can also walk the keys that are prefixes of a text. Start from {0}.
 */
#ifndef FLUXFS_ENGINE_MODEL_STRING_TABLE_H
#define FLUXFS_ENGINE_MODEL_STRING_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct string_slot;

struct string_table {
    struct string_slot *slots;
    size_t slot_count; /* 0, or a power of two */
    size_t key_count;
    size_t longest_bytes; /* of all keys */
    char *pool;           /* the keys, one after the other */
    size_t pool_bytes, pool_capacity;
};

void string_table_finish(struct string_table *table);

/* Copies the key. A key that is there already gets the new value. 0 or -ENOMEM. */
int string_table_put(struct string_table *table, const void *key, size_t key_bytes, int32_t value);

/* The value, or -1. */
int32_t string_table_find(const struct string_table *table, const void *key, size_t key_bytes);

/* The keys a text begins with, shortest first. */
struct string_walk {
    const struct string_table *table;
    const char *text;
    size_t text_bytes;
    size_t length; /* of the prefix found last */
    uint32_t hash;
};

struct string_walk string_walk_start(const struct string_table *table, const char *text,
                                     size_t text_bytes);
/* Moves to the next longer key, whose length is then walk->length; -1 when there is none. */
int32_t string_walk_next(struct string_walk *walk);

/* The longest key the text begins with: its length in bytes, and its value; 0 if there is none. */
size_t string_table_longest(const struct string_table *table, const char *text, size_t text_bytes,
                            int32_t *value);

/* The first place from `at` on where the text has a key, and the longest one there, as above; the
 * text's end if there is none. */
size_t string_table_search(const struct string_table *table, const char *text, size_t text_bytes,
                           size_t at, size_t *key_bytes, int32_t *value);

#endif
