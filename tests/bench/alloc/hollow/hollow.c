/* SPDX-License-Identifier: MIT */
/*
 * A described device (engine/described.h) that takes no time, of 80 GiB whose pages watch the rules
 * of a driver. An engine on it plans, loads, evicts and allocates as it would on a GPU, at any
 * size, which is what a trace of its allocations needs. It is opened as the module "cuda" from its
 * own folder.
 */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "engine/card.h"
#include "engine/described.h"
#include "engine/module.h"
#include "tests/fake_pages.h"

#define DEVICE_BYTES (UINT64_C(80) << 30)

static struct fake_pages *pages;
static struct backend_ops ops; /* those of the described device, but for two: */
static void (*described_destroy)(struct backend *backend);

static void hollow_destroy(struct backend *backend)
{
    fake_pages_destroy(pages);
    described_destroy(backend);
}

static int hollow_sync(struct backend *backend, struct error *err)
{
    if (pages->fault != NULL)
        return error_set(err, EIO, "hollow back end: %s", pages->fault);
    return 0;
}

__attribute__((visibility("default"))) module_create fluxfs_backend_create;

int fluxfs_backend_create(uint32_t abi, uint32_t ops_size, struct backend **backend,
                          struct error *err, uint32_t layout)
{
    const struct fake_options options = {CUDA_PAGE_BYTES, DEVICE_BYTES, false};
    const struct device_rates at_once = {.linear_flops = INFINITY,
                                         .attention_flops = INFINITY,
                                         .conv_flops = INFINITY,
                                         .memory_bytes = INFINITY,
                                         .link_bytes = INFINITY};

    if (module_check(abi, ops_size, layout, err) != 0 ||
        described_create(backend, NULL, DEVICE_BYTES, err) != 0)
        return err->code;
    ops = *(*backend)->ops;
    described_destroy = ops.destroy;
    if (fake_pages_create(&pages, &options) != 0) {
        described_destroy(*backend);
        return error_set(err, ENOMEM, "out of host memory");
    }
    described_set_rates(*backend, &at_once);
    pages->instant = true;
    ops.destroy = hollow_destroy;
    ops.sync = hollow_sync;
    (*backend)->ops = &ops;
    (*backend)->pages = &pages->source;
    strcpy((*backend)->device_name, "no device: memory is counted, nothing is computed");
    return 0;
}
