/* SPDX-License-Identifier: MIT */
/*
 * The matrix units' instruction m16n8k16 in bf16 (from sm_80 on), and the loads that feed it.
 *
 * In a warp, lane l holds of a 16 × 16 matrix a the pairs of neighbouring elements at (row l/4,
 * column 2(l%4)), then 8 rows below, then 8 columns right, then both; of a 16 × 8 matrix b the
 * pairs at (rows 2(l%4), +1, column l/4), then 8 rows below; of a 16 × 8 matrix c the elements at
 * (row l/4, columns 2(l%4), +1), then 8 rows below. (PTX ISA, "Matrix fragments for mma.m16n8k16".)
 */
#ifndef FLUXFS_ENGINE_CUDA_MMA_CUH
#define FLUXFS_ENGINE_CUDA_MMA_CUH

#include "engine/cuda/kernel.cuh"

/* c += a·b */
__device__ inline void mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* c = a·b */
__device__ inline void mma_first(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
                 : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.0f));
}

/* Four 8 × 8 matrices from shared memory: lanes 8i … 8i + 7 name the rows of matrix i (16 bytes
 * each, aligned), and lane l gets of each the pair at (row l/4, column 2(l%4)). */
__device__ inline void load_matrices(uint32_t r[4], const bf16 *row)
{
    uint32_t address = (uint32_t)__cvta_generic_to_shared(row);

    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

/* The same, each matrix transposed: lane l gets the pair at (rows 2(l%4), +1, column l/4). */
__device__ inline void load_transposed(uint32_t r[4], const bf16 *row)
{
    uint32_t address = (uint32_t)__cvta_generic_to_shared(row);

    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

/* 16 bytes to shared memory behind the thread's back, or 16 zero bytes. */
__device__ inline void copy_async(bf16 *to, const bf16 *from, bool there)
{
    uint32_t address = (uint32_t)__cvta_generic_to_shared(to);
    int bytes = there ? 16 : 0;

    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(address), "l"(from), "r"(bytes)
                 : "memory");
}

/* Ends a group of copies: those since the last one ended, if any. */
__device__ inline void copies_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Returns when the calling thread's copies have arrived, but for those of its LATEST last groups;
 * other threads' need a barrier after it. */
template <int LATEST> __device__ inline void copies_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(LATEST) : "memory");
}

/* x; what follows from it is computed here, and not kept in registers from before a loop. */
__device__ inline int here(int x)
{
    asm volatile("" : "+r"(x));
    return x;
}

/* 2ˣ to 2 units in the last place; 0 where that is not a normal number. */
__device__ inline float power_of_2(float x)
{
    float y;

    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ inline uint32_t pair(float low, float high)
{
    __nv_bfloat162 both = __floats2bfloat162_rn(low, high);

    return *(uint32_t *)&both;
}

#endif
