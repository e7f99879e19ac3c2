/* SPDX-License-Identifier: MIT */
/*
 * engine/cuda/hopper.cuh for kernels that run on the CPU: the same functions, as the PTX ISA
 * describes their instructions ("mbarrier", "cp.async.bulk.tensor", "wgmma.mma_async", "Shared
 * memory matrix layout").
 */
#ifndef FLUXFS_TESTS_KERNELS_EMULATE_HOPPER_CUH
#define FLUXFS_TESTS_KERNELS_EMULATE_HOPPER_CUH

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "engine/cuda/mma.cuh"

enum { WARPGROUP = 128, PANEL = 64 };

/* Where the swizzle of 128 bytes has what the plain layout would have at an address. */
static inline char *swizzled(const char *address)
{
    uintptr_t bits = (uintptr_t)address;

    return (char *)(bits ^ (bits >> 7 & 7) << 4);
}

static inline void hopper_forbidden(const char *what)
{
    fprintf(stderr, "emulated kernel: %s\n", what);
    abort();
}

/* ---- gates ---- */

struct gate {
    uint8_t arrivals, left; /* memory is 0xff where no gate was made */
    uint16_t phase;
    int32_t bytes; /* that are to come */
};

static inline void gate_advance(struct gate *gate)
{
    if (gate->left != 0 || gate->bytes != 0)
        return;
    gate->phase++;
    gate->left = gate->arrivals;
}

static inline void gate_init(struct gate *gate, int arrivals)
{
    *gate = {(uint8_t)arrivals, (uint8_t)arrivals, 0, 0};
}

static inline void gates_publish()
{
}

static inline void gate_expect(struct gate *gate, int bytes)
{
    if (gate->arrivals == 0xff)
        hopper_forbidden("a thread arrives at a gate that was not made");
    if (gate->left == 0)
        hopper_forbidden("a thread too many arrives at a gate");
    gate->bytes += bytes;
    gate->left--;
    gate_advance(gate);
}

static inline void gate_arrive(struct gate *gate)
{
    gate_expect(gate, 0);
}

/* ---- products that were begun ---- */

enum { COLS_OF_B = 128, WARPGROUPS = 8 };

struct wgmma_lane {
    float *c;
    const uint32_t *in_registers; /* a, or NULL: */
    const bf16 *a, *b;
    int panel_bytes; /* of b, whose rows are k then */
    bool add;
};

struct wgmma_pending {
    struct wgmma_lane lanes[WARPGROUP];
    int later; /* groups that were ended since */
};

static std::vector<struct wgmma_pending> products_pending[MULTIPROCESSORS][WARPGROUPS];

static inline bool is_within(const void *place, const char *from, size_t bytes)
{
    return place != NULL && (const char *)place >= from && (const char *)place < from + bytes;
}

/* Whether a product that may not be done yet reads from there. */
static inline bool product_reads(const void *from, size_t bytes)
{
    for (const auto &of_block : products_pending)
        for (const std::vector<struct wgmma_pending> &of_group : of_block)
            for (const struct wgmma_pending &product : of_group)
                if (is_within(product.lanes[0].a, (const char *)from, bytes) ||
                    is_within(product.lanes[0].b, (const char *)from, bytes))
                    return true;
    return false;
}

/* ---- copies: one happens at once or when its gate is waited for ---- */

struct box_pending {
    bf16 *to;
    struct device_map map;
    int64_t at[3];
    struct gate *gate;
};

static std::vector<struct box_pending> boxes_pending;

static inline void box_carry_out(const struct box_pending &box)
{
    const struct device_map &map = box.map;
    int32_t bytes = (int32_t)(map.box[0] * map.box[1] * map.box[2] * 2);

    if (product_reads(box.to, (size_t)bytes))
        hopper_forbidden("a box is copied over what a product reads");
    for (int64_t z = 0; z < map.box[2]; z++)
        for (int64_t y = 0; y < map.box[1]; y++)
            for (int64_t x = 0; x < map.box[0]; x++) {
                int64_t from[3] = {box.at[0] + x, box.at[1] + y, box.at[2] + z};
                char *to = (char *)box.to + ((z * map.box[1] + y) * map.box[0] + x) * 2;
                uint16_t value = 0;

                if (from[0] < map.counts[0] && from[1] < map.counts[1] && from[2] < map.counts[2])
                    memcpy(&value,
                           map.data + from[0] * 2 + from[1] * map.strides[0] +
                               from[2] * map.strides[1],
                           sizeof value);
                memcpy(swizzled(to), &value, sizeof value);
            }
    if (box.gate->arrivals == 0xff)
        hopper_forbidden("bytes come to a gate that was not made");
    box.gate->bytes -= bytes;
    gate_advance(box.gate);
}

static inline void copy_box(bf16 *to, const CUtensorMap *map, int x, int y, int z,
                            struct gate *gate)
{
    struct box_pending box = {to, {}, {x, y, z}, gate};

    if ((uintptr_t)to % 1024 != 0)
        hopper_forbidden("a box is copied to where no panel can begin");
    memcpy(&box.map, map, sizeof box.map);
    if (block_coin())
        box_carry_out(box);
    else
        boxes_pending.push_back(box);
}

static inline void copy_box_to_pair(bf16 *to, const CUtensorMap *map, int x, int y, int z,
                                    struct gate *gate)
{
    for (unsigned rank = 0; rank < 2; rank++)
        copy_box((bf16 *)block_of_pair(to, rank), map, x, y, z,
                 (struct gate *)block_of_pair(gate, rank));
}

struct gate_awaited {
    struct gate *gate;
    int phase;
};

static inline bool gate_has_passed(void *of)
{
    const struct gate_awaited *awaited = (const struct gate_awaited *)of;
    size_t i = 0;

    if (awaited->gate->phase % 2 != awaited->phase % 2)
        return true;
    while (i < boxes_pending.size()) {
        if (boxes_pending[i].gate == awaited->gate) {
            box_carry_out(boxes_pending[i]);
            boxes_pending.erase(boxes_pending.begin() + (long)i);
        } else {
            i++;
        }
    }
    return awaited->gate->phase % 2 != awaited->phase % 2;
}

static inline void gate_wait(struct gate *gate, int phase)
{
    struct gate_awaited awaited = {gate, phase};

    block_wait(gate_has_passed, &awaited);
}

/* ---- registers ---- */

template <int COUNT> static inline void registers_drop()
{
}

template <int COUNT> static inline void registers_raise()
{
}

/* ---- products, carried out one after the other; all that are waited for ---- */

static inline float shared_element(const bf16 *start, int64_t bytes)
{
    const char *address = swizzled((const char *)start + bytes);

    return __bfloat162float(*(const bf16 *)address);
}

static inline void wgmma_load_a(float a[64][16], const struct wgmma_lane lanes[WARPGROUP])
{
    const struct wgmma_lane *first = &lanes[0];

    for (int i = 0; i < 64 * 16; i++) {
        int row = i / 16, k = i % 16;
        const struct wgmma_lane *owner = &lanes[row / 16 * 32 + row % 8 * 4 + k % 8 / 2];

        if (first->in_registers != NULL) {
            uint32_t both = owner->in_registers[k / 8 * 2 + row % 16 / 8];

            a[row][k] = k % 2 == 0 ? low_half(both) : high_half(both);
        } else {
            a[row][k] = shared_element(first->a, row * 128 + k * 2);
        }
    }
}

static inline void wgmma_load_b(float b[16][COLS_OF_B], const struct wgmma_lane *first)
{
    for (int n = 0; n < COLS_OF_B; n++)
        for (int k = 0; k < 16; k++)
            b[k][n] =
                first->in_registers != NULL
                    ? shared_element(first->b, n / 64 * first->panel_bytes + k * 128 + n % 64 * 2)
                    : shared_element(first->b, n * 128 + k * 2);
}

/* Where the j-th element lies that a thread has of c. */
struct wgmma_place {
    int row, col;
};

static inline struct wgmma_place wgmma_place_of(int thread, int j)
{
    return {thread / 32 * 16 + thread % 32 / 4 + j / 2 % 2 * 8, j / 4 * 8 + thread % 4 * 2 + j % 2};
}

static inline void wgmma_carry_out(const struct wgmma_lane lanes[WARPGROUP])
{
    static float a[64][16], b[16][COLS_OF_B], c[64][COLS_OF_B];
    enum { EACH = COLS_OF_B / 2 };

    wgmma_load_a(a, lanes);
    wgmma_load_b(b, &lanes[0]);
    for (int l = 0; l < WARPGROUP; l++)
        for (int j = 0; j < EACH; j++) {
            struct wgmma_place at = wgmma_place_of(l, j);

            c[at.row][at.col] = lanes[l].add ? lanes[l].c[j] : 0.0f;
        }
    for (int row = 0; row < 64; row++)
        for (int k = 0; k < 16; k++)
            for (int col = 0; col < COLS_OF_B; col++)
                c[row][col] += a[row][k] * b[k][col];
    for (int l = 0; l < WARPGROUP; l++)
        for (int j = 0; j < EACH; j++) {
            struct wgmma_place at = wgmma_place_of(l, j);

            lanes[l].c[j] = c[at.row][at.col];
        }
}

/* The oldest, of those that `latest` groups or more have followed. */
static inline void wgmma_finish(std::vector<struct wgmma_pending> &pending, int latest, size_t most)
{
    size_t done = 0;

    while (done < pending.size() && done < most && pending[done].later >= latest)
        wgmma_carry_out(pending[done++].lanes);
    pending.erase(pending.begin(), pending.begin() + (long)done);
}

static inline std::vector<struct wgmma_pending> &products_own()
{
    return products_pending[block_place->number][threadIdx.x / WARPGROUP];
}

struct wgmma_call {
    std::vector<struct wgmma_pending> *pending;
    struct wgmma_lane lane;
    int latest;
};

static inline void wgmma_queue(void *const calls[])
{
    std::vector<struct wgmma_pending> &pending = *((struct wgmma_call *)calls[0])->pending;

    pending.push_back({});
    pending.back().later = -1;
    for (int i = 0; i < WARPGROUP; i++)
        pending.back().lanes[i] = ((const struct wgmma_call *)calls[i])->lane;
    if (block_coin())
        wgmma_finish(pending, -1, 1);
}

static inline void wgmma_end_group(void *const calls[])
{
    for (struct wgmma_pending &product : *((struct wgmma_call *)calls[0])->pending)
        product.later++;
}

static inline void wgmma_finish_groups(void *const calls[])
{
    const struct wgmma_call *call = (const struct wgmma_call *)calls[0];

    wgmma_finish(*call->pending, call->latest, call->pending->size());
}

static inline void wgmma_begin()
{
}

static inline void wgmma_commit()
{
    struct wgmma_call call = {&products_own(), {}, 0};

    block_together(WARPGROUP, wgmma_end_group, &call);
}

template <int LATEST> static inline void wgmma_wait(float *c)
{
    struct wgmma_call call = {&products_own(), {}, LATEST};

    block_together(WARPGROUP, wgmma_finish_groups, &call);
}

static inline void wgmma_scores(float *c, const bf16 *a, const bf16 *b, bool add)
{
    struct wgmma_call call = {&products_own(), {c, NULL, a, b, 0, add}, 0};

    block_together(WARPGROUP, wgmma_queue, &call);
}

static inline void wgmma_values(float *c, const uint32_t a[4], const bf16 *b, int panel_bytes)
{
    struct wgmma_call call = {&products_own(), {c, a, NULL, b, panel_bytes, true}, 0};

    block_together(WARPGROUP, wgmma_queue, &call);
}

/* ---- pairs of blocks ---- */

static inline void pair_sync()
{
    block_pair_barrier();
}

static inline void gate_arrive_at(struct gate *gate, int rank)
{
    gate_arrive((struct gate *)block_of_pair(gate, (unsigned)rank));
}

#endif
