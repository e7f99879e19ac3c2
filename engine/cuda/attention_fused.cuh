/* SPDX-License-Identifier: MIT */
/*
 * Attention in one kernel, with a running maximum and sum (online softmax, arXiv 1805.02867, in the
 * arrangement of FlashAttention 2, arXiv 2307.08691).
 *
 * A block does some queries of one head. Keys and values pass through its shared memory as a row of
 * tiles: keys, their values, the next keys …; each is fetched while those before it are multiplied.
 * Scores count in units of log₂, and are taken relative to a `shift` for each query: its highest
 * score some time ago. Only when a score rises above that by so much that its exponential might
 * become large are the shift, the sum and the output so far renewed.
 */
#ifndef FLUXFS_ENGINE_CUDA_ATTENTION_FUSED_CUH
#define FLUXFS_ENGINE_CUDA_ATTENTION_FUSED_CUH

#include "engine/cuda/mma.cuh"

#define LOG2_E 1.4426950409f
#define SHIFT_NONE -1e30f
#define RISE_MAX 8.0f

/* How a block is laid out. A warp does STRIPES · 16 queries; with one stripe they stay in
 * registers, with two in shared memory. D: the head's size, or more. */
template <int D_, int STRIPES_, int KEYS_, int WARPS_, int TILES_, int BLOCKS_> struct layout {
    static constexpr int D = D_, STRIPES = STRIPES_, KEYS = KEYS_, TILES = TILES_;
    static constexpr int BLOCKS = BLOCKS_; /* of a multiprocessor, at least */
    static constexpr int THREADS = 32 * WARPS_, WARP_QUERIES = 16 * STRIPES;
    static constexpr int QUERIES = WARP_QUERIES * WARPS_, TILE = KEYS * D;
    static constexpr bool SHARED_QUERIES = STRIPES > 1;
    static constexpr int BYTES = (SHARED_QUERIES * QUERIES * D + TILES * TILE) * (int)sizeof(bf16);
};

__device__ inline int lane()
{
    return (int)(threadIdx.x % 32);
}

/* Where the 8 elements from 8·part on of a row lie in a tile: permuted so that the rows of an 8 × 8
 * matrix lie in different banks. */
template <int D> __device__ inline int place(int row, int part)
{
    return row * D + (part ^ row % 8) * 8;
}

/* ---- to shared memory ---- */

/* Queries, keys or values of a head. */
struct rows {
    const bf16 *data;
    int64_t stride;
    int count;
};

/* Rows `first` … to shared memory, zeros beyond the last and beyond the head's size. WIDE:
 * addresses and strides are multiples of 16 bytes, size of 8. */
template <class L, int ROWS, bool WIDE>
__device__ inline void tile_load(bf16 *tile, struct rows rows, int first, int size)
{
    constexpr int PARTS = L::D / 8, STEP = L::THREADS / PARTS;

    if (WIDE) {
        int row = (int)(threadIdx.x / PARTS), part = (int)(threadIdx.x % PARTS);
        int there = part * 8 < size ? rows.count - first - row : 0;
        const bf16 *from = rows.data + (first + row) * rows.stride + part * 8;
        bf16 *to = tile + place<L::D>(row, part);

        static_assert(STEP % 8 == 0 && ROWS % STEP == 0);
#pragma unroll
        for (int i = 0; i < ROWS; i += STEP)
            copy_async(to + i * L::D, from + i * rows.stride, i < there);
    } else {
        for (int i = (int)threadIdx.x; i < ROWS * L::D; i += L::THREADS) {
            int row = i / L::D, d = i % L::D;
            bool there = first + row < rows.count && d < size;

            tile[place<L::D>(row, d / 8) + d % 8] =
                there ? rows.data[(first + row) * rows.stride + d] : __float2bfloat16_rn(0.0f);
        }
    }
}

/* ---- scores ---- */

/* Two neighbouring elements of a query, as an operand. */
__device__ inline uint32_t query_pair(struct rows q, int row, int d, int size)
{
    const bf16 *p = q.data + row * q.stride + d;
    bool there = row < q.count;

    return pair(there && d < size ? load(p) : 0.0f, there && d + 1 < size ? load(p + 1) : 0.0f);
}

/* s = q·kᵀ, of a warp. */
template <class L>
__device__ inline void scores_compute(float s[L::STRIPES][L::KEYS / 8][4],
                                      const uint32_t kept[L::D / 16][4], const bf16 *q,
                                      const bf16 *k)
{
    int of_query = here(place<L::D>(lane() % 16, lane() / 16));
    int of_key = here(place<L::D>(lane() / 16 * 8 + lane() % 8, lane() / 8 % 2));
    uint32_t a[L::STRIPES][4], b[4];

#pragma unroll
    for (int i = 0; i < L::D / 16; i++) {
#pragma unroll
        for (int m = 0; m < L::STRIPES; m++) {
            if (L::SHARED_QUERIES)
                load_matrices(a[m], q + m * 16 * L::D + (of_query ^ i * 16));
            else
#pragma unroll
                for (int j = 0; j < 4; j++)
                    a[m][j] = kept[i][j];
        }
#pragma unroll
        for (int n = 0; n < L::KEYS / 8; n += 2) {
            load_matrices(b, k + n * 8 * L::D + (of_key ^ i * 16));
#pragma unroll
            for (int m = 0; m < L::STRIPES; m++)
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    if (i == 0)
                        mma_first(s[m][n + j], a[m], b[2 * j], b[2 * j + 1]);
                    else
                        mma(s[m][n + j], a[m], b[2 * j], b[2 * j + 1]);
                }
        }
    }
}

/* Bias added, −∞ where nothing is to be seen. `row` is this lane's first query. */
template <class L, bool PLAIN>
__device__ inline void scores_finish(float s[L::STRIPES][L::KEYS / 8][4],
                                     const struct attention &args, float scale, int row, int first)
{
    const float *bias = (const float *)args.bias.data;
    int keys = (int)args.k.rows, queries = (int)args.q.rows;

#pragma unroll
    for (int m = 0; m < L::STRIPES; m++)
#pragma unroll
        for (int n = 0; n < L::KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int query = row + m * 16 + i / 2 * 8;
                int key = first + n * 8 + lane() % 4 * 2 + i % 2;
                bool seen = key < keys && (PLAIN || !args.causal || key <= query);

                if (!PLAIN) {
                    s[m][n][i] *= scale;
                    if (bias != NULL && seen && query < queries)
                        s[m][n][i] +=
                            LOG2_E *
                            bias[((int64_t)blockIdx.y * queries + query) * args.bias.stride + key];
                }
                s[m][n][i] = seen ? s[m][n][i] : -INFINITY;
            }
}

/* ---- softmax ---- */

/* What a warp has so far. Lane l has, of each stripe, queries l/4 and l/4 + 8. */
template <class L> struct progress {
    float o[L::STRIPES][L::D / 8][4] = {}, sum[L::STRIPES][2] = {}, shift[L::STRIPES][2];
};

__device__ inline float quad_maximum(float x)
{
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ inline float quad_sum(float x)
{
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/* New shifts where scores have risen too high: true if there are any, and what the output so far is
 * to be multiplied by. */
template <class L>
__device__ inline bool shifts_renew(struct progress<L> &now, float rescale[L::STRIPES][2],
                                    const float s[L::STRIPES][L::KEYS / 8][4], float scale)
{
    float highest[L::STRIPES][2];
    bool risen = false;

#pragma unroll
    for (int m = 0; m < L::STRIPES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float x = s[m][0][2 * half];

#pragma unroll
            for (int n = 0; n < L::KEYS / 8; n++)
                x = fmaxf(x, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
            highest[m][half] = x * scale;
            risen |= highest[m][half] > now.shift[m][half] + RISE_MAX;
        }
    if (!__any_sync(0xffffffffu, risen))
        return false;
#pragma unroll
    for (int m = 0; m < L::STRIPES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float top = quad_maximum(highest[m][half]), &shift = now.shift[m][half];

            top = top > shift + RISE_MAX ? top : shift;
            rescale[m][half] = power_of_2(shift - top);
            now.sum[m][half] *= rescale[m][half];
            shift = top;
        }
    return true;
}

template <class L>
__device__ inline void output_rescale(struct progress<L> &now, const float rescale[L::STRIPES][2])
{
#pragma unroll
    for (int m = 0; m < L::STRIPES; m++)
#pragma unroll
        for (int n = 0; n < L::D / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                now.o[m][n][i] *= rescale[m][i / 2];
}

/* Two of a query's scores become weights 2^(s·scale − shift). */
__device__ inline void weigh(float s[2], float scale, float shift, float &sum)
{
    s[0] = power_of_2(fmaf(s[0], scale, -shift));
    s[1] = power_of_2(fmaf(s[1], scale, -shift));
    sum += s[0] + s[1];
}

/* o += p·v for the weights p; those of the next 16 keys are computed while the matrix units are
 * busy with 16. c of two products of 8 keys is laid out as a of one product of 16. */
template <class L>
__device__ inline void output_add(struct progress<L> &now, float s[L::STRIPES][L::KEYS / 8][4],
                                  float scale, const bf16 *v)
{
    constexpr int STEPS = L::KEYS / 16, PRODUCTS = L::D / 16, PAIRS = 4 * L::STRIPES;
    constexpr int EACH = (PAIRS + PRODUCTS - 1) / PRODUCTS;
    int of_value = here(place<L::D>(lane() % 16, lane() / 16));
    uint32_t p[STEPS][L::STRIPES][4], b[4];
    auto weights = [&](int step, int i) {
        int m = i / 4, half = i % 2;
        float *two = &s[m][2 * step + i % 4 / 2][2 * half];

        weigh(two, scale, now.shift[m][half], now.sum[m][half]);
        p[step][m][i % 4] = pair(two[0], two[1]);
    };

#pragma unroll
    for (int i = 0; i < PAIRS; i++)
        weights(0, i);
#pragma unroll
    for (int step = 0; step < STEPS; step++)
#pragma unroll
        for (int n = 0; n < PRODUCTS; n++) {
            load_transposed(b, v + step * 16 * L::D + (of_value ^ n * 16));
#pragma unroll
            for (int m = 0; m < L::STRIPES; m++) {
                mma(now.o[m][2 * n], p[step][m], b[0], b[1]);
                mma(now.o[m][2 * n + 1], p[step][m], b[2], b[3]);
            }
#pragma unroll
            for (int i = n * EACH; i < (n + 1) * EACH; i++)
                if (step + 1 < STEPS && i < PAIRS)
                    weights(step + 1, i);
        }
}

/* ---- output ---- */

/* y = o/sum, of this lane's queries. */
template <class L, bool WIDE>
__device__ inline void output_store(const struct progress<L> &now, const struct tensor &y, int head,
                                    int row, int size)
{
#pragma unroll
    for (int i = 0; i < 2 * L::STRIPES; i++) {
        int query = row + i * 8, half = i % 2, d0 = lane() % 4 * 2;
        float inverse = 1.0f / quad_sum(now.sum[i / 2][half]);
        bf16 *to = (bf16 *)y.data + query * y.stride + (int64_t)head * size + d0;

        if (query >= y.rows)
            continue;
#pragma unroll
        for (int n = 0; n < L::D / 8; n++) {
            float low = now.o[i / 2][n][2 * half] * inverse;
            float high = now.o[i / 2][n][2 * half + 1] * inverse;

            if (WIDE) {
                if (n * 8 < size)
                    *(uint32_t *)&to[n * 8] = pair(low, high);
            } else {
                if (n * 8 + d0 < size)
                    store(&to[n * 8], low);
                if (n * 8 + d0 + 1 < size)
                    store(&to[n * 8 + 1], high);
            }
        }
    }
}

/* ---- the kernel ---- */

/* grid (⌈queries/QUERIES⌉, heads), block THREADS. Tile 2i of the row holds keys, 2i + 1 their
 * values; tile j lies at j % TILES. */
template <class L, bool WIDE, bool PLAIN>
__global__ void __launch_bounds__(L::THREADS, L::BLOCKS)
    attention_kernel(struct attention args, int size)
{
    bf16 *q = block_memory<bf16>(), *tiles = q + L::SHARED_QUERIES * L::QUERIES * L::D;
    int warp_row = (int)(threadIdx.x / 32) * L::WARP_QUERIES, block_row = blockIdx.x * L::QUERIES;
    int row = block_row + warp_row + lane() / 4;
    bool causal = !PLAIN && args.causal, biased = !PLAIN && args.bias.data != NULL;
    int keys = causal ? min((int)args.k.rows, block_row + L::QUERIES) : (int)args.k.rows;
    /* What a score is multiplied by before the bias is added, and after. */
    float before = biased ? args.scale * LOG2_E : 1, after = biased ? 1 : args.scale * LOG2_E;
    uint32_t kept[L::D / 16][4];
    float s[L::STRIPES][L::KEYS / 8][4], rescale[L::STRIPES][2];
    struct progress<L> now;

    auto rows_of = [&](const struct tensor &t) {
        return rows{(const bf16 *)t.data + (int64_t)blockIdx.y * size, t.stride, (int)t.rows};
    };
    auto tile = [&](int i) { return tiles + i % L::TILES * L::TILE; };
    auto fetch = [&](int i) {
        if (i / 2 * L::KEYS < keys)
            tile_load<L, L::KEYS, WIDE>(tile(i), rows_of(i % 2 == 0 ? args.k : args.v),
                                        i / 2 * L::KEYS, size);
        copies_commit();
    };
    /* Tile i is there for all, the one before it is done with. */
    auto turn = [&](int i) {
        copies_wait<L::TILES - 2>();
        __syncthreads();
        fetch(i + L::TILES - 1);
        return tile(i);
    };

    for (int m = 0; m < L::STRIPES; m++)
        now.shift[m][0] = now.shift[m][1] = SHIFT_NONE;
    if (L::SHARED_QUERIES) {
        tile_load<L, L::QUERIES, WIDE>(q, rows_of(args.q), block_row, size);
    } else {
#pragma unroll
        for (int i = 0; i < L::D / 16; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                kept[i][j] = query_pair(rows_of(args.q), row + j % 2 * 8,
                                        i * 16 + lane() % 4 * 2 + j / 2 * 8, size);
    }
    for (int i = 0; i < L::TILES - 1; i++)
        fetch(i);
    for (int i = 0; i * L::KEYS < keys; i++) {
        int first = i * L::KEYS;

        scores_compute<L>(s, kept, q + warp_row * L::D, turn(2 * i));
        if (biased || first + L::KEYS > keys || (causal && first + L::KEYS > block_row))
            scores_finish<L, PLAIN>(s, args, before, row, first);
        if (shifts_renew<L>(now, rescale, s, after))
            output_rescale<L>(now, rescale);
        output_add<L>(now, s, after, turn(2 * i + 1));
    }
    output_store<L, WIDE>(now, args.y, blockIdx.y, row, size);
}

#endif
