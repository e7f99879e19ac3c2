/* SPDX-License-Identifier: MIT */
/* Algorithms in a file: what is kept is read again, by the same device and library only, whoever
 * else writes; what can't be written is not kept; and nothing that a file may hold does harm. */
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/cuda/gemm_cache.h"
#include "tests/test.h"

static char folder[] = "/tmp/fluxfs-gemm-cache-XXXXXX", path[4200];

static struct gemm_choice choice_of(int64_t m)
{
    struct gemm_choice choice = {
        {m, 9216, 3072, 9216, 3072, 3072, 2, m % 2, m % 3 == 0, m % 5 == 0, 4}, {{0}}};

    for (size_t i = 0; i < sizeof choice.algorithm / sizeof(uint64_t); i++)
        choice.algorithm.data[i] = (uint64_t)m * UINT64_C(0x9e3779b97f4a7c15) * (i + 1);
    return choice;
}

static size_t read_count(const char *device, size_t version)
{
    struct gemm_cache cache;
    size_t count;

    gemm_cache_open(&cache, device, version);
    count = cache.count;
    gemm_cache_finish(&cache);
    return count;
}

static void write_file(const char *text)
{
    FILE *file = fopen(path, "w");

    if (!EXPECT(file != NULL))
        exit(EXIT_FAILURE);
    fputs(text, file);
    fclose(file);
}

static bool same_algorithm(const struct gemm_choice *a, const struct gemm_choice *b)
{
    return memcmp(&a->algorithm, &b->algorithm, sizeof a->algorithm) == 0;
}

static bool finds(const struct gemm_cache *cache, int64_t m)
{
    struct gemm_choice choice = choice_of(m);
    const struct gemm_choice *found = gemm_cache_find(cache, &choice.shape);

    return found != NULL && same_algorithm(found, &choice);
}

static void test_again(void)
{
    struct gemm_cache cache;
    bool same = true;

    gemm_cache_open(&cache, "some GPU", 130000);
    EXPECT(cache.count == 0 && strcmp(cache.path, path) == 0, "%s", cache.path);
    for (int64_t m = 1; m <= 200; m++) {
        struct gemm_choice choice = choice_of(m);
        EXPECT(gemm_cache_find(&cache, &choice.shape) == NULL);
        EXPECT(gemm_cache_keep(&cache, &choice));
    }
    gemm_cache_finish(&cache);

    gemm_cache_open(&cache, "some GPU", 130000);
    EXPECT(cache.count == 200);
    for (int64_t m = 1; m <= 200; m++)
        same &= finds(&cache, m);
    EXPECT(same);
    gemm_cache_finish(&cache);
    EXPECT(read_count("another GPU", 130000) == 0);
    EXPECT(read_count("some GPU", 130001) == 0);
}

static void test_damaged(void)
{
    static const char *const texts[] = {
        "",
        "fluxfs products 4, cuBLASLt 130000, some GPU",
        "fluxfs products 4, cuBLASLt 130000, some GPU\n1 2 3\n",
        "fluxfs products 4, cuBLASLt 130000, some GPU\n1 2 3 4 5 6 2 0 0 0 4 1 2 3 4 5 6 7\n",
        "fluxfs products 4, cuBLASLt 130000, some GPU\n1 2 3 4 5 6 2 0 0 0 4 1 2 3 4 5 6 7 8 9\n",
        "fluxfs products 4, cuBLASLt 130000, some GPU\n1 2 3 4 5 6 2 0 0 0 4 1 2 3 4 5 6 7 8",
        "fluxfs products 4, cuBLASLt 130000, some GPU\n\n\nx y z\n",
    };

    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        write_file(texts[i]);
        EXPECT(read_count("some GPU", 130000) == 0, "text %zu", i);
    }
    /* A good line among bad ones, and the same shape twice. */
    write_file(
        "fluxfs products 4, cuBLASLt 130000, some GPU\nx\n1 2 3 4 5 6 2 0 0 0 4 1 2 3 4 5 6 7 8\n"
        "1 2 3 4 5 6 2 0 0 0 4 8 7 6 5 4 3 2 1\n");
    EXPECT(read_count("some GPU", 130000) == 1);
}

static bool keep(struct gemm_cache *cache, int64_t m)
{
    struct gemm_choice choice = choice_of(m);

    return gemm_cache_keep(cache, &choice);
}

/* Two processes in turn: neither loses what the other found, and of a shape that both measured the
 * first choice holds for both. */
static void test_two(void)
{
    struct gemm_choice first = choice_of(1), other = choice_of(2);
    struct gemm_cache a, b;

    unlink(path);
    gemm_cache_open(&a, "some GPU", 130000);
    gemm_cache_open(&b, "some GPU", 130000);
    EXPECT(keep(&a, 1) && keep(&b, 3) && keep(&a, 4));
    other.shape = first.shape;
    EXPECT(gemm_cache_keep(&b, &other) && same_algorithm(&other, &first));
    EXPECT(b.count == 3 && finds(&b, 1) && finds(&b, 4));
    gemm_cache_finish(&a);
    gemm_cache_finish(&b);
    gemm_cache_open(&a, "some GPU", 130000);
    EXPECT(a.count == 3 && finds(&a, 1) && finds(&a, 3) && finds(&a, 4));
    gemm_cache_finish(&a);
}

/* One line less than there may be. */
static void test_full(void)
{
    struct gemm_cache cache;
    FILE *file = fopen(path, "w");

    if (!EXPECT(file != NULL))
        return;
    fputs("fluxfs products 4, cuBLASLt 130000, some GPU\n", file);
    for (int m = 0; m < GEMM_CHOICES_MAX - 1; m++)
        fprintf(file, "%d 2 3 4 5 6 2 0 0 0 4 1 2 3 4 5 6 7 8\n", m);
    fclose(file);
    gemm_cache_open(&cache, "some GPU", 130000);
    EXPECT(gemm_cache_has_room(&cache) && keep(&cache, 5));
    EXPECT(!gemm_cache_has_room(&cache) && !keep(&cache, 6));
    EXPECT(finds(&cache, 5) && !finds(&cache, 6));
    gemm_cache_finish(&cache);
    EXPECT(read_count("some GPU", 130000) == GEMM_CHOICES_MAX);
}

/* What can't be written is not there, and nothing is tried any more; what was there is. */
static void test_failing(void)
{
    struct gemm_cache cache;
    char temporary[4300];

    unlink(path);
    snprintf(temporary, sizeof temporary, "%s.%ld", path, (long)getpid());
    gemm_cache_open(&cache, "some GPU", 130000);
    EXPECT(keep(&cache, 1) && mkdir(temporary, 0700) == 0);
    EXPECT(gemm_cache_has_room(&cache) && !keep(&cache, 2));
    EXPECT(rmdir(temporary) == 0);
    EXPECT(!gemm_cache_has_room(&cache) && !keep(&cache, 2));
    EXPECT(finds(&cache, 1) && !finds(&cache, 2));
    gemm_cache_finish(&cache);
    EXPECT(read_count("some GPU", 130000) == 1);
}

/* A folder that can't be had, or is not ours to write. */
static void test_no_place(void)
{
    struct gemm_cache cache;

    setenv("XDG_CACHE_HOME", "/nonexistent/folder", 1);
    gemm_cache_open(&cache, "some GPU", 130000);
    EXPECT(cache.path[0] == '\0');
    EXPECT(!gemm_cache_has_room(&cache) && !keep(&cache, 7) && cache.count == 0);
    gemm_cache_finish(&cache);
    setenv("XDG_CACHE_HOME", "relative", 1);
    setenv("HOME", folder, 1);
    gemm_cache_open(&cache, "some GPU", 130000);
    EXPECT(strncmp(cache.path, folder, strlen(folder)) == 0 &&
               strstr(cache.path, "/.cache/fluxfs/cuda-products") != NULL,
           "%s", cache.path);
    gemm_cache_finish(&cache);
    unsetenv("XDG_CACHE_HOME");
    unsetenv("HOME");
    gemm_cache_open(&cache, "some GPU", 130000);
    EXPECT(cache.path[0] == '\0');
    gemm_cache_finish(&cache);
}

int main(void)
{
    if (mkdtemp(folder) == NULL)
        return EXIT_FAILURE;
    unsetenv("CACHE_DIRECTORY");
    setenv("XDG_CACHE_HOME", folder, 1);
    snprintf(path, sizeof path, "%s/fluxfs/cuda-products", folder);
    test_again();
    test_damaged();
    test_two();
    test_full();
    test_failing();
    test_no_place();
    unlink(path);
    path[strlen(path) - strlen("/cuda-products")] = '\0';
    rmdir(path);
    snprintf(path, sizeof path, "%s/.cache/fluxfs", folder);
    rmdir(path);
    path[strlen(path) - strlen("/fluxfs")] = '\0';
    rmdir(path);
    EXPECT(rmdir(folder) == 0); /* nothing else was left behind */
    return test_finish();
}
