/* SPDX-License-Identifier: MIT */
#include "alloc/host_memory.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysinfo.h>

enum { PATH_BYTES = 1024, LINE_BYTES = 512 };

/* The files of a version of control groups. */
struct version {
    const char *mount, *limit, *usage, *cache[2]; /* cache: keys in memory.stat */
};

static const struct version first = {"/sys/fs/cgroup/memory",
                                     "memory.limit_in_bytes",
                                     "memory.usage_in_bytes",
                                     {"total_active_file", "total_inactive_file"}};
static const struct version second = {
    "/sys/fs/cgroup", "memory.max", "memory.current", {"active_file", "inactive_file"}};

static uint64_t smaller(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* The number behind a key, or the file's only one (key ""); false: there is none, or "max". */
static bool read_number(const char *path, const char *key, uint64_t *number)
{
    FILE *file = fopen(path, "re");
    char line[LINE_BYTES];
    bool found = false;
    size_t length = strlen(key);

    while (file != NULL && !found && fgets(line, sizeof line, file) != NULL) {
        unsigned long long value;

        if (strncmp(line, key, length) != 0 || sscanf(line + length, " %llu", &value) != 1)
            continue;
        *number = value;
        found = true;
    }
    if (file != NULL)
        fclose(file);
    return found;
}

static struct host_memory machine(const char *root)
{
    struct host_memory memory = {0};
    char path[PATH_BYTES];
    struct sysinfo info;
    uint64_t kib;

    snprintf(path, sizeof path, "%s/proc/meminfo", root);
    if (read_number(path, "MemTotal:", &kib))
        memory.total_bytes = kib * 1024;
    if (read_number(path, "MemAvailable:", &kib))
        memory.available_bytes = kib * 1024;
    if (memory.total_bytes == 0 && sysinfo(&info) == 0)
        memory = (struct host_memory){.total_bytes = (uint64_t)info.totalram * info.mem_unit,
                                      .available_bytes = ((uint64_t)info.freeram + info.bufferram) *
                                                         info.mem_unit};
    return memory;
}

/* Takes a group's limit into account. */
static void limit_by(struct host_memory *memory, const struct version *v, const char *folder)
{
    char path[2 * PATH_BYTES];
    uint64_t limit, used, cached = 0;

    snprintf(path, sizeof path, "%s/%s", folder, v->limit);
    if (!read_number(path, "", &limit))
        return;
    snprintf(path, sizeof path, "%s/%s", folder, v->usage);
    if (!read_number(path, "", &used))
        return;
    snprintf(path, sizeof path, "%s/memory.stat", folder);
    for (int i = 0; i < 2; i++) {
        uint64_t bytes;

        if (read_number(path, v->cache[i], &bytes))
            cached += bytes;
    }
    used -= smaller(used, cached);
    memory->total_bytes = smaller(memory->total_bytes, limit);
    memory->available_bytes = smaller(memory->available_bytes, limit - smaller(limit, used));
}

/* A group and all above it. Where its path is that of another name space there is the top alone. */
static void limit_by_all(struct host_memory *memory, const struct version *v, const char *root,
                         const char *group)
{
    char folder[PATH_BYTES];
    size_t top = strlen(root) + strlen(v->mount);

    snprintf(folder, sizeof folder, "%s%s%s", root, v->mount, group);
    for (char *end = folder + strlen(folder); end != NULL && end > folder + top;
         end = strrchr(folder, '/')) {
        *end = '\0';
        limit_by(memory, v, folder);
    }
    folder[top] = '\0';
    limit_by(memory, v, folder);
}

struct host_memory host_memory_below(const char *root)
{
    struct host_memory memory = machine(root);
    char path[PATH_BYTES], line[LINE_BYTES];
    FILE *file;

    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    file = fopen(path, "re");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        char *controllers = strchr(line, ':');
        char *group = controllers != NULL ? strchr(controllers + 1, ':') : NULL;

        if (group == NULL)
            continue;
        *group++ = '\0';
        group[strcspn(group, "\n")] = '\0';
        if (strcmp(controllers, ":") == 0)
            limit_by_all(&memory, &second, root, group);
        else if (strstr(controllers, "memory") != NULL)
            limit_by_all(&memory, &first, root, group);
    }
    if (file != NULL)
        fclose(file);
    return memory;
}

struct host_memory host_memory(void)
{
    return host_memory_below("");
}
