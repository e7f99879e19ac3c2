/* SPDX-License-Identifier: MIT */
/* What can be done to a checkpoint's files. Ends the program when it can't be done. */
#ifndef FLUXFS_TESTS_GOLDEN_DAMAGE_H
#define FLUXFS_TESTS_GOLDEN_DAMAGE_H

enum action {
    REMOVE,   /* the file or folder */
    WRITE,    /* `to` instead of the file's text */
    EDIT,     /* `from` becomes `to`, once */
    SET,      /* the key `from` of a JSON file to the value `to` */
    HEADER,   /* as EDIT, in the header of a safetensors file */
    TRUNCATE, /* to so many bytes as `to` says */
    LENGTH,   /* the header's length becomes what `to` says */
    POISON,   /* every value of the fp32 tensor `from` becomes `to` */
    SWAP,     /* with the folder `to` */
    GRAFT,    /* the folder of the checkpoint `to` instead */
};

struct damage {
    enum action action;
    const char *file, *from, *to;
    /* What the error must contain, divided by '|'; NULL: the file, and what was damaged in it. */
    const char *says;
};

extern const char *originals; /* the folder of the whole checkpoints */
extern char root[64];         /* the one to be damaged */

/* On the checkpoint in `root`. */
void inflict(const struct damage *damage);

void tree_copy(const char *from, const char *to);
void tree_remove(const char *path);
_Noreturn void die(const char *what);

#endif
