/* SPDX-License-Identifier: MIT */
/* The least a test needs: EXPECT reports and counts, test_finish gives the exit status. */
#ifndef FLUXFS_TESTS_TEST_H
#define FLUXFS_TESTS_TEST_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

static int test_checks, test_failures;

#define EXPECT(condition, ...)                                                                     \
    test_expect((condition), #condition, __FILE__, __LINE__, " " __VA_ARGS__)

__attribute__((format(printf, 5, 6), unused)) static bool
test_expect(bool ok, const char *condition, const char *file, int line, const char *format, ...)
{
    test_checks++;
    if (!ok) {
        va_list args;
        test_failures++;
        fprintf(stderr, "%s:%d: expected %s", file, line, condition);
        va_start(args, format);
        vfprintf(stderr, format, args);
        va_end(args);
        fputc('\n', stderr);
    }
    return ok;
}

/* A test that needs something absent exits with meson's code for "skipped". */
__attribute__((unused)) static int test_skip(const char *why)
{
    printf("skipped: %s\n", why);
    return 77;
}

__attribute__((unused)) static int test_finish(void)
{
    printf("%d checks, %d failed\n", test_checks, test_failures);
    return test_failures == 0 && test_checks > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

#endif
