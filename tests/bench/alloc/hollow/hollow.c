/* SPDX-License-Identifier: MIT */
/*
 * A back end that is memory and nothing else, and even that is only counted: a device of 80 GiB
 * whose operations do nothing. An engine on it plans, loads, evicts and allocates as it would on a
 * GPU, at any size and in no time, which is what a trace of its allocations needs. It is opened as
 * the module "cuda" from its own folder.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/module.h"
#include "tests/fake_pages.h"

#define DEVICE_BYTES (UINT64_C(80) << 30)
/* As much as engine/cuda asks for (cuda.h). */
#define WORKSPACE_BYTES ((UINT64_C(64) << 20) + (UINT64_C(256) << 10))
/* As on an H100, with what engine/cuda sets aside for code. */
#define CONTEXT_BYTES ((UINT64_C(527) + 64) << 20)
enum { PAGE_BYTES = 2 << 20 };

struct hollow {
    struct backend base;
    struct fake_pages *pages;
    uint64_t tickets;
};

static void hollow_destroy(struct backend *backend)
{
    struct hollow *hollow = (struct hollow *)backend;

    fake_pages_destroy(hollow->pages);
    free(hollow);
}

static int hollow_sync(struct backend *backend, struct error *err)
{
    const struct hollow *hollow = (const struct hollow *)backend;

    if (hollow->pages->fault != NULL)
        return error_set(err, EIO, "hollow back end: %s", hollow->pages->fault);
    return 0;
}

static void upload(struct backend *backend, struct tensor target, const void *source)
{
}

/* The host's side is fp32 whatever the device's is. */
static void download(struct backend *backend, void *target, struct tensor source)
{
    size_t element = source.dtype == DTYPE_U8 ? 1 : 4;

    memset(target, 0, (size_t)source.rows * (size_t)source.stride * element);
}

static void copy_weights(struct backend *backend, const struct weight_copy *copies, size_t count)
{
}

static uint64_t copy_ticket(struct backend *backend)
{
    return ++((struct hollow *)backend)->tickets;
}

static void copy_wait(struct backend *backend, uint64_t ticket)
{
}

static void copy_reuse(struct backend *backend)
{
}

static uint64_t pinned_bytes(struct backend *backend)
{
    return 0;
}

/* Operations, by what they take. */

static void linear(struct backend *backend, const struct linear *args)
{
}

static void attention(struct backend *backend, const struct attention *args)
{
}

static void conv(struct backend *backend, const struct conv *args)
{
}

static void group_norm(struct backend *backend, const struct group_norm *args)
{
}

static void channel_sums(struct backend *backend, struct tensor sums, struct tensor x, int part)
{
}

static void norm_of_four(struct backend *backend, struct tensor y, struct tensor x, struct tensor a,
                         struct tensor b, float eps)
{
}

static void norm_of_three(struct backend *backend, struct tensor y, struct tensor x,
                          struct tensor a, float eps)
{
}

static void head_norm(struct backend *backend, const struct head_norm *args)
{
}

static void gated_norm(struct backend *backend, const struct gated_norm *args)
{
}

static void of_three(struct backend *backend, struct tensor y, struct tensor a, struct tensor b)
{
}

static void of_two(struct backend *backend, struct tensor y, struct tensor x)
{
}

static void scaled(struct backend *backend, struct tensor y, struct tensor x, float scale)
{
}

static void unpatchify(struct backend *backend, struct tensor pixels, struct tensor tokens,
                       int width, float multiply, float shift)
{
}

/* Nothing takes any time. */
static uint64_t mark(struct backend *backend, enum backend_stream stream)
{
    return 1;
}

static void mark_wait(struct backend *backend, uint64_t number)
{
}

static double mark_seconds(struct backend *backend, uint64_t from, uint64_t to)
{
    return 0;
}

static const struct backend_ops hollow_ops = {
    .abi = BACKEND_ABI,
    .size = sizeof(struct backend_ops),
    .destroy = hollow_destroy,
    .sync = hollow_sync,
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
    .rms_norm = norm_of_three,
    .head_norm = head_norm,
    .gated_norm = gated_norm,
    .channel_sums = channel_sums,
    .group_norm = group_norm,
    .affine = of_three,
    .add = of_two,
    .gelu_multiply = of_two,
    .silu = of_two,
    .copy = of_two,
    .position_bias = of_three,
    .euler = scaled,
    .guide = scaled,
    .unpatchify = unpatchify,
    .to_rgb = of_two,
};

__attribute__((visibility("default"))) module_create fluxfs_backend_create;

int fluxfs_backend_create(uint32_t abi, uint32_t ops_size, struct backend **backend,
                          struct error *err)
{
    const struct fake_options options = {PAGE_BYTES, DEVICE_BYTES, false};
    struct hollow *hollow;

    if (abi != BACKEND_ABI || ops_size != sizeof(struct backend_ops))
        return error_set(err, EPROTO, "hollow back end: of another version");
    hollow = calloc(1, sizeof *hollow);
    if (hollow == NULL || fake_pages_create(&hollow->pages, &options) != 0) {
        free(hollow);
        return error_set(err, ENOMEM, "out of host memory");
    }
    hollow->pages->instant = true;
    hollow->base.ops = &hollow_ops;
    hollow->base.pages = &hollow->pages->source;
    hollow->base.name = "cuda";
    strcpy(hollow->base.device_name, "no device: memory is counted, nothing is computed");
    hollow->base.activation = hollow->base.weight = hollow->base.bias = DTYPE_BF16;
    hollow->base.weight_rows = 1;
    hollow->base.workspace_bytes = WORKSPACE_BYTES;
    hollow->base.context_bytes = CONTEXT_BYTES;
    *backend = &hollow->base;
    return 0;
}
