/* SPDX-License-Identifier: MIT */
/*
 * Attention for Hopper, with its own matrix units and copies, in the arrangement of FlashAttention
 * 3 (arXiv 2407.08608): one warp fetches tiles, two warpgroups do 64 queries each, and in each the
 * weights of one tile are computed while the matrix units are busy with the values of the one
 * before.
 */
#include "engine/cuda/attention_fused.cuh"
#include "engine/cuda/hopper.cuh"

enum { D = 128, KEYS = 128, TILES = 4, GROUPS = 2, THREADS = (1 + GROUPS) * WARPGROUP };
enum { GROUP_QUERIES = 64, QUERIES = GROUPS * GROUP_QUERIES, PANELS = D / PANEL };
enum { TILE = KEYS * D, TILE_BYTES = TILE * 2, QUERY_BYTES = QUERIES * D * 2 };

/* A warpgroup's part, as if by mma.sync. */
typedef layout<D, 1, KEYS, 4, TILES, 1> group_layout;

struct block {
    bf16 q[PANELS][QUERIES][PANEL], tiles[TILES][PANELS][KEYS][PANEL];
    struct gate queries, full[TILES], empty[TILES];
};

/* What the kernel reads, as [rows, heads, size]. */
struct maps {
    CUtensorMap q, k, v;
};

/* One thread's work: tile 2i holds keys, 2i + 1 their values; tile j lies at j % TILES. */
__device__ inline void tiles_fetch(struct block *block, const struct maps &maps, int count)
{
    gate_expect(&block->queries, QUERY_BYTES);
    for (int p = 0; p < PANELS; p++)
        copy_box(block->q[p][0], &maps.q, p * PANEL, blockIdx.y, blockIdx.x * QUERIES,
                 &block->queries);
    for (int i = 0; i < count; i++) {
        int at = i % TILES;

        if (i >= TILES)
            gate_wait(&block->empty[at], i / TILES - 1);
        gate_expect(&block->full[at], TILE_BYTES);
        for (int p = 0; p < PANELS; p++)
            copy_box(block->tiles[at][p][0], i % 2 == 0 ? &maps.k : &maps.v, p * PANEL, blockIdx.y,
                     i / 2 * KEYS, &block->full[at]);
    }
}

/* ---- a warpgroup of queries ---- */

__device__ inline const bf16 *tile_await(struct block *block, int i)
{
    gate_wait(&block->full[i % TILES], i / TILES);
    return block->tiles[i % TILES][0][0];
}

__device__ inline void tile_leave(struct block *block, int i)
{
    if (lane() == 0)
        gate_arrive(&block->empty[i % TILES]);
}

/* Begins s = q·kᵀ. */
__device__ inline void scores_begin(float s[64], const bf16 *q, const bf16 *k)
{
    wgmma_begin();
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        int panel = i / (PANEL / 16), column = i % (PANEL / 16) * 16;

        wgmma_scores(s, q + panel * QUERIES * PANEL + column, k + panel * KEYS * PANEL + column,
                     i > 0);
    }
    wgmma_commit();
}

/* Begins o += p·v. */
__device__ inline void output_begin(float o[64], const uint32_t p[KEYS / 16][4], const bf16 *v)
{
    wgmma_begin();
#pragma unroll
    for (int i = 0; i < KEYS / 16; i++)
        wgmma_values(o, p[i], v + i * 16 * PANEL, KEYS * PANEL * 2);
    wgmma_commit();
}

__device__ inline void queries_do(struct block *block, const struct attention &args, int size)
{
    typedef group_layout L;
    int group = (int)(threadIdx.x / WARPGROUP) - 1, warp = (int)(threadIdx.x / 32) % 4;
    int row = blockIdx.x * QUERIES + group * GROUP_QUERIES + warp * 16 + lane() / 4;
    int count = ((int)args.k.rows + KEYS - 1) / KEYS;
    const bf16 *q = block->q[0][group * GROUP_QUERIES];
    float s[1][KEYS / 8][4], rescale[1][2], scale = args.scale * LOG2_E;
    uint32_t p[KEYS / 16][4];
    struct progress<L> now;
    auto finish = [&](int i) { /* of tile i; true: the output is to be rescaled */
                               bool risen;

                               if ((i + 1) * KEYS > args.k.rows)
                                   scores_finish<L, true>(s, args, 1, row, i * KEYS);
                               risen = shifts_renew<L>(now, rescale, s, scale);
#pragma unroll
                               for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                                   for (int half = 0; half < 2; half++)
                                       weigh(&s[0][n][2 * half], scale, now.shift[0][half],
                                             now.sum[0][half]);
                               return risen;
    };
    auto take = [&] { /* weights, as operands */
#pragma unroll
                      for (int i = 0; i < KEYS / 4; i++)
                          p[i / 4][i % 4] =
                              pair(s[0][i / 2][i % 2 * 2], s[0][i / 2][i % 2 * 2 + 1]);
    };

    now.shift[0][0] = now.shift[0][1] = SHIFT_NONE;
    gate_wait(&block->queries, 0);
    scores_begin(s[0][0], q, tile_await(block, 0));
    wgmma_wait<0>(s[0][0]);
    tile_leave(block, 0);
    finish(0);
    take();
    for (int i = 1; i < count; i++) {
        bool risen;

        scores_begin(s[0][0], q, tile_await(block, 2 * i));
        output_begin(now.o[0][0], p, tile_await(block, 2 * i - 1));
        wgmma_wait<1>(s[0][0]);
        tile_leave(block, 2 * i);
        risen = finish(i);
        wgmma_wait<0>(now.o[0][0]);
        tile_leave(block, 2 * i - 1);
        if (risen)
            output_rescale<L>(now, rescale);
        take();
    }
    output_begin(now.o[0][0], p, tile_await(block, 2 * count - 1));
    wgmma_wait<0>(now.o[0][0]);
    output_store<L, true>(now, args.y, row, size);
}

/* grid (⌈queries/128⌉, heads), block 384. */
__global__ void __launch_bounds__(THREADS, 1)
    attention_hopper_kernel(struct attention args, int size,
                            const __grid_constant__ struct maps maps)
{
    struct block *block = block_memory<struct block>();

    if (threadIdx.x == 0) {
        gate_init(&block->queries, 1);
        for (int i = 0; i < TILES; i++) {
            gate_init(&block->full[i], 1);
            gate_init(&block->empty[i], GROUPS * 4);
        }
        gates_publish();
    }
    __syncthreads();
    if (threadIdx.x < WARPGROUP) {
        registers_drop<24>();
        if (threadIdx.x == 0)
            tiles_fetch(block, maps, ((int)args.k.rows + KEYS - 1) / KEYS * 2);
    } else {
        registers_raise<240>();
        queries_do(block, args, size);
    }
}

/* ---- on the host ---- */

static bool map_make(struct cuda_backend *cuda, CUtensorMap *map, struct tensor t, int heads,
                     int rows)
{
    cuuint64_t size = (cuuint64_t)(t.cols / heads);
    cuuint64_t counts[3] = {size, (cuuint64_t)heads, (cuuint64_t)t.rows};
    cuuint64_t strides[2] = {size * sizeof(bf16), (cuuint64_t)t.stride * sizeof(bf16)};
    cuuint32_t box[3] = {PANEL, 1, (cuuint32_t)rows}, steps[3] = {1, 1, 1};

    return cuda->driver.tensor_map(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, t.data, counts,
                                   strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                   CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                   CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

extern "C" bool attention_hopper(struct cuda_backend *cuda, const struct attention *args)
{
    struct maps maps;
    int heads = args->heads;
    dim3 grid(blocks_for(args->q.rows, QUERIES), (unsigned)heads);

    if (!map_make(cuda, &maps.q, args->q, heads, QUERIES) ||
        !map_make(cuda, &maps.k, args->k, heads, KEYS) ||
        !map_make(cuda, &maps.v, args->v, heads, KEYS))
        return false;
    launch_with_memory(cuda, "attention", grid, THREADS, sizeof(struct block),
                       attention_hopper_kernel, *args, (int)(args->q.cols / heads), maps);
    return true;
}
