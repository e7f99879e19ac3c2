/* SPDX-License-Identifier: MIT */
#include "engine/json.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <sys/stat.h>

#include "tests/test.h"
#include "tests/unit/scratch.h"

static struct json_file *parse(const char *text)
{
    struct json_file *file = NULL;
    struct error err = {0};
    int code = json_file_parse("folder/config.json", text, strlen(text), &file, &err);
    EXPECT(code == 0, "%s: %s", text, err.text);
    return file;
}

static void reads_every_type(void)
{
    struct json_file *file =
        parse("{\"i\": 7, \"d\": 0.5, \"whole\": 2, \"yes\": true, \"s\": \"x\","
              " \"list\": [16, 56, 56], \"nothing\": null}");
    struct json_reader r = json_reader_start(file);
    int list[4];
    EXPECT(json_get_int(&r, "i", 1, 7) == 7);
    EXPECT(json_get_int_or(&r, "i", 9, 1, 7) == 7);
    EXPECT(json_get_int_or(&r, "absent", 9, 1, 7) == 9);
    EXPECT(json_get_int_or(&r, "nothing", 9, 1, 7) == 9, "null counts as absent");
    EXPECT(json_get_double(&r, "d", 0, 1) == 0.5);
    EXPECT(json_get_double(&r, "whole", 0, 2) == 2.0);
    EXPECT(json_get_double_or(&r, "absent", 1.5, 0, 2) == 1.5);
    EXPECT(json_get_bool(&r, "yes"));
    EXPECT(json_get_bool_or(&r, "yes", false));
    EXPECT(json_get_bool_or(&r, "absent", true));
    EXPECT(strcmp(json_get_string(&r, "s"), "x") == 0);
    EXPECT(strcmp(json_get_string_or(&r, "absent", "y"), "y") == 0);
    EXPECT(json_get_ints(&r, "list", list, 4, 100) == 3);
    EXPECT(list[0] == 16 && list[1] == 56 && list[2] == 56);
    EXPECT(json_reader_finish(&r, NULL) == 0, "%s", r.first.text);
    json_file_close(file);
}

/* Each get in turn must fail on this file, with a line that names the file and the key. */
static void expect_error(const struct json_reader *r, const char *what)
{
    struct error err = {0};
    EXPECT(json_reader_finish(r, &err) == -EINVAL, "%s", what);
    EXPECT(strstr(err.text, "folder/config.json: \"") == err.text, "%s", err.text);
    EXPECT(strstr(err.text, what) != NULL, "%s lacks %s", err.text, what);
}

static void refuses_wrong_values(void)
{
    struct json_file *file = parse("{\"i\": 8, \"big\": 4294967297, \"d\": 1.5, \"s\": \"x\","
                                   " \"empty\": [], \"mixed\": [1, \"2\"], \"zero\": [0],"
                                   " \"nothing\": null}");
    int list[2];
#define FAILS(call, what)                                                                          \
    do {                                                                                           \
        struct json_reader r = json_reader_start(file);                                            \
        (void)(call);                                                                              \
        expect_error(&r, what);                                                                    \
    } while (0)
    FAILS(json_get_int(&r, "i", 1, 7), "is 8, allowed is 1 to 7");
    FAILS(json_get_int(&r, "i", 9, 12), "is 8, allowed is 9 to 12");
    FAILS(json_get_int_or(&r, "i", 3, 1, 7), "is 8, allowed is 1 to 7");
    FAILS(json_get_int(&r, "big", 1, 7), "is 4294967297");
    FAILS(json_get_int(&r, "d", 1, 7), "\"d\" is not an integer");
    FAILS(json_get_int(&r, "absent", 1, 7), "\"absent\" is missing");
    FAILS(json_get_int(&r, "nothing", 1, 7), "\"nothing\" is missing");
    FAILS(json_get_double(&r, "d", 2, 3), "is 1.5, allowed is 2 to 3");
    FAILS(json_get_double_or(&r, "s", 2, 2, 3), "\"s\" is not a number");
    FAILS(json_get_bool(&r, "i"), "\"i\" is not true or false");
    FAILS(json_get_bool_or(&r, "i", true), "\"i\" is not true or false");
    FAILS(json_get_string(&r, "i"), "\"i\" is not a string");
    FAILS(json_get_string_or(&r, "i", ""), "\"i\" is not a string");
    FAILS(json_get_ints(&r, "i", list, 2, 9), "\"i\" is not a list");
    FAILS(json_get_ints(&r, "empty", list, 2, 9), "has 0 elements");
    FAILS(json_get_ints(&r, "mixed", list, 1, 9), "has 2 elements");
    FAILS(json_get_ints(&r, "mixed", list, 2, 9), "\"mixed\" is not an integer");
    FAILS(json_get_ints(&r, "zero", list, 2, 9), "is 0, allowed is 1 to 9");
    json_file_close(file);
}

/* As transformers writes "no limit". */
static void takes_huge_numbers(void)
{
    struct json_file *file =
        parse("{\"model_max_length\": 1000000000000000019884624838656, \"extra_ids\": 100}");
    struct json_reader r = json_reader_start(file);
    EXPECT(json_get_double(&r, "model_max_length", 1, 1e300) == 1e30);
    EXPECT(json_get_int(&r, "extra_ids", 1, 1000) == 100);
    EXPECT(json_reader_finish(&r, NULL) == 0, "%s", r.first.text);
    EXPECT(json_get_int(&r, "model_max_length", 1, 1000) == 1);
    expect_error(&r, "is 1e+30, allowed is 1 to 1000");
    json_file_close(file);
}

static void keeps_the_first_error(void)
{
    struct json_file *file = parse("{\"i\": 8}");
    struct json_reader r = json_reader_start(file);
    json_get_int(&r, "first", 1, 9);
    json_get_int(&r, "second", 1, 9);
    EXPECT(json_get_int(&r, "i", 1, 9) == 1, "after an error the least value allowed");
    expect_error(&r, "\"first\" is missing");
    json_file_close(file);
}

static void refuses_broken_text(void)
{
    static const struct {
        const char *text, *why;
    } broken[] = {
        {"", "broken JSON"},
        {"{\"a\": 1", "broken JSON"},
        {"{\"a\": 1} x", "end of file expected"},
        {"{\"a\": 1, \"a\": 2}", "duplicate"},
        {"{\"a\": 1e999}", "real number overflow"},
        {"{\"a\": NaN}", "broken JSON"},
        {"{\"a\": \"\xff\"}", "unable to decode byte"},
        {"{\"a\": \"\\u0000\"}", "\\u0000"},
        {"[1]", "not an object"},
    };
    for (size_t i = 0; i < sizeof broken / sizeof broken[0]; i++) {
        struct json_file *file = NULL;
        struct error err = {0};
        int code =
            json_file_parse("config.json", broken[i].text, strlen(broken[i].text), &file, &err);
        EXPECT(code == -EINVAL && file == NULL, "%s", broken[i].text);
        EXPECT(strstr(err.text, "config.json: ") == err.text, "%s", err.text);
        EXPECT(strstr(err.text, broken[i].why) != NULL, "%s lacks %s", err.text, broken[i].why);
        EXPECT(strpbrk(err.text, "\n\r\t") == NULL, "%s", err.text);
    }
}

static void refuses_deep_nesting(void)
{
    enum { DEPTH = 100000 };
    char *text = malloc(DEPTH + 6);
    memcpy(text, "{\"a\":", 5);
    memset(text + 5, '[', DEPTH);
    struct json_file *file = NULL;
    struct error err = {0};
    EXPECT(json_file_parse("config.json", text, DEPTH + 5, &file, &err) == -EINVAL);
    EXPECT(strstr(err.text, "depth") != NULL, "%s", err.text);
    free(text);
}

static void opens_regular_files_only(void)
{
    struct json_file *file = NULL;
    struct error err = {0};
    EXPECT(json_file_open(scratch_path("absent.json"), 100, &file, &err) == -ENOENT);
    EXPECT(strstr(err.text, "absent.json: No such file") != NULL, "%s", err.text);
    EXPECT(json_file_open(scratch_folder, 100, &file, &err) == -EINVAL);
    EXPECT(strstr(err.text, "not a regular file") != NULL, "%s", err.text);
    EXPECT(mkfifo(scratch_path("fifo"), 0600) == 0);
    EXPECT(json_file_open(scratch_path("fifo"), 100, &file, &err) == -EINVAL);
    const char *path = scratch_write("long.json", "{\"a\":    1}", 11);
    EXPECT(json_file_open(path, 10, &file, &err) == -EFBIG);
    EXPECT(strstr(err.text, "11 bytes, at most 10") != NULL, "%s", err.text);
    EXPECT(json_file_open(path, 11, &file, &err) == 0, "%s", err.text);
    json_file_close(file);
    EXPECT(json_file_open(scratch_write("empty.json", "", 0), 10, &file, &err) == -EINVAL);
    json_file_close(NULL);
}

int main(void)
{
    scratch_start();
    reads_every_type();
    refuses_wrong_values();
    takes_huge_numbers();
    keeps_the_first_error();
    refuses_broken_text();
    refuses_deep_nesting();
    opens_regular_files_only();
    scratch_finish();
    return test_finish();
}
