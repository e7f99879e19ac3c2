/* SPDX-License-Identifier: MIT */
/* What the files of the CPU back end share; nobody else includes this. */
#ifndef FLUXFS_ENGINE_CPU_CPU_H
#define FLUXFS_ENGINE_CPU_CPU_H

#include "engine/backend.h"
#include "engine/cpu/parallel.h"
#include "engine/cpu/product.h"

struct cpu_backend {
    struct backend base;
    struct error error; /* the first since the last sync; the worker's thread only */
    int threads;
    struct parallel *parallel;
    double marks[BACKEND_MARKS]; /* when each was made, in seconds of some clock */
    uint64_t mark_count;
    product_kernel *product;
};

#define CPU_THREADS_MAX 256

/* Floats of workspace that each thread has for itself. */
#define CPU_WORKSPACE_FLOATS ((size_t)256 * 1024)

/* Row kernels exist once for each instruction set; the loader picks. Sanitizers can't instrument
 * that choice. */
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) &&      \
    !defined(__clang__)
#define CPU_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CPU_CLONES
#endif

static inline struct cpu_backend *cpu_of(struct backend *backend)
{
    return (struct cpu_backend *)backend;
}

static inline float *cpu_row(struct tensor t, int64_t row)
{
    return (float *)t.data + row * t.stride;
}

/* Part `i` of `count` things divided into so many parts. */
struct cpu_range {
    int64_t first, last;
};

static inline struct cpu_range cpu_share(int64_t count, int64_t i, int64_t parts)
{
    return (struct cpu_range){count * i / parts, count * (i + 1) / parts};
}

/* Into how many parts to divide work of `count` things that touches so many elements: several for
 * each thread, so that a late one costs little, and one if it is too little to share. */
int64_t cpu_parts(const struct backend *backend, int64_t count, int64_t elements);

/* Runs a task in parts; `parts` as above. */
void cpu_run(struct backend *backend, int64_t parts, parallel_task *task, void *args);

static inline float *cpu_workspace(struct backend *backend, int thread)
{
    return (float *)backend->workspace + (size_t)thread * CPU_WORKSPACE_FLOATS;
}

/* eˣ to 2 units in the last place, without branches so that loops over it become vector code;
 * x is clamped to the range where e^x is a normal number; NaN stays NaN. */
static inline float cpu_exp(float x)
{
    x = x > 88.0f ? 88.0f : x;
    x = x < -87.0f ? -87.0f : x;
    /* 1.5·2²³: adding it rounds to an integer, which then is in the lowest bits too */
    const float rounder = 12582912.0f;
    union {
        float value;
        uint32_t bits;
    } rounded = {x * 1.44269504f + rounder}, power;
    float n = rounded.value - rounder;
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    power.bits = (rounded.bits + 127) << 23;
    return p * power.value;
}

static inline float cpu_sigmoid(float x)
{
    return 1.0f / (1.0f + cpu_exp(-x));
}

/* In place on the columns and rows that a product wrote. */
void cpu_activate(const struct product *product, enum activation activation);

static inline void cpu_product(struct backend *backend, const struct product *product)
{
    product_run(cpu_of(backend)->product, product);
}

/* Panels of a weight of so many rows, and where one of them lies. */
static inline int64_t cpu_panels(int64_t rows)
{
    return (rows + PANEL - 1) / PANEL;
}

static inline float *cpu_panel(struct tensor weight, int64_t panel)
{
    return (float *)weight.data + panel * PANEL * weight.cols;
}

/* The operations, as backend.h describes them. */
void cpu_linear(struct backend *backend, const struct linear *args);
void cpu_attention(struct backend *backend, const struct attention *args);
void cpu_conv(struct backend *backend, const struct conv *args);
void cpu_layer_norm(struct backend *backend, struct tensor y, struct tensor x, struct tensor weight,
                    struct tensor bias, float eps);
void cpu_modulated_norm(struct backend *backend, struct tensor y, struct tensor x,
                        struct tensor shift, struct tensor scale, float eps);
void cpu_rms_norm(struct backend *backend, struct tensor y, struct tensor x, struct tensor weight,
                  float eps);
void cpu_head_norm(struct backend *backend, const struct head_norm *args);
void cpu_gated_norm(struct backend *backend, const struct gated_norm *args);
void cpu_channel_sums(struct backend *backend, struct tensor sums, struct tensor x, int part);
void cpu_group_norm(struct backend *backend, const struct group_norm *args);
void cpu_affine(struct backend *backend, struct tensor y, struct tensor x, struct tensor affine);
void cpu_add(struct backend *backend, struct tensor y, struct tensor x);
void cpu_gelu_multiply(struct backend *backend, struct tensor y, struct tensor x);
void cpu_silu(struct backend *backend, struct tensor y, struct tensor x);
void cpu_copy(struct backend *backend, struct tensor y, struct tensor x);
void cpu_position_bias(struct backend *backend, struct tensor y, struct tensor table,
                       struct tensor buckets);
void cpu_euler(struct backend *backend, struct tensor latents, struct tensor velocity, float step);
void cpu_guide(struct backend *backend, struct tensor v, struct tensor negative, float scale);
void cpu_unpatchify(struct backend *backend, struct tensor pixels, struct tensor tokens, int width,
                    float multiply, float shift);
void cpu_to_rgb(struct backend *backend, struct tensor rgb, struct tensor x);
void cpu_copy_weights(struct backend *backend, const struct weight_copy *copies, size_t count);

#endif
