/* SPDX-License-Identifier: MIT */
/*
 * A module of this build is opened; of one of another, in which a structure is larger, it is told
 * which file doesn't fit, and what to do.
 * usage: module FOLDER
 */
#include "engine/module.h"

#include <string.h>

#include "tests/test.h"

static struct error err;

static int try_module(const char *folder, const char *name)
{
    struct backend *backend = NULL;
    int result = module_open(&backend, folder, name, &err);

    printf("%s\n", err.text);
    EXPECT(backend == NULL && err.code == result);
    return result;
}

int main(int argc, char **argv)
{
    static const char *const others[] = {"fluxfs-backend.so", "fluxfs-copy.so"};

    if (argc != 2)
        return test_skip("usage: module FOLDER");
    EXPECT(try_module(argv[1], "none") == -ENOENT);
    EXPECT(try_module(argv[1], "same") == -ENODEV && strcmp(err.text, "no such device") == 0);
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        EXPECT(try_module(argv[1], i == 0 ? "backend" : "copy") == -EPROTO);
        EXPECT(strstr(err.text, others[i]) != NULL && strstr(err.text, "another build") != NULL &&
                   strstr(err.text, "install both") != NULL,
               "%s", err.text);
    }
    return test_finish();
}
