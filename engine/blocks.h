/* SPDX-License-Identifier: MIT */
/*
 * Blocks of weights: what moves to the device as one piece, as the model's authors would cut it: a
 * transformer block, a layer of a text encoder, a residual block of the VAE.
 *
 * Model code declares each block once: which tensor of the checkpoint goes where. Declaring checks
 * that the tensor exists and has the right shape and type; nothing is read yet. The offload engine
 * (offload.h) later gives the block memory and fills it; `block_bind` makes the model's tensors
 * point into that memory.
 */
#ifndef FLUXFS_ENGINE_BLOCKS_H
#define FLUXFS_ENGINE_BLOCKS_H

#include "engine/backend.h"
#include "engine/checkpoint.h"

/* Weights start at multiples of this within a block. */
enum { BLOCK_ALIGNMENT = 256 };

enum { WEIGHT_PARTS = 3 };

/* One tensor of the device; several of the checkpoint may lie in it, one below the other. */
struct weight {
    struct tensor *target; /* of the model; points into the block once bound */
    enum weight_layout layout;
    int channels_in, window; /* WEIGHT_CONV */
    uint64_t offset_bytes;   /* in the block */
    int parts;
    const struct stored_tensor *part[WEIGHT_PARTS];
};

struct block {
    const char *kind; /* for progress: "double attention" (static) */
    int index;        /* among its kind */
    int component;    /* enum memory_component */
    struct weight *weights;
    size_t count, capacity;
    uint64_t bytes;      /* on the device */
    uint64_t parameters; /* elements of all tensors */
    void *memory;        /* while present, else NULL; this and the next two are */
    uint64_t ticket;     /* of its copies, and */
    uint64_t copied;     /* their end on the timeline, the offload engine's */
};

struct block_list {
    struct block **blocks;
    size_t count, capacity;
    uint64_t least_bytes; /* of memory that it passes through, in whole pages (offload_measure) */
};

/* Declares the weights of one block after another and keeps the first error. */
struct block_builder {
    const struct checkpoint *checkpoint;
    const struct backend *backend;
    struct block_list *list;
    struct block *block; /* the present one */
    char prefix[128];    /* put before every tensor's name */
    struct error error;
};

void block_begin(struct block_builder *builder, const char *kind, int index);
void block_prefix(struct block_builder *builder, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* A matrix [rows, cols]; with several names (separated by spaces) parts of rows ÷ names each. */
void block_matrix(struct block_builder *builder, struct tensor *target, int64_t rows, int64_t cols,
                  const char *names);
/* A vector [n], likewise: in fp32, or the bias of a linear layer or convolution. */
void block_vector(struct block_builder *builder, struct tensor *target, int64_t n,
                  const char *names);
void block_bias(struct block_builder *builder, struct tensor *target, int64_t n, const char *names);
/* A convolution's weight [out, in, size, size]. */
void block_conv(struct block_builder *builder, struct tensor *target, int64_t out, int64_t in,
                int size, const char *name);

/* 0, or the first error. */
int block_end(struct block_builder *builder, struct error *err);

void block_list_finish(struct block_list *list);

/* Of the blocks that are on the device. */
uint64_t block_list_present_bytes(const struct block_list *list);

/* Places the block at `memory` (NULL: nowhere) and points the model's tensors into it. */
void block_bind(struct block *block, void *memory);
/* Queues the copies that fill a bound block. Errors appear at the back end's next sync. */
void block_fill(const struct block *block, struct backend *backend);

#endif
