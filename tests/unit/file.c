/* SPDX-License-Identifier: MIT */
#include "engine/file.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/file_fault.h"
#include "tests/test.h"
#include "tests/unit/scratch.h"

static void maps_files(void)
{
    struct file_map map;
    struct error err = {0};
    const char *path = scratch_write("some", "12345", 5);
    if (EXPECT(file_map_open(&map, path, 5, &err) == 0, "%s", err.text)) {
        EXPECT(map.size_bytes == 5 && memcmp(map.data, "12345", 5) == 0);
        file_map_close(&map);
    }
    if (EXPECT(file_map_open(&map, scratch_write("none", "", 0), 5, &err) == 0, "%s", err.text)) {
        EXPECT(map.size_bytes == 0 && map.data != NULL);
        file_map_close(&map);
    }
}

static void refuses_others(void)
{
    struct file_map map = {.size_bytes = 77};
    struct error err = {0};
    EXPECT(file_map_open(&map, scratch_write("some", "12345", 5), 4, &err) == -EFBIG);
    EXPECT(strstr(err.text, "some: 5 bytes, at most 4 are allowed") != NULL, "%s", err.text);
    EXPECT(file_map_open(&map, scratch_path("absent"), 4, &err) == -ENOENT);
    EXPECT(file_map_open(&map, scratch_folder, 4, &err) == -EINVAL);
    EXPECT(mkfifo(scratch_path("fifo"), 0600) == 0);
    EXPECT(file_map_open(&map, scratch_path("fifo"), 4, &err) == -EINVAL);
    EXPECT(strstr(err.text, "fifo: not a regular file") != NULL, "%s", err.text);
    EXPECT(file_map_open(&map, "/dev/zero", 4, &err) == -EINVAL);
    EXPECT(map.size_bytes == 77, "untouched on failure");
}

/* Hints for any range inside a mapping leave its bytes as they are. */
static void hints_change_nothing(void)
{
    enum { SIZE = 5 * 4096 + 100 };
    static unsigned char bytes[SIZE];
    for (size_t i = 0; i < SIZE; i++)
        bytes[i] = (unsigned char)(i * 31 >> 3);
    struct file_map map;
    if (!EXPECT(file_map_open(&map, scratch_write("long", bytes, SIZE), SIZE, NULL) == 0))
        return;
    for (size_t begin = 0; begin < SIZE; begin += 1777) {
        file_bytes_prefetch(map.data + begin, SIZE - begin);
        file_bytes_release(map.data + begin, (SIZE - begin) / 2);
        file_bytes_prefetch(map.data + begin, 0);
        file_bytes_release(map.data + begin, 0);
        EXPECT(memcmp(map.data, bytes, SIZE) == 0);
    }
    file_map_close(&map);
}

/* What is gone reads as zeros, in each thread and mapping, and is told; other files don't mind. */
static void survives_files_cut_short(void)
{
    enum { SIZE = 9 * 4096 + 100, REST = 3 * 4096 + 10 };
    static unsigned char bytes[SIZE];
    struct file_map cut, other;
    struct error err = {0};
    memset(bytes, 7, SIZE);
    const char *path = scratch_write("cut", bytes, SIZE);
    if (!EXPECT(file_map_open(&cut, path, SIZE, &err) == 0 &&
                file_map_open(&other, scratch_write("other", bytes, SIZE), SIZE, &err) == 0))
        return;
    EXPECT(file_map_check(&cut, scratch_path("cut"), &err) == 0);
    EXPECT(truncate(scratch_path("cut"), SIZE - 5) == 0);
    EXPECT(file_map_check(&cut, scratch_path("cut"), &err) == -EIO, "within its last page");
    EXPECT(truncate(scratch_path("cut"), REST) == 0);
    EXPECT(cut.data[REST - 1] == 7 && cut.data[REST] == 0 && cut.data[REST + 4096] == 0);
    EXPECT(cut.data[SIZE - 1] == 0 && cut.data[0] == 7);
    EXPECT(file_map_check(&cut, scratch_path("cut"), &err) == -EIO);
    EXPECT(strstr(err.text, "cut: cut short to 12298 bytes while in use") != NULL, "%s", err.text);
    EXPECT(truncate(scratch_path("cut"), SIZE) == 0);
    EXPECT(file_map_check(&cut, scratch_path("cut"), &err) == -EIO, "zeros have been read");
    EXPECT(memcmp(other.data, bytes, SIZE) == 0 && file_map_check(&other, "other", &err) == 0);
    file_map_close(&cut);
    file_map_close(&other);
}

/* SIGBUS anywhere else stays what it was. */
static void dies_of_other_faults(void)
{
    struct file_map map;
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        signal(SIGBUS, SIG_DFL);
        struct error err;
        if (file_map_open(&map, scratch_write("gone", "12345", 5), 5, &err) != 0)
            _exit(1);
        file_fault_remove(map.fault);
        map.fault = NULL;
        _exit(truncate(scratch_path("gone"), 0) != 0 || *(volatile const unsigned char *)map.data);
    }
    EXPECT(waitpid(child, &status, 0) == child);
    EXPECT(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS, "status %d", status);
}

static void names_files_shortly(void)
{
    char path[200];
    EXPECT(strcmp(file_label("/models/flux/vae/config.json"), "/models/flux/vae/config.json") == 0);
    EXPECT(strcmp(file_label(""), "") == 0);
    snprintf(path, sizeof path, "/%0100d/vae/config.json", 0);
    EXPECT(strcmp(file_label(path), "vae/config.json") == 0, "%s", file_label(path));
    snprintf(path, sizeof path, "%0100d", 0);
    EXPECT(file_label(path) == path, "nothing to cut at");
    char *joined = file_path("a/b", "c");
    EXPECT(joined != NULL && strcmp(joined, "a/b/c") == 0);
    free(joined);
}

int main(void)
{
    scratch_start();
    dies_of_other_faults(); /* first, since the handler is installed once */
    maps_files();
    refuses_others();
    hints_change_nothing();
    survives_files_cut_short();
    names_files_shortly();
    scratch_finish();
    return test_finish();
}
