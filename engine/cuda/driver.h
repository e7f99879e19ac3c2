/* SPDX-License-Identifier: MIT */
/*
 * The driver's own functions, for what the runtime does not offer: virtual memory, and whatever
 * memory has to do with. They are looked up at run time, so that the module also opens where there
 * is no driver and can say so.
 */
#ifndef FLUXFS_ENGINE_CUDA_DRIVER_H
#define FLUXFS_ENGINE_CUDA_DRIVER_H

#include <cuda.h>
#include <stdint.h>

#include "engine/error.h"

enum { BUS_ID_BYTES = 32 };

/* Memory of a device in use. */
struct device_usage {
    uint64_t all_bytes; /* by anybody */
    uint64_t own_bytes; /* by this process; 0: none, or not told, as in some containers */
};

struct driver {
    CUresult (*get_error_string)(CUresult code, const char **text);
    CUresult (*init)(unsigned flags);
    CUresult (*device_get)(CUdevice *device, int number);
    CUresult (*device_attribute)(int *value, CUdevice_attribute attribute, CUdevice device);
    CUresult (*device_bus_id)(char *text, int bytes, CUdevice device);

    CUresult (*context_state)(CUdevice device, unsigned *flags, int *active);
    CUresult (*context_retain)(CUcontext *context, CUdevice device);
    CUresult (*context_release)(CUdevice device);
    CUresult (*context_set)(CUcontext context);
    CUresult (*memory_info)(size_t *free_bytes, size_t *total_bytes);

    CUresult (*event_create)(CUevent *event, unsigned flags);
    CUresult (*event_record)(CUevent event, CUstream stream);
    CUresult (*event_query)(CUevent event);
    CUresult (*event_synchronize)(CUevent event);
    CUresult (*event_destroy)(CUevent event);

    CUresult (*granularity)(size_t *bytes, const CUmemAllocationProp *properties,
                            CUmemAllocationGranularity_flags option);
    CUresult (*address_reserve)(CUdeviceptr *address, size_t bytes, size_t alignment,
                                CUdeviceptr wanted, unsigned long long flags);
    CUresult (*address_free)(CUdeviceptr address, size_t bytes);
    CUresult (*create)(CUmemGenericAllocationHandle *handle, size_t bytes,
                       const CUmemAllocationProp *properties, unsigned long long flags);
    CUresult (*release)(CUmemGenericAllocationHandle handle);
    CUresult (*map)(CUdeviceptr address, size_t bytes, size_t offset,
                    CUmemGenericAllocationHandle handle, unsigned long long flags);
    CUresult (*unmap)(CUdeviceptr address, size_t bytes);
    CUresult (*set_access)(CUdeviceptr address, size_t bytes, const CUmemAccessDesc *access,
                           size_t count);

    /* What a matrix in memory is, for the copies of hopper.cuh. */
    CUresult (*tensor_map)(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *data,
                           const cuuint64_t *counts, const cuuint64_t *strides,
                           const cuuint32_t *box, const cuuint32_t *steps,
                           CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                           CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill);

    /* From NVML, if it is there; needs no context. 0 or -ENOTSUP. */
    int (*usage)(const char *bus_id, struct device_usage *usage);
};

/* ENODEV: there is no driver, or one too old. */
int driver_open(struct driver *driver, struct error *err);

#endif
