/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "fs/daemon.h"

/* Where not even a byte has room, no image will. */
static int gallery_check(struct daemon *daemon, const struct submission *submission,
                         struct error *err)
{
    char name[GALLERY_NAME_BYTES];

    if (submission->source != NULL) {
        gallery_name(name, 0, submission->source, NULL, "");
    }
    return gallery_room(daemon->gallery, submission->source != NULL ? name : NULL, 1, err);
}

static int parse(struct daemon *daemon, const struct submission *submission, struct prompt *prompt,
                 struct error *err)
{
    struct control_values values;
    int code;

    control_values(&daemon->control, &values);
    code = prompt_parse(prompt, submission->bytes, submission->length, &values.prompt, err);
    if (code != 0) {
        return code;
    }
    code = worker_check(daemon->worker, prompt, err);
    if (code == 0) {
        code = gallery_check(daemon, submission, err);
    }
    if (code != 0) {
        prompt_finish(prompt);
    }
    return code;
}

static int refuse(struct daemon *daemon, const struct submission *submission, int code,
                  const struct error *err)
{
    if (submission->source != NULL) {
        events_add_error_of(&daemon->events, submission->uid, "prompts: a file was refused",
                            "prompts/%s: %s", submission->source, err->text);
    } else {
        events_add_error_of(&daemon->events, submission->uid, "new: a prompt was refused",
                            "new: %s", err->text);
    }
    return code;
}

/* Shells say nothing when close() fails, so a disk that failed the last time is tried in write().
 */
static int disk_check(struct daemon *daemon, struct error *err)
{
    return queue_trouble(daemon->queue, err) == 0 ? 0 : queue_probe(daemon->queue, err);
}

static int hold_room(struct daemon *daemon, struct queue_hold *hold, size_t count, size_t bytes,
                     struct error *err)
{
    int code = queue_hold_places(daemon->queue, hold, count, err);

    return code == 0 ? queue_hold_bytes(daemon->queue, hold, queue_push_bytes(count, bytes), err)
                     : code;
}

static int complete_check(struct daemon *daemon, const struct submission *submission,
                          struct queue_hold *hold, struct error *err)
{
    struct prompt prompt;
    int code = disk_check(daemon, err);

    if (code == 0) {
        code = parse(daemon, submission, &prompt, err);
    }
    if (code == 0) {
        size_t count = (size_t)prompt.values.count;
        prompt_finish(&prompt);
        code = hold_room(daemon, hold, count, submission->length, err);
    }
    return code;
}

int submission_check(struct daemon *daemon, const struct submission *submission, bool complete,
                     struct queue_hold *hold, struct error *err)
{
    size_t held = hold->places > 1 ? hold->places : 1; /* what an earlier write() was promised */
    int code = hold_room(daemon, hold, held, submission->length, err);

    if (code == 0 && complete) {
        code = complete_check(daemon, submission, hold, err);
    }
    return code == 0 ? 0 : refuse(daemon, submission, code, err);
}

size_t submission_count(struct daemon *daemon, const struct submission *submission)
{
    struct control_values values;
    struct prompt prompt;
    struct error err;
    size_t count = 1;

    control_values(&daemon->control, &values);
    if (prompt_parse(&prompt, submission->bytes, submission->length, &values.prompt, &err) == 0) {
        count = (size_t)prompt.values.count;
        prompt_finish(&prompt);
    }
    return count;
}

/* Of several images from one file the later ones get names with a number before the extension,
 * since each name in images/ comes from the source: fox.png, fox-2.png … */
static void source_number(char source[QUEUE_NAME_BYTES], const char *of, size_t index)
{
    const char *dot = strrchr(of, '.');
    int stem = (int)(dot != NULL && dot != of ? (size_t)(dot - of) : strlen(of));

    if (index == 0) {
        snprintf(source, QUEUE_NAME_BYTES, "%s", of);
    } else {
        snprintf(source, QUEUE_NAME_BYTES, "%.*s-%zu%s", stem > 240 ? 240 : stem, of, index + 1,
                 dot != NULL && dot != of ? dot : "");
    }
}

static int push(struct daemon *daemon, const struct submission *submission, struct prompt *prompt,
                struct queue_hold *hold, int64_t *ids, struct error *err)
{
    struct job_request requests[PROMPT_MAX_COUNT];
    struct prompt prompts[PROMPT_MAX_COUNT];
    char sources[PROMPT_MAX_COUNT][QUEUE_NAME_BYTES];
    size_t count = (size_t)prompt->values.count;

    for (size_t i = 0; i < count; i++) {
        prompts[i] = *prompt; /* the texts stay the original's */
        prompts[i].values.count = 1;
        /* Seeds stay below 2⁶³. */
        prompts[i].values.seed = (prompt->values.seed + i) & INT64_MAX;
        requests[i] = (struct job_request){
            .prompt = &prompts[i],
            .uid = submission->uid,
            .gid = submission->gid,
            .source_digest = submission->source_digest,
        };
        if (submission->source != NULL) {
            source_number(sources[i], submission->source, i);
            requests[i].source = sources[i];
        }
    }
    return queue_push(daemon->queue, requests, count, hold, ids, err);
}

int submission_accept(struct daemon *daemon, const struct submission *submission,
                      struct queue_hold *hold, int64_t *ids, size_t *count, struct error *err)
{
    struct prompt prompt;
    int code = parse(daemon, submission, &prompt, err);

    if (code == 0) {
        *count = (size_t)prompt.values.count;
        code = push(daemon, submission, &prompt, hold, ids, err);
        prompt_finish(&prompt);
    }
    return code == 0 ? 0 : refuse(daemon, submission, code, err);
}
