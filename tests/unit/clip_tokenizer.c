/* SPDX-License-Identifier: MIT */
/* A vocabulary of its own shows the rules one by one; agreement with transformers is tested in
 * tests/golden/token_ids.c. */
#include "engine/model/clip_tokenizer.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "tests/test.h"
#include "tests/unit/scratch.h"

/* Letters, letters that end a word, what merges make of them, and the two special tokens. */
static const char vocabulary[] =
    "{\"a\":0,\"b\":1,\"c\":2,\"'\":3,\"s\":4,\"1\":5,\"!\":6,\"|\":7,"
    "\"a</w>\":10,\"b</w>\":11,\"c</w>\":12,\"'</w>\":13,\"s</w>\":14,\"1</w>\":15,\"!</w>\":16,"
    "\"\xc3\x83\":17,\"\xc2\xa9</w>\":18,\"\xc3\x8c\":19,\"\xc4\xa9</w>\":20,"
    "\"ab\":21,\"abc</w>\":22,\"bc</w>\":23,\"aa\":24,\"'s</w>\":25,\"aa</w>\":26,"
    "\"<|startoftext|>\":30,\"<|endoftext|>\":31}";
static const char merges[] = "#version: 0.2\na b\nb c</w>\nab c</w>\na a\n' s</w>\na a</w>\n";

static void write_text(const char *name, const char *text)
{
    scratch_write(name, text, strlen(text));
}

static struct clip_tokenizer *open_scratch(void)
{
    struct clip_tokenizer *tokenizer = NULL;
    struct error err = {0};
    write_text("vocab.json", vocabulary);
    write_text("merges.txt", merges);
    EXPECT(clip_tokenizer_open(scratch_folder, &tokenizer, &err) == 0, "%s", err.text);
    return tokenizer;
}

static void expect_ids(const struct clip_tokenizer *tokenizer, const char *text,
                       const char *expected)
{
    int32_t ids[12];
    struct error err = {0};
    char found[128] = "";
    int end = clip_tokenizer_encode(tokenizer, text, ids, 12, &err);
    EXPECT(end > 0 && ids[0] == 30 && ids[11] == 31, "\"%s\": %s", text, err.text);
    for (int i = 1, used = 0; i < end; i++)
        used += snprintf(found + used, sizeof found - (size_t)used, i > 1 ? " %d" : "%d", ids[i]);
    EXPECT(strcmp(found, expected) == 0, "\"%s\": %s, expected %s", text, found, expected);
}

static void follows_the_rules(void)
{
    struct clip_tokenizer *tokenizer = open_scratch();
    EXPECT(clip_tokenizer_id_count(tokenizer) == 32);
    expect_ids(tokenizer, "", "");
    expect_ids(tokenizer, "a", "10");
    expect_ids(tokenizer, "ab", "0 11");
    expect_ids(tokenizer, "abc", "22");
    expect_ids(tokenizer, "aaaa", "24 26");
    expect_ids(tokenizer, "aaab", "24 0 11");
    expect_ids(tokenizer, "ABC", "22");
    expect_ids(tokenizer,
               " a \t\n\xc2\xa0\xe3\x80\x80"
               "b ",
               "10 11");
    expect_ids(tokenizer, "11", "15 15");
    expect_ids(tokenizer, "a1a", "10 15 10");
    expect_ids(tokenizer, "a's", "10 25");
    expect_ids(tokenizer, "!'s", "6 13 14");
    expect_ids(tokenizer, "e\xcc\x81", "17 18"); /* composed, then bytes */
    expect_ids(tokenizer, "\xc3\x89", "17 18");  /* É */
    expect_ids(tokenizer, "a\xcc\x81", "17");    /* á: its second byte is not in the vocabulary */
    clip_tokenizer_close(tokenizer);
}

static void cuts_and_ends(void)
{
    struct clip_tokenizer *tokenizer = open_scratch();
    int32_t ids[4];
    struct error err = {0};
    EXPECT(clip_tokenizer_encode(tokenizer, "a b c a b c", ids, 4, &err) == 3);
    EXPECT(ids[0] == 30 && ids[1] == 10 && ids[2] == 11 && ids[3] == 31);
    EXPECT(clip_tokenizer_encode(tokenizer, "a b", ids, 2, &err) == 1);
    EXPECT(ids[0] == 30 && ids[1] == 31);
    EXPECT(clip_tokenizer_encode(tokenizer, "a<|endoftext|>b", ids, 4, &err) == 2,
           "the first end token counts");
    EXPECT(ids[1] == 10 && ids[2] == 31 && ids[3] == 31);
    EXPECT(clip_tokenizer_encode(tokenizer, "<|startoftext|>b", ids, 4, &err) == 3);
    EXPECT(ids[1] == 30 && ids[2] == 11);
    clip_tokenizer_close(tokenizer);
}

static void refuses_what_is_not_utf8(void)
{
    static const char *const bad[] = {"a\xff",        "\xc3",     "a\xe3\x80",
                                      "\xed\xa0\x80", "\xc0\xaf", "\xf5\x80\x80\x80"};
    struct clip_tokenizer *tokenizer = open_scratch();
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        int32_t ids[4];
        struct error err = {0};
        EXPECT(clip_tokenizer_encode(tokenizer, bad[i], ids, 4, &err) == -EINVAL);
        EXPECT(strstr(err.text, "not UTF-8") != NULL, "%s", err.text);
    }
    clip_tokenizer_close(tokenizer);
}

/* The longest prompts, as one word: time must not grow with the square of the length. */
static void takes_long_words(void)
{
    enum { LENGTH = 1 << 20 };
    struct clip_tokenizer *tokenizer = open_scratch();
    char *text = malloc(LENGTH + 1);
    int32_t *ids = malloc(LENGTH * sizeof *ids);
    memset(text, 'a', LENGTH);
    text[LENGTH] = '\0';
    clock_t start = clock();
    EXPECT(clip_tokenizer_encode(tokenizer, text, ids, LENGTH, NULL) == LENGTH / 2 + 1);
    EXPECT(ids[1] == 24 && ids[LENGTH / 2] == 26);
    double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    EXPECT(seconds < 20, "%.1f s", seconds);
    free(text);
    free(ids);
    clip_tokenizer_close(tokenizer);
}

static void refuses_bad_vocabularies(void)
{
    static const struct {
        const char *vocabulary, *merges, *why;
    } bad[] = {
        {"", merges, "vocab.json: broken JSON"},
        {"[]", merges, "vocab.json: the outermost JSON value is not an object"},
        {"{\"a\": \"0\"}", merges, "vocab.json: the id of token a is not within"},
        {"{\"a\": -1}", merges, "vocab.json: the id of token a is not within"},
        {"{\"a\": 16777216}", merges, "vocab.json: the id of token a is not within"},
        {"{\"a\": 1}", merges, "vocab.json: token <|endoftext|> is missing"},
        {"{\"a\": 1, \"<|endoftext|>\": 2}", "", "vocab.json: token <|startoftext|> is missing"},
        {vocabulary, "a\n", "merges.txt: line 1 is not two tokens"},
        {vocabulary, "#version\n\na b c\n", "merges.txt: line 3 is not two tokens"},
        {vocabulary, " a\n", "merges.txt: line 1 is not two tokens"},
        {vocabulary, "a \n", "merges.txt: line 1 is not two tokens"},
        {vocabulary, "a x\n", "merges.txt: line 1: a token"},
        {vocabulary, "c b\n", "merges.txt: line 1: a token"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct clip_tokenizer *tokenizer = NULL;
        struct error err = {0};
        write_text("vocab.json", bad[i].vocabulary);
        write_text("merges.txt", bad[i].merges);
        EXPECT(clip_tokenizer_open(scratch_folder, &tokenizer, &err) == -EINVAL, "%s", bad[i].why);
        EXPECT(tokenizer == NULL && strstr(err.text, bad[i].why) != NULL, "%s lacks %s", err.text,
               bad[i].why);
    }
    struct clip_tokenizer *tokenizer = NULL;
    char long_line[4096];
    memset(long_line, 'a', sizeof long_line);
    long_line[2000] = ' ';
    write_text("vocab.json", vocabulary);
    scratch_write("merges.txt", long_line, sizeof long_line);
    EXPECT(clip_tokenizer_open(scratch_folder, &tokenizer, NULL) == -EINVAL, "a line of 4 KiB");
    scratch_clear();
    EXPECT(clip_tokenizer_open(scratch_folder, &tokenizer, NULL) == -ENOENT);
    write_text("vocab.json", vocabulary);
    EXPECT(clip_tokenizer_open(scratch_folder, &tokenizer, NULL) == -ENOENT);
    clip_tokenizer_close(NULL);
}

int main(void)
{
    scratch_start();
    follows_the_rules();
    cuts_and_ends();
    refuses_what_is_not_utf8();
    takes_long_words();
    refuses_bad_vocabularies();
    scratch_finish();
    return test_finish();
}
