/* SPDX-License-Identifier: MIT */
/*
 * T5's tokenizer: text → ids, equal to those of transformers' T5Tokenizer, also known as
 * T5TokenizerFast (huggingface/transformers models/t5/tokenization_t5.py, version 5).
 */
#ifndef FLUXFS_ENGINE_MODEL_T5_TOKENIZER_H
#define FLUXFS_ENGINE_MODEL_T5_TOKENIZER_H

#include <stdint.h>

#include "engine/error.h"

struct t5_tokenizer;

/* Reads spiece.model of a folder and, if it is there, "extra_ids" (100 unless given) of
 * tokenizer_config.json. EINVAL and a line that names the file. */
int t5_tokenizer_open(const char *folder, struct t5_tokenizer **tokenizer, struct error *err);
void t5_tokenizer_close(struct t5_tokenizer *tokenizer);

/* One more than the greatest id: the embedding table needs that many rows. */
int32_t t5_tokenizer_id_count(const struct t5_tokenizer *tokenizer);

/* Writes exactly max_tokens (≥ 1) ids: the text's (cut if too many), </s>, and padding up to the
 * end. Returns how many there are with </s>; -EINVAL if the text isn't UTF-8, or -ENOMEM. */
int t5_tokenizer_encode(const struct t5_tokenizer *tokenizer, const char *text, int32_t *ids,
                        int max_tokens, struct error *err);

#endif
