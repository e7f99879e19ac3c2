/* SPDX-License-Identifier: MIT */
/*
 * CLIP's tokenizer: text → ids, equal to those of transformers' CLIPTokenizer
 * (huggingface/transformers models/clip/tokenization_clip.py, version 5).
 */
#ifndef FLUXFS_ENGINE_MODEL_CLIP_TOKENIZER_H
#define FLUXFS_ENGINE_MODEL_CLIP_TOKENIZER_H

#include <stdint.h>

#include "engine/error.h"

struct clip_tokenizer;

/* Reads vocab.json and merges.txt of a folder. EINVAL and a line that names the file. */
int clip_tokenizer_open(const char *folder, struct clip_tokenizer **tokenizer, struct error *err);
void clip_tokenizer_close(struct clip_tokenizer *tokenizer);

/* One more than the greatest id: the embedding table needs that many rows. */
int32_t clip_tokenizer_id_count(const struct clip_tokenizer *tokenizer);

/* Writes exactly max_tokens (≥ 2) ids: BOS, the text's (cut if too many), EOS, and EOS again up to
 * the end. Returns the place of the first EOS, where the pooled embedding is taken (a text that
 * spells `<|endoftext|>` has it earlier than the end); -EINVAL if the text isn't UTF-8, or -ENOMEM.
 */
int clip_tokenizer_encode(const struct clip_tokenizer *tokenizer, const char *text, int32_t *ids,
                          int max_tokens, struct error *err);

#endif
