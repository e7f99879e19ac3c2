/* SPDX-License-Identifier: MIT */
#include "fs/prompt.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fs/prompt_a1111.h"
#include "fs/text.h"

static const char byte_order_mark[] = "\xef\xbb\xbf";
static const float negative_true_cfg = 2.0F;

/* Options whose value is a text: unquoted, it goes on to the next option or the end of the line. */
static const char *const text_options[] = {"negative", "name"};
static const char *const all_options[] = {"steps", "guidance", "cfg",    "true-cfg",
                                          "size",  "width",    "height", "seed",
                                          "count", "negative", "name"};
#define LENGTH(array) (sizeof(array) / sizeof(array)[0])

/* One pass over the text: options go to the prompt, the rest to `text`. */
struct reader {
    const char *at, *end;
    struct text text;
    struct prompt *prompt;
    bool in_open_quote; /* the text ended before an option's value did */
};

static bool is_blank(char c)
{
    return c == ' ' || c == '\t';
}

static bool is_space(char c)
{
    return is_blank(c) || c == '\n';
}

static bool is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static bool is_option(const char *at, const char *end)
{
    return end - at > 2 && at[0] == '-' && at[1] == '-' && is_letter(at[2]);
}

static bool is_dashes(const char *at, const char *end)
{
    return end - at >= 2 && at[0] == '-' && at[1] == '-' && (end - at == 2 || is_space(at[2]));
}

static const char *word_end(const char *at, const char *end)
{
    while (at < end && !is_space(*at)) {
        at++;
    }
    return at;
}

/* Cuts blanks off both ends, and byte order marks off the front. */
static void trim(const char **at, const char **end)
{
    const size_t mark = sizeof byte_order_mark - 1;
    for (;;) {
        if (*at < *end && is_space(**at)) {
            ++*at;
        } else if ((size_t)(*end - *at) >= mark && memcmp(*at, byte_order_mark, mark) == 0) {
            *at += mark;
        } else {
            break;
        }
    }
    while (*at < *end && is_space((*end)[-1])) {
        --*end;
    }
}

static char *copy_trimmed(const char *at, const char *end)
{
    trim(&at, &end);
    return strndup(at, (size_t)(end - at));
}

static int out_of_memory(struct error *err)
{
    return error_set(err, ENOMEM, "out of memory for the prompt");
}

/* The option's value ends at the quote that it began with. */
static int read_quoted(struct reader *r, const char *name, struct text *value, struct error *err)
{
    const char quote = *r->at++;
    while (r->at < r->end && *r->at != quote) {
        char c = *r->at++;
        if (c == '\\' && r->at < r->end &&
            (*r->at == '"' || *r->at == '\'' || *r->at == '\\' || *r->at == 'n')) {
            c = *r->at == 'n' ? '\n' : *r->at;
            r->at++;
        }
        text_add(value, &c, 1);
    }
    if (r->at == r->end) {
        r->in_open_quote = true;
        return error_set(err, EINVAL, "--%s: the quote %c is not closed", name, quote);
    }
    r->at++;
    if (r->at < r->end && !is_space(*r->at)) {
        return error_set(err, EINVAL, "--%s: a space is missing after the closing quote", name);
    }
    return 0;
}

/* An unquoted text: up to the next option, a lone "--" or the end of the line. */
static void read_rest(struct reader *r, struct text *value)
{
    const char *start = r->at;
    const char *stop = start;
    while (r->at < r->end && *r->at != '\n' && !is_option(r->at, r->end) &&
           !is_dashes(r->at, r->end)) {
        stop = r->at = word_end(r->at, r->end);
        while (r->at < r->end && is_blank(*r->at)) {
            r->at++;
        }
    }
    r->at = stop;
    text_add(value, start, (size_t)(stop - start));
}

static int read_value(struct reader *r, const char *name, struct text *value, struct error *err)
{
    bool is_text = false;
    for (size_t i = 0; i < LENGTH(text_options); i++) {
        is_text = is_text || strcmp(name, text_options[i]) == 0;
    }
    bool attached = r->at < r->end && *r->at == '=';
    if (attached) {
        r->at++;
    } else {
        while (r->at < r->end && is_blank(*r->at)) {
            r->at++;
        }
    }
    if (r->at < r->end && (*r->at == '"' || *r->at == '\'')) {
        return read_quoted(r, name, value, err);
    }
    if (!attached && is_option(r->at, r->end)) {
        return error_set(err, EINVAL, "--%s: the value is missing", name);
    }
    if (is_text) {
        read_rest(r, value);
    } else {
        const char *start = r->at;
        r->at = word_end(start, r->end);
        text_add(value, start, (size_t)(r->at - start));
    }
    if (value->length == 0 && !value->failed) {
        return error_set(err, EINVAL, "--%s: the value is missing", name);
    }
    return 0;
}

static int set_name(struct prompt *prompt, const char *value, struct error *err)
{
    const char *at = value;
    const char *end = value + strlen(value);
    trim(&at, &end);
    size_t length = (size_t)(end - at);
    if (length > PROMPT_MAX_NAME_BYTES) {
        return error_set(err, EINVAL, "--name: %zu bytes are too long, at most %d are allowed",
                         length, PROMPT_MAX_NAME_BYTES);
    }
    memcpy(prompt->name, at, length);
    prompt->name[length] = '\0';
    prompt->given |= PROMPT_NAME;
    return 0;
}

static int set_negative(struct prompt *prompt, const char *at, const char *end, struct error *err)
{
    char *negative = copy_trimmed(at, end);
    if (negative == NULL) {
        return out_of_memory(err);
    }
    free(prompt->negative);
    prompt->negative = negative;
    prompt->given |= PROMPT_NEGATIVE;
    return 0;
}

/* The option that begins alike, or all of them. */
static int unknown_option(const char *name, struct error *err)
{
    char shown[TEXT_SHOWN_BYTES];
    const char *like = NULL;
    size_t best = 1;
    for (size_t i = 0; i < LENGTH(all_options); i++) {
        size_t same = 0;
        while (name[same] != '\0' && name[same] == all_options[i][same]) {
            same++;
        }
        if (same > best) {
            best = same;
            like = all_options[i];
        }
    }
    text_show(shown, name);
    if (like != NULL) {
        return error_set(
            err, EINVAL,
            "unknown option --%s: did you mean --%s? (a lone -- before it makes it text)", shown,
            like);
    }
    return error_set(err, EINVAL,
                     "unknown option --%s: there are --steps --guidance (--cfg) --true-cfg --size "
                     "--width --height --seed --count --negative --name; a lone -- ends them",
                     shown);
}

static int set_option(struct prompt *prompt, const char *name, const char *value, size_t length,
                      struct error *err)
{
    struct error inner = {0};
    if (strcmp(name, "negative") == 0) {
        return set_negative(prompt, value, value + length, err);
    }
    if (strcmp(name, "name") == 0) {
        return set_name(prompt, value, err);
    }
    int rc = prompt_values_set(&prompt->values, name, value, &prompt->given, &inner);
    return rc == 0 ? 0 : error_set(err, EINVAL, "--%s", inner.text);
}

static bool option_exists(const char *name)
{
    for (size_t i = 0; i < LENGTH(all_options); i++) {
        if (strcmp(name, all_options[i]) == 0) {
            return true;
        }
    }
    return false;
}

/* What is left of the text looks as if the option had not been there. */
static void close_gap(struct reader *r)
{
    while (r->text.length > 0 && is_blank(r->text.bytes[r->text.length - 1])) {
        r->text.length--;
    }
    if (r->text.length == 0 || r->text.bytes[r->text.length - 1] == '\n') {
        while (r->at < r->end && is_blank(*r->at)) {
            r->at++;
        }
    }
}

static int read_option(struct reader *r, struct error *err)
{
    struct text name = {0};
    struct text value = {0};
    const char *start = r->at + 2;
    int rc;
    r->at = start;
    while (r->at < r->end && !is_space(*r->at) && *r->at != '=') {
        r->at++;
    }
    text_add(&name, start, (size_t)(r->at - start));
    text_add(&value, "", 0);
    if (name.failed || value.failed) {
        rc = out_of_memory(err);
    } else if (!option_exists(name.bytes)) {
        rc = unknown_option(name.bytes, err);
    } else {
        rc = read_value(r, name.bytes, &value, err);
        if (rc == 0 && value.failed) {
            rc = out_of_memory(err);
        }
    }
    if (rc == 0) {
        rc = set_option(r->prompt, name.bytes, value.bytes, value.length, err);
    }
    close_gap(r);
    free(name.bytes);
    free(value.bytes);
    return rc;
}

/* Copies one word, or a quoted stretch, as it stands. */
static void read_word(struct reader *r)
{
    const char *start = r->at;
    if (*start == '"') {
        const char *quote = memchr(start + 1, '"', (size_t)(r->end - start - 1));
        r->at = quote == NULL ? start : quote;
    }
    r->at = word_end(r->at, r->end);
    text_add(&r->text, start, (size_t)(r->at - start));
}

static int read_text(struct reader *r, struct error *err)
{
    while (r->at < r->end) {
        if (is_space(*r->at)) {
            text_add(&r->text, r->at++, 1);
        } else if (is_dashes(r->at, r->end)) {
            r->at += 2;
            close_gap(r);
            text_add(&r->text, r->at, (size_t)(r->end - r->at));
            r->at = r->end;
        } else if (is_option(r->at, r->end)) {
            int rc = read_option(r, err);
            if (rc != 0) {
                return rc;
            }
        } else {
            read_word(r);
        }
    }
    text_add(&r->text, "", 0);
    return r->text.failed ? out_of_memory(err) : 0;
}

/* The text up to a line "Negative prompt:"; what follows is the negative, unless an option said. */
static int split_negative(struct prompt *prompt, const char *at, const char *end, struct error *err)
{
    trim(&at, &end);
    const char *line = a1111_find_negative(at, end);
    if (line != NULL && (prompt->given & PROMPT_NEGATIVE) == 0) {
        int rc = set_negative(prompt, line + A1111_NEGATIVE_BYTES, end, err);
        if (rc != 0) {
            return rc;
        }
    }
    prompt->text = copy_trimmed(at, line == NULL ? end : line);
    if (prompt->text == NULL) {
        return out_of_memory(err);
    }
    if (prompt->text[0] == '\0') {
        return error_set(err, EINVAL, "the prompt is empty: write what the image should show");
    }
    return 0;
}

/* `bytes` are checked and have newlines only. */
static int parse_body(struct prompt *prompt, const char *bytes, size_t length, bool *in_open_quote,
                      struct error *err)
{
    struct reader r = {.at = bytes, .end = bytes + length, .prompt = prompt};
    int rc;
    trim(&r.at, &r.end);
    const char *parameters = a1111_find_parameters(r.at, r.end);
    if (parameters != NULL) {
        rc = a1111_read_parameters(&prompt->values, &prompt->given, parameters, r.end, err);
        if (rc == 0) {
            rc = split_negative(prompt, r.at, parameters, err);
        }
    } else {
        rc = read_text(&r, err);
        if (rc == 0) {
            rc = split_negative(prompt, r.text.bytes, r.text.bytes + r.text.length, err);
        }
        free(r.text.bytes);
    }
    *in_open_quote = r.in_open_quote;
    if (rc == 0 && prompt->negative == NULL) {
        prompt->negative = strdup("");
        rc = prompt->negative == NULL ? out_of_memory(err) : 0;
    }
    return rc;
}

/* A copy with CR LF as LF. */
static char *copy_lines(const char *bytes, size_t length, size_t *copied)
{
    char *lines = calloc(1, length + 1);
    size_t n = 0;
    for (size_t i = 0; lines != NULL && i < length; i++) {
        if (bytes[i] != '\r' || i + 1 == length || bytes[i + 1] != '\n') {
            lines[n++] = bytes[i];
        }
    }
    *copied = n;
    return lines;
}

static int parse(struct prompt *prompt, const char *bytes, size_t length,
                 const struct prompt_values *defaults, bool *in_open_quote, struct error *err)
{
    struct prompt made = {.values = *defaults};
    struct error inner = {0};
    *in_open_quote = false;
    if (length > PROMPT_MAX_BYTES) {
        return error_set(err, EINVAL, "the prompt is longer than %d bytes: shorten it",
                         PROMPT_MAX_BYTES);
    }
    size_t copied;
    char *lines = copy_lines(bytes, length, &copied);
    if (lines == NULL) {
        return out_of_memory(err);
    }
    int rc = text_validate(lines, copied, &inner);
    if (rc != 0) {
        error_set(err, -rc, "the prompt: %s", inner.text);
    } else {
        rc = parse_body(&made, lines, copied, in_open_quote, err);
    }
    free(lines);
    if (rc != 0) {
        prompt_finish(&made);
        return rc;
    }
    if (made.negative[0] != '\0' && (made.given & PROMPT_TRUE_CFG) == 0 &&
        made.values.true_cfg <= 1) {
        made.values.true_cfg = negative_true_cfg;
    }
    *prompt = made;
    return 0;
}

int prompt_parse(struct prompt *prompt, const char *bytes, size_t length,
                 const struct prompt_values *defaults, struct error *err)
{
    bool in_open_quote;
    return parse(prompt, bytes, length, defaults, &in_open_quote, err);
}

bool prompt_complete(const char *bytes, size_t length)
{
    struct prompt_values defaults = prompt_values_default();
    struct prompt prompt = {0};
    bool in_open_quote = false;
    if (length == 0 || bytes[length - 1] != '\n') {
        return false;
    }
    if (parse(&prompt, bytes, length, &defaults, &in_open_quote, NULL) == 0) {
        prompt_finish(&prompt);
    }
    return !in_open_quote;
}

int prompt_copy(struct prompt *to, const struct prompt *from, struct error *err)
{
    struct prompt copy = *from;
    copy.text = strdup(from->text);
    copy.negative = strdup(from->negative);
    if (copy.text == NULL || copy.negative == NULL) {
        prompt_finish(&copy);
        return out_of_memory(err);
    }
    *to = copy;
    return 0;
}

void prompt_finish(struct prompt *prompt)
{
    free(prompt->text);
    free(prompt->negative);
    prompt->text = NULL;
    prompt->negative = NULL;
}
