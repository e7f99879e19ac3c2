/* SPDX-License-Identifier: MIT */
#include "fs/queue_store.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Each step brings a database of the version before it up by one; what is written here has run on
 * people's disks and never changes. Long texts stand last in a row, and those that only a finished
 * job has in a table of their own, so that reading the index at the start touches neither. */
static const char *const migrations[] = {
    "CREATE TABLE jobs ("
    " id INTEGER PRIMARY KEY AUTOINCREMENT, state INTEGER NOT NULL,"
    " cancelling INTEGER NOT NULL DEFAULT 0, priority INTEGER NOT NULL, position INTEGER NOT NULL,"
    " uid INTEGER NOT NULL, gid INTEGER NOT NULL, created_ns INTEGER NOT NULL,"
    " started_ns INTEGER NOT NULL DEFAULT 0, finished_ns INTEGER NOT NULL DEFAULT 0,"
    " changed_ns INTEGER NOT NULL, text_bytes INTEGER NOT NULL,"
    " error_bytes INTEGER NOT NULL DEFAULT 0, timing_bytes INTEGER NOT NULL DEFAULT 0,"
    " vram_bytes INTEGER NOT NULL DEFAULT 0, image TEXT NOT NULL DEFAULT '',"
    " source TEXT NOT NULL, source_digest INTEGER NOT NULL, steps INTEGER NOT NULL,"
    " width_px INTEGER NOT NULL, height_px INTEGER NOT NULL, guidance REAL NOT NULL,"
    " true_cfg REAL NOT NULL, seed INTEGER, given INTEGER NOT NULL, name TEXT NOT NULL,"
    " text TEXT NOT NULL, negative TEXT NOT NULL);"
    "CREATE INDEX jobs_waiting ON jobs (priority DESC, position, id) WHERE state = 0;"
    "CREATE TABLE results (id INTEGER PRIMARY KEY, error TEXT NOT NULL, timing TEXT NOT NULL,"
    " vram TEXT NOT NULL);"
    "CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;",
    "CREATE INDEX jobs_image ON jobs (image) WHERE image <> '';",
};

enum { SCHEMA_VERSION = sizeof migrations / sizeof migrations[0] };

#define ENTRY_COLUMNS                                                                              \
    "id, state, cancelling, priority, position, uid, gid, created_ns, started_ns, finished_ns, "   \
    "changed_ns, text_bytes, error_bytes, timing_bytes, vram_bytes, image, source, source_digest"
#define JOB_COLUMNS                                                                                \
    "steps, width_px, height_px, guidance, true_cfg, seed, given, name, text, negative, "          \
    "coalesce(error, ''), coalesce(timing, ''), coalesce(vram, '')"
#define WAITING_ORDER " WHERE state = 0 ORDER BY priority DESC, position, id "

enum { JOB_FIRST_COLUMN = 18 };

static const char *const statement_sql[STORE_STATEMENTS] = {
    [STORE_BEGIN] = "BEGIN IMMEDIATE",
    [STORE_COMMIT] = "COMMIT",
    [STORE_ROLLBACK] = "ROLLBACK",
    [STORE_ADD] = "INSERT INTO jobs (state, priority, position, uid, gid, created_ns, changed_ns,"
                  " text_bytes, source, source_digest, steps, width_px, height_px, guidance,"
                  " true_cfg, seed, given, name, text, negative)"
                  " VALUES (0, ?, ?, ?, ?, ?5, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15,"
                  " ?16, ?17, ?18)",
    [STORE_ENTRY] = "SELECT " ENTRY_COLUMNS " FROM jobs WHERE id = ?",
    [STORE_ENTRIES] = "SELECT " ENTRY_COLUMNS " FROM jobs ORDER BY id",
    [STORE_JOB] = "SELECT jobs." ENTRY_COLUMNS ", " JOB_COLUMNS
                  " FROM jobs LEFT JOIN results USING (id) WHERE jobs.id = ?",
    [STORE_FIRST] = "SELECT id FROM jobs" WAITING_ORDER "LIMIT 1",
    [STORE_START] = "UPDATE jobs SET state = 1, started_ns = ?2, changed_ns = ?2 WHERE id = ?1",
    [STORE_SETTLE] = "UPDATE jobs SET steps = ?2, width_px = ?3, height_px = ?4, guidance = ?5,"
                     " true_cfg = ?6, seed = ?7, changed_ns = ?8 WHERE id = ?1",
    [STORE_FINISH] = "UPDATE jobs SET state = ?2, cancelling = 0, finished_ns = ?3,"
                     " changed_ns = ?3, image = ?4, error_bytes = ?5, timing_bytes = ?6,"
                     " vram_bytes = ?7 WHERE id = ?1",
    [STORE_RESULT] = "INSERT OR REPLACE INTO results (id, error, timing, vram) VALUES (?, ?, ?, ?)",
    [STORE_WAIT] = "UPDATE jobs SET state = 0, cancelling = 0, started_ns = 0, finished_ns = 0,"
                   " changed_ns = ?2, position = ?3, image = '', error_bytes = 0,"
                   " timing_bytes = 0, vram_bytes = 0 WHERE id = ?1",
    [STORE_CANCEL] = "UPDATE jobs SET state = 4, cancelling = 0, finished_ns = ?2,"
                     " changed_ns = ?2 WHERE id = ?1",
    [STORE_CANCELLING] = "UPDATE jobs SET cancelling = 1, changed_ns = ?2 WHERE id = ?1",
    [STORE_PLACE] = "UPDATE jobs SET priority = ?2, position = ?3, changed_ns = ?4 WHERE id = ?1",
    [STORE_NEIGHBOURS] = "SELECT id, priority, position FROM jobs WHERE state = 0 AND id <> ?1"
                         " ORDER BY priority DESC, position, id LIMIT 2 OFFSET ?2",
    [STORE_WAITING] = "SELECT id, priority FROM jobs" WAITING_ORDER,
    [STORE_OF_IMAGE] = "SELECT id FROM jobs WHERE image = ?1 AND image <> '' AND id <> ?2",
    [STORE_DROP_IMAGE] = "UPDATE jobs SET image = '', changed_ns = ?2 WHERE id = ?1",
    [STORE_REMOVE] = "DELETE FROM jobs WHERE id = ?",
    [STORE_REMOVE_RESULT] = "DELETE FROM results WHERE id = ?",
    [STORE_SETTING] = "SELECT value FROM settings WHERE key = ?",
    [STORE_SETTINGS] = "SELECT key, value FROM settings ORDER BY key",
    [STORE_SET_SETTING] = "INSERT OR REPLACE INTO settings (key, value) VALUES (?, ?)",
    [STORE_REMOVE_SETTING] = "DELETE FROM settings WHERE key = ?",
    [STORE_LAST_POSITION] = "SELECT coalesce(max(position), 0) FROM jobs",
    [STORE_LAST_ID] = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'jobs'",
};

static int errno_of(struct store *store, int rc)
{
    int system = store->db == NULL ? 0 : sqlite3_system_errno(store->db);
    switch (rc & 0xff) {
    case SQLITE_FULL:
        return ENOSPC;
    case SQLITE_NOMEM:
        return ENOMEM;
    case SQLITE_READONLY:
        return EROFS;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return EBUSY;
    case SQLITE_NOTADB:
        return EINVAL;
    case SQLITE_CANTOPEN:
        return system != 0 ? system : EACCES;
    default:
        return system == ENOSPC || system == EDQUOT ? system : EIO;
    }
}

static int store_error(struct store *store, int rc, struct error *err)
{
    int errnum = errno_of(store, rc);
    const char *why = store->db == NULL ? sqlite3_errstr(rc) : sqlite3_errmsg(store->db);
    const char *hint = "";
    if (errnum == ENOSPC) {
        hint = " (make room on the disk of the state folder)";
    } else if (errnum == EINVAL) {
        hint = " (move it away to start with an empty queue)";
    } else if ((rc & 0xff) ==
               SQLITE_CORRUPT) { /* which SQLite also says of a disk that can't read */
        hint = " (look after the disk; if that is sound, a backup or an empty folder helps)";
    }
    /* A full disk leaves the connection sound; after anything else it is opened anew. */
    store->failed = true;
    store->broken = errnum != ENOSPC && errnum != EBUSY;
    return error_set(err, errnum, "%s: %s%s", store->path, why, hint);
}

int store_execute(struct store *store, const char *sql, struct error *err)
{
    int rc = sqlite3_exec(store->db, sql, NULL, NULL, NULL);
    return rc == SQLITE_OK ? 0 : store_error(store, rc, err);
}

static void disconnect(struct store *store)
{
    for (int i = 0; i < STORE_STATEMENTS; i++) {
        sqlite3_finalize(store->statements[i]);
        store->statements[i] = NULL;
    }
    sqlite3_close(store->db);
    store->db = NULL;
}

static int connect(struct store *store, struct error *err)
{
    const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX;
    int rc = sqlite3_open_v2(store->path, &store->db, flags, NULL);
    if (rc != SQLITE_OK) {
        rc = store_error(store, rc, err);
    } else {
        sqlite3_extended_result_codes(store->db, 1);
        sqlite3_busy_timeout(store->db, 5000);
        rc = store_execute(store, "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;", err);
    }
    if (rc != 0) {
        disconnect(store);
    }
    store->broken = rc != 0;
    return rc;
}

int store_open(struct store *store, const char *path, struct error *err)
{
    *store = (struct store){.path = strdup(path)};
    if (store->path == NULL) {
        return error_set(err, ENOMEM, "%s: out of memory", path);
    }
    int rc = connect(store, err);
    if (rc != 0) {
        store_close(store);
    }
    return rc;
}

void store_close(struct store *store)
{
    disconnect(store);
    free(store->path);
    *store = (struct store){0};
}

int store_reopen(struct store *store, struct error *err)
{
    disconnect(store);
    return connect(store, err);
}

void store_shorten(struct store *store)
{
    if (store->db != NULL) {
        sqlite3_wal_checkpoint_v2(store->db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
    }
}

static int read_version(struct store *store, int *version, struct error *err)
{
    sqlite3_stmt *statement = NULL;
    int rc = sqlite3_prepare_v2(store->db, "PRAGMA user_version", -1, &statement, NULL);
    if (rc == SQLITE_OK) {
        rc = sqlite3_step(statement);
    }
    if (rc != SQLITE_ROW) {
        rc = store_error(store, rc, err);
    } else {
        *version = sqlite3_column_int(statement, 0);
        rc = 0;
    }
    sqlite3_finalize(statement);
    return rc;
}

int store_migrate(struct store *store, struct error *err)
{
    int version = 0;
    int rc = read_version(store, &version, err);
    if (rc == 0 && (version < 0 || version > SCHEMA_VERSION)) {
        return error_set(
            err, EINVAL,
            "%s: written by a newer fluxfs (schema %d, this one knows %d): use that one",
            store->path, version, SCHEMA_VERSION);
    }
    for (; rc == 0 && version < SCHEMA_VERSION; version++) {
        char done[64];
        snprintf(done, sizeof done, "PRAGMA user_version = %d; COMMIT;", version + 1);
        rc = store_execute(store, "BEGIN IMMEDIATE", err);
        if (rc == 0) {
            rc = store_execute(store, migrations[version], err);
        }
        if (rc == 0) {
            rc = store_execute(store, done, err);
        }
        if (rc != 0) {
            store_execute(store, "ROLLBACK", NULL);
        }
    }
    return rc;
}

static int bind_all(sqlite3_stmt *statement, const char *format, va_list args)
{
    int rc = SQLITE_OK;
    for (int i = 1; format[i - 1] != '\0' && rc == SQLITE_OK; i++) {
        int64_t number;
        const char *text;
        switch (format[i - 1]) {
        case 'd':
            rc = sqlite3_bind_double(statement, i, va_arg(args, double));
            break;
        case 't':
            text = va_arg(args, const char *);
            rc = sqlite3_bind_text(statement, i, text == NULL ? "" : text, -1, SQLITE_STATIC);
            break;
        default:
            number = va_arg(args, int64_t);
            rc = format[i - 1] == 'n' && number < 0 ? sqlite3_bind_null(statement, i)
                                                    : sqlite3_bind_int64(statement, i, number);
        }
    }
    return rc;
}

int store_run(struct store *store, enum statement statement, struct error *err, const char *format,
              ...)
{
    int rc = SQLITE_OK;
    sqlite3_stmt **prepared = &store->statements[statement];
    if (*prepared == NULL) {
        rc = sqlite3_prepare_v3(store->db, statement_sql[statement], -1, SQLITE_PREPARE_PERSISTENT,
                                prepared, NULL);
    }
    if (rc == SQLITE_OK) {
        va_list args;
        va_start(args, format);
        rc = bind_all(*prepared, format, args);
        va_end(args);
    }
    if (rc != SQLITE_OK) {
        return store_error(store, rc, err);
    }
    return store_next(store, statement, err);
}

int store_next(struct store *store, enum statement statement, struct error *err)
{
    int rc = sqlite3_step(store->statements[statement]);
    if (rc == SQLITE_ROW) {
        return 1;
    }
    if (rc != SQLITE_DONE) {
        rc = store_error(store, rc, err);
    } else {
        rc = 0;
    }
    store_done(store, statement);
    return rc;
}

void store_done(struct store *store, enum statement statement)
{
    sqlite3_reset(store->statements[statement]);
    sqlite3_clear_bindings(store->statements[statement]);
}

int64_t store_int(struct store *store, enum statement statement, int column)
{
    return sqlite3_column_int64(store->statements[statement], column);
}

const char *store_text(struct store *store, enum statement statement, int column)
{
    const char *text = (const char *)sqlite3_column_text(store->statements[statement], column);
    return text == NULL ? "" : text;
}

static char *copy_or_null(const char *text)
{
    return text[0] == '\0' ? NULL : strdup(text);
}

/* The row's numbers; the strings of an entry are in columns 15 and 16. */
static void read_info(struct store *store, enum statement statement, struct job_info *info)
{
    *info = (struct job_info){
        .id = store_int(store, statement, 0),
        .state = (enum job_state)store_int(store, statement, 1),
        .cancelling = store_int(store, statement, 2) != 0,
        .priority = (int)store_int(store, statement, 3),
        .uid = (uid_t)store_int(store, statement, 5),
        .gid = (gid_t)store_int(store, statement, 6),
        .created_ns = store_int(store, statement, 7),
        .started_ns = store_int(store, statement, 8),
        .finished_ns = store_int(store, statement, 9),
        .changed_ns = store_int(store, statement, 10),
        .text_bytes = (uint32_t)store_int(store, statement, 11),
        .error_bytes = (uint32_t)store_int(store, statement, 12),
        .timing_bytes = (uint32_t)store_int(store, statement, 13),
        .vram_bytes = (uint32_t)store_int(store, statement, 14),
        .has_image = store_text(store, statement, 15)[0] != '\0',
    };
    if ((unsigned)info->state >= JOB_STATES) {
        info->state = JOB_FAILED;
    }
}

int store_read_entry(struct store *store, enum statement statement, struct entry *entry,
                     struct error *err)
{
    const char *image = store_text(store, statement, 15);
    const char *source = store_text(store, statement, 16);
    struct entry read = {
        .position = store_int(store, statement, 4),
        .image = copy_or_null(image),
        .source = copy_or_null(source),
        .source_digest = (uint64_t)store_int(store, statement, 17),
    };
    read_info(store, statement, &read.info);
    if ((image[0] != '\0' && read.image == NULL) || (source[0] != '\0' && read.source == NULL)) {
        entry_finish(&read);
        return error_set(err, ENOMEM, "%s: out of memory", store->path);
    }
    *entry = read;
    return 0;
}

static void copy_name(char name[QUEUE_NAME_BYTES], const char *text)
{
    snprintf(name, QUEUE_NAME_BYTES, "%s", text);
}

int store_read_job(struct store *store, struct job *job, struct error *err)
{
    sqlite3_stmt *row = store->statements[STORE_JOB];
    struct job read = {.source_digest = (uint64_t)store_int(store, STORE_JOB, 17)};
    struct prompt_values *values = &read.prompt.values;
    read_info(store, STORE_JOB, &read.info);
    copy_name(read.image, store_text(store, STORE_JOB, 15));
    copy_name(read.source, store_text(store, STORE_JOB, 16));
    values->steps = (int)store_int(store, STORE_JOB, JOB_FIRST_COLUMN);
    values->width_px = (int)store_int(store, STORE_JOB, JOB_FIRST_COLUMN + 1);
    values->height_px = (int)store_int(store, STORE_JOB, JOB_FIRST_COLUMN + 2);
    values->guidance = (float)sqlite3_column_double(row, JOB_FIRST_COLUMN + 3);
    values->true_cfg = (float)sqlite3_column_double(row, JOB_FIRST_COLUMN + 4);
    values->seed_random = sqlite3_column_type(row, JOB_FIRST_COLUMN + 5) == SQLITE_NULL;
    values->seed = (uint64_t)store_int(store, STORE_JOB, JOB_FIRST_COLUMN + 5);
    values->count = 1;
    read.prompt.given = (unsigned)store_int(store, STORE_JOB, JOB_FIRST_COLUMN + 6);
    snprintf(read.prompt.name, sizeof read.prompt.name, "%s",
             store_text(store, STORE_JOB, JOB_FIRST_COLUMN + 7));
    read.prompt.text = strdup(store_text(store, STORE_JOB, JOB_FIRST_COLUMN + 8));
    read.prompt.negative = strdup(store_text(store, STORE_JOB, JOB_FIRST_COLUMN + 9));
    read.error = strdup(store_text(store, STORE_JOB, JOB_FIRST_COLUMN + 10));
    read.timing_json = strdup(store_text(store, STORE_JOB, JOB_FIRST_COLUMN + 11));
    read.vram_csv = strdup(store_text(store, STORE_JOB, JOB_FIRST_COLUMN + 12));
    if (read.prompt.text == NULL || read.prompt.negative == NULL || read.error == NULL ||
        read.timing_json == NULL || read.vram_csv == NULL) {
        job_finish(&read);
        return error_set(err, ENOMEM, "%s: out of memory", store->path);
    }
    *job = read;
    return 0;
}
