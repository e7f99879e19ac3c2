/* SPDX-License-Identifier: MIT */
/* Prompts through the text encoders: CLIP for all of them, then T5 for all of them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model/text.h"
#include "engine/pipeline.h"

/* One prompt on its way. */
struct lane {
    struct embedding *embedding;
    struct tensor x;        /* hidden states in the present encoder */
    int end;                /* CLIP: place of the end-of-text token */
    struct scratch scratch; /* cursor into the present encoder's plan */
};

struct round {
    struct engine *engine;
    struct lane lanes[PASS_LANES];
    size_t count;
    size_t blocks_done;          /* of both encoders, for progress */
    struct tensor bias, buckets; /* T5: shared by all prompts */
    float *host;                 /* room for the embeddings of one prompt */
    int32_t *ids;
};

/* What differs between the encoders. */
struct encoder {
    struct block_list *list;
    const struct scratch *plan;
    /* Places the operands, behind the scratch, in the workspace at `base` (0: nowhere); returns
     * how long it is. */
    uint64_t (*place)(struct round *round, uintptr_t base);
    int (*start)(struct round *round, struct lane *lane, struct error *err);
    void (*apply)(struct compute *c, const struct round *round, size_t block,
                  const struct lane *lane);
    void (*take)(struct compute *c, const struct lane *lane);
};

/* ---- CLIP ---- */

static struct tensor imagined(enum dtype dtype, int64_t rows, int64_t cols)
{
    return tensor_of(NULL, dtype, rows, cols);
}

static int rehearse_clip(const struct engine *engine, struct scratch *scratch)
{
    struct compute c = pass_rehearsal(engine, scratch);
    const struct clip_config *config = &engine->clip.config;

    for (size_t i = 0; i < engine->clip.blocks.count; i++)
        clip_apply(&c, &engine->clip, i,
                   imagined(engine->backend->activation, config->positions, config->width));
    return scratch_plan(scratch);
}

static uint64_t clip_place(struct round *round, uintptr_t base)
{
    const struct engine *engine = round->engine;
    const struct clip_config *config = &engine->clip.config;
    uint64_t at = engine->clip_scratch.total_bytes;

    for (size_t l = 0; l < round->count; l++)
        round->lanes[l].x =
            memory_place(base, &at, engine->backend->activation, config->positions, config->width);
    return at;
}

static int clip_start(struct round *round, struct lane *lane, struct error *err)
{
    struct engine *engine = round->engine;
    int positions = engine->clip.config.positions;
    struct compute c = pass_compute(engine, NULL);

    if (engine->planned != NULL) /* whatever the words are */
        return 0;
    lane->end = clip_tokenizer_encode(engine->clip_tokenizer, lane->embedding->prompt, round->ids,
                                      positions, err);
    if (lane->end < 0 || clip_embed(&engine->clip, round->ids, positions, round->host, err) != 0)
        return err->code;
    op_upload(&c, lane->x, round->host);
    return 0;
}

static void clip_step(struct compute *c, const struct round *round, size_t block,
                      const struct lane *lane)
{
    clip_apply(c, &round->engine->clip, block, lane->x);
}

static void clip_take(struct compute *c, const struct lane *lane)
{
    op_download(c, lane->embedding->pooled, tensor_rows(lane->x, lane->end, 1));
}

/* ---- T5 ---- */

static int rehearse_t5(const struct engine *engine, struct scratch *scratch)
{
    struct compute c = pass_rehearsal(engine, scratch);
    const struct t5_config *config = &engine->t5.config;
    int64_t n = engine->info.max_tokens;

    for (size_t i = 0; i < engine->t5.blocks.count; i++)
        t5_apply(&c, &engine->t5, i, imagined(engine->backend->activation, n, config->width),
                 imagined(DTYPE_F32, config->heads * n, n), imagined(DTYPE_I32, n, n));
    return scratch_plan(scratch);
}

static uint64_t t5_place(struct round *round, uintptr_t base)
{
    const struct engine *engine = round->engine;
    const struct t5_config *config = &engine->t5.config;
    int64_t n = engine->info.max_tokens;
    uint64_t at = engine->t5_scratch.total_bytes;

    round->bias = memory_place(base, &at, DTYPE_F32, config->heads * n, n);
    round->buckets = memory_place(base, &at, DTYPE_I32, n, n);
    for (size_t l = 0; l < round->count; l++)
        round->lanes[l].x = memory_place(base, &at, engine->backend->activation, n, config->width);
    return at;
}

/* The first prompt brings the position bias with it. */
static int bias_start(const struct round *round, struct error *err)
{
    const struct engine *engine = round->engine;
    struct compute c = pass_compute(engine, NULL);
    int n = engine->info.max_tokens;
    int32_t *buckets = malloc((size_t)n * (size_t)n * sizeof *buckets);

    if (buckets == NULL)
        return error_set(err, ENOMEM, "out of host memory");
    t5_buckets(&engine->t5.config, n, buckets);
    op_upload(&c, round->buckets, buckets);
    free(buckets);
    return 0;
}

static int t5_start(struct round *round, struct lane *lane, struct error *err)
{
    struct engine *engine = round->engine;
    int n = engine->info.max_tokens;
    struct compute c = pass_compute(engine, NULL);

    if (engine->planned != NULL)
        return 0;
    if (lane == round->lanes && bias_start(round, err) != 0)
        return err->code;
    if (t5_tokenizer_encode(engine->t5_tokenizer, lane->embedding->prompt, round->ids, n, err) <
            0 ||
        t5_embed(&engine->t5, round->ids, n, round->host, err) != 0)
        return err->code;
    op_upload(&c, lane->x, round->host);
    return 0;
}

static void t5_step(struct compute *c, const struct round *round, size_t block,
                    const struct lane *lane)
{
    if (block > 0 || lane == round->lanes)
        t5_apply(c, &round->engine->t5, block, lane->x, round->bias, round->buckets);
}

static void t5_take(struct compute *c, const struct lane *lane)
{
    op_download(c, lane->embedding->tokens, lane->x);
}

/* ---- both ---- */

static struct encoder clip_encoder(struct engine *engine)
{
    return (struct encoder){
        &engine->clip.blocks, &engine->clip_scratch, clip_place, clip_start, clip_step, clip_take};
}

static struct encoder t5_encoder(struct engine *engine)
{
    return (struct encoder){
        &engine->t5.blocks, &engine->t5_scratch, t5_place, t5_start, t5_step, t5_take};
}

static void report(const struct round *round, const char *kind)
{
    const struct engine *engine = round->engine;
    size_t blocks = engine->clip.blocks.count + engine->t5.blocks.count;

    for (struct image *image = engine->images; image != NULL; image = image->next)
        if (image->served && !atomic_load(&image->cancelled))
            image_report(image, round->blocks_done, blocks, kind);
}

static bool all_cancelled(const struct round *round)
{
    for (struct image *image = round->engine->images; image != NULL; image = image->next)
        if (image->served && !atomic_load(&image->cancelled))
            return false;
    return true;
}

/* What the host has to do for images before their steps, while the device is busy; where memory is
 * out, they will be told when they need it. It is no part of the last block's computing. */
static void draw_early(struct round *round)
{
    timeline_end(&round->engine->timeline);
    for (struct image *image = round->engine->images; image != NULL; image = image->next)
        if (image->served && !atomic_load(&image->cancelled))
            (void)image_draw(image);
}

static int run_encoder(struct round *round, const struct encoder *encoder, struct error *err)
{
    struct engine *engine = round->engine;

    if (pass_open(engine, encoder->list, encoder->place(round, 0), err) != 0)
        return err->code;
    encoder->place(round, engine->workspace);
    for (size_t l = 0; l < round->count; l++) {
        if (encoder->start(round, &round->lanes[l], err) != 0)
            return err->code;
        round->lanes[l].scratch = pass_cursor(engine, encoder->plan);
    }
    for (size_t i = 0; i < encoder->list->count && !all_cancelled(round); i++) {
        if (pass_block(engine, i, false, err) != 0)
            return err->code;
        for (size_t l = 0; l < round->count; l++) {
            struct compute c = pass_compute(engine, &round->lanes[l].scratch);

            encoder->apply(&c, round, i, &round->lanes[l]);
        }
        round->blocks_done++;
        report(round, encoder->list->blocks[i]->kind);
    }
    if (encoder->list == &engine->t5.blocks) /* the device has more to do with these */
        draw_early(round);
    for (size_t l = 0; l < round->count; l++) {
        struct compute c = pass_compute(engine, NULL);

        encoder->take(&c, &round->lanes[l]);
    }
    return pass_sync(engine, err);
}

/* Workspace and weights for the prompts of a round. */
static uint64_t encoder_bytes(struct round *round, const struct encoder *encoder)
{
    return in_pages(round->engine, encoder->place(round, 0)) + encoder->list->least_bytes;
}

static uint64_t round_bytes(struct round *round)
{
    struct encoder clip = clip_encoder(round->engine), t5 = t5_encoder(round->engine);
    uint64_t bytes = encoder_bytes(round, &clip), other = encoder_bytes(round, &t5);

    return bytes > other ? bytes : other;
}

int encode_prepare(struct engine *engine)
{
    struct round round = {.engine = engine, .count = 1};

    if (rehearse_clip(engine, &engine->clip_scratch) != 0 ||
        rehearse_t5(engine, &engine->t5_scratch) != 0)
        return -ENOMEM;
    engine->encode_bytes = round_bytes(&round);
    return 0;
}

bool encode_needed(const struct image *image)
{
    for (int b = 0; b < image->branch_count; b++)
        if (!image->branches[b].embedding->ready)
            return true;
    return false;
}

/* Makes a prompt one of the round's if there is room; whether it is. */
static bool add_prompt(struct round *round, struct embedding *embedding)
{
    for (size_t l = 0; l < round->count; l++)
        if (round->lanes[l].embedding == embedding)
            return true;
    if (round->count == PASS_LANES)
        return false;
    round->lanes[round->count++].embedding = embedding;
    if (round->count == 1 || round_bytes(round) <= engine_room(round->engine))
        return true;
    round->count--;
    return false;
}

/* The prompts that are not embedded yet, each once, as many as there is room for. */
static void collect(struct round *round)
{
    for (struct image *image = round->engine->images; image != NULL; image = image->next)
        for (int b = 0; image_active(image) && b < image->branch_count; b++) {
            struct embedding *embedding = image->branches[b].embedding;

            if (embedding->ready || !add_prompt(round, embedding))
                continue;
            image->served = true;
            image->phase = IMAGE_TEXT;
        }
    for (size_t i = 0; i < round->engine->expected_count; i++)
        if (!round->engine->expected[i]->ready)
            add_prompt(round, round->engine->expected[i]);
}

/* Prompts of active images that are not embedded yet, each once. */
static size_t prompts_needed(const struct engine *engine)
{
    const struct embedding *needed[PASS_LANES];
    size_t count = 0;

    for (const struct image *image = engine->images; image != NULL; image = image->next)
        for (int b = 0; image_active(image) && b < image->branch_count; b++) {
            const struct embedding *embedding = image->branches[b].embedding;
            bool known = embedding->ready;

            for (size_t i = 0; i < count; i++)
                known |= needed[i] == embedding;
            if (!known && count < PASS_LANES)
                needed[count++] = embedding;
        }
    return count;
}

static uint64_t missing_bytes(const struct block_list *list)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < list->count; i++)
        bytes += list->blocks[i]->memory == NULL ? list->blocks[i]->bytes : 0;
    return bytes;
}

bool engine_cuts(const struct engine *engine, const char *prompt)
{
    int n = engine->info.max_tokens + 1;
    int32_t *ids = malloc((size_t)n * sizeof *ids);
    bool cuts = ids != NULL && t5_tokenizer_encode(engine->t5_tokenizer, prompt, ids, n, NULL) == n;

    free(ids);
    return cuts;
}

size_t engine_wanted_prompts(const struct engine *engine)
{
    const struct timeline_sums *sums = &engine->timeline.sums;
    uint64_t missing = missing_bytes(&engine->clip.blocks) + missing_bytes(&engine->t5.blocks);
    double rate = sums->copy_bytes > 0 ? sums->copy_s / (double)sums->copy_bytes : 0;
    size_t needed = prompts_needed(engine), wanted = needed;

    if (needed == 0 || engine->prompt_s <= 0)
        return 0;
    while (wanted < PASS_LANES && (double)missing * rate > 1.1 * engine->prompt_s * (double)wanted)
        wanted++;
    return wanted - needed;
}

void engine_expect(struct engine *engine, const char *const *prompts, size_t count)
{
    struct error ignored;
    size_t before = engine->expected_count;
    struct embedding *released[PASS_LANES];

    memcpy(released, engine->expected, sizeof released);
    engine->expected_count = 0;
    for (size_t i = 0; i < count && engine->expected_count < PASS_LANES; i++) {
        struct embedding *embedding = NULL;

        /* Another's prompt must not be what a picture fails for. */
        if (text_check(prompts[i], strlen(prompts[i]), &ignored) == 0)
            embedding = embeddings_hold(&engine->embeddings, prompts[i]);
        if (embedding != NULL)
            engine->expected[engine->expected_count++] = embedding;
    }
    for (size_t i = 0; i < before; i++)
        embedding_release(&engine->embeddings, released[i]);
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

int encode_round(struct engine *engine, struct error *err)
{
    struct round round = {.engine = engine};
    struct encoder clip = clip_encoder(engine), t5 = t5_encoder(engine);
    size_t positions = (size_t)engine->clip.config.positions;
    size_t tokens = (size_t)engine->info.max_tokens;
    double before = engine->timeline.sums.compute_s;
    int result = 0;

    collect(&round);
    round.host = malloc(larger(positions * (size_t)engine->clip.config.width,
                               tokens * (size_t)engine->t5.config.width) *
                        sizeof *round.host);
    round.ids = malloc(larger(positions, tokens) * sizeof *round.ids);
    if (round.host == NULL || round.ids == NULL)
        result = error_set(err, ENOMEM, "out of host memory");
    if (result == 0)
        result = run_encoder(&round, &clip, err);
    if (result == 0)
        result = run_encoder(&round, &t5, err);
    for (size_t l = 0; result == 0 && !all_cancelled(&round) && l < round.count; l++) {
        round.lanes[l].embedding->ready = true;
        engine->prompt_s = (engine->timeline.sums.compute_s - before) / (double)round.count;
    }
    free(round.host);
    free(round.ids);
    return result;
}
