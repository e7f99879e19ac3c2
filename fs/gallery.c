/* SPDX-License-Identifier: MIT */
#include "fs/gallery.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fs/gallery_images.h"

struct gallery {
    char *folder;
    int folder_fd;
    struct gallery_observer observer;

    /* Held by whoever changes files, across the disk and the observer; taken before `lock`. */
    pthread_mutex_t change_lock;

    pthread_mutex_t lock; /* never held across the disk or the observer */
    struct images images; /* lock */
    uint64_t limit_bytes; /* lock */
};

static int disk_error(const struct gallery *gallery, const char *name, const char *what, int errnum,
                      struct error *err)
{
    return error_set(err, errnum, "%s/%s: can't %s: %s", gallery->folder, name, what,
                     strerror(errnum));
}

/* ---- Opening ---- */

static void image_fill(struct gallery_image *image, const char *name, const struct stat *stat)
{
    *image = (struct gallery_image){
        .bytes = (uint64_t)stat->st_size,
        .disk_bytes = (uint64_t)stat->st_blocks * 512,
        .mtime_ns = (int64_t)stat->st_mtim.tv_sec * 1000000000 + stat->st_mtim.tv_nsec,
        .pinned = (stat->st_mode & S_ISVTX) != 0,
    };
    strcpy(image->name, name);
}

static bool is_image_name(const char *name)
{
    size_t length = strlen(name);
    return name[0] != '.' && length > 4 && length < GALLERY_NAME_BYTES &&
           strcmp(name + length - 4, ".png") == 0 && strcmp(name, GALLERY_LATEST) != 0;
}

static int by_age(const void *left, const void *right)
{
    const struct gallery_image *const *a = left;
    const struct gallery_image *const *b = right;
    if ((*a)->mtime_ns != (*b)->mtime_ns) {
        return (*a)->mtime_ns < (*b)->mtime_ns ? -1 : 1;
    }
    return strcmp((*a)->name, (*b)->name);
}

/* One name of the folder: a leftover is deleted, an image noted in by_serial as it comes. */
static int scan_one(struct gallery *gallery, const char *name, struct error *err)
{
    struct stat stat;
    if (strncmp(name, PNG_TEMPORARY_PREFIX, strlen(PNG_TEMPORARY_PREFIX)) == 0) {
        if (unlinkat(gallery->folder_fd, name, 0) != 0 && errno != ENOENT) {
            return disk_error(gallery, name, "delete this leftover", errno, err);
        }
        return 0;
    }
    if (!is_image_name(name) ||
        fstatat(gallery->folder_fd, name, &stat, AT_SYMLINK_NOFOLLOW) != 0 ||
        !S_ISREG(stat.st_mode)) {
        return 0;
    }
    struct gallery_image *image = malloc(sizeof *image);
    if (image == NULL || images_reserve(&gallery->images) != 0) {
        free(image);
        return error_set(err, ENOMEM, "%s: out of memory", gallery->folder);
    }
    image_fill(image, name, &stat);
    gallery->images.by_serial[gallery->images.count++] = image;
    return 0;
}

static int scan(struct gallery *gallery, struct error *err)
{
    int rc = 0;
    int fd = openat(gallery->folder_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *folder = fd < 0 ? NULL : fdopendir(fd);
    if (folder == NULL) {
        rc = disk_error(gallery, "", "read the folder", errno, err);
        if (fd >= 0) {
            close(fd);
        }
        return rc;
    }
    errno = 0;
    for (struct dirent *entry; rc == 0 && (entry = readdir(folder)) != NULL; errno = 0) {
        rc = scan_one(gallery, entry->d_name, err);
    }
    if (rc == 0 && errno != 0) {
        rc = disk_error(gallery, "", "read the folder", errno, err);
    }
    closedir(folder);
    struct images *images = &gallery->images;
    if (rc == 0 && images->count > 0) {
        size_t count = images->count;
        qsort(images->by_serial, count, sizeof *images->by_serial, by_age);
        images->count = 0;
        for (size_t i = 0; i < count; i++) {
            images_add(images, images->by_serial[i]);
        }
    }
    return rc;
}

int gallery_open(struct gallery **gallery, const struct gallery_options *options, struct error *err)
{
    int rc = 0;
    struct gallery *made = calloc(1, sizeof *made);
    char *folder = strdup(options->folder);
    if (made == NULL || folder == NULL) {
        free(made);
        free(folder);
        return error_set(err, ENOMEM, "%s: out of memory", options->folder);
    }
    *made = (struct gallery){
        .folder = folder, .observer = options->observer, .limit_bytes = options->limit_bytes};
    pthread_mutex_init(&made->lock, NULL);
    pthread_mutex_init(&made->change_lock, NULL);
    if (mkdir(folder, 0700) != 0 && errno != EEXIST) {
        rc = disk_error(made, "", "make the folder", errno, err);
    }
    made->folder_fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (rc == 0 && made->folder_fd < 0) {
        rc = disk_error(made, "", "open the folder", errno, err);
    }
    if (rc == 0) {
        rc = scan(made, err);
    }
    if (rc != 0) {
        gallery_close(made);
        return rc;
    }
    *gallery = made;
    return 0;
}

void gallery_close(struct gallery *gallery)
{
    if (gallery == NULL) {
        return;
    }
    images_finish(&gallery->images);
    if (gallery->folder_fd >= 0) {
        close(gallery->folder_fd);
    }
    pthread_mutex_destroy(&gallery->lock);
    pthread_mutex_destroy(&gallery->change_lock);
    free(gallery->folder);
    free(gallery);
}

/* ---- Changes: with change_lock held ---- */

static void notify(struct gallery *gallery, const struct gallery_image *image, bool came)
{
    if (gallery->observer.changed != NULL) {
        gallery->observer.changed(gallery->observer.owner, image, came);
    }
}

/* The file is gone: so is the image. False if it wasn't known. */
static bool forget(struct gallery *gallery, const char *name)
{
    struct gallery_image gone;
    pthread_mutex_lock(&gallery->lock);
    struct gallery_image *image = images_find(&gallery->images, name);
    if (image != NULL) {
        gone = *image;
        images_remove(&gallery->images, image);
    }
    pthread_mutex_unlock(&gallery->lock);
    if (image != NULL) {
        notify(gallery, &gone, false);
    }
    return image != NULL;
}

static int remove_file(struct gallery *gallery, const char *name, struct error *err)
{
    if (unlinkat(gallery->folder_fd, name, 0) != 0 && errno != ENOENT) {
        return disk_error(gallery, name, "delete it", errno, err);
    }
    forget(gallery, name);
    return 0;
}

/* The oldest unpinned image other than `spared`, if the limit is passed. */
static bool find_victim(struct gallery *gallery, const char *spared, char name[GALLERY_NAME_BYTES])
{
    bool found = false;
    pthread_mutex_lock(&gallery->lock);
    bool over = gallery->limit_bytes != 0 && gallery->images.disk_bytes > gallery->limit_bytes;
    for (size_t i = 0; over && !found && i < gallery->images.count; i++) {
        const struct gallery_image *image = gallery->images.by_serial[i];
        found = !image->pinned && (spared == NULL || strcmp(image->name, spared) != 0);
        if (found) {
            strcpy(name, image->name);
        }
    }
    pthread_mutex_unlock(&gallery->lock);
    return found;
}

static int enforce_limit(struct gallery *gallery, const char *spared, struct error *err)
{
    char name[GALLERY_NAME_BYTES];
    int rc = 0;
    while (rc == 0 && find_victim(gallery, spared, name)) {
        rc = remove_file(gallery, name, err);
    }
    return rc;
}

int gallery_room(struct gallery *gallery, const char *name, uint64_t bytes, struct error *err)
{
    pthread_mutex_lock(&gallery->lock);
    const struct gallery_image *old = name != NULL ? images_find(&gallery->images, name) : NULL;
    uint64_t limit = gallery->limit_bytes;
    uint64_t pinned =
        gallery->images.pinned_bytes - (old != NULL && old->pinned ? old->disk_bytes : 0);
    pthread_mutex_unlock(&gallery->lock);
    if (limit == 0 || (bytes <= limit && pinned <= limit - bytes)) {
        return 0;
    }
    if (bytes > limit) {
        return error_set(err, ENOSPC,
                         "images_limit: a picture of %s passes %s: raise control/images_limit",
                         size_shown(bytes).text, size_shown(limit).text);
    }
    /* (No name in it, for others may read it.) */
    return error_set(
        err, ENOSPC,
        "images_limit: %s of pinned images and %s more pass %s: unpin some (chmod -t), or raise "
        "control/images_limit",
        size_shown(pinned).text, size_shown(bytes).text, size_shown(limit).text);
}

/* Notes a file just written as the newest image. */
static int adopt(struct gallery *gallery, const char *name, struct gallery_image *stored,
                 struct error *err)
{
    struct stat stat;
    struct gallery_image *image = malloc(sizeof *image);
    if (image == NULL) {
        return error_set(err, ENOMEM, "%s: out of memory", gallery->folder);
    }
    if (fstatat(gallery->folder_fd, name, &stat, AT_SYMLINK_NOFOLLOW) != 0) {
        free(image);
        return disk_error(gallery, name, "look at it", errno, err);
    }
    image_fill(image, name, &stat);
    pthread_mutex_lock(&gallery->lock);
    const struct gallery_image *old = images_find(&gallery->images, name);
    bool repin = old != NULL && old->pinned;
    int rc = images_reserve(&gallery->images);
    if (rc == 0) {
        image->pinned = repin;
        images_add(&gallery->images, image);
        *stored = *image;
    }
    pthread_mutex_unlock(&gallery->lock);
    if (rc != 0) {
        free(image);
        return error_set(err, ENOMEM, "%s: out of memory", gallery->folder);
    }
    if (repin) {
        fchmodat(gallery->folder_fd, name, 0444 | S_ISVTX, 0);
    }
    return 0;
}

int gallery_store(struct gallery *gallery, const char *name, const struct png_image *image,
                  struct gallery_image *stored, struct error *err)
{
    struct gallery_image adopted;
    uint8_t *bytes;
    size_t length;
    if (!is_image_name(name) || strchr(name, '/') != NULL) {
        return error_set(err, EINVAL, "%s: no name for an image", name);
    }
    int rc = png_encode(image, &bytes, &length, err);
    if (rc != 0) {
        return rc;
    }
    pthread_mutex_lock(&gallery->change_lock);
    rc = gallery_room(gallery, name, length, err);
    if (rc == 0) {
        rc = png_write_bytes(gallery->folder_fd, name, bytes, length, err);
    }
    if (rc == 0) {
        rc = adopt(gallery, name, &adopted, err);
    }
    if (rc == 0) {
        notify(gallery, &adopted, true);
        enforce_limit(gallery, name, NULL); /* the image is safe; the next one tries again */
    }
    pthread_mutex_unlock(&gallery->change_lock);
    free(bytes);
    if (rc == 0 && stored != NULL) {
        *stored = adopted;
    }
    return rc;
}

int gallery_open_image(struct gallery *gallery, const char *name, struct error *err)
{
    struct gallery_image image;
    if (!gallery_find(gallery, name, &image)) {
        return error_set(err, ENOENT, "%s/%s: no such image", gallery->folder, name);
    }
    int fd = openat(gallery->folder_fd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) {
        int errnum = errno;
        if (errnum == ENOENT) {
            /* Someone deleted it behind our back. */
            pthread_mutex_lock(&gallery->change_lock);
            forget(gallery, name);
            pthread_mutex_unlock(&gallery->change_lock);
        }
        return disk_error(gallery, name, "open it", errnum, err);
    }
    return fd;
}

int gallery_remove(struct gallery *gallery, const char *name, struct error *err)
{
    struct gallery_image image;
    int rc = 0;
    pthread_mutex_lock(&gallery->change_lock);
    if (!gallery_find(gallery, name, &image)) {
        rc = error_set(err, ENOENT, "%s/%s: no such image", gallery->folder, name);
    } else {
        rc = remove_file(gallery, name, err);
    }
    pthread_mutex_unlock(&gallery->change_lock);
    return rc;
}

int gallery_pin(struct gallery *gallery, const char *name, bool pinned, struct error *err)
{
    int rc = 0;
    struct gallery_image known;
    pthread_mutex_lock(&gallery->change_lock);
    if (!gallery_find(gallery, name, &known)) {
        rc = error_set(err, ENOENT, "%s/%s: no such image", gallery->folder, name);
    } else if (fchmodat(gallery->folder_fd, name, pinned ? 0444 | S_ISVTX : 0444, 0) != 0) {
        rc = disk_error(gallery, name, pinned ? "pin it" : "unpin it", errno, err);
    } else {
        pthread_mutex_lock(&gallery->lock);
        struct gallery_image *image = images_find(&gallery->images, name);
        images_pin(&gallery->images, image, pinned);
        pthread_mutex_unlock(&gallery->lock);
    }
    pthread_mutex_unlock(&gallery->change_lock);
    return rc;
}

int gallery_set_limit(struct gallery *gallery, uint64_t bytes, struct error *err)
{
    pthread_mutex_lock(&gallery->change_lock);
    pthread_mutex_lock(&gallery->lock);
    gallery->limit_bytes = bytes;
    gallery->images.changes++;
    pthread_mutex_unlock(&gallery->lock);
    int rc = enforce_limit(gallery, NULL, err);
    pthread_mutex_unlock(&gallery->change_lock);
    return rc;
}

/* ---- Reading ---- */

bool gallery_find(struct gallery *gallery, const char *name, struct gallery_image *image)
{
    pthread_mutex_lock(&gallery->lock);
    const struct gallery_image *found = images_find(&gallery->images, name);
    if (found != NULL) {
        *image = *found;
    }
    pthread_mutex_unlock(&gallery->lock);
    return found != NULL;
}

bool gallery_newest(struct gallery *gallery, uint64_t before, struct gallery_image *image)
{
    pthread_mutex_lock(&gallery->lock);
    size_t count = before > 0 ? images_after(&gallery->images, before - 1) : 0;
    if (count > 0) {
        *image = *gallery->images.by_serial[count - 1];
    }
    pthread_mutex_unlock(&gallery->lock);
    return count > 0;
}

bool gallery_latest(struct gallery *gallery, struct gallery_image *image)
{
    return gallery_newest(gallery, UINT64_MAX, image);
}

size_t gallery_list(struct gallery *gallery, uint64_t after, struct gallery_image *images,
                    size_t capacity)
{
    pthread_mutex_lock(&gallery->lock);
    const struct images *all = &gallery->images;
    size_t from = images_after(all, after);
    size_t count = all->count - from < capacity ? all->count - from : capacity;
    for (size_t i = 0; i < count; i++) {
        images[i] = *all->by_serial[from + i];
    }
    pthread_mutex_unlock(&gallery->lock);
    return count;
}

void gallery_use(struct gallery *gallery, struct gallery_use *use)
{
    pthread_mutex_lock(&gallery->lock);
    *use = (struct gallery_use){.images = gallery->images.count,
                                .disk_bytes = gallery->images.disk_bytes,
                                .pinned_bytes = gallery->images.pinned_bytes,
                                .limit_bytes = gallery->limit_bytes,
                                .changes = gallery->images.changes};
    pthread_mutex_unlock(&gallery->lock);
}
