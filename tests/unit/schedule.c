/* SPDX-License-Identifier: MIT */
/*
 * The ring and the schedule on a made-up device with a clock: it copies and computes at whatever
 * speed, at the same time, and its clock runs as fast as we like. For a thousand random plans the
 * offload engine takes as long on it as the schedule says, overlaps what can be overlapped, and
 * never stands still.
 */
#include "engine/schedule.h"

#include <math.h>
#include <string.h>

#include "alloc/host_pages.h"
#include "engine/offload.h"
#include "tests/test.h"

enum { PAGE = 4096, BLOCKS_MAX = 24, TICKETS = 1 << 14, PLANS = 1000 };

static uint64_t state = 1;

static uint64_t below(uint64_t limit)
{
    state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (state >> 33) % limit;
}

/* ---- the device ---- */

struct device {
    struct backend base;
    double copy_byte_s;
    double copy_end, compute_end; /* when what is queued on each stream ends */
    double reuse;                 /* before this no copy queued from now on begins */
    double ticket_s[TICKETS];
    uint64_t tickets, copied_bytes;
};

static struct device *device_of(struct backend *backend)
{
    return (struct device *)backend;
}

static void clock_copy_weights(struct backend *backend, const struct weight_copy *copies,
                               size_t count)
{
    struct device *d = device_of(backend);

    for (size_t i = 0; i < count; i++) {
        uint64_t bytes = (uint64_t)(copies[i].rows * copies[i].cols) * sizeof(float);

        memcpy(copies[i].target, copies[i].source, bytes);
        d->copy_end = d->copy_end > d->reuse ? d->copy_end : d->reuse;
        d->copy_end += (double)bytes * d->copy_byte_s;
        d->copied_bytes += bytes;
    }
}

static uint64_t clock_copy_ticket(struct backend *backend)
{
    struct device *d = device_of(backend);

    d->ticket_s[++d->tickets % TICKETS] = d->copy_end;
    return d->tickets;
}

static void clock_copy_wait(struct backend *backend, uint64_t ticket)
{
    struct device *d = device_of(backend);
    double arrived = d->ticket_s[ticket % TICKETS];

    d->compute_end = d->compute_end > arrived ? d->compute_end : arrived;
}

static void clock_copy_reuse(struct backend *backend)
{
    device_of(backend)->reuse = device_of(backend)->compute_end;
}

static const struct backend_ops clock_ops = {
    .copy_weights = clock_copy_weights,
    .copy_ticket = clock_copy_ticket,
    .copy_wait = clock_copy_wait,
    .copy_reuse = clock_copy_reuse,
};

/* ---- a pass over random blocks ---- */

struct pass {
    struct device device;
    struct arena *arena;
    struct offload offload;
    struct block_list list;
    struct block *pointers[BLOCKS_MAX], blocks[BLOCKS_MAX];
    struct weight weights[BLOCKS_MAX];
    struct tensor tensors[BLOCKS_MAX];
    struct stored_tensor stored[BLOCKS_MAX];
    uint64_t bytes[BLOCKS_MAX];
    double compute_s[BLOCKS_MAX];
    double copy_s, all_compute_s; /* of all blocks that pass through the ring; of all */
    struct error err;
};

static void block_create(struct pass *p, size_t i, int64_t floats)
{
    float *data = malloc((size_t)floats * sizeof *data);

    for (int64_t j = 0; j < floats; j++)
        data[j] = (float)(1000 * i) + (float)j;
    p->stored[i] = (struct stored_tensor){.name = "fake", .path = "fake", .data = data};
    p->tensors[i] = tensor_of(NULL, DTYPE_F32, 1, floats);
    p->weights[i] = (struct weight){
        .target = &p->tensors[i], .layout = WEIGHT_VECTOR, .parts = 1, .part = {&p->stored[i]}};
    p->bytes[i] = (uint64_t)floats * sizeof(float);
    p->blocks[i] =
        (struct block){.kind = "fake", .weights = &p->weights[i], .count = 1, .bytes = p->bytes[i]};
    p->pointers[i] = &p->blocks[i];
}

/* Blocks of a few sizes, as models have them, or of any; links from far faster than computing to
 * far slower. */
static void pass_create(struct pass *p)
{
    struct host_pages_options host = {.granule_bytes = PAGE};
    struct arena_options options = {.evict = offload_evict, .owner = &p->offload};
    size_t count = 1 + below(BLOCKS_MAX);
    uint64_t total = 0, room;
    bool any = below(2) == 0;

    *p = (struct pass){.device.base.ops = &clock_ops};
    p->device.copy_byte_s = pow(10, (double)below(200) / 50 - 2) * 1e-6;
    for (size_t i = 0; i < count; i++) {
        block_create(p, i, any ? 64 * (1 + (int64_t)below(200)) : 1024 * (1 + (int64_t)below(3)));
        p->compute_s[i] = (double)p->bytes[i] * (0.5 + (double)below(100) / 100) * 1e-6;
        p->all_compute_s += p->compute_s[i];
        total += (p->bytes[i] + PAGE - 1) / PAGE * PAGE;
    }
    p->list = (struct block_list){p->pointers, count, BLOCKS_MAX, 0};
    EXPECT(offload_measure(&p->list, PAGE) == 0);
    room = p->list.least_bytes + below(total + PAGE - p->list.least_bytes);
    room = room / PAGE * PAGE > p->list.least_bytes ? room / PAGE * PAGE : p->list.least_bytes;
    options.budget_bytes = room;
    EXPECT(host_pages_create(&p->device.base.pages, &host) == 0);
    EXPECT(arena_create(&p->arena, p->device.base.pages, &options) == 0);
    offload_init(&p->offload, &p->device.base, p->arena, NULL);
    offload_add(&p->offload, &p->list, 0);
    EXPECT(offload_begin(&p->offload, &p->list, room, 1, &p->err) == 0, "%s", p->err.text);
}

static void pass_destroy(struct pass *p)
{
    offload_finish(&p->offload);
    arena_destroy(p->arena);
    p->device.base.pages->ops->destroy(p->device.base.pages);
    for (size_t i = 0; i < p->list.count; i++)
        free((void *)p->stored[i].data);
}

static bool pass_run(struct pass *p, int times)
{
    for (int run = 0; run < times; run++)
        for (size_t i = 0; i < p->list.count; i++) {
            if (!EXPECT(offload_acquire(&p->offload, i, true, &p->err) == 0, "%s", p->err.text))
                return false;
            if (!EXPECT(memcmp(p->tensors[i].data, p->stored[i].data, p->bytes[i]) == 0))
                return false;
            p->device.compute_end += p->compute_s[i];
        }
    return true;
}

static bool close_to(double a, double b)
{
    return fabs(a - b) <= 1e-9 * (fabs(a) + fabs(b));
}

/* Returns how much of what could be hidden was: of copying behind computing, or the other way. */
static double try_plan(struct pass *p)
{
    struct schedule_case c = {.count = p->list.count,
                              .stays = p->offload.stays,
                              .bytes = p->bytes,
                              .ring_bytes = p->offload.ring_bytes,
                              .copy_byte_s = p->device.copy_byte_s,
                              .compute_s = p->compute_s};
    double start, takes, copy_s, longer, shorter, ahead;
    uint64_t before;

    if (!pass_run(p, 4))
        return 1;
    start = p->device.compute_end;
    before = p->device.copied_bytes;
    if (!pass_run(p, 4))
        return 1;
    takes = (p->device.compute_end - start) / 4;
    copy_s = (double)(p->device.copied_bytes - before) / 4 * p->device.copy_byte_s;
    EXPECT(close_to(takes, schedule_period(&c)), "%g s, the schedule says %g", takes,
           schedule_period(&c));
    longer = copy_s > p->all_compute_s ? copy_s : p->all_compute_s;
    shorter = copy_s > p->all_compute_s ? p->all_compute_s : copy_s;
    /* More may have been copied ahead at the end than at the start. */
    ahead = (double)p->offload.ring_bytes * p->device.copy_byte_s / 4;
    EXPECT(takes >= longer * (1 - 1e-9) - ahead &&
           takes <= (copy_s + p->all_compute_s) * (1 + 1e-9) + ahead);
    if (p->offload.stats.streamed_bytes == 0)
        EXPECT(copy_s == 0, "what the ring holds is copied once");
    return shorter > 0.1 * longer ? (longer + shorter - takes) / shorter : 1;
}

static void test_plans(void)
{
    double hidden = 0;
    int streaming = 0;

    for (int plan = 0; plan < PLANS && test_failures < 10; plan++) {
        static struct pass p;

        pass_create(&p);
        if (p.offload.stats.streamed_bytes > 0) {
            hidden += try_plan(&p);
            streaming++;
        } else {
            EXPECT(try_plan(&p) == 1);
        }
        pass_destroy(&p);
    }
    printf("%d plans, %d of which stream: %.0f %% of what could overlap did\n", PLANS, streaming,
           100 * hidden / streaming);
    EXPECT(streaming > PLANS / 3 && hidden > 0.6 * streaming);
}

/* A list of equal blocks whose copies take as long as computing with one: every second block stays,
 * and the link is busy throughout, not only while the block before a streamed one computes. */
static void test_link_is_busy(void)
{
    enum { COUNT = 20 };
    bool stays[COUNT];
    uint64_t bytes[COUNT];
    struct schedule_case c = {.count = COUNT,
                              .stays = stays,
                              .bytes = bytes,
                              .ring_bytes = 20,
                              .copy_byte_s = 2,
                              .compute_byte_s = 1};

    for (size_t i = 0; i < COUNT; i++) {
        stays[i] = i % 2 == 1;
        bytes[i] = 10;
    }
    EXPECT(schedule_period(&c) <= 10 * COUNT * 1.01, "%g for %d of computing and of copying",
           schedule_period(&c), 10 * COUNT);
    for (size_t i = 0; i < COUNT; i++)
        stays[i] = false;
    EXPECT(close_to(schedule_period(&c), 2 * 10 * COUNT), "bound by the link");
    c.copy_byte_s = 0.5;
    EXPECT(close_to(schedule_period(&c), 10 * COUNT), "bound by computing");
    c.ring_bytes = 19;
    EXPECT(close_to(schedule_period(&c), 15 * COUNT), "one at a time");
    c.ring_bytes = 20;
    c.in_turn = true;
    EXPECT(close_to(schedule_period(&c), 15 * COUNT), "each waits for the other");
}

/* What is in the ring lies within it and does not overlap. */
static bool lies_apart(const struct ring *ring)
{
    bool apart = true;

    for (const struct ring_slot *a = ring->slots; a < ring->slots + RING_SLOTS; a++) {
        if (a->block == RING_EMPTY)
            continue;
        apart &= a->offset + ring->bytes[a->block] <= ring->size_bytes;
        for (const struct ring_slot *b = ring->slots; b < a; b++)
            apart &= b->block == RING_EMPTY || a->offset + ring->bytes[a->block] <= b->offset ||
                     b->offset + ring->bytes[b->block] <= a->offset;
    }
    return apart;
}

/* While block i is in use the ring is filled with what comes next, in order, and what is needed
 * sooner is never given up for what is needed later. */
static void test_ring(void)
{
    for (int round = 0; round < 2000; round++) {
        bool stays[BLOCKS_MAX];
        uint64_t bytes[BLOCKS_MAX], size = 20 + below(60);
        size_t count = 1 + below(BLOCKS_MAX), i = 0;
        struct ring ring = ring_empty(count, stays, bytes, size);

        for (size_t b = 0; b < count; b++) {
            stays[b] = below(3) == 0;
            bytes[b] = 1 + below(20);
        }
        ring.wrap = below(2) == 0;
        for (int turn = 0; turn < 60; turn++, i = (i + 1) % count) {
            uint64_t offset;
            size_t next;

            if (!ring.wrap && i == 0)
                ring = ring_empty(count, stays, bytes, size);
            if (!stays[i] && ring_slot(&ring, i) < 0)
                EXPECT(ring_find(&ring, i, i, 0, &offset)), ring_put(&ring, offset, i);
            while (ring_next(&ring, i, &next, &offset)) {
                struct ring before = ring;
                size_t away = (next + count - i) % count;

                EXPECT(!stays[next] && ring_slot(&ring, next) < 0);
                ring_put(&ring, offset, next);
                for (int s = 0; s < RING_SLOTS; s++) {
                    size_t given_up = before.slots[s].block;

                    if (given_up == RING_EMPTY || ring_slot(&ring, given_up) >= 0)
                        continue;
                    EXPECT(given_up != i &&
                           ((given_up + count - i) % count > away || (!ring.wrap && given_up < i)));
                }
                for (size_t n = 1; n < away; n++)
                    EXPECT(stays[(i + n) % count] || ring_slot(&ring, (i + n) % count) >= 0,
                           "nearer blocks come first");
                EXPECT(lies_apart(&ring));
            }
            EXPECT(stays[i] || ring_slot(&ring, i) >= 0, "the block in use stays");
        }
    }
}

int main(void)
{
    test_ring();
    test_link_is_busy();
    test_plans();
    return test_finish();
}
