/* SPDX-License-Identifier: MIT */
/* What changes the queue. Each apply_… runs in the committing thread, inside a transaction, and
 * looks before it writes: a refusal leaves the transaction as it was. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fs/queue_private.h"

/* Room between neighbours: a job can be moved 32 times into the same gap before all are spread. */
static const int64_t position_gap = INT64_C(1) << 32;

static const char *const no_job = "job %lld: there is none";

static int find(struct batch *batch, int64_t id, struct entry *entry, struct error *err)
{
    struct store *store = &batch->queue->writer;
    int rc = store_run(store, STORE_ENTRY, err, "i", id);
    if (rc == 0) {
        return error_set(err, ENOENT, no_job, (long long)id);
    }
    if (rc == 1) {
        rc = store_read_entry(store, STORE_ENTRY, entry, err);
        store_done(store, STORE_ENTRY);
        entry_finish(entry); /* the numbers are all that is asked */
    }
    return rc;
}

static int refuse_state(int64_t id, enum job_state state, const char *need, struct error *err)
{
    return error_set(err, EINVAL, "job %lld is %s: only %s job can be so changed", (long long)id,
                     job_state_name(state), need);
}

static int find_running(struct batch *batch, int64_t id, struct entry *entry, struct error *err)
{
    int rc = find(batch, id, entry, err);
    if (rc == 0 && entry->info.state != JOB_RUNNING) {
        rc = refuse_state(id, entry->info.state, "a running", err);
    }
    return rc;
}

static int find_waiting(struct batch *batch, int64_t id, struct entry *entry, struct error *err)
{
    int rc = find(batch, id, entry, err);
    if (rc == 0 && entry->info.state != JOB_WAITING) {
        rc = refuse_state(id, entry->info.state, "a waiting", err);
    }
    return rc;
}

static int64_t next_position(struct queue *queue)
{
    return queue->last_position += position_gap;
}

/* ---- Adding and taking ---- */

static int add_one(struct batch *batch, const struct job_request *request, int64_t *id,
                   struct error *err)
{
    struct queue *queue = batch->queue;
    const struct prompt *prompt = request->prompt;
    const struct prompt_values *values = &prompt->values;
    int64_t seed = values->seed_random ? -1 : (int64_t)values->seed;
    int rc =
        store_run(&queue->writer, STORE_ADD, err, "iiiiiitiiiiddnittt", (int64_t)request->priority,
                  next_position(queue), (int64_t)request->uid, (int64_t)request->gid, batch->now_ns,
                  (int64_t)strlen(prompt->text), request->source, (int64_t)request->source_digest,
                  (int64_t)values->steps, (int64_t)values->width_px, (int64_t)values->height_px,
                  (double)values->guidance, (double)values->true_cfg, seed, (int64_t)prompt->given,
                  prompt->name, prompt->text, prompt->negative);
    if (rc == 0) {
        *id = sqlite3_last_insert_rowid(queue->writer.db);
        batch->last_id = *id;
        batch->waiting++;
        rc = batch_note(batch, QUEUE_ADDED, *id, err);
    }
    return rc;
}

static int apply_push(struct batch *batch, struct change *change, struct error *err)
{
    int rc = queue_check_named(batch->queue, err);
    if (rc == 0) {
        rc = batch_take_places(batch, change, err);
    }
    for (size_t i = 0; i < change->count && rc == 0; i++) {
        rc = add_one(batch, &change->requests[i], &change->ids[i], err);
    }
    return rc;
}

int queue_push(struct queue *queue, const struct job_request *requests, size_t count,
               struct queue_hold *hold, int64_t *ids, struct error *err)
{
    struct change change = {
        .apply = apply_push, .requests = requests, .count = count, .hold = hold, .ids = ids};
    return queue_change(queue, &change, err);
}

static int apply_claim(struct batch *batch, struct change *change, struct error *err)
{
    struct store *store = &batch->queue->writer;
    if (change->allowed != NULL && !change->allowed(change->owner)) {
        return error_set(err, EAGAIN, "no job may be taken now");
    }
    int rc = store_run(store, STORE_FIRST, err, "");
    if (rc == 0) {
        return error_set(err, EAGAIN, "no job waits");
    }
    if (rc == 1) {
        change->id = store_int(store, STORE_FIRST, 0);
        store_done(store, STORE_FIRST);
        rc = store_run(store, STORE_START, err, "ii", change->id, batch->now_ns);
    }
    if (rc == 0) {
        batch->waiting--;
        rc = batch_note(batch, QUEUE_CHANGED, change->id, err);
    }
    /* Within the transaction: a job that runs for nobody would never end. */
    if (rc == 0) {
        rc = store_run(store, STORE_JOB, err, "i", change->id);
        rc = rc == 1 ? store_read_job(store, change->job, err) : rc;
        store->failed |= rc != 0;
        store_done(store, STORE_JOB);
    }
    return rc;
}

int queue_claim(struct queue *queue, bool (*allowed)(void *owner), void *owner, struct job *job,
                struct error *err)
{
    struct job claimed = {0};
    struct change change = {
        .apply = apply_claim, .allowed = allowed, .owner = owner, .job = &claimed};
    pthread_mutex_lock(&queue->lock);
    bool none = queue->index.state[JOB_WAITING] == 0;
    pthread_mutex_unlock(&queue->lock);
    if (none) {
        return error_set(err, EAGAIN, "no job waits"); /* an idle worker writes nothing */
    }
    int rc = queue_change(queue, &change, err);
    if (rc == 0) {
        *job = claimed;
    } else {
        job_finish(&claimed);
    }
    return rc;
}

/* ---- A running job ---- */

static int apply_settle(struct batch *batch, struct change *change, struct error *err)
{
    struct entry entry;
    const struct prompt_values *values = change->values;
    int rc = find_running(batch, change->id, &entry, err);
    if (rc == 0) {
        int64_t seed = values->seed_random ? -1 : (int64_t)values->seed;
        rc =
            store_run(&batch->queue->writer, STORE_SETTLE, err, "iiiiddni", change->id,
                      (int64_t)values->steps, (int64_t)values->width_px, (int64_t)values->height_px,
                      (double)values->guidance, (double)values->true_cfg, seed, batch->now_ns);
    }
    return rc == 0 ? batch_note(batch, QUEUE_CHANGED, change->id, err) : rc;
}

int queue_settle(struct queue *queue, int64_t id, const struct prompt_values *values,
                 struct error *err)
{
    struct change change = {.apply = apply_settle, .id = id, .values = values};
    return queue_change(queue, &change, err);
}

/* The image of other jobs than `id` is gone: they name none. */
static int drop_image(struct batch *batch, const char *image, int64_t id, struct error *err)
{
    struct store *store = &batch->queue->writer;
    for (;;) {
        int rc = store_run(store, STORE_OF_IMAGE, err, "ti", image, id);
        if (rc != 1) {
            return rc;
        }
        int64_t other = store_int(store, STORE_OF_IMAGE, 0);
        store_done(store, STORE_OF_IMAGE);
        rc = store_run(store, STORE_DROP_IMAGE, err, "ii", other, batch->now_ns);
        if (rc == 0) {
            rc = batch_note(batch, QUEUE_CHANGED, other, err);
        }
        if (rc != 0) {
            return rc;
        }
    }
}

static int64_t length_of(const char *text)
{
    return text == NULL ? 0 : (int64_t)strlen(text);
}

static int apply_finish(struct batch *batch, struct change *change, struct error *err)
{
    struct store *store = &batch->queue->writer;
    const struct job_result *result = change->result;
    struct entry entry;
    int rc = find_running(batch, change->id, &entry, err);
    if (rc == 0 && result->image != NULL) {
        rc = drop_image(batch, result->image, change->id, err);
    }
    if (rc == 0) {
        rc = store_run(store, STORE_FINISH, err, "iiitiii", change->id, (int64_t)result->state,
                       batch->now_ns, result->image, length_of(result->error),
                       length_of(result->timing_json), length_of(result->vram_csv));
    }
    if (rc == 0) {
        rc = store_run(store, STORE_RESULT, err, "ittt", change->id, result->error,
                       result->timing_json, result->vram_csv);
    }
    return rc == 0 ? batch_note(batch, QUEUE_CHANGED, change->id, err) : rc;
}

int queue_finish(struct queue *queue, int64_t id, const struct job_result *result,
                 struct error *err)
{
    struct change change = {.apply = apply_finish, .id = id, .result = result};
    if (result->state != JOB_DONE && result->state != JOB_FAILED &&
        result->state != JOB_CANCELLED) {
        return error_set(err, EINVAL, "job %lld can't end as %s", (long long)id,
                         job_state_name(result->state));
    }
    return queue_change(queue, &change, err);
}

static int wait_again(struct batch *batch, int64_t id, int64_t position, struct error *err)
{
    struct store *store = &batch->queue->writer;
    int rc = store_run(store, STORE_WAIT, err, "iii", id, batch->now_ns, position);
    if (rc == 0) {
        rc = store_run(store, STORE_REMOVE_RESULT, err, "i", id);
    }
    if (rc == 0) {
        batch->waiting++;
        rc = batch_note(batch, QUEUE_CHANGED, id, err);
    }
    return rc;
}

static int cancel_now(struct batch *batch, int64_t id, struct error *err)
{
    int rc = store_run(&batch->queue->writer, STORE_CANCEL, err, "ii", id, batch->now_ns);
    return rc == 0 ? batch_note(batch, QUEUE_CHANGED, id, err) : rc;
}

static int apply_release(struct batch *batch, struct change *change, struct error *err)
{
    struct entry entry;
    int rc = find_running(batch, change->id, &entry, err);
    if (rc != 0) {
        return rc;
    }
    if (entry.info.cancelling) {
        return cancel_now(batch, change->id, err);
    }
    batch_take_place_back(batch, change);
    return wait_again(batch, change->id, entry.position, err);
}

int queue_release(struct queue *queue, int64_t id, struct error *err)
{
    struct change change = {.apply = apply_release, .id = id};
    return queue_change(queue, &change, err);
}

/* ---- What people do to jobs ---- */

static int apply_cancel(struct batch *batch, struct change *change, struct error *err)
{
    struct entry entry;
    int rc = find(batch, change->id, &entry, err);
    if (rc != 0) {
        return rc;
    }
    if (entry.info.state == JOB_WAITING) {
        batch->waiting--;
        return cancel_now(batch, change->id, err);
    }
    if (entry.info.state != JOB_RUNNING) {
        return refuse_state(change->id, entry.info.state, "a waiting or running", err);
    }
    rc = store_run(&batch->queue->writer, STORE_CANCELLING, err, "ii", change->id, batch->now_ns);
    return rc == 0 ? batch_note(batch, QUEUE_CHANGED, change->id, err) : rc;
}

int queue_cancel(struct queue *queue, int64_t id, struct error *err)
{
    struct change change = {.apply = apply_cancel, .id = id};
    return queue_change(queue, &change, err);
}

static int apply_retry(struct batch *batch, struct change *change, struct error *err)
{
    struct entry entry;
    int rc = find(batch, change->id, &entry, err);
    if (rc == 0 && (entry.info.state == JOB_WAITING || entry.info.state == JOB_RUNNING)) {
        rc = refuse_state(change->id, entry.info.state, "an ended", err);
    }
    if (rc == 0) {
        change->count = 1;
        rc = batch_take_places(batch, change, err);
    }
    return rc == 0 ? wait_again(batch, change->id, next_position(batch->queue), err) : rc;
}

int queue_retry(struct queue *queue, int64_t id, struct error *err)
{
    struct change change = {.apply = apply_retry, .id = id};
    return queue_change(queue, &change, err);
}

static int place(struct batch *batch, int64_t id, int priority, int64_t position, struct error *err)
{
    int rc = store_run(&batch->queue->writer, STORE_PLACE, err, "iiii", id, (int64_t)priority,
                       position, batch->now_ns);
    if (position > batch->queue->last_position) {
        batch->queue->last_position = position;
    }
    return rc == 0 ? batch_note(batch, QUEUE_CHANGED, id, err) : rc;
}

static int apply_priority(struct batch *batch, struct change *change, struct error *err)
{
    struct entry entry;
    int rc = find_waiting(batch, change->id, &entry, err);
    return rc == 0 ? place(batch, change->id, (int)change->number, entry.position, err) : rc;
}

int queue_set_priority(struct queue *queue, int64_t id, int priority, struct error *err)
{
    struct change change = {.apply = apply_priority, .id = id, .number = priority};
    if (priority < -QUEUE_MAX_PRIORITY || priority > QUEUE_MAX_PRIORITY) {
        return error_set(err, EINVAL, "priority %d: must be from %d to %d", priority,
                         -QUEUE_MAX_PRIORITY, QUEUE_MAX_PRIORITY);
    }
    return queue_change(queue, &change, err);
}

struct neighbour {
    bool there;
    int priority;
    int64_t position;
};

/* Those before and after rank `rank` of the waiting jobs other than `id`. */
static int find_neighbours(struct batch *batch, int64_t id, int64_t rank, struct neighbour *before,
                           struct neighbour *after, struct error *err)
{
    struct store *store = &batch->queue->writer;
    int64_t offset = rank > 0 ? rank - 1 : 0;
    bool first = rank == 0;
    *before = *after = (struct neighbour){0};
    int rc = store_run(store, STORE_NEIGHBOURS, err, "ii", id, offset);
    while (rc == 1 && !after->there) {
        struct neighbour found = {true, (int)store_int(store, STORE_NEIGHBOURS, 1),
                                  store_int(store, STORE_NEIGHBOURS, 2)};
        *(first ? after : before) = found;
        first = true;
        rc = store_next(store, STORE_NEIGHBOURS, err);
    }
    if (rc == 1) {
        store_done(store, STORE_NEIGHBOURS);
        rc = 0;
    }
    return rc;
}

/* The waiting jobs in their order, to free. Returns how many, or a negative errno. */
static int64_t list_waiting(struct batch *batch, struct entry **list, struct error *err)
{
    struct store *store = &batch->queue->writer;
    int64_t count = 0;
    *list = calloc((size_t)batch->waiting + 1, sizeof **list);
    if (*list == NULL) {
        return error_set(err, ENOMEM, "%s: out of memory", store->path);
    }
    int rc = store_run(store, STORE_WAITING, err, "");
    while (rc == 1 && count < batch->waiting) {
        (*list)[count].info.id = store_int(store, STORE_WAITING, 0);
        (*list)[count].info.priority = (int)store_int(store, STORE_WAITING, 1);
        count++;
        rc = store_next(store, STORE_WAITING, err);
    }
    if (rc == 1) {
        store_done(store, STORE_WAITING);
    }
    return rc < 0 ? rc : count;
}

/* Gives every waiting job a position of its own again, gaps apart, in the present order. */
static int spread(struct batch *batch, struct error *err)
{
    struct entry *list;
    int64_t count = list_waiting(batch, &list, err);
    int rc = count < 0 ? (int)count : 0;
    for (int64_t i = 0; i < count && rc == 0; i++) {
        rc = place(batch, list[i].info.id, list[i].info.priority, (i + 1) * position_gap, err);
    }
    free(list);
    return rc;
}

/* Where to put a job of this priority between two neighbours; false if no number is left there. */
static bool choose_place(struct queue *queue, const struct neighbour *before,
                         const struct neighbour *after, int *priority, int64_t *position)
{
    bool stays_last = before->there && before->priority == *priority &&
                      !(after->there && after->priority == *priority);
    if (!after->there || stays_last) {
        *priority = before->there ? before->priority : *priority;
        *position = next_position(queue);
        return true;
    }
    *priority = after->priority;
    if (!before->there || before->priority != after->priority) {
        *position = after->position - position_gap;
        return after->position > INT64_MIN + position_gap;
    }
    *position = before->position + (after->position - before->position) / 2;
    return *position != before->position;
}

static int apply_move(struct batch *batch, struct change *change, struct error *err)
{
    struct entry entry;
    struct neighbour before, after;
    int priority;
    int64_t position;
    int rc = find_waiting(batch, change->id, &entry, err);
    int64_t last = batch->waiting - 1;
    int64_t rank = change->number < last ? change->number : last;
    for (int tries = 0; tries < 2 && rc == 0; tries++) {
        rc = find_neighbours(batch, change->id, rank, &before, &after, err);
        priority = entry.info.priority;
        if (rc == 0 && choose_place(batch->queue, &before, &after, &priority, &position)) {
            return place(batch, change->id, priority, position, err);
        }
        if (rc == 0) {
            rc = spread(batch, err);
        }
    }
    return rc;
}

int queue_move(struct queue *queue, int64_t id, size_t rank, struct error *err)
{
    int64_t number = rank < INT64_MAX ? (int64_t)rank : INT64_MAX;
    struct change change = {.apply = apply_move, .id = id, .number = number};
    return queue_change(queue, &change, err);
}

static int apply_forget_image(struct batch *batch, struct change *change, struct error *err)
{
    return drop_image(batch, change->value, 0, err);
}

int queue_forget_image(struct queue *queue, const char *image, struct error *err)
{
    struct change change = {.apply = apply_forget_image, .value = image};
    return queue_change(queue, &change, err);
}

static int apply_remove(struct batch *batch, struct change *change, struct error *err)
{
    struct store *store = &batch->queue->writer;
    struct entry entry;
    int rc = find(batch, change->id, &entry, err);
    if (rc == 0 && entry.info.state == JOB_RUNNING) {
        return error_set(err, EBUSY, "job %lld is running: cancel it first", (long long)change->id);
    }
    if (rc == 0) {
        rc = batch_note(batch, QUEUE_REMOVED, change->id, err);
    }
    if (rc == 0) {
        batch->waiting -= entry.info.state == JOB_WAITING;
        rc = store_run(store, STORE_REMOVE, err, "i", change->id);
    }
    return rc == 0 ? store_run(store, STORE_REMOVE_RESULT, err, "i", change->id) : rc;
}

int queue_remove(struct queue *queue, int64_t id, struct error *err)
{
    struct change change = {.apply = apply_remove, .id = id};
    return queue_change(queue, &change, err);
}
