/* SPDX-License-Identifier: MIT */
/* Back ends that are modules, opened at run time: the same binary runs where they can't. */
#ifndef FLUXFS_ENGINE_MODULE_H
#define FLUXFS_ENGINE_MODULE_H

#include "engine/backend.h"

/* Every module exports this function under this name. It checks that the table's `abi` and `size`
 * are those of the caller. */
#define MODULE_ENTRY "fluxfs_backend_create"
typedef int module_create(uint32_t abi, uint32_t ops_size, struct backend **backend,
                          struct error *err);

/* Opens `directory`/fluxfs-`name`.so and creates its back end. ENOENT: there is no such module;
 * ENODEV: there is, but no device for it. A module stays loaded. */
int module_open(struct backend **backend, const char *directory, const char *name,
                struct error *err);

#endif
