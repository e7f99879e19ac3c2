/* SPDX-License-Identifier: MIT */
#include "fs/gallery_images.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void images_finish(struct images *images)
{
    for (size_t i = 0; i < images->count; i++) {
        free(images->by_serial[i]);
    }
    free(images->by_serial);
    free(images->by_name);
    *images = (struct images){0};
}

static size_t name_find(const struct images *images, const char *name)
{
    size_t low = 0;
    size_t high = images->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (strcmp(images->by_name[middle]->name, name) < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

struct gallery_image *images_find(const struct images *images, const char *name)
{
    size_t at = name_find(images, name);
    return at < images->count && strcmp(images->by_name[at]->name, name) == 0 ? images->by_name[at]
                                                                              : NULL;
}

size_t images_after(const struct images *images, uint64_t serial)
{
    size_t low = 0;
    size_t high = images->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (images->by_serial[middle]->serial > serial) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

static void cut(struct gallery_image **list, size_t at, size_t count)
{
    memmove(list + at, list + at + 1, (count - at - 1) * sizeof *list);
}

void images_remove(struct images *images, struct gallery_image *image)
{
    cut(images->by_name, name_find(images, image->name), images->count);
    cut(images->by_serial, images_after(images, image->serial) - 1, images->count);
    images->count--;
    images->disk_bytes -= image->disk_bytes;
    images->pinned_bytes -= image->pinned ? image->disk_bytes : 0;
    images->changes++;
    free(image);
}

int images_reserve(struct images *images)
{
    if (images->count < images->capacity) {
        return 0;
    }
    size_t capacity = images->capacity * 2 + 64;
    struct gallery_image **serials =
        reallocarray(images->by_serial, capacity, sizeof *images->by_serial);
    if (serials == NULL) {
        return -ENOMEM;
    }
    images->by_serial = serials;
    struct gallery_image **names = reallocarray(images->by_name, capacity, sizeof *images->by_name);
    if (names == NULL) {
        return -ENOMEM;
    }
    images->by_name = names;
    images->capacity = capacity;
    return 0;
}

/* Takes the image over as the newest; index_reserve has made room. */
void images_add(struct images *images, struct gallery_image *image)
{
    struct gallery_image *old = images_find(images, image->name);
    if (old != NULL) {
        images_remove(images, old);
    }
    size_t at = name_find(images, image->name);
    memmove(images->by_name + at + 1, images->by_name + at,
            (images->count - at) * sizeof *images->by_name);
    images->by_name[at] = image;
    image->serial = ++images->last_serial;
    images->by_serial[images->count++] = image;
    images->disk_bytes += image->disk_bytes;
    images->pinned_bytes += image->pinned ? image->disk_bytes : 0;
    images->changes++;
}

void images_pin(struct images *images, struct gallery_image *image, bool pinned)
{
    images->pinned_bytes -= image->pinned ? image->disk_bytes : 0;
    images->pinned_bytes += pinned ? image->disk_bytes : 0;
    image->pinned = pinned;
    images->changes++;
}
