/* SPDX-License-Identifier: MIT */
/*
 * The store of finished images: one folder of PNG files, known by heart, with a limit on disk use.
 *
 * Files never change; a new image of the same name takes its place by rename, and gets a new
 * serial. All functions may be called from any thread; those that read memory only say so.
 */
#ifndef FLUXFS_FS_GALLERY_H
#define FLUXFS_FS_GALLERY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/error.h"
#include "fs/png.h"

struct gallery;

enum { GALLERY_NAME_BYTES = 256, GALLERY_MAX_SLUG_BYTES = 48 };

/* The link to the newest image; no image has this name. */
#define GALLERY_LATEST "latest.png"

struct gallery_image {
    char name[GALLERY_NAME_BYTES];
    uint64_t serial; /* unique in this run of the daemon; grows: newer images have larger ones */
    uint64_t bytes;  /* size of the file */
    uint64_t disk_bytes; /* what it takes on the disk */
    int64_t mtime_ns;
    bool pinned; /* kept when the limit is passed; the file's sticky bit */
};

struct gallery_observer {
    void *owner;
    /* An image came (true) or went (false: by gallery_remove or the limit; a replaced image only
     * comes). Reading functions may be called from it, changing ones may not. */
    void (*changed)(void *owner, const struct gallery_image *image, bool came);
};

struct gallery_options {
    const char *folder;               /* made if absent */
    uint64_t limit_bytes;             /* of disk use; 0: none */
    struct gallery_observer observer; /* `changed` may be NULL */
};

struct gallery_use {
    size_t images;
    uint64_t disk_bytes, pinned_bytes, limit_bytes;
    uint64_t changes; /* grows with every change */
};

/* Reads the folder, and deletes temporaries that a crash left. Files that are no .png are let be
 * and not shown. Failure: as the disk says, naming the folder. */
int gallery_open(struct gallery **gallery, const struct gallery_options *options,
                 struct error *err);
void gallery_close(struct gallery *gallery); /* NULL is allowed */

/* A piece of a file name from any UTF-8 text: folded to a-z, 0-9 and single dashes, cut between
 * words to 48 bytes; "image" if nothing is left. */
void gallery_slug(char slug[GALLERY_MAX_SLUG_BYTES + 1], const char *text);

/* The name for a job's image, always the same (so a job that runs again after a crash replaces its
 * image, and leaves no second one) for the same arguments: "fox.png" if `source` is the
 * file fox.txt of prompts/ (its extension, if any, changed), else "0017-a-red-fox.png" of the id
 * and the slug of `hint`, or of `text` if that is NULL or "". */
void gallery_name(char name[GALLERY_NAME_BYTES], int64_t id, const char *source, const char *hint,
                  const char *text);

/* Whether so many bytes, in place of the image of that name if there is one (it may be NULL), can
 * ever fit: pinned images stay. Failure: ENOSPC. Reads memory only. */
int gallery_room(struct gallery *gallery, const char *name, uint64_t bytes, struct error *err);

/* Writes the image (png_write_file) and then, if the limit is passed, deletes the oldest unpinned
 * ones, never this one. `stored` may be NULL. Failure: as png_write_file; also as
 * gallery_room. */
int gallery_store(struct gallery *gallery, const char *name, const struct png_image *image,
                  struct gallery_image *stored, struct error *err);

/* The file for reading: a descriptor, or ENOENT … */
int gallery_open_image(struct gallery *gallery, const char *name, struct error *err);

int gallery_remove(struct gallery *gallery, const char *name, struct error *err);

/* Pins or unpins. */
int gallery_pin(struct gallery *gallery, const char *name, bool pinned, struct error *err);

/* A new limit takes effect at once; 0: none. */
int gallery_set_limit(struct gallery *gallery, uint64_t bytes, struct error *err);

/* ---- From memory. ---- */
bool gallery_find(struct gallery *gallery, const char *name, struct gallery_image *image);
bool gallery_latest(struct gallery *gallery, struct gallery_image *image);

/* The newest of those with a serial below `before`. */
bool gallery_newest(struct gallery *gallery, uint64_t before, struct gallery_image *image);

/* Images with serials above `after`, ascending (oldest first), at most `capacity`; returns how
 * many. */
size_t gallery_list(struct gallery *gallery, uint64_t after, struct gallery_image *images,
                    size_t capacity);
void gallery_use(struct gallery *gallery, struct gallery_use *use);

#endif
