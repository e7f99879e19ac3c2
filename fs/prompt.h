/* SPDX-License-Identifier: MIT */
/*
 * What a person writes to `new`: text, options and A1111 parameter text, read and written back.
 *
 *   a red fox --steps 20 --guidance 2.0 --size 768x512 --seed 7 --count 4 --negative "blurry"
 *
 * Options stand anywhere in the text, as words of their own: --NAME VALUE or --NAME=VALUE, a later
 * one wins. A value with blanks is quoted, "…" or '…', with \" \' \\ and \n inside; unquoted,
 * --negative and --name take all up to the next option or the end of the line. In the text nothing
 * is unquoted or unescaped (quotes there are for the model to paint), but a stretch in "…" that
 * starts a word holds no options, and a lone `--` ends them: what follows is text.
 *
 *   --steps N          1 … 1000, or `auto`: as the model likes
 *   --guidance X       distilled guidance, 0 … 100; --cfg is the same
 *   --true-cfg X       true classifier-free guidance, 1 (off) … 100
 *   --size WxH         also N, a square; --width N and --height N alone. Multiples of 16, or `auto`
 *   --seed N           0 … 2⁶³ − 1, or `random` (also -1)
 *   --count N          1 … 64 images, with seeds N, N + 1, …
 *   --negative TEXT    what should not be there; implies --true-cfg 2 where no other is known
 *   --name TEXT        a hint for the file's name
 *
 * The other form is what A1111 and its kin write into PNGs, and what we write into ours:
 *
 *   a red fox
 *   Negative prompt: blurry
 *   Steps: 20, Sampler: Euler, CFG scale: 2, Seed: 7, Size: 768x512
 *
 * It is taken when the last line begins with `Steps: ` and a digit, or with another of these keys
 * and holds three pairs or more. Its text is literal, without options. Keys we don't know are
 * ignored. `CFG scale` is --guidance; but beside `Distilled CFG Scale`, which then is --guidance,
 * it is --true-cfg (as Forge writes it). A `Negative prompt:` line is understood in both forms.
 *
 * CR LF counts as LF and a leading byte order mark as nothing; blanks around texts are cut.
 */
#ifndef FLUXFS_FS_PROMPT_H
#define FLUXFS_FS_PROMPT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/error.h"

enum {
    PROMPT_MAX_BYTES = 65536, /* of everything written */
    PROMPT_MAX_STEPS = 1000,
    PROMPT_MAX_COUNT = 64,
    PROMPT_SIDE_STEP_PX = 16,
    PROMPT_MAX_SIDE_PX = 4096, /* no model takes more; some take less (engine_check) */
    PROMPT_MAX_NAME_BYTES = 127,
    PROMPT_VALUE_BYTES = 32, /* holds any value as text, NUL included */
};

/* One bit for each value that the prompt itself gave. */
enum prompt_given {
    PROMPT_STEPS = 1 << 0,
    PROMPT_GUIDANCE = 1 << 1,
    PROMPT_TRUE_CFG = 1 << 2,
    PROMPT_WIDTH = 1 << 3,
    PROMPT_HEIGHT = 1 << 4,
    PROMPT_SEED = 1 << 5,
    PROMPT_COUNT = 1 << 6,
    PROMPT_NEGATIVE = 1 << 7,
    PROMPT_NAME = 1 << 8,
};

/* The numbers of a prompt, and the defaults for them. */
struct prompt_values {
    int steps;        /* 0: as the model likes (not known while it loads) */
    int width_px;     /* 0: likewise */
    int height_px;    /* 0: likewise */
    int count;        /* images asked for */
    float guidance;   /* distilled guidance */
    float true_cfg;   /* 1: off */
    bool seed_random; /* `seed` means nothing until prompt_values_settle */
    uint64_t seed;    /* below 2⁶³ */
};

struct prompt {
    char *text;                           /* UTF-8, never empty after prompt_parse; owned */
    char *negative;                       /* UTF-8, "" if none; owned */
    char name[PROMPT_MAX_NAME_BYTES + 1]; /* hint for the file's name, or "" */
    struct prompt_values values;
    unsigned given; /* enum prompt_given */
};

/* Steps and size 0, guidance 3.5, true CFG 1, count 1, a random seed. */
struct prompt_values prompt_values_default(void);

/* Sets one value from its text, as options, A1111 keys, config files and control/ all do. `name`
 * is an option without its dashes: steps, guidance, cfg, true-cfg, size, width, height, seed,
 * count;
 * `_` may stand for `-`. `given` gets the bits of what was set; may be NULL.
 * Failure: EINVAL, the text says which value and what is allowed; ENOENT for a name that is none.
 */
int prompt_values_set(struct prompt_values *values, const char *name, const char *value,
                      unsigned *given, struct error *err);

/* The text of one value, such that prompt_values_set takes it back exactly: "20", "3.5", "768x512",
 * "random". Failure: ENOENT. */
int prompt_values_get(const struct prompt_values *values, const char *name,
                      char text[PROMPT_VALUE_BYTES], struct error *err);

/* Replaces what is still open: steps and sides of 0 by the model's own, a random seed by one drawn
 * from the kernel (below 2³²). Afterwards the same values make the same image. */
void prompt_values_settle(struct prompt_values *values, int default_steps, int native_px);

/* Whether the bytes could be a whole prompt: they end in a newline and in no open quoted value.
 * write() then parses at once, so that a mistake is told by write() and not by close(). */
bool prompt_complete(const char *bytes, size_t length);

/* Reads one prompt over defaults. On success the caller owns `prompt` (prompt_finish); on failure
 * it is untouched. Failure: EINVAL with a reason that says what to do (empty, longer than 64 KiB,
 * not UTF-8, NUL or control characters, an unknown option, a value missing or out of range);
 * ENOMEM. */
int prompt_parse(struct prompt *prompt, const char *bytes, size_t length,
                 const struct prompt_values *defaults, struct error *err);

/* A deep copy. Failure: ENOMEM. */
int prompt_copy(struct prompt *to, const struct prompt *from, struct error *err);

/* Frees the texts; fine on a zeroed prompt, and twice. */
void prompt_finish(struct prompt *prompt);

/* The A1111 text for a PNG of this prompt (settled; the count is not part of it). prompt_parse
 * makes the same text, negative and values of it, numbers to the last bit. `model` adds a `Model:`
 * pair; NULL: none. Returns a string to free, or NULL when memory is short. */
char *prompt_format_parameters(const struct prompt *prompt, const char *model);

/* The same as lines `steps=20`, one for each value, open ones left out; for jobs/<id>/parameters.
 * `negative` and `name` come last, where there are any, with \n and \\ escaped. */
char *prompt_format_values(const struct prompt *prompt);

#endif
