/* SPDX-License-Identifier: MIT */
/* The memory of prompts: held entries stay, the longest unused ones go. */
#include "engine/embeddings.h"

#include "tests/test.h"

static size_t count(const struct embeddings *embeddings)
{
    size_t n = 0;

    for (const struct embedding *e = embeddings->first; e != NULL; e = e->next)
        n++;
    return n;
}

/* Holds "prompt NUMBER". */
static struct embedding *hold(struct embeddings *embeddings, int number)
{
    char prompt[32];

    snprintf(prompt, sizeof prompt, "prompt %d", number);
    return embeddings_hold(embeddings, prompt);
}

static void test_sharing(void)
{
    struct embeddings embeddings;
    struct embedding *a, *b;

    embeddings_init(&embeddings, 12, 5);
    a = embeddings_hold(&embeddings, "a cat");
    EXPECT(a != NULL && !a->ready && a->users == 1);
    for (int i = 0; i < 12; i++) /* written whole, for the sanitizer */
        a->tokens[i] = (float)i;
    for (int i = 0; i < 5; i++)
        a->pooled[i] = (float)i;
    a->ready = true;
    b = embeddings_hold(&embeddings, "a cat");
    EXPECT(a == b && a->users == 2 && b->ready);
    b = embeddings_hold(&embeddings, "a cat ");
    EXPECT(a != b && !b->ready, "every byte counts");
    b = embeddings_hold(&embeddings, "");
    EXPECT(b != NULL && count(&embeddings) == 3);
    embedding_release(&embeddings, NULL);
    embeddings_finish(&embeddings); /* entries still held included */
    EXPECT(embeddings.first == NULL);
}

static void test_eviction(void)
{
    struct embeddings embeddings;
    struct embedding *kept, *again;

    embeddings_init(&embeddings, 3, 3);
    kept = hold(&embeddings, -1); /* the oldest, and held all the time */
    kept->ready = true;
    for (int i = 0; i < 3 * EMBEDDINGS_KEPT; i++) {
        struct embedding *e = hold(&embeddings, i);

        e->ready = true;
        embedding_release(&embeddings, e);
        if (i % 5 == 0) /* used again and again */
            embedding_release(&embeddings, hold(&embeddings, 0));
        EXPECT(count(&embeddings) <= EMBEDDINGS_KEPT);
    }
    EXPECT(count(&embeddings) == EMBEDDINGS_KEPT);
    EXPECT(hold(&embeddings, -1) == kept && kept->ready && kept->users == 2);
    again = hold(&embeddings, 0);
    EXPECT(again->ready, "what was used lately is there");
    again = hold(&embeddings, 1);
    EXPECT(!again->ready, "what was not is gone");
    embeddings_finish(&embeddings);
}

/* More held than are kept: none goes before it is released. */
static void test_many_held(void)
{
    struct embedding *held[2 * EMBEDDINGS_KEPT];
    struct embeddings embeddings;

    embeddings_init(&embeddings, 3, 3);
    for (int i = 0; i < 2 * EMBEDDINGS_KEPT; i++)
        held[i] = hold(&embeddings, i);
    EXPECT(count(&embeddings) == 2 * EMBEDDINGS_KEPT);
    for (int i = 0; i < 2 * EMBEDDINGS_KEPT; i++)
        embedding_release(&embeddings, held[i]);
    EXPECT(count(&embeddings) == EMBEDDINGS_KEPT);
    embeddings_finish(&embeddings);
}

int main(void)
{
    test_sharing();
    test_eviction();
    test_many_held();
    return test_finish();
}
