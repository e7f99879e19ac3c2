/* SPDX-License-Identifier: MIT */
#include "fs/board.h"

#include <string.h>
#include <time.h>

int64_t clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Each slot is a sequence lock. The next publication goes to the slot longest out of use, so a
 * reader tries again only if BOARD_SLOTS publications went by while it copied. Release and acquire
 * on every word cost nothing on x86 and spare the fences, which TSan doesn't know. */
void board_publish(struct board *board, struct board_state *state)
{
    unsigned next = (atomic_load_explicit(&board->current, memory_order_relaxed) + 1) % BOARD_SLOTS;
    struct board_slot *slot = &board->slots[next];
    uint64_t sequence = atomic_load_explicit(&slot->sequence, memory_order_relaxed);
    uint64_t words[BOARD_WORDS] = {0};

    state->version++;
    state->published_ns = clock_ns();
    memcpy(words, state, sizeof *state);
    atomic_store_explicit(&slot->sequence, sequence + 1, memory_order_relaxed);
    for (size_t i = 0; i < BOARD_WORDS; i++) {
        atomic_store_explicit(&slot->words[i], words[i], memory_order_release);
    }
    atomic_store_explicit(&slot->sequence, sequence + 2, memory_order_release);
    atomic_store_explicit(&board->current, next, memory_order_release);
    atomic_store_explicit(&board->version, state->version, memory_order_release);
}

uint64_t board_version(struct board *board)
{
    return atomic_load_explicit(&board->version, memory_order_acquire);
}

void board_read(struct board *board, struct board_state *state)
{
    uint64_t words[BOARD_WORDS], before, after;

    do {
        unsigned current = atomic_load_explicit(&board->current, memory_order_acquire);
        struct board_slot *slot = &board->slots[current];
        before = atomic_load_explicit(&slot->sequence, memory_order_acquire);
        for (size_t i = 0; i < BOARD_WORDS; i++) {
            words[i] = atomic_load_explicit(&slot->words[i], memory_order_acquire);
        }
        after = atomic_load_explicit(&slot->sequence, memory_order_relaxed);
    } while (before != after || before % 2 != 0);
    memcpy(state, words, sizeof *state);
}
