/* SPDX-License-Identifier: MIT */
/* A model of its own shows the rules one by one; agreement with transformers is tested in
 * tests/golden/token_ids.c. */
#include "engine/model/t5_tokenizer.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <time.h>

#include "engine/model/piece_model.h"
#include "tests/test.h"
#include "tests/unit/scratch.h"

#define MARK "\xe2\x96\x81"

/* A ModelProto as it is written piece by piece. */
static unsigned char model[4096];
static size_t model_bytes;

static void add_bytes(const void *bytes, size_t count)
{
    memcpy(model + model_bytes, bytes, count);
    model_bytes += count;
}

static void add_piece(const char *text, float score)
{
    unsigned char length = (unsigned char)strlen(text);
    unsigned char head[4] = {0x0a, (unsigned char)(length + 7), 0x0a, length};
    add_bytes(head, 4);
    add_bytes(text, length);
    add_bytes("\x15", 1);
    add_bytes(&score, 4);
}

static void start_model(void)
{
    model_bytes = 0;
    add_piece("<pad>", 0);
    add_piece("</s>", 0);
    add_piece("<unk>", 0);
    add_piece(MARK, -2);     /* 3 */
    add_piece(MARK "a", -3); /* 4 */
    add_piece("a", -3.5f);   /* 5 */
    add_piece("b", -4);      /* 6 */
    add_piece("ab", -5);     /* 7 */
    add_piece("abb", -8.5f); /* 8 */
    add_piece("bb", -7);     /* 9 */
}

static const char *write_model(void)
{
    return scratch_write("spiece.model", model, model_bytes);
}

static struct t5_tokenizer *open_scratch(void)
{
    struct t5_tokenizer *tokenizer = NULL;
    struct error err = {0};
    start_model();
    write_model();
    EXPECT(t5_tokenizer_open(scratch_folder, &tokenizer, &err) == 0, "%s", err.text);
    return tokenizer;
}

static void expect_ids(const struct t5_tokenizer *tokenizer, const char *text, const char *expected)
{
    int32_t ids[12];
    struct error err = {0};
    char found[128] = "";
    int count = t5_tokenizer_encode(tokenizer, text, ids, 12, &err);
    EXPECT(count > 0 && ids[count - 1] == 1, "\"%s\": %s", text, err.text);
    for (int i = count; i > 0 && i < 12; i++)
        EXPECT(ids[i] == 0, "padding");
    for (int i = 0, used = 0; i < count - 1; i++)
        used += snprintf(found + used, sizeof found - (size_t)used, i > 0 ? " %d" : "%d", ids[i]);
    EXPECT(strcmp(found, expected) == 0, "\"%s\": %s, expected %s", text, found, expected);
}

static void follows_the_rules(void)
{
    struct t5_tokenizer *tokenizer = open_scratch();
    EXPECT(t5_tokenizer_id_count(tokenizer) == 110);
    expect_ids(tokenizer, "", "");
    expect_ids(tokenizer, " \t ", "");
    expect_ids(tokenizer, "a", "4");
    expect_ids(tokenizer, "b", "3 6");
    expect_ids(tokenizer, "ab", "3 7"); /* −7, as is "4 6": the one found first wins */
    expect_ids(tokenizer, "bab", "3 6 7");
    expect_ids(tokenizer, "babb", "3 6 8");
    expect_ids(tokenizer, " a \n\xe3\x80\x80 b ", "4 3 6");
    expect_ids(tokenizer, "xyz", "3 2"); /* one unknown for the run */
    expect_ids(tokenizer, "x b y", "3 2 3 6 3 2");
    expect_ids(tokenizer, MARK "a", "4");
    expect_ids(tokenizer, "a" MARK "b", "4 3 6");
    expect_ids(tokenizer, "a</s>b<pad><unk>", "4 1 3 6 0 2");
    expect_ids(tokenizer, "<extra_id_0><extra_id_99>", "109 10");
    expect_ids(tokenizer, "<extra_id_100", "3 2 5 2");
    t5_tokenizer_close(tokenizer);
}

static void cuts_before_the_end(void)
{
    struct t5_tokenizer *tokenizer = open_scratch();
    int32_t ids[3];
    EXPECT(t5_tokenizer_encode(tokenizer, "a a a a", ids, 3, NULL) == 3);
    EXPECT(ids[0] == 4 && ids[1] == 4 && ids[2] == 1);
    EXPECT(t5_tokenizer_encode(tokenizer, "a", ids, 1, NULL) == 1 && ids[0] == 1);
    struct error err = {0};
    EXPECT(t5_tokenizer_encode(tokenizer, "a\xff", ids, 3, &err) == -EINVAL);
    EXPECT(strstr(err.text, "not UTF-8 (at byte 1)") != NULL, "%s", err.text);
    t5_tokenizer_close(tokenizer);
}

static void takes_extra_ids_from_the_config(void)
{
    scratch_write("tokenizer_config.json", "{\"extra_ids\": 0}", 16);
    struct t5_tokenizer *tokenizer = open_scratch();
    EXPECT(t5_tokenizer_id_count(tokenizer) == 10);
    expect_ids(tokenizer, "<extra_id_0>", "3 2 5 2");
    t5_tokenizer_close(tokenizer);
    scratch_write("tokenizer_config.json", "{\"extra_ids\": -1}", 17);
    tokenizer = NULL;
    struct error err = {0};
    EXPECT(t5_tokenizer_open(scratch_folder, &tokenizer, &err) == -EINVAL && tokenizer == NULL);
    EXPECT(strstr(err.text, "\"extra_ids\" is -1") != NULL, "%s", err.text);
    scratch_clear();
}

static void takes_long_words(void)
{
    enum { LENGTH = 1 << 20 };
    struct t5_tokenizer *tokenizer = open_scratch();
    char *text = malloc(LENGTH + 1);
    int32_t ids[16];
    memset(text, 'b', LENGTH);
    text[LENGTH] = '\0';
    clock_t start = clock();
    EXPECT(t5_tokenizer_encode(tokenizer, text, ids, 16, NULL) == 16 && ids[15] == 1);
    double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    EXPECT(seconds < 20, "%.1f s", seconds);
    free(text);
    t5_tokenizer_close(tokenizer);
}

static void expect_refused(const char *why)
{
    struct t5_tokenizer *tokenizer = NULL;
    struct error err = {0};
    write_model();
    EXPECT(t5_tokenizer_open(scratch_folder, &tokenizer, &err) == -EINVAL && tokenizer == NULL,
           "%s", why);
    EXPECT(strstr(err.text, "spiece.model: ") != NULL && strstr(err.text, why) != NULL,
           "%s lacks %s", err.text, why);
}

static void refuses_bad_models(void)
{
    static const struct {
        const char *bytes;
        size_t count;
        const char *why;
    } tails[] = {
        {"\x0a", 1, "damaged"},                                          /* no length */
        {"\x0a\x05", 2, "damaged"},                                      /* no piece */
        {"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11, "damaged"}, /* 2⁶⁴ − 1 bytes */
        {"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 11, "damaged"}, /* an endless number */
        {"\x0b", 1, "damaged"},                                          /* a group */
        {"\x0a\x02\x0a\x09", 4, "damaged"}, /* text longer than its piece */
        {"\x0a\x00", 2, "piece 10 is empty"},
        {"\x0a\x08\x0a\x01x\x15\x00\x00\xc0\x7f", 10, "piece 10 is empty or its score"}, /* NaN */
        {"\x12\x02\x18\x02", 4, "not of the unigram type"},
        {"\x1a\x05\x12\x03\x00\x00\x00", 7, "character replacements"},
        {"\x1a\x07\x12\x05\x04\x00\x00\x00\x00", 9, "character replacements"}, /* trie cut off */
        {"\x1a\x0a\x12\x08\x04\x00\x00\x00\x00\x00\x00\x00", 12, "character replacements"},
        {"\x1a\x0b\x12\x09\x04\x00\x00\x00\x00\x00\x00\x00x", 13, "character replacements"},
    };
    for (size_t i = 0; i < sizeof tails / sizeof tails[0]; i++) {
        start_model();
        add_bytes(tails[i].bytes, tails[i].count);
        expect_refused(tails[i].why);
    }
    model_bytes = 0;
    expect_refused("not a SentencePiece model");
    add_piece("</s>", 0);
    expect_refused("piece 0 is not <pad>");
    scratch_clear();
    struct t5_tokenizer *tokenizer = NULL;
    EXPECT(t5_tokenizer_open(scratch_folder, &tokenizer, NULL) == -ENOENT);
    t5_tokenizer_close(NULL);
}

/* The embedded model with its table of replacements: what the table says, and that damage anywhere
 * never leads outside of it. */
static void reads_the_charsmap(const char *path)
{
    struct piece_model mini;
    struct error err = {0};
    if (!EXPECT(piece_model_open(&mini, path, &err) == 0, "%s", err.text))
        return;
    size_t bytes = 0;
    const char *found = charsmap_find(&mini.charsmap, "\xef\xac\x81x", 4, &bytes);
    EXPECT(found != NULL && bytes == 2 && memcmp(found, "fi", 2) == 0);
    found = charsmap_find(&mini.charsmap, "e\xcc\x81", 3, &bytes);
    EXPECT(found != NULL && bytes == 2 && memcmp(found, "\xc3\xa9", 2) == 0);
    EXPECT(charsmap_find(&mini.charsmap, "e\xcc\x81", 2, &bytes) == NULL, "not beyond the end");
    EXPECT(charsmap_find(&mini.charsmap, "ab", 2, &bytes) == NULL);
    EXPECT(charsmap_find(&mini.charsmap, "", 0, &bytes) == NULL);

    size_t unit_bytes = 4 * mini.charsmap.unit_count;
    unsigned char *units = malloc(unit_bytes);
    uint32_t state = 1;
    for (int round = 0; round < 20; round++) {
        struct charsmap damaged = mini.charsmap;
        memcpy(units, damaged.units, unit_bytes);
        damaged.units = units;
        for (int i = 0; i < 5000; i++, state = state * 1664525u + 1013904223u)
            units[state % unit_bytes] = (unsigned char)(state >> 24);
        char text[3];
        for (uint32_t c = 0; c < 1u << 16; c++) {
            text[0] = (char)(0xe0 + (c >> 12));
            text[1] = (char)(0x80 + (c >> 6 & 0x3f));
            text[2] = (char)(0x80 + (c & 0x3f));
            found = charsmap_find(&damaged, text, 3, &bytes);
            if (found != NULL &&
                (found < damaged.replacements ||
                 found + bytes >= damaged.replacements + damaged.replacement_bytes))
                EXPECT(false, "U+%04X leads outside", c);
        }
    }
    free(units);
    piece_model_finish(&mini);
}

int main(int argc, char **argv)
{
    scratch_start();
    follows_the_rules();
    cuts_before_the_end();
    takes_extra_ids_from_the_config();
    takes_long_words();
    refuses_bad_models();
    if (argc > 1) {
        char path[512];
        snprintf(path, sizeof path, "%s/tokenizer_2/spiece.model", argv[1]);
        reads_the_charsmap(path);
    }
    scratch_finish();
    return test_finish();
}
