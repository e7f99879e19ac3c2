/* SPDX-License-Identifier: MIT */
/*
 * A back end: the operations of the models on one kind of device, as a table.
 *
 * Callers go through ops.h, which checks shapes and types once; a back end may rely on what is
 * written here. Work is queued on streams in order and may be asynchronous; operations return
 * nothing, the back end keeps its first error, and `sync` returns it. Matrices hold `activation`
 * elements unless said otherwise, and may be views of any stride and alignment, except for weights,
 * which are whole and lie in memory as copy_weights arranged them; accumulation is always in fp32.
 * Operands overlap only where it is said that they may. "Row" and "channel" as in tensor.h.
 * tests/kernels holds every back end to this.
 */
#ifndef FLUXFS_ENGINE_BACKEND_H
#define FLUXFS_ENGINE_BACKEND_H

#include "alloc/page_source.h"
#include "engine/error.h"
#include "engine/tensor.h"

/* Of this file and those that it includes: to be raised where a change keeps all sizes (module.h).
 */
#define BACKEND_ABI 11

enum activation {
    ACTIVATION_NONE,
    ACTIVATION_GELU_TANH,  /* x·½(1 + tanh(√(2/π)(x + 0.044715x³))) */
    ACTIVATION_QUICK_GELU, /* x·σ(1.702x) */
    ACTIVATION_SILU,       /* x·σ(x) */
};

/* y = activation(x·Wᵀ + b): x [m,k], weight [n,k], bias [1,n] of type `bias` or absent, y [m,n] of
 * hidden states or fp32. */
struct linear {
    struct tensor y, x, weight, bias;
    enum activation activation;
};

/* For each head h: y_h = softmax(scale · q_h·k_hᵀ + bias_h)·v_h; q and y [queries, heads·size], k
 * and v [keys, heads·size]; bias fp32 [heads·queries, keys] or absent; causal: key ≤ query only;
 * scale > 0. */
struct attention {
    struct tensor y, q, k, v, bias;
    int heads;
    float scale;
    bool causal;
};

/* y = f(x) ⋆ W + b, or y += that if `accumulate`; `size` × `size` window (1 or 3), same padding by
 * zeros. f(x) = SiLU(x·affine row 0 + affine row 1) for each channel, or x if affine is absent. x
 * [height·width, in]; with `upsample`, x is first enlarged twofold by repetition. y [rows·width,
 * out] holds `rows` rows of pixels of the result (width: of the enlarged x), from `first` on: those
 * of x above and below are only looked at. weight [out, size·size·in], window outside, channels
 * inside. bias [1, out] of type `bias`, affine fp32 [2, in]; affine and upsample with size 3 only.
 * With size 1, y may lie in the memory of x, at its start, if it has no more channels and `first`
 * is 0. */
struct conv {
    struct tensor y, x, weight, bias, affine;
    int height, width; /* of x */
    int first;
    int size;
    bool upsample, accumulate;
};

/* Normalisation over groups of adjacent channels and all rows, as what it does to each channel:
 * group_norm(x)·weight + bias = x·affine row 0 + affine row 1. The rows may have come in parts, one
 * after the other: `sums` is what channel_sums made of each. weight, bias fp32 [1, channels],
 * affine fp32 [2, channels], sums fp32 [1 + 2·parts, channels]; at most 4096 channels. */
struct group_norm {
    struct tensor affine, sums, weight, bias;
    int64_t rows; /* of all parts */
    int groups;
    float eps;
};

/* Queries and keys, in place, per head: rms_norm by a weight fp32 [1,size], then rotation of
 * adjacent pairs: rope fp32 [rows, size] holds cos, sin, cos, sin … of each pair. q and k [rows,
 * heads·size]. Rows before `split` have weights[0], the others weights[1]. */
struct head_weights {
    struct tensor q, k;
};
struct head_norm {
    struct tensor q, k, rope;
    struct head_weights weights[2];
    int64_t split;
    float eps;
};

/* x += gate·y, then y = layer_norm(x)·(1 + scale) + shift. The vectors, fp32 [1,n], are vectors[0]
 * for rows before `split`, vectors[1] for the others. */
struct gated_vectors {
    struct tensor gate, shift, scale;
};
struct gated_norm {
    struct tensor x, y;
    struct gated_vectors vectors[2];
    int64_t split;
    float eps;
};

/* How a tensor of a checkpoint becomes a weight of the device. How the elements of a matrix lie in
 * memory is the back end's affair. */
enum weight_layout {
    WEIGHT_MATRIX, /* [n, k], elements of type `weight` */
    WEIGHT_CONV,   /* [out, in, h, w] → as a matrix [out, h·w·in] */
    WEIGHT_VECTOR, /* [n] → fp32 [1, n] */
    WEIGHT_BIAS,   /* [n] → [1, n], elements of type `bias` */
};

static inline bool weight_is_vector(enum weight_layout layout)
{
    return layout == WEIGHT_VECTOR || layout == WEIGHT_BIAS;
}

/* A weight, or a part of one: those of the same weight are copied one below the other, or behind
 * the other if it is a vector, in this order and without a gap. */
struct weight_copy {
    void *target;       /* device; the whole weight */
    int64_t first;      /* row of the target, of a vector its element, where this part begins */
    const void *source; /* host, as the file has it */
    enum dtype source_dtype;
    enum weight_layout layout;
    int64_t rows, cols;      /* of this part */
    int channels_in, window; /* WEIGHT_CONV: cols = window · channels_in */
    bool lasting;            /* the source stays, unchanged, until the back end is destroyed */
    const char *name, *path; /* tensor and file, for the error when it holds NaN or infinity; name
                                NULL: it may */
};

enum backend_stream { STREAM_COMPUTE, STREAM_COPY };

/* Marks that a back end remembers. */
enum { BACKEND_MARKS = 512 };

struct backend {
    const struct backend_ops *ops;
    struct page_source *pages; /* where the device's memory comes from */
    const char *name;          /* "cpu", "cuda" */
    char device_name[128];
    enum dtype activation;    /* of hidden states */
    enum dtype weight;        /* of matrices */
    enum dtype bias;          /* of what `linear` and `conv` add */
    int strip_pixels;         /* of a picture, that keep an operation busy */
    int64_t weight_rows;      /* a matrix takes memory for a multiple of so many rows */
    uint64_t workspace_bytes; /* memory that the operations need besides their operands … */
    void *workspace;          /* … given by the owner before the first operation */
    uint64_t context_bytes;   /* device memory of the driver and of libraries, of which `pages`
                                 knows nothing; grows as they load code. The worker's */
    bool host;                /* the device is this machine: its memory is the machine's, and a
                                 copy is done as it is queued, while nothing computes */
    uint64_t context_wanted;  /* so much more of it would make copies faster; 0: it would not.
                                 Whoever can spare that or a part of it adds it to both. The
                                 worker's */
    uint64_t context_granted; /* part of context_bytes */
    uint64_t context_share;   /* in all it comes to want a byte for so many of the weights that pass
                                 again and again; 0: no more. The worker's */
};

/* Memory that a weight takes. */
static inline uint64_t backend_weight_bytes(const struct backend *backend,
                                            enum weight_layout layout, int64_t rows, int64_t cols)
{
    if (weight_is_vector(layout))
        return (uint64_t)(rows * cols) *
               dtype_bytes(layout == WEIGHT_BIAS ? backend->bias : DTYPE_F32);
    rows += backend->weight_rows - 1;
    rows -= rows % backend->weight_rows;
    return (uint64_t)(rows * cols) * dtype_bytes(backend->weight);
}

struct backend_ops {
    uint32_t abi;  /* BACKEND_ABI */
    uint32_t size; /* of this struct */

    void (*destroy)(struct backend *backend);
    /* Waits for the compute stream, and so for copies that it waits for; the first error since the
     * last sync. */
    int (*sync)(struct backend *backend, struct error *err);

    /* ---- moving data ---- */
    /* Host to device and back; the host side is contiguous fp32 (or int32 for DTYPE_I32, bytes for
     * DTYPE_U8) and may be reused on return. */
    void (*upload)(struct backend *backend, struct tensor target, const void *source);
    void (*download)(struct backend *backend, void *target, struct tensor source);
    /* Queued on the copy stream: later work on the compute stream may use the target only after
     * `copy_wait` of the ticket. `copy_reuse` makes copies queued later wait for the compute work
     * queued so far, before a target is overwritten. */
    void (*copy_weights)(struct backend *backend, const struct weight_copy *copies, size_t count);
    uint64_t (*copy_ticket)(struct backend *backend);
    void (*copy_wait)(struct backend *backend, uint64_t ticket);
    void (*copy_reuse)(struct backend *backend);
    /* Host memory pinned for copies, in bytes. Any thread. */
    uint64_t (*pinned_bytes)(struct backend *backend);

    /* ---- time ---- */
    /* Marks the present end of a stream's work; numbers count from 1. */
    uint64_t (*mark)(struct backend *backend, enum backend_stream stream);
    /* Returns when the work before a mark of the compute stream is done. */
    void (*mark_wait)(struct backend *backend, uint64_t mark);
    /* Seconds from one mark to a later one, when the work before both is done; 0 if that can't be
     * said, e.g. after an error. */
    double (*mark_seconds)(struct backend *backend, uint64_t from, uint64_t to);

    /* ---- linear algebra ---- */
    void (*linear)(struct backend *backend, const struct linear *args);
    void (*attention)(struct backend *backend, const struct attention *args);
    void (*conv)(struct backend *backend, const struct conv *args);

    /* ---- normalisation; statistics in fp32, of deviations from the mean; y may be x ---- */
    /* y = layer_norm(x)·weight + bias; weight and bias fp32 [1,n]. */
    void (*layer_norm)(struct backend *backend, struct tensor y, struct tensor x,
                       struct tensor weight, struct tensor bias, float eps);
    /* y = layer_norm(x)·(1 + scale) + shift; scale and shift fp32 [1,n]. */
    void (*modulated_norm)(struct backend *backend, struct tensor y, struct tensor x,
                           struct tensor shift, struct tensor scale, float eps);
    /* y = x/√(mean(x²) + eps)·weight; weight fp32 [1,n]. */
    void (*rms_norm)(struct backend *backend, struct tensor y, struct tensor x,
                     struct tensor weight, float eps);
    void (*head_norm)(struct backend *backend, const struct head_norm *args);
    void (*gated_norm)(struct backend *backend, const struct gated_norm *args);
    /* For group_norm. Row 0 of sums holds origins, each channel's value in the first row of part 0,
     * which comes first; rows 1 + 2·part and 2 + 2·part become Σ(x − origin) and Σ(x − origin)². */
    void (*channel_sums)(struct backend *backend, struct tensor sums, struct tensor x, int part);
    void (*group_norm)(struct backend *backend, const struct group_norm *args);
    /* y = x·affine row 0 + affine row 1; affine fp32 [2,n]. */
    void (*affine)(struct backend *backend, struct tensor y, struct tensor x, struct tensor affine);

    /* ---- element by element ---- */
    void (*add)(struct backend *backend, struct tensor y, struct tensor x); /* y += x */
    /* y = gelu_tanh(y)·x */
    void (*gelu_multiply)(struct backend *backend, struct tensor y, struct tensor x);
    void (*silu)(struct backend *backend, struct tensor y, struct tensor x); /* y may be x */
    /* Converts: each of y and x holds hidden states or fp32. */
    void (*copy)(struct backend *backend, struct tensor y, struct tensor x);

    /* ---- the ends of the pipeline ---- */
    /* T5: y fp32 [heads·n, n]; y[h,i,j] = table[buckets[i,j], h]; table [buckets, heads] of type
     * `weight`; buckets int32 [n, n]. */
    void (*position_bias)(struct backend *backend, struct tensor y, struct tensor table,
                          struct tensor buckets);
    /* Euler: latents += step·velocity; both fp32. */
    void (*euler)(struct backend *backend, struct tensor latents, struct tensor velocity,
                  float step);
    /* v = negative + scale·(v − negative); both fp32. */
    void (*guide)(struct backend *backend, struct tensor v, struct tensor negative, float scale);
    /* Tokens fp32 [h/2·w/2, 4c] → pixels [h·w, c]: z·multiply + shift. Channel of a token is
     * c·4 + 2·(row mod 2) + column mod 2. */
    void (*unpatchify)(struct backend *backend, struct tensor pixels, struct tensor tokens,
                       int width, float multiply, float shift);
    /* RGB8 [rows, 3] = round(255·clamp(x/2 + ½)); x [rows, 3]. */
    void (*to_rgb)(struct backend *backend, struct tensor rgb, struct tensor x);
};

#endif
