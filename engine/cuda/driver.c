/* SPDX-License-Identifier: MIT */
#include "engine/cuda/driver.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

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
    {"cuDevicePrimaryCtxGetState", offsetof(struct driver, context_state)},
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

struct nvml_process {
    unsigned pid;
    unsigned long long used; /* bytes */
    unsigned instances[2];
};

enum { NVML_PROCESSES = 256 };

/* Begun once and never ended, which takes longer than a look; as little is it closed as the driver.
 */
static struct {
    bool begun;
    int (*init)(void);
    int (*device)(const char *bus_id, void **device);
    int (*memory)(void *device, struct nvml_memory *memory);
    int (*processes)(void *device, unsigned *count, struct nvml_process *processes); /* or NULL */
} nvml;
static pthread_once_t nvml_once = PTHREAD_ONCE_INIT;

static void nvml_begin(void)
{
    static const struct {
        const char *name;
        void *function;
    } functions[] = {
        {"nvmlInit_v2", &nvml.init},
        {"nvmlDeviceGetHandleByPciBusId_v2", &nvml.device},
        {"nvmlDeviceGetMemoryInfo", &nvml.memory},
        {"nvmlDeviceGetComputeRunningProcesses_v3", &nvml.processes},
    };
    void *library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);

    for (size_t i = 0; library != NULL && i < sizeof functions / sizeof *functions; i++) {
        void *function = dlsym(library, functions[i].name);

        memcpy(functions[i].function, &function, sizeof function);
    }
    nvml.begun =
        nvml.init != NULL && nvml.device != NULL && nvml.memory != NULL && nvml.init() == 0;
}

/* Some drivers list us under our number outside of the container, or with nothing. */
static uint64_t own_bytes(void *device)
{
    struct nvml_process processes[NVML_PROCESSES];
    unsigned count = NVML_PROCESSES / 2; /* (early drivers 535 write longer ones) */
    uint64_t bytes = 0;

    if (nvml.processes == NULL || nvml.processes(device, &count, processes) != 0)
        return 0;
    for (unsigned i = 0; i < count; i++)
        if (processes[i].pid == (unsigned)getpid())
            bytes += processes[i].used;
    return bytes;
}

static int usage(const char *bus_id, struct device_usage *usage)
{
    struct nvml_memory memory = {0};
    void *device = NULL;
    uint64_t own;

    pthread_once(&nvml_once, nvml_begin);
    if (!nvml.begun || nvml.device(bus_id, &device) != 0 || nvml.memory(device, &memory) != 0)
        return -ENOTSUP;
    own = own_bytes(device);
    *usage = (struct device_usage){memory.used, own <= memory.total ? own : 0};
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
    driver->usage = usage;
    return 0;
}
