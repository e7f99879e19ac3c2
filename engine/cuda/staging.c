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

enum command_kind { COMMAND_COPY, COMMAND_HOLD, COMMAND_MARK, COMMAND_TIME, COMMAND_END };

struct command {
    enum command_kind kind;
    uint64_t number; /* of a ticket, a point or a mark */
    struct weight_copy copy;
    const struct host_weight *kept; /* what the host store has of it, or NULL: fill slots */
};

/* What goes through one slot. */
struct piece {
    const struct weight_copy *copy;
    int64_t first, count;
    uint64_t number; /* counts all pieces; its slot is the remainder */
};

struct slot {
    uint64_t filled; /* 1 + number of the piece in it */
    bool good;
};

struct staging {
    struct staging_options options; /* fixed */
    pthread_t sender;               /* takes the commands */
    bool sender_runs;
    pthread_t fillers[STAGING_THREADS_MAX];
    int filler_count; /* fixed once created */

    pthread_mutex_t lock;
    pthread_cond_t fillable; /* a command came, or a slot may be filled again */
    pthread_cond_t sendable; /* a command came, or a piece is filled */
    pthread_cond_t advanced; /* a command was carried out */
    /* All below: lock. Counts of commands; the ring's places are the remainders. */
    struct command commands[COMMANDS];
    uint64_t added, cut, done;
    int64_t cut_at; /* elements of command `cut` that have been given to fillers */
    uint64_t pieces_cut, pieces_sent;
    struct slot slots[STAGING_SLOTS_MAX];
    uint64_t tickets, tickets_issued;
    int holds; /* queued and not passed on */
    bool closing;
};

int64_t staging_piece(const struct weight_copy *copy, int64_t first, size_t slot_bytes)
{
    int64_t left = copy->rows * copy->cols - first, grain = weights_grain(copy);
    int64_t room = (int64_t)(slot_bytes / weights_element_bytes(copy));

    room -= room % grain;
    return left < room ? left : room;
}

static char *slot_memory(const struct staging *s, uint64_t piece)
{
    return s->options.memory + piece % (uint64_t)s->options.slots * s->options.slot_bytes;
}

static struct command *command_at(struct staging *s, uint64_t number)
{
    return &s->commands[number % COMMANDS];
}

/* ---- filling: any number of threads, each a piece of its own ---- */

/* The next piece, once its slot has been sent. False: no more will come. Expects the lock. */
static bool piece_take(struct staging *s, struct piece *piece)
{
    const struct command *command;

    for (;;) {
        while (s->cut < s->added &&
               (command_at(s, s->cut)->kind != COMMAND_COPY || command_at(s, s->cut)->kept != NULL))
            s->cut++;
        if (s->closing)
            return false;
        if (s->cut < s->added && s->pieces_cut < s->pieces_sent + (uint64_t)s->options.slots)
            break;
        pthread_cond_wait(&s->fillable, &s->lock);
    }
    command = command_at(s, s->cut);
    piece->copy = &command->copy; /* stays until all of its pieces are sent */
    piece->first = s->cut_at;
    piece->count = staging_piece(&command->copy, s->cut_at, s->options.slot_bytes);
    piece->number = s->pieces_cut++;
    assert(piece->count > 0);
    s->cut_at += piece->count;
    if (s->cut_at == command->copy.rows * command->copy.cols) {
        s->cut++;
        s->cut_at = 0;
    }
    return true;
}

static void *filler_run(void *argument)
{
    struct staging *s = argument;
    const struct staging_device *device = &s->options.device;
    int slots = s->options.slots;
    struct piece piece;

    device->begin(device->owner);
    pthread_mutex_lock(&s->lock);
    while (piece_take(s, &piece)) {
        int slot = (int)(piece.number % (uint64_t)slots);

        pthread_mutex_unlock(&s->lock);
        if (piece.number >= (uint64_t)slots)
            device->slot_wait(device->owner, slot);
        bool good =
            weights_fill(piece.copy, piece.first, piece.count, slot_memory(s, piece.number));
        pthread_mutex_lock(&s->lock);
        s->slots[slot] = (struct slot){piece.number + 1, good};
        pthread_cond_signal(&s->sendable);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* ---- sending: one thread, in order ---- */

/* Waits until the next piece lies in its slot; whether its numbers are finite. */
static bool piece_filled(struct staging *s, uint64_t number)
{
    const struct slot *slot = &s->slots[number % (uint64_t)s->options.slots];
    bool good;

    pthread_mutex_lock(&s->lock);
    while (slot->filled != number + 1)
        pthread_cond_wait(&s->sendable, &s->lock);
    good = slot->good;
    pthread_mutex_unlock(&s->lock);
    return good;
}

static void piece_sent(struct staging *s)
{
    pthread_mutex_lock(&s->lock);
    s->pieces_sent++;
    pthread_cond_signal(&s->fillable);
    pthread_mutex_unlock(&s->lock);
}

static void kept_send(struct staging *s, char *target, const struct host_weight *weight)
{
    const struct staging_device *device = &s->options.device;

    for (size_t i = 0; i < sizeof weight->piece / sizeof *weight->piece; i++) {
        if (weight->piece[i].bytes > 0)
            device->send(device->owner, STAGING_KEPT, target, weight->piece[i].data,
                         weight->piece[i].bytes);
        target += weight->piece[i].bytes;
    }
}

static void copy_send(struct staging *s, const struct command *command)
{
    const struct staging_device *device = &s->options.device;
    const struct weight_copy *copy = &command->copy;
    int64_t count, n = copy->rows * copy->cols;
    int64_t above = copy->first * (weight_is_vector(copy->layout) ? 1 : copy->cols);
    size_t each = weights_element_bytes(copy);
    char *target = (char *)copy->target + (size_t)above * each;
    bool good = true;

    if (command->kept != NULL) {
        kept_send(s, target, command->kept);
        return;
    }
    for (int64_t first = 0; first < n; first += count) {
        uint64_t number = s->pieces_sent; /* changed by this thread only */

        count = staging_piece(copy, first, s->options.slot_bytes);
        good &= piece_filled(s, number);
        device->send(device->owner, (int)(number % (uint64_t)s->options.slots),
                     target + (size_t)first * each, slot_memory(s, number), (size_t)count * each);
        piece_sent(s);
    }
    if (!good && copy->name != NULL)
        device->bad_weights(device->owner, copy);
    else if (good && s->options.store != NULL && copy->lasting)
        host_store_passed(s->options.store, copy);
}

static struct command *command_take(struct staging *s)
{
    struct command *command;

    pthread_mutex_lock(&s->lock);
    while (s->done == s->added)
        pthread_cond_wait(&s->sendable, &s->lock);
    command = command_at(s, s->done);
    pthread_mutex_unlock(&s->lock);
    return command;
}

/* A command leaves the queue when it has been carried out. */
static void command_done(struct staging *s, const struct command *command)
{
    pthread_mutex_lock(&s->lock);
    if (command->kind == COMMAND_MARK)
        s->tickets_issued = command->number;
    else if (command->kind == COMMAND_HOLD)
        s->holds--;
    s->done++;
    if (s->cut < s->done)
        s->cut = s->done;
    pthread_cond_broadcast(&s->advanced);
    pthread_mutex_unlock(&s->lock);
}

static void *sender_run(void *argument)
{
    struct staging *s = argument;
    const struct staging_device *device = &s->options.device;
    bool ends = false;

    device->begin(device->owner);
    while (!ends) {
        const struct command *command = command_take(s);

        if (command->kind == COMMAND_COPY)
            copy_send(s, command);
        else if (command->kind == COMMAND_HOLD)
            device->hold(device->owner, command->number);
        else if (command->kind == COMMAND_MARK)
            device->mark(device->owner, command->number);
        else if (command->kind == COMMAND_TIME)
            device->time(device->owner, command->number);
        ends = command->kind == COMMAND_END;
        command_done(s, command);
    }
    return NULL;
}

/* ---- the caller's side ---- */

/* Expects the lock. */
static void command_add(struct staging *s, const struct command *command)
{
    while (s->added - s->done == COMMANDS)
        pthread_cond_wait(&s->advanced, &s->lock);
    *command_at(s, s->added++) = *command;
    pthread_cond_signal(&s->sendable);
    pthread_cond_broadcast(&s->fillable);
}

void staging_copy(struct staging *s, const struct weight_copy *copy)
{
    struct command command = {.kind = COMMAND_COPY, .copy = *copy};

    if (s->options.store != NULL && copy->lasting)
        command.kept = host_store_find(s->options.store, copy);
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
    pthread_cond_init(&s->fillable, NULL);
    pthread_cond_init(&s->sendable, NULL);
    pthread_cond_init(&s->advanced, NULL);
    for (int i = 0; i < options->threads && result == 0; i++) {
        result = pthread_create(&s->fillers[i], NULL, filler_run, s);
        s->filler_count += result == 0;
    }
    if (result == 0)
        result = pthread_create(&s->sender, NULL, sender_run, s);
    s->sender_runs = result == 0;
    if (result != 0) {
        staging_destroy(s);
        return error_set(err, result, "threads that stage weights: %s", strerror(result));
    }
    *out = s;
    return 0;
}

static void threads_join(struct staging *s)
{
    if (s->sender_runs) {
        pthread_mutex_lock(&s->lock);
        command_add(s, &(struct command){.kind = COMMAND_END});
        pthread_mutex_unlock(&s->lock);
        pthread_join(s->sender, NULL);
    }
    pthread_mutex_lock(&s->lock);
    s->closing = true;
    pthread_cond_broadcast(&s->fillable);
    pthread_mutex_unlock(&s->lock);
    for (int i = 0; i < s->filler_count; i++)
        pthread_join(s->fillers[i], NULL);
}

void staging_destroy(struct staging *s)
{
    if (s == NULL)
        return;
    threads_join(s);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->fillable);
    pthread_cond_destroy(&s->sendable);
    pthread_cond_destroy(&s->advanced);
    free(s);
}
