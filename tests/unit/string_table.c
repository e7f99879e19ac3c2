/* SPDX-License-Identifier: MIT */
#include "engine/model/string_table.h"

#include <string.h>

#include "tests/test.h"

enum { KEYS = 20000 };

static void finds_what_was_put(void)
{
    struct string_table table = {0};
    char key[32];
    EXPECT(string_table_find(&table, "x", 1) == -1, "an empty table holds nothing");
    for (int i = 0; i < KEYS; i++) {
        int bytes = snprintf(key, sizeof key, "%d", i * 7);
        EXPECT(string_table_put(&table, key, (size_t)bytes, i) == 0);
    }
    for (int i = 0; i < KEYS; i++) {
        int bytes = snprintf(key, sizeof key, "%d", i * 7);
        EXPECT(string_table_find(&table, key, (size_t)bytes) == i);
        bytes = snprintf(key, sizeof key, "%d", i * 7 + 1);
        EXPECT(string_table_find(&table, key, (size_t)bytes) == -1);
    }
    EXPECT(table.key_count == KEYS);
    string_table_finish(&table);
    string_table_finish(&table);
}

static void tells_keys_apart(void)
{
    struct string_table table = {0};
    string_table_put(&table, "", 0, 1);
    string_table_put(&table, "\0", 1, 2);
    string_table_put(&table, "\0\0", 2, 3);
    string_table_put(&table, "a", 1, 4);
    string_table_put(&table, "a", 1, 5);
    EXPECT(string_table_find(&table, "", 0) == 1);
    EXPECT(string_table_find(&table, "\0", 1) == 2);
    EXPECT(string_table_find(&table, "\0\0", 2) == 3);
    EXPECT(string_table_find(&table, "a", 1) == 5, "the last value counts");
    EXPECT(table.key_count == 4);
    string_table_finish(&table);
}

static void walks_prefixes(void)
{
    struct string_table table = {0};
    string_table_put(&table, "a", 1, 10);
    string_table_put(&table, "abc", 3, 30);
    string_table_put(&table, "abcd", 4, 40);
    string_table_put(&table, "b", 1, 50);

    struct string_walk walk = string_walk_start(&table, "abcx", 4);
    EXPECT(string_walk_next(&walk) == 10 && walk.length == 1);
    EXPECT(string_walk_next(&walk) == 30 && walk.length == 3);
    EXPECT(string_walk_next(&walk) == -1);

    size_t length = 1;
    int32_t value = -1;
    EXPECT(string_table_longest(&table, "abcde", 5, &value) == 4 && value == 40);
    EXPECT(string_table_longest(&table, "abcde", 2, &value) == 1 && value == 10,
           "not beyond the text's end");
    EXPECT(string_table_longest(&table, "x", 1, &value) == 0 && value == 10);
    EXPECT(string_table_longest(&table, "", 0, &value) == 0);
    EXPECT(string_table_search(&table, "xxabcdex", 8, 0, &length, &value) == 2 && length == 4 &&
           value == 40);
    EXPECT(string_table_search(&table, "xxabcdex", 8, 7, &length, &value) == 8 && length == 0);
    string_table_finish(&table);

    struct string_table empty = {0};
    EXPECT(string_table_longest(&empty, "abc", 3, &value) == 0);
}

int main(void)
{
    finds_what_was_put();
    tells_keys_apart();
    walks_prefixes();
    return test_finish();
}
