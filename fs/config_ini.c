/* SPDX-License-Identifier: MIT */
#include "fs/config_ini.h"

#include <errno.h>
#include <ini.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fs/config_key.h"

struct ini_state {
    struct config *config;
    FILE *file;
    char *line; /* as it is in the file */
    size_t capacity;
    const char *long_value; /* of the pair that inih has just been given; NULL: it has all of it */
    int lines;              /* read so far */
    int bad_line;           /* the first that inih would have cut or misunderstood; 0: none */
    struct error first;     /* inih goes on after an error; only the first is told */
};

/* Makes a line that is too long for inih's buffer, which it would cut without a word, one without
 * the value; that is kept. False: it has none. */
static bool line_shorten(struct ini_state *state, char *line, char *shorter, size_t size)
{
    size_t key = strcspn(line, "=:"), end = key;
    char *value = line + key + 1;

    if (strchr(";#", line[0]) != NULL) {
        strcpy(shorter, "\n");
        return true;
    }
    while (line[end] != '\0' && !(line[end] == ';' && strchr(" \t", line[end - 1]) != NULL))
        end++;
    if (line[key] == '\0' || key + sizeof "=.\n" > size)
        return false;
    while (end > key + 1 && strchr(" \t\r\n", line[end - 1]) != NULL)
        end--;
    line[end] = '\0';
    state->long_value = value + strspn(value, " \t");
    snprintf(shorter, size, "%.*s=.\n", (int)key, line);
    return true;
}

/* A line for inih, without the blanks before it, which would make it a continuation of the value
 * above. */
static char *ini_read(char *line, int size, void *stream)
{
    struct ini_state *state = stream;
    ssize_t length = getline(&state->line, &state->capacity, state->file);
    char *text = state->line;

    if (length < 0)
        return NULL;
    state->lines++;
    state->long_value = NULL;
    if (strlen(text) == (size_t)length) {
        text += strspn(text, " \t");
        if (strlen(text) < (size_t)size)
            return strcpy(line, text);
        if (line_shorten(state, text, line, (size_t)size))
            return line;
    }
    if (state->bad_line == 0)
        state->bad_line = state->lines;
    return NULL;
}

static int ini_pair(void *user, const char *section, const char *key, const char *value)
{
    struct ini_state *state = user;
    struct error err;

    value = state->long_value != NULL ? state->long_value : value;
    if (section[0] != '\0' && strcmp(section, "fluxfs") != 0) {
        error_set(&err, EINVAL, "section [%.40s] is unknown; settings belong into [fluxfs]",
                  section);
    } else if (config_key_set(state->config, key, value, &err) == 0) {
        return 1;
    } else if (strstr(value, " #") != NULL) {
        struct error why = err;
        error_set(&err, -why.code, "%.150s; a comment begins with \" ;\"", why.text);
    }
    if (state->first.code == 0)
        state->first = err;
    return 0;
}

static int ini_load(struct config *config, const char *path, bool required, struct error *err)
{
    struct ini_state state = {.config = config, .file = fopen(path, "re")};
    int line;

    if (state.file == NULL) {
        if (errno == ENOENT && !required)
            return 0;
        return error_set(err, errno, "%.150s: %s", path, strerror(errno));
    }
    line = ini_parse_stream(ini_read, &state, ini_pair, &state);
    if (line == 0 && state.bad_line != 0) {
        line = state.bad_line;
        error_set(err, EINVAL, "%.150s:%d: is no text, or too long for what it is", path, line);
    } else if (line > 0 && state.first.code == 0)
        error_set(err, EINVAL, "%.150s:%d: is neither `key = value` nor [section]", path, line);
    else if (line > 0)
        error_set(err, -state.first.code, "%.120s:%d: %.120s", path, line, state.first.text);
    else if (line < 0 || ferror(state.file)) {
        error_set(err, EIO, "%.150s: can't be read", path);
        line = -1;
    }
    free(state.line);
    fclose(state.file);
    return line == 0 ? 0 : err->code;
}

int config_ini_load(struct config *config, const char *named, struct error *err)
{
    const char *base = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
    char path[4096];

    if (named != NULL)
        return ini_load(config, named, true, err);
    if (ini_load(config, FLUXFS_SYSTEM_FILE, false, err) != 0)
        return err->code;
    if (base != NULL && base[0] == '/')
        snprintf(path, sizeof path, "%s/fluxfs/fluxfs.ini", base);
    else if (home != NULL && home[0] == '/')
        snprintf(path, sizeof path, "%s/.config/fluxfs/fluxfs.ini", home);
    else
        return 0;
    return ini_load(config, path, false, err);
}
