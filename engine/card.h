/* SPDX-License-Identifier: MIT */
/* What the CUDA back end asks of a graphics card, for itself and for those who plan for one. */
#ifndef FLUXFS_ENGINE_CARD_H
#define FLUXFS_ENGINE_CARD_H

#include <stddef.h>
#include <stdint.h>

/* Short pages lose less, but each takes its calls. */
#define CUDA_PAGE_BYTES ((size_t)2 << 20)

/* Pixels of a strip that keep an operation busy. */
enum { CUDA_STRIP_PIXELS = 65536 };

/* The workspace: a bias in fp32, and what cuBLASLt wants or a tile of gathered windows, of
 * attention scores, of sums, or what cuDNN wants. Operations follow each other on one stream, so
 * that each may use all of it; a product whose operands lie in the tile has what lies before it. */
#define CUDA_BIAS_BYTES ((size_t)256 << 10)
#define CUDA_BLAS_BYTES ((size_t)32 << 20)
#define CUDA_BLAS_TILED_BYTES (((size_t)2 << 20) - CUDA_BIAS_BYTES)
#define CUDA_TILE_BYTES ((size_t)32 << 20)
#define CUDA_WORKSPACE_BYTES (CUDA_BIAS_BYTES + CUDA_BLAS_TILED_BYTES + CUDA_TILE_BYTES)

/* Kernels, which are loaded at their first use: so much is set aside from the start, so that the
 * budget has no surprise for those who plan with it. Our own, of which nobody counts how much they
 * take, are a part of that. */
#define CUDA_CODE_BYTES ((uint64_t)32 << 20)
#define CUDA_OWN_CODE_BYTES ((uint64_t)8 << 20)

/* What is pinned takes device memory too, for its page tables: 8 bytes for each page. */
#define CUDA_PINNED_PER_TABLE 512

/* What the driver takes of an H100 besides. */
#define CUDA_DRIVER_BYTES ((uint64_t)527 << 20)

#endif
