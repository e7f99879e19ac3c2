/* SPDX-License-Identifier: MIT */
#include "engine/cpu/backend.h"

#include <cblas.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "alloc/host_pages.h"
#include "engine/cpu/cpu.h"

static void cpu_destroy(struct backend *backend)
{
    parallel_destroy(cpu_of(backend)->parallel);
    if (backend->pages != NULL)
        backend->pages->ops->destroy(backend->pages);
    free(backend);
}

/* Elements that are done before another thread would have begun. */
#define PART_ELEMENTS 8192
#define PARTS_PER_THREAD 8

/* Enough for several tiles of a convolution for each of a few threads. */
#define STRIP_PIXELS 4096

int64_t cpu_parts(const struct backend *backend, int64_t count, int64_t elements)
{
    int threads = ((const struct cpu_backend *)backend)->threads;
    int64_t parts = elements / PART_ELEMENTS, most = (int64_t)threads * PARTS_PER_THREAD;

    parts = parts < most ? parts : most;
    parts = parts < count ? parts : count;
    return threads == 1 || parts < 1 ? 1 : parts;
}

void cpu_run(struct backend *backend, int64_t parts, parallel_task *task, void *args)
{
    parallel_run(cpu_of(backend)->parallel, parts, task, args);
}

static int cpu_sync(struct backend *backend, struct error *err)
{
    struct cpu_backend *cpu = cpu_of(backend);
    struct error first = cpu->error;

    cpu->error = (struct error){0};
    return first.code == 0 ? 0 : error_set(err, -first.code, "%s", first.text);
}

static void cpu_upload(struct backend *backend, struct tensor target, const void *source)
{
    memcpy(target.data, source, tensor_bytes(&target));
}

static void cpu_download(struct backend *backend, void *target, struct tensor source)
{
    memcpy(target, source.data, tensor_bytes(&source));
}

/* Copies run as they are queued, so that every ticket has passed. */
static uint64_t cpu_copy_ticket(struct backend *backend)
{
    return 0;
}

static void cpu_copy_wait(struct backend *backend, uint64_t ticket)
{
}

static void cpu_copy_reuse(struct backend *backend)
{
}

static uint64_t cpu_pinned_bytes(struct backend *backend)
{
    return 0;
}

/* Work is done as it is queued, whatever the stream. */
static uint64_t cpu_mark(struct backend *backend, enum backend_stream stream)
{
    struct cpu_backend *cpu = cpu_of(backend);
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    cpu->marks[++cpu->mark_count % BACKEND_MARKS] = (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
    return cpu->mark_count;
}

static void cpu_mark_wait(struct backend *backend, uint64_t mark)
{
}

static double cpu_mark_seconds(struct backend *backend, uint64_t from, uint64_t to)
{
    const struct cpu_backend *cpu = cpu_of(backend);

    return cpu->marks[to % BACKEND_MARKS] - cpu->marks[from % BACKEND_MARKS];
}

static const struct backend_ops cpu_ops = {
    .abi = BACKEND_ABI,
    .size = sizeof(struct backend_ops),
    .destroy = cpu_destroy,
    .sync = cpu_sync,
    .upload = cpu_upload,
    .download = cpu_download,
    .copy_weights = cpu_copy_weights,
    .copy_ticket = cpu_copy_ticket,
    .copy_wait = cpu_copy_wait,
    .copy_reuse = cpu_copy_reuse,
    .pinned_bytes = cpu_pinned_bytes,
    .mark = cpu_mark,
    .mark_wait = cpu_mark_wait,
    .mark_seconds = cpu_mark_seconds,
    .linear = cpu_linear,
    .attention = cpu_attention,
    .conv = cpu_conv,
    .layer_norm = cpu_layer_norm,
    .modulated_norm = cpu_modulated_norm,
    .rms_norm = cpu_rms_norm,
    .head_norm = cpu_head_norm,
    .gated_norm = cpu_gated_norm,
    .channel_sums = cpu_channel_sums,
    .group_norm = cpu_group_norm,
    .affine = cpu_affine,
    .add = cpu_add,
    .gelu_multiply = cpu_gelu_multiply,
    .silu = cpu_silu,
    .copy = cpu_copy,
    .position_bias = cpu_position_bias,
    .euler = cpu_euler,
    .guide = cpu_guide,
    .unpatchify = cpu_unpatchify,
    .to_rgb = cpu_to_rgb,
};

static int threads_available(void)
{
    cpu_set_t set;

    if (sched_getaffinity(0, sizeof set, &set) != 0)
        return 1;
    return CPU_COUNT(&set);
}

/* "AMD EPYC, 2 threads": the name as the kernel gives it. */
static void describe(char *text, size_t size, int threads)
{
    char line[256], name[96] = "CPU";
    FILE *file = fopen("/proc/cpuinfo", "re");

    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        if (sscanf(line, "model name : %95[^\n]", name) == 1)
            break;
    }
    if (file != NULL)
        fclose(file);
    snprintf(text, size, "%s, %d thread%s", name, threads, threads == 1 ? "" : "s");
}

int cpu_backend_create(struct backend **backend, int threads, uint64_t memory_bytes,
                       const char *kernel, struct error *err)
{
    const struct host_pages_options pages = {.granule_bytes = host_pages_granule(memory_bytes)};
    struct cpu_backend *cpu = calloc(1, sizeof *cpu);
    int result;

    if (cpu == NULL)
        return error_set(err, ENOMEM, "out of memory");
    if (threads <= 0)
        threads = threads_available();
    cpu->threads = threads < CPU_THREADS_MAX ? threads : CPU_THREADS_MAX;
    cpu->base.ops = &cpu_ops;
    cpu->product = product_kernel_find(kernel);
    if (cpu->product == NULL) {
        cpu_destroy(&cpu->base);
        return error_set(err, ENOTSUP, "CPU back end: no %s on this machine", kernel);
    }
    result = host_pages_create(&cpu->base.pages, &pages);
    if (result == 0)
        result = parallel_create(&cpu->parallel, cpu->threads);
    if (result != 0) {
        cpu_destroy(&cpu->base);
        return error_set(err, -result, "CPU back end: %s", strerror(-result));
    }
    /* Our own threads share out the work; each calls BLAS for its part. */
    openblas_set_num_threads(1);
    cpu->base.name = "cpu";
    cpu->base.host = true;
    cpu->base.activation = cpu->base.weight = cpu->base.bias = DTYPE_F32;
    cpu->base.strip_pixels = STRIP_PIXELS;
    cpu->base.weight_rows = PANEL;
    cpu->base.workspace_bytes = (uint64_t)cpu->threads * CPU_WORKSPACE_FLOATS * sizeof(float);
    describe(cpu->base.device_name, sizeof cpu->base.device_name, cpu->threads);
    *backend = &cpu->base;
    return 0;
}
