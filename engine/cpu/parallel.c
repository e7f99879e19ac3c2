/* SPDX-License-Identifier: MIT */
#include "engine/cpu/parallel.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

/* Looks at a counter before a waiting thread lets others run (some 50 µs, longer than the caller's
 * pause from one task to the next), and before it goes to sleep (about a millisecond, longer than
 * the last chunk of a task may take: a thread that sleeps comes too late for the next one). */
#define SPINS 1000
#define YIELDS 3000

/* The next chunk of the present task: the task's number above, the chunk's below. A chunk is taken
 * by moving this on, which fails if meanwhile another task began; so what a thread read of a task
 * before is known to have been this task's. */
#define CHUNK_BITS 32
#define CLOSED UINT32_MAX

struct worker {
    struct parallel *parallel;
    pthread_t thread;
    int index;
};

struct parallel {
    _Atomic uint64_t ticket;
    _Atomic(parallel_task *) task;
    _Atomic(void *) args;
    _Atomic uint32_t chunks;
    _Atomic uint32_t done; /* chunks finished */

    pthread_mutex_t lock;
    pthread_cond_t wake;
    _Atomic int sleepers; /* changed under lock */
    _Atomic bool stop;

    int threads;
    struct worker *workers; /* [threads], the first of which is the caller */
};

/* The i-th time. */
static inline void wait_briefly(int i)
{
    if (i >= SPINS)
        sched_yield();
#if defined(__x86_64__)
    else
        __builtin_ia32_pause();
#endif
}

/* Takes and does chunks until none is left. */
static void work(struct parallel *p, int worker)
{
    for (;;) {
        uint64_t ticket = atomic_load(&p->ticket);
        uint32_t chunk = (uint32_t)ticket;
        parallel_task *task = atomic_load_explicit(&p->task, memory_order_relaxed);
        void *args = atomic_load_explicit(&p->args, memory_order_relaxed);

        if (chunk >= atomic_load_explicit(&p->chunks, memory_order_relaxed))
            return;
        if (!atomic_compare_exchange_weak(&p->ticket, &ticket, ticket + 1))
            continue;
        task(args, chunk, worker);
        atomic_fetch_add(&p->done, 1);
    }
}

/* Whether a task has begun since the one of number *last, which becomes its number; or whether it
 * is the end. A task whose description still changes has not begun: who took note of it then would
 * miss it. */
static bool is_due(struct parallel *p, uint64_t *last)
{
    uint64_t ticket = atomic_load(&p->ticket), number = ticket >> CHUNK_BITS;

    if (number == *last || (uint32_t)ticket == CLOSED)
        return atomic_load(&p->stop);
    *last = number;
    return true;
}

static void wait_for_task(struct parallel *p, uint64_t *last)
{
    for (int i = 0; i < SPINS + YIELDS; i++) {
        if (is_due(p, last))
            return;
        wait_briefly(i);
    }
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->sleepers, 1);
    while (!is_due(p, last))
        pthread_cond_wait(&p->wake, &p->lock);
    atomic_fetch_sub(&p->sleepers, 1);
    pthread_mutex_unlock(&p->lock);
}

static void *worker_main(void *argument)
{
    struct worker *worker = argument;
    struct parallel *p = worker->parallel;
    uint64_t last = 0;

    while (!atomic_load(&p->stop)) {
        wait_for_task(p, &last);
        work(p, worker->index);
    }
    return NULL;
}

int parallel_create(struct parallel **out, int threads)
{
    struct parallel *p = calloc(1, sizeof *p);
    struct worker *workers = calloc((size_t)threads, sizeof *workers);
    int result = 0;

    if (p == NULL || workers == NULL) {
        free(p);
        free(workers);
        return -ENOMEM;
    }
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    atomic_store(&p->ticket, CLOSED);
    p->workers = workers;
    p->threads = 1;
    while (p->threads < threads && result == 0) {
        workers[p->threads] = (struct worker){.parallel = p, .index = p->threads};
        result =
            pthread_create(&workers[p->threads].thread, NULL, worker_main, &workers[p->threads]);
        p->threads += result == 0;
    }
    if (result != 0) {
        parallel_destroy(p);
        return -result;
    }
    *out = p;
    return 0;
}

static void wake_all(struct parallel *p)
{
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
}

void parallel_destroy(struct parallel *p)
{
    if (p == NULL)
        return;
    atomic_store(&p->stop, true);
    wake_all(p);
    for (int i = 1; i < p->threads; i++)
        pthread_join(p->workers[i].thread, NULL);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    free(p->workers);
    free(p);
}

void parallel_run(struct parallel *p, int64_t chunks, parallel_task *task, void *args)
{
    uint64_t number = (atomic_load(&p->ticket) >> CHUNK_BITS) + 1;

    assert(chunks >= 0 && chunks < CLOSED);
    if (p->threads == 1 || chunks <= 1) {
        for (int64_t i = 0; i < chunks; i++)
            task(args, i, 0);
        return;
    }
    /* No chunk can be taken while the task's description changes. */
    atomic_store(&p->ticket, number << CHUNK_BITS | CLOSED);
    atomic_store_explicit(&p->task, task, memory_order_relaxed);
    atomic_store_explicit(&p->args, args, memory_order_relaxed);
    atomic_store_explicit(&p->chunks, (uint32_t)chunks, memory_order_relaxed);
    atomic_store(&p->done, 0);
    atomic_store(&p->ticket, number << CHUNK_BITS);
    if (atomic_load(&p->sleepers) > 0)
        wake_all(p);
    work(p, 0);
    for (int i = 0; atomic_load(&p->done) < (uint32_t)chunks; i += i < SPINS)
        wait_briefly(i);
}
