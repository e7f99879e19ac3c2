/* SPDX-License-Identifier: MIT */
/* Names of images, from prompts and from files in prompts/. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "fs/gallery.h"

/* Letters that Unicode doesn't take apart, in their case-folded form. */
static const struct {
    utf8proc_int32_t code;
    const char *ascii;
} letters[] = {
    {0x00e6, "ae"}, {0x00f0, "d"}, {0x00f8, "o"},  {0x00fe, "th"}, {0x0111, "d"}, {0x0127, "h"},
    {0x0131, "i"},  {0x0142, "l"}, {0x014b, "ng"}, {0x0153, "oe"}, {0x0167, "t"}, {0x1e9e, "ss"},
};

static bool is_apostrophe(utf8proc_int32_t code)
{
    return code == '\'' || code == 0x2019 || code == 0x02bc;
}

/* The ASCII for a folded code point, in `ascii`: letters and digits, or "" for a gap. */
static void fold(utf8proc_int32_t code, char ascii[4])
{
    ascii[0] = '\0';
    if ((code >= 'a' && code <= 'z') || (code >= '0' && code <= '9')) {
        ascii[0] = (char)code;
        ascii[1] = '\0';
    }
    for (size_t i = 0; i < sizeof letters / sizeof letters[0]; i++) {
        if (letters[i].code == code) {
            strcpy(ascii, letters[i].ascii);
        }
    }
}

/* The first bytes of the text, whole characters, decomposed and case-folded; to free. */
static char *fold_start(const char *text)
{
    utf8proc_uint8_t *folded = NULL;
    size_t length = strnlen(text, 1024);
    while (length > 0 && ((unsigned char)text[length] & 0xc0) == 0x80) {
        length--;
    }
    utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)length, &folded,
                 UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT | UTF8PROC_STRIPMARK | UTF8PROC_CASEFOLD |
                     UTF8PROC_IGNORE);
    return (char *)folded;
}

void gallery_slug(char slug[GALLERY_MAX_SLUG_BYTES + 1], const char *text)
{
    char all[GALLERY_MAX_SLUG_BYTES + 8];
    size_t used = 0;
    bool gap = false;
    char *folded = fold_start(text);
    const utf8proc_uint8_t *at = (const utf8proc_uint8_t *)folded;
    /* One byte more than fits shows whether the last word is whole. */
    while (at != NULL && *at != '\0' && used <= GALLERY_MAX_SLUG_BYTES) {
        utf8proc_int32_t code;
        char ascii[4];
        utf8proc_ssize_t n = utf8proc_iterate(at, -1, &code);
        if (n <= 0) {
            break;
        }
        at += n;
        fold(code, ascii);
        if (ascii[0] == '\0') {
            gap = gap || !is_apostrophe(code);
            continue;
        }
        if (gap && used > 0) {
            all[used++] = '-';
        }
        gap = false;
        used += (size_t)sprintf(all + used, "%s", ascii);
    }
    free(folded);
    if (used > GALLERY_MAX_SLUG_BYTES) {
        const char *dash = memrchr(all, '-', GALLERY_MAX_SLUG_BYTES + 1);
        used = dash == NULL ? GALLERY_MAX_SLUG_BYTES : (size_t)(dash - all);
    }
    all[used] = '\0';
    strcpy(slug, used == 0 ? "image" : all);
}

/* The name without its extension, and no longer than leaves room for ".png". */
static int stem_length(const char *source)
{
    const char *dot = strrchr(source, '.');
    size_t length = dot == NULL || dot == source ? strlen(source) : (size_t)(dot - source);
    if (length > GALLERY_NAME_BYTES - sizeof ".png") {
        length = GALLERY_NAME_BYTES - sizeof ".png";
        while (length > 0 && ((unsigned char)source[length] & 0xc0) == 0x80) {
            length--;
        }
    }
    return (int)length;
}

void gallery_name(char name[GALLERY_NAME_BYTES], int64_t id, const char *source, const char *hint,
                  const char *text)
{
    char slug[GALLERY_MAX_SLUG_BYTES + 1];
    if (source != NULL && source[0] != '\0') {
        snprintf(name, GALLERY_NAME_BYTES, "%.*s.png", stem_length(source), source);
        if (strcmp(name, GALLERY_LATEST) != 0) {
            return;
        }
        hint = "latest"; /* the name of the link to the newest image is taken */
    }
    gallery_slug(slug, hint != NULL && hint[0] != '\0' ? hint : text);
    snprintf(name, GALLERY_NAME_BYTES, "%04" PRId64 "-%s.png", id, slug);
}
