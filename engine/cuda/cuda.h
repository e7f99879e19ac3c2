/* SPDX-License-Identifier: MIT */
/* What the files of the CUDA back end share; nobody else includes this. */
#ifndef FLUXFS_ENGINE_CUDA_CUDA_H
#define FLUXFS_ENGINE_CUDA_CUDA_H

#include <cuda_runtime_api.h>
#include <cublasLt.h>
#include <pthread.h>

#include "engine/backend.h"
#include "engine/card.h"
#include "engine/cuda/dnn.h"
#include "engine/cuda/gemm.h"
#include "engine/cuda/host_store.h"
#include "engine/cuda/pages.h"
#include "engine/cuda/staging.h"

/* Pinned memory that weights pass through: enough for the link to stay busy while threads fill. */
enum { CUDA_SLOTS = 16, CUDA_SLOT_BYTES = 8 << 20 };

/* What hidden states and pictures pass through. */
enum { CUDA_BOUNCES = 2, CUDA_BOUNCE_BYTES = 1 << 20 };

/* What the host store pins at a time for copies, and from which size on weights stay where they
 * are; the largest of a FLUX.1 in fp16 or fp32 fit. */
#define CUDA_STORE_CHUNK_BYTES ((size_t)128 << 20)
#define CUDA_STORE_IN_PLACE_BYTES ((size_t)256 << 10)

/* Page tables are asked for from the engine in multiples of so much. */
#define CUDA_TABLES_BYTES ((uint64_t)2 << 20)

/* Tickets whose place in the copy stream is known exactly; older ones count as passed a little
 * later than they are. */
enum { CUDA_TICKETS = 64 };

struct cuda_backend {
    struct backend base;
    struct driver driver;
    int capability;                    /* 90: 9.0 */
    bool lesser;                       /* taken for a card of that capability */
    int multiprocessors, shared_bytes; /* of each */
    struct cuda_context context;
    struct device_usage usage_before; /* of the growth that is being measured … */
    bool growing;                     /* … if any is */
    cudaStream_t compute, copy;
    cublasLtHandle_t blas;
    struct gemm_plans plans;
    struct dnn dnn;
    struct host_store *store;
    struct staging *staging;
    char *pinned;                            /* CUDA_SLOTS · CUDA_SLOT_BYTES, then … */
    char *bounce;                            /* … CUDA_BOUNCES · CUDA_BOUNCE_BYTES */
    cudaEvent_t slot_events[CUDA_SLOTS];     /* the slot has been read */
    cudaEvent_t bounce_events[CUDA_BOUNCES]; /* the half may be used again */
    cudaEvent_t hold_events[STAGING_HOLDS];  /* points in the compute stream */
    cudaEvent_t ticket_events[CUDA_TICKETS]; /* points in the copy stream */
    cudaEvent_t mark_events[BACKEND_MARKS];  /* of both streams, with their times */
    uint64_t holds, marks, tickets_passed;   /* the worker's thread only */

    pthread_mutex_t lock;
    struct error error;    /* lock: the first since the last sync */
    uint64_t tables_bytes; /* lock: granted, and room has been made for them */
    uint64_t host_spare;   /* lock: memory that the host had left for pinning, when last seen */
};

static inline struct cuda_backend *cuda_of(struct backend *backend)
{
    return (struct cuda_backend *)backend;
}

static inline void *cuda_bias_area(const struct cuda_backend *cuda)
{
    return cuda->base.workspace;
}

static inline void *cuda_blas_area(const struct cuda_backend *cuda)
{
    return (char *)cuda->base.workspace + CUDA_BIAS_BYTES;
}

static inline void *cuda_tile_area(const struct cuda_backend *cuda)
{
    return (char *)cuda->base.workspace + CUDA_BIAS_BYTES + CUDA_BLAS_TILED_BYTES;
}

/* Keeps the first error: "back end cuda: WHAT: why". True if there was none. */
bool cuda_check(struct cuda_backend *cuda, cudaError_t code, const char *what);
void cuda_fail(struct cuda_backend *cuda, int errnum, const char *what, const char *why);
/* A library could not queue its work: for want of memory where the device has hardly any left, for
 * libraries say all kinds of things then. */
void cuda_library_fail(struct cuda_backend *cuda, const char *library, const char *why);

bool cuda_events_create(struct cuda_backend *cuda, cudaEvent_t *events, int count, unsigned flags);
void cuda_events_destroy(cudaEvent_t *events, int count);

static inline cudaEvent_t cuda_mark_event(const struct cuda_backend *cuda, uint64_t mark)
{
    return cuda->mark_events[mark % BACKEND_MARKS];
}

/* Staging and what it works with. To stop it is to wait until all is queued on the copy stream; to
 * close comes after the streams have come to rest. */
int transfer_open(struct cuda_backend *cuda, struct error *err);
void transfer_stop(struct cuda_backend *cuda);
void transfer_close(struct cuda_backend *cuda);

/* The worker's, at each sync: what has been granted may be used, and what is wanting is asked for.
 */
void transfer_tables(struct cuda_backend *cuda);

/* Around whatever loads code or takes memory of its own, a library's first use of a plan above all:
 * what is in use beyond what was before is the context's. An end without a beginning does nothing;
 * the worker's thread only. */
void cuda_growth_begin(struct cuda_backend *cuda);
void cuda_growth_end(struct cuda_backend *cuda);

/* The operations, by file. */
void cuda_upload(struct backend *backend, struct tensor target, const void *source);
void cuda_download(struct backend *backend, void *target, struct tensor source);
void cuda_copy_weights(struct backend *backend, const struct weight_copy *copies, size_t count);
uint64_t cuda_copy_ticket(struct backend *backend);
void cuda_copy_wait(struct backend *backend, uint64_t ticket);
void cuda_copy_reuse(struct backend *backend);
uint64_t cuda_pinned_bytes(struct backend *backend);
void cuda_linear(struct backend *backend, const struct linear *args);
void cuda_attention(struct backend *backend, const struct attention *args);
/* Of heads of 65 to 128, without bias and not causal, matrices at multiples of 16 bytes, on Hopper
 * (capability 9.0). False: another way is needed. */
bool attention_hopper(struct cuda_backend *cuda, const struct attention *args);
void cuda_conv(struct backend *backend, const struct conv *args);
void cuda_layer_norm(struct backend *backend, struct tensor y, struct tensor x,
                     struct tensor weight, struct tensor bias, float eps);
void cuda_modulated_norm(struct backend *backend, struct tensor y, struct tensor x,
                         struct tensor shift, struct tensor scale, float eps);
void cuda_rms_norm(struct backend *backend, struct tensor y, struct tensor x, struct tensor weight,
                   float eps);
void cuda_head_norm(struct backend *backend, const struct head_norm *args);
void cuda_gated_norm(struct backend *backend, const struct gated_norm *args);
void cuda_channel_sums(struct backend *backend, struct tensor sums, struct tensor x, int part);
void cuda_group_norm(struct backend *backend, const struct group_norm *args);
void cuda_affine(struct backend *backend, struct tensor y, struct tensor x, struct tensor affine);
void cuda_add(struct backend *backend, struct tensor y, struct tensor x);
void cuda_gelu_multiply(struct backend *backend, struct tensor y, struct tensor x);
void cuda_silu(struct backend *backend, struct tensor y, struct tensor x);
void cuda_copy(struct backend *backend, struct tensor y, struct tensor x);
void cuda_position_bias(struct backend *backend, struct tensor y, struct tensor table,
                        struct tensor buckets);
void cuda_euler(struct backend *backend, struct tensor latents, struct tensor velocity, float step);
void cuda_guide(struct backend *backend, struct tensor v, struct tensor negative, float scale);
void cuda_unpatchify(struct backend *backend, struct tensor pixels, struct tensor tokens, int width,
                     float multiply, float shift);
void cuda_to_rgb(struct backend *backend, struct tensor rgb, struct tensor x);

/* y = activation(x) */
void cuda_activate(struct cuda_backend *cuda, struct tensor y, struct tensor x,
                   enum activation activation);
/* y += gate·x, gate fp32 [1,n] */
void cuda_gated_add(struct cuda_backend *cuda, struct tensor y, struct tensor gate,
                    struct tensor x);

#endif
