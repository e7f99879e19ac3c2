/* SPDX-License-Identifier: MIT */
/* The grammar of prompts: what is taken, what is refused and how, and exact round trips. */
#include "tests/test.h"

#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "fs/prompt.h"

static const struct prompt_values house = {.steps = 28,
                                           .width_px = 512,
                                           .height_px = 256,
                                           .count = 1,
                                           .guidance = 3.5F,
                                           .true_cfg = 1,
                                           .seed_random = true};

static struct prompt parse(const char *text)
{
    struct prompt prompt = {0};
    struct error err = {0};
    int rc = prompt_parse(&prompt, text, strlen(text), &house, &err);
    EXPECT(rc == 0, "\"%s\": %s", text, err.text);
    if (rc != 0) {
        prompt.text = strdup("");
        prompt.negative = strdup("");
    }
    return prompt;
}

static void expect_text(const char *input, const char *text, const char *negative)
{
    struct prompt prompt = parse(input);
    EXPECT(strcmp(prompt.text, text) == 0, "in \"%s\": \"%s\"", input, prompt.text);
    EXPECT(strcmp(prompt.negative, negative) == 0, "in \"%s\": \"%s\"", input, prompt.negative);
    prompt_finish(&prompt);
}

static void expect_refused(const char *input, size_t length, const char *reason)
{
    struct prompt prompt = {0};
    struct error err = {0};
    int rc = prompt_parse(&prompt, input, length, &house, &err);
    EXPECT(rc == -EINVAL && err.code == rc, "\"%s\": %d", input, rc);
    EXPECT(strstr(err.text, reason) != NULL, "\"%s\": \"%s\"", input, err.text);
    EXPECT(prompt.text == NULL);
    prompt_finish(&prompt);
}

static void test_options(void)
{
    struct prompt p = parse("a red fox --steps 20 --guidance 2.0 --size 768x512 --seed 7 --count 4 "
                            "--negative \"blurry\"\n");
    EXPECT(strcmp(p.text, "a red fox") == 0, "\"%s\"", p.text);
    EXPECT(strcmp(p.negative, "blurry") == 0);
    EXPECT(p.values.steps == 20 && p.values.guidance == 2.0F);
    EXPECT(p.values.width_px == 768 && p.values.height_px == 512);
    EXPECT(p.values.seed == 7 && !p.values.seed_random && p.values.count == 4);
    EXPECT(p.given == (PROMPT_STEPS | PROMPT_GUIDANCE | PROMPT_WIDTH | PROMPT_HEIGHT | PROMPT_SEED |
                       PROMPT_COUNT | PROMPT_NEGATIVE));
    EXPECT(p.values.true_cfg == 2, "a negative alone turns true CFG on");
    prompt_finish(&p);

    p = parse("fox");
    EXPECT(p.given == 0 && p.values.steps == 28 && p.values.width_px == 512);
    EXPECT(p.values.seed_random && p.values.count == 1 && p.values.true_cfg == 1);
    prompt_finish(&p);

    p = parse("--cfg=4.5 --true-cfg 3 --width 1024 --height=auto --seed -1 fox --name 'my fox'");
    EXPECT(p.values.guidance == 4.5F && p.values.true_cfg == 3 && p.values.width_px == 1024);
    EXPECT(p.values.height_px == 0 && p.values.seed_random);
    EXPECT(strcmp(p.name, "my fox") == 0, "\"%s\"", p.name);
    EXPECT(strcmp(p.text, "fox") == 0, "\"%s\"", p.text);
    prompt_finish(&p);

    p = parse(
        "fox --steps 3 --steps 4 --size 64 --seed 9223372036854775807 --negative x --true-cfg 1");
    EXPECT(p.values.steps == 4, "a later one wins");
    EXPECT(p.values.width_px == 64 && p.values.height_px == 64);
    EXPECT(p.values.seed == INT64_MAX && p.values.true_cfg == 1);
    prompt_finish(&p);

    p = parse("fox --size 128×64 --steps auto");
    EXPECT(p.values.width_px == 128 && p.values.height_px == 64 && p.values.steps == 0);
    prompt_finish(&p);
}

static void test_text(void)
{
    expect_text("  a fox \n\n", "a fox", "");
    expect_text("a fox --steps 3 in snow", "a fox in snow", "");
    expect_text("a fox\n--steps 3\nin snow", "a fox\n\nin snow", "");
    expect_text("--steps 3 a fox", "a fox", "");
    expect_text("a fox\n--steps 3 in snow", "a fox\nin snow", "");
    expect_text("a sign \"mind --steps and\ngaps\" --steps 3", "a sign \"mind --steps and\ngaps\"",
                "");
    expect_text("a 12\" pizza --steps 3", "a 12\" pizza", "");
    expect_text("one \" quote --steps 3", "one \" quote", "");
    expect_text("dog's bone --steps 3", "dog's bone", "");
    expect_text("a --- b --1 -x", "a --- b --1 -x", "");
    expect_text("a fox -- with --steps and -- more", "a fox with --steps and -- more", "");
    expect_text("-- --steps", "--steps", "");
    expect_text("a\r\nb\r\n", "a\nb", "");
    expect_text("\xef\xbb\xbf a fox", "a fox", "");
    expect_text("caf\xc3\xa9 \xf0\x9f\xa6\x8a\t--seed\t3", "caf\xc3\xa9 \xf0\x9f\xa6\x8a", "");
    expect_text("fox --negative blurry, ugly --steps 3", "fox", "blurry, ugly");
    expect_text("fox --negative blurry, ugly\nin snow", "fox\nin snow", "blurry, ugly");
    expect_text("fox --negative 'it\\'s \"bad\"\\nvery \\\\ \\x' snow", "fox snow",
                "it's \"bad\"\nvery \\ \\x");
    expect_text("fox --negative \"\" --steps 2", "fox", "");
}

/* What is refused, and a part of the reason. */
static const struct {
    const char *input, *reason;
} refused[] = {
    {"", "empty"},
    {" \n\t\n", "empty"},
    {"--steps 20\n", "empty"},
    {"Negative prompt: blurry\n", "empty"},
    {"Steps: 20, Seed: 3", "empty"},
    {"x --steps 0", "--steps 0: must be a whole number from 1 to 1000"},
    {"x --steps 1001", "from 1 to 1000"},
    {"x --steps 2.5", "whole number"},
    {"x --steps 99999999999999999999999", "--steps 9999"},
    {"x --steps", "--steps: the value is missing"},
    {"x --steps\n20", "--steps: the value is missing"},
    {"x --steps= 20", "--steps: the value is missing"},
    {"x --steps --seed 3", "--steps: the value is missing"},
    {"x --guidance nan", "--guidance nan: must be a number"},
    {"x --guidance inf", "a number from 0 to 100"},
    {"x --guidance -1", "a number from 0 to 100"},
    {"x --guidance 1e999", "a number from 0 to 100"},
    {"x --guidance 0x10", "a number"},
    {"x --guidance 3,5", "a number"},
    {"x --guidance 2.0.1", "a number"},
    {"x --true-cfg 0.5", "from 1 to 100"},
    {"x --size 770x512", "multiple of 16: try 768 or 784"},
    {"x --size 0x512", "from 16 to 4096"},
    {"x --size 4112x16", "from 16 to 4096"},
    {"x --size 768x", "WIDTHxHEIGHT"},
    {"x --size x768", "WIDTHxHEIGHT"},
    {"x --size 768x512x3", "--size: height 512x3"},
    {"x --size 99999999999999999999x16", "--size"},
    {"x --width -16", "from 16"},
    {"x --seed 9223372036854775808", "2^63"},
    {"x --seed 18446744073709551617", "2^63"},
    {"x --seed -2", "2^63"},
    {"x --seed 1.5", "whole number"},
    {"x --count 0", "from 1 to 64"},
    {"x --count 65", "from 1 to 64"},
    {"x --step 3", "unknown option --step: did you mean --steps?"},
    {"x --ar 16:9", "unknown option --ar: there are --steps"},
    {"x --Steps 3", "unknown option --Steps"},
    {"x --negative \"open", "quote \" is not closed"},
    {"x --negative 'a'b", "space is missing"},
    {"x --negative", "value is missing"},
    {"a \x1b[31m", "control character 0x1b"},
    {"a \x7f", "0x7f"},
    {"a \xc2\x85", "0x85"},
    {"a\rb", "0x0d"},
    {"a \xff", "byte 3 is not UTF-8"},
    {"a \xc0\xaf", "not UTF-8"},
    {"a \xed\xa0\x80", "not UTF-8"},
    {"a \xe2\x82", "not UTF-8"},
    {"x\nSteps: 0", "\"Steps:\" in the last line"},
    {"x\nSteps: 20, Seed: 9223372036854775808", "\"Seed:\" in the last line"},
    {"x\nSteps: 20, Size: 100x100", "multiple of 16: try 96 or 112"},
    {"x\nSteps: many, Seed: 1, Size: 64x64", "\"Steps:\""},
};

static void test_refusals(void)
{
    static char big[PROMPT_MAX_BYTES + 1];
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        expect_refused(refused[i].input, strlen(refused[i].input), refused[i].reason);
    }
    expect_refused("a\0b", 3, "byte 2 is the control character 0x00");
    memset(big, 'x', sizeof big);
    expect_refused(big, sizeof big, "longer than 65536 bytes");
    struct prompt prompt = {0};
    EXPECT(prompt_parse(&prompt, big, sizeof big - 1, &house, NULL) == 0);
    prompt_finish(&prompt);
    char name[200] = "x --name ";
    memset(name + 9, 'n', 128);
    expect_refused(name, strlen(name), "128 bytes are too long");
}

static void test_a1111(void)
{
    struct prompt p = parse("a red fox --steps 9\nin snow\nNegative prompt: blurry,\nugly\n"
                            "Steps: 20, Sampler: DPM++ 2M, CFG scale: 2, Seed: 7, Size: 768x512\n");
    EXPECT(strcmp(p.text, "a red fox --steps 9\nin snow") == 0, "\"%s\"", p.text);
    EXPECT(strcmp(p.negative, "blurry,\nugly") == 0, "\"%s\"", p.negative);
    EXPECT(p.values.steps == 20 && p.values.guidance == 2 && p.values.seed == 7);
    EXPECT(p.values.width_px == 768 && p.values.height_px == 512 && p.values.true_cfg == 2);
    prompt_finish(&p);

    p = parse(
        "fox\nsteps: 4, Model: \"a, Seed: 1, b\\\"\", Distilled CFG Scale: 3, cfg scale: 1.5, "
        "Hires: x, Seed: -1");
    EXPECT(p.values.steps == 4 && p.values.guidance == 3 && p.values.true_cfg == 1.5F);
    EXPECT(p.values.seed_random, "the pair in quotes is none");
    prompt_finish(&p);

    expect_text("fox\nSteps: 4", "fox", "");
    expect_text("fox\nSteps: going up", "fox\nSteps: going up", "");
    expect_text("fox\nSize: big, Seed: none", "fox\nSize: big, Seed: none", "");
    expect_text("fox\nColour: red, Mood: blue, Sky: low", "fox\nColour: red, Mood: blue, Sky: low",
                "");
    expect_text("fox\nNegative prompt: blurry --steps 3", "fox", "blurry");
    expect_text("fox\nNegative prompt: blurry --negative ugly", "fox", "ugly");
    expect_text("fox\n Negative prompt: kept", "fox\n Negative prompt: kept", "");
}

/* Writes the prompt out, reads it over quite other defaults, and compares. */
static void expect_round_trip(struct prompt *from)
{
    static const struct prompt_values other = {
        .steps = 3, .width_px = 16, .height_px = 16, .count = 2, .guidance = 1, .true_cfg = 7};
    struct prompt to = {0};
    struct error err = {0};
    prompt_values_settle(&from->values, 30, 256);
    char *text = prompt_format_parameters(from, "odd, \"name\"");
    if (!EXPECT(prompt_parse(&to, text, strlen(text), &other, &err) == 0, "%s: %s", text,
                err.text)) {
        free(text);
        return;
    }
    EXPECT(strcmp(to.text, from->text) == 0, "\"%s\"", text);
    EXPECT(strcmp(to.negative, from->negative) == 0, "\"%s\"", text);
    EXPECT(to.values.steps == from->values.steps && to.values.seed == from->values.seed, "%s",
           text);
    EXPECT(to.values.width_px == from->values.width_px, "%s", text);
    EXPECT(to.values.height_px == from->values.height_px, "%s", text);
    EXPECT(memcmp(&to.values.guidance, &from->values.guidance, sizeof(float)) == 0, "%s", text);
    EXPECT(memcmp(&to.values.true_cfg, &from->values.true_cfg, sizeof(float)) == 0, "%s", text);
    char *again = prompt_format_parameters(&to, "odd, \"name\"");
    EXPECT(strcmp(text, again) == 0);
    free(again);
    free(text);
    prompt_finish(&to);
}

static void test_round_trip(void)
{
    static const char *const inputs[] = {
        "a red fox --steps 20 --guidance 2.0 --size 768x512 --seed 7 --negative \"blurry\"",
        "fox",
        "a\n\n  b  --seed 9223372036854775807",
        "fox --true-cfg 3",
        "-- --steps 0 is text",
        "fox --negative \"  two\nlines\nNegative prompt: nested\" --true-cfg 1",
        "fox\nSteps: going up\nSize: big",
        "fox --guidance -0 --negative 'Steps: 4, Seed: 3'",
        "fox\nSteps: 12 --count 2",
        "a \"quoted --steps\" \xf0\x9f\xa6\x8a --guidance 1e-40"};
    for (size_t i = 0; i < sizeof inputs / sizeof inputs[0]; i++) {
        struct prompt prompt = parse(inputs[i]);
        expect_round_trip(&prompt);
        prompt_finish(&prompt);
    }
    /* Floats of every exponent: all the bits come back. */
    struct prompt prompt = parse("fox");
    uint32_t state = 1;
    for (int i = 0; i < 20000; i++) {
        uint32_t bits = state = state * 1664525U + 1013904223U;
        float number;
        char text[PROMPT_VALUE_BYTES];
        bits %= 0x42c80001U; /* up to 100.0 */
        memcpy(&number, &bits, sizeof number);
        prompt.values.guidance = number;
        EXPECT(prompt_values_get(&prompt.values, "cfg", text, NULL) == 0);
        EXPECT(prompt_values_set(&prompt.values, "guidance", text, NULL, NULL) == 0, "%s", text);
        EXPECT(memcmp(&prompt.values.guidance, &number, sizeof number) == 0, "%s", text);
    }
    prompt_finish(&prompt);
    prompt = parse("fox --guidance 3.5 --seed 1 --size 64 --steps 4");
    char *text = prompt_format_parameters(&prompt, NULL);
    EXPECT(strcmp(text, "fox\nSteps: 4, Sampler: Euler, CFG scale: 3.5, Seed: 1, Size: 64x64") == 0,
           "%s", text);
    free(text);
    prompt_finish(&prompt);
}

static void test_values(void)
{
    struct prompt_values values = prompt_values_default();
    struct error err = {0};
    char text[PROMPT_VALUE_BYTES];
    unsigned given = 0;
    EXPECT(prompt_values_set(&values, "true_cfg", "2.5", &given, &err) == 0 &&
           values.true_cfg == 2.5F);
    EXPECT(given == PROMPT_TRUE_CFG);
    EXPECT(prompt_values_set(&values, "colour", "2", &given, &err) == -ENOENT);
    EXPECT(prompt_values_set(&values, "size", "32x0", &given, &err) == -EINVAL);
    EXPECT(values.width_px == 0 && given == PROMPT_TRUE_CFG, "a failure changes nothing");
    EXPECT(prompt_values_get(&values, "size", text, &err) == 0 && strcmp(text, "auto") == 0);
    EXPECT(prompt_values_set(&values, "size", "autox64", NULL, &err) == 0);
    EXPECT(prompt_values_get(&values, "size", text, &err) == 0 && strcmp(text, "autox64") == 0);
    EXPECT(prompt_values_get(&values, "seed", text, &err) == 0 && strcmp(text, "random") == 0);
    EXPECT(prompt_values_get(&values, "true-cfg", text, &err) == 0 && strcmp(text, "2.5") == 0);
    EXPECT(prompt_values_get(&values, "nothing", text, &err) == -ENOENT);
    prompt_values_settle(&values, 20, 256);
    EXPECT(values.steps == 20 && values.width_px == 256 && values.height_px == 64);
    EXPECT(!values.seed_random && values.seed <= UINT32_MAX);
    struct prompt_values again = values;
    prompt_values_settle(&again, 50, 1024);
    EXPECT(again.seed == values.seed && again.steps == 20, "settled is settled");
    /* Drawn seeds differ: eight equal ones would be one chance in 2^224. */
    int equal = 0;
    for (int i = 0; i < 8; i++) {
        again.seed_random = true;
        prompt_values_settle(&again, 1, 16);
        equal += again.seed == values.seed;
    }
    EXPECT(equal < 8);
}

static void test_format_values(void)
{
    struct prompt prompt = parse("fox --seed 7 --negative 'a\\nb\\\\' --name \"x y\" --steps auto");
    char *text = prompt_format_values(&prompt);
    EXPECT(strcmp(text, "guidance=3.5\ntrue_cfg=2\nwidth=512\nheight=256\nseed=7\n"
                        "negative=a\\nb\\\\\nname=x y\n") == 0,
           "%s", text);
    free(text);
    struct prompt copy = {0};
    EXPECT(prompt_copy(&copy, &prompt, NULL) == 0);
    EXPECT(copy.text != prompt.text && strcmp(copy.text, prompt.text) == 0);
    prompt_finish(&prompt);
    EXPECT(strcmp(copy.name, "x y") == 0 && copy.values.seed == 7);
    prompt_finish(&copy);
    prompt_finish(&copy);
}

static bool complete(const char *text)
{
    return prompt_complete(text, strlen(text));
}

static void test_complete(void)
{
    EXPECT(!complete(""));
    EXPECT(!complete("fox"));
    EXPECT(complete("fox\n"));
    EXPECT(complete("\n"), "to be refused at once");
    EXPECT(complete("fox --steps\n"));
    EXPECT(!complete("fox --negative \"a\n"), "the value goes on");
    EXPECT(complete("fox --negative \"a\nb\"\n"));
    EXPECT(complete("a \"quoted\n"), "quotes in the text need no end");
    EXPECT(complete("fox --bogus --negative \"a\n"), "wrong already");
}

int main(void)
{
    test_options();
    test_text();
    test_refusals();
    test_a1111();
    test_round_trip();
    test_values();
    test_format_values();
    test_complete();
    return test_finish();
}
