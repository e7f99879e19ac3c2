/* SPDX-License-Identifier: MIT */
/* The driver of the emulated GPU: it watches the rules of the manual, and fails when told to. */
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "tests/kernels/emulate/calls.h"
#include "tests/kernels/emulate/device.h"

enum { MEMORY_MIB = 8192, CONTEXT_MIB = 96 };
#define MIB ((size_t)1 << 20)
/* Of each pinned page of the host, in the device's memory. */
enum { HOST_PAGE_BYTES = 4096, TABLE_ENTRY_BYTES = 8 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
struct device_books call_books; /* lock, as the following */
static int contexts;            /* retained: how many times the one is */
static bool runtime_holds;      /* it too */
static int growths;             /* since it was made */
static int starts;              /* of cuBLASLt that have not ended */
static uint64_t fail_at, fail_repeat;
static CUresult fail_code;

static _Thread_local bool has_context;
static int the_context; /* of which only the address is used */

/* ---- what tests ask and tell ---- */

void device_read_books(struct device_books *out)
{
    pthread_mutex_lock(&lock);
    *out = call_books;
    pthread_mutex_unlock(&lock);
}

void device_fail(uint64_t at, uint64_t repeat, int code)
{
    pthread_mutex_lock(&lock);
    fail_at = at > 0 ? call_books.calls + at : 0;
    fail_repeat = repeat;
    fail_code = (CUresult)code;
    pthread_mutex_unlock(&lock);
}

static size_t others_bytes(void)
{
    long swing = growths % 2 != 0 ? device_word("swings", 0) : 0;

    return (size_t)(device_word("others", 0) + swing) * MIB;
}

static size_t total_bytes(void)
{
    return (size_t)device_word("memory", MEMORY_MIB) * MIB;
}

static bool is_context(void)
{
    return contexts > 0 || runtime_holds;
}

static size_t own_bytes(void)
{
    long context = device_word("context", CONTEXT_MIB) + device_word("grown", 0) +
                   growths * device_word("grows", 0) + starts * device_word("started", 0);

    return virtual_bytes() + (is_context() ? (size_t)context * MIB : 0) +
           pinned_bytes() / HOST_PAGE_BYTES * TABLE_ENTRY_BYTES;
}

void device_grow(void)
{
    pthread_mutex_lock(&lock);
    growths++;
    pthread_mutex_unlock(&lock);
}

void device_start(bool started)
{
    pthread_mutex_lock(&lock);
    starts += started ? 1 : -1;
    pthread_mutex_unlock(&lock);
}

void device_hold(bool hold)
{
    pthread_mutex_lock(&lock);
    runtime_holds = hold && contexts > 0;
    if (!is_context())
        growths = 0;
    pthread_mutex_unlock(&lock);
}

void device_memory(size_t *used, size_t *total)
{
    pthread_mutex_lock(&lock);
    *total = total_bytes();
    *used = own_bytes() + others_bytes();
    if (*used > *total)
        *used = *total;
    pthread_mutex_unlock(&lock);
}

bool device_lacks(size_t bytes)
{
    return own_bytes() + others_bytes() + bytes > total_bytes();
}

void call_lock(void)
{
    pthread_mutex_lock(&lock);
}

bool call_begin(CUresult *code)
{
    call_lock();
    call_books.calls++;
    *code = CUDA_SUCCESS;
    if (fail_at == 0 || call_books.calls < fail_at || call_books.calls > fail_at + fail_repeat)
        return true;
    *code = fail_code;
    pthread_mutex_unlock(&lock);
    return false;
}

CUresult call_end(CUresult code)
{
    pthread_mutex_unlock(&lock);
    return code;
}

CUresult call_break(const char *rule)
{
    if (call_books.fault == NULL)
        call_books.fault = rule;
    return CUDA_ERROR_INVALID_VALUE;
}

/* ---- the device and its context ---- */

static CUresult get_error_string(CUresult code, const char **text)
{
    switch (code) {
    case CUDA_ERROR_OUT_OF_MEMORY:
        *text = "out of memory";
        break;
    case CUDA_ERROR_LAUNCH_FAILED:
        *text = "unspecified launch failure";
        break;
    case CUDA_ERROR_ILLEGAL_ADDRESS:
        *text = "an illegal memory access was encountered";
        break;
    case CUDA_ERROR_INVALID_VALUE:
        *text = "invalid argument";
        break;
    default:
        *text = NULL; /* as the driver has it for what it does not know */
        return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

static CUresult init(unsigned flags)
{
    CUresult code;

    return call_begin(&code) ? call_end(flags == 0 ? CUDA_SUCCESS : call_break("cuInit with flags"))
                             : code;
}

static CUresult device_get(CUdevice *device, int number)
{
    CUresult code;

    if (!call_begin(&code))
        return code;
    *device = number;
    return call_end(number == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE);
}

static CUresult device_attribute(int *value, CUdevice_attribute attribute, CUdevice device)
{
    CUresult code;

    if (!call_begin(&code))
        return code;
    *value = attribute == CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED &&
             device_word("no-virtual-memory", -1) != 0;
    return call_end(CUDA_SUCCESS);
}

static CUresult device_bus_id(char *text, int bytes, CUdevice device)
{
    CUresult code;

    if (!call_begin(&code))
        return code;
    strncpy(text, "0000:01:00.0", (size_t)bytes);
    return call_end(CUDA_SUCCESS);
}

static CUresult context_state(CUdevice device, unsigned *flags, int *active)
{
    CUresult code;

    if (!call_begin(&code))
        return code;
    *flags = 0;
    *active = is_context();
    return call_end(CUDA_SUCCESS);
}

static CUresult context_retain(CUcontext *context, CUdevice device)
{
    CUresult code;

    if (!call_begin(&code))
        return code;
    if (!is_context() &&
        own_bytes() + others_bytes() + (size_t)device_word("context", CONTEXT_MIB) * MIB >
            total_bytes())
        return call_end(CUDA_ERROR_OUT_OF_MEMORY);
    contexts++;
    call_books.contexts++;
    *context = (CUcontext)&the_context;
    return call_end(CUDA_SUCCESS);
}

static CUresult context_release(CUdevice device)
{
    CUresult code;

    if (!call_begin(&code))
        return code;
    if (contexts == 0)
        return call_end(call_break("a context released once too often"));
    contexts--;
    call_books.contexts--;
    if (!is_context())
        growths = 0;
    return call_end(CUDA_SUCCESS);
}

static CUresult context_set(CUcontext context)
{
    CUresult code;

    if (!call_begin(&code))
        return code;
    has_context = context == (CUcontext)&the_context;
    return call_end(CUDA_SUCCESS);
}

static CUresult memory_info(size_t *available, size_t *total)
{
    CUresult code;
    size_t used;

    if (!call_begin(&code))
        return code;
    if (!has_context)
        return call_end(CUDA_ERROR_INVALID_CONTEXT);
    call_end(CUDA_SUCCESS);
    device_memory(&used, total);
    *available = *total - used;
    return CUDA_SUCCESS;
}

/* "nvml=MIB": it sees so much more than there is, as if somebody else took it between two looks. */
static int usage(const char *bus_id, struct device_usage *usage)
{
    static int looks;
    size_t used, total;
    bool told = device_word("no-processes", -1) < 0;

    if (device_word("no-nvml", -1) == 0 || strcmp(bus_id, "0000:01:00.0") != 0)
        return -ENOTSUP;
    device_memory(&used, &total);
    usage->all_bytes = used + (looks++ % 2 != 0 ? (size_t)device_word("nvml", 0) * MIB : 0);
    pthread_mutex_lock(&lock);
    usage->own_bytes = told ? own_bytes() : 0;
    pthread_mutex_unlock(&lock);
    return 0;
}

/* ---- events ---- */

static CUresult result_of(cudaError_t code)
{
    switch (code) {
    case cudaSuccess:
        return CUDA_SUCCESS;
    case cudaErrorNotReady:
        return CUDA_ERROR_NOT_READY;
    case cudaErrorMemoryAllocation:
        return CUDA_ERROR_OUT_OF_MEMORY;
    default:
        return CUDA_ERROR_LAUNCH_FAILED;
    }
}

static CUresult event_create(CUevent *event, unsigned flags)
{
    CUresult code;

    if (!call_begin(&code))
        return code;
    if (!has_context)
        return call_end(CUDA_ERROR_INVALID_CONTEXT);
    call_books.events++;
    call_end(CUDA_SUCCESS);
    return result_of(cudaEventCreateWithFlags(event, flags));
}

static CUresult event_record(CUevent event, CUstream stream)
{
    CUresult code;

    return call_begin(&code) ? (call_end(code), result_of(cudaEventRecord(event, stream))) : code;
}

static CUresult event_query(CUevent event)
{
    CUresult code;

    return call_begin(&code) ? (call_end(code), result_of(cudaEventQuery(event))) : code;
}

static CUresult event_synchronize(CUevent event)
{
    CUresult code;

    return call_begin(&code) ? (call_end(code), result_of(cudaEventSynchronize(event))) : code;
}

static CUresult event_destroy(CUevent event)
{
    CUresult code;

    if (!call_begin(&code))
        return code;
    call_books.events--;
    call_end(CUDA_SUCCESS);
    return result_of(cudaEventDestroy(event));
}

/* Whether a map is one of those that the kernels use, as the manual wants it. */
static bool map_is_sound(const struct device_map *map)
{
    bool sound = (uintptr_t)map->data % 16 == 0 && map->box[0] * 2 <= 128;

    for (int i = 0; i < 3; i++)
        sound &= map->counts[i] > 0 && map->box[i] > 0 && map->box[i] <= 256;
    return sound && map->strides[0] % 16 == 0 && map->strides[1] % 16 == 0;
}

static CUresult tensor_map(CUtensorMap *out, CUtensorMapDataType type, cuuint32_t rank, void *data,
                           const cuuint64_t *counts, const cuuint64_t *strides,
                           const cuuint32_t *box, const cuuint32_t *steps,
                           CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                           CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill)
{
    struct device_map map = {.data = data};

    if (type != CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 || rank != 3 || steps[0] != 1 || steps[1] != 1 ||
        steps[2] != 1 || interleave != CU_TENSOR_MAP_INTERLEAVE_NONE ||
        swizzle != CU_TENSOR_MAP_SWIZZLE_128B || fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE)
        return CUDA_ERROR_INVALID_VALUE;
    for (int i = 0; i < 3; i++) {
        map.counts[i] = (int64_t)counts[i];
        map.box[i] = box[i];
    }
    map.strides[0] = (int64_t)strides[0];
    map.strides[1] = (int64_t)strides[1];
    if (!map_is_sound(&map))
        return CUDA_ERROR_INVALID_VALUE;
    memset(out, 0, sizeof *out);
    memcpy(out, &map, sizeof map);
    return CUDA_SUCCESS;
}

int driver_open(struct driver *driver, struct error *err)
{
    *driver = (struct driver){
        .get_error_string = get_error_string,
        .init = init,
        .device_get = device_get,
        .device_attribute = device_attribute,
        .device_bus_id = device_bus_id,
        .context_state = context_state,
        .context_retain = context_retain,
        .context_release = context_release,
        .context_set = context_set,
        .memory_info = memory_info,
        .event_create = event_create,
        .event_record = event_record,
        .event_query = event_query,
        .event_synchronize = event_synchronize,
        .event_destroy = event_destroy,
        .tensor_map = tensor_map,
        .usage = usage,
    };
    virtual_fill(driver);
    return 0;
}
