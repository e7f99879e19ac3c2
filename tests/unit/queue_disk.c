/* SPDX-License-Identifier: MIT */
/* The queue and its file: what can't be opened, older and newer schemas, and that memory says what
 * the disk says. */
#include "tests/test.h"

#include <errno.h>
#include <sqlite3.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "tests/unit/queue_kit.h"

static struct queue *queue;

static void test_refused_folders(void)
{
    struct queue_options options = {.folder = scratch_folder};
    struct queue *other = NULL;
    struct error err = {0};
    char holder[64];
    queue = kit_open(0);
    EXPECT(queue_open(&other, &options, &err) == -EBUSY && other == NULL);
    snprintf(holder, sizeof holder, "another fluxfs (process %d) uses", (int)getpid());
    EXPECT(strstr(err.text, holder) != NULL || strstr(err.text, "another fluxfs uses") != NULL,
           "%s", err.text);
    queue_close(queue);
    scratch_clear();
    scratch_write("queue.db", "This is a letter to my aunt, and quite a long one at that, .......",
                  66);
    EXPECT(queue_open(&other, &options, &err) == -EINVAL, "%s", err.text);
    EXPECT(strstr(err.text, "queue.db") != NULL && strstr(err.text, "move it away") != NULL, "%s",
           err.text);
    options.folder = "/proc/nowhere/at/all";
    EXPECT(queue_open(&other, &options, &err) == -ENOENT, "%s", err.text);
    options.folder = "/dev/null";
    EXPECT(queue_open(&other, &options, &err) == -ENOTDIR, "%s", err.text);
    EXPECT(other == NULL);
    queue_close(NULL);
}

static void run_sql(const char *sql)
{
    sqlite3 *db;
    char *message = NULL;
    if (sqlite3_open(scratch_path("queue.db"), &db) != SQLITE_OK ||
        sqlite3_exec(db, sql, NULL, NULL, &message) != SQLITE_OK) {
        fprintf(stderr, "%s: %s\n", sql, message == NULL ? sqlite3_errmsg(db) : message);
        exit(EXIT_FAILURE);
    }
    sqlite3_close(db);
}

/* A database as schema 1 left it: its jobs and settings are all there afterwards. */
static void test_upgrade(void)
{
    struct error err = {0};
    struct job job = {0};
    char *value;
    run_sql("CREATE TABLE jobs ("
            " id INTEGER PRIMARY KEY AUTOINCREMENT, state INTEGER NOT NULL,"
            " cancelling INTEGER NOT NULL DEFAULT 0, priority INTEGER NOT NULL,"
            " position INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL,"
            " created_ns INTEGER NOT NULL, started_ns INTEGER NOT NULL DEFAULT 0,"
            " finished_ns INTEGER NOT NULL DEFAULT 0, changed_ns INTEGER NOT NULL,"
            " text_bytes INTEGER NOT NULL, error_bytes INTEGER NOT NULL DEFAULT 0,"
            " timing_bytes INTEGER NOT NULL DEFAULT 0, vram_bytes INTEGER NOT NULL DEFAULT 0,"
            " image TEXT NOT NULL DEFAULT '', source TEXT NOT NULL, source_digest INTEGER NOT NULL,"
            " steps INTEGER NOT NULL, width_px INTEGER NOT NULL, height_px INTEGER NOT NULL,"
            " guidance REAL NOT NULL, true_cfg REAL NOT NULL, seed INTEGER, given INTEGER NOT NULL,"
            " name TEXT NOT NULL, text TEXT NOT NULL, negative TEXT NOT NULL);"
            "CREATE INDEX jobs_waiting ON jobs (priority DESC, position, id) WHERE state = 0;"
            "CREATE TABLE results (id INTEGER PRIMARY KEY, error TEXT NOT NULL,"
            " timing TEXT NOT NULL, vram TEXT NOT NULL);"
            "CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;"
            "INSERT INTO jobs VALUES (7, 2, 0, 0, 1, 5, 5, 1, 2, 3, 3, 3, 0, 2, 0, 'a.png', '', 0,"
            " 20, 64, 64, 3.5, 1.0, NULL, 0, '', 'fox', '');"
            "INSERT INTO results VALUES (7, '', '{}', '');"
            "INSERT INTO jobs VALUES (9, 1, 0, 0, 2, 5, 5, 1, 2, 0, 3, 3, 0, 0, 0, '', '', 0,"
            " 20, 64, 64, 3.5, 1.0, 4, 0, '', 'owl', '');"
            "INSERT INTO settings VALUES ('steps', '9');"
            "PRAGMA user_version = 1;");
    queue = kit_open(0);
    EXPECT(queue_load(queue, 7, &job, &err) == 0 && strcmp(job.timing_json, "{}") == 0, "%s",
           err.text);
    EXPECT(strcmp(job.prompt.text, "fox") == 0 && job.prompt.values.seed_random);
    job_finish(&job);
    EXPECT(kit_state(queue, 9) == JOB_WAITING && kit_image_job(queue, "a.png") == 7);
    EXPECT(queue_setting_get(queue, "steps", &value, &err) == 0 && strcmp(value, "9") == 0);
    free(value);
    EXPECT(kit_push(queue, "next") == 10);
    queue_close(queue);

    run_sql("PRAGMA user_version = 3");
    struct queue_options options = {.folder = scratch_folder};
    EXPECT(queue_open(&queue, &options, &err) == -EINVAL);
    EXPECT(strstr(err.text, "newer fluxfs (schema 3") != NULL, "%s", err.text);
}

enum { JOBS = 300 };

/* One change of any kind to any job; many are refused. */
static void change_at_random(uint32_t random, bool may_add)
{
    int64_t id = 1 + (random >> 8) % JOBS;
    struct job_result result = {.state = JOB_DONE, .image = random % 3 == 0 ? "same.png" : NULL};
    struct queue_counts counts;
    struct job job = {0};
    switch (random >> 28) {
    case 0:
    case 1:
    case 2:
    case 3:
        queue_counts(queue, &counts);
        if (may_add && counts.last_id < JOBS) {
            kit_push(queue, "x");
        }
        break;
    case 4:
    case 5:
        if (queue_claim(queue, NULL, NULL, &job, NULL) == 0) {
            job_finish(&job);
        }
        break;
    case 6:
    case 7:
        queue_finish(queue, id, &result, NULL);
        break;
    case 8:
        queue_remove(queue, id, NULL);
        break;
    case 9:
        queue_cancel(queue, id, NULL);
        break;
    case 10:
        queue_retry(queue, id, NULL);
        break;
    case 11:
        queue_release(queue, id, NULL);
        break;
    case 12:
        queue_set_priority(queue, id, (int)(random % 3), NULL);
        break;
    default:
        queue_move(queue, id, random % 20, NULL);
    }
}

/* Many changes at random, then: what memory says is what the disk says. */
static void test_memory_is_disk(void)
{
    static struct job_info before[JOBS], after[JOBS];
    static int64_t order_before[JOBS], order_after[JOBS];
    struct error err = {0};
    uint32_t state = 12345;
    queue = kit_open(0);
    for (int i = 0; i < 1500; i++) {
        state = state * 1664525U + 1013904223U;
        change_at_random(state, i < 1400);
    }
    struct job_info running[JOBS];
    size_t count = queue_order(queue, 0, running, JOBS);
    for (size_t i = 0; i < count && running[i].state == JOB_RUNNING; i++) {
        queue_release(queue, running[i].id, &err);
    }
    size_t jobs = queue_list(queue, 0, before, JOBS);
    size_t ordered = kit_order(queue, order_before, JOBS);
    int64_t named = kit_image_job(queue, "same.png");
    queue_close(queue);
    queue = kit_open(0);
    EXPECT(queue_list(queue, 0, after, JOBS) == jobs && jobs > 50, "%zu", jobs);
    for (size_t i = 0; i < jobs; i++) {
        EXPECT(before[i].id == after[i].id && before[i].state == after[i].state);
        EXPECT(before[i].priority == after[i].priority &&
               before[i].has_image == after[i].has_image);
        EXPECT(before[i].changed_ns == after[i].changed_ns);
    }
    EXPECT(kit_order(queue, order_after, JOBS) == ordered && ordered > 5, "%zu", ordered);
    EXPECT(memcmp(order_before, order_after, ordered * sizeof order_before[0]) == 0);
    EXPECT(kit_image_job(queue, "same.png") == named && named > 0);
    queue_close(queue);
}

int main(void)
{
    static void (*const tests[])(void) = {test_refused_folders, test_upgrade, test_memory_is_disk};
    scratch_run(tests, sizeof tests / sizeof tests[0]);
    return test_finish();
}
