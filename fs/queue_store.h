/* SPDX-License-Identifier: MIT */
/*
 * The queue's database: one connection to SQLite, its schema and its statements. A connection
 * belongs to one thread at a time; queue.c sees to that.
 */
#ifndef FLUXFS_FS_QUEUE_STORE_H
#define FLUXFS_FS_QUEUE_STORE_H

#include <sqlite3.h>

#include "fs/queue_index.h"

enum statement {
    STORE_BEGIN,
    STORE_COMMIT,
    STORE_ROLLBACK,
    STORE_ADD,
    STORE_ENTRY,
    STORE_ENTRIES,
    STORE_JOB,
    STORE_FIRST,
    STORE_START,
    STORE_SETTLE,
    STORE_FINISH,
    STORE_RESULT,
    STORE_WAIT,
    STORE_CANCEL,
    STORE_CANCELLING,
    STORE_PLACE,
    STORE_NEIGHBOURS,
    STORE_WAITING,
    STORE_OF_IMAGE,
    STORE_DROP_IMAGE,
    STORE_REMOVE,
    STORE_REMOVE_RESULT,
    STORE_SETTING,
    STORE_SETTINGS,
    STORE_SET_SETTING,
    STORE_REMOVE_SETTING,
    STORE_LAST_POSITION,
    STORE_LAST_ID,
    STORE_STATEMENTS
};

struct store {
    sqlite3 *db;
    char *path; /* of the file; owned */
    sqlite3_stmt *statements[STORE_STATEMENTS];
    bool broken; /* a failure after which the connection is not to be trusted */
    bool failed; /* some call failed since the user cleared this */
};

/* Opens the connection: WAL, synchronous FULL. On failure there is nothing to close. */
int store_open(struct store *store, const char *path, struct error *err);
void store_close(struct store *store);

/* Closes and opens again. On failure the store stays broken, and can be tried again. */
int store_reopen(struct store *store, struct error *err);

/* Empties the journal, outside of a transaction, if the disk has room for what it holds and nobody
 * reads: what it has grown to is free then. Else nothing happens. */
void store_shorten(struct store *store);

/* Brings the schema up to date, or makes it. EINVAL if it is newer than we know. */
int store_migrate(struct store *store, struct error *err);

/* Runs SQL without results. */
int store_execute(struct store *store, const char *sql, struct error *err);

/* Binds (format: i int64_t, d double, t const char * or NULL for "", n SQL NULL if the int64_t is
 * negative), and steps once. Returns 1 with a row, which stands until store_done; 0 when there is
 * none; else a negative errno that names the file. */
int store_run(struct store *store, enum statement statement, struct error *err, const char *format,
              ...);
int store_next(struct store *store, enum statement statement, struct error *err);
void store_done(struct store *store, enum statement statement);

int64_t store_int(struct store *store, enum statement statement, int column);
const char *store_text(struct store *store, enum statement statement, int column);

/* From a row of STORE_ENTRY or STORE_ENTRIES; and of STORE_JOB. Failure: −ENOMEM. */
int store_read_entry(struct store *store, enum statement statement, struct entry *entry,
                     struct error *err);
int store_read_job(struct store *store, struct job *job, struct error *err);

#endif
