/* SPDX-License-Identifier: MIT */
#include "engine/module.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int module_open(struct backend **backend, const char *directory, const char *name,
                struct error *err)
{
    char path[4096];
    void *module;
    module_create *create;
    int result;

    if (directory == NULL)
        return error_set(err, ENOENT,
                         "back end %s: fluxfs-%s.so is not installed: build with CUDA, or say in "
                         "module_dir where it lies",
                         name, name);
    if (snprintf(path, sizeof path, "%s/fluxfs-%s.so", directory, name) >= (int)sizeof path)
        return error_set(err, ENAMETOOLONG, "back end %s: the module directory's path is too long",
                         name);
    if (access(path, R_OK) != 0)
        return error_set(err, errno, "back end %s: module %.150s: %s", name, path, strerror(errno));
    module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (module == NULL)
        return error_set(err, ENODEV, "back end %s: %s", name, dlerror());
    create = (module_create *)(uintptr_t)dlsym(module, MODULE_ENTRY);
    if (create == NULL)
        return error_set(err, EPROTO, "back end %s: %.150s is no fluxfs module", name, path);
    result = create(BACKEND_ABI, sizeof(struct backend_ops), backend, err, module_layout());
    /* Said here, as the other build may say anything. */
    if (result == -EPROTO)
        return error_set(err, EPROTO,
                         "back end %s: %.120s is of another build than this fluxfs: install both "
                         "from one build, or name the module's folder in module_dir",
                         name, path);
    return result;
}
