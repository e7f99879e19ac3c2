/* SPDX-License-Identifier: MIT */
#include "engine/model/t5_tokenizer.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <utf8proc.h>

#include "engine/file.h"
#include "engine/json.h"
#include "engine/model/piece_model.h"
#include "engine/model/string_table.h"
#include "engine/model/text.h"

enum { PAD_ID = 0, END_ID = 1, UNKNOWN_ID = 2, EXTRA_IDS_MAX = 10000 };

/* The unit separator of SentencePiece, U+2581, which stands for the space before a word. */
static const char word_mark[] = "\xe2\x96\x81";
enum { MARK_BYTES = sizeof word_mark - 1 };

/* How much worse than the worst piece a character without a piece is. */
static const double unknown_penalty = 10.0;

struct t5_tokenizer {
    struct piece_model model;
    struct string_table specials; /* </s>, <pad>, <unk>, <extra_id_N> */
    int32_t id_count;
};

struct id_list {
    int32_t *ids;
    size_t count, capacity;
};

/* The best way to spell the word up to here ends with this piece. */
struct node {
    double score;
    size_t piece_bytes; /* 0: not reached */
    int32_t id;
};

struct buffer {
    char *data;
    size_t bytes, capacity;
};

/* Working memory of one encode. */
struct scratch {
    struct buffer clean; /* a section of the text after the replacements */
    struct buffer word;
    struct node *nodes; /* one for each byte of the word, and one more */
    int32_t *word_ids;  /* as many */
    size_t node_capacity;
};

static int read_extra_ids(const char *folder, int *extra_ids, struct error *err)
{
    *extra_ids = 100;
    char *path = file_path(folder, "tokenizer_config.json");
    if (path == NULL)
        return error_set(err, ENOMEM, "%s: out of memory", file_label(folder));
    int code = 0;
    if (access(path, F_OK) == 0) {
        struct json_file *file;
        code = json_file_open(path, 4u << 20, &file, err);
        if (code == 0) {
            struct json_reader reader = json_reader_start(file);
            *extra_ids = json_get_int_or(&reader, "extra_ids", 100, 0, EXTRA_IDS_MAX);
            code = json_reader_finish(&reader, err);
            json_file_close(file);
        }
    }
    free(path);
    return code;
}

/* The extra ids follow the pieces, the last number first. */
static int add_specials(struct t5_tokenizer *tokenizer, int extra_ids, const char *folder,
                        struct error *err)
{
    static const char *const names[] = {
        [PAD_ID] = "<pad>", [END_ID] = "</s>", [UNKNOWN_ID] = "<unk>"};
    struct piece_model *model = &tokenizer->model;
    int code = 0;
    for (int32_t id = 0; id < 3 && code == 0; id++) {
        if (string_table_find(&model->pieces, names[id], strlen(names[id])) != id)
            return error_set(err, EINVAL, "%s/spiece.model: piece %d is not %s", file_label(folder),
                             id, names[id]);
        code = string_table_put(&tokenizer->specials, names[id], strlen(names[id]), id);
    }
    for (int i = 0; i < extra_ids && code == 0; i++) {
        char name[32];
        int bytes = snprintf(name, sizeof name, "<extra_id_%d>", extra_ids - 1 - i);
        code = string_table_put(&tokenizer->specials, name, (size_t)bytes, model->piece_count + i);
    }
    tokenizer->id_count = model->piece_count + extra_ids;
    return code == 0 ? 0 : error_set(err, ENOMEM, "%s: out of memory", file_label(folder));
}

int t5_tokenizer_open(const char *folder, struct t5_tokenizer **tokenizer, struct error *err)
{
    struct t5_tokenizer *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set(err, ENOMEM, "%s: out of memory", file_label(folder));
    char *path = file_path(folder, "spiece.model");
    int code = 0, extra_ids = 0;
    if (path == NULL)
        code = error_set(err, ENOMEM, "%s: out of memory", file_label(folder));
    if (code == 0)
        code = piece_model_open(&made->model, path, err);
    if (code == 0)
        code = read_extra_ids(folder, &extra_ids, err);
    if (code == 0)
        code = add_specials(made, extra_ids, folder, err);
    free(path);
    if (code != 0)
        t5_tokenizer_close(made);
    else
        *tokenizer = made;
    return code;
}

void t5_tokenizer_close(struct t5_tokenizer *tokenizer)
{
    if (tokenizer == NULL)
        return;
    piece_model_finish(&tokenizer->model);
    string_table_finish(&tokenizer->specials);
    free(tokenizer);
}

int32_t t5_tokenizer_id_count(const struct t5_tokenizer *tokenizer)
{
    return tokenizer->id_count;
}

static int buffer_append(struct buffer *buffer, const char *text, size_t bytes)
{
    if (bytes > buffer->capacity - buffer->bytes) {
        size_t capacity = 2 * buffer->capacity + bytes + 256;
        char *grown = realloc(buffer->data, capacity);
        if (grown == NULL)
            return -ENOMEM;
        buffer->data = grown;
        buffer->capacity = capacity;
    }
    if (bytes > 0)
        memcpy(buffer->data + buffer->bytes, text, bytes);
    buffer->bytes += bytes;
    return 0;
}

/* The length of the grapheme cluster the text begins with. */
static size_t cluster_length(const char *text, size_t text_bytes)
{
    int32_t previous, character, state = 0;
    size_t at = text_character(text, text_bytes, &previous);
    while (at < text_bytes) {
        size_t bytes = text_character(text + at, text_bytes - at, &character);
        if (utf8proc_grapheme_break_stateful(previous, character, &state))
            break;
        previous = character;
        at += bytes;
    }
    return at;
}

/* Replaces characters as transformers does: a cluster of less than 6 bytes as a whole by what its
 * shortest known beginning becomes, other clusters character by character. */
static int clean_section(const struct charsmap *map, const char *text, size_t text_bytes,
                         struct buffer *clean)
{
    int code = 0;
    size_t cluster_end = 0;
    clean->bytes = 0;
    for (size_t at = 0, bytes; at < text_bytes && code == 0; at += bytes) {
        const char *replacement = NULL;
        size_t replacement_bytes = 0;
        if (at >= cluster_end) {
            bytes = cluster_length(text + at, text_bytes - at);
            cluster_end = at + bytes;
            if (bytes < 6)
                replacement = charsmap_find(map, text + at, bytes, &replacement_bytes);
        }
        if (replacement == NULL) {
            int32_t character;
            bytes = text_character(text + at, text_bytes - at, &character);
            replacement = charsmap_find(map, text + at, bytes, &replacement_bytes);
        }
        if (replacement != NULL)
            code = buffer_append(clean, replacement, replacement_bytes);
        else
            code = buffer_append(clean, text + at, bytes);
    }
    return code;
}

static int reserve_nodes(struct scratch *scratch, size_t count)
{
    if (scratch->nodes != NULL && count <= scratch->node_capacity)
        return 0;
    free(scratch->nodes);
    free(scratch->word_ids);
    scratch->nodes = calloc(count, sizeof *scratch->nodes);
    scratch->word_ids = calloc(count, sizeof *scratch->word_ids);
    scratch->node_capacity = scratch->nodes != NULL && scratch->word_ids != NULL ? count : 0;
    return scratch->node_capacity > 0 ? 0 : -ENOMEM;
}

static void improve_node(struct node *node, double score, size_t piece_bytes, int32_t id)
{
    if (node->piece_bytes == 0 || score > node->score)
        *node = (struct node){.score = score, .piece_bytes = piece_bytes, .id = id};
}

/* Viterbi over the pieces of a word (Kudo 2018). Scores are summed in double and the first of equal
 * ones wins, as in transformers: ties are common in runs of one character. */
static void spell_word(const struct piece_model *model, const char *word, size_t word_bytes,
                       struct node *nodes)
{
    double unknown_score = (double)model->least_score - unknown_penalty;
    memset(nodes, 0, (word_bytes + 1) * sizeof *nodes);
    for (size_t at = 0, character_bytes; at < word_bytes; at += character_bytes) {
        int32_t character, id;
        bool covered = false;
        double here = nodes[at].score;
        character_bytes = text_character(word + at, word_bytes - at, &character);
        struct string_walk walk = string_walk_start(&model->pieces, word + at, word_bytes - at);
        while ((id = string_walk_next(&walk)) >= 0) {
            improve_node(&nodes[at + walk.length], here + (double)model->scores[id], walk.length,
                         id);
            covered |= walk.length == character_bytes;
        }
        if (!covered)
            improve_node(&nodes[at + character_bytes], here + unknown_score, character_bytes,
                         UNKNOWN_ID);
    }
}

/* Neighbouring unknown characters become one token. */
static int encode_word(const struct piece_model *model, struct scratch *scratch,
                       struct id_list *list)
{
    int code = reserve_nodes(scratch, scratch->word.bytes + 1);
    if (code != 0)
        return code;
    spell_word(model, scratch->word.data, scratch->word.bytes, scratch->nodes);
    size_t count = 0;
    for (size_t at = scratch->word.bytes; at > 0; at -= scratch->nodes[at].piece_bytes) {
        int32_t id = scratch->nodes[at].id;
        if (id != UNKNOWN_ID || count == 0 || scratch->word_ids[count - 1] != UNKNOWN_ID)
            scratch->word_ids[count++] = id;
    }
    while (count > 0 && list->count < list->capacity)
        list->ids[list->count++] = scratch->word_ids[--count];
    return 0;
}

/* Splits at white space and puts a mark before each word that has none; a mark inside a word begins
 * a new one. */
static int encode_words(const struct piece_model *model, struct scratch *scratch,
                        struct id_list *list)
{
    const struct buffer *clean = &scratch->clean;
    struct buffer *word = &scratch->word;
    int code = 0;
    word->bytes = 0;
    for (size_t at = 0, bytes; at <= clean->bytes && code == 0 && list->count < list->capacity;
         at += bytes) {
        int32_t character = 0;
        bool inside = at < clean->bytes; /* the end finishes a word as a space does */
        bytes = inside ? text_character(clean->data + at, clean->bytes - at, &character) : 1;
        bool space = !inside || text_is_space(character), mark = character == 0x2581;
        if ((space || mark) && word->bytes > 0) {
            code = encode_word(model, scratch, list);
            word->bytes = 0;
        }
        if (code == 0 && !space && !mark && word->bytes == 0)
            code = buffer_append(word, word_mark, MARK_BYTES);
        if (code == 0 && !space)
            code = buffer_append(word, clean->data + at, bytes);
    }
    return code;
}

/* Special tokens are taken out first; the text between them is encoded section by section. */
static int encode_text(const struct t5_tokenizer *tokenizer, const char *text, size_t text_bytes,
                       struct scratch *scratch, struct id_list *list)
{
    int code = 0;
    for (size_t at = 0; code == 0 && at < text_bytes && list->count < list->capacity;) {
        int32_t id = 0;
        size_t special;
        size_t end = string_table_search(&tokenizer->specials, text, text_bytes, at, &special, &id);
        code = clean_section(&tokenizer->model.charsmap, text + at, end - at, &scratch->clean);
        if (code == 0)
            code = encode_words(&tokenizer->model, scratch, list);
        if (code == 0 && special > 0 && list->count < list->capacity)
            list->ids[list->count++] = id;
        at = end + special;
    }
    return code;
}

int t5_tokenizer_encode(const struct t5_tokenizer *tokenizer, const char *text, int32_t *ids,
                        int max_tokens, struct error *err)
{
    assert(max_tokens >= 1);
    size_t text_bytes = strlen(text);
    int code = text_check(text, text_bytes, err);
    if (code != 0)
        return code;
    struct scratch scratch = {0};
    struct id_list list = {.ids = ids, .capacity = (size_t)max_tokens - 1};
    if (encode_text(tokenizer, text, text_bytes, &scratch, &list) != 0)
        code = error_set(err, ENOMEM, "T5 tokenizer: out of memory");
    free(scratch.clean.data);
    free(scratch.word.data);
    free(scratch.nodes);
    free(scratch.word_ids);
    if (code != 0)
        return code;
    ids[list.count] = END_ID;
    for (size_t i = list.count + 1; i < (size_t)max_tokens; i++)
        ids[i] = PAD_ID;
    return (int)list.count + 1;
}
