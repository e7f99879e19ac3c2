/* SPDX-License-Identifier: MIT */
/*
 * usage: test_token_ids DATA SET CLIP-FOLDER T5-FOLDER
 *
 * The ids of both tokenizers against those of transformers, for the texts of token_ids.json
 * (made by token_ids.py). For the set "real" FLUXFS_TOKENIZERS names the folder of both instead,
 * and the test is skipped if there is none.
 */
#include <jansson.h>
#include <string.h>
#include <unistd.h>

#include "engine/model/clip_tokenizer.h"
#include "engine/model/t5_tokenizer.h"
#include "tests/test.h"

enum { TOKENS_MAX = 512, TEXTS_MIN = 300 };

struct clip_or_t5 {
    const char *name;
    const struct clip_tokenizer *clip;
    const struct t5_tokenizer *t5;
    const json_t *expected; /* a list of ids for each text, without padding */
    int max_tokens;
    int32_t padding;
};

/* The first place where the ids differ from the expected ones, then padding; -1 if nowhere. */
static int first_difference(const struct clip_or_t5 *tokenizer, const int32_t *ids,
                            const json_t *expected)
{
    int count = (int)json_array_size(expected);
    for (int i = 0; i < tokenizer->max_tokens; i++) {
        const json_t *id = json_array_get(expected, (size_t)i);
        if (ids[i] != (i < count ? json_integer_value(id) : tokenizer->padding))
            return i;
    }
    return -1;
}

static int expected_result(const struct clip_or_t5 *tokenizer, const json_t *expected)
{
    if (tokenizer->t5 != NULL)
        return (int)json_array_size(expected);
    size_t end = 0;
    while (json_integer_value(json_array_get(expected, end)) != tokenizer->padding)
        end++;
    return (int)end;
}

static void compare_texts(const struct clip_or_t5 *tokenizer, const json_t *texts)
{
    size_t index;
    json_t *text;
    json_array_foreach(texts, index, text)
    {
        const char *string = json_string_value(text);
        const json_t *expected = json_array_get(tokenizer->expected, index);
        int32_t ids[TOKENS_MAX];
        struct error err = {0};
        int result =
            tokenizer->clip != NULL
                ? clip_tokenizer_encode(tokenizer->clip, string, ids, tokenizer->max_tokens, &err)
                : t5_tokenizer_encode(tokenizer->t5, string, ids, tokenizer->max_tokens, &err);
        if (!EXPECT(result >= 0, "%s, text %zu: %s", tokenizer->name, index, err.text))
            continue;
        int place = first_difference(tokenizer, ids, expected);
        EXPECT(place < 0, "%s, text %zu \"%.60s\": id %d is %d, transformers has %d",
               tokenizer->name, index, string, place, (int)ids[place < 0 ? 0 : place],
               (int)json_integer_value(json_array_get(expected, (size_t)(place < 0 ? 0 : place))));
        EXPECT(result == expected_result(tokenizer, expected), "%s, text %zu", tokenizer->name,
               index);
    }
}

static void compare_set(const json_t *data, const char *set_name, const struct clip_tokenizer *clip,
                        const struct t5_tokenizer *t5)
{
    const json_t *texts = json_object_get(data, "texts");
    const json_t *set = json_object_get(json_object_get(data, "sets"), set_name);
    EXPECT(json_array_size(texts) >= TEXTS_MIN);
    struct clip_or_t5 tokenizers[2] = {
        {.name = "CLIP", .clip = clip, .padding = clip_tokenizer_id_count(clip) - 1},
        {.name = "T5", .t5 = t5, .padding = 0},
    };
    tokenizers[0].expected = json_object_get(set, "clip");
    tokenizers[0].max_tokens = (int)json_integer_value(json_object_get(set, "clip_tokens"));
    tokenizers[1].expected = json_object_get(set, "t5");
    tokenizers[1].max_tokens = (int)json_integer_value(json_object_get(set, "t5_tokens"));
    for (int i = 0; i < 2; i++) {
        EXPECT(json_array_size(tokenizers[i].expected) == json_array_size(texts));
        if (EXPECT(tokenizers[i].max_tokens >= 2 && tokenizers[i].max_tokens <= TOKENS_MAX))
            compare_texts(&tokenizers[i], texts);
    }
}

int main(int argc, char **argv)
{
    if (argc != 5) {
        fprintf(stderr, "usage: %s DATA SET CLIP-FOLDER T5-FOLDER\n", argv[0]);
        return EXIT_FAILURE;
    }
    const char *clip_folder = argv[3], *t5_folder = argv[4];
    const char *published = getenv("FLUXFS_TOKENIZERS");
    if (strcmp(argv[2], "real") == 0 && published != NULL)
        clip_folder = t5_folder = published;
    if (strcmp(argv[2], "real") == 0 && access(clip_folder, F_OK) != 0)
        return test_skip("no published vocabularies; FLUXFS_TOKENIZERS names their folder");
    struct clip_tokenizer *clip = NULL;
    struct t5_tokenizer *t5 = NULL;
    struct error err = {0};
    json_error_t fault;
    json_t *data = json_load_file(argv[1], 0, &fault);
    if (EXPECT(data != NULL, "%s: %s", argv[1], fault.text) &&
        EXPECT(clip_tokenizer_open(clip_folder, &clip, &err) == 0, "%s", err.text) &&
        EXPECT(t5_tokenizer_open(t5_folder, &t5, &err) == 0, "%s", err.text))
        compare_set(data, argv[2], clip, t5);
    clip_tokenizer_close(clip);
    t5_tokenizer_close(t5);
    json_decref(data);
    return test_finish();
}
