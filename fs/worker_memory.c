/* SPDX-License-Identifier: MIT */
/* How the engine's memory stands, and how it stood while a job was painted. */
#include "fs/content.h"
#include "fs/worker_private.h"

enum {
    LOOK_NS = 1000000,  /* between two looks at the engine */
    CURVE_LINES = 4096, /* then samples come half as often */
    CURVE_STEP_NS = 5000000,
};

void memory_look(struct worker *worker)
{
    struct engine *engine = engine_borrow(worker);
    struct engine_memory memory;
    int64_t now = clock_ns();
    uint64_t look;

    pthread_mutex_lock(worker->lock);
    look = ++worker->seen.looks;
    pthread_mutex_unlock(worker->lock);
    if (engine != NULL) {
        engine_memory(engine, &memory);
    }
    pthread_mutex_lock(worker->lock);
    /* Another look may have begun after this one and come before it: that one is newer. */
    if (engine != NULL && look > worker->seen.version) {
        worker->seen.memory = memory;
        worker->seen.version = look;
        worker->seen.looked_ns = now;
    }
    worker->seen.looking = false;
    pthread_mutex_unlock(worker->lock);
    if (engine != NULL) {
        engine_return(worker);
    }
}

uint64_t worker_memory(struct worker *worker, struct engine_memory *memory)
{
    int64_t now = clock_ns(), age;
    uint64_t version;
    bool look;

    pthread_mutex_lock(worker->lock);
    age = now - worker->seen.looked_ns;
    look = !worker->seen.looking && (age < 0 || age >= LOOK_NS);
    worker->seen.looking |= look;
    pthread_mutex_unlock(worker->lock);
    if (look) {
        memory_look(worker);
    }
    pthread_mutex_lock(worker->lock);
    *memory = worker->engine != NULL ? worker->seen.memory : (struct engine_memory){0};
    version = worker->engine != NULL ? worker->seen.version : 0;
    pthread_mutex_unlock(worker->lock);
    return version;
}

size_t worker_memory_map(struct worker *worker, struct memory_run *runs, size_t capacity)
{
    struct engine *engine = engine_borrow(worker);
    size_t count = 0;

    if (engine != NULL) {
        count = engine_memory_map(engine, runs, capacity);
        engine_return(worker);
    }
    return count;
}

/* ---- The curves of active jobs. ---- */

static bool curve_due(const struct active *active, int64_t now)
{
    return active->image != NULL &&
           (active->curve.length == 0 || now - active->sampled_ns >= active->sample_step_ns);
}

static void curve_add(struct active *active, const struct engine_memory *memory, int64_t now)
{
    if (active->curve.length == 0) {
        content_add_string(&active->curve, "time_s,allocated_bytes,reserved_bytes,budget_bytes\n");
        active->sample_step_ns = CURVE_STEP_NS;
    }
    text_print(&active->curve, "%.3f,%llu,%llu,%llu\n", 1e-9 * (double)(now - active->started_ns),
               (unsigned long long)memory->allocated, (unsigned long long)memory->reserved,
               (unsigned long long)memory->budget);
    active->sampled_ns = now;
    if (++active->samples % CURVE_LINES == 0) {
        active->sample_step_ns *= 2;
    }
}

void worker_sample(struct worker *worker)
{
    struct engine_memory memory;
    int64_t now = clock_ns();
    bool due = false;

    pthread_mutex_lock(worker->lock);
    for (int i = 0; i < BOARD_IMAGES; i++) {
        due |= curve_due(&worker->active[i], now);
    }
    pthread_mutex_unlock(worker->lock);
    if (!due || worker_memory(worker, &memory) == 0) {
        return;
    }
    pthread_mutex_lock(worker->lock);
    for (int i = 0; i < BOARD_IMAGES; i++) {
        if (curve_due(&worker->active[i], now)) {
            curve_add(&worker->active[i], &memory, now);
        }
    }
    pthread_mutex_unlock(worker->lock);
}

bool worker_samples(struct worker *worker, int64_t job, struct text *text)
{
    bool found = false;

    pthread_mutex_lock(worker->lock);
    for (int i = 0; i < BOARD_IMAGES; i++) {
        struct active *each = &worker->active[i];
        if (each->image != NULL && each->job.info.id == job) {
            text_add(text, each->curve.bytes, each->curve.length);
            found = true;
        }
    }
    pthread_mutex_unlock(worker->lock);
    return found;
}
