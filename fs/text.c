/* SPDX-License-Identifier: MIT */
#include "fs/text.h"

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

enum { PRINT_BYTES = 128 };

static bool is_control(utf8proc_int32_t code)
{
    return code < 0x20 || (code >= 0x7f && code < 0xa0);
}

const char *text_show(char shown[TEXT_SHOWN_BYTES], const char *text)
{
    static const char dots[] = "…";
    const size_t room = TEXT_SHOWN_BYTES - sizeof dots - 4;
    size_t used = 0;
    size_t left = strnlen(text, TEXT_SHOWN_BYTES);
    while (left > 0 && used < room) {
        utf8proc_int32_t code;
        utf8proc_ssize_t n =
            utf8proc_iterate((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)left, &code);
        if (n <= 0 || is_control(code)) {
            shown[used++] = '?';
            n = n <= 0 ? 1 : n;
        } else {
            memcpy(shown + used, text, (size_t)n);
            used += (size_t)n;
        }
        text += n;
        left -= (size_t)n;
    }
    if (left > 0) {
        memcpy(shown + used, dots, sizeof dots - 1);
        used += sizeof dots - 1;
    }
    shown[used] = '\0';
    return shown;
}

int text_validate(const char *bytes, size_t length, struct error *err)
{
    size_t at = 0;
    while (at < length) {
        utf8proc_int32_t code;
        utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)bytes + at,
                                              (utf8proc_ssize_t)(length - at), &code);
        if (n <= 0) {
            return error_set(err, EINVAL, "byte %zu is not UTF-8: convert the text to UTF-8",
                             at + 1);
        }
        if (is_control(code) && code != '\n' && code != '\t') {
            return error_set(err, EINVAL, "byte %zu is the control character 0x%02x: remove it",
                             at + 1, (unsigned)code);
        }
        at += (size_t)n;
    }
    return 0;
}

static bool text_reserve(struct text *text, size_t more)
{
    size_t need;
    if (text->failed || __builtin_add_overflow(text->length, more, &need) ||
        __builtin_add_overflow(need, (size_t)1, &need)) {
        text->failed = true;
        return false;
    }
    if (need > text->capacity) {
        size_t capacity = need > SIZE_MAX / 2 ? need : need * 2;
        char *bytes = realloc(text->bytes, capacity);
        if (bytes == NULL) {
            text->failed = true;
            return false;
        }
        text->bytes = bytes;
        text->capacity = capacity;
    }
    return true;
}

void text_add(struct text *text, const char *bytes, size_t length)
{
    if (text_reserve(text, length)) {
        if (length > 0) { /* else `bytes` may be NULL */
            memcpy(text->bytes + text->length, bytes, length);
        }
        text->length += length;
        text->bytes[text->length] = '\0';
    }
}

void text_print(struct text *text, const char *format, ...)
{
    va_list args;
    int length;

    /* Most of what is printed is one short line, and fits at once. */
    if (!text_reserve(text, PRINT_BYTES)) {
        return;
    }
    va_start(args, format);
    length = vsnprintf(text->bytes + text->length, text->capacity - text->length, format, args);
    va_end(args);
    if (length >= 0 && (size_t)length >= text->capacity - text->length &&
        text_reserve(text, (size_t)length)) {
        va_start(args, format);
        vsnprintf(text->bytes + text->length, (size_t)length + 1, format, args);
        va_end(args);
    }
    text->failed |= length < 0;
    text->length += text->failed ? 0 : (size_t)length;
    text->bytes[text->length] = '\0';
}

char *text_take(struct text *text)
{
    char *bytes = NULL;
    if (text->length == 0) {
        text_add(text, "", 0);
    }
    if (text->failed) {
        free(text->bytes);
    } else {
        bytes = text->bytes;
    }
    *text = (struct text){0};
    return bytes;
}
