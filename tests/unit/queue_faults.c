/* SPDX-License-Identifier: MIT */
/* The queue on a disk that fails or is full: clear errors, nothing accepted is lost, nothing
 * refused appears, and all is well again afterwards. */
#include "tests/test.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sqlite3.h>
#include <stdint.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#include "tests/unit/queue_kit.h"

/* ---- A disk whose calls fail on demand: between SQLite and its own file layer ---- */

struct faulty_file {
    sqlite3_file base;
    sqlite3_file *real; /* behind this struct */
};

static sqlite3_vfs *real_vfs;
static int calls_until_failure = -1; /* negative: all is well */
static int failing_calls;            /* how many fail then */
static int fault;                    /* with what */

static int injected(void)
{
    if (calls_until_failure < 0) {
        return SQLITE_OK;
    }
    if (calls_until_failure > 0) {
        calls_until_failure--;
        return SQLITE_OK;
    }
    if (--failing_calls <= 0) {
        calls_until_failure = -1;
    }
    return fault;
}

static sqlite3_file *real_of(sqlite3_file *file)
{
    return ((struct faulty_file *)file)->real;
}

static int faulty_close(sqlite3_file *file)
{
    return real_of(file)->pMethods->xClose(real_of(file));
}

static int faulty_read(sqlite3_file *file, void *bytes, int length, sqlite3_int64 offset)
{
    return real_of(file)->pMethods->xRead(real_of(file), bytes, length, offset);
}

static int faulty_write(sqlite3_file *file, const void *bytes, int length, sqlite3_int64 offset)
{
    int rc = injected();
    if (rc != SQLITE_OK) {
        /* Half of it gets there. */
        real_of(file)->pMethods->xWrite(real_of(file), bytes, length / 2, offset);
        return rc;
    }
    return real_of(file)->pMethods->xWrite(real_of(file), bytes, length, offset);
}

static int faulty_truncate(sqlite3_file *file, sqlite3_int64 size)
{
    return real_of(file)->pMethods->xTruncate(real_of(file), size);
}

static int faulty_sync(sqlite3_file *file, int flags)
{
    int rc = injected();
    return rc != SQLITE_OK ? rc : real_of(file)->pMethods->xSync(real_of(file), flags);
}

static int faulty_size(sqlite3_file *file, sqlite3_int64 *size)
{
    return real_of(file)->pMethods->xFileSize(real_of(file), size);
}

static int faulty_lock(sqlite3_file *file, int lock)
{
    return real_of(file)->pMethods->xLock(real_of(file), lock);
}

static int faulty_unlock(sqlite3_file *file, int lock)
{
    return real_of(file)->pMethods->xUnlock(real_of(file), lock);
}

static int faulty_reserved(sqlite3_file *file, int *reserved)
{
    return real_of(file)->pMethods->xCheckReservedLock(real_of(file), reserved);
}

static int faulty_control(sqlite3_file *file, int what, void *argument)
{
    return real_of(file)->pMethods->xFileControl(real_of(file), what, argument);
}

static int faulty_sector(sqlite3_file *file)
{
    return real_of(file)->pMethods->xSectorSize(real_of(file));
}

static int faulty_traits(sqlite3_file *file)
{
    return real_of(file)->pMethods->xDeviceCharacteristics(real_of(file));
}

static int faulty_shm_map(sqlite3_file *file, int page, int size, int extend, void volatile **at)
{
    return real_of(file)->pMethods->xShmMap(real_of(file), page, size, extend, at);
}

static int faulty_shm_lock(sqlite3_file *file, int offset, int count, int flags)
{
    return real_of(file)->pMethods->xShmLock(real_of(file), offset, count, flags);
}

static void faulty_shm_barrier(sqlite3_file *file)
{
    real_of(file)->pMethods->xShmBarrier(real_of(file));
}

static int faulty_shm_unmap(sqlite3_file *file, int delete_it)
{
    return real_of(file)->pMethods->xShmUnmap(real_of(file), delete_it);
}

static int faulty_open(sqlite3_vfs *vfs, sqlite3_filename name, sqlite3_file *file, int flags,
                       int *out_flags)
{
    static const sqlite3_io_methods methods = {
        .iVersion = 2,
        .xClose = faulty_close,
        .xRead = faulty_read,
        .xWrite = faulty_write,
        .xTruncate = faulty_truncate,
        .xSync = faulty_sync,
        .xFileSize = faulty_size,
        .xLock = faulty_lock,
        .xUnlock = faulty_unlock,
        .xCheckReservedLock = faulty_reserved,
        .xFileControl = faulty_control,
        .xSectorSize = faulty_sector,
        .xDeviceCharacteristics = faulty_traits,
        .xShmMap = faulty_shm_map,
        .xShmLock = faulty_shm_lock,
        .xShmBarrier = faulty_shm_barrier,
        .xShmUnmap = faulty_shm_unmap,
    };
    struct faulty_file *faulty = (struct faulty_file *)file;
    (void)vfs;
    faulty->real = (sqlite3_file *)(faulty + 1);
    faulty->base.pMethods = NULL;
    int rc = real_vfs->xOpen(real_vfs, name, faulty->real, flags, out_flags);
    if (faulty->real->pMethods != NULL) {
        faulty->base.pMethods = &methods;
    }
    return rc;
}

static void install_faulty_disk(void)
{
    static sqlite3_vfs faulty;
    real_vfs = sqlite3_vfs_find(NULL);
    faulty = *real_vfs;
    faulty.zName = "faulty";
    faulty.pNext = NULL;
    faulty.szOsFile = (int)sizeof(struct faulty_file) + real_vfs->szOsFile;
    faulty.xOpen = faulty_open;
    sqlite3_vfs_register(&faulty, 1);
}

static void fail_after(int calls, int count, int code)
{
    fault = code;
    failing_calls = count;
    calls_until_failure = calls;
}

/* ---- Tests ---- */

/* How many jobs have that text. */
static int count_text(struct queue *queue, const char *text)
{
    struct job_info infos[200];
    int count = 0;
    size_t found = queue_list(queue, 0, infos, 200);
    for (size_t i = 0; i < found; i++) {
        struct job job = {0};
        EXPECT(queue_load(queue, infos[i].id, &job, NULL) == 0);
        count += strcmp(job.prompt.text, text) == 0;
        job_finish(&job);
    }
    return count;
}

/* The disk fails at its calls'th call, for `count` calls; before, then and afterwards a prompt. */
static bool push_with_fault(int calls, int count, int code, int expected)
{
    struct error err = {0};
    struct prompt prompt = kit_prompt("second");
    struct job_request request = {.prompt = &prompt};
    struct queue_counts counts;
    int64_t id;
    scratch_clear();
    struct queue *queue = kit_open(0);
    EXPECT(kit_push(queue, "first") == 1);
    fail_after(calls, count, code);
    int rc = queue_push(queue, &request, 1, NULL, &id, &err);
    bool reached = calls_until_failure <= 0;
    fail_after(-1, 0, 0);
    EXPECT(rc == 0 || rc == expected, "call %d: %d %s", calls, rc, err.text);
    EXPECT(rc == 0 || strstr(err.text, "queue.db") != NULL, "%s", err.text);
    queue_counts(queue, &counts);
    EXPECT(counts.jobs == (rc == 0 ? 2 : 1) && count_text(queue, "second") == (rc == 0));
    EXPECT(kit_push(queue, "third") > 1, "well again after failure at call %d", calls);
    queue_close(queue);
    queue = kit_open(0);
    EXPECT(count_text(queue, "first") == 1 && count_text(queue, "third") == 1);
    EXPECT(count_text(queue, "second") == (rc == 0), "call %d: %d", calls, rc);
    queue_close(queue);
    prompt_finish(&prompt);
    return reached;
}

static void test_push_faults(void)
{
    static const struct {
        int code, expected;
    } kinds[] = {{SQLITE_IOERR_WRITE, -EIO}, {SQLITE_IOERR_FSYNC, -EIO}, {SQLITE_FULL, -ENOSPC}};
    int refused = 0;
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        for (int calls = 0; calls < 100; calls++) {
            if (!push_with_fault(calls, 1000, kinds[i].code, kinds[i].expected)) {
                break;
            }
            push_with_fault(calls, 1, kinds[i].code, kinds[i].expected);
            refused++;
        }
    }
    EXPECT(refused >= 9, "only %d failures were injected", refused);
}

/* A job that can't be marked as done is still running, and can be once the disk is well. */
static void test_other_faults(void)
{
    struct error err = {0};
    struct job job = {0};
    struct job_info info;
    struct job_result done = {.state = JOB_DONE, .image = "x.png", .vram_csv = "0,1\n"};
    scratch_clear();
    struct queue *queue = kit_open(0);
    kit_push(queue, "first");
    fail_after(0, 1000, SQLITE_IOERR_WRITE);
    EXPECT(queue_claim(queue, NULL, NULL, &job, &err) == -EIO);
    EXPECT(queue_find(queue, 1, &info) && info.state == JOB_WAITING);
    fail_after(-1, 0, 0);
    EXPECT(queue_claim(queue, NULL, NULL, &job, &err) == 0 && job.info.id == 1, "%s", err.text);
    job_finish(&job);
    fail_after(0, 1000, SQLITE_FULL);
    EXPECT(queue_finish(queue, 1, &done, &err) == -ENOSPC);
    EXPECT(strstr(err.text, "make room") != NULL, "%s", err.text);
    EXPECT(queue_find(queue, 1, &info) && info.state == JOB_RUNNING && !info.has_image);
    EXPECT(queue_setting_set(queue, "k", "v", &err) == -ENOSPC);
    EXPECT(queue_trouble(queue, &err) == -ENOSPC && strstr(err.text, "queue.db") != NULL);
    EXPECT(queue_probe(queue, &err) == -ENOSPC);
    EXPECT(queue_claim(queue, NULL, NULL, &job, &err) == -EAGAIN &&
           queue_trouble(queue, &err) == -ENOSPC);
    fail_after(-1, 0, 0);
    EXPECT(queue_cancel(queue, 7, &err) == -ENOENT && queue_trouble(queue, &err) == -ENOSPC,
           "what writes nothing says nothing of the disk");
    EXPECT(queue_probe(queue, &err) == 0 && queue_trouble(queue, &err) == 0);
    EXPECT(queue_finish(queue, 1, &done, &err) == 0, "%s", err.text);
    queue_close(queue);
    queue = kit_open(0);
    EXPECT(queue_find(queue, 1, &info) && info.state == JOB_DONE && info.has_image);
    queue_close(queue);
}

/* A small file system of our own, seen by this process alone. */
static bool mount_small(const char *folder)
{
    if (unshare(CLONE_NEWNS) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) {
        return false;
    }
    return mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
           mount("tmpfs", folder, "tmpfs", 0, "size=1m,mode=0700") == 0;
}

static void test_full_disk(void)
{
    struct queue_options options = {.folder = scratch_folder};
    struct queue *queue;
    struct error err = {0};
    char text[2000];
    int64_t accepted = 0;
    int64_t rc;
    scratch_clear();
    if (!mount_small(scratch_folder)) {
        printf("a full disk isn't tested: no right to mount a tmpfs\n");
        return;
    }
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    queue = kit_open(0);
    while ((rc = kit_push(queue, text)) > 0 && accepted < 2000) {
        accepted++;
    }
    EXPECT(rc == -ENOSPC && accepted > 10, "%lld after %lld", (long long)rc, (long long)accepted);
    for (int i = 0; i < 20; i++) {
        EXPECT(kit_push(queue, text) < 0 || ++accepted > 0);
    }
    struct queue_counts counts;
    queue_counts(queue, &counts);
    EXPECT((int64_t)counts.jobs == accepted);
    EXPECT(mount("none", scratch_folder, NULL, MS_REMOUNT, "size=4m") == 0);
    EXPECT(kit_push(queue, "afterwards") > accepted, "room was made");
    queue_close(queue);
    queue = kit_open(0);
    queue_counts(queue, &counts);
    EXPECT((int64_t)counts.jobs == accepted + 1, "%zu of %lld", counts.jobs,
           (long long)accepted + 1);
    EXPECT(queue_list(queue, 0, &(struct job_info){0}, 1) == 1);
    queue_close(queue);

    /* Not even the database fits. */
    scratch_clear();
    int fd = open(scratch_path("filler"), O_CREAT | O_WRONLY, 0600);
    while (write(fd, text, sizeof text) > 0) {
    }
    close(fd);
    EXPECT(queue_open(&queue, &options, &err) == -ENOSPC, "%s", err.text);
    unlink(scratch_path("filler"));
    queue = kit_open(0);
    EXPECT(kit_push(queue, "fits") == 1);
    queue_close(queue);
    umount(scratch_folder);
}

int main(void)
{
    scratch_start();
    install_faulty_disk();
    test_push_faults();
    test_other_faults();
    test_full_disk();
    scratch_finish();
    return test_finish();
}
