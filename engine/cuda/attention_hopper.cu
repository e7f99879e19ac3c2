/* SPDX-License-Identifier: MIT */
/*
 * Attention for Hopper, by products and copies that go on behind the threads' backs, in the
 * arrangement of FlashAttention 3 (arXiv 2407.08608): one thread fetches tiles, two warpgroups do
 * 64 queries each. While the matrix units are busy with the values of one tile, a warpgroup turns
 * the scores of the next into weights; and while it does, the other has its products done.
 *
 * Blocks work in pairs, on queries of the same head: each fetches one half of every tile, for both.
 * The card is held to its power, and what passes the L2 cache is a part of that.
 */
#include "engine/cuda/attention_fused.cuh"
#include "engine/cuda/hopper.cuh"

enum { D = 128, KEYS = 128, TILES = 4, GROUPS = 2, THREADS = (1 + GROUPS) * WARPGROUP, PAIR = 2 };
enum { GROUP_QUERIES = 64, QUERIES = GROUPS * GROUP_QUERIES, PANELS = D / PANEL };
enum { TILE = KEYS * D, TILE_BYTES = TILE * 2, QUERY_BYTES = QUERIES * D * 2 };

struct block {
    bf16 q[PANELS][QUERIES][PANEL], tiles[TILES][PANELS][KEYS][PANEL];
    struct gate asked, answered; /* queries are there, are done with */
    struct gate full[TILES], empty[TILES], turn[GROUPS];
};

/* What the kernel reads, as [rows, heads, size]. */
struct maps {
    CUtensorMap q, k, v;
};

/* What is to be done: items, each 256 queries of a head, of which a block of a pair does one half.
 * A pair does every so many'th. */
struct items {
    int count, of_head, tiles; /* of keys and of values, in an item */
};

__device__ inline int pair_rank()
{
    return (int)blockIdx.x % PAIR;
}

__device__ inline int first_item()
{
    return (int)blockIdx.x / PAIR;
}

__device__ inline int pairs()
{
    return (int)gridDim.x / PAIR;
}

__device__ inline int item_head(const struct items &items, int item)
{
    return item / items.of_head;
}

__device__ inline int item_row(const struct items &items, int item)
{
    return (item % items.of_head * PAIR + pair_rank()) * QUERIES;
}

/* One thread's work. Of an item's tiles number 2i holds keys, 2i + 1 their values; tile j of all
 * that the block sees lies at j % TILES. */
__device__ inline void tiles_fetch(struct block *block, const struct maps &maps,
                                   const struct items &items)
{
    int done = 0, tile = 0, half = pair_rank() * KEYS / PAIR;

    for (int item = first_item(); item < items.count; item += pairs(), done++) {
        int head = item_head(items, item);

        if (done > 0)
            gate_wait(&block->answered, done - 1);
        gate_expect(&block->asked, QUERY_BYTES);
        for (int p = 0; p < PANELS; p++)
            copy_box(block->q[p][0], &maps.q, p * PANEL, head, item_row(items, item),
                     &block->asked);
        for (int i = 0; i < items.tiles; i++, tile++) {
            int at = tile % TILES;

            if (tile >= TILES)
                gate_wait(&block->empty[at], tile / TILES - 1);
            gate_expect(&block->full[at], TILE_BYTES);
            for (int p = 0; p < PANELS; p++)
                copy_box_to_pair(block->tiles[at][p][half], i % 2 == 0 ? &maps.k : &maps.v,
                                 p * PANEL, head, i / 2 * KEYS + half, &block->full[at]);
        }
    }
}

/* ---- a warpgroup, with 64 queries of each item ---- */

typedef layout<D, 1, KEYS, 4, TILES, 1> group_layout; /* as if by mma.sync */

struct group {
    struct block *block;
    int number, turns;
    float s[1][KEYS / 8][4];
    uint32_t p[KEYS / 16][4];
    struct progress<group_layout> now;
};

__device__ inline void warp_arrive(struct gate *gate)
{
    if (lane() == 0)
        gate_arrive(gate);
}

__device__ inline void tile_release(struct gate *gate)
{
    if (lane() < PAIR)
        gate_arrive_at(gate, lane());
}

__device__ inline const bf16 *tile_await(struct block *block, int tile)
{
    gate_wait(&block->full[tile % TILES], tile / TILES);
    return block->tiles[tile % TILES][0][0];
}

/* Begins s = q·kᵀ. */
__device__ inline void scores_begin(struct group &group, int tile)
{
    const bf16 *q = group.block->q[0][group.number * GROUP_QUERIES];
    const bf16 *k = tile_await(group.block, tile);

    wgmma_begin();
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        int panel = i / (PANEL / 16), column = i % (PANEL / 16) * 16;

        wgmma_scores(group.s[0][0], q + panel * QUERIES * PANEL + column,
                     k + panel * KEYS * PANEL + column, i > 0);
    }
    wgmma_commit();
}

/* Begins o += p·v. */
__device__ inline void output_begin(struct group &group, int tile)
{
    const bf16 *v = tile_await(group.block, tile);

    wgmma_begin();
#pragma unroll
    for (int i = 0; i < KEYS / 16; i++)
        wgmma_values(group.now.o[0][0], group.p[i], v + i * 16 * PANEL, KEYS * PANEL * 2);
    wgmma_commit();
}

/* Scores of the keys from `first` on become weights; true: the output is to be rescaled. */
__device__ inline bool scores_weigh(struct group &group, float rescale[1][2],
                                    const struct attention &args, int first)
{
    float scale = args.scale * LOG2_E;
    bool risen;

    if (first + KEYS > args.k.rows)
        scores_finish<group_layout, true>(group.s, args, 1, 0, first);
    risen = shifts_renew<group_layout>(group.now, rescale, group.s, scale);
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            weigh(&group.s[0][n][2 * half], scale, group.now.shift[0][half],
                  group.now.sum[0][half]);
    return risen;
}

/* Weights, as operands. */
__device__ inline void weights_take(struct group &group)
{
#pragma unroll
    for (int i = 0; i < KEYS / 4; i++) {
        const float *two = &group.s[0][i / 2][i % 2 * 2];

        group.p[i / 4][i % 4] = pair(two[0], two[1]);
    }
}

/* Item number `done` of the block. The groups begin products in turns, so that one computes weights
 * while the other's are under way. */
__device__ inline void item_do(struct group &group, const struct attention &args, int done,
                               int tiles)
{
    struct block *block = group.block;
    int tile = done * tiles, last = tile + tiles - 1;
    float rescale[1][2];

    gate_wait(&block->asked, done);
    scores_begin(group, tile);
    wgmma_wait<0>(group.s[0][0]);
    tile_release(&block->empty[tile % TILES]);
    scores_weigh(group, rescale, args, 0);
    weights_take(group);
    for (int first = KEYS; first < args.k.rows; first += KEYS) {
        bool risen;

        tile += 2;
        gate_wait(&block->turn[group.number], group.turns++);
        scores_begin(group, tile);
        output_begin(group, tile - 1);
        warp_arrive(&block->turn[1 - group.number]);
        wgmma_wait<1>(group.s[0][0]);
        tile_release(&block->empty[tile % TILES]);
        risen = scores_weigh(group, rescale, args, first);
        wgmma_wait<0>(group.now.o[0][0]);
        tile_release(&block->empty[(tile - 1) % TILES]);
        if (risen)
            output_rescale<group_layout>(group.now, rescale);
        weights_take(group);
    }
    warp_arrive(&block->answered);
    output_begin(group, last);
    wgmma_wait<0>(group.now.o[0][0]);
    tile_release(&block->empty[last % TILES]);
}

__device__ inline void queries_do(struct block *block, const struct attention &args, int size,
                                  const struct items &items)
{
    int number = (int)(threadIdx.x / WARPGROUP) - 1, warp = (int)(threadIdx.x / 32) % 4, done = 0;
    int row = number * GROUP_QUERIES + warp * 16 + lane() / 4;
    struct group group;

    group.block = block;
    group.number = number;
    group.turns = 0;
    if (number == 1)
        warp_arrive(&block->turn[0]);
    for (int item = first_item(); item < items.count; item += pairs()) {
        group.now = progress<group_layout>();
        group.now.shift[0][0] = group.now.shift[0][1] = SHIFT_NONE;
        item_do(group, args, done++, items.tiles);
        output_store<group_layout, true>(group.now, args.y, item_head(items, item),
                                         item_row(items, item) + row, size);
    }
}

/* grid: pairs of blocks, as many as there is room for, or items; block 384 */
__global__ void __launch_bounds__(THREADS, 1)
    attention_hopper_kernel(struct attention args, int size, struct items items,
                            const __grid_constant__ struct maps maps)
{
    struct block *block = block_memory<struct block>();

    if (threadIdx.x == 0) {
        gate_init(&block->asked, 1);
        gate_init(&block->answered, GROUPS * 4);
        for (int i = 0; i < TILES; i++) {
            gate_init(&block->full[i], 1);
            gate_init(&block->empty[i], PAIR * GROUPS * 4);
        }
        for (int i = 0; i < GROUPS; i++)
            gate_init(&block->turn[i], 4);
        gates_publish();
    }
    __syncwarp(); /* of some warps, lanes come at different times, here and below */
    pair_sync();
    if (threadIdx.x < WARPGROUP) {
        registers_drop<24>();
        if (threadIdx.x == 0)
            tiles_fetch(block, maps, items);
    } else {
        registers_raise<240>();
        queries_do(block, args, size, items);
    }
    __syncwarp();
    pair_sync(); /* nobody ends while the other may still arrive at its gates */
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
    int heads = args->heads, of_head = (int)blocks_for(args->q.rows, PAIR * QUERIES);
    struct items items = {of_head * heads, of_head, 2 * (int)blocks_for(args->k.rows, KEYS)};
    struct maps maps;

    if (!map_make(cuda, &maps.q, args->q, heads, QUERIES) ||
        !map_make(cuda, &maps.k, args->k, heads, KEYS / PAIR) ||
        !map_make(cuda, &maps.v, args->v, heads, KEYS / PAIR))
        return false;
    launch_pairs(cuda, "attention", PAIR * min(items.count, cuda->multiprocessors / PAIR), THREADS,
                 sizeof(struct block), attention_hopper_kernel, *args, (int)(args->q.cols / heads),
                 items, maps);
    return true;
}
