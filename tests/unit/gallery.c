/* SPDX-License-Identifier: MIT */
/* The store of images: names, order, the limit and what a crash or another program left behind. */
#include "tests/test.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "fs/gallery.h"
#include "tests/unit/scratch.h"

enum { SIDE = 64, DISK_BYTES = 16384 };

static uint8_t noise[SIDE * SIDE * 3]; /* does not shrink: 12 kB files, 16 kB on the disk */
static struct gallery *gallery;
static char events[400];

static void on_change(void *owner, const struct gallery_image *image, bool came)
{
    (void)owner;
    struct gallery_image found;
    EXPECT(gallery_find(gallery, image->name, &found) == came);
    strcat(strcat(events, came ? "+" : "-"), image->name);
}

static void open_gallery(uint64_t limit)
{
    struct gallery_options options = {
        .folder = scratch_folder, .limit_bytes = limit, .observer = {.changed = on_change}};
    struct error err = {0};
    events[0] = '\0';
    if (gallery_open(&gallery, &options, &err) != 0) {
        fprintf(stderr, "%s\n", err.text);
        exit(EXIT_FAILURE);
    }
}

static int store(const char *name, struct error *err)
{
    struct png_image image = {noise, SIDE, SIDE, name};
    struct gallery_image stored;
    int rc = gallery_store(gallery, name, &image, &stored, err);
    if (rc == 0) {
        EXPECT(strcmp(stored.name, name) == 0 && stored.serial > 0 && !stored.pinned);
        EXPECT(stored.bytes > sizeof noise && stored.bytes < sizeof noise + 1000, "%s", name);
    }
    return rc;
}

static bool on_disk(const char *name)
{
    return access(scratch_path(name), F_OK) == 0;
}

static void expect_slug(const char *text, const char *expected)
{
    char slug[GALLERY_MAX_SLUG_BYTES + 1];
    gallery_slug(slug, text);
    EXPECT(strcmp(slug, expected) == 0, "of \"%s\": \"%s\"", text, slug);
}

static void test_slugs(void)
{
    char big[5000];
    expect_slug("a red fox", "a-red-fox");
    expect_slug("  --A  Red,\n FOX!!  ", "a-red-fox");
    expect_slug("../../etc/passwd", "etc-passwd");
    expect_slug("caf\xc3\xa9 \xc3\x89"
                "cole, stra\xc3\x9f"
                "e",
                "cafe-ecole-strasse");
    expect_slug("\xc5\x81\xc3\xb3"
                "d\xc5\xba \xc3\x98rsted \xc3\x86on \xc5\x92uvre",
                "lodz-orsted-aeon-oeuvre");
    expect_slug("e\xcc\x81"
                "clair \xef\xac\x81ne \xef\xbc\xa1\xef\xbc\x91",
                "eclair-fine-a1");
    expect_slug("the dog's bone \xe2\x80\x99s", "the-dogs-bone-s");
    expect_slug("\xe7\x8b\x90", "image");
    expect_slug("\xe7\x8b\x90 fox \xf0\x9f\xa6\x8a red", "fox-red");
    expect_slug("", "image");
    expect_slug("bad \xff\xfe", "image");
    expect_slug("a large red circle on a white background, oil on canvas",
                "a-large-red-circle-on-a-white-background-oil-on");
    expect_slug("aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeee",
                "aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeee");
    expect_slug("aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeX",
                "aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeee");
    memset(big, 'x', sizeof big);
    for (size_t i = 0; i + 3 < sizeof big; i += 3) {
        memcpy(big + i, "\xe7\x8b\x90", 3);
    }
    big[sizeof big - 1] = '\0';
    expect_slug(big, "image");
}

static void expect_name(int64_t id, const char *source, const char *hint, const char *text,
                        const char *expected)
{
    char name[GALLERY_NAME_BYTES];
    gallery_name(name, id, source, hint, text);
    EXPECT(strcmp(name, expected) == 0, "\"%s\"", name);
}

static void test_names(void)
{
    char source[256], name[GALLERY_NAME_BYTES];
    expect_name(17, NULL, NULL, "a red fox", "0017-a-red-fox.png");
    expect_name(17, "", "", "a red fox", "0017-a-red-fox.png");
    expect_name(123456, NULL, "My Hint", "a red fox", "123456-my-hint.png");
    expect_name(17, "fox.txt", "hint", "a red fox", "fox.png");
    expect_name(17, "fox", NULL, "x", "fox.png");
    expect_name(17, "a b.c.txt", NULL, "x", "a b.c.png");
    expect_name(17, "latest.txt", NULL, "x", "0017-latest.png");
    for (size_t i = 0; i < 255; i += 3) {
        memcpy(source + i, "\xe7\x8b\x90", 3);
    }
    source[255] = '\0';
    gallery_name(name, 1, source, NULL, "x");
    EXPECT(strlen(name) == 249 + 4 && strcmp(name + 249, ".png") == 0, "cut between characters");
}

static void test_life(void)
{
    struct gallery_image images[4], image;
    struct gallery_use use;
    struct error err = {0};
    char *text = NULL;
    open_gallery(0);
    EXPECT(!gallery_latest(gallery, &image) && gallery_list(gallery, 0, images, 4) == 0);
    EXPECT(store("b.png", &err) == 0 && store("a.png", &err) == 0 && store("c.png", &err) == 0,
           "%s", err.text);
    EXPECT(gallery_list(gallery, 0, images, 4) == 3);
    EXPECT(strcmp(images[0].name, "b.png") == 0 && strcmp(images[2].name, "c.png") == 0);
    EXPECT(gallery_list(gallery, images[0].serial, images, 1) == 1 &&
           strcmp(images[0].name, "a.png") == 0);
    EXPECT(gallery_latest(gallery, &image) && strcmp(image.name, "c.png") == 0);
    gallery_use(gallery, &use);
    EXPECT(use.images == 3 && use.disk_bytes == (uint64_t)3 * DISK_BYTES, "%llu",
           (unsigned long long)use.disk_bytes);

    EXPECT(gallery_find(gallery, "b.png", &image));
    uint64_t before = image.serial;
    EXPECT(store("b.png", &err) == 0 && gallery_find(gallery, "b.png", &image) &&
           image.serial > before);
    gallery_use(gallery, &use);
    EXPECT(use.images == 3 && use.disk_bytes == (uint64_t)3 * DISK_BYTES,
           "a replaced image counts once");
    EXPECT(gallery_latest(gallery, &image) && strcmp(image.name, "b.png") == 0);

    int fd = gallery_open_image(gallery, "b.png", &err);
    EXPECT(fd >= 0 && png_read_parameters(fd, &text, &err) == 0 && strcmp(text, "b.png") == 0);
    free(text);
    EXPECT(gallery_remove(gallery, "b.png", &err) == 0 && !on_disk("b.png"));
    EXPECT(png_read_parameters(fd, &text, &err) == 0, "an open image stays readable");
    free(text);
    close(fd);
    EXPECT(gallery_remove(gallery, "b.png", &err) == -ENOENT &&
           gallery_open_image(gallery, "b.png", &err) == -ENOENT);
    EXPECT(gallery_pin(gallery, "b.png", true, &err) == -ENOENT);
    /* Deleted by someone else: found out when it is asked for. */
    unlink(scratch_path("a.png"));
    EXPECT(gallery_find(gallery, "a.png", &image));
    EXPECT(gallery_open_image(gallery, "a.png", &err) == -ENOENT &&
           !gallery_find(gallery, "a.png", &image));
    unlink(scratch_path("c.png"));
    EXPECT(gallery_remove(gallery, "c.png", &err) == 0);
    EXPECT(strcmp(events, "+b.png+a.png+c.png+b.png-b.png-a.png-c.png") == 0, "%s", events);
    static const char *const wrong[] = {"latest.png", ".x.png", "x.jpg", ".png", "a/b.png", ""};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        EXPECT(store(wrong[i], &err) == -EINVAL, "%s", wrong[i]);
    }
    gallery_close(gallery);
}

static void test_reopen(void)
{
    struct gallery_image images[4];
    struct error err = {0};
    struct timespec old[2] = {{.tv_sec = 1000000}, {.tv_sec = 1000000, .tv_nsec = 5}};
    struct stat stat;
    open_gallery(0);
    EXPECT(store("new.png", &err) == 0 && store("old.png", &err) == 0);
    EXPECT(gallery_pin(gallery, "new.png", true, &err) == 0);
    gallery_close(gallery);
    utimensat(AT_FDCWD, scratch_path("old.png"), old, 0);
    scratch_write(".png-123-4", "half an ima", 11);
    scratch_write("notes.txt", "mine", 4);
    mkdir(scratch_path("folder.png"), 0700);
    if (symlink("/etc/passwd", scratch_path("link.png")) != 0) {
        perror("symlink");
    }
    open_gallery(0);
    EXPECT(gallery_list(gallery, 0, images, 4) == 2);
    EXPECT(strcmp(images[0].name, "old.png") == 0 && strcmp(images[1].name, "new.png") == 0,
           "by age");
    EXPECT(images[0].mtime_ns == 1000000 * INT64_C(1000000000) + 5);
    EXPECT(images[1].pinned && !images[0].pinned, "pins are kept");
    EXPECT(!on_disk(".png-123-4") && on_disk("notes.txt"), "a leftover goes, other files stay");
    /* A new picture under a pinned name is pinned, too. */
    struct png_image image = {noise, SIDE, SIDE, "again"};
    EXPECT(gallery_store(gallery, "new.png", &image, &images[0], &err) == 0 && images[0].pinned);
    EXPECT(lstat(scratch_path("new.png"), &stat) == 0 &&
           (stat.st_mode & 07777) == (0444 | S_ISVTX));
    gallery_close(gallery);
    rmdir(scratch_path("folder.png"));
}

static void test_limit(void)
{
    struct gallery_use use;
    struct error err = {0};
    open_gallery(3 * DISK_BYTES);
    EXPECT(store("1.png", &err) == 0 && store("2.png", &err) == 0 && store("3.png", &err) == 0);
    EXPECT(gallery_pin(gallery, "1.png", true, &err) == 0);
    EXPECT(store("4.png", &err) == 0 && on_disk("1.png") && !on_disk("2.png") && on_disk("3.png"));
    EXPECT(store("3.png", &err) == 0, "again: the newest now");
    EXPECT(store("5.png", &err) == 0 && !on_disk("4.png") && on_disk("3.png"));
    EXPECT(gallery_pin(gallery, "3.png", true, &err) == 0 &&
           gallery_pin(gallery, "5.png", true, &err) == 0);
    EXPECT(store("6.png", &err) == -ENOSPC, "%d", err.code);
    EXPECT(strstr(err.text, "images_limit") != NULL, "%s", err.text);
    gallery_use(gallery, &use);
    EXPECT(use.images == 3 && use.pinned_bytes == 3 * DISK_BYTES && !on_disk("6.png"));
    EXPECT(gallery_pin(gallery, "3.png", false, &err) == 0 &&
           gallery_pin(gallery, "3.png", false, &err) == 0);
    EXPECT(store("6.png", &err) == 0 && !on_disk("3.png") && on_disk("6.png"));
    EXPECT(gallery_set_limit(gallery, DISK_BYTES, &err) == 0 && !on_disk("6.png") &&
           on_disk("1.png"));
    /* More than the limit by itself: no pin is in its way. */
    EXPECT(gallery_set_limit(gallery, 1000, &err) == 0 && store("7.png", &err) == -ENOSPC);
    EXPECT(strstr(err.text, "a picture of ") != NULL && strstr(err.text, "unpin") == NULL, "%s",
           err.text);
    EXPECT(gallery_set_limit(gallery, 0, &err) == 0 && store("7.png", &err) == 0 &&
           on_disk("7.png"));
    EXPECT(strcmp(events,
                  "+1.png+2.png+3.png+4.png-2.png+3.png+5.png-4.png+6.png-3.png-6.png+7.png") == 0,
           "%s", events);
    gallery_close(gallery);
}

static void test_bad_folder(void)
{
    struct gallery_options options = {.folder = "/proc/nowhere/images"};
    struct error err = {0};
    EXPECT(gallery_open(&gallery, &options, &err) == -ENOENT, "%s", err.text);
    options.folder = "/dev/null";
    EXPECT(gallery_open(&gallery, &options, &err) == -ENOTDIR, "%s", err.text);
    EXPECT(strstr(err.text, "/dev/null") != NULL, "%s", err.text);
    gallery_close(NULL);
}

/* CPU time to list the images and to look each of them up, for one of them; the least of some
 * tries, since others may be in the way. */
static double look_up_all_us(size_t count)
{
    struct gallery_image *images = calloc(count, sizeof *images);
    double least = INFINITY;
    for (int i = 0; i < 7; i++) {
        clock_t start = clock();
        EXPECT(gallery_list(gallery, 0, images, count) == count);
        for (size_t j = 0; j < count; j++) {
            struct gallery_image found;
            EXPECT(gallery_find(gallery, images[j].name, &found) &&
                   found.serial == images[j].serial);
        }
        least = fmin(least, (double)(clock() - start) * 1e6 / CLOCKS_PER_SEC / (double)count);
    }
    free(images);
    return least;
}

/* Of 10,000 images each is listed and found about as fast as of 1,000. */
static void test_many(void)
{
    static const size_t counts[] = {1000, 10000};
    size_t made = 0;
    double us[2];
    char name[32];
    for (int i = 0; i < 2; i++) {
        for (; made < counts[i]; made++) {
            snprintf(name, sizeof name, "%04zu-x.png", made);
            close(open(scratch_path(name), O_CREAT | O_WRONLY, 0444));
        }
        open_gallery(0);
        us[i] = look_up_all_us(made);
        gallery_close(gallery);
    }
    printf("an image listed and found: of 1,000 in %.2f µs, of 10,000 in %.2f µs\n", us[0], us[1]);
    EXPECT(us[1] < 5 * us[0], "%.2f, %.2f", us[0], us[1]);
}

int main(void)
{
    static void (*const tests[])(void) = {test_slugs, test_names,      test_life, test_reopen,
                                          test_limit, test_bad_folder, test_many};
    uint32_t state = 1;
    for (size_t i = 0; i < sizeof noise; i++) {
        state = state * 1664525U + 1013904223U;
        noise[i] = (uint8_t)(state >> 24);
    }
    scratch_run(tests, sizeof tests / sizeof tests[0]);
    return test_finish();
}
