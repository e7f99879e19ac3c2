/* SPDX-License-Identifier: MIT */
#include "engine/file_fault.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

/* As many as two checkpoints of the most shards have, and then some. */
enum { RANGES_MAX = 8192 };

/* The handler reads these without a lock: `end` is 0 unless all of the range is there. */
struct file_fault {
    _Atomic uintptr_t begin, end;
    atomic_bool taken, seen;
};

static struct file_fault ranges[RANGES_MAX];
static atomic_size_t range_count; /* those ever taken come before */
static struct sigaction before;
static uintptr_t page_bytes;
static pthread_once_t installed = PTHREAD_ONCE_INIT;

static struct file_fault *range_of(uintptr_t address)
{
    size_t count = atomic_load(&range_count);

    for (size_t i = 0; i < count; i++)
        if (address < atomic_load(&ranges[i].end) && address >= atomic_load(&ranges[i].begin))
            return &ranges[i];
    return NULL;
}

/* Only mmap and sigaction are called here: both are system calls. Where there is nothing to be done
 * the read runs into the same signal again, with its former handler. */
static void handle(int signal, siginfo_t *info, void *context)
{
    uintptr_t page = (uintptr_t)info->si_addr & ~(page_bytes - 1);
    struct file_fault *range = range_of((uintptr_t)info->si_addr);
    int saved = errno;

    if (range == NULL ||
        mmap((void *)page, atomic_load(&range->end) - page, PROT_READ,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED)
        sigaction(signal, &before, NULL);
    else
        atomic_store(&range->seen, true);
    errno = saved;
}

static void install(void)
{
    struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO};

    page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE);
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, &before);
}

struct file_fault *file_fault_add(const void *data, size_t size_bytes)
{
    pthread_once(&installed, install);
    for (size_t i = 0; i < RANGES_MAX; i++) {
        size_t count = atomic_load(&range_count);

        if (atomic_exchange(&ranges[i].taken, true))
            continue;
        while (count <= i && !atomic_compare_exchange_weak(&range_count, &count, i + 1))
            ;
        atomic_store(&ranges[i].seen, false);
        atomic_store(&ranges[i].begin, (uintptr_t)data);
        atomic_store(&ranges[i].end, (uintptr_t)data + size_bytes);
        return &ranges[i];
    }
    return NULL;
}

void file_fault_remove(struct file_fault *fault)
{
    if (fault == NULL)
        return;
    atomic_store(&fault->end, 0);
    atomic_store(&fault->taken, false);
}

bool file_fault_seen(const struct file_fault *fault)
{
    return atomic_load(&fault->seen);
}
