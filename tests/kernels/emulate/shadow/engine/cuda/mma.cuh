/* SPDX-License-Identifier: MIT */
/*
 * engine/cuda/mma.cuh for kernels that run on the CPU: the same functions, as the PTX ISA describes
 * their instructions ("Matrix fragments for mma.m16n8k16", "ldmatrix", "cp.async").
 */
#ifndef FLUXFS_TESTS_KERNELS_EMULATE_MMA_CUH
#define FLUXFS_TESTS_KERNELS_EMULATE_MMA_CUH

#include <cstdlib>
#include <cstring>
#include <vector>

#include "engine/cuda/kernel.cuh"

static inline float low_half(uint32_t both)
{
    uint32_t bits = both << 16;
    float value;

    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float high_half(uint32_t both)
{
    return low_half(both >> 16);
}

static inline uint32_t pair(float low, float high)
{
    bf16 halves[2] = {__float2bfloat16_rn(low), __float2bfloat16_rn(high)};
    uint32_t both;

    memcpy(&both, halves, sizeof both);
    return both;
}

/* ---- mma ---- */

struct mma_lane {
    float *c;
    const uint32_t *a;
    uint32_t b[2];
};

static inline void mma_warp(void *const lanes[])
{
    float a[16][16], b[16][8];

    for (int l = 0; l < WARP_LANES; l++) {
        const struct mma_lane *lane = (const struct mma_lane *)lanes[l];

        for (int i = 0; i < 8; i++) {
            uint32_t both = lane->a[i / 2];
            int row = l / 4 + (i / 2 % 2 == 1 ? 8 : 0), col = l % 4 * 2 + i % 2 + (i >= 4 ? 8 : 0);

            a[row][col] = i % 2 == 0 ? low_half(both) : high_half(both);
        }
        for (int i = 0; i < 4; i++) {
            uint32_t both = lane->b[i / 2];

            b[l % 4 * 2 + i % 2 + (i >= 2 ? 8 : 0)][l / 4] =
                i % 2 == 0 ? low_half(both) : high_half(both);
        }
    }
    for (int l = 0; l < WARP_LANES; l++)
        for (int i = 0; i < 4; i++) {
            float *c = &((const struct mma_lane *)lanes[l])->c[i];

            for (int k = 0; k < 16; k++)
                *c += a[l / 4 + (i >= 2 ? 8 : 0)][k] * b[k][l % 4 * 2 + i % 2];
        }
}

static inline void mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    struct mma_lane lane = {c, a, {b0, b1}};

    block_together(WARP_LANES, mma_warp, &lane);
}

static inline void mma_first(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    c[0] = c[1] = c[2] = c[3] = 0;
    mma(c, a, b0, b1);
}

/* ---- ldmatrix ---- */

struct load_lane {
    uint32_t *r;
    const bf16 *row;
    bool transposed;
};

static inline void load_warp(void *const lanes[])
{
    for (int l = 0; l < WARP_LANES; l++) {
        const struct load_lane *lane = (const struct load_lane *)lanes[l];

        for (int m = 0; m < 4; m++) {
            bf16 halves[2];

            for (int i = 0; i < 2; i++) {
                int row = lane->transposed ? l % 4 * 2 + i : l / 4;
                int col = lane->transposed ? l / 4 : l % 4 * 2 + i;
                const struct load_lane *owner = (const struct load_lane *)lanes[8 * m + row];

                if ((uintptr_t)owner->row % 16 != 0)
                    abort();
                halves[i] = owner->row[col];
            }
            memcpy(&lane->r[m], halves, sizeof halves);
        }
    }
}

static inline void load_matrices(uint32_t r[4], const bf16 *row)
{
    struct load_lane lane = {r, row, false};

    block_together(WARP_LANES, load_warp, &lane);
}

static inline void load_transposed(uint32_t r[4], const bf16 *row)
{
    struct load_lane lane = {r, row, true};

    block_together(WARP_LANES, load_warp, &lane);
}

/* ---- cp.async: a copy happens at once or when it is waited for ---- */

struct copy_pending {
    bf16 *to;
    const bf16 *from;
    unsigned block;
    struct extent thread;
    int later; /* groups that the thread has ended since */
};

static std::vector<struct copy_pending> copies_pending;

static inline bool is_own(const struct copy_pending &copy)
{
    return copy.block == block_place->number &&
           memcmp(&copy.thread, &threadIdx, sizeof copy.thread) == 0;
}

static inline void copy_carry_out(bf16 *to, const bf16 *from)
{
    if (from != NULL)
        memcpy(to, from, 16);
    else
        memset(to, 0, 16);
}

static inline void copy_async(bf16 *to, const bf16 *from, bool there)
{
    if ((uintptr_t)to % 16 != 0 || (uintptr_t)from % 16 != 0)
        abort();
    from = there ? from : NULL;
    if (block_coin())
        copy_carry_out(to, from);
    else
        copies_pending.push_back({to, from, block_place->number, threadIdx, -1});
}

static inline void copies_commit()
{
    for (struct copy_pending &copy : copies_pending)
        if (is_own(copy))
            copy.later++;
}

template <int LATEST> static inline void copies_wait()
{
    size_t kept = 0;

    for (const struct copy_pending &copy : copies_pending) {
        if (is_own(copy) && copy.later >= LATEST)
            copy_carry_out(copy.to, copy.from);
        else
            copies_pending[kept++] = copy;
    }
    copies_pending.resize(kept);
}

/* ---- arithmetic ---- */

static inline int here(int x)
{
    return x;
}

static inline float power_of_2(float x)
{
    float y = exp2f(x);

    return std::isnormal(y) ? y : std::isinf(y) || std::isnan(y) ? y : 0.0f;
}

#endif
