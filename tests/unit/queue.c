/* SPDX-License-Identifier: MIT */
/* The queue as people see it: order, states, limits, what survives closing and what is refused. */
#include "tests/test.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#include "fs/queue_private.h"
#include "tests/unit/queue_kit.h"

static struct queue *queue;

static int64_t claim(void)
{
    struct job job = {0};
    struct error err = {0};
    if (!EXPECT(queue_claim(queue, NULL, NULL, &job, &err) == 0, "%s", err.text)) {
        return 0;
    }
    int64_t id = job.info.id;
    EXPECT(job.info.state == JOB_RUNNING && job.info.started_ns > 0);
    job_finish(&job);
    return id;
}

static void test_push_and_load(void)
{
    struct prompt prompt = kit_prompt("a fox --steps 7 --size 64x32 --guidance 0.1 --seed "
                                      "9223372036854775807 --name N --negative \"no\\nblur\"");
    struct job_request requests[2] = {{.prompt = &prompt,
                                       .priority = 5,
                                       .uid = 10,
                                       .gid = 20,
                                       .source = "fox.txt",
                                       .source_digest = UINT64_MAX},
                                      {.prompt = &prompt}};
    int64_t ids[2];
    struct error err = {0};
    struct job job = {0};
    struct queue_counts counts;
    queue = kit_open(0);
    queue_counts(queue, &counts);
    EXPECT(counts.jobs == 0 && counts.last_id == 0);
    EXPECT(queue_claim(queue, NULL, NULL, &job, &err) == -EAGAIN);
    EXPECT(queue_push(queue, requests, 2, NULL, ids, &err) == 0, "%s", err.text);
    EXPECT(ids[0] == 1 && ids[1] == 2);
    queue_close(queue);
    queue = kit_open(0);
    EXPECT(queue_load(queue, 1, &job, &err) == 0, "%s", err.text);
    EXPECT(strcmp(job.prompt.text, "a fox") == 0 && strcmp(job.prompt.negative, "no\nblur") == 0);
    EXPECT(strcmp(job.prompt.name, "N") == 0 && strcmp(job.source, "fox.txt") == 0);
    EXPECT(job.prompt.values.steps == 7 && job.prompt.values.guidance == 0.1F);
    EXPECT(job.prompt.values.true_cfg == 2 && job.prompt.values.width_px == 64);
    EXPECT(job.prompt.values.height_px == 32 && job.prompt.values.seed == INT64_MAX);
    EXPECT(!job.prompt.values.seed_random && job.prompt.given == prompt.given);
    EXPECT(job.source_digest == UINT64_MAX && job.info.priority == 5);
    EXPECT(job.info.uid == 10 && job.info.gid == 20 && job.info.text_bytes == 5);
    EXPECT(job.info.created_ns > 0 && job.info.started_ns == 0 && !job.info.has_image);
    EXPECT(job.image[0] == '\0' && job.error[0] == '\0' && job.timing_json[0] == '\0');
    job_finish(&job);
    EXPECT(queue_load(queue, 3, &job, &err) == -ENOENT, "%s", err.text);
    int64_t id = 0;
    uint64_t digest = 0;
    EXPECT(queue_find_source(queue, "fox.txt", &id, &digest) && id == 1 && digest == UINT64_MAX);
    EXPECT(!queue_find_source(queue, "cat.txt", &id, &digest));
    queue_close(queue);
    prompt_finish(&prompt);
}

static void test_life_of_a_job(void)
{
    struct error err = {0};
    struct job job = {0};
    char image[QUEUE_NAME_BYTES];
    struct prompt_values values = {.steps = 20,
                                   .width_px = 256,
                                   .height_px = 512,
                                   .count = 1,
                                   .guidance = 2.5F,
                                   .true_cfg = 1,
                                   .seed = 42};
    struct job_result done = {.state = JOB_DONE,
                              .image = "0001-fox.png",
                              .timing_json = "{}",
                              .vram_csv = "t,used\n0,1\n"};
    queue = kit_open(0);
    int64_t a = kit_push(queue, "fox");
    EXPECT(queue_settle(queue, a, &values, &err) == -EINVAL, "%s", err.text);
    EXPECT(queue_finish(queue, a, &done, &err) == -EINVAL &&
           queue_release(queue, a, &err) == -EINVAL);
    EXPECT(queue_retry(queue, a, &err) == -EINVAL);
    EXPECT(claim() == a && kit_state(queue, a) == JOB_RUNNING && queue_rank(queue, a) == 0);
    EXPECT(queue_set_priority(queue, a, 3, &err) == -EINVAL &&
           queue_move(queue, a, 0, &err) == -EINVAL);
    EXPECT(queue_remove(queue, a, &err) == -EBUSY, "%s", err.text);
    EXPECT(queue_settle(queue, a, &values, &err) == 0, "%s", err.text);
    EXPECT(queue_finish(queue, a, &done, &err) == 0, "%s", err.text);
    EXPECT(queue_load(queue, a, &job, &err) == 0);
    EXPECT(job.info.state == JOB_DONE && job.info.has_image && job.info.finished_ns > 0);
    EXPECT(strcmp(job.vram_csv, "t,used\n0,1\n") == 0 && job.info.vram_bytes == 11);
    EXPECT(strcmp(job.timing_json, "{}") == 0 && job.info.timing_bytes == 2);
    EXPECT(job.prompt.values.seed == 42 && !job.prompt.values.seed_random);
    EXPECT(job.prompt.values.steps == 20 && job.prompt.values.height_px == 512);
    job_finish(&job);
    EXPECT(queue_image(queue, a, image) && strcmp(image, "0001-fox.png") == 0);
    EXPECT(kit_image_job(queue, "0001-fox.png") == a && queue_rank(queue, a) == -1);
    queue_close(queue);
}

static void test_endings(void)
{
    struct error err = {0};
    struct job job = {0};
    char image[QUEUE_NAME_BYTES];
    struct job_result done = {.state = JOB_DONE, .image = "0001-fox.png"};
    struct job_result failed = {.state = JOB_FAILED, .error = "out of luck"};
    queue = kit_open(0);
    int64_t a = kit_push(queue, "fox"), b = kit_push(queue, "cat"), c = kit_push(queue, "owl");
    EXPECT(claim() == a && queue_finish(queue, a, &done, &err) == 0);

    EXPECT(claim() == b && queue_finish(queue, b, &failed, &err) == 0);
    EXPECT(queue_load(queue, b, &job, &err) == 0 && strcmp(job.error, "out of luck") == 0);
    EXPECT(job.info.error_bytes == 11 && job.info.state == JOB_FAILED);
    job_finish(&job);
    EXPECT(queue_retry(queue, b, &err) == 0 && kit_state(queue, b) == JOB_WAITING);
    EXPECT(queue_load(queue, b, &job, &err) == 0 && job.error[0] == '\0' &&
           job.info.error_bytes == 0);
    job_finish(&job);
    EXPECT(claim() == c, "a retried job is last");
    EXPECT(queue_release(queue, c, &err) == 0 && claim() == c, "a released one is first again");
    EXPECT(queue_cancel(queue, c, &err) == 0 && kit_state(queue, c) == JOB_RUNNING);
    EXPECT(queue_release(queue, c, &err) == 0 && kit_state(queue, c) == JOB_CANCELLED);
    EXPECT(queue_cancel(queue, c, &err) == -EINVAL, "%s", err.text);
    EXPECT(queue_cancel(queue, b, &err) == 0 && kit_state(queue, b) == JOB_CANCELLED);
    EXPECT(queue_claim(queue, NULL, NULL, &job, &err) == -EAGAIN);

    EXPECT(queue_retry(queue, b, &err) == 0 && claim() == b);
    EXPECT(queue_finish(queue, b, &done, &err) == 0, "the same name again");
    EXPECT(!queue_image(queue, a, image) && kit_image_job(queue, "0001-fox.png") == b);
    EXPECT(queue_forget_image(queue, "0001-fox.png", &err) == 0);
    EXPECT(!queue_image(queue, b, image) && kit_image_job(queue, "0001-fox.png") == 0);
    EXPECT(queue_remove(queue, a, &err) == 0 && kit_state(queue, a) == JOB_STATES);
    EXPECT(queue_load(queue, a, &job, &err) == -ENOENT && queue_remove(queue, a, &err) == -ENOENT);
    EXPECT(queue_cancel(queue, 99, &err) == -ENOENT, "%s", err.text);
    int64_t d = kit_push(queue, "new");
    EXPECT(queue_remove(queue, d, &err) == 0 && kit_push(queue, "newer") == d + 1, "no id twice");
    queue_close(queue);
}

static void expect_order(const char *when, int count, const int64_t *expected)
{
    struct job_info infos[32];
    size_t found = queue_order(queue, 0, infos, 32);
    if (EXPECT(found == (size_t)count, "%s: %zu", when, found)) {
        for (size_t i = 0; i < found; i++) {
            EXPECT(infos[i].id == expected[i], "%s, place %zu: %lld", when, i,
                   (long long)infos[i].id);
            EXPECT(queue_rank(queue, infos[i].id) == (long)i);
        }
    }
}
#define ORDER(when, ...)                                                                           \
    expect_order(when, sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t),                         \
                 (const int64_t[]){__VA_ARGS__})

static void test_order(void)
{
    struct error err = {0};
    struct job_info infos[4];
    queue = kit_open(0);
    for (int i = 1; i <= 5; i++) {
        EXPECT(kit_push(queue, "x") == i);
    }
    EXPECT(queue_set_priority(queue, 4, 10, &err) == 0);
    ORDER("priority", 4, 1, 2, 3, 5);
    EXPECT(queue_set_priority(queue, 1, 101, &err) == -EINVAL &&
           queue_set_priority(queue, 1, -101, &err) == -EINVAL);
    EXPECT(queue_move(queue, 5, 1, &err) == 0);
    ORDER("moved up", 4, 5, 1, 2, 3);
    EXPECT(queue_move(queue, 5, 0, &err) == 0);
    ORDER("moved before another priority", 5, 4, 1, 2, 3);
    EXPECT(queue_find(queue, 5, &infos[0]) && infos[0].priority == 10);
    EXPECT(queue_move(queue, 4, 99, &err) == 0);
    ORDER("moved to the end", 5, 1, 2, 3, 4);
    EXPECT(queue_find(queue, 4, &infos[0]) && infos[0].priority == 0);
    EXPECT(claim() == 5 && claim() == 1);
    ORDER("running first, by id", 1, 5, 2, 3, 4);
    EXPECT(queue_move(queue, 4, 0, &err) == 0);
    ORDER("rank counts those that wait", 1, 5, 4, 2, 3);
    EXPECT(queue_order(queue, 3, infos, 1) == 1 && infos[0].id == 2);
    EXPECT(queue_order(queue, 9, infos, 4) == 0);
    /* The gap between two jobs runs out of numbers after 32 of these. */
    for (int i = 0; i < 100; i++) {
        EXPECT(queue_move(queue, i % 2 == 0 ? 3 : 2, 1, &err) == 0, "%s", err.text);
    }
    ORDER("moved very often", 1, 5, 4, 2, 3);
    queue_close(queue);
    queue = kit_open(0);
    ORDER("running ones wait again at their places", 5, 1, 4, 2, 3);
    EXPECT(queue_list(queue, 2, infos, 2) == 2 && infos[0].id == 3 && infos[1].id == 4);
    EXPECT(queue_list(queue, 5, infos, 4) == 0);
    queue_close(queue);
}

static void test_recovery(void)
{
    struct error err = {0};
    queue = kit_open(0);
    kit_push(queue, "a");
    kit_push(queue, "b");
    EXPECT(claim() == 1 && claim() == 2);
    EXPECT(queue_cancel(queue, 2, &err) == 0);
    queue_close(queue);
    queue = kit_open(0);
    EXPECT(kit_state(queue, 1) == JOB_WAITING && kit_state(queue, 2) == JOB_CANCELLED);
    struct queue_counts counts;
    queue_counts(queue, &counts);
    EXPECT(counts.jobs == 2 && counts.last_id == 2 && counts.state[JOB_WAITING] == 1);
    queue_close(queue);
}

static void test_limit(void)
{
    struct prompt prompt = kit_prompt("fox");
    struct job_request requests[4] = {
        {.prompt = &prompt}, {.prompt = &prompt}, {.prompt = &prompt}, {.prompt = &prompt}};
    struct error err = {0};
    int64_t ids[4];
    queue = kit_open(3);
    EXPECT(queue_push(queue, requests, 4, NULL, ids, &err) == -EAGAIN);
    EXPECT(strstr(err.text, "queue_limit") != NULL, "%s", err.text);
    EXPECT(queue_push(queue, requests, 3, NULL, ids, &err) == 0);
    EXPECT(queue_push(queue, requests, 1, NULL, ids, &err) == -EAGAIN);
    EXPECT(queue_cancel(queue, ids[0], &err) == 0 && queue_retry(queue, ids[0], &err) == 0);
    EXPECT(claim() == ids[1] && queue_push(queue, requests, 1, NULL, ids + 3, &err) == 0);
    EXPECT(queue_cancel(queue, ids[0], &err) == 0 &&
           queue_push(queue, requests, 1, NULL, ids + 3, &err) == 0);
    EXPECT(queue_retry(queue, ids[0], &err) == -EAGAIN, "%s", err.text);
    queue_close(queue);
    prompt_finish(&prompt);
}

static void test_places(void)
{
    struct prompt prompt = kit_prompt("fox");
    struct job_request requests[2] = {{.prompt = &prompt}, {.prompt = &prompt}};
    struct queue_hold one = {0}, other = {0};
    struct error err = {0};
    int64_t ids[2];
    queue = kit_open(3);
    EXPECT(queue_hold_places(queue, &one, 4, &err) == -EAGAIN && one.places == 0);
    EXPECT(queue_hold_places(queue, &one, 2, &err) == 0);
    EXPECT(queue_hold_places(queue, &other, 2, &err) == -EAGAIN && other.places == 0);
    EXPECT(queue_push(queue, requests, 2, NULL, ids, &err) == -EAGAIN);
    EXPECT(strstr(err.text, "being written") != NULL, "%s", err.text);
    EXPECT(queue_hold_places(queue, &other, 1, &err) == 0);
    EXPECT(queue_push(queue, requests, 1, NULL, ids, &err) == -EAGAIN);
    /* Fewer than are held: the others are given back; more: if there are any. */
    EXPECT(queue_push(queue, requests, 1, &one, ids, &err) == 0 && one.places == 0);
    EXPECT(queue_push(queue, requests, 2, &other, ids, &err) == 0 && other.places == 0);
    EXPECT(queue_hold_places(queue, &one, 1, &err) == -EAGAIN);
    EXPECT(claim() == 1 && queue_hold_places(queue, &one, 1, &err) == 0);
    EXPECT(queue_push(queue, requests, 2, &one, ids, &err) == -EAGAIN && one.places == 0);
    EXPECT(queue_cancel(queue, 2, &err) == 0 && queue_cancel(queue, 3, &err) == 0);
    EXPECT(queue_hold_places(queue, &one, 2, &err) == 0);
    EXPECT(queue_retry(queue, 2, &err) == 0 && queue_retry(queue, 3, &err) == -EAGAIN);
    queue_hold_nothing(queue, &one);
    EXPECT(queue_retry(queue, 3, &err) == 0, "%s", err.text);
    queue_close(queue);
    prompt_finish(&prompt);
}

/* A commit that is held up, and then one of several changes, in the order of `changes`, of which
 * the last looks how many places are left while none is durable yet. */
struct shared_commit {
    atomic_bool held, go;
    int (*change)(void);
    int waited, result, counted;
    size_t left;
};

static bool wait_for_go(void *owner)
{
    struct shared_commit *commit = owner;
    atomic_store(&commit->held, true);
    while (!atomic_load(&commit->go)) {
        sched_yield();
    }
    return false;
}

static bool count_left(void *owner)
{
    struct shared_commit *commit = owner;
    struct queue_hold hold = {0};
    struct error err = {0};
    while (queue_hold_places(queue, &hold, commit->left + 1, &err) == 0) {
        commit->left++;
    }
    queue_hold_nothing(queue, &hold);
    return false;
}

static void *claim_waiting(void *owner)
{
    struct shared_commit *commit = owner;
    struct job job;
    commit->waited = queue_claim(queue, wait_for_go, owner, &job, NULL);
    return NULL;
}

static void *claim_counting(void *owner)
{
    struct shared_commit *commit = owner;
    struct job job;
    commit->counted = queue_claim(queue, count_left, owner, &job, NULL);
    return NULL;
}

static void *change_once(void *owner)
{
    struct shared_commit *commit = owner;
    commit->result = commit->change();
    return NULL;
}

/* Waits until so many changes are pending behind the one that is held up. */
static void wait_pending(size_t count)
{
    for (bool reached = false; !reached; sched_yield()) {
        pthread_mutex_lock(&queue->lock);
        reached = queue->pending == count;
        pthread_mutex_unlock(&queue->lock);
    }
}

static int push_one(void)
{
    int64_t id = kit_push(queue, "fox");
    return id > 0 ? 0 : (int)id;
}

static int retry_first(void)
{
    return queue_retry(queue, 1, NULL);
}

static int release_first(void)
{
    return queue_release(queue, 1, NULL);
}

/* Of the limit of 3 one waits, one comes with `change`: one is left, no matter when one looks. */
static void check_left_after(int (*change)(void))
{
    struct shared_commit commit = {.change = change};
    pthread_t threads[3];
    pthread_create(&threads[0], NULL, claim_waiting, &commit);
    while (!atomic_load(&commit.held)) {
        sched_yield();
    }
    pthread_create(&threads[1], NULL, change_once, &commit);
    wait_pending(1);
    pthread_create(&threads[2], NULL, claim_counting, &commit);
    wait_pending(2);
    atomic_store(&commit.go, true);
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
    }
    EXPECT(commit.waited == -EAGAIN && commit.counted == -EAGAIN);
    EXPECT(commit.result == 0 && commit.left == 1, "%d, %zu left", commit.result, commit.left);
    commit.left = 0;
    count_left(&commit);
    EXPECT(commit.left == 1, "%zu left afterwards", commit.left);
}

/* What is accepted but not on the disk yet takes its place, too. */
static void test_places_in_commit(void)
{
    static int (*const changes[])(void) = {push_one, retry_first, release_first};
    struct error err = {0};
    for (int i = 0; i < 3; i++) {
        queue = kit_open(3);
        EXPECT(kit_push(queue, "a") == 1 && claim() == 1 && kit_push(queue, "b") == 2);
        if (changes[i] == retry_first) {
            EXPECT(queue_cancel(queue, 1, &err) == 0 && queue_release(queue, 1, &err) == 0);
        }
        check_left_after(changes[i]);
        queue_close(queue);
        scratch_clear();
    }
}

static int count_setting(void *owner, const char *key, const char *value)
{
    char *all = owner;
    strcat(strcat(strcat(strcat(all, key), "="), value), ";");
    return 0;
}

static int stop_at_once(void *owner, const char *key, const char *value)
{
    (void)owner;
    (void)key;
    (void)value;
    return 7;
}

static void test_settings(void)
{
    struct error err = {0};
    char all[100] = "";
    char *value = NULL;
    queue = kit_open(0);
    EXPECT(queue_setting_get(queue, "steps", &value, &err) == -ENOENT && value == NULL);
    EXPECT(queue_setting_set(queue, "steps", "20", &err) == 0);
    EXPECT(queue_setting_set(queue, "pause", "1", &err) == 0);
    EXPECT(queue_setting_set(queue, "steps", "50", &err) == 0);
    EXPECT(queue_setting_set(queue, "none", NULL, &err) == 0);
    queue_close(queue);
    queue = kit_open(0);
    EXPECT(queue_setting_get(queue, "steps", &value, &err) == 0 && strcmp(value, "50") == 0);
    free(value);
    EXPECT(queue_settings(queue, count_setting, all, &err) == 0);
    EXPECT(strcmp(all, "pause=1;steps=50;") == 0, "%s", all);
    EXPECT(queue_settings(queue, stop_at_once, NULL, &err) == 7);
    EXPECT(queue_setting_set(queue, "pause", NULL, &err) == 0);
    EXPECT(queue_setting_get(queue, "pause", &value, &err) == -ENOENT);
    queue_close(queue);
}

struct seen {
    struct queue *queue;
    char events[200];
    uint64_t changes;
};

static void on_change(void *owner, enum queue_event event, const struct job_info *info)
{
    struct seen *seen = owner;
    struct job_info now;
    char text[32];
    snprintf(text, sizeof text, "%c%lld%s ", "+~-"[event], (long long)info -> id,
             info -> cancelling ? "!" : "");
    strcat(seen->events, text);
    /* Visible already, and readable from here. */
    EXPECT(queue_find(seen->queue, info->id, &now) == (event != QUEUE_REMOVED));
    __atomic_add_fetch(&seen->changes, 1, __ATOMIC_RELEASE);
}

static void test_observer(void)
{
    struct seen seen = {0};
    struct queue_options options = {.folder = scratch_folder, .observer = {&seen, on_change}};
    struct error err = {0};
    struct job_result done = {.state = JOB_DONE, .image = "x.png"};
    EXPECT(queue_open(&seen.queue, &options, &err) == 0, "%s", err.text);
    queue = seen.queue;
    kit_push(queue, "a");
    kit_push(queue, "b");
    claim();
    queue_cancel(queue, 1, &err);
    queue_finish(queue, 1, &done, &err);
    queue_set_priority(queue, 2, 9, &err);
    queue_setting_set(queue, "k", "v", &err);
    queue_cancel(queue, 77, &err);
    claim();
    queue_finish(queue, 2, &done, &err);
    queue_remove(queue, 1, &err);
    struct queue_counts counts;
    queue_counts(queue, &counts);
    queue_close(queue);
    EXPECT(strcmp(seen.events, "+1 +2 ~1 ~1! ~1 ~2 ~2 ~1 ~2 -1 ") == 0, "%s", seen.events);
    EXPECT(counts.changes == seen.changes);
}

int main(void)
{
    static void (*const tests[])(void) = {test_push_and_load, test_life_of_a_job,    test_endings,
                                          test_order,         test_recovery,         test_limit,
                                          test_places,        test_places_in_commit, test_settings,
                                          test_observer};
    scratch_run(tests, sizeof tests / sizeof tests[0]);
    return test_finish();
}
