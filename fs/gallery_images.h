/* SPDX-License-Identifier: MIT */
/* The images a gallery knows of, in order of age and of name, and their sums. No locks, no disk. */
#ifndef FLUXFS_FS_GALLERY_IMAGES_H
#define FLUXFS_FS_GALLERY_IMAGES_H

#include "fs/gallery.h"

struct images {
    struct gallery_image **by_serial; /* oldest first; owned */
    struct gallery_image **by_name;   /* the same ones */
    size_t count, capacity;
    uint64_t disk_bytes, pinned_bytes;
    uint64_t last_serial, changes;
};

void images_finish(struct images *images);

/* Room for one more, so that images_add can't fail. Failure: −ENOMEM. */
int images_reserve(struct images *images);

/* Takes over a heap block as the newest image; an older one of the name is freed. */
void images_add(struct images *images, struct gallery_image *image);
void images_remove(struct images *images, struct gallery_image *image); /* and frees it */
void images_pin(struct images *images, struct gallery_image *image, bool pinned);

struct gallery_image *images_find(const struct images *images, const char *name); /* or NULL */
size_t images_after(const struct images *images, uint64_t serial); /* first of a larger serial */

#endif
