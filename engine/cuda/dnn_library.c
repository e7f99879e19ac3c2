/* SPDX-License-Identifier: MIT */
#include "engine/cuda/dnn.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    size_t offset;
} entries[] = {
    {"cudnnGetVersion", offsetof(struct dnn_library, version)},
    {"cudnnGetErrorString", offsetof(struct dnn_library, error_string)},
    {"cudnnCreate", offsetof(struct dnn_library, create)},
    {"cudnnDestroy", offsetof(struct dnn_library, destroy)},
    {"cudnnSetStream", offsetof(struct dnn_library, set_stream)},
    {"cudnnBackendCreateDescriptor", offsetof(struct dnn_library, descriptor_create)},
    {"cudnnBackendDestroyDescriptor", offsetof(struct dnn_library, descriptor_destroy)},
    {"cudnnBackendSetAttribute", offsetof(struct dnn_library, set)},
    {"cudnnBackendGetAttribute", offsetof(struct dnn_library, get)},
    {"cudnnBackendFinalize", offsetof(struct dnn_library, finalize)},
    {"cudnnBackendExecute", offsetof(struct dnn_library, execute)},
};

bool dnn_library_open(struct dnn_library *library)
{
    const char *wish = getenv("FLUXFS_CUDNN");
    void *object;

    *library = (struct dnn_library){0};
    if (wish != NULL && strcmp(wish, "off") == 0)
        return false;
    object = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_LOCAL); /* stays, as the module does */
    for (size_t i = 0; object != NULL && i < sizeof entries / sizeof *entries; i++) {
        void *function = dlsym(object, entries[i].name);

        if (function == NULL)
            return false;
        memcpy((char *)library + entries[i].offset, &function, sizeof function);
    }
    return object != NULL && library->version() >= DNN_LEAST_VERSION;
}
