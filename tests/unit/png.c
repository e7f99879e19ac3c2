/* SPDX-License-Identifier: MIT */
/* PNG files: pixels and text come back, half a file is refused, a failed write leaves nothing. */
#include "tests/test.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fs/png.h"
#include "tests/unit/scratch.h"

enum { WIDTH = 37, HEIGHT = 21 };

static uint8_t pixels[WIDTH * HEIGHT * 3];

static void fill(void)
{
    uint32_t state = 1;
    for (size_t i = 0; i < sizeof pixels; i++) {
        state = state * 1664525U + 1013904223U;
        pixels[i] = (uint8_t)(state >> 24);
    }
}

static int memory_file(const uint8_t *bytes, size_t length)
{
    int fd = memfd_create("png", MFD_CLOEXEC);
    if (fd < 0 || write(fd, bytes, length) != (ssize_t)length) {
        perror("memfd");
        exit(EXIT_FAILURE);
    }
    return fd;
}

static bool has_chunk(const uint8_t *bytes, size_t length, const char *start)
{
    return memmem(bytes, length, start, strlen(start)) != NULL;
}

static void expect_text(const char *text, const char *chunk)
{
    struct png_image image = {pixels, WIDTH, HEIGHT, text};
    struct error err = {0};
    uint8_t *bytes, *rgb;
    size_t length;
    char *back;
    int width, height;
    if (!EXPECT(png_encode(&image, &bytes, &length, &err) == 0, "%s", err.text)) {
        return;
    }
    EXPECT(has_chunk(bytes, length, chunk), "%s", text);
    int fd = memory_file(bytes, length);
    if (EXPECT(png_read_parameters(fd, &back, &err) == 0, "%s", err.text)) {
        EXPECT(strcmp(back, text) == 0, "\"%s\"", back);
        free(back);
    }
    if (EXPECT(png_read_pixels(fd, &rgb, &width, &height, &err) == 0, "%s", err.text)) {
        EXPECT(width == WIDTH && height == HEIGHT);
        EXPECT(memcmp(rgb, pixels, sizeof pixels) == 0);
        free(rgb);
    }
    close(fd);
    free(bytes);
}

static void test_round_trip(void)
{
    expect_text("a red fox\nSteps: 20, CFG scale: 2, Seed: 7, Size: 768x512", "tEXtparameters");
    expect_text("caf\xc3\xa9 \xc3\xbf", "tEXtparameters");
    expect_text("\xe7\x8b\x90 \xf0\x9f\xa6\x8a\nSteps: 2", "iTXtparameters");
    char *big = malloc(70001);
    memset(big, 'x', 70000);
    big[70000] = '\0';
    expect_text(big, "tEXtparameters");
    free(big);
}

static void test_refusals(void)
{
    static const struct png_image wrong[] = {
        {pixels, 0, HEIGHT, NULL},
        {pixels, WIDTH, -1, NULL},
        {pixels, PNG_MAX_SIDE_PX + 1, 1, NULL},
        {pixels, PNG_MAX_SIDE_PX, PNG_MAX_SIDE_PX, NULL},
        {pixels, WIDTH, HEIGHT, "bad \xff"},
        {pixels, WIDTH, HEIGHT, "bad \x01"},
    };
    uint8_t *bytes = NULL;
    size_t length;
    struct error err = {0};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        EXPECT(png_encode(&wrong[i], &bytes, &length, &err) == -EINVAL, "%zu", i);
        EXPECT(err.text[0] != '\0' && bytes == NULL);
    }
}

static void test_no_text(void)
{
    struct png_image image = {pixels, WIDTH, HEIGHT, NULL};
    struct error err = {0};
    uint8_t *bytes;
    size_t length;
    char *text = NULL;
    EXPECT(png_encode(&image, &bytes, &length, &err) == 0);
    int fd = memory_file(bytes, length);
    EXPECT(png_read_parameters(fd, &text, &err) == -ENODATA, "%s", err.text);
    close(fd);
    free(bytes);
}

/* Every beginning of a file, and every byte changed, is refused or read, but never crashes; cut
 * files have no pixels. */
static void test_damage(void)
{
    struct png_image image = {pixels, 8, 8, "fox"};
    struct error err = {0};
    uint8_t *bytes, *rgb;
    size_t length;
    int width, height;
    char *text = NULL;
    EXPECT(png_encode(&image, &bytes, &length, &err) == 0);
    for (size_t cut = 0; cut < length - 12; cut++) {
        int fd = memory_file(bytes, cut);
        EXPECT(png_read_pixels(fd, &rgb, &width, &height, &err) == -EINVAL, "cut at %zu", cut);
        close(fd);
    }
    for (size_t at = 0; at < length; at++) {
        bytes[at] ^= 0x55;
        int fd = memory_file(bytes, length);
        if (png_read_pixels(fd, &rgb, &width, &height, &err) == 0) {
            free(rgb);
        }
        if (png_read_parameters(fd, &text, &err) == 0) {
            free(text);
        }
        close(fd);
        bytes[at] ^= 0x55;
    }
    free(bytes);
}

static int count_files(int folder_fd)
{
    int count = 0;
    DIR *folder = fdopendir(openat(folder_fd, ".", O_RDONLY | O_DIRECTORY));
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        count += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    }
    closedir(folder);
    return count;
}

static void test_write_file(void)
{
    struct png_image image = {pixels, WIDTH, HEIGHT, "fox"};
    struct error err = {0};
    struct stat stat;
    char *text = NULL;
    scratch_start();
    int folder = open(scratch_folder, O_RDONLY | O_DIRECTORY);
    EXPECT(png_write_file(folder, "a.png", &image, &err) == 0, "%s", err.text);
    image.parameters = "another";
    EXPECT(png_write_file(folder, "a.png", &image, &err) == 0, "%s", err.text);
    EXPECT(count_files(folder) == 1);
    EXPECT(fstatat(folder, "a.png", &stat, 0) == 0 && (stat.st_mode & 0222) == 0);
    int fd = openat(folder, "a.png", O_RDONLY);
    EXPECT(png_read_parameters(fd, &text, &err) == 0 && strcmp(text, "another") == 0);
    free(text);
    close(fd);

    /* The disk refuses in the middle: the old file stays, the half one goes. */
    struct rlimit limit = {.rlim_cur = 500, .rlim_max = RLIM_INFINITY};
    struct rlimit none = {.rlim_cur = RLIM_INFINITY, .rlim_max = RLIM_INFINITY};
    getrlimit(RLIMIT_FSIZE, &none);
    limit.rlim_max = none.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
    image.parameters = "third";
    int rc = png_write_file(folder, "a.png", &image, &err);
    int rc2 = png_write_file(folder, "b.png", &image, &err);
    setrlimit(RLIMIT_FSIZE, &none);
    EXPECT(rc == -EFBIG && rc2 == -EFBIG, "%d %d %s", rc, rc2, err.text);
    EXPECT(strstr(err.text, "b.png: can't write it") != NULL, "%s", err.text);
    EXPECT(count_files(folder) == 1);
    fd = openat(folder, "a.png", O_RDONLY);
    EXPECT(png_read_parameters(fd, &text, &err) == 0 && strcmp(text, "another") == 0);
    free(text);
    close(fd);
    close(folder);
    scratch_finish();
    EXPECT(png_write_file(-1, "a.png", &image, &err) == -EBADF, "%s", err.text);
}

int main(void)
{
    fill();
    test_round_trip();
    test_refusals();
    test_no_text();
    test_damage();
    test_write_file();
    return test_finish();
}
