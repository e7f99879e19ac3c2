/* SPDX-License-Identifier: MIT */
/*
 * Durable prompts a second, from 1, 2, 4, 8 and 16 writers, beside what this disk allows: one fsync
 * after the other.
 *
 * usage: bench_queue [FOLDER]      (a folder on the disk to measure; default /var/tmp)
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "fs/queue.h"

enum { SECONDS = 2, MOST_WRITERS = 16, GOAL = 1000, GOAL_WRITERS = 8 };

static struct queue *queue;
static atomic_bool stop;
static atomic_long accepted;

static double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void *write_prompts(void *unused)
{
    static const char text[] = "a large red circle on a white background --steps 20 --seed 7";
    struct prompt_values defaults = prompt_values_default();
    while (!atomic_load(&stop)) {
        struct prompt prompt = {0};
        struct job_request request = {.prompt = &prompt};
        struct error err = {0};
        int64_t id;
        if (prompt_parse(&prompt, text, sizeof text - 1, &defaults, &err) != 0 ||
            queue_push(queue, &request, 1, NULL, &id, &err) != 0) {
            fprintf(stderr, "%s\n", err.text);
            exit(EXIT_FAILURE);
        }
        prompt_finish(&prompt);
        atomic_fetch_add(&accepted, 1);
    }
    return unused;
}

static double measure(int writers)
{
    pthread_t threads[MOST_WRITERS];
    atomic_store(&stop, false);
    atomic_store(&accepted, 0);
    double start = now_s();
    for (int i = 0; i < writers; i++) {
        pthread_create(&threads[i], NULL, write_prompts, NULL);
    }
    sleep(SECONDS);
    atomic_store(&stop, true);
    for (int i = 0; i < writers; i++) {
        pthread_join(threads[i], NULL);
    }
    return (double)atomic_load(&accepted) / (now_s() - start);
}

static double measure_fsync(const char *folder)
{
    char path[4200];
    char block[4096] = "";
    long count = 0;
    snprintf(path, sizeof path, "%s/fsync", folder);
    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    double start = now_s();
    while (fd >= 0 && now_s() - start < 1) {
        if (write(fd, block, sizeof block) < 0 || fdatasync(fd) != 0) {
            perror(path);
            exit(EXIT_FAILURE);
        }
        count++;
    }
    close(fd);
    unlink(path);
    return (double)count / (now_s() - start);
}

static void clean(const char *folder)
{
    static const char *const names[] = {"queue.db", "queue.db-wal", "queue.db-shm"};
    char path[4200];
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    rmdir(folder);
}

int main(int argc, char **argv)
{
    char folder[4096];
    struct error err = {0};
    double with_goal = 0;
    snprintf(folder, sizeof folder, "%s/fluxfs-bench-XXXXXX", argc > 1 ? argv[1] : "/var/tmp");
    if (mkdtemp(folder) == NULL) {
        perror(folder);
        return EXIT_FAILURE;
    }
    struct queue_options options = {.folder = folder};
    if (queue_open(&queue, &options, &err) != 0) {
        fprintf(stderr, "%s\n", err.text);
        return EXIT_FAILURE;
    }
    printf("one fsync after the other: %.0f/s\n", measure_fsync(folder));
    for (int writers = 1; writers <= MOST_WRITERS; writers *= 2) {
        double rate = measure(writers);
        printf("%2d writers: %6.0f durable prompts/s\n", writers, rate);
        with_goal = writers == GOAL_WRITERS ? rate : with_goal;
    }
    queue_close(queue);
    clean(folder);
    printf("goal: %d/s from %d writers: %s\n", GOAL, GOAL_WRITERS,
           with_goal >= GOAL ? "reached" : "missed");
    return with_goal >= GOAL ? EXIT_SUCCESS : EXIT_FAILURE;
}
