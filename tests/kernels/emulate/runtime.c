/* SPDX-License-Identifier: MIT */
/* The CUDA runtime of the emulated GPU: streams, events, copies. */
#include "tests/kernels/emulate/calls.h"
#include "tests/kernels/emulate/device.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { STREAMS_MAX = 16, PINNED_MAX = 4096 };

struct work {
    struct work *next;
    void (*run)(void *args);
    _Alignas(16) char args[];
};

struct CUstream_st {
    struct work *oldest, *newest;
};

struct CUevent_st {
    struct CUstream_st *stream; /* of the last record */
    uint64_t recorded, passed;
    double passed_s;
};

/* All below, and the execution of work. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct CUstream_st *streams[STREAMS_MAX];
static struct {
    const char *start;
    size_t bytes;
} pinned[PINNED_MAX];
static _Atomic size_t pinned_total; /* bytes */
static long works_done;             /* since the start, or the last reset */

long device_word(const char *word, long otherwise)
{
    const char *words = getenv("FLUXFS_EMULATE"), *at;
    size_t length = strlen(word);

    at = words != NULL ? strstr(words, word) : NULL;
    if (at == NULL || (at != words && at[-1] != ' '))
        return otherwise;
    return at[length] == '=' ? strtol(at + length + 1, NULL, 10) : 0;
}

/* The device was lost: every call says so from now on. */
static cudaError_t state(void)
{
    long limit = device_word("lost", -1);

    return limit >= 0 && works_done >= limit ? cudaErrorLaunchFailure : cudaSuccess;
}

/* ---- streams ---- */

static bool run_oldest(struct CUstream_st *stream)
{
    struct work *work = stream->oldest;

    if (work == NULL)
        return false;
    stream->oldest = work->next;
    if (stream->oldest == NULL)
        stream->newest = NULL;
    if (state() == cudaSuccess)
        work->run(work->args);
    works_done++;
    free(work);
    return true;
}

/* Now and then some work is done unasked. */
static void run_some(void)
{
    struct CUstream_st *stream = streams[0];

    if (device_word("lazy", -1) == 0)
        return;

    for (int i = 0; i < STREAMS_MAX; i++)
        if (streams[i] != NULL && block_coin())
            stream = streams[i];
    while (stream != NULL && block_coin() && run_oldest(stream))
        ;
}

static void queue(struct CUstream_st *stream, void (*run)(void *args), const void *args,
                  size_t bytes)
{
    struct work *work = malloc(sizeof *work + bytes);

    if (work == NULL)
        abort();
    work->next = NULL;
    work->run = run;
    memcpy(work->args, args, bytes);
    if (stream->newest != NULL)
        stream->newest->next = work;
    else
        stream->oldest = work;
    stream->newest = work;
}

void device_queue(cudaStream_t stream, void (*run)(void *args), const void *args, size_t bytes)
{
    pthread_mutex_lock(&lock);
    queue(stream, run, args, bytes);
    run_some();
    pthread_mutex_unlock(&lock);
}

struct kernel_work {
    void (*run)(const void *call);
    struct block_grid grid;
    _Alignas(16) char call[1024];
};

static void kernel_run(void *args)
{
    const struct kernel_work *work = args;

    block_run(work->run, work->call, &work->grid);
}

void device_queue_kernel(cudaStream_t stream, void (*run)(const void *call), const void *call,
                         size_t bytes, const struct block_grid *grid)
{
    struct kernel_work work = {.run = run, .grid = *grid};

    if (bytes > sizeof work.call)
        abort();
    memcpy(work.call, call, bytes);
    device_queue(stream, kernel_run, &work, sizeof work);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    int place = 0;

    pthread_mutex_lock(&lock);
    while (place < STREAMS_MAX && streams[place] != NULL)
        place++;
    *stream = place < STREAMS_MAX ? calloc(1, sizeof **stream) : NULL;
    if (*stream != NULL)
        streams[place] = *stream;
    pthread_mutex_unlock(&lock);
    return *stream != NULL ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    cudaError_t code;

    pthread_mutex_lock(&lock);
    while (run_oldest(stream))
        ;
    code = state();
    pthread_mutex_unlock(&lock);
    return code;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    cudaStreamSynchronize(stream);
    pthread_mutex_lock(&lock);
    for (int i = 0; i < STREAMS_MAX; i++)
        if (streams[i] == stream)
            streams[i] = NULL;
    pthread_mutex_unlock(&lock);
    free(stream);
    return cudaSuccess;
}

/* ---- events ---- */

struct event_work {
    struct CUevent_st *event;
    uint64_t number;
};

static void event_run(void *args)
{
    const struct event_work *work = args;
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    work->event->passed = work->number;
    work->event->passed_s = (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Does what must be done before the event's record of that number. */
static void event_reach(struct CUevent_st *event, uint64_t number)
{
    while (event->passed < number && run_oldest(event->stream))
        ;
    if (event->passed < number && state() == cudaSuccess)
        abort();
}

static void wait_run(void *args)
{
    const struct event_work *work = args;

    event_reach(work->event, work->number);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags)
{
    *event = calloc(1, sizeof **event);
    return *event != NULL ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    pthread_mutex_lock(&lock);
    event_reach(event, event->recorded);
    pthread_mutex_unlock(&lock);
    free(event);
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    struct event_work work = {event, 0};
    cudaError_t code;

    pthread_mutex_lock(&lock);
    /* (An event that was recorded in another stream would have to reach it first.) */
    if (event->stream != NULL && event->stream != stream)
        event_reach(event, event->recorded);
    event->stream = stream;
    work.number = ++event->recorded;
    queue(stream, event_run, &work, sizeof work);
    run_some();
    code = state();
    pthread_mutex_unlock(&lock);
    return code;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    struct event_work work = {event, 0};
    cudaError_t code;

    pthread_mutex_lock(&lock);
    work.number = event->recorded;
    queue(stream, wait_run, &work, sizeof work);
    run_some();
    code = state();
    pthread_mutex_unlock(&lock);
    return code;
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    cudaError_t code;

    pthread_mutex_lock(&lock);
    run_some();
    code = event->passed >= event->recorded ? cudaSuccess : cudaErrorNotReady;
    code = state() != cudaSuccess ? state() : code;
    pthread_mutex_unlock(&lock);
    return code;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    cudaError_t code;

    pthread_mutex_lock(&lock);
    event_reach(event, event->recorded);
    code = state();
    pthread_mutex_unlock(&lock);
    return code;
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end)
{
    cudaError_t code = cudaSuccess;

    pthread_mutex_lock(&lock);
    if (start->recorded == 0 || end->recorded == 0)
        code = cudaErrorInvalidResourceHandle;
    else if (start->passed < start->recorded || end->passed < end->recorded)
        code = cudaErrorNotReady;
    else
        *ms = (float)((end->passed_s - start->passed_s) * 1e3);
    pthread_mutex_unlock(&lock);
    return code;
}

/* ---- memory ---- */

struct copy_work {
    void *target;
    const void *source;
    void *staged; /* the source was pageable: read when the copy was queued */
    size_t bytes;
};

static void copy_run(void *args)
{
    const struct copy_work *work = args;

    memcpy(work->target, work->staged != NULL ? work->staged : work->source, work->bytes);
    free(work->staged);
}

static bool is_pinned(const void *address)
{
    for (int i = 0; i < PINNED_MAX; i++)
        if (pinned[i].start != NULL && (const char *)address >= pinned[i].start &&
            (const char *)address < pinned[i].start + pinned[i].bytes)
            return true;
    return false;
}

cudaError_t cudaMemcpyAsync(void *target, const void *source, size_t bytes,
                            enum cudaMemcpyKind kind, cudaStream_t stream)
{
    struct copy_work work = {target, source, NULL, bytes};
    cudaError_t code;

    pthread_mutex_lock(&lock);
    if (kind == cudaMemcpyHostToDevice && !is_pinned(source)) {
        work.staged = malloc(bytes + 1);
        if (work.staged == NULL)
            abort();
        memcpy(work.staged, source, bytes);
    }
    queue(stream, copy_run, &work, sizeof work);
    run_some();
    code = state();
    pthread_mutex_unlock(&lock);
    return code;
}

size_t pinned_bytes(void)
{
    return pinned_total;
}

static void pin(const void *memory, size_t bytes)
{
    pthread_mutex_lock(&lock);
    for (int i = 0; i < PINNED_MAX; i++) {
        if (pinned[i].start == NULL) {
            pinned[i].start = memory;
            pinned[i].bytes = bytes;
            pinned_total += bytes;
            break;
        }
    }
    pthread_mutex_unlock(&lock);
}

static void unpin(const void *memory)
{
    pthread_mutex_lock(&lock);
    for (int i = 0; i < PINNED_MAX; i++)
        if (memory != NULL && pinned[i].start == memory) {
            pinned[i].start = NULL;
            pinned_total -= pinned[i].bytes;
        }
    pthread_mutex_unlock(&lock);
}

cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned flags)
{
    *memory = NULL;
    if (device_word("unpinned", -1) < 0)
        *memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (*memory == NULL)
        return cudaErrorMemoryAllocation;
    pin(*memory, bytes);
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *memory)
{
    unpin(memory);
    free(memory);
    return cudaSuccess;
}

cudaError_t cudaHostRegister(void *memory, size_t bytes, unsigned flags)
{
    pin(memory, bytes);
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *memory)
{
    unpin(memory);
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total)
{
    size_t used;

    device_memory(&used, total);
    *available = *total - used;
    return cudaSuccess;
}

/* ---- the device ---- */

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = device_word("no-device", -1) == 0 ? 0 : 1;
    if (device_word("old-driver", -1) == 0)
        return cudaErrorInsufficientDriver;
    return *count == 0 ? cudaErrorNoDevice : cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *device, int number)
{
    size_t used;

    memset(device, 0, sizeof *device);
    snprintf(device->name, sizeof device->name, "a GPU emulated on the CPU");
    device_memory(&used, &device->totalGlobalMem);
    device->major = device_word("old-card", -1) == 0 ? 7 : 9;
    device->multiProcessorCount = MULTIPROCESSORS;
    device->sharedMemPerMultiprocessor = 228 << 10;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int number)
{
    if (number != 0)
        return cudaErrorInvalidDevice;
    device_hold(true);
    return cudaSuccess;
}

cudaError_t cudaDeviceReset(void)
{
    pthread_mutex_lock(&lock);
    works_done = 0;
    pthread_mutex_unlock(&lock);
    device_hold(false);
    return cudaSuccess;
}

cudaError_t cudaGetLastError(void)
{
    return cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t code)
{
    switch (code) {
    case cudaErrorMemoryAllocation:
        return "out of memory";
    case cudaErrorLaunchFailure:
        return "unspecified launch failure";
    case cudaErrorNotReady:
        return "device not ready";
    default:
        return "an error";
    }
}
