/* SPDX-License-Identifier: MIT */
/*
 * What Hopper (sm_90a) has of its own: matrix products of a warpgroup (128 threads, the first a
 * multiple of 128) that read shared memory and go on behind the threads' backs, copies of whole
 * tiles, the gates through which threads learn that these are done, and pairs of blocks.
 *
 * In shared memory a matrix lies in panels of 64 columns, one behind the other, at multiples of
 * 1024 bytes: its rows of 128 bytes follow each other, and of row r the 16 bytes numbered i lie at
 * i ^ r % 8 (PTX ISA, "128-byte swizzling").
 */
#ifndef FLUXFS_ENGINE_CUDA_HOPPER_CUH
#define FLUXFS_ENGINE_CUDA_HOPPER_CUH

#include "engine/cuda/kernel.cuh"

enum { WARPGROUP = 128, PANEL = 64 };

__device__ inline uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* ---- gates ---- */

/* In shared memory. A phase ends when so many threads have arrived as was said at first, and all
 * bytes have come that were announced. */
struct gate {
    uint64_t state;
};

__device__ inline void gate_init(struct gate *gate, int arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(gate)),
                 "r"(arrivals)
                 : "memory");
}

/* After the first thread's gate_init, before the barrier that lets the others see them. */
__device__ inline void gates_publish()
{
    asm volatile("fence.mbarrier_init.release.cluster;\n\tfence.proxy.async;" ::: "memory");
}

__device__ inline void gate_arrive(struct gate *gate)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(gate)) : "memory");
}

/* Arrives, and announces bytes. */
__device__ inline void gate_expect(struct gate *gate, int bytes)
{
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(gate)),
        "r"(bytes)
        : "memory");
}

/* Returns when a phase has ended, of an odd number or of an even one, that is the present or the
 * last. The first is phase 0. */
__device__ inline void gate_wait(struct gate *gate, int phase)
{
    uint32_t ended = 0;

    while (ended == 0)
        asm volatile("{\n\t.reg .pred p;\n\t"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
                     "selp.u32 %0, 1, 0, p;\n\t}"
                     : "=r"(ended)
                     : "r"(shared_address(gate)), "r"(phase % 2)
                     : "memory");
}

/* ---- copies ---- */

/* A box of a tensor to a panel, by one thread; its bytes come to the gate. */
__device__ inline void copy_box(bf16 *to, const CUtensorMap *map, int x, int y, int z,
                                struct gate *gate)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(shared_address(to)),
                 "l"(map), "r"(x), "r"(y), "r"(z), "r"(shared_address(gate))
                 : "memory");
}

/* To the same place in both blocks of a pair, and its bytes to the gate that lies there in each. */
__device__ inline void copy_box_to_pair(bf16 *to, const CUtensorMap *map, int x, int y, int z,
                                        struct gate *gate)
{
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
        ".multicast::cluster [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(shared_address(to)),
        "l"(map), "r"(x), "r"(y), "r"(z), "r"(shared_address(gate)), "h"((uint16_t)3)
        : "memory");
}

/* ---- pairs of blocks: clusters of two ---- */

/* Returns when all threads of both have called it; the lanes of a warp call it together. */
__device__ inline void pair_sync()
{
    asm volatile("barrier.cluster.arrive.release.aligned;\n\t"
                 "barrier.cluster.wait.acquire.aligned;" ::
                     : "memory");
}

/* At a gate that lies there in block number `rank` of the pair. It orders no memory of threads:
 * what is told so is that the matrix units have read. */
__device__ inline void gate_arrive_at(struct gate *gate, int rank)
{
    asm volatile("{\n\t.reg .b32 there;\n\t"
                 "mapa.shared::cluster.u32 there, %0, %1;\n\t"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n\t}" ::"r"(shared_address(gate)),
                 "r"(rank)
                 : "memory");
}

/* ---- registers ---- */

/* So many a thread from now on, for a whole warpgroup. */
template <int COUNT> __device__ inline void registers_drop()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

template <int COUNT> __device__ inline void registers_raise()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

/* ---- products ---- */

/*
 * c, [64, 128] of a warpgroup: warp w has rows 16w …; lane l of it, for each 8 columns, the
 * elements at (row l/4, columns 2(l%4), +1), then 8 rows below. Between wgmma_begin and the end of
 * wgmma_wait, c and a belong to the matrix units.
 */
#define ACCUMULATOR_NAMES                                                                          \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                      \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "             \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "             \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"

#define ACCUMULATOR_ROW(c, i)                                                                      \
    "+f"((c)[i]), "+f"((c)[(i) + 1]), "+f"((c)[(i) + 2]), "+f"((c)[(i) + 3]), "+f"((c)[(i) + 4]),  \
        "+f"((c)[(i) + 5]), "+f"((c)[(i) + 6]), "+f"((c)[(i) + 7])
#define ACCUMULATORS(c)                                                                            \
    ACCUMULATOR_ROW(c, 0), ACCUMULATOR_ROW(c, 8), ACCUMULATOR_ROW(c, 16), ACCUMULATOR_ROW(c, 24),  \
        ACCUMULATOR_ROW(c, 32), ACCUMULATOR_ROW(c, 40), ACCUMULATOR_ROW(c, 48),                    \
        ACCUMULATOR_ROW(c, 56)

__device__ inline void wgmma_begin()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

/* Ends a group of products. */
__device__ inline void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Returns when all groups but the LATEST last are done, and gives c back. */
template <int LATEST> __device__ inline void wgmma_wait(float c[64])
{
    asm volatile("wgmma.wait_group.sync.aligned %64;" : ACCUMULATORS(c) : "n"(LATEST) : "memory");
}

/* Where a matrix lies, in the instruction's words: next_columns and next_rows are the bytes from 64
 * columns to the next, and from 8 rows to the next. */
__device__ inline uint64_t matrix_descriptor(const bf16 *matrix, int next_columns, int next_rows)
{
    return (uint64_t)(shared_address(matrix) >> 4 & 0x3fff) | (uint64_t)(next_columns >> 4) << 16 |
           (uint64_t)(next_rows >> 4) << 32 | (uint64_t)1 << 62;
}

/* c = a·bᵀ, or c += that if `add`, for 16 columns of a panel of a [64, 16] and of b [128, 16]. */
__device__ inline void wgmma_scores(float c[64], const bf16 *a, const bf16 *b, bool add)
{
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %66, 0;\n\t"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " ACCUMULATOR_NAMES
                 ", %64, %65, p, 1, 1, 0, 0;\n\t}"
                 : ACCUMULATORS(c)
                 : "l"(matrix_descriptor(a, 16, 1024)), "l"(matrix_descriptor(b, 16, 1024)),
                   "r"((int)add));
}

/* c += a·b for 16 rows of both panels of b [16, 128]; a [64, 16] is in registers, as c is. */
__device__ inline void wgmma_values(float c[64], const uint32_t a[4], const bf16 *b,
                                    int panel_bytes)
{
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %69, 0;\n\t"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " ACCUMULATOR_NAMES
                 ", {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n\t}"
                 : ACCUMULATORS(c)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]),
                   "l"(matrix_descriptor(b, panel_bytes, 1024)), "r"(1));
}

#endif
