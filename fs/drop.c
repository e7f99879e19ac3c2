/* SPDX-License-Identifier: MIT */
#include "fs/drop.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct drop_file {
    struct drop_file *next;
    int64_t id;
    dev_t device;
    ino_t inode;
    int fd;
    uint64_t lookups;
};

int drop_init(struct drop *drop, const char *folder, pthread_mutex_t *lock, struct error *err)
{
    *drop = (struct drop){.lock = lock, .folder_fd = -1};
    if (mkdir(folder, 0700) != 0 && errno != EEXIST) {
        return error_set(err, errno, "%s: %s", folder, strerror(errno));
    }
    drop->folder_fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (drop->folder_fd < 0) {
        return error_set(err, errno, "%s: %s", folder, strerror(errno));
    }
    return 0;
}

void drop_finish(struct drop *drop)
{
    while (drop->files != NULL) {
        struct drop_file *file = drop->files;
        drop->files = file->next;
        close(file->fd);
        free(file);
    }
    if (drop->lock != NULL && drop->folder_fd >= 0) {
        close(drop->folder_fd);
    }
    *drop = (struct drop){.folder_fd = -1};
}

int drop_lookup(struct drop *drop, const char *name, int64_t *id, struct stat *st)
{
    struct drop_file *file, *new;
    int fd = openat(drop->folder_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);

    if (fd < 0 || fstat(fd, st) != 0) {
        int code = errno;
        if (fd >= 0) {
            close(fd);
        }
        return -code;
    }
    new = calloc(1, sizeof *new);
    if (new == NULL || !S_ISREG(st->st_mode)) {
        int code = new == NULL ? ENOMEM : ENOENT; /* only files are ours */
        free(new);
        close(fd);
        return -code;
    }
    pthread_mutex_lock(drop->lock);
    for (file = drop->files; file != NULL; file = file->next) {
        if (file->inode == st->st_ino && file->device == st->st_dev) {
            break;
        }
    }
    if (file == NULL) {
        *new = (struct drop_file){drop->files, ++drop->last_id, st->st_dev, st->st_ino, fd, 0};
        drop->files = file = new;
        new = NULL;
        fd = -1;
    }
    file->lookups++;
    *id = file->id;
    pthread_mutex_unlock(drop->lock);
    free(new);
    if (fd >= 0) {
        close(fd);
    }
    return 0;
}

void drop_forget(struct drop *drop, int64_t id, uint64_t lookups)
{
    struct drop_file **place, *gone = NULL;

    pthread_mutex_lock(drop->lock);
    for (place = &drop->files; *place != NULL; place = &(*place)->next) {
        if ((*place)->id == id) {
            (*place)->lookups -= lookups < (*place)->lookups ? lookups : (*place)->lookups;
            if ((*place)->lookups == 0) {
                gone = *place;
                *place = gone->next;
            }
            break;
        }
    }
    pthread_mutex_unlock(drop->lock);
    if (gone != NULL) {
        close(gone->fd);
        free(gone);
    }
}

int drop_file_fd(struct drop *drop, int64_t id)
{
    int fd = -ESTALE;

    pthread_mutex_lock(drop->lock);
    for (struct drop_file *file = drop->files; file != NULL; file = file->next) {
        if (file->id == id) {
            fd = file->fd;
        }
    }
    pthread_mutex_unlock(drop->lock);
    return fd;
}

int drop_reopen(struct drop *drop, int64_t id, int flags)
{
    char path[64];
    int fd = drop_file_fd(drop, id);

    if (fd < 0) {
        return fd;
    }
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    fd = open(path, (flags & ~(O_NOFOLLOW | O_CREAT | O_EXCL)) | O_CLOEXEC);
    return fd >= 0 ? fd : -errno;
}

/* x.txt.k3WqT0: six letters and digits behind an extension, and not just a word. */
static bool has_random_suffix(const char *name)
{
    const char *dot = strrchr(name, '.');

    return dot != NULL && memchr(name, '.', (size_t)(dot - name)) != NULL && strlen(dot) == 7 &&
           strspn(dot + 1, "abcdefghijklmnopqrstuvwxyz") < 6 &&
           strspn(dot + 1, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") == 6;
}

bool drop_name_is_prompt(const char *name)
{
    static const char *const others[] = {
        ".*",     "*~",
        "#*#",    "*.sw[a-z]",
        "*.tmp",  "*.bak",
        "4913",   "sed[A-Za-z0-9][A-Za-z0-9][A-Za-z0-9][A-Za-z0-9][A-Za-z0-9][A-Za-z0-9]",
        "*.part", "*.crdownload",
    };

    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        if (fnmatch(others[i], name, 0) == 0) {
            return false;
        }
    }
    return !has_random_suffix(name);
}

bool drop_name_of(struct drop *drop, int fd, char name[256])
{
    struct stat st;
    struct dirent *entry;
    bool found = false;
    int folder = openat(drop->folder_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *stream = folder >= 0 ? fdopendir(folder) : NULL;

    if (stream == NULL || fstat(fd, &st) != 0) {
        if (stream != NULL) {
            closedir(stream);
        } else if (folder >= 0) {
            close(folder);
        }
        return false;
    }
    while (!found && (entry = readdir(stream)) != NULL) {
        if (entry->d_ino == st.st_ino && strlen(entry->d_name) < 256) {
            memcpy(name, entry->d_name, strlen(entry->d_name) + 1);
            found = true;
        }
    }
    closedir(stream);
    return found;
}
