/* SPDX-License-Identifier: MIT */
/*
 * Tensors stored in a safetensors file, as views of its mapping.
 *
 * The file: 8 bytes, the length of the header (little-endian); the header, a JSON object
 * {name: {"dtype", "shape", "data_offsets": [begin, end]}, …, "__metadata__"}; then the data, which
 * the offsets count from. Format: https://github.com/huggingface/safetensors
 *
 * Opening reads the header only and checks all of it: every tensor lies inside the file, overlaps
 * no other, and is as long as its shape and type say. What the values are (NaN, say) is left to
 * those who read them.
 */
#ifndef FLUXFS_ENGINE_SAFETENSORS_H
#define FLUXFS_ENGINE_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "engine/error.h"

enum { STORED_RANK_MAX = 8 };

/* The rank of a tensor that is only imagined, without data: it has whatever shape is wanted. */
enum { STORED_RANK_ANY = -1 };

enum stored_type {
    STORED_F32,
    STORED_F16,
    STORED_BF16,
    STORED_F64,
    STORED_F8_E4M3,
    STORED_F8_E5M2,
    STORED_I64,
    STORED_I32,
    STORED_I16,
    STORED_I8,
    STORED_U64,
    STORED_U32,
    STORED_U16,
    STORED_U8,
    STORED_BOOL,
    STORED_OTHER, /* a type unknown here: its length is unchecked, and nothing may read it */
};

/* All pointers borrow from the open file. */
struct stored_tensor {
    const char *name;
    const char *path;      /* of the file, for messages: file_label() it */
    const char *type_name; /* as the file writes it: "BF16" */
    enum stored_type type;
    int rank;                       /* 0 is a single value */
    int64_t shape[STORED_RANK_MAX]; /* outermost first */
    const void *data;               /* little-endian, row-major, of any alignment */
    uint64_t size_bytes;
};

struct safetensors;

/* Fails with the errno of opening, or EINVAL and a line that names the file and the tensor. */
int safetensors_open(const char *path, struct safetensors **file, struct error *err);
void safetensors_close(struct safetensors *file);
/* After reading values: EIO if the file could not give some of them (file_map_check). */
int safetensors_check(const struct safetensors *file, struct error *err);

/* The tensors, sorted by name in the order of strcmp. */
const struct stored_tensor *safetensors_list(const struct safetensors *file, size_t *count);
/* NULL if there is none of this name. */
const struct stored_tensor *safetensors_find(const struct safetensors *file, const char *name);

/* Bytes of one element; 0 for STORED_OTHER. */
size_t stored_type_bytes(enum stored_type type);

/* Whether a tensor can serve as a weight: F32, F16 or BF16, of exactly this shape. ENOTSUP or
 * EINVAL and a line that gives both shapes. */
int stored_tensor_check(const struct stored_tensor *tensor, int rank, const int64_t *shape,
                        struct error *err);

#endif
