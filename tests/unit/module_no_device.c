/* SPDX-License-Identifier: MIT */
/* A module whose device is never there, for module.c. */
#include "engine/module.h"

__attribute__((visibility("default"))) module_create fluxfs_backend_create;

int fluxfs_backend_create(uint32_t abi, uint32_t ops_size, struct backend **backend,
                          struct error *err, uint32_t layout)
{
    if (module_check(abi, ops_size, layout, err) != 0)
        return err->code;
    return error_set(err, ENODEV, "no such device");
}
