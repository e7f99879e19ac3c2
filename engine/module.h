/* SPDX-License-Identifier: MIT */
/* Back ends that are modules, opened at run time: the same binary runs where they can't. */
#ifndef FLUXFS_ENGINE_MODULE_H
#define FLUXFS_ENGINE_MODULE_H

#include <errno.h>

#include "engine/backend.h"

/* Of the sizes of all that is handed over, beside the table's: a number that a change of any of
 * them changes. */
static inline uint32_t module_layout(void)
{
    static const size_t sizes[] = {
        sizeof(struct backend),     sizeof(struct page_source), sizeof(struct page_source_ops),
        sizeof(struct weight_copy), sizeof(struct tensor),      sizeof(struct linear),
        sizeof(struct attention),   sizeof(struct conv),        sizeof(struct head_norm),
        sizeof(struct gated_norm),  sizeof(struct group_norm),  sizeof(struct error),
    };
    uint32_t layout = 0;

    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        layout = 31 * layout + (uint32_t)sizes[i];
    return layout;
}

/* Every module exports this function under this name. What is new to it comes last: modules from
 * before that see by `abi` that they don't fit. */
#define MODULE_ENTRY "fluxfs_backend_create"
typedef int module_create(uint32_t abi, uint32_t ops_size, struct backend **backend,
                          struct error *err, uint32_t layout);

/* What it does first: EPROTO if the caller is of another build. */
static inline int module_check(uint32_t abi, uint32_t ops_size, uint32_t layout, struct error *err)
{
    if (abi == BACKEND_ABI && ops_size == sizeof(struct backend_ops) && layout == module_layout())
        return 0;
    return error_set(err, EPROTO, "the module is of another build");
}

/* Opens `directory`/fluxfs-`name`.so and creates its back end. ENOENT: there is no such module;
 * ENODEV: there is, but no device for it; EPROTO: it is of another build than the caller, or no
 * module. A module stays loaded. */
int module_open(struct backend **backend, const char *directory, const char *name,
                struct error *err);

#endif
