/* SPDX-License-Identifier: MIT */
/*
 * A page source for tests: it watches the rules of a driver, fails when told to, and has streams
 * whose clock the test turns. With `real`, pages come from host_pages and can be written; without,
 * nothing but bookkeeping is behind the addresses, for simulations of any size.
 */
#ifndef FLUXFS_TESTS_FAKE_PAGES_H
#define FLUXFS_TESTS_FAKE_PAGES_H

#include <stdbool.h>

#include "alloc/page_source.h"

enum { FAKE_STREAMS = 8, FAKE_BUSY = 256 };

struct fake_options {
    uint64_t granule_bytes;
    uint64_t total_bytes; /* of the device */
    bool real;
};

/* Memory that work queued on a stream still uses. */
struct fake_busy {
    uintptr_t address;
    uint64_t bytes;
    int stream;
    uint64_t position;
};

struct fake_pages {
    struct page_source source;
    struct page_source *inner; /* NULL: bookkeeping only */
    uint64_t total_bytes;
    const char *fault; /* the first rule that was broken, or NULL */

    uintptr_t base;
    uint64_t place_count;
    uint64_t *places;   /* by page of the reservation: handle + 1 mapped there, or 0 */
    bool *accessible;   /* likewise */
    uint32_t *mappings; /* by handle number: how often mapped */
    bool *live;         /* by handle number: created and not released */
    page_handle *inner_handles;
    uint64_t handle_count, handle_capacity, live_count;
    page_handle *vacant; /* numbers to use again, as a stack */
    uint64_t vacant_count;

    uint64_t calls;       /* that could have failed, so far */
    uint64_t fail_at;     /* this call, counted from 1, fails; 0: none */
    uint64_t fail_repeat; /* and so many after it */
    int fail_code;
    uint64_t unmappable; /* so many maps to come fail with -ENOMEM */
    uint64_t creates, maps, unmaps, records, queries, waits;

    uint64_t queued[FAKE_STREAMS], done[FAKE_STREAMS]; /* positions of work */
    bool instant;                                      /* work is done when it is queued */
    struct fake_busy busy[FAKE_BUSY];
    int busy_count;
};

int fake_pages_create(struct fake_pages **fake, const struct fake_options *options);
void fake_pages_destroy(struct fake_pages *fake);

/* Queues work on a stream that uses some memory until it is done. */
void fake_queue(struct fake_pages *fake, int stream, uintptr_t address, uint64_t bytes);

/* The oldest `count` pieces of work on a stream are done. */
void fake_finish(struct fake_pages *fake, int stream, uint64_t count);

/* Whether queued work of another stream than this one still uses the memory. */
bool fake_is_busy(const struct fake_pages *fake, int stream, uintptr_t address, uint64_t bytes);

#endif
