/* SPDX-License-Identifier: MIT */
#include "engine/described.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/card.h"

/* Addresses that nobody follows begin here. */
#define FIRST_ADDRESS ((uintptr_t)1 << 40)

struct described {
    struct backend base;
    struct page_source pages;
    struct device_rates rates;
    double now[2];         /* by stream: when what is queued on it ends */
    double host;           /* no work queued from now on begins before this … */
    double reuse;          /* … and no copy before that */
    uint64_t copied_bytes; /* of weights that last */
    uintptr_t next_address;
    uint64_t total_bytes;
    _Atomic uint64_t free_bytes; /* less what is granted from now on */
    uint64_t granted_before;     /* in context_bytes from the start */
};

static struct described *described_of(struct backend *backend)
{
    return (struct described *)backend;
}

/* ---- memory ---- */

static struct described *owner_of(struct page_source *source)
{
    return (struct described *)((char *)source - offsetof(struct described, pages));
}

static int reserve(struct page_source *source, uint64_t bytes, uintptr_t *address)
{
    struct described *d = owner_of(source);

    *address = d->next_address;
    d->next_address += bytes;
    return 0;
}

static void unreserve(struct page_source *source, uintptr_t address, uint64_t bytes)
{
}

/* Of which what was granted is taken. */
static uint64_t free_of(const struct described *d)
{
    uint64_t granted = d->base.context_granted - d->granted_before;

    return d->free_bytes > granted ? d->free_bytes - granted : 0;
}

static int create(struct page_source *source, page_handle *page)
{
    struct described *d = owner_of(source);

    if (free_of(d) < source->granule_bytes)
        return -ENOMEM;
    d->free_bytes -= source->granule_bytes;
    *page = 0;
    return 0;
}

static void release(struct page_source *source, page_handle page)
{
    owner_of(source)->free_bytes += source->granule_bytes;
}

static int map(struct page_source *source, uintptr_t address, page_handle page)
{
    return 0;
}

static int set_access(struct page_source *source, uintptr_t address, uint64_t bytes)
{
    return 0;
}

static int unmap(struct page_source *source, uintptr_t address)
{
    return 0;
}

static int fence_record(struct page_source *source, int stream, page_fence *fence)
{
    *fence = 0;
    return 0;
}

static int fence_query(struct page_source *source, page_fence fence)
{
    return 1;
}

static int fence_wait(struct page_source *source, page_fence fence)
{
    return 0;
}

static int memory(struct page_source *source, uint64_t *free_bytes, uint64_t *total_bytes)
{
    *free_bytes = free_of(owner_of(source));
    *total_bytes = owner_of(source)->total_bytes;
    return 0;
}

static void pages_destroy(struct page_source *source)
{
}

static const struct page_source_ops pages_ops = {
    .reserve = reserve,
    .unreserve = unreserve,
    .create = create,
    .release = release,
    .map = map,
    .set_access = set_access,
    .unmap = unmap,
    .fence_record = fence_record,
    .fence_query = fence_query,
    .fence_wait = fence_wait,
    .memory = memory,
    .destroy = pages_destroy,
};

/* ---- time ---- */

static double later(double a, double b)
{
    return a > b ? a : b;
}

static void work(struct described *d, enum backend_stream stream, double seconds)
{
    d->now[stream] = later(d->now[stream], d->host) + seconds;
    if (d->base.host)
        d->host = d->now[stream];
}

/* An operation on the compute stream. */
static void operate(struct backend *backend, double flops, double flops_s, double bytes)
{
    struct described *d = described_of(backend);
    double arithmetic = flops > 0 ? flops / flops_s : 0;

    work(d, STREAM_COMPUTE,
         later(d->rates.call_s, later(arithmetic, bytes / d->rates.memory_bytes)));
}

static double bytes_of(struct tensor t)
{
    return (double)t.rows * (double)t.cols * (double)dtype_bytes(t.dtype);
}

static void destroy(struct backend *backend)
{
    free(backend);
}

/* What passed twice is pinned at once, but for the tables that this takes. */
static void want_tables(struct described *d)
{
    struct backend *base = &d->base;
    uint64_t needed = base->context_share != 0 ? d->copied_bytes / 2 / base->context_share : 0;

    base->context_wanted = needed > base->context_granted ? needed - base->context_granted : 0;
}

static int sync_compute(struct backend *backend, struct error *err)
{
    struct described *d = described_of(backend);

    d->host = later(d->host, d->now[STREAM_COMPUTE]);
    want_tables(d);
    return 0;
}

static void move(struct backend *backend, struct tensor t)
{
    struct described *d = described_of(backend);

    work(d, STREAM_COMPUTE, bytes_of(t) / d->rates.link_bytes);
    d->host = d->now[STREAM_COMPUTE];
}

static void upload(struct backend *backend, struct tensor target, const void *source)
{
    move(backend, target);
}

/* The host's side is fp32 whatever the device's is. */
static void download(struct backend *backend, void *target, struct tensor source)
{
    memset(target, 0,
           (size_t)source.rows * (size_t)source.stride * (source.dtype == DTYPE_U8 ? 1 : 4));
    move(backend, source);
}

static void copy_weights(struct backend *backend, const struct weight_copy *copies, size_t count)
{
    struct described *d = described_of(backend);

    for (size_t i = 0; i < count; i++) {
        uint64_t bytes =
            backend_weight_bytes(backend, copies[i].layout, copies[i].rows, copies[i].cols);

        d->now[STREAM_COPY] = later(d->now[STREAM_COPY], d->reuse);
        work(d, STREAM_COPY, (double)bytes / d->rates.link_bytes);
        d->copied_bytes += copies[i].lasting ? bytes : 0;
    }
}

/* A ticket and a mark are the time itself, in nanoseconds from 1 on, as far as these can be
 * counted.
 */
static uint64_t nanoseconds(double seconds)
{
    return seconds < DESCRIBED_LONGEST_S ? 1 + (uint64_t)(seconds * 1e9 + 0.5) : UINT64_MAX;
}

static uint64_t copy_ticket(struct backend *backend)
{
    return nanoseconds(described_of(backend)->now[STREAM_COPY]);
}

static void copy_wait(struct backend *backend, uint64_t ticket)
{
    double *now = &described_of(backend)->now[STREAM_COMPUTE];

    *now = ticket > 0 ? later(*now, (double)(ticket - 1) * 1e-9) : *now;
}

static void copy_reuse(struct backend *backend)
{
    described_of(backend)->reuse = described_of(backend)->now[STREAM_COMPUTE];
}

static uint64_t pinned_bytes(struct backend *backend)
{
    return 0;
}

static uint64_t mark(struct backend *backend, enum backend_stream stream)
{
    struct described *d = described_of(backend);

    /* Work that will be queued next begins then. */
    return nanoseconds(later(later(d->now[stream], d->host), stream == STREAM_COPY ? d->reuse : 0));
}

static void mark_wait(struct backend *backend, uint64_t number)
{
    struct described *d = described_of(backend);

    d->host = later(d->host, (double)(number - 1) * 1e-9);
}

static double mark_seconds(struct backend *backend, uint64_t from, uint64_t to)
{
    return to > from ? (double)(to - from) * 1e-9 : 0;
}

/* ---- operations ---- */

static void linear(struct backend *backend, const struct linear *args)
{
    double rows = (double)args->x.rows, weights = bytes_of(args->weight);

    operate(backend, 2 * rows * (double)args->weight.rows * (double)args->weight.cols,
            described_of(backend)->rates.linear_flops,
            bytes_of(args->x) + bytes_of(args->y) + weights);
}

static void attention(struct backend *backend, const struct attention *args)
{
    operate(backend, 4 * (double)args->q.rows * (double)args->k.rows * (double)args->q.cols,
            described_of(backend)->rates.attention_flops,
            bytes_of(args->q) + bytes_of(args->k) + bytes_of(args->v) + bytes_of(args->y));
}

static void conv(struct backend *backend, const struct conv *args)
{
    double pixels = (double)args->y.rows;

    operate(backend, 2 * pixels * (double)args->weight.rows * (double)args->weight.cols,
            described_of(backend)->rates.conv_flops,
            bytes_of(args->x) + bytes_of(args->y) + bytes_of(args->weight));
}

static void group_norm(struct backend *backend, const struct group_norm *args)
{
    operate(backend, 0, 0, bytes_of(args->sums));
}

static void channel_sums(struct backend *backend, struct tensor sums, struct tensor x, int part)
{
    operate(backend, 0, 0, bytes_of(x));
}

static void norm_of_four(struct backend *backend, struct tensor y, struct tensor x, struct tensor a,
                         struct tensor b, float eps)
{
    operate(backend, 0, 0, bytes_of(y) + bytes_of(x));
}

static void rms_norm(struct backend *backend, struct tensor y, struct tensor x,
                     struct tensor weight, float eps)
{
    operate(backend, 0, 0, bytes_of(y) + bytes_of(x));
}

static void head_norm(struct backend *backend, const struct head_norm *args)
{
    operate(backend, 0, 0, 2 * (bytes_of(args->q) + bytes_of(args->k) + bytes_of(args->rope)));
}

static void gated_norm(struct backend *backend, const struct gated_norm *args)
{
    operate(backend, 0, 0, 2 * (bytes_of(args->x) + bytes_of(args->y)));
}

static void affine(struct backend *backend, struct tensor y, struct tensor x, struct tensor a)
{
    operate(backend, 0, 0, bytes_of(y) + bytes_of(x));
}

static void position_bias(struct backend *backend, struct tensor y, struct tensor table,
                          struct tensor buckets)
{
    operate(backend, 0, 0, bytes_of(y) + bytes_of(buckets));
}

/* What adds to y or changes it. */
static void update(struct backend *backend, struct tensor y, struct tensor x)
{
    operate(backend, 0, 0, 2 * bytes_of(y) + bytes_of(x));
}

static void update_scaled(struct backend *backend, struct tensor y, struct tensor x, float scale)
{
    update(backend, y, x);
}

static void convert(struct backend *backend, struct tensor y, struct tensor x)
{
    operate(backend, 0, 0, bytes_of(y) + bytes_of(x));
}

static void unpatchify(struct backend *backend, struct tensor pixels, struct tensor tokens,
                       int width, float multiply, float shift)
{
    convert(backend, pixels, tokens);
}

static const struct backend_ops described_ops = {
    .abi = BACKEND_ABI,
    .size = sizeof(struct backend_ops),
    .destroy = destroy,
    .sync = sync_compute,
    .upload = upload,
    .download = download,
    .copy_weights = copy_weights,
    .copy_ticket = copy_ticket,
    .copy_wait = copy_wait,
    .copy_reuse = copy_reuse,
    .pinned_bytes = pinned_bytes,
    .mark = mark,
    .mark_wait = mark_wait,
    .mark_seconds = mark_seconds,
    .linear = linear,
    .attention = attention,
    .conv = conv,
    .layer_norm = norm_of_four,
    .modulated_norm = norm_of_four,
    .rms_norm = rms_norm,
    .head_norm = head_norm,
    .gated_norm = gated_norm,
    .channel_sums = channel_sums,
    .group_norm = group_norm,
    .affine = affine,
    .add = update,
    .gelu_multiply = update,
    .silu = convert,
    .copy = convert,
    .position_bias = position_bias,
    .euler = update_scaled,
    .guide = update_scaled,
    .unpatchify = unpatchify,
    .to_rgb = convert,
};

static struct backend card(void)
{
    return (struct backend){
        .name = "cuda",
        .device_name = "a card as described",
        .activation = DTYPE_BF16,
        .weight = DTYPE_BF16,
        .bias = DTYPE_BF16,
        .strip_pixels = CUDA_STRIP_PIXELS,
        .weight_rows = 1,
        .workspace_bytes = CUDA_WORKSPACE_BYTES,
        .context_bytes = CUDA_DRIVER_BYTES + CUDA_CODE_BYTES,
        .context_share = CUDA_PINNED_PER_TABLE,
    };
}

int described_create(struct backend **backend, const struct backend *like, uint64_t memory_bytes,
                     struct error *err)
{
    struct described *d = calloc(1, sizeof *d);
    uint64_t context;

    if (d == NULL)
        return error_set(err, ENOMEM, "out of host memory");
    d->base = like != NULL ? *like : card();
    d->base.ops = &described_ops;
    d->base.pages = &d->pages;
    d->base.workspace = NULL;
    d->pages.ops = &pages_ops;
    d->pages.granule_bytes = like != NULL ? like->pages->granule_bytes : CUDA_PAGE_BYTES;
    d->next_address = FIRST_ADDRESS;
    d->total_bytes = memory_bytes;
    context = d->base.context_bytes;
    d->granted_before = d->base.context_granted;
    d->free_bytes = memory_bytes > context ? memory_bytes - context : 0;
    *backend = &d->base;
    return 0;
}

void described_set_rates(struct backend *backend, const struct device_rates *rates)
{
    described_of(backend)->rates = *rates;
}

double described_now(const struct backend *backend)
{
    const struct described *d = (const struct described *)backend;

    return later(d->host, later(d->now[STREAM_COMPUTE], d->now[STREAM_COPY]));
}
