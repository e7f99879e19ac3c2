/* SPDX-License-Identifier: MIT */
#include "fs/content.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

void content_finish(struct text *text)
{
    free(text->bytes);
    *text = (struct text){0};
}

void content_clear(struct text *text)
{
    text->length = 0;
    text->failed = false;
    if (text->bytes != NULL) {
        text->bytes[0] = '\0';
    }
}

void content_drop_front(struct text *text, size_t length)
{
    if (length >= text->length) {
        content_clear(text);
    } else if (length > 0) {
        text->length -= length;
        memmove(text->bytes, text->bytes + length, text->length + 1);
    }
}

uint64_t content_hash(const struct text *text)
{
    uint64_t hash = UINT64_C(14695981039346656037);

    for (size_t i = 0; i < text->length; i++) {
        hash = (hash ^ (uint8_t)text->bytes[i]) * UINT64_C(1099511628211);
    }
    return hash;
}

void content_add_string(struct text *text, const char *string)
{
    text_add(text, string, strlen(string));
}

void content_add_time(struct text *text, int64_t ns)
{
    char shown[32];
    struct tm tm;
    time_t seconds = (time_t)(ns / 1000000000);

    gmtime_r(&seconds, &tm);
    strftime(shown, sizeof shown, "%Y-%m-%dT%H:%M:%SZ", &tm);
    content_add_string(text, shown);
}
