/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "fs/content.h"
#include "fs/status.h"

static const struct board_image *running_image(const struct board_state *state, int64_t job)
{
    for (int i = 0; i < state->images; i++) {
        if (state->image[i].job == job) {
            return &state->image[i];
        }
    }
    return NULL;
}

char *status_timing_json(const struct image_timing *timing, double total_s)
{
    json_t *json = json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "total_s", total_s,
                             "text_s", timing->text_s, "condition_s", timing->condition_s,
                             "denoise_s", timing->denoise_s, "decode_s", timing->decode_s, "step_s",
                             timing->step_s, "computing_s", timing->compute_s, "copying_s",
                             timing->copy_s, "waiting_for_weights_s", timing->wait_s);
    char *text = json_dumps(json, JSON_REAL_PRECISION(6));

    json_decref(json);
    return text;
}

/* Shows what status_timing_json kept as lines `key seconds`. */
static void timing_lines(struct text *text, const char *timing_json)
{
    json_t *json = json_loads(timing_json, 0, NULL), *value;
    const char *key;

    json_object_foreach(json, key, value)
    {
        text_print(text, "%s %.4f\n", key, json_number_value(value));
    }
    json_decref(json);
}

static void state_render(const struct job_info *info, const struct board_image *running,
                         struct text *text)
{
    if (info->cancelling) {
        content_add_string(text, "cancelling\n");
    } else if (running != NULL && running->saving) {
        content_add_string(text, "saving\n");
    } else {
        text_print(text, "%s\n", job_state_name(info->state));
    }
}

static void progress_render(struct status *status, const struct job_info *info,
                            const struct board_image *running, struct text *text)
{
    if (running != NULL) {
        status_add_progress(text, running);
        content_add_string(text, "\n");
    } else if (info->state == JOB_WAITING) {
        text_print(text, "job %lld waiting, place %ld\n", (long long)info->id,
                   queue_rank(status->queue, info->id));
    } else {
        text_print(text, "job %lld %s\n", (long long)info->id, job_state_name(info->state));
    }
}

static void job_render(const struct job *job, enum job_file file, struct text *text)
{
    char *values;

    switch (file) {
    case JOB_FILE_PROMPT:
        text_print(text, "%s\n", job->prompt.text);
        break;
    case JOB_FILE_PARAMETERS:
        values = prompt_format_values(&job->prompt);
        content_add_string(text, values != NULL ? values : "");
        text->failed |= values == NULL;
        free(values);
        break;
    case JOB_FILE_ERROR:
        if (job->error[0] != '\0') {
            text_print(text, "%s\n", job->error);
        }
        break;
    case JOB_FILE_TIMING:
        timing_lines(text, job->timing_json);
        break;
    case JOB_FILE_VRAM:
        content_add_string(text, job->vram_csv);
        break;
    default:
        break;
    }
}

int status_render_job(struct status *status, int64_t id, enum job_file file, struct text *text,
                      int64_t *changed_ns, struct error *err)
{
    struct board_state state;
    const struct board_image *running;
    struct job_info info;
    struct job job;
    int code;

    if (!queue_find(status->queue, id, &info)) {
        return error_set(err, ENOENT, "job %lld: no such job", (long long)id);
    }
    *changed_ns = file == JOB_FILE_PROMPT ? info.created_ns : info.changed_ns;
    board_read(status->board, &state);
    /* The queue is ahead of the board when a job has just ended. */
    running = info.state == JOB_RUNNING ? running_image(&state, id) : NULL;
    if (running != NULL && (file == JOB_FILE_PROGRESS || file == JOB_FILE_VRAM)) {
        *changed_ns = state.published_ns;
    }
    switch (file) {
    case JOB_FILE_WAIT:
    case JOB_FILE_CTL:
        return 0;
    case JOB_FILE_STATE:
        state_render(&info, running, text);
        return text->failed ? -ENOMEM : 0;
    case JOB_FILE_PROGRESS:
        progress_render(status, &info, running, text);
        return text->failed ? -ENOMEM : 0;
    case JOB_FILE_VRAM:
        if (worker_samples(status->worker, id, text)) {
            return text->failed ? -ENOMEM : 0;
        }
        break;
    default:
        break;
    }
    code = queue_load(status->queue, id, &job, err);
    if (code == 0) {
        job_render(&job, file, text);
        job_finish(&job);
        code = text->failed ? -ENOMEM : 0;
    }
    return code;
}
