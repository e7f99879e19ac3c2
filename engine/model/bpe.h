/* SPDX-License-Identifier: MIT */
/*
 * Byte-pair encoding (Sennrich et al. 2016) over the bytes of a word, as CLIP uses it: each byte is
 * a symbol, the last one another symbol (`</w>` ends it), and neighbours merge, those of the lowest
 * rank first and the leftmost among equals, until no pair is left that has a rank.
 * Bytes are written in the alphabet of GPT-2 (openai/gpt-2 src/encoder.py, bytes_to_unicode).
 */
#ifndef FLUXFS_ENGINE_MODEL_BPE_H
#define FLUXFS_ENGINE_MODEL_BPE_H

#include <stddef.h>
#include <stdint.h>

#include "engine/error.h"
#include "engine/model/string_table.h"

struct bpe {
    struct string_table vocabulary; /* token → id */
    struct string_table merges;     /* two ids as 8 bytes → rank */
    int32_t *merged;                /* by rank: the id of the two together */
    size_t merge_count;
    int32_t byte_ids[256], last_byte_ids[256]; /* `unknown` where the vocabulary has none */
    int32_t unknown;
    int32_t id_count; /* one more than the greatest id */
};

/* Reads vocab.json ({token: id}) and merges.txt (two tokens a line, in order of rank; the first
 * line may be "#version…"). `unknown` names a token of the vocabulary. EINVAL and a line that names
 * the file and the token; whatever the code, bpe_finish frees what there is. */
int bpe_init(struct bpe *bpe, const char *vocabulary_path, const char *merges_path,
             const char *unknown, struct error *err);
void bpe_finish(struct bpe *bpe);

/* Working memory for words of up to `capacity` bytes. */
struct bpe_scratch;
struct bpe_scratch *bpe_scratch_create(size_t capacity);
void bpe_scratch_destroy(struct bpe_scratch *scratch);

/* Writes the first `capacity` ids of a word of at least one byte; returns how many. */
size_t bpe_encode(const struct bpe *bpe, struct bpe_scratch *scratch, const char *word,
                  size_t word_bytes, int32_t *ids, size_t capacity);

#endif
