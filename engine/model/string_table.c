/* SPDX-License-Identifier: MIT */
#include "engine/model/string_table.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct string_slot {
    uint32_t key_at, key_bytes; /* in the pool */
    uint32_t hash;
    int32_t value; /* -1: the slot is free */
};

/* FNV-1a: weak but incremental, so that walking the prefixes of a text costs one step a byte. */
static const uint32_t hash_basis = 2166136261u;

static uint32_t hash_step(uint32_t hash, unsigned char byte)
{
    return (hash ^ byte) * 16777619u;
}

static uint32_t hash_bytes(const char *key, size_t key_bytes)
{
    uint32_t hash = hash_basis;
    for (size_t i = 0; i < key_bytes; i++)
        hash = hash_step(hash, (unsigned char)key[i]);
    return hash;
}

/* The slot that holds the key, or the free one where it belongs. */
static struct string_slot *find_slot(const struct string_table *table, const char *key,
                                     size_t key_bytes, uint32_t hash)
{
    size_t mask = table->slot_count - 1;
    for (size_t i = (hash ^ hash >> 15) & mask;; i = (i + 1) & mask) {
        struct string_slot *slot = &table->slots[i];
        if (slot->value < 0)
            return slot;
        if (slot->hash == hash && slot->key_bytes == key_bytes &&
            memcmp(table->pool + slot->key_at, key, key_bytes) == 0)
            return slot;
    }
}

static int grow_slots(struct string_table *table)
{
    struct string_table grown = *table;
    grown.slot_count = table->slot_count == 0 ? 64 : 2 * table->slot_count;
    grown.slots = malloc(grown.slot_count * sizeof *grown.slots);
    if (grown.slots == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < grown.slot_count; i++)
        grown.slots[i].value = -1;
    for (size_t i = 0; i < table->slot_count; i++) {
        const struct string_slot *slot = &table->slots[i];
        if (slot->value >= 0)
            *find_slot(&grown, table->pool + slot->key_at, slot->key_bytes, slot->hash) = *slot;
    }
    free(table->slots);
    *table = grown;
    return 0;
}

static int grow_pool(struct string_table *table, size_t key_bytes)
{
    if (key_bytes > UINT32_MAX - table->pool_bytes)
        return -ENOMEM;
    size_t capacity = 2 * table->pool_capacity + key_bytes + 64;
    char *pool = realloc(table->pool, capacity);
    if (pool == NULL)
        return -ENOMEM;
    table->pool = pool;
    table->pool_capacity = capacity;
    return 0;
}

int string_table_put(struct string_table *table, const void *key, size_t key_bytes, int32_t value)
{
    int code = 0;
    if (2 * (table->key_count + 1) > table->slot_count)
        code = grow_slots(table);
    if (code == 0 && key_bytes > table->pool_capacity - table->pool_bytes)
        code = grow_pool(table, key_bytes);
    if (code != 0)
        return code;
    uint32_t hash = hash_bytes(key, key_bytes);
    struct string_slot *slot = find_slot(table, key, key_bytes, hash);
    if (slot->value < 0) {
        *slot = (struct string_slot){
            .key_at = (uint32_t)table->pool_bytes, .key_bytes = (uint32_t)key_bytes, .hash = hash};
        if (key_bytes > 0)
            memcpy(table->pool + table->pool_bytes, key, key_bytes);
        table->pool_bytes += key_bytes;
        table->key_count++;
        if (key_bytes > table->longest_bytes)
            table->longest_bytes = key_bytes;
    }
    slot->value = value;
    return 0;
}

int32_t string_table_find(const struct string_table *table, const void *key, size_t key_bytes)
{
    if (table->key_count == 0)
        return -1;
    return find_slot(table, key, key_bytes, hash_bytes(key, key_bytes))->value;
}

struct string_walk string_walk_start(const struct string_table *table, const char *text,
                                     size_t text_bytes)
{
    size_t longest = table->longest_bytes;
    return (struct string_walk){.table = table,
                                .text = text,
                                .text_bytes = text_bytes < longest ? text_bytes : longest,
                                .hash = hash_basis};
}

int32_t string_walk_next(struct string_walk *walk)
{
    while (walk->length < walk->text_bytes) {
        walk->hash = hash_step(walk->hash, (unsigned char)walk->text[walk->length]);
        walk->length++;
        const struct string_slot *slot =
            find_slot(walk->table, walk->text, walk->length, walk->hash);
        if (slot->value >= 0)
            return slot->value;
    }
    return -1;
}

size_t string_table_longest(const struct string_table *table, const char *text, size_t text_bytes,
                            int32_t *value)
{
    size_t length = 0;
    struct string_walk walk = string_walk_start(table, text, text_bytes);
    for (int32_t found; (found = string_walk_next(&walk)) >= 0;) {
        length = walk.length;
        *value = found;
    }
    return length;
}

size_t string_table_search(const struct string_table *table, const char *text, size_t text_bytes,
                           size_t at, size_t *key_bytes, int32_t *value)
{
    for (; at < text_bytes; at++) {
        *key_bytes = string_table_longest(table, text + at, text_bytes - at, value);
        if (*key_bytes > 0)
            return at;
    }
    *key_bytes = 0;
    return at;
}

void string_table_finish(struct string_table *table)
{
    free(table->slots);
    free(table->pool);
    *table = (struct string_table){0};
}
