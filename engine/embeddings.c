/* SPDX-License-Identifier: MIT */
#include "engine/embeddings.h"

#include <stdlib.h>
#include <string.h>

void embeddings_init(struct embeddings *embeddings, size_t tokens_floats, size_t pooled_floats)
{
    *embeddings =
        (struct embeddings){.tokens_floats = tokens_floats, .pooled_floats = pooled_floats};
}

static void embedding_destroy(struct embedding *embedding)
{
    if (embedding == NULL)
        return;
    free(embedding->prompt);
    free(embedding->tokens);
    free(embedding->pooled);
    free(embedding);
}

void embeddings_finish(struct embeddings *embeddings)
{
    while (embeddings->first != NULL) {
        struct embedding *embedding = embeddings->first;

        embeddings->first = embedding->next;
        embedding_destroy(embedding);
    }
}

struct embedding *embeddings_hold(struct embeddings *embeddings, const char *prompt)
{
    struct embedding *embedding = embeddings->first;

    while (embedding != NULL && strcmp(embedding->prompt, prompt) != 0)
        embedding = embedding->next;
    if (embedding == NULL) {
        embedding = calloc(1, sizeof *embedding);
        if (embedding == NULL)
            return NULL;
        embedding->prompt = strdup(prompt);
        embedding->tokens = malloc(embeddings->tokens_floats * sizeof(float));
        embedding->pooled = malloc(embeddings->pooled_floats * sizeof(float));
        if (embedding->prompt == NULL || embedding->tokens == NULL || embedding->pooled == NULL) {
            embedding_destroy(embedding);
            return NULL;
        }
        embedding->next = embeddings->first;
        embeddings->first = embedding;
    }
    embedding->users++;
    embedding->stamp = ++embeddings->clock;
    return embedding;
}

void embedding_release(struct embeddings *embeddings, struct embedding *embedding)
{
    struct embedding **oldest = NULL, *gone;
    size_t count = 0;

    if (embedding == NULL)
        return;
    embedding->users--;
    for (struct embedding **e = &embeddings->first; *e != NULL; e = &(*e)->next) {
        count++;
        if ((*e)->users == 0 && (oldest == NULL || (*e)->stamp < (*oldest)->stamp))
            oldest = e;
    }
    if (count > EMBEDDINGS_KEPT && oldest != NULL) {
        gone = *oldest;
        *oldest = gone->next;
        embedding_destroy(gone);
    }
}
