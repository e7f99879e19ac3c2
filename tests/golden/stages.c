/* SPDX-License-Identifier: MIT */
/*
 * Each stage of the models, fed with the reference's input, against the reference's output.
 * usage: stages DATA_FOLDER NAME [BACKEND [MODULE_FOLDER]]
 */
#include <errno.h>

#include "engine/json.h"
#include "engine/checkpoint.h"
#include "engine/model/clip.h"
#include "engine/model/sampler.h"
#include "engine/model/t5.h"
#include "engine/model/transformer.h"
#include "engine/model/vae.h"
#include "tests/golden/golden.h"

struct fixture {
    const char *folder, *name;
    struct golden golden;
    struct golden_device device;
    struct backend *backend; /* the device's */
    struct error err;
    double guidance, sigma;
};

static void fail_on(const struct fixture *f, int result)
{
    if (result != 0) {
        fprintf(stderr, "%s: %s\n", f->name, f->err.text);
        exit(EXIT_FAILURE);
    }
}

static struct checkpoint *component(struct fixture *f, const char *name)
{
    struct checkpoint *files;
    char path[4096];

    snprintf(path, sizeof path, "%s/%s/%s", f->folder, f->name, name);
    fail_on(f, checkpoint_open(path, &files, &f->err));
    return files;
}

/* Everything resident, in memory of the test's own. */
static void load(struct fixture *f, struct block_list *list)
{
    for (size_t i = 0; i < list->count; i++) {
        block_bind(list->blocks[i], golden_device_alloc(&f->device, list->blocks[i]->bytes));
        f->backend->ops->copy_reuse(f->backend);
        block_fill(list->blocks[i], f->backend);
        f->backend->ops->copy_wait(f->backend, f->backend->ops->copy_ticket(f->backend));
    }
    golden_device_sync(&f->device);
}

static void unload(struct fixture *f, struct block_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        golden_device_free(&f->device, list->blocks[i]->memory);
}

static struct tensor buffer(struct fixture *f, enum dtype dtype, int64_t rows, int64_t cols)
{
    struct tensor t = tensor_of(NULL, dtype, rows, cols);

    t.data = golden_device_alloc(&f->device, tensor_bytes(&t));
    return t;
}

/* Of hidden states. */
static struct tensor hidden(struct fixture *f, int64_t rows, int64_t cols)
{
    return buffer(f, f->backend->activation, rows, cols);
}

static void set(struct fixture *f, struct tensor t, const void *values)
{
    f->backend->ops->upload(f->backend, t, values);
}

static struct tensor set_to(struct fixture *f, struct tensor t, const char *name)
{
    set(f, t, golden_tensor(&f->golden, name)->data);
    return t;
}

static void expect(struct fixture *f, const char *name, struct tensor ours)
{
    golden_expect(&f->golden, &f->device, name, ours, STAGE_TOLERANCE);
}

/* Runs `apply` with scratch that is planned by running it twice. */
#define WITH_SCRATCH(f, call)                                                                      \
    do {                                                                                           \
        struct scratch plan = {0};                                                                 \
        struct compute c = {(f)->backend, &plan, true};                                            \
        void *base;                                                                                \
        scratch_record(&plan);                                                                     \
        call;                                                                                      \
        scratch_plan(&plan);                                                                       \
        base = golden_device_alloc(&(f)->device, plan.total_bytes);                                \
        scratch_replay(&plan, base);                                                               \
        c.rehearsal = false;                                                                       \
        call;                                                                                      \
        golden_device_sync(&(f)->device);                                                          \
        scratch_finish(&plan);                                                                     \
        golden_device_free(&(f)->device, base);                                                    \
    } while (0)

static void test_clip(struct fixture *f)
{
    struct checkpoint *files = component(f, "text_encoder");
    const struct stored_tensor *ids = golden_tensor(&f->golden, "clip.ids");
    float *embedded;
    struct clip clip;
    struct tensor x;

    fail_on(f, clip_open(&clip, files, f->backend, &f->err));
    load(f, &clip.blocks);
    x = hidden(f, ids->shape[0], clip.config.width);
    embedded = malloc((size_t)(x.rows * x.cols) * sizeof *embedded);
    fail_on(f, clip_embed(&clip, ids->data, (int)x.rows, embedded, &f->err));
    set(f, x, embedded);
    for (size_t i = 0; i < clip.blocks.count; i++)
        WITH_SCRATCH(f, clip_apply(&c, &clip, i, x));
    expect(f, "clip.hidden", x);
    free(embedded);
    golden_device_free(&f->device, x.data);
    unload(f, &clip.blocks);
    clip_finish(&clip);
    checkpoint_close(files);
}

static void t5_blocks(struct fixture *f, const struct t5 *t5, struct tensor x, struct tensor bias,
                      struct tensor buckets)
{
    char name[64];

    for (size_t i = 0; i < t5->blocks.count; i++) {
        WITH_SCRATCH(f, t5_apply(&c, t5, i, x, bias, buckets));
        snprintf(name, sizeof name, "t5.layer%zu", i / T5_PIECES - 1);
        if (i > 0 && i % T5_PIECES == 0 && golden_has(&f->golden, name))
            expect(f, name, x);
    }
    expect(f, "t5.hidden", x);
}

static void test_t5(struct fixture *f)
{
    struct checkpoint *files = component(f, "text_encoder_2");
    const struct stored_tensor *ids = golden_tensor(&f->golden, "t5.ids");
    int n = (int)ids->shape[0];
    struct tensor x, bias, buckets;
    float *embedded;
    int32_t *host;
    struct t5 t5;

    fail_on(f, t5_open(&t5, files, f->backend, &f->err));
    load(f, &t5.blocks);
    x = hidden(f, n, t5.config.width);
    bias = buffer(f, DTYPE_F32, (int64_t)n * t5.config.heads, n);
    buckets = buffer(f, DTYPE_I32, n, n);
    host = malloc((size_t)n * (size_t)n * sizeof *host);
    t5_buckets(&t5.config, n, host);
    set(f, buckets, host);
    embedded = malloc((size_t)(x.rows * x.cols) * sizeof *embedded);
    fail_on(f, t5_embed(&t5, ids->data, n, embedded, &f->err));
    set(f, x, embedded);
    t5_blocks(f, &t5, x, bias, buckets);
    free(embedded);
    free(host);
    golden_device_free(&f->device, x.data);
    golden_device_free(&f->device, bias.data);
    golden_device_free(&f->device, buckets.data);
    unload(f, &t5.blocks);
    t5_finish(&t5);
    checkpoint_close(files);
}

struct step_buffers {
    struct transformer_condition condition;
    struct transformer_step step;
};

/* A sinusoid against the reference's, and as an operand. */
static struct tensor sinusoid(struct fixture *f, double value, const char *name)
{
    float host[SINUSOID_WIDTH];
    struct tensor t = hidden(f, 1, SINUSOID_WIDTH);

    transformer_sinusoid((float)value * 1000, host);
    if (golden_has(&f->golden, name))
        golden_expect_values(&f->golden, name, host, STAGE_TOLERANCE);
    set(f, t, host);
    return t;
}

static void condition_stage(struct fixture *f, const struct transformer *t, struct step_buffers *b)
{
    const struct transformer_config *config = &t->config;
    struct transformer_condition *args = &b->condition;
    int64_t text = golden_tensor(&f->golden, "t5.hidden")->shape[0];
    float *temb = malloc((size_t)config->width * sizeof *temb), *ours;
    const float *theirs = golden_tensor(&f->golden, "transformer.temb")->data;
    double tolerance =
        golden_tolerance(&f->golden, "transformer.temb", f->backend->activation, STAGE_TOLERANCE);

    args->time = sinusoid(f, f->sigma, "transformer.time");
    args->guidance = sinusoid(f, f->guidance, "transformer.guidance");
    args->pooled = set_to(f, hidden(f, 1, config->pooled_width), "clip.pooled");
    args->prompt = set_to(f, hidden(f, text, config->text_width), "t5.hidden");
    args->text = hidden(f, text, config->width);
    args->embedding = hidden(f, 1, config->width);
    args->modulations = buffer(f, DTYPE_F32, 1, t->modulation_width);
    for (size_t i = 0; i < t->condition.count; i++)
        WITH_SCRATCH(f, transformer_condition(&c, t, i, args));
    /* What is kept is the SiLU of the embedding. */
    for (int i = 0; i < config->width; i++)
        temb[i] = theirs[i] / (1 + expf(-theirs[i]));
    ours = golden_values(&f->device, args->embedding);
    double distance = golden_distance(ours, temb, (size_t)config->width);
    EXPECT(distance <= tolerance, "%s temb: %g > %g", f->name, distance, tolerance);
    expect(f, "transformer.embedded.text", args->text);
    free(temb);
    free(ours);
}

/* Both streams of the hidden states against the reference, and then set to it, so that each block
 * is judged alone. Behind the last block we have no text. */
static void expect_streams(struct fixture *f, const char *stage, struct transformer_step *args,
                           bool last)
{
    char name[64];
    struct tensor text = tensor_rows(args->hidden, 0, args->text.rows);
    struct tensor image = tensor_rows(args->hidden, args->text.rows, args->latents.rows);

    snprintf(name, sizeof name, "transformer.%s.image", stage);
    expect(f, name, image);
    set_to(f, image, name);
    snprintf(name, sizeof name, "transformer.%s.text", stage);
    if (!last)
        expect(f, name, text);
    set_to(f, text, name);
}

/* The name of the stage that piece i ends, if it does, and how many blocks that makes: each of the
 * reference's is several pieces of ours. */
static bool stage_after(const struct transformer_config *config, size_t i, char stage[32],
                        size_t *blocks)
{
    size_t doubles = DOUBLE_PIECES * (size_t)config->doubles;
    size_t singles = SINGLE_PIECES * (size_t)config->singles;

    *blocks =
        i <= doubles ? i / DOUBLE_PIECES : (size_t)config->doubles + (i - doubles) / SINGLE_PIECES;
    if (i == 0)
        snprintf(stage, 32, "embedded");
    else if (i <= doubles)
        snprintf(stage, 32, "double%zu", *blocks - 1);
    else
        snprintf(stage, 32, "single%zu", (i - doubles) / SINGLE_PIECES - 1);
    if (i <= doubles)
        return i % DOUBLE_PIECES == 0;
    return i <= doubles + singles && (i - doubles) % SINGLE_PIECES == 0;
}

static void step_stage(struct fixture *f, const struct transformer *t, struct step_buffers *b,
                       int height, int width)
{
    const struct transformer_config *config = &t->config;
    struct transformer_step *args = &b->step;
    int text = (int)b->condition.text.rows;
    int64_t image = (int64_t)height * width;
    float *rope = malloc((size_t)((text + image) * config->head_size) * sizeof *rope);

    args->latents = set_to(f, buffer(f, DTYPE_F32, image, config->channels), "noise.tokens");
    args->text = b->condition.text;
    args->modulation = b->condition.modulations;
    args->hidden = hidden(f, text + image, config->width);
    args->carried = hidden(f, text + image, config->width);
    args->rope = buffer(f, DTYPE_F32, text + image, config->head_size);
    args->velocity = buffer(f, DTYPE_F32, image, config->channels);
    transformer_rope(config, text, height, width, rope);
    set(f, args->rope, rope);
    free(rope);
    for (size_t i = 0; i < t->step.count; i++) {
        char stage[32];
        size_t blocks;

        WITH_SCRATCH(f, transformer_apply(&c, t, i, args));
        if (!stage_after(config, i, stage, &blocks))
            continue;
        expect_streams(f, stage, args, i + 2 == t->step.count);
        WITH_SCRATCH(f, transformer_enter(&c, t, blocks, args));
    }
    expect(f, "transformer.velocity", args->velocity);
}

static void test_transformer(struct fixture *f)
{
    struct checkpoint *files = component(f, "transformer");
    const struct stored_tensor *noise = golden_tensor(&f->golden, "noise.latents");
    struct step_buffers b = {0};
    struct transformer t;

    fail_on(f, transformer_open(&t, files, f->backend, &f->err));
    load(f, &t.condition);
    load(f, &t.step);
    condition_stage(f, &t, &b);
    step_stage(f, &t, &b, (int)noise->shape[1] / 2, (int)noise->shape[2] / 2);
    void *buffers[] = {
        b.condition.time.data,        b.condition.guidance.data, b.condition.pooled.data,
        b.condition.prompt.data,      b.condition.text.data,     b.condition.embedding.data,
        b.condition.modulations.data, b.step.latents.data,       b.step.hidden.data,
        b.step.carried.data,          b.step.rope.data,          b.step.velocity.data};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        golden_device_free(&f->device, buffers[i]);
    unload(f, &t.condition);
    unload(f, &t.step);
    transformer_finish(&t);
    checkpoint_close(files);
}

/* latents [c, h, w] → tokens [h/2·w/2, 4c] */
static struct tensor pack(struct fixture *f, const struct stored_tensor *latents)
{
    int64_t channels = latents->shape[0], h = latents->shape[1], w = latents->shape[2];
    struct tensor tokens = buffer(f, DTYPE_F32, h / 2 * (w / 2), 4 * channels);
    const float *from = latents->data;
    float *to = malloc(tensor_bytes(&tokens));

    for (int64_t c = 0; c < channels; c++)
        for (int64_t y = 0; y < h; y++)
            for (int64_t x = 0; x < w; x++)
                to[(y / 2 * (w / 2) + x / 2) * 4 * channels + c * 4 + y % 2 * 2 + x % 2] =
                    from[(c * h + y) * w + x];
    set(f, tokens, to);
    free(to);
    return tokens;
}

static void decode(struct compute *c, const struct vae *vae, struct tensor tokens, int h, int w,
                   struct tensor pixels, uint64_t whole_bytes)
{
    struct vae_image image = vae_begin(c, vae, tokens, h, w, whole_bytes);

    for (size_t i = 0; i < vae->blocks.count; i++)
        vae_apply(c, vae, i, &image, pixels);
    vae_end(c, &image);
}

/* The picture, to be freed, with layers kept whole where they take so many bytes at most. */
static float *decode_pixels(struct fixture *f, const struct vae *vae, struct tensor tokens,
                            const struct stored_tensor *latents, uint64_t whole_bytes)
{
    int h = (int)latents->shape[1], w = (int)latents->shape[2];
    int side = vae_enlargement(&vae->config);
    struct tensor pixels = buffer(f, DTYPE_F32, (int64_t)h * side * w * side, 3);
    float *values;

    WITH_SCRATCH(f, decode(&c, vae, tokens, h, w, pixels, whole_bytes));
    values = golden_values(&f->device, pixels);
    golden_device_free(&f->device, pixels.data);
    return values;
}

/* Planes of a picture decoded in strips as thin as they come, with everything kept whole, or with
 * pictures of so many bytes at most; the same bits every time. */
static float *decode_planes(struct fixture *f, const struct vae *vae,
                            const struct stored_tensor *latents)
{
    struct tensor tokens = pack(f, latents);
    int side = vae_enlargement(&vae->config);
    size_t pixels = (size_t)(latents->shape[1] * latents->shape[2] * side * side);
    float *planes = malloc(3 * pixels * sizeof *planes), *whole, *strips;

    f->backend->strip_pixels = 1;
    whole = decode_pixels(f, vae, tokens, latents, UINT64_MAX);
    for (uint64_t limit = 0; limit <= 24 * pixels * sizeof *whole; limit = 4 * limit + 512) {
        strips = decode_pixels(f, vae, tokens, latents, limit);
        EXPECT(memcmp(strips, whole, 3 * pixels * sizeof *whole) == 0,
               "%s: windows over pictures of more than %llu bytes", f->name,
               (unsigned long long)limit);
        free(strips);
    }
    for (size_t p = 0; p < pixels; p++)
        for (size_t k = 0; k < 3; k++)
            planes[k * pixels + p] = whole[p * 3 + k];
    free(whole);
    golden_device_free(&f->device, tokens.data);
    return planes;
}

static void test_vae(struct fixture *f, const char *prefix)
{
    struct checkpoint *files = component(f, "vae");
    char name[64];
    const struct stored_tensor *latents;
    struct vae vae;
    float *planes;

    snprintf(name, sizeof name, "%s.latents", prefix);
    latents = golden_tensor(&f->golden, name);
    fail_on(f, vae_open(&vae, files, f->backend, &f->err));
    load(f, &vae.blocks);
    planes = decode_planes(f, &vae, latents);
    snprintf(name, sizeof name, "%s.rgb", prefix);
    golden_expect_values(
        &f->golden, name, planes,
        golden_tolerance(&f->golden, name, f->backend->activation, STAGE_TOLERANCE));
    free(planes);
    unload(f, &vae.blocks);
    vae_finish(&vae);
    checkpoint_close(files);
}

static void read_manifest(struct fixture *f)
{
    struct json_file *file;
    struct json_reader reader;
    char path[4096];

    snprintf(path, sizeof path, "%s/%s.json", f->folder, f->name);
    fail_on(f, json_file_open(path, 1 << 20, &file, &f->err));
    reader = json_reader_start(file);
    f->guidance = json_get_double_or(&reader, "guidance", 0, 0, 1000);
    f->sigma = json_get_double(&reader, "sigma", 0, 1);
    fail_on(f, json_reader_finish(&reader, &f->err));
    json_file_close(file);
}

int main(int argc, char **argv)
{
    struct fixture f = {0};

    if (argc < 3 || argc > 5)
        return EXIT_FAILURE;
    f.folder = argv[1];
    f.name = argv[2];
    golden_device_open(&f.device, argc > 3 ? argv[3] : "cpu", argc > 4 ? argv[4] : NULL);
    f.backend = f.device.backend;
    golden_open(&f.golden, f.folder, f.name);
    read_manifest(&f);
    test_clip(&f);
    test_t5(&f);
    test_transformer(&f);
    test_vae(&f, "final");
    test_vae(&f, "square");
    golden_close(&f.golden);
    golden_device_close(&f.device);
    return test_finish();
}
