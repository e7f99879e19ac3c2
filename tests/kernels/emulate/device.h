/* SPDX-License-Identifier: MIT */
/*
 * An emulated GPU: as much of the CUDA runtime, the driver, cuBLASLt and cuDNN as engine/cuda
 * calls, behind NVIDIA's own headers.
 *
 * Streams are lazy: work is carried out when somebody waits for it, and now and then before. So a
 * missing event, a slot overwritten too early and a page unmapped too early show as wrong results
 * or a crash. New pages hold NaN. What the emulation can't show: PTX, speed, and what the real
 * libraries do beyond their manuals.
 *
 * FLUXFS_EMULATE in the environment makes it another device; words separated by spaces:
 *   no-device  old-driver  old-card  no-cudnn  memory=MIB  lost=WORKS (then all calls fail)
 *   context=MIB (what a context takes)  others=MIB (what other processes have)  no-nvml
 *   lazy (no work is done unasked)  clean (new pages are zeros: quick)
 *   nvml=MIB (what it sees more at every other look)  no-virtual-memory  granule=KIB
 *   no-processes (NVML does not tell how much each has)
 *   grown=MIB (what the context has grown by)  grows=MIB (and by each product that is described)
 *   swings=MIB (what others take when one is described, and give back at the next)
 *   started=MIB (what cuBLASLt takes until it is ended)  unpinned (no host memory can be pinned)
 */
#ifndef FLUXFS_TESTS_KERNELS_EMULATE_DEVICE_H
#define FLUXFS_TESTS_KERNELS_EMULATE_DEVICE_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#include "tests/kernels/emulate/block.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Queues work; `args` are copied. */
void device_queue(cudaStream_t stream, void (*run)(void *args), const void *args, size_t bytes);
void device_queue_kernel(cudaStream_t stream, void (*run)(const void *call), const void *call,
                         size_t bytes, const struct block_grid *grid);

/* What is in a CUtensorMap here; bytes, but for counts and box. */
struct device_map {
    const char *data;
    int64_t counts[3], strides[2], box[3];
};

/* A word of FLUXFS_EMULATE: its number, 0 without one, or `otherwise` if it is not there. */
long device_word(const char *word, long otherwise);

/* A product is described: libraries load their code. */
void device_grow(void);

/* cuBLASLt is started, or ended. */
void device_start(bool started);

/* The runtime retains the context, if there is one, as with the first call that needs it; or no
 * longer. */
void device_hold(bool hold);

/* The device's memory in use and in all. */
void device_memory(size_t *used_bytes, size_t *total_bytes);

/* ---- the driver, for tests of what is built upon it ---- */

struct device_books {
    uint64_t calls;                                            /* so far */
    int64_t contexts, events, reservations, handles, mappings; /* there are now */
    const char *fault; /* the first rule of the manual that was broken, or NULL */
};

void device_read_books(struct device_books *books);

/* The call number `at` from now on, counted from 1 (0: none), and `repeat` after it return `code`,
 * a CUresult. */
void device_fail(uint64_t at, uint64_t repeat, int code);

/* Whether work may touch that memory now. */
bool device_is_accessible(const void *address, size_t bytes);

#ifdef __cplusplus
}
#endif
#endif
