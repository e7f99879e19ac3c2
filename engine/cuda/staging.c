/* SPDX-License-Identifier: MIT */
#include "engine/cuda/staging.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "engine/cuda/weights.h"

/* A block has about a dozen copies: room for the block in work and the one behind it. */
#define COMMANDS 256

/* Fewer elements than this are not worth waking another thread for. */
#define SHARE_ELEMENTS 65536

enum command_kind { COMMAND_COPY, COMMAND_HOLD, COMMAND_MARK, COMMAND_TIME, COMMAND_END };

struct command {
    enum command_kind kind;
    uint64_t number; /* of a ticket, a point or a mark */
    struct weight_copy copy;
};

/* A piece that the fill threads work on together. */
struct piece {
    const struct weight_copy *copy;
    int64_t first, count;
    char *target;
};

struct staging {
    struct staging_options options; /* fixed */
    pthread_t thread;               /* takes the commands */
    bool thread_runs;
    pthread_t helpers[STAGING_THREADS_MAX];
    int helper_count; /* fixed once created */

    pthread_mutex_t lock;
    pthread_cond_t queued;             /* a command came */
    pthread_cond_t advanced;           /* a command was carried out */
    struct command commands[COMMANDS]; /* lock; a ring */
    size_t oldest, count;              /* lock */
    uint64_t tickets, tickets_issued;  /* lock */
    int holds;                         /* lock: queued and not passed on */

    pthread_mutex_t piece_lock;
    pthread_cond_t piece_given, piece_done;
    struct piece piece;      /* piece_lock */
    uint64_t piece_number;   /* piece_lock; counts from 1 */
    int helpers_busy;        /* piece_lock */
    bool piece_bad, closing; /* piece_lock */

    int next_slot;                     /* staging thread only */
    bool slot_used[STAGING_SLOTS_MAX]; /* staging thread only */
};

int64_t staging_piece(const struct weight_copy *copy, int64_t first, size_t slot_bytes)
{
    int64_t left = copy->rows * copy->cols - first, grain = weights_grain(copy);
    int64_t room = (int64_t)(slot_bytes / weights_element_bytes(copy));

    room -= room % grain;
    return left < room ? left : room;
}

/* ---- filling ---- */

/* The part of a piece that falls to one of `threads` threads. */
static bool fill_share(const struct piece *piece, int thread, int threads)
{
    int64_t grain = weights_grain(piece->copy), grains = piece->count / grain;
    int64_t first = grains * thread / threads * grain,
            last = grains * (thread + 1) / threads * grain;
    size_t each = weights_element_bytes(piece->copy);

    if (first == last)
        return true;
    return weights_fill(piece->copy, piece->first + first, last - first,
                        piece->target + (size_t)first * each);
}

struct helper {
    struct staging *staging;
    int number; /* 1 … helper_count; the staging thread is 0 */
};

static void *helper_run(void *argument)
{
    struct helper helper = *(struct helper *)argument;
    struct staging *s = helper.staging;
    uint64_t seen = 0;

    free(argument);
    pthread_mutex_lock(&s->piece_lock);
    for (;;) {
        while (s->piece_number == seen && !s->closing)
            pthread_cond_wait(&s->piece_given, &s->piece_lock);
        if (s->closing)
            break;
        seen = s->piece_number;
        struct piece piece = s->piece;
        pthread_mutex_unlock(&s->piece_lock);
        bool good = fill_share(&piece, helper.number, s->options.threads);
        pthread_mutex_lock(&s->piece_lock);
        s->piece_bad |= !good;
        if (--s->helpers_busy == 0)
            pthread_cond_signal(&s->piece_done);
    }
    pthread_mutex_unlock(&s->piece_lock);
    return NULL;
}

static bool fill(struct staging *s, const struct piece *piece)
{
    bool good;

    if (s->helper_count == 0 || piece->count < SHARE_ELEMENTS)
        return fill_share(piece, 0, 1);
    pthread_mutex_lock(&s->piece_lock);
    s->piece = *piece;
    s->piece_number++;
    s->piece_bad = false;
    s->helpers_busy = s->helper_count;
    pthread_cond_broadcast(&s->piece_given);
    pthread_mutex_unlock(&s->piece_lock);
    good = fill_share(piece, 0, s->options.threads);
    pthread_mutex_lock(&s->piece_lock);
    while (s->helpers_busy > 0)
        pthread_cond_wait(&s->piece_done, &s->piece_lock);
    good = good && !s->piece_bad;
    pthread_mutex_unlock(&s->piece_lock);
    return good;
}

/* ---- the staging thread ---- */

static void copy_run(struct staging *s, const struct weight_copy *copy)
{
    const struct staging_device *device = &s->options.device;
    int64_t count, n = copy->rows * copy->cols;
    int64_t above = copy->first * (weight_is_vector(copy->layout) ? 1 : copy->cols);
    size_t each = weights_element_bytes(copy);
    char *target = (char *)copy->target + (size_t)above * each;
    bool good = true;

    for (int64_t first = 0; first < n; first += count) {
        int slot = s->next_slot;
        char *memory = s->options.memory + (size_t)slot * s->options.slot_bytes;

        count = staging_piece(copy, first, s->options.slot_bytes);
        assert(count > 0);
        if (s->slot_used[slot])
            device->slot_wait(device->owner, slot);
        good &= fill(s, &(struct piece){copy, first, count, memory});
        device->send(device->owner, slot, target + (size_t)first * each, memory,
                     (size_t)count * each);
        s->slot_used[slot] = true;
        s->next_slot = (slot + 1) % s->options.slots;
    }
    if (!good)
        device->bad_weights(device->owner, copy);
}

static struct command command_take(struct staging *s)
{
    struct command command;

    pthread_mutex_lock(&s->lock);
    while (s->count == 0)
        pthread_cond_wait(&s->queued, &s->lock);
    command = s->commands[s->oldest];
    pthread_mutex_unlock(&s->lock);
    return command;
}

/* A command leaves the queue when it has been carried out. */
static void command_done(struct staging *s, const struct command *command)
{
    pthread_mutex_lock(&s->lock);
    s->oldest = (s->oldest + 1) % COMMANDS;
    s->count--;
    if (command->kind == COMMAND_MARK)
        s->tickets_issued = command->number;
    else if (command->kind == COMMAND_HOLD)
        s->holds--;
    pthread_cond_broadcast(&s->advanced);
    pthread_mutex_unlock(&s->lock);
}

static void *staging_run(void *argument)
{
    struct staging *s = argument;
    const struct staging_device *device = &s->options.device;
    struct command command;

    device->begin(device->owner);
    do {
        command = command_take(s);
        if (command.kind == COMMAND_COPY)
            copy_run(s, &command.copy);
        else if (command.kind == COMMAND_HOLD)
            device->hold(device->owner, command.number);
        else if (command.kind == COMMAND_MARK)
            device->mark(device->owner, command.number);
        else if (command.kind == COMMAND_TIME)
            device->time(device->owner, command.number);
        command_done(s, &command);
    } while (command.kind != COMMAND_END);
    return NULL;
}

/* ---- the caller's side ---- */

/* Expects the lock. */
static void command_add(struct staging *s, const struct command *command)
{
    while (s->count == COMMANDS)
        pthread_cond_wait(&s->advanced, &s->lock);
    s->commands[(s->oldest + s->count) % COMMANDS] = *command;
    s->count++;
    pthread_cond_signal(&s->queued);
}

void staging_copy(struct staging *s, const struct weight_copy *copy)
{
    struct command command = {.kind = COMMAND_COPY, .copy = *copy};

    pthread_mutex_lock(&s->lock);
    command_add(s, &command);
    pthread_mutex_unlock(&s->lock);
}

void staging_hold(struct staging *s, uint64_t point)
{
    struct command command = {.kind = COMMAND_HOLD, .number = point};

    pthread_mutex_lock(&s->lock);
    command_add(s, &command);
    s->holds++;
    while (s->holds >= STAGING_HOLDS)
        pthread_cond_wait(&s->advanced, &s->lock);
    pthread_mutex_unlock(&s->lock);
}

void staging_time(struct staging *s, uint64_t mark)
{
    struct command command = {.kind = COMMAND_TIME, .number = mark};

    pthread_mutex_lock(&s->lock);
    command_add(s, &command);
    pthread_mutex_unlock(&s->lock);
}

uint64_t staging_ticket(struct staging *s)
{
    struct command command = {.kind = COMMAND_MARK};

    pthread_mutex_lock(&s->lock);
    command.number = ++s->tickets;
    command_add(s, &command);
    pthread_mutex_unlock(&s->lock);
    return command.number;
}

bool staging_issued(struct staging *s, uint64_t ticket)
{
    bool issued;

    pthread_mutex_lock(&s->lock);
    issued = s->tickets_issued >= ticket;
    pthread_mutex_unlock(&s->lock);
    return issued;
}

void staging_wait_issued(struct staging *s, uint64_t ticket)
{
    pthread_mutex_lock(&s->lock);
    while (s->tickets_issued < ticket)
        pthread_cond_wait(&s->advanced, &s->lock);
    pthread_mutex_unlock(&s->lock);
}

/* ---- beginning and end ---- */

static int helper_start(struct staging *s, int number)
{
    struct helper *helper = malloc(sizeof *helper);
    int result;

    if (helper == NULL)
        return ENOMEM;
    *helper = (struct helper){s, number};
    result = pthread_create(&s->helpers[number - 1], NULL, helper_run, helper);
    if (result != 0)
        free(helper);
    else
        s->helper_count++;
    return result;
}

int staging_create(struct staging **out, const struct staging_options *options, struct error *err)
{
    struct staging *s = calloc(1, sizeof *s);
    int result = 0;

    if (s == NULL)
        return error_set(err, ENOMEM, "out of host memory");
    assert(options->slots >= 1 && options->slots <= STAGING_SLOTS_MAX);
    assert(options->threads >= 1 && options->threads <= STAGING_THREADS_MAX);
    s->options = *options;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->queued, NULL);
    pthread_cond_init(&s->advanced, NULL);
    pthread_mutex_init(&s->piece_lock, NULL);
    pthread_cond_init(&s->piece_given, NULL);
    pthread_cond_init(&s->piece_done, NULL);
    for (int i = 1; i < options->threads && result == 0; i++)
        result = helper_start(s, i);
    if (result == 0)
        result = pthread_create(&s->thread, NULL, staging_run, s);
    s->thread_runs = result == 0;
    if (result != 0) {
        staging_destroy(s);
        return error_set(err, result, "threads that stage weights: %s", strerror(result));
    }
    *out = s;
    return 0;
}

static void threads_join(struct staging *s)
{
    if (s->thread_runs) {
        pthread_mutex_lock(&s->lock);
        command_add(s, &(struct command){.kind = COMMAND_END});
        pthread_mutex_unlock(&s->lock);
        pthread_join(s->thread, NULL);
    }
    pthread_mutex_lock(&s->piece_lock);
    s->closing = true;
    pthread_cond_broadcast(&s->piece_given);
    pthread_mutex_unlock(&s->piece_lock);
    for (int i = 0; i < s->helper_count; i++)
        pthread_join(s->helpers[i], NULL);
}

void staging_destroy(struct staging *s)
{
    if (s == NULL)
        return;
    threads_join(s);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->queued);
    pthread_cond_destroy(&s->advanced);
    pthread_mutex_destroy(&s->piece_lock);
    pthread_cond_destroy(&s->piece_given);
    pthread_cond_destroy(&s->piece_done);
    free(s);
}
