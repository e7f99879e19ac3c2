/* SPDX-License-Identifier: MIT */
/*
 * SentencePiece's model file, read as far as a unigram tokenizer needs it: the pieces with their
 * scores, and the table of character replacements. The file is one protobuf message (ModelProto in
 * google/sentencepiece src/sentencepiece_model.proto).
 *
 * SentencePiece itself isn't used: transformers, whose ids the text encoders were trained with,
 * differs from it. It sums scores in double, not float, which decides ties in runs ("?????"), and
 * replaces characters by grapheme cluster, not by longest match.
 */
#ifndef FLUXFS_ENGINE_MODEL_PIECE_MODEL_H
#define FLUXFS_ENGINE_MODEL_PIECE_MODEL_H

#include <stddef.h>
#include <stdint.h>

#include "engine/error.h"
#include "engine/file.h"
#include "engine/model/string_table.h"

/* Replacements, as a double-array trie (the format of darts-clone) from UTF-8 sequences to places
 * in a list of zero-terminated strings. Borrows from the file. */
struct charsmap {
    const unsigned char *units; /* 4 bytes each, little-endian, unaligned */
    size_t unit_count;
    const char *replacements;
    size_t replacement_bytes;
};

struct piece_model {
    struct file_map file;
    struct string_table pieces; /* piece → id */
    float *scores;              /* by id: logarithms of probabilities */
    int32_t piece_count;
    float least_score;
    struct charsmap charsmap; /* no units: characters stay as they are */
};

/* EINVAL and a line that names the file if it is not a unigram model, or is damaged; whatever the
 * code, piece_model_finish frees what there is. */
int piece_model_open(struct piece_model *model, const char *path, struct error *err);
void piece_model_finish(struct piece_model *model);

/* The replacement of the shortest sequence in the map that the text begins with, or NULL. It is
 * *bytes long, and may be empty. */
const char *charsmap_find(const struct charsmap *map, const char *text, size_t text_bytes,
                          size_t *bytes);

#endif
