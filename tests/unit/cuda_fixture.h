/* SPDX-License-Identifier: MIT */
/*
 * The CUDA page source and context over the emulated driver (tests/kernels/emulate), which watches
 * the manual's rules, carries work out late, and fails any call.
 */
#ifndef FLUXFS_TESTS_UNIT_CUDA_FIXTURE_H
#define FLUXFS_TESTS_UNIT_CUDA_FIXTURE_H

#include <errno.h>
#include <string.h>

#include "engine/cuda/pages.h"
#include "tests/kernels/emulate/device.h"
#include "tests/test.h"

enum { PAGE = 2 << 20 };
#define MIB (UINT64_C(1) << 20)

static const CUresult codes[] = {CUDA_ERROR_OUT_OF_MEMORY, CUDA_ERROR_LAUNCH_FAILED,
                                 CUDA_ERROR_ILLEGAL_ADDRESS, CUDA_ERROR_INVALID_VALUE,
                                 CUDA_ERROR_UNKNOWN};
enum { CODES = sizeof codes / sizeof *codes };

struct fixture {
    struct driver driver;
    struct cuda_context context;
    struct page_source *pages;
    cudaStream_t stream;
    char fault[128]; /* the last one reported */
    int faults;
    struct error err;
};

static inline void device_is(const char *words)
{
    setenv("FLUXFS_EMULATE", words, 1);
}

static inline void note_fault(void *owner, const char *call, const char *why)
{
    struct fixture *f = owner;

    snprintf(f->fault, sizeof f->fault, "%s: %s", call, why);
    f->faults++;
}

static inline void fixture_open(struct fixture *f)
{
    struct cuda_pages_options options = {.context = &f->context, .fault = note_fault, .owner = f};

    *f = (struct fixture){0};
    EXPECT(driver_open(&f->driver, &f->err) == 0);
    EXPECT(context_open(&f->context, &f->driver, &f->err) == 0, "%s", f->err.text);
    EXPECT(cudaStreamCreateWithFlags(&f->stream, 0) == cudaSuccess);
    options.stream = f->stream;
    EXPECT(cuda_pages_create(&f->pages, &options, &f->err) == 0, "%s", f->err.text);
}

/* Everything must be back where it came from. */
static inline void fixture_close(struct fixture *f)
{
    struct device_books books;

    device_fail(0, 0, CUDA_SUCCESS);
    f->pages->ops->destroy(f->pages);
    cudaStreamDestroy(f->stream);
    context_close(&f->context);
    device_read_books(&books);
    EXPECT(books.fault == NULL, "%s", books.fault);
    EXPECT(books.handles == 0 && books.mappings == 0 && books.reservations == 0 &&
               books.events == 0 && books.contexts == 0,
           "%d handles, %d mappings, %d reservations, %d events, %d contexts", (int)books.handles,
           (int)books.mappings, (int)books.reservations, (int)books.events, (int)books.contexts);
}

#endif
