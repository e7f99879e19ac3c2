/* SPDX-License-Identifier: MIT */
/*
 * prompts/: real files in a folder of the state, shown through the mount, so that editors find all
 * they expect of files. Flat. Each file the kernel knows is held open (O_PATH) under a number, for
 * it may have lost its name.
 */
#ifndef FLUXFS_FS_DROP_H
#define FLUXFS_FS_DROP_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "engine/error.h"

struct drop_file;

struct drop {
    pthread_mutex_t *lock; /* the tree lock */
    int folder_fd;
    struct drop_file *files; /* guarded by lock */
    int64_t last_id;         /* guarded by lock */
};

/* Makes the folder if absent. Failure: as the disk says, naming it. */
int drop_init(struct drop *drop, const char *folder, pthread_mutex_t *lock, struct error *err);
void drop_finish(struct drop *drop);

/* Finds a name and counts one more lookup of its file; the id is the file's from now on.
 * Failure: ENOENT, ENOMEM … */
int drop_lookup(struct drop *drop, const char *name, int64_t *id, struct stat *st);
void drop_forget(struct drop *drop, int64_t id, uint64_t lookups);

/* The O_PATH descriptor of a file that the kernel still knows. */
int drop_file_fd(struct drop *drop, int64_t id);

/* Opens such a file for reading or writing. */
int drop_reopen(struct drop *drop, int64_t id, int flags);

/* Whether a file of this name is a prompt, and not one that an editor or copier works with: .*, *~,
 * #*#, *.swp, *.swx, *.tmp, *.bak, *.part, *.crdownload, vim's 4913, sed's sedXXXXXX, and
 * x.txt.XXXXXX, as GLib and Qt name what will be x.txt. */
bool drop_name_is_prompt(const char *name);

/* The name a file has now, if it still has one: the folder is searched for its inode. */
bool drop_name_of(struct drop *drop, int fd, char name[256]);

#endif
