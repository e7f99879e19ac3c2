/* SPDX-License-Identifier: MIT */
#include "engine/model/clip_tokenizer.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "engine/file.h"
#include "engine/model/bpe.h"
#include "engine/model/string_table.h"
#include "engine/model/text.h"

static const char start_token[] = "<|startoftext|>", end_token[] = "<|endoftext|>";

struct clip_tokenizer {
    struct bpe bpe;
    struct string_table specials; /* the two tokens above, and their ids */
    int32_t start_id, end_id;
};

struct id_list {
    int32_t *ids;
    size_t count, capacity;
};

static int find_special(struct clip_tokenizer *tokenizer, const char *token, int32_t *id,
                        const char *folder, struct error *err)
{
    size_t bytes = strlen(token);
    *id = string_table_find(&tokenizer->bpe.vocabulary, token, bytes);
    if (*id < 0)
        return error_set(err, EINVAL, "%s/vocab.json: token %s is missing", file_label(folder),
                         token);
    if (string_table_put(&tokenizer->specials, token, bytes, *id) != 0)
        return error_set(err, ENOMEM, "%s: out of memory", file_label(folder));
    return 0;
}

int clip_tokenizer_open(const char *folder, struct clip_tokenizer **tokenizer, struct error *err)
{
    struct clip_tokenizer *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set(err, ENOMEM, "%s: out of memory", file_label(folder));
    char *vocabulary = file_path(folder, "vocab.json");
    char *merges = file_path(folder, "merges.txt");
    int code = 0;
    if (vocabulary == NULL || merges == NULL)
        code = error_set(err, ENOMEM, "%s: out of memory", file_label(folder));
    if (code == 0)
        code = bpe_init(&made->bpe, vocabulary, merges, end_token, err);
    if (code == 0)
        code = find_special(made, start_token, &made->start_id, folder, err);
    if (code == 0)
        code = find_special(made, end_token, &made->end_id, folder, err);
    free(vocabulary);
    free(merges);
    if (code != 0)
        clip_tokenizer_close(made);
    else
        *tokenizer = made;
    return code;
}

void clip_tokenizer_close(struct clip_tokenizer *tokenizer)
{
    if (tokenizer == NULL)
        return;
    bpe_finish(&tokenizer->bpe);
    string_table_finish(&tokenizer->specials);
    free(tokenizer);
}

int32_t clip_tokenizer_id_count(const struct clip_tokenizer *tokenizer)
{
    return tokenizer->bpe.id_count;
}

/* NFC, then lower case character by character, which is why a final sigma stays an inner one. */
static char *clean_text(const char *text, size_t text_bytes, size_t *clean_bytes)
{
    utf8proc_uint8_t *composed = NULL;
    utf8proc_ssize_t bytes =
        utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)text_bytes, &composed,
                     UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    /* Lower case lengthens a few characters, by half at most (U+023A: 2 bytes become 3). */
    char *clean = bytes >= 0 ? malloc((size_t)bytes * 3 / 2 + 1) : NULL;
    size_t used = 0;
    for (size_t at = 0; clean != NULL && at < (size_t)bytes;) {
        int32_t character;
        at += text_character((const char *)composed + at, (size_t)bytes - at, &character);
        bool dotted = character == 0x130; /* İ: the one letter whose lower case is two characters */
        character = dotted ? 'i' : utf8proc_tolower(character);
        used += (size_t)utf8proc_encode_char(character, (utf8proc_uint8_t *)clean + used);
        if (dotted)
            used += (size_t)utf8proc_encode_char(0x307, (utf8proc_uint8_t *)clean + used);
    }
    free(composed);
    *clean_bytes = used;
    return clean;
}

enum character_class { CLASS_SPACE, CLASS_LETTER, CLASS_NUMBER, CLASS_OTHER };

static enum character_class classify(int32_t character)
{
    if (text_is_space(character))
        return CLASS_SPACE;
    switch (utf8proc_category(character)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
        return CLASS_LETTER;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
        return CLASS_NUMBER;
    default:
        return CLASS_OTHER;
    }
}

static bool starts_with(const char *text, size_t text_bytes, const char *start)
{
    size_t bytes = strlen(start);
    return text_bytes >= bytes && memcmp(text, start, bytes) == 0;
}

/* Where the word that begins the text ends: 's and its like; a run of letters; one digit; a run of
 * what is neither these nor space. */
static size_t word_length(const char *text, size_t text_bytes, enum character_class first)
{
    static const char *const endings[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
    for (size_t i = 0; text[0] == '\'' && i < sizeof endings / sizeof endings[0]; i++) {
        if (starts_with(text, text_bytes, endings[i]))
            return strlen(endings[i]);
    }
    size_t at = 0;
    while (at < text_bytes) {
        int32_t character;
        size_t bytes = text_character(text + at, text_bytes - at, &character);
        if (classify(character) != first)
            break;
        at += bytes;
        if (first == CLASS_NUMBER)
            break;
    }
    return at;
}

/* A special token spelt in capitals is one word for the first split and is split again by GPT-2's
 * pattern, so it ends words differently from other text: its "|>" joins nothing that follows. */
static size_t spelt_special(const char *text, size_t text_bytes)
{
    if (starts_with(text, text_bytes, start_token))
        return sizeof start_token - 1;
    return starts_with(text, text_bytes, end_token) ? sizeof end_token - 1 : 0;
}

/* Splits clean text into words and encodes each, until the list is full. */
static void encode_words(const struct bpe *bpe, struct bpe_scratch *scratch, const char *text,
                         size_t text_bytes, struct id_list *list)
{
    size_t special_end = 0;
    for (size_t at = 0; at < text_bytes && list->count < list->capacity;) {
        int32_t character;
        size_t bytes = text_character(text + at, text_bytes - at, &character);
        enum character_class first = classify(character);
        if (first == CLASS_SPACE) {
            at += bytes;
            continue;
        }
        if (at >= special_end)
            special_end = at + spelt_special(text + at, text_bytes - at);
        size_t end = special_end > at ? special_end : text_bytes;
        size_t length = word_length(text + at, end - at, first);
        list->count += bpe_encode(bpe, scratch, text + at, length, list->ids + list->count,
                                  list->capacity - list->count);
        at += length;
    }
}

static int encode_section(const struct clip_tokenizer *tokenizer, const char *text,
                          size_t text_bytes, struct id_list *list, struct error *err)
{
    size_t clean_bytes;
    char *clean = clean_text(text, text_bytes, &clean_bytes);
    struct bpe_scratch *scratch = clean != NULL ? bpe_scratch_create(clean_bytes) : NULL;
    int code = 0;
    if (scratch != NULL)
        encode_words(&tokenizer->bpe, scratch, clean, clean_bytes, list);
    else
        code = error_set(err, ENOMEM, "CLIP tokenizer: out of memory");
    bpe_scratch_destroy(scratch);
    free(clean);
    return code;
}

/* The text between special tokens is cleaned and split section by section. */
static int encode_text(const struct clip_tokenizer *tokenizer, const char *text, size_t text_bytes,
                       struct id_list *list, struct error *err)
{
    int code = 0;
    for (size_t at = 0; code == 0 && at < text_bytes && list->count < list->capacity;) {
        int32_t id = 0;
        size_t special;
        size_t end = string_table_search(&tokenizer->specials, text, text_bytes, at, &special, &id);
        code = encode_section(tokenizer, text + at, end - at, list, err);
        if (code == 0 && special > 0 && list->count < list->capacity)
            list->ids[list->count++] = id;
        at = end + special;
    }
    return code;
}

int clip_tokenizer_encode(const struct clip_tokenizer *tokenizer, const char *text, int32_t *ids,
                          int max_tokens, struct error *err)
{
    assert(max_tokens >= 2);
    size_t text_bytes = strlen(text);
    int code = text_check(text, text_bytes, err);
    if (code != 0)
        return code;
    struct id_list list = {.ids = ids + 1, .capacity = (size_t)max_tokens - 2};
    code = encode_text(tokenizer, text, text_bytes, &list, err);
    if (code != 0)
        return code;
    ids[0] = tokenizer->start_id;
    for (size_t i = 1 + list.count; i < (size_t)max_tokens; i++)
        ids[i] = tokenizer->end_id;
    int end = 1;
    while (ids[end] != tokenizer->end_id)
        end++;
    return end;
}
