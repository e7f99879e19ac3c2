/* SPDX-License-Identifier: MIT */
/* Moving data between host and device: pictures and prompts at once, weights through the staging
 * threads. */
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "engine/cuda/cuda.h"
#include "engine/cuda/weights.h"

#define PINNED_BYTES                                                                               \
    ((size_t)CUDA_SLOTS * CUDA_SLOT_BYTES + (size_t)CUDA_BOUNCES * CUDA_BOUNCE_BYTES)

/* ---- hidden states and pictures ---- */

/* Between the host's fp32 and the device's bf16; other types are moved as they are. */
static void convert(void *target, const void *source, enum dtype source_dtype, int64_t n)
{
    struct weight_copy copy = {.source = source,
                               .source_dtype = source_dtype,
                               .layout = source_dtype == DTYPE_F32 ? WEIGHT_MATRIX : WEIGHT_VECTOR,
                               .rows = 1,
                               .cols = n};

    (void)weights_fill(&copy, 0, n, target);
}

/* Elements of a tensor, and how many of them pass through a half of the pinned buffer at a time. */
struct crossing {
    struct cuda_backend *cuda;
    struct tensor tensor;
    size_t host_bytes, device_bytes; /* of an element */
    int64_t count, each;
    const char *what;
};

static struct crossing crossing_of(struct backend *backend, struct tensor tensor, const char *what)
{
    size_t device_bytes = dtype_bytes(tensor.dtype);

    return (struct crossing){.cuda = cuda_of(backend),
                             .tensor = tensor,
                             .host_bytes =
                                 tensor.dtype == DTYPE_BF16 ? sizeof(float) : device_bytes,
                             .device_bytes = device_bytes,
                             .count = tensor.rows * tensor.stride,
                             .each = (int64_t)(CUDA_BOUNCE_BYTES / device_bytes),
                             .what = what};
}

static int64_t elements_at(const struct crossing *x, int64_t at)
{
    return x->count - at < x->each ? x->count - at : x->each;
}

static char *device_at(const struct crossing *x, int64_t at)
{
    return (char *)x->tensor.data + (size_t)at * x->device_bytes;
}

/* Halves are taken in turns: while one is converted the other is on the link. */
static int half_of(const struct crossing *x, int64_t at)
{
    return (int)(at / x->each % CUDA_BOUNCES);
}

static char *bounce_at(const struct crossing *x, int64_t at)
{
    return x->cuda->bounce + (size_t)half_of(x, at) * CUDA_BOUNCE_BYTES;
}

/* Queues the elements from `at` on, between the device and their half. */
static bool cross(const struct crossing *x, int64_t at, enum cudaMemcpyKind kind)
{
    bool up = kind == cudaMemcpyHostToDevice;
    void *target = up ? device_at(x, at) : bounce_at(x, at);
    const void *source = up ? bounce_at(x, at) : device_at(x, at);

    return cuda_check(x->cuda,
                      cudaMemcpyAsync(target, source, (size_t)elements_at(x, at) * x->device_bytes,
                                      kind, x->cuda->compute),
                      x->what) &&
           cuda_check(x->cuda,
                      cudaEventRecord(x->cuda->bounce_events[half_of(x, at)], x->cuda->compute),
                      x->what);
}

static bool crossed(const struct crossing *x, int64_t at)
{
    return cuda_check(x->cuda, cudaEventSynchronize(x->cuda->bounce_events[half_of(x, at)]),
                      x->what);
}

void cuda_upload(struct backend *backend, struct tensor target, const void *source)
{
    struct crossing x = crossing_of(backend, target, "upload");

    for (int64_t at = 0; at < x.count; at += x.each) {
        const char *from = (const char *)source + (size_t)at * x.host_bytes;
        int64_t count = elements_at(&x, at);

        if (at >= CUDA_BOUNCES * x.each && !crossed(&x, at))
            return;
        if (x.host_bytes != x.device_bytes)
            convert(bounce_at(&x, at), from, DTYPE_F32, count);
        else
            memcpy(bounce_at(&x, at), from, (size_t)count * x.host_bytes);
        if (!cross(&x, at, cudaMemcpyHostToDevice))
            return;
    }
    cuda_check(x.cuda, cudaStreamSynchronize(x.cuda->compute), "upload");
}

void cuda_download(struct backend *backend, void *target, struct tensor source)
{
    struct crossing x = crossing_of(backend, source, "download");

    for (int64_t at = 0; at < x.count && at < CUDA_BOUNCES * x.each; at += x.each)
        if (!cross(&x, at, cudaMemcpyDeviceToHost))
            return;
    for (int64_t at = 0; at < x.count; at += x.each) {
        char *to = (char *)target + (size_t)at * x.host_bytes;
        int64_t next = at + CUDA_BOUNCES * x.each;

        if (!crossed(&x, at))
            return;
        if (x.host_bytes != x.device_bytes)
            convert(to, bounce_at(&x, at), DTYPE_BF16, elements_at(&x, at));
        else
            memcpy(to, bounce_at(&x, at), (size_t)elements_at(&x, at) * x.host_bytes);
        if (next < x.count && !cross(&x, next, cudaMemcpyDeviceToHost))
            return;
    }
}

/* ---- weights ---- */

void cuda_copy_reuse(struct backend *backend)
{
    struct cuda_backend *cuda = cuda_of(backend);
    uint64_t point = cuda->holds++;

    cuda_check(cuda, cudaEventRecord(cuda->hold_events[point % STAGING_HOLDS], cuda->compute),
               "copy_reuse");
    staging_hold(cuda->staging, point);
}

void cuda_copy_weights(struct backend *backend, const struct weight_copy *copies, size_t count)
{
    struct cuda_backend *cuda = cuda_of(backend);

    for (size_t i = 0; i < count; i++)
        if (copies[i].rows * copies[i].cols > 0)
            staging_copy(cuda->staging, &copies[i]);
}

uint64_t cuda_copy_ticket(struct backend *backend)
{
    return staging_ticket(cuda_of(backend)->staging);
}

static cudaEvent_t ticket_event(const struct cuda_backend *cuda, uint64_t ticket)
{
    return cuda->ticket_events[ticket % CUDA_TICKETS];
}

/* Resident blocks' tickets passed long ago; their events stand for others by now. */
static bool ticket_passed(struct cuda_backend *cuda, uint64_t ticket)
{
    cudaError_t code = cudaSuccess;

    while (code == cudaSuccess && cuda->tickets_passed < ticket &&
           staging_issued(cuda->staging, cuda->tickets_passed + 1)) {
        code = cudaEventQuery(ticket_event(cuda, cuda->tickets_passed + 1));
        cuda->tickets_passed += code == cudaSuccess;
    }
    return cuda->tickets_passed >= ticket;
}

void cuda_copy_wait(struct backend *backend, uint64_t ticket)
{
    struct cuda_backend *cuda = cuda_of(backend);

    if (ticket_passed(cuda, ticket))
        return;
    staging_wait_issued(cuda->staging, ticket);
    cuda_check(cuda, cudaStreamWaitEvent(cuda->compute, ticket_event(cuda, ticket), 0),
               "copy_wait");
}

/* ---- what the staging thread asks of the device ---- */

static void stage_begin(void *owner)
{
    cuda_check(owner, cudaSetDevice(0), "staging");
}

static void stage_slot_wait(void *owner, int slot)
{
    struct cuda_backend *cuda = owner;

    cuda_check(cuda, cudaEventSynchronize(cuda->slot_events[slot]), "copying weights");
}

static void stage_send(void *owner, int slot, void *target, const void *source, size_t bytes)
{
    struct cuda_backend *cuda = owner;

    cuda_check(cuda, cudaMemcpyAsync(target, source, bytes, cudaMemcpyHostToDevice, cuda->copy),
               "copying weights");
    if (slot != STAGING_KEPT)
        cuda_check(cuda, cudaEventRecord(cuda->slot_events[slot], cuda->copy), "copying weights");
}

static void stage_hold(void *owner, uint64_t point)
{
    struct cuda_backend *cuda = owner;

    cuda_check(cuda, cudaStreamWaitEvent(cuda->copy, cuda->hold_events[point % STAGING_HOLDS], 0),
               "copying weights");
}

static void stage_mark(void *owner, uint64_t ticket)
{
    struct cuda_backend *cuda = owner;

    cuda_check(cuda, cudaEventRecord(ticket_event(cuda, ticket), cuda->copy), "copying weights");
}

static void stage_time(void *owner, uint64_t mark)
{
    struct cuda_backend *cuda = owner;

    cuda_check(cuda, cudaEventRecord(cuda_mark_event(cuda, mark), cuda->copy), "mark");
}

static void stage_bad_weights(void *owner, const struct weight_copy *copy)
{
    struct cuda_backend *cuda = owner;

    pthread_mutex_lock(&cuda->lock);
    if (cuda->error.code == 0)
        error_set(&cuda->error, EINVAL,
                  "%s: tensor %s: NaN or infinite weights; the file is damaged, fetch it again",
                  copy->path, copy->name);
    pthread_mutex_unlock(&cuda->lock);
}

/* ---- what the host store asks ---- */

/* What can't be had is no fault: weights go on passing through the slots. */

static void *store_allocate(void *owner, size_t bytes)
{
    void *memory = NULL;

    if (cudaHostAlloc(&memory, bytes, cudaHostAllocDefault) == cudaSuccess)
        return memory;
    cudaGetLastError();
    return NULL;
}

static void store_release(void *owner, void *memory)
{
    cudaFreeHost(memory);
}

/* Files are mapped to be read only, which not every system can pin. */
static bool store_pin(void *owner, const void *pages, size_t bytes)
{
    if (cudaHostRegister((void *)pages, bytes, cudaHostRegisterReadOnly) == cudaSuccess)
        return true;
    cudaGetLastError();
    return false;
}

static void store_unpin(void *owner, const void *pages)
{
    cudaHostUnregister((void *)pages);
}

static uint64_t store_spare(void *owner, uint64_t in_place)
{
    struct cuda_backend *cuda = owner;
    uint64_t pinned = host_store_bytes(cuda->store), host = host_memory_spare(in_place), tables;

    pthread_mutex_lock(&cuda->lock);
    cuda->host_spare = host;
    tables = cuda->tables_bytes * CUDA_PINNED_PER_TABLE;
    pthread_mutex_unlock(&cuda->lock);
    tables = tables > pinned ? tables - pinned : 0;
    return tables < host ? tables : host;
}

/* Page tables for all that is wanted and that the host has memory for. */
static uint64_t tables_needed(const struct cuda_backend *cuda)
{
    uint64_t wanted = host_store_wanted(cuda->store), tables;

    if (wanted == 0)
        return 0;
    wanted += CUDA_STORE_CHUNK_BYTES;
    wanted = wanted < cuda->host_spare ? wanted : cuda->host_spare;
    tables = (host_store_bytes(cuda->store) + wanted) / CUDA_PINNED_PER_TABLE;
    return (tables + CUDA_TABLES_BYTES - 1) / CUDA_TABLES_BYTES * CUDA_TABLES_BYTES;
}

void transfer_tables(struct cuda_backend *cuda)
{
    uint64_t granted = cuda->base.context_granted, needed;

    pthread_mutex_lock(&cuda->lock);
    /* What was granted after the last sync has been made room for since. */
    cuda->tables_bytes = granted;
    needed = tables_needed(cuda);
    cuda->base.context_share =
        cuda->host_spare < CUDA_STORE_CHUNK_BYTES ? 0 : CUDA_PINNED_PER_TABLE;
    pthread_mutex_unlock(&cuda->lock);
    cuda->base.context_wanted = needed > granted ? needed - granted : 0;
    host_store_retry(cuda->store);
}

/* ---- beginning and end ---- */

/* Half of the cores fill, up to as many as saturate the link. */
static int fill_threads(void)
{
    cpu_set_t set;
    int cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;

    return cores < 4 ? 1 : cores / 2 < 8 ? cores / 2 : 8;
}

int transfer_open(struct cuda_backend *cuda, struct error *err)
{
    struct host_store_options store = {.owner = cuda,
                                       .begin = stage_begin,
                                       .allocate = store_allocate,
                                       .release = store_release,
                                       .pin = store_pin,
                                       .unpin = store_unpin,
                                       .spare = store_spare,
                                       .chunk_bytes = CUDA_STORE_CHUNK_BYTES,
                                       .in_place_bytes = CUDA_STORE_IN_PLACE_BYTES,
                                       .page_bytes = (size_t)sysconf(_SC_PAGESIZE)};
    struct staging_options options = {
        .device = {.owner = cuda,
                   .begin = stage_begin,
                   .slot_wait = stage_slot_wait,
                   .send = stage_send,
                   .hold = stage_hold,
                   .mark = stage_mark,
                   .time = stage_time,
                   .bad_weights = stage_bad_weights},
        .slot_bytes = CUDA_SLOT_BYTES,
        .slots = CUDA_SLOTS,
        .threads = fill_threads(),
    };

    cuda->host_spare = UINT64_MAX; /* nobody looked yet */
    bool ready =
        cuda_check(cuda, cudaHostAlloc((void **)&cuda->pinned, PINNED_BYTES, cudaHostAllocDefault),
                   "130 MiB of pinned host memory") &&
        /* who waits for a slot sleeps */
        cuda_events_create(cuda, cuda->slot_events, CUDA_SLOTS,
                           cudaEventDisableTiming | cudaEventBlockingSync) &&
        cuda_events_create(cuda, cuda->bounce_events, CUDA_BOUNCES, cudaEventDisableTiming) &&
        cuda_events_create(cuda, cuda->hold_events, STAGING_HOLDS, cudaEventDisableTiming) &&
        cuda_events_create(cuda, cuda->ticket_events, CUDA_TICKETS, cudaEventDisableTiming);

    if (!ready)
        return error_set(err, -cuda->error.code, "%s", cuda->error.text);
    if (host_store_create(&cuda->store, &store, err) != 0)
        return err->code;
    options.memory = cuda->pinned;
    cuda->bounce = cuda->pinned + (size_t)CUDA_SLOTS * CUDA_SLOT_BYTES;
    options.store = cuda->store;
    return staging_create(&cuda->staging, &options, err);
}

void transfer_stop(struct cuda_backend *cuda)
{
    staging_destroy(cuda->staging);
    cuda->staging = NULL;
}

void transfer_close(struct cuda_backend *cuda)
{
    host_store_destroy(cuda->store);
    cuda_events_destroy(cuda->slot_events, CUDA_SLOTS);
    cuda_events_destroy(cuda->bounce_events, CUDA_BOUNCES);
    cuda_events_destroy(cuda->hold_events, STAGING_HOLDS);
    cuda_events_destroy(cuda->ticket_events, CUDA_TICKETS);
    if (cuda->pinned != NULL)
        cudaFreeHost(cuda->pinned);
}

uint64_t cuda_pinned_bytes(struct backend *backend)
{
    const struct cuda_backend *cuda = cuda_of(backend);

    return PINNED_BYTES + host_store_bytes(cuda->store);
}
