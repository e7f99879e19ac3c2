/* SPDX-License-Identifier: MIT */
/* Any bytes as a SentencePiece model: refused with a line of text, or read, and what its table of
 * replacements gives lies inside the file. */
#include "engine/model/piece_model.h"

#include <string.h>

#include "tests/fuzz/as_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int condition)
{
    if (!condition)
        abort();
}

static void check_charsmap(const struct piece_model *model)
{
    static const char *const texts[] = {"\xef\xac\x81", "e\xcc\x81", "a", "\xc2\xa0", "\x01\x02"};
    const char *begin = (const char *)model->file.data, *end = begin + model->file.size_bytes;
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        size_t bytes = 0;
        const char *found = charsmap_find(&model->charsmap, texts[i], strlen(texts[i]), &bytes);
        require(found == NULL || (found >= begin && found + bytes < end));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct as_file input = as_file_open(data, size);
    struct piece_model model;
    struct error err = {0};
    if (piece_model_open(&model, input.path, &err) == 0) {
        require(model.piece_count > 0 && model.pieces.key_count <= (size_t)model.piece_count);
        check_charsmap(&model);
    } else {
        require(err.code < 0 && err.text[0] != '\0' && strchr(err.text, '\n') == NULL);
    }
    piece_model_finish(&model);
    as_file_close(&input);
    return 0;
}
