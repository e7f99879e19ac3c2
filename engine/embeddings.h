/* SPDX-License-Identifier: MIT */
/*
 * Text embeddings on the host, remembered for recent prompts: who draws a draft and then the final
 * picture of a prompt waits for the text encoders once.
 */
#ifndef FLUXFS_ENGINE_EMBEDDINGS_H
#define FLUXFS_ENGINE_EMBEDDINGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { EMBEDDINGS_KEPT = 32 };

struct embedding {
    char *prompt;
    float *tokens; /* from T5, [t5 tokens, t5 width] */
    float *pooled; /* from CLIP, [clip width] */
    bool ready;    /* false until the text encoders have run */
    int users;     /* images that hold it */
    uint64_t stamp;
    struct embedding *next;
};

struct embeddings {
    struct embedding *first;
    uint64_t clock;
    size_t tokens_floats, pooled_floats;
};

void embeddings_init(struct embeddings *embeddings, size_t tokens_floats, size_t pooled_floats);
void embeddings_finish(struct embeddings *embeddings);

/* The entry of a prompt, new (not ready) if it isn't there; NULL if the host is out of memory. The
 * caller holds it until embedding_release. */
struct embedding *embeddings_hold(struct embeddings *embeddings, const char *prompt);
/* Entries that nobody holds go when there are more than EMBEDDINGS_KEPT, the oldest first. NULL is
 * allowed. */
void embedding_release(struct embeddings *embeddings, struct embedding *embedding);

#endif
