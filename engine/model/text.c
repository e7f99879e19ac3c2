/* SPDX-License-Identifier: MIT */
#include "engine/model/text.h"

#include <errno.h>
#include <utf8proc.h>

int text_check(const char *text, size_t text_bytes, struct error *err)
{
    for (size_t at = 0; at < text_bytes;) {
        utf8proc_int32_t character;
        utf8proc_ssize_t bytes = utf8proc_iterate((const utf8proc_uint8_t *)text + at,
                                                  (utf8proc_ssize_t)(text_bytes - at), &character);
        if (bytes <= 0)
            return error_set(err, EINVAL, "the text is not UTF-8 (at byte %zu)", at);
        at += (size_t)bytes;
    }
    return 0;
}

size_t text_character(const char *text, size_t text_bytes, int32_t *character)
{
    utf8proc_ssize_t bytes =
        utf8proc_iterate((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)text_bytes, character);
    if (bytes <= 0) {
        *character = 0xfffd;
        return 1;
    }
    return (size_t)bytes;
}

bool text_is_space(int32_t character)
{
    if (character < 0x80)
        return character == ' ' || (character >= '\t' && character <= '\r');
    if (character == 0x85)
        return true;
    utf8proc_category_t category = utf8proc_category(character);
    return category == UTF8PROC_CATEGORY_ZS || category == UTF8PROC_CATEGORY_ZL ||
           category == UTF8PROC_CATEGORY_ZP;
}
