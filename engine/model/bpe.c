/* SPDX-License-Identifier: MIT */
#include "engine/model/bpe.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "engine/file.h"
#include "engine/json.h"

#define VOCABULARY_MAX_BYTES (16u << 20)
#define MERGES_MAX_BYTES (16u << 20)

enum { ID_MAX = (1 << 24) - 1, TOKEN_MAX_BYTES = 1024 };

static const char word_end[] = "</w>";

static int read_vocabulary(struct bpe *bpe, const char *path, struct error *err)
{
    struct json_file *file;
    int code = json_file_open(path, VOCABULARY_MAX_BYTES, &file, err);
    if (code != 0)
        return code;
    const char *label = file_label(path);
    const char *token;
    json_t *value;
    json_object_foreach((json_t *)json_file_root(file), token, value)
    {
        json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        if (id < 0 || id > ID_MAX) {
            code = error_set(err, EINVAL, "%s: the id of token %.64s is not within 0 and %d", label,
                             token, ID_MAX);
            break;
        }
        code = string_table_put(&bpe->vocabulary, token, strlen(token), (int32_t)id);
        if (code != 0) {
            error_set(err, ENOMEM, "%s: out of memory", label);
            break;
        }
        if (id >= bpe->id_count)
            bpe->id_count = (int32_t)id + 1;
    }
    json_file_close(file);
    return code;
}

/* GPT-2's alphabet: a byte that prints in Latin-1 stands for itself, the others follow from U+0100
 * in order. */
static void find_byte_ids(struct bpe *bpe)
{
    int32_t next = 256;
    for (int byte = 0; byte < 256; byte++) {
        int prints = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
        char token[16];
        size_t bytes = (size_t)utf8proc_encode_char(prints ? byte : next++, (uint8_t *)token);
        int32_t id = string_table_find(&bpe->vocabulary, token, bytes);
        bpe->byte_ids[byte] = id >= 0 ? id : bpe->unknown;
        memcpy(token + bytes, word_end, sizeof word_end);
        id = string_table_find(&bpe->vocabulary, token, bytes + sizeof word_end - 1);
        bpe->last_byte_ids[byte] = id >= 0 ? id : bpe->unknown;
    }
}

static int add_merge(struct bpe *bpe, const char *line, size_t line_bytes, const char *label,
                     size_t line_number, struct error *err)
{
    const char *space = memchr(line, ' ', line_bytes);
    if (space == NULL || space == line || space == line + line_bytes - 1 ||
        memchr(space + 1, ' ', (size_t)(line + line_bytes - space - 1)) != NULL)
        return error_set(err, EINVAL, "%s: line %zu is not two tokens with a space between", label,
                         line_number);
    size_t left_bytes = (size_t)(space - line), right_bytes = line_bytes - left_bytes - 1;
    if (line_bytes > TOKEN_MAX_BYTES)
        return error_set(err, EINVAL, "%s: line %zu is longer than %d bytes", label, line_number,
                         TOKEN_MAX_BYTES);
    char whole[TOKEN_MAX_BYTES];
    memcpy(whole, line, left_bytes);
    memcpy(whole + left_bytes, space + 1, right_bytes);
    int32_t pair[2] = {string_table_find(&bpe->vocabulary, line, left_bytes),
                       string_table_find(&bpe->vocabulary, space + 1, right_bytes)};
    int32_t merged = string_table_find(&bpe->vocabulary, whole, left_bytes + right_bytes);
    if (pair[0] < 0 || pair[1] < 0 || merged < 0)
        return error_set(err, EINVAL,
                         "%s: line %zu: a token, or the two together, is not in the "
                         "vocabulary",
                         label, line_number);
    bpe->merged[bpe->merge_count] = merged;
    if (string_table_put(&bpe->merges, pair, sizeof pair, (int32_t)bpe->merge_count) != 0)
        return error_set(err, ENOMEM, "%s: out of memory", label);
    bpe->merge_count++;
    return 0;
}

static int parse_merges(struct bpe *bpe, const struct file_map *map, const char *label,
                        struct error *err)
{
    /* A merge takes at least 4 bytes: "a b" and the line's end. */
    bpe->merged = malloc((map->size_bytes / 4 + 1) * sizeof *bpe->merged);
    if (bpe->merged == NULL)
        return error_set(err, ENOMEM, "%s: out of memory", label);
    const char *text = (const char *)map->data, *end = text + map->size_bytes;
    for (size_t line_number = 1; text < end; line_number++) {
        const char *newline = memchr(text, '\n', (size_t)(end - text));
        const char *line = text, *line_end = newline != NULL ? newline : end;
        text = line_end + 1;
        if (line_end > line && line_end[-1] == '\r')
            line_end--;
        size_t bytes = (size_t)(line_end - line);
        if (bytes == 0 || (line_number == 1 && bytes >= 8 && memcmp(line, "#version", 8) == 0))
            continue;
        int code = add_merge(bpe, line, bytes, label, line_number, err);
        if (code != 0)
            return code;
    }
    return 0;
}

int bpe_init(struct bpe *bpe, const char *vocabulary_path, const char *merges_path,
             const char *unknown, struct error *err)
{
    *bpe = (struct bpe){0};
    int code = read_vocabulary(bpe, vocabulary_path, err);
    if (code != 0)
        return code;
    bpe->unknown = string_table_find(&bpe->vocabulary, unknown, strlen(unknown));
    if (bpe->unknown < 0)
        return error_set(err, EINVAL, "%s: token %s is missing", file_label(vocabulary_path),
                         unknown);
    find_byte_ids(bpe);
    struct file_map map;
    code = file_map_open(&map, merges_path, MERGES_MAX_BYTES, err);
    if (code != 0)
        return code;
    code = parse_merges(bpe, &map, file_label(merges_path), err);
    file_map_close(&map);
    return code;
}

void bpe_finish(struct bpe *bpe)
{
    string_table_finish(&bpe->vocabulary);
    string_table_finish(&bpe->merges);
    free(bpe->merged);
    *bpe = (struct bpe){0};
}

/* The symbols of a word are a list, linked by their places; a merge joins a symbol with the next.
 * What could merge waits in a heap; entries whose pair has changed since are skipped. */
struct symbol {
    int32_t id; /* -1: joined to the one before */
    int32_t previous, next;
};

struct candidate {
    int32_t rank, place;
};

struct bpe_scratch {
    struct candidate *heap;
    size_t heap_count;
    struct symbol symbols[];
};

struct bpe_scratch *bpe_scratch_create(size_t capacity)
{
    size_t symbol_bytes, candidate_bytes, bytes;
    /* One candidate a neighbourhood at first, and at most two more for each merge. */
    if (capacity > INT32_MAX ||
        __builtin_mul_overflow(capacity, sizeof(struct symbol), &symbol_bytes) ||
        __builtin_mul_overflow(capacity, 3 * sizeof(struct candidate), &candidate_bytes) ||
        __builtin_add_overflow(symbol_bytes, sizeof(struct bpe_scratch), &bytes))
        return NULL;
    struct bpe_scratch *scratch = malloc(bytes);
    if (scratch == NULL)
        return NULL;
    scratch->heap = malloc(candidate_bytes + 1);
    if (scratch->heap == NULL) {
        free(scratch);
        return NULL;
    }
    return scratch;
}

void bpe_scratch_destroy(struct bpe_scratch *scratch)
{
    if (scratch != NULL)
        free(scratch->heap);
    free(scratch);
}

static int comes_before(const struct candidate *a, const struct candidate *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->place < b->place;
}

static void heap_push(struct bpe_scratch *scratch, struct candidate candidate)
{
    size_t at = scratch->heap_count++;
    while (at > 0 && comes_before(&candidate, &scratch->heap[(at - 1) / 2])) {
        scratch->heap[at] = scratch->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    scratch->heap[at] = candidate;
}

static struct candidate heap_pop(struct bpe_scratch *scratch)
{
    struct candidate *heap = scratch->heap;
    struct candidate top = heap[0], last = heap[--scratch->heap_count];
    size_t count = scratch->heap_count, at = 0;
    for (size_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && comes_before(&heap[child + 1], &heap[child]))
            child++;
        if (!comes_before(&heap[child], &last))
            break;
        heap[at] = heap[child];
    }
    heap[at] = last;
    return top;
}

/* The rank of the symbol at a place together with the next one, or -1. */
static int32_t pair_rank(const struct bpe *bpe, const struct symbol *symbols, int32_t place)
{
    if (place < 0 || symbols[place].id < 0 || symbols[place].next < 0)
        return -1;
    int32_t pair[2] = {symbols[place].id, symbols[symbols[place].next].id};
    return string_table_find(&bpe->merges, pair, sizeof pair);
}

static void consider_pair(const struct bpe *bpe, struct bpe_scratch *scratch, int32_t place)
{
    int32_t rank = pair_rank(bpe, scratch->symbols, place);
    if (rank >= 0)
        heap_push(scratch, (struct candidate){.rank = rank, .place = place});
}

static void merge_pair(const struct bpe *bpe, struct bpe_scratch *scratch, struct candidate best)
{
    struct symbol *symbols = scratch->symbols;
    struct symbol *left = &symbols[best.place], *right = &symbols[left->next];
    left->id = bpe->merged[best.rank];
    right->id = -1;
    left->next = right->next;
    if (left->next >= 0)
        symbols[left->next].previous = best.place;
    consider_pair(bpe, scratch, left->previous);
    consider_pair(bpe, scratch, best.place);
}

size_t bpe_encode(const struct bpe *bpe, struct bpe_scratch *scratch, const char *word,
                  size_t word_bytes, int32_t *ids, size_t capacity)
{
    struct symbol *symbols = scratch->symbols;
    int32_t count = (int32_t)word_bytes;
    for (int32_t i = 0; i < count; i++) {
        unsigned char byte = (unsigned char)word[i];
        symbols[i].id = i == count - 1 ? bpe->last_byte_ids[byte] : bpe->byte_ids[byte];
        symbols[i].previous = i - 1;
        symbols[i].next = i == count - 1 ? -1 : i + 1;
    }
    scratch->heap_count = 0;
    for (int32_t i = 0; i < count - 1; i++)
        consider_pair(bpe, scratch, i);
    while (scratch->heap_count > 0) {
        struct candidate best = heap_pop(scratch);
        if (pair_rank(bpe, symbols, best.place) == best.rank)
            merge_pair(bpe, scratch, best);
    }
    size_t written = 0;
    for (int32_t i = 0; i >= 0 && written < capacity; i = symbols[i].next)
        ids[written++] = symbols[i].id;
    return written;
}
