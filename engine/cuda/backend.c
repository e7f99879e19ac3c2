/* SPDX-License-Identifier: MIT */
/*
 * The CUDA back end's beginning and end, its streams, and their time.
 *
 * Work is queued by one thread on the compute stream; weights are copied by the staging threads
 * (transfer.c) on the copy stream. Events tie the two together.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/cuda/cuda.h"
#include "engine/module.h"

enum { LEAST_CAPABILITY = 8 }; /* the first with bf16 in its matrix units */

/* What a multiprocessor of a consumer card has at least; those of 8.0 and 8.7 have more. */
enum { LESSER_SHARED_BYTES = 100 << 10, SHARED_BYTES_80 = 164 << 10 };

/* ---- errors ---- */

void cuda_fail(struct cuda_backend *cuda, int errnum, const char *what, const char *why)
{
    pthread_mutex_lock(&cuda->lock);
    if (cuda->error.code == 0)
        error_set(&cuda->error, errnum, "back end cuda: %s: %s", what, why);
    pthread_mutex_unlock(&cuda->lock);
}

bool cuda_check(struct cuda_backend *cuda, cudaError_t code, const char *what)
{
    if (code == cudaSuccess)
        return true;
    cuda_fail(cuda, code == cudaErrorMemoryAllocation ? ENOMEM : EIO, what,
              cudaGetErrorString(code));
    return false;
}

void cuda_library_fail(struct cuda_backend *cuda, const char *library, const char *why)
{
    uint64_t free_bytes = 0, total_bytes = 0;
    bool full = context_memory(&cuda->context, &free_bytes, &total_bytes) == 0 &&
                free_bytes < CUDA_CODE_BYTES;

    cuda_fail(cuda, full ? ENOMEM : EIO, library, why);
}

static int cuda_sync(struct backend *backend, struct error *err)
{
    struct cuda_backend *cuda = cuda_of(backend);
    struct error first;

    cuda_check(cuda, cudaStreamSynchronize(cuda->compute), "computing");
    pthread_mutex_lock(&cuda->lock);
    first = cuda->error;
    cuda->error = (struct error){0};
    pthread_mutex_unlock(&cuda->lock);
    transfer_tables(cuda);
    return first.code == 0 ? 0 : error_set(err, -first.code, "%s", first.text);
}

/* ---- time ---- */

static uint64_t cuda_mark(struct backend *backend, enum backend_stream stream)
{
    struct cuda_backend *cuda = cuda_of(backend);
    uint64_t mark = ++cuda->marks;

    if (stream == STREAM_COPY)
        staging_time(cuda->staging, mark);
    else
        cuda_check(cuda, cudaEventRecord(cuda_mark_event(cuda, mark), cuda->compute), "mark");
    return mark;
}

static void cuda_mark_wait(struct backend *backend, uint64_t mark)
{
    struct cuda_backend *cuda = cuda_of(backend);

    cuda_check(cuda, cudaEventSynchronize(cuda_mark_event(cuda, mark)), "computing");
}

static double cuda_mark_seconds(struct backend *backend, uint64_t from, uint64_t to)
{
    struct cuda_backend *cuda = cuda_of(backend);
    float ms = 0;

    if (cudaEventElapsedTime(&ms, cuda_mark_event(cuda, from), cuda_mark_event(cuda, to)) !=
        cudaSuccess) {
        cudaGetLastError(); /* the error has been kept where it arose */
        return 0;
    }
    return (double)ms * 1e-3;
}

/* ---- beginning and end ---- */

void cuda_events_destroy(cudaEvent_t *events, int count)
{
    for (int i = 0; i < count; i++)
        if (events[i] != NULL)
            cudaEventDestroy(events[i]);
}

static void cuda_destroy(struct backend *backend)
{
    struct cuda_backend *cuda = cuda_of(backend);
    bool faulty = false;

    transfer_stop(cuda);
    if (cuda->copy != NULL)
        faulty |= cudaStreamSynchronize(cuda->copy) != cudaSuccess;
    if (cuda->compute != NULL)
        faulty |= cudaStreamSynchronize(cuda->compute) != cudaSuccess;
    transfer_close(cuda);
    dnn_finish(&cuda->dnn);
    gemm_plans_finish(&cuda->plans);
    if (cuda->blas != NULL)
        cublasLtDestroy(cuda->blas);
    if (cuda->base.pages != NULL)
        cuda->base.pages->ops->destroy(cuda->base.pages);
    cuda_events_destroy(cuda->mark_events, BACKEND_MARKS);
    if (cuda->copy != NULL)
        cudaStreamDestroy(cuda->copy);
    if (cuda->compute != NULL)
        cudaStreamDestroy(cuda->compute);
    context_close(&cuda->context);
    /* In a context in which a kernel faulted every call fails: whoever comes next needs a new one.
     */
    if (faulty)
        cudaDeviceReset();
    pthread_mutex_destroy(&cuda->lock);
    free(cuda);
}

static const struct backend_ops cuda_ops = {
    .abi = BACKEND_ABI,
    .size = sizeof(struct backend_ops),
    .destroy = cuda_destroy,
    .sync = cuda_sync,
    .upload = cuda_upload,
    .download = cuda_download,
    .copy_weights = cuda_copy_weights,
    .copy_ticket = cuda_copy_ticket,
    .copy_wait = cuda_copy_wait,
    .copy_reuse = cuda_copy_reuse,
    .pinned_bytes = cuda_pinned_bytes,
    .mark = cuda_mark,
    .mark_wait = cuda_mark_wait,
    .mark_seconds = cuda_mark_seconds,
    .linear = cuda_linear,
    .attention = cuda_attention,
    .conv = cuda_conv,
    .layer_norm = cuda_layer_norm,
    .modulated_norm = cuda_modulated_norm,
    .rms_norm = cuda_rms_norm,
    .head_norm = cuda_head_norm,
    .gated_norm = cuda_gated_norm,
    .channel_sums = cuda_channel_sums,
    .group_norm = cuda_group_norm,
    .affine = cuda_affine,
    .add = cuda_add,
    .gelu_multiply = cuda_gelu_multiply,
    .silu = cuda_silu,
    .copy = cuda_copy,
    .position_bias = cuda_position_bias,
    .euler = cuda_euler,
    .guide = cuda_guide,
    .unpatchify = cuda_unpatchify,
    .to_rgb = cuda_to_rgb,
};

/* Kernels for other cards can be tried on this one: by FLUXFS_CAPABILITY in the environment, 86
 * say, it is taken for one of compute capability 8.6. */
static void take_for_lesser(struct cuda_backend *cuda)
{
    const char *wish = getenv("FLUXFS_CAPABILITY");
    long asked = wish != NULL ? strtol(wish, NULL, 10) : 0;
    int bytes = asked % 10 == 0 || asked % 10 == 7 ? SHARED_BYTES_80 : LESSER_SHARED_BYTES;

    if (asked < 10 * LEAST_CAPABILITY || asked >= cuda->capability)
        return;
    cuda->capability = (int)asked;
    if (cuda->shared_bytes > bytes)
        cuda->shared_bytes = bytes;
    cuda->lesser = true;
}

/* Once the measured products have been looked up, which are the card's all the same. */
static void tell_lesser(struct cuda_backend *cuda)
{
    char *name = cuda->base.device_name;
    size_t length = strlen(name);

    if (cuda->lesser)
        snprintf(name + length, sizeof cuda->base.device_name - length, ", taken for one of %d.%d",
                 cuda->capability / 10, cuda->capability % 10);
}

/* The first device, if it can do the work. */
static int device_open(struct cuda_backend *cuda, struct error *err)
{
    struct cudaDeviceProp device;
    cudaError_t code;
    int count = 0;

    if (driver_open(&cuda->driver, err) != 0)
        return err->code;
    code = cudaGetDeviceCount(&count);
    if (code == cudaErrorInsufficientDriver)
        return error_set(err, ENODEV,
                         "back end cuda: the NVIDIA driver is older than CUDA %d.%d; update it",
                         CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    if (code == cudaErrorNoDevice || (code == cudaSuccess && count == 0))
        return error_set(err, ENODEV, "back end cuda: no NVIDIA GPU is visible");
    if (code == cudaSuccess)
        code = cudaGetDeviceProperties(&device, 0);
    if (code != cudaSuccess)
        return error_set(err, ENODEV, "back end cuda: %s", cudaGetErrorString(code));
    if (device.major < LEAST_CAPABILITY)
        return error_set(err, ENODEV,
                         "back end cuda: %s (compute capability %d.%d) can't compute in bf16; "
                         "8.0 or higher is needed",
                         device.name, device.major, device.minor);
    cuda->capability = 10 * device.major + device.minor;
    cuda->multiprocessors = device.multiProcessorCount;
    cuda->shared_bytes = (int)device.sharedMemPerMultiprocessor;
    snprintf(cuda->base.device_name, sizeof cuda->base.device_name, "%.80s, %.1f GiB", device.name,
             (double)device.totalGlobalMem / (double)(1 << 30));
    take_for_lesser(cuda);
    if (context_open(&cuda->context, &cuda->driver, err) != 0)
        return err->code;
    code = cudaSetDevice(0);
    return code == cudaSuccess ? 0
                               : error_set(err, ENODEV, "back end cuda: %s: %s", device.name,
                                           cudaGetErrorString(code));
}

void cuda_growth_begin(struct cuda_backend *cuda)
{
    cuda->growing = context_usage(&cuda->context, &cuda->usage_before) == 0;
}

static void context_count(struct cuda_backend *cuda)
{
    uint64_t code_bytes = cuda->context.cost.grown + CUDA_OWN_CODE_BYTES;

    cuda->base.context_bytes = cuda->context.cost.bytes + cuda->base.context_granted +
                               (code_bytes > CUDA_CODE_BYTES ? code_bytes : CUDA_CODE_BYTES);
}

void cuda_growth_end(struct cuda_backend *cuda)
{
    if (cuda->growing)
        context_grow(&cuda->context, &cuda->usage_before);
    cuda->growing = false;
    context_count(cuda);
}

static void pages_fault(void *owner, const char *call, const char *why)
{
    cuda_fail(owner, EIO, call, why);
}

bool cuda_events_create(struct cuda_backend *cuda, cudaEvent_t *events, int count, unsigned flags)
{
    for (int i = 0; i < count; i++)
        if (!cuda_check(cuda, cudaEventCreateWithFlags(&events[i], flags), "events"))
            return false;
    return true;
}

static int streams_open(struct cuda_backend *cuda, struct error *err)
{
    bool ready = cuda_check(cuda, cudaStreamCreateWithFlags(&cuda->compute, cudaStreamNonBlocking),
                            "compute stream") &&
                 cuda_check(cuda, cudaStreamCreateWithFlags(&cuda->copy, cudaStreamNonBlocking),
                            "copy stream") &&
                 /* who waits for a mark sleeps */
                 cuda_events_create(cuda, cuda->mark_events, BACKEND_MARKS, cudaEventBlockingSync);

    return ready ? 0 : error_set(err, -cuda->error.code, "%s", cuda->error.text);
}

/* What it takes of the device is counted with the context, also where it fails: what is left of
 * that stays. */
static int libraries_open(struct cuda_backend *cuda, struct error *err)
{
    struct device_usage before;
    bool known = context_usage(&cuda->context, &before) == 0;
    int result = streams_open(cuda, err);

    if (result == 0)
        result = transfer_open(cuda, err);
    if (result == 0)
        result = gemm_plans_open(cuda, err);
    if (result == 0)
        dnn_open(cuda);
    if (known)
        context_start(&cuda->context, &before);
    if (result == 0)
        context_trim(&cuda->context);
    context_count(cuda);
    return result;
}

static int backend_open(struct cuda_backend *cuda, struct error *err)
{
    struct cuda_pages_options pages = {
        .context = &cuda->context, .fault = pages_fault, .owner = cuda};

    cuda->base.ops = &cuda_ops;
    cuda->base.name = "cuda";
    cuda->base.activation = cuda->base.weight = cuda->base.bias = DTYPE_BF16;
    cuda->base.strip_pixels = CUDA_STRIP_PIXELS;
    cuda->base.weight_rows = 1;
    cuda->base.workspace_bytes = CUDA_WORKSPACE_BYTES;
    cuda->base.context_share = CUDA_PINNED_PER_TABLE;
    if (device_open(cuda, err) != 0)
        return err->code;
    if (libraries_open(cuda, err) != 0)
        return err->code;
    tell_lesser(cuda);
    pages.stream = cuda->compute;
    return cuda_pages_create(&cuda->base.pages, &pages, err);
}

/* Declared by its type, so that it can't differ from what callers expect. */
__attribute__((visibility("default"))) module_create fluxfs_backend_create;

int fluxfs_backend_create(uint32_t abi, uint32_t ops_size, struct backend **backend,
                          struct error *err, uint32_t layout)
{
    struct cuda_backend *cuda;

    if (module_check(abi, ops_size, layout, err) != 0)
        return err->code;
    cuda = calloc(1, sizeof *cuda);
    if (cuda == NULL)
        return error_set(err, ENOMEM, "out of host memory");
    pthread_mutex_init(&cuda->lock, NULL);
    if (backend_open(cuda, err) != 0) {
        cuda_destroy(&cuda->base);
        return err->code;
    }
    *backend = &cuda->base;
    return 0;
}
