/* SPDX-License-Identifier: MIT */
/* Any text through both tokenizers, with the embedded vocabularies: UTF-8 is encoded, all else is
 * refused, and ids stay within the vocabulary. */
#include <stdlib.h>
#include <string.h>

#include "engine/model/clip_tokenizer.h"
#include "engine/model/t5_tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { TOKENS = 77 };

static struct clip_tokenizer *clip;
static struct t5_tokenizer *t5;

static void require(int condition)
{
    if (!condition)
        abort();
}

static void check_ids(const int32_t *ids, int32_t id_count)
{
    for (int i = 0; i < TOKENS; i++)
        require(ids[i] >= 0 && ids[i] < id_count);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (clip == NULL)
        require(clip_tokenizer_open(SOURCE_ROOT "/etc/mini/tokenizer", &clip, NULL) == 0 &&
                t5_tokenizer_open(SOURCE_ROOT "/etc/mini/tokenizer_2", &t5, NULL) == 0);
    char *text = malloc(size + 1);
    require(text != NULL);
    memcpy(text, data, size);
    text[size] = '\0';
    int32_t ids[TOKENS];
    struct error err = {0};
    int end = clip_tokenizer_encode(clip, text, ids, TOKENS, &err);
    if (end >= 0) {
        require(end >= 1 && end < TOKENS);
        check_ids(ids, clip_tokenizer_id_count(clip));
    }
    int count = t5_tokenizer_encode(t5, text, ids, TOKENS, &err);
    if (count >= 0) {
        require(count >= 1 && count <= TOKENS);
        check_ids(ids, t5_tokenizer_id_count(t5));
    }
    require((end < 0) == (count < 0));
    free(text);
    return 0;
}
