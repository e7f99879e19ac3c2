/* SPDX-License-Identifier: MIT */
/* For tests of the queue: prompts and pushes without ceremony. */
#ifndef FLUXFS_TESTS_UNIT_QUEUE_KIT_H
#define FLUXFS_TESTS_UNIT_QUEUE_KIT_H

#include "fs/queue.h"
#include "tests/unit/scratch.h"

__attribute__((unused)) static struct prompt kit_prompt(const char *text)
{
    struct prompt_values defaults = prompt_values_default();
    struct prompt prompt = {0};
    struct error err = {0};
    if (prompt_parse(&prompt, text, strlen(text), &defaults, &err) != 0) {
        fprintf(stderr, "%s: %s\n", text, err.text);
        exit(EXIT_FAILURE);
    }
    return prompt;
}

/* That of the scratch folder. */
__attribute__((unused)) static struct queue *kit_open(size_t limit)
{
    struct queue_options options = {.folder = scratch_folder, .waiting_limit = limit};
    struct queue *queue = NULL;
    struct error err = {0};
    if (queue_open(&queue, &options, &err) != 0) {
        fprintf(stderr, "%s\n", err.text);
        exit(EXIT_FAILURE);
    }
    return queue;
}

__attribute__((unused)) static enum job_state kit_state(struct queue *queue, int64_t id)
{
    struct job_info info = {.state = JOB_STATES};
    queue_find(queue, id, &info);
    return info.state;
}

/* The id, or a negative errno. */
__attribute__((unused)) static int64_t kit_push(struct queue *queue, const char *text)
{
    struct prompt prompt = kit_prompt(text);
    struct job_request request = {.prompt = &prompt};
    int64_t id;
    int rc = queue_push(queue, &request, 1, NULL, &id, NULL);
    prompt_finish(&prompt);
    return rc == 0 ? id : rc;
}

/* The newest job with that image; 0: none. */
__attribute__((unused)) static int64_t kit_image_job(struct queue *queue, const char *image)
{
    struct job_info info;
    return queue_find_image(queue, image, &info) ? info.id : 0;
}

__attribute__((unused)) static size_t kit_order(struct queue *queue, int64_t *ids, size_t capacity)
{
    struct job_info *infos = calloc(capacity, sizeof *infos);
    size_t count = queue_order(queue, 0, infos, capacity);
    for (size_t i = 0; i < count; i++) {
        ids[i] = infos[i].id;
    }
    free(infos);
    return count;
}

#endif
