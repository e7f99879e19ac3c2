/* SPDX-License-Identifier: MIT */
#include "engine/cuda/driver.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

/* Where each function goes in the table. Those that changed since they were first published bear
 * the number that cuda.h means by their plain name. */
static const struct {
    const char *name;
    size_t offset;
} entries[] = {
    {"cuGetErrorString", offsetof(struct driver, get_error_string)},
    {"cuInit", offsetof(struct driver, init)},
    {"cuDeviceGet", offsetof(struct driver, device_get)},
    {"cuDeviceGetAttribute", offsetof(struct driver, device_attribute)},
    {"cuDeviceGetPCIBusId", offsetof(struct driver, device_bus_id)},
    {"cuDevicePrimaryCtxRetain", offsetof(struct driver, context_retain)},
    {"cuDevicePrimaryCtxRelease_v2", offsetof(struct driver, context_release)},
    {"cuCtxSetCurrent", offsetof(struct driver, context_set)},
    {"cuMemGetInfo_v2", offsetof(struct driver, memory_info)},
    {"cuEventCreate", offsetof(struct driver, event_create)},
    {"cuEventRecord", offsetof(struct driver, event_record)},
    {"cuEventQuery", offsetof(struct driver, event_query)},
    {"cuEventSynchronize", offsetof(struct driver, event_synchronize)},
    {"cuEventDestroy_v2", offsetof(struct driver, event_destroy)},
    {"cuMemGetAllocationGranularity", offsetof(struct driver, granularity)},
    {"cuMemAddressReserve", offsetof(struct driver, address_reserve)},
    {"cuMemAddressFree", offsetof(struct driver, address_free)},
    {"cuMemCreate", offsetof(struct driver, create)},
    {"cuMemRelease", offsetof(struct driver, release)},
    {"cuMemMap", offsetof(struct driver, map)},
    {"cuMemUnmap", offsetof(struct driver, unmap)},
    {"cuMemSetAccess", offsetof(struct driver, set_access)},
    {"cuTensorMapEncodeTiled", offsetof(struct driver, tensor_map)},
};

/* ---- NVML: what nvml.h says, which not every toolkit has ---- */

struct nvml_memory {
    unsigned long long total, available, used; /* bytes */
};

struct nvml {
    int (*init)(void);
    int (*shutdown)(void);
    int (*device)(const char *bus_id, void **device);
    int (*memory)(void *device, struct nvml_memory *memory);
};

static bool nvml_open(struct nvml *nvml)
{
    static const struct {
        const char *name;
        size_t offset;
    } functions[] = {
        {"nvmlInit_v2", offsetof(struct nvml, init)},
        {"nvmlShutdown", offsetof(struct nvml, shutdown)},
        {"nvmlDeviceGetHandleByPciBusId_v2", offsetof(struct nvml, device)},
        {"nvmlDeviceGetMemoryInfo", offsetof(struct nvml, memory)},
    };
    /* Never closed, as little as the driver. */
    void *library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);

    for (size_t i = 0; library != NULL && i < sizeof functions / sizeof *functions; i++) {
        void *function = dlsym(library, functions[i].name);

        if (function == NULL)
            return false;
        memcpy((char *)nvml + functions[i].offset, &function, sizeof function);
    }
    return library != NULL;
}

static int memory_used(const char *bus_id, uint64_t *bytes)
{
    struct nvml nvml;
    struct nvml_memory memory = {0};
    void *device = NULL;
    int code;

    if (!nvml_open(&nvml) || nvml.init() != 0)
        return -ENOTSUP;
    code = nvml.device(bus_id, &device);
    if (code == 0)
        code = nvml.memory(device, &memory);
    nvml.shutdown();
    if (code != 0)
        return -ENOTSUP;
    *bytes = memory.used;
    return 0;
}

int driver_open(struct driver *driver, struct error *err)
{
    /* Never closed: the runtime opens it too. */
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);

    if (library == NULL)
        return error_set(err, ENODEV, "back end cuda: no NVIDIA driver: %s", dlerror());
    for (size_t i = 0; i < sizeof entries / sizeof *entries; i++) {
        void *function = dlsym(library, entries[i].name);

        if (function == NULL)
            return error_set(
                err, ENODEV,
                "back end cuda: the NVIDIA driver is too old (it has no %s); install a "
                "newer one",
                entries[i].name);
        memcpy((char *)driver + entries[i].offset, &function, sizeof function);
    }
    driver->memory_used = memory_used;
    return 0;
}
