/* SPDX-License-Identifier: MIT */
#include "fs/config.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "tests/test.h"

static struct error err;
static char folder[] = "/tmp/fluxfs-config-XXXXXX";
static char ini[64];

static void write_ini(const char *text)
{
    FILE *file = fopen(ini, "w");

    fputs(text, file);
    fclose(file);
}

/* Loads with the ini file and these words. */
static int load(struct config *config, const char *words[])
{
    char *argv[32] = {"fluxfs", "--config", ini};
    int argc = 3;

    for (; *words != NULL; words++)
        argv[argc++] = (char *)*words;
    return config_load(config, argc, argv, &err);
}

#define LOAD(config, ...) load(config, (const char *[]){__VA_ARGS__, NULL})

static void expect_refused(const char *file, const char *why, const char *word)
{
    struct config config;

    write_ini(file);
    EXPECT((word != NULL ? LOAD(&config, word, "/m") : LOAD(&config, "/m")) < 0, "%s%s", file,
           word != NULL ? word : "");
    EXPECT(strstr(err.text, why) != NULL, "\"%s\" lacks \"%s\"", err.text, why);
    EXPECT(strchr(err.text, '\n') == NULL);
}

static void test_order(void)
{
    struct config config;

    write_ini("; comment\n[fluxfs]\nvram_budget = 12G\nsteps = 20\nmodel = /data/flux\n"
              "allow_other = yes\numask = 077\n");
    EXPECT(LOAD(&config, "-o", "steps=30,rw,noauto,x-systemd.automount,nosuid", "--guidance=2.5",
                "--threads", "3", "-f", "/mnt/flux/") == 0,
           "%s", err.text);
    EXPECT(config.vram_budget_bytes == 12ull << 30 && config.defaults.steps == 30);
    EXPECT(config.defaults.guidance == 2.5f && config.threads == 3 && config.foreground);
    EXPECT(config.allow_other && config.umask == 077);
    EXPECT(strcmp(config.mountpoint, "/mnt/flux") == 0 && strcmp(config.model, "/data/flux") == 0);
    EXPECT(strcmp(config.backend, "auto") == 0 && strcmp(config.source, "/data/flux") == 0);
    EXPECT(strstr(config.state_dir, "/mnt-flux") != NULL, "%s", config.state_dir);
    config_finish(&config);
    config_finish(&config);
}

/* Blanks before a key are only blanks: inih alone would add the line to the value above. */
static void test_layout(void)
{
    struct config config;

    write_ini("\xef\xbb\xbf# comment\r\n  [fluxfs]\r\n\tmodel = /a b/c  ; comment\r\n"
              "  steps=9\n\n   \n  # comment\n  threads : 2");
    EXPECT(LOAD(&config, "/mnt/flux") == 0, "%s", err.text);
    EXPECT(strcmp(config.model, "/a b/c") == 0, "%s", config.model);
    EXPECT(config.defaults.steps == 9 && config.threads == 2);
    config_finish(&config);
}

/* Which inih alone would cut silently, to mount another model. */
static void test_long_lines(void)
{
    struct config config;
    char model[3000], text[8000];

    for (int length = 150; length < (int)sizeof model; length += length < 250 ? 1 : 500) {
        snprintf(model, sizeof model, "/a;b %0*d", length, 0);
        snprintf(text, sizeof text,
                 "# %0300d = 3\n[fluxfs]\nsteps=9\n  model =\t%s\t; comment\nthreads = 2", 0,
                 model);
        write_ini(text);
        EXPECT(LOAD(&config, "/mnt/flux") == 0, "%s", err.text);
        EXPECT(strcmp(config.model, model) == 0, "%s", config.model);
        EXPECT(config.defaults.steps == 9 && config.threads == 2);
        config_finish(&config);
    }
    snprintf(text, sizeof text, "[fluxfs]\nsteps = 9\n%0300d\n", 0);
    expect_refused(text, ":3: is no text, or too long", NULL);
    snprintf(text, sizeof text, "[fluxfs]\nsteps = %0300d\n", 0);
    expect_refused(text, ":2: steps", NULL);
    snprintf(text, sizeof text, "[fluxfs]\n%0300d = 3\n", 0);
    expect_refused(text, ":2: is no text, or too long", NULL);
}

static void test_mount_form(void)
{
    struct config config;

    write_ini("");
    EXPECT(LOAD(&config, "/data/schnell", "mnt", "-o", "rw,_netdev,user=joe,state_dir=/s") == 0,
           "%s", err.text);
    EXPECT(strcmp(config.model, "/data/schnell") == 0 && config.mountpoint[0] == '/');
    EXPECT(strcmp(config.state_dir, "/s") == 0);
    config_finish(&config);
    EXPECT(LOAD(&config, "--model", "/m", "none", "/mnt/x", "-onoexec") == 0, "%s", err.text);
    EXPECT(strcmp(config.model, "/m") == 0 && strcmp(config.source, "none") == 0);
    EXPECT(config.noexec);
    config_finish(&config);
}

static void test_actions(void)
{
    struct config config;
    char *help[] = {"fluxfs", "--help"}, *version[] = {"fluxfs", "-V"}, *nothing[] = {"fluxfs"};

    EXPECT(config_load(&config, 2, help, &err) == 0 && config.action == CONFIG_HELP);
    EXPECT(config_load(&config, 2, version, &err) == 0 && config.action == CONFIG_VERSION);
    EXPECT(config_load(&config, 1, nothing, &err) == -EINVAL && strstr(err.text, "no mountpoint"));
}

static void test_plan(void)
{
    struct config config;

    write_ini("[fluxfs]\nsteps = 9\n");
    EXPECT(LOAD(&config, "--plan", "--vram", "24G", "--link=25", "--tflops=165.5", "--jobs", "4",
                "--model=/m", "--bandwidth=1000") == 0,
           "%s", err.text);
    EXPECT(config.action == CONFIG_PLAN && config.mountpoint == NULL && config.state_dir == NULL);
    EXPECT(config.plan.vram_bytes == 24ull << 30 && config.plan.link_gb_s == 25);
    EXPECT(config.plan.tflops == 165.5 && config.plan.bandwidth_gb_s == 1000);
    EXPECT(config.plan.jobs == 4 && config.defaults.steps == 9);
    EXPECT(strcmp(config.model, "/m") == 0);
    config_finish(&config);
    EXPECT(LOAD(&config, "--plan", "/mnt") == -EINVAL && strstr(err.text, "/mnt") != NULL);
    EXPECT(LOAD(&config, "--vram=1G", "/mnt") == -EINVAL && strstr(err.text, "vram") != NULL);
    expect_refused("", "--vram: only --plan takes it", "--vram=1G");
    expect_refused("", "--jobs: only --plan takes it", "--jobs");
    EXPECT(LOAD(&config, "--plan", "--vram", "24") == -EINVAL &&
               strcmp(err.text, "--vram: 24 is 24 bytes: write 24G, or 24M") == 0,
           "%s", err.text);
    EXPECT(LOAD(&config, "--plan", "--jobs=1e9") == -EINVAL);
}

static void test_refusals(void)
{
    struct config config;

    expect_refused("[fluxfs]\n\nvram_budget = 12Q\n", ":3: vram_budget: \"12Q\" is no size", NULL);
    expect_refused("[fluxfs]\nvram-budgets = 12G\n", "did you mean vram_budget?", NULL);
    expect_refused("[other]\nx = 1\n", "section [other]", NULL);
    expect_refused("[fluxfs]\nsteps\n", ":2: ", NULL);
    expect_refused("[fluxfs]\nsteps = 0\n", "steps", NULL);
    expect_refused("[fluxfs]\nguidance = nan\n", "guidance", NULL);
    expect_refused("[fluxfs]\nsteps = 20\nsteps 30\n", ":3: ", NULL);
    expect_refused("", "--backend: \"gpu\" is none of", "--backend=gpu");
    expect_refused("", "-o threads: \"many\"", "-othreads=many");
    expect_refused("", "unknown", "--frobnicate=1");
    expect_refused("", "unknown option", "-z");
    expect_refused("", "mount it rw", "-oro");
    expect_refused("", "unmount it first", "-oremount,rw");
    expect_refused("", "no octal mode", "--umask=99");
    EXPECT(LOAD(&config, "/a", "/b", "/c") == -EINVAL && strstr(err.text, "/c"));
    EXPECT(LOAD(&config, "/a", "--steps") == -EINVAL && strstr(err.text, "missing"));
    unlink(ini);
    EXPECT(LOAD(&config, "/a") == -ENOENT && strstr(err.text, ini));
}

static void test_sizes(void)
{
    static const struct {
        const char *text;
        uint64_t bytes;
        const char *back;
    } sizes[] = {{"4096B", 4096, "4K"},
                 {"12G", 12ull << 30, "12G"},
                 {"12GiB", 12ull << 30, "12G"},
                 {"1.5k", 1536, "1536B"},
                 {"1 B", 1, "1B"},
                 {"0", 0, "auto"},
                 {"1048575B", 1048575, "1048575B"},
                 {"1048576", 1 << 20, "1M"},
                 {"1048577", (1 << 20) + 1, "1048577"},
                 {"22.3G", 23944442675, "23944442675"},
                 {"9223372036854775807", INT64_MAX, "9223372036854775807"},
                 {"auto", 0, "auto"},
                 {"2 MB", 2 << 20, "2M"}};
    static const char *const bad[] = {"",     "G",   "-1G", "1e30G",   "12Q", "0x10", "nan",
                                      "12GG", "inf", "12",  "1048575", "0.5", "1e3",  "12 "};
    char text[32];
    uint64_t bytes;

    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        EXPECT(config_parse_size(&bytes, sizes[i].text, &err) == 0 && bytes == sizes[i].bytes,
               "%s: %llu", sizes[i].text, (unsigned long long)bytes);
        config_format_size(text, bytes);
        EXPECT(strcmp(text, sizes[i].back) == 0, "%s", text);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        EXPECT(config_parse_size(&bytes, bad[i], &err) == -EINVAL, "%s", bad[i]);
}

static void test_sizes_without_unit(void)
{
    static const struct {
        const char *text, *why;
    } refused[] = {{"12", "12 is 12 bytes: write 12G, or 12M"},
                   {"1", "1 is 1 byte: write 1G, or 1M"},
                   {"1048575", "1048575 is 1048575 bytes: write 1048575G, or 1048575M"},
                   {"22.5", "22.5 is 22.5 bytes: write 22.5G, or 22.5M"}};
    uint64_t bytes;

    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        EXPECT(config_parse_size(&bytes, refused[i].text, &err) == -EINVAL &&
                   strcmp(err.text, refused[i].why) == 0,
               "%s: %s", refused[i].text, err.text);
    }
    expect_refused("[fluxfs]\nvram_budget = 12\n", ":2: vram_budget: 12 is 12 bytes: write 12G",
                   NULL);
    expect_refused("", "--images_limit: 12 is 12 bytes: write 12G", "--images-limit=12");
}

static void test_comment_of_another_kind(void)
{
    expect_refused("[fluxfs]\nsteps = 4 # few\n", "a comment begins with \" ;\"", NULL);
}

static void test_tilde(void)
{
    struct config config;
    char *home = getenv("HOME") != NULL ? strdup(getenv("HOME")) : NULL;

    setenv("HOME", "/home/kim", 1);
    write_ini("[fluxfs]\nstate_dir = ~/flux\n");
    EXPECT(LOAD(&config, "-omodel=~/models/dev/", "--trace=/~/t", "/m") == 0, "%s", err.text);
    EXPECT(strcmp(config.model, "/home/kim/models/dev") == 0, "%s", config.model);
    EXPECT(strcmp(config.state_dir, "/home/kim/flux") == 0, "%s", config.state_dir);
    EXPECT(strcmp(config.trace_path, "/~/t") == 0, "%s", config.trace_path);
    config_finish(&config);
    unsetenv("HOME");
    EXPECT(LOAD(&config, "--model=/x", "/m") == -EINVAL &&
               strcmp(err.text, "~/flux: HOME isn't set: write the whole path") == 0,
           "%s", err.text);
    if (home != NULL)
        setenv("HOME", home, 1);
    free(home);
}

/* Last, since the home is gone then. */
static void test_without_home(void)
{
    struct config config;

    if (getuid() == 0)
        return; /* whose state has a place of its own */
    unsetenv("HOME");
    unsetenv("XDG_STATE_HOME");
    write_ini("");
    EXPECT(LOAD(&config, "--model=/x", "/m") == -EINVAL && strstr(err.text, "--state-dir") != NULL,
           "%s", err.text);
}

static void test_images_limit(void)
{
    struct config config;
    uint64_t bytes;

    EXPECT(config_parse_images_limit(&bytes, "64M", &err) == 0 && bytes == 64 << 20);
    EXPECT(config_parse_images_limit(&bytes, "0", &err) == 0 && bytes == 0);
    EXPECT(config_parse_images_limit(&bytes, "67108863", &err) == -EINVAL);
    /* What is offered in place of a number without a unit is accepted. */
    EXPECT(config_parse_images_limit(&bytes, "12", &err) == -EINVAL &&
           strcmp(err.text, "12 is 12 bytes: write 12G") == 0);
    EXPECT(config_parse_images_limit(&bytes, "64", &err) == -EINVAL &&
           strcmp(err.text, "64 is 64 bytes: write 64G, or 64M") == 0);
    EXPECT(config_parse_images_limit(&bytes, "0.01", &err) == -EINVAL &&
           strcmp(err.text, "0.01 is 0.01 bytes: write 64M or more") == 0);
    expect_refused("[fluxfs]\nimages_limit = 63M\n",
                   "images_limit: 63M is less than 64 MiB: write 64M or more, or 0 for no limit",
                   NULL);
    expect_refused("", "-o images_limit: 1K is less than 64 MiB", "-oimages_limit=1K");
    write_ini("[fluxfs]\nimages_limit = 64M\n");
    EXPECT(LOAD(&config, "--images-limit=0", "--model=/x", "/m") == 0 &&
           config.images_limit_bytes == 0);
    config_finish(&config);
}

/* As they are shown, and what a refusal says is needed: that is enough, and no more than it must
 * be. */
static void test_sizes_shown(void)
{
    static const struct {
        uint64_t bytes;
        const char *shown, *needed;
    } sizes[] = {{0, "0 B", "0 B"},
                 {1000, "1000 B", "1000 B"},
                 {1024, "1.0 KiB", "1.00 KiB"},
                 {1025, "1.0 KiB", "1.01 KiB"},
                 {1 << 20, "1.0 MiB", "1.00 MiB"},
                 {14810000, "14.1 MiB", "14.13 MiB"},
                 {(12ull << 30) + 1, "12.00 GiB", "12.01 GiB"},
                 {3ull << 40, "3.00 TiB", "3.00 TiB"},
                 {UINT64_MAX, "16777216.00 TiB", "16777216.00 TiB"}};
    uint64_t needed, bytes = 1;

    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct size_text shown = size_shown(sizes[i].bytes), least = size_needed(sizes[i].bytes);

        EXPECT(strcmp(shown.text, sizes[i].shown) == 0, "%s", shown.text);
        EXPECT(strcmp(least.text, sizes[i].needed) == 0, "%s", least.text);
    }
    for (int i = 0; i < 3000; i++) {
        struct size_text least = size_needed(bytes);

        EXPECT(config_parse_size(&needed, least.text, &err) == 0 && needed >= bytes &&
                   needed - bytes <= bytes / 100,
               "%llu: %s", (unsigned long long)bytes, least.text);
        bytes += bytes / 90 + 1;
    }
}

int main(void)
{
    if (mkdtemp(folder) == NULL)
        return EXIT_FAILURE;
    snprintf(ini, sizeof ini, "%s/fluxfs.ini", folder);
    test_order();
    test_layout();
    test_long_lines();
    test_mount_form();
    test_actions();
    test_plan();
    test_refusals();
    test_sizes();
    test_sizes_without_unit();
    test_images_limit();
    test_comment_of_another_kind();
    test_sizes_shown();
    test_tilde();
    test_without_home();
    unlink(ini);
    rmdir(folder);
    return test_finish();
}
