/* SPDX-License-Identifier: MIT */
/*
 * kill -9 in the middle of a burst, again and again, over one queue: what a writer was told is
 * accepted is there afterwards, once, and what was told done is done.
 *
 * usage: queue_kill [ROUNDS]
 */
#include "tests/test.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/unit/queue_kit.h"

enum { WRITERS = 4, DEFAULT_ROUNDS = 250 };

/* What the child reports through a pipe: after the fact, so never too much. */
struct report {
    enum { ACCEPTED, CLAIMED, FINISHED } kind;
    int64_t id;
    uint64_t token; /* the number in the text, if accepted */
};

struct known {
    uint64_t token;
    bool accepted, finished;
};

static int report_fd;
static struct queue *queue;
static unsigned round_number;
static struct known *known; /* by id */
static int64_t known_capacity;

/* ---- The child ---- */

static void send_report(int kind, int64_t id, uint64_t token)
{
    struct report report = {.kind = kind, .id = id, .token = token};
    if (write(report_fd, &report, sizeof report) != (ssize_t)sizeof report) {
        _exit(EXIT_FAILURE);
    }
}

static void *write_prompts(void *number)
{
    for (uint64_t i = 0;; i++) {
        char text[64];
        uint64_t token = ((uint64_t)round_number << 32) | ((uintptr_t)number << 24) | i;
        snprintf(text, sizeof text, "prompt %llu", (unsigned long long)token);
        int64_t id = kit_push(queue, text);
        if (id <= 0) {
            _exit(EXIT_FAILURE);
        }
        send_report(ACCEPTED, id, token);
    }
    return NULL;
}

static void *work(void *unused)
{
    struct job_result done = {.state = JOB_DONE, .image = NULL, .vram_csv = "0,1\n"};
    for (;;) {
        struct job job = {0};
        if (queue_claim(queue, NULL, NULL, &job, NULL) != 0) {
            continue;
        }
        send_report(CLAIMED, job.info.id, 0);
        if (queue_finish(queue, job.info.id, &done, NULL) != 0) {
            _exit(EXIT_FAILURE);
        }
        send_report(FINISHED, job.info.id, 0);
        job_finish(&job);
    }
    return unused;
}

static void child_run(void)
{
    pthread_t thread;
    queue = kit_open(0);
    for (uintptr_t i = 1; i <= WRITERS; i++) {
        pthread_create(&thread, NULL, write_prompts, (void *)i);
    }
    work(NULL);
}

/* ---- The parent ---- */

static void note(const struct report *report)
{
    if (report->id >= known_capacity) {
        int64_t capacity = report->id * 2 + 1000;
        known = reallocarray(known, (size_t)capacity, sizeof *known);
        memset(known + known_capacity, 0, (size_t)(capacity - known_capacity) * sizeof *known);
        known_capacity = capacity;
    }
    struct known *at = &known[report->id];
    if (report->kind == ACCEPTED) {
        EXPECT(!at->accepted, "id %lld was given twice", (long long)report->id);
        at->accepted = true;
        at->token = report->token;
    } else {
        EXPECT(!at->finished, "job %lld was taken again after its end", (long long)report->id);
        at->finished = report->kind == FINISHED;
    }
}

static void sleep_ms(long ms)
{
    struct timespec pause = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    nanosleep(&pause, NULL);
}

static int64_t run_round(long ms)
{
    int pipe_fds[2];
    int status;
    int64_t accepted = 0;
    struct report report;
    if (pipe(pipe_fds) != 0) {
        perror("pipe");
        exit(EXIT_FAILURE);
    }
    pid_t child = fork();
    if (child == 0) {
        close(pipe_fds[0]);
        report_fd = pipe_fds[1];
        child_run();
        _exit(EXIT_FAILURE);
    }
    close(pipe_fds[1]);
    /* The clock starts with the first report, or a slow start would leave nothing to kill. */
    if (read(pipe_fds[0], &report, sizeof report) == (ssize_t)sizeof report) {
        note(&report);
        accepted++;
        sleep_ms(ms);
    }
    kill(child, SIGKILL);
    while (read(pipe_fds[0], &report, sizeof report) == (ssize_t)sizeof report) {
        note(&report);
        accepted += report.kind == ACCEPTED;
    }
    waitpid(child, &status, 0);
    EXPECT(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "the child ended by itself: %d",
           status);
    close(pipe_fds[0]);
    return accepted;
}

static int compare_tokens(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

/* Everything we were told of is there, and nothing is there twice. */
static void check_all(void)
{
    struct queue_counts counts;
    queue = kit_open(0);
    queue_counts(queue, &counts);
    struct job_info *infos = calloc(counts.jobs + 1, sizeof *infos);
    uint64_t *tokens = calloc(counts.jobs + 1, sizeof *tokens);
    EXPECT(queue_list(queue, 0, infos, counts.jobs + 1) == counts.jobs);
    EXPECT(counts.state[JOB_RUNNING] == 0 && counts.jobs > 0);
    for (size_t i = 0; i < counts.jobs; i++) {
        struct job job = {0};
        unsigned long long token = 0;
        EXPECT(queue_load(queue, infos[i].id, &job, NULL) == 0);
        EXPECT(sscanf(job.prompt.text, "prompt %llu", &token) == 1, "\"%s\"", job.prompt.text);
        tokens[i] = token;
        struct known *at = infos[i].id < known_capacity ? &known[infos[i].id] : NULL;
        if (at != NULL && at->accepted) {
            EXPECT(at->token == token, "job %lld", (long long)infos[i].id);
            EXPECT(!at->finished || infos[i].state == JOB_DONE, "job %lld", (long long)infos[i].id);
            at->accepted = false; /* seen */
        }
        job_finish(&job);
    }
    for (int64_t id = 0; id < known_capacity; id++) {
        EXPECT(!known[id].accepted, "job %lld was accepted and is lost", (long long)id);
    }
    qsort(tokens, counts.jobs, sizeof *tokens, compare_tokens);
    for (size_t i = 1; i < counts.jobs; i++) {
        EXPECT(tokens[i] != tokens[i - 1], "prompt %llu is there twice",
               (unsigned long long)tokens[i]);
    }
    printf("%zu jobs, %zu of them done\n", counts.jobs, counts.state[JOB_DONE]);
    queue_close(queue);
    free(infos);
    free(tokens);
}

int main(int argc, char **argv)
{
    int rounds = argc > 1 ? atoi(argv[1]) : DEFAULT_ROUNDS;
    int64_t accepted = 0;
    uint32_t state = (uint32_t)time(NULL);
    printf("seed %u\n", (unsigned)state);
    scratch_start();
    for (round_number = 1; round_number <= (unsigned)rounds; round_number++) {
        state = state * 1664525U + 1013904223U;
        accepted += run_round((long)(state >> 16) % 25);
    }
    printf("%d kills, %lld prompts accepted\n", rounds, (long long)accepted);
    EXPECT(accepted >= rounds);
    check_all();
    free(known);
    scratch_finish();
    return test_finish();
}
