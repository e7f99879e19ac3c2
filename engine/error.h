/* SPDX-License-Identifier: MIT */
/*
 * What went wrong, for a person: a negative errno and one line that names the thing, the fault and,
 * where there is one, the remedy. Functions take a `struct error *` last, and return err->code.
 */
#ifndef FLUXFS_ENGINE_ERROR_H
#define FLUXFS_ENGINE_ERROR_H

#include <stdint.h>

struct error {
    int code; /* 0, or a negative errno */
    char text[256];
};

/* Sets the text and the code (-errnum), and is that code: `return error_set(err, EINVAL, …)`. A
 * NULL err is allowed; too long a text is cut; errno is kept. A macro, so that compilers and
 * analyzers see that it isn't 0. */
#define error_set(err, errnum, ...) (error_write(err, errnum, __VA_ARGS__), error_code(errnum))

void error_write(struct error *err, int errnum, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static inline int error_code(int errnum)
{
    return -errnum;
}

struct size_text {
    char text[24];
};

/* Bytes for a person: "1000 B", "1.5 KiB", "12.5 MiB", "1.25 GiB". */
struct size_text size_shown(uint64_t bytes);

/* The same with two decimals and rounded up, so that a budget of this text has room for them. */
struct size_text size_needed(uint64_t bytes);

#endif
