/* SPDX-License-Identifier: MIT */
/* Memory as the machine tells it, and as control groups of both versions limit it, from trees of
 * files as Linux shows them. */
#include "alloc/host_memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "tests/test.h"

enum { PATH_BYTES = 512 };

#define MIB ((uint64_t)1 << 20)

static char root[] = "/tmp/fluxfs-host-memory-XXXXXX";

/* A file below the root, and the folders that lead to it. */
static void put(const char *name, const char *content)
{
    char path[PATH_BYTES];
    FILE *file;

    snprintf(path, sizeof path, "%s%s", root, name);
    for (char *slash = path + strlen(root) + 1; (slash = strchr(slash, '/')) != NULL; slash++) {
        *slash = '\0';
        mkdir(path, 0777);
        *slash = '/';
    }
    file = fopen(path, "w");
    if (EXPECT(file != NULL, "%s", path)) {
        fputs(content, file);
        fclose(file);
    }
}

static void expect(const char *what, uint64_t total_mib, uint64_t available_mib)
{
    struct host_memory memory = host_memory_below(root);

    EXPECT(memory.total_bytes == total_mib * MIB && memory.available_bytes == available_mib * MIB,
           "%s: %.1f and %.1f MiB", what, (double)memory.total_bytes / (double)MIB,
           (double)memory.available_bytes / (double)MIB);
}

static void test_second(void)
{
    put("/proc/self/cgroup", "0::/user.slice/fluxfs.service\n");
    put("/sys/fs/cgroup/user.slice/fluxfs.service/memory.max", "max\n");
    put("/sys/fs/cgroup/user.slice/fluxfs.service/memory.current", "1048576\n");
    expect("no limit", 64, 48);
    put("/sys/fs/cgroup/user.slice/fluxfs.service/memory.max", "33554432\n");
    expect("a limit, 1 MiB in use", 32, 31);
    put("/sys/fs/cgroup/user.slice/fluxfs.service/memory.current", "29360128\n");
    put("/sys/fs/cgroup/user.slice/fluxfs.service/memory.stat",
        "anon 4194304\nfile 25165824\ninactive_file 16777216\nactive_file 8388608\n");
    expect("24 of 28 MiB are page cache", 32, 28);
    put("/sys/fs/cgroup/user.slice/memory.max", "41943040\n");
    put("/sys/fs/cgroup/user.slice/memory.current", "36700160\n");
    expect("the group above has less left", 32, 5);
    put("/sys/fs/cgroup/memory.max", "16777216\n");
    put("/sys/fs/cgroup/memory.current", "20971520\n");
    expect("a container's top, which is passed", 16, 0);
}

static void test_first(void)
{
    put("/proc/self/cgroup", "5:devices:/\n4:memory:/docker/1234\n0::/\n");
    put("/sys/fs/cgroup/memory.max", "max\n");
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "50331648\n");
    expect("no limit", 64, 48);
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "25165824\n");
    put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "20971520\n");
    put("/sys/fs/cgroup/memory/memory.stat",
        "inactive_file 99\ntotal_inactive_file 2097152\ntotal_active_file 1048576\n");
    expect("our path is not there, the top's limit is ours", 24, 7);
    put("/sys/fs/cgroup/memory/docker/1234/memory.limit_in_bytes", "8388608\n");
    put("/sys/fs/cgroup/memory/docker/1234/memory.usage_in_bytes", "4194304\n");
    expect("it is there", 8, 4);
}

static void test_this_machine(void)
{
    struct host_memory memory = host_memory();

    EXPECT(memory.total_bytes > 16 * MIB && memory.available_bytes <= memory.total_bytes);
}

int main(void)
{
    char command[PATH_BYTES];

    if (!EXPECT(mkdtemp(root) != NULL))
        return test_finish();
    put("/proc/meminfo", "MemTotal:          65536 kB\nMemFree:  1024 kB\n"
                         "MemAvailable:      49152 kB\n");
    test_second();
    test_first();
    test_this_machine();
    snprintf(command, sizeof command, "rm -r '%s'", root);
    EXPECT(system(command) == 0);
    return test_finish();
}
