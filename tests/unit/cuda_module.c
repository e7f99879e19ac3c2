/* SPDX-License-Identifier: MIT */
/*
 * The CUDA module opens on any machine: with a GPU it gives a back end, without one it says why
 * not in one line; and it refuses callers of another build.
 * usage: cuda_module FOLDER
 */
#include <dlfcn.h>
#include <errno.h>
#include <string.h>

#include "engine/module.h"
#include "tests/test.h"

static void test_open(const char *folder)
{
    struct backend *backend = NULL;
    struct error err = {0};
    int result = module_open(&backend, folder, "cuda", &err);

    if (result != 0) {
        printf("%s\n", err.text);
        EXPECT(result == -ENODEV, "got %d", result);
        EXPECT(strncmp(err.text, "back end cuda: ", 15) == 0, "\"%s\"", err.text);
        EXPECT(strchr(err.text, '\n') == NULL, "\"%s\"", err.text);
        EXPECT(backend == NULL);
        return;
    }
    printf("%s\n", backend->device_name);
    EXPECT(strcmp(backend->name, "cuda") == 0);
    EXPECT(backend->activation == DTYPE_BF16 && backend->weight == DTYPE_BF16);
    EXPECT(backend->ops->abi == BACKEND_ABI && backend->ops->size == sizeof *backend->ops);
    EXPECT(backend->ops->sync(backend, &err) == 0, "\"%s\"", err.text);
    backend->ops->destroy(backend);
}

static void test_versions(const char *folder)
{
    uint32_t ops_size = sizeof(struct backend_ops), layout = module_layout();
    struct backend *backend = NULL;
    struct error err = {0};
    char path[4096];
    module_create *create;
    void *module;

    snprintf(path, sizeof path, "%s/fluxfs-cuda.so", folder);
    module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (module == NULL)
        return; /* no CUDA libraries here: test_open has seen it */
    create = (module_create *)(uintptr_t)dlsym(module, MODULE_ENTRY);
    if (!EXPECT(create != NULL))
        return;
    EXPECT(create(BACKEND_ABI + 1, ops_size, &backend, &err, layout) == -EPROTO);
    EXPECT(strstr(err.text, "another build") != NULL, "\"%s\"", err.text);
    EXPECT(create(BACKEND_ABI, ops_size - 8, &backend, &err, layout) == -EPROTO);
    EXPECT(create(BACKEND_ABI, ops_size, &backend, &err, layout + 8) == -EPROTO);
    EXPECT(backend == NULL);
}

int main(int argc, char **argv)
{
    if (argc != 2)
        return test_skip("usage: cuda_module FOLDER");
    test_open(argv[1]);
    test_versions(argv[1]);
    return test_finish();
}
