/* SPDX-License-Identifier: MIT */
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "alloc/trace.h"
#include "engine/cpu/backend.h"
#include "engine/described.h"
#include "engine/file.h"
#include "engine/module.h"
#include "engine/pipeline.h"

/* Larger pictures than this are refused: the model has never seen them. */
#define MAX_SIDE_PX 4096
#define CONFIG_BYTES_MAX ((uint64_t)1 << 20)
#define MAX_TOKENS 512

double engine_now(const struct engine *engine)
{
    struct timespec t;

    if (engine != NULL && engine->planned != NULL)
        return described_now(engine->backend);
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void model_path(char *path, size_t size, const char *model, const char *name)
{
    snprintf(path, size, "%s/%s", model, name);
}

static const char *const components[] = {"text_encoder", "text_encoder_2", "transformer", "vae"};
enum { COMPONENTS = sizeof components / sizeof *components };

/* Says so if it is another layout altogether: a single file, or a folder with such files. */
static int check_layout(const char *model, struct error *err)
{
    struct stat st;
    bool any = false;

    if (stat(model, &st) != 0)
        return error_set(err, errno, "%.150s: %s", model, strerror(errno));
    if (!S_ISDIR(st.st_mode))
        return error_set(err, ENOTDIR,
                         "%.150s: is a file: a folder in the layout of diffusers is needed "
                         "(transformer/, vae/, text_encoder/, …)",
                         model);
    for (size_t i = 0; i < COMPONENTS; i++) {
        char folder[4096];

        model_path(folder, sizeof folder, model, components[i]);
        any = any || access(folder, F_OK) == 0 || errno != ENOENT;
    }
    if (!any)
        return error_set(err, ENOENT,
                         "%.150s: no model in the layout of diffusers: neither transformer/ nor "
                         "vae/, text_encoder/ or text_encoder_2/ is there",
                         model);
    return 0;
}

static int open_component(const struct engine *engine, struct checkpoint **files, const char *model,
                          const char *name, struct error *err)
{
    char path[4096];

    model_path(path, sizeof path, model, name);
    return engine->planned != NULL ? checkpoint_imagine(path, files, err)
                                   : checkpoint_open(path, files, err);
}

/* The longest prompt: what the tokenizer's configuration says, if that is there. */
static int read_max_tokens(const char *model, int *tokens, struct error *err)
{
    char path[4096];
    struct json_file *file;
    struct json_reader reader;
    int result;

    *tokens = MAX_TOKENS;
    model_path(path, sizeof path, model, "tokenizer_2/tokenizer_config.json");
    result = json_file_open(path, CONFIG_BYTES_MAX, &file, err);
    if (result == -ENOENT)
        return 0;
    if (result != 0)
        return result;
    reader = json_reader_start(file);
    /* Some files have 10³⁰ for "any": a double. */
    double length = json_get_double_or(&reader, "model_max_length", MAX_TOKENS, 1, 1e300);
    *tokens = length < MAX_TOKENS ? (int)length : MAX_TOKENS;
    result = json_reader_finish(&reader, err);
    json_file_close(file);
    return result;
}

/* Two components that are not made for each other. */
__attribute__((format(printf, 3, 4))) static int mismatch(const char *model, struct error *err,
                                                          const char *format, ...)
{
    char what[160];
    va_list args;

    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    return error_set(err, EINVAL, "%s: %s; are both of one model?", file_label(model), what);
}

static int open_tokenizers(struct engine *engine, const char *model, struct error *err)
{
    char path[4096];

    if (engine->planned != NULL)
        return read_max_tokens(model, &engine->info.max_tokens, err);
    model_path(path, sizeof path, model, "tokenizer");
    if (clip_tokenizer_open(path, &engine->clip_tokenizer, err) != 0)
        return err->code;
    model_path(path, sizeof path, model, "tokenizer_2");
    if (t5_tokenizer_open(path, &engine->t5_tokenizer, err) != 0)
        return err->code;
    if (clip_tokenizer_id_count(engine->clip_tokenizer) > engine->clip.config.vocabulary)
        return mismatch(model, err, "tokenizer has ids up to %d, text_encoder a vocab_size of %d",
                        (int)clip_tokenizer_id_count(engine->clip_tokenizer) - 1,
                        engine->clip.config.vocabulary);
    if (t5_tokenizer_id_count(engine->t5_tokenizer) > engine->t5.config.vocabulary)
        return mismatch(
            model, err, "tokenizer_2 has ids up to %d, text_encoder_2 a vocab_size of %d",
            (int)t5_tokenizer_id_count(engine->t5_tokenizer) - 1, engine->t5.config.vocabulary);
    return read_max_tokens(model, &engine->info.max_tokens, err);
}

static int open_scheduler(struct engine *engine, const char *model, struct error *err)
{
    char path[4096];

    model_path(path, sizeof path, model, "scheduler/scheduler_config.json");
    if (json_file_open(path, CONFIG_BYTES_MAX, &engine->scheduler_file, err) != 0)
        return err->code;
    return sampler_read(&engine->sampler, engine->scheduler_file, err);
}

/* The components are made for each other. */
static int check_widths(const struct engine *engine, const char *model, struct error *err)
{
    const struct transformer_config *config = &engine->transformer.config;
    int latents = engine->vae.config.latent_channels;

    if (config->text_width != engine->t5.config.width)
        return mismatch(model, err,
                        "transformer has a joint_attention_dim of %d, text_encoder_2 a d_model "
                        "of %d",
                        config->text_width, engine->t5.config.width);
    if (config->pooled_width != engine->clip.config.width)
        return mismatch(model, err,
                        "transformer has a pooled_projection_dim of %d, text_encoder a "
                        "hidden_size of %d",
                        config->pooled_width, engine->clip.config.width);
    if (config->channels != 4 * latents)
        return mismatch(model, err,
                        "transformer has %d in_channels, vae %d latent_channels, which pack "
                        "into %d",
                        config->channels, latents, 4 * latents);
    return 0;
}

int engine_open_files(struct engine *engine, const char *model, struct error *err)
{
    if (check_layout(model, err) != 0 ||
        open_component(engine, &engine->clip_files, model, "text_encoder", err) != 0 ||
        open_component(engine, &engine->t5_files, model, "text_encoder_2", err) != 0 ||
        open_component(engine, &engine->transformer_files, model, "transformer", err) != 0 ||
        open_component(engine, &engine->vae_files, model, "vae", err) != 0)
        return err->code;
    return 0;
}

static int open_model(struct engine *engine, const char *model, struct error *err)
{
    const struct backend *backend = engine->backend;

    if (clip_open(&engine->clip, engine->clip_files, backend, err) != 0 ||
        t5_open(&engine->t5, engine->t5_files, backend, err) != 0 ||
        transformer_open(&engine->transformer, engine->transformer_files, backend, err) != 0 ||
        vae_open(&engine->vae, engine->vae_files, backend, err) != 0)
        return err->code;
    if (check_widths(engine, model, err) != 0 || open_tokenizers(engine, model, err) != 0)
        return err->code;
    embeddings_init(&engine->embeddings,
                    (size_t)engine->info.max_tokens * (size_t)engine->t5.config.width,
                    (size_t)engine->clip.config.width);
    return open_scheduler(engine, model, err);
}

int engine_check_model(const char *path, struct error *err)
{
    int result = check_layout(path, err);

    for (size_t i = 0; i < COMPONENTS && result == 0; i++) {
        struct checkpoint *files = NULL;
        char folder[4096];

        model_path(folder, sizeof folder, path, components[i]);
        result = checkpoint_open(folder, &files, err);
        checkpoint_close(files);
    }
    return result;
}

static int open_cpu(struct backend **backend, const struct engine_options *options,
                    struct error *err)
{
    return cpu_backend_create(backend, options->threads, options->vram_budget_bytes, NULL, err);
}

/* The GPU if it can be used, else the CPU and a warning that says why. */
static int open_automatic(struct backend **backend, const struct engine_options *options,
                          char *warning, struct error *err)
{
    struct error why = {0};
    /* The driver comes first: without it, NVIDIA's large libraries need not be opened. */
    void *driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);

    if (driver == NULL)
        error_set(&why, ENODEV, "no NVIDIA driver was found");
    else if (module_open(backend, options->module_dir, "cuda", &why) == 0)
        return 0;
    snprintf(warning, ENGINE_WARNING_BYTES, "computing on the CPU: %s", why.text);
    return open_cpu(backend, options, err);
}

int backend_open(struct backend **backend, const struct engine_options *options, char *warning,
                 struct error *err)
{
    const char *name = options->backend != NULL ? options->backend : "auto";

    if (strcmp(name, "cpu") == 0)
        return open_cpu(backend, options, err);
    if (strcmp(name, "cuda") == 0)
        return module_open(backend, options->module_dir, "cuda", err);
    if (strcmp(name, "auto") != 0)
        return error_set(err, EINVAL, "backend %s: auto, cpu and cuda are possible", name);
    return open_automatic(backend, options, warning, err);
}

static struct block_list *list_of(struct engine *engine, size_t i)
{
    struct block_list *const lists[] = {&engine->clip.blocks, &engine->t5.blocks,
                                        &engine->transformer.condition, &engine->vae.blocks,
                                        &engine->transformer.step};

    return i < sizeof lists / sizeof *lists ? lists[i] : NULL;
}

static int measure_weights(struct engine *engine, struct error *err)
{
    const struct clip_config *clip = &engine->clip.config;
    const struct t5_config *t5 = &engine->t5.config;
    struct block_list *list;

    for (size_t l = 0; (list = list_of(engine, l)) != NULL; l++) {
        for (size_t i = 0; i < list->count; i++) {
            engine->info.weight_bytes += list->blocks[i]->bytes;
            engine->info.parameters += list->blocks[i]->parameters;
        }
        if (offload_measure(list, engine->backend->pages->granule_bytes) != 0)
            return error_set(err, ENOMEM, "out of host memory");
    }
    /* The tables of embeddings stay with the host. */
    engine->info.parameters +=
        (uint64_t)(clip->vocabulary + clip->positions) * (uint64_t)clip->width;
    engine->info.parameters += (uint64_t)t5->vocabulary * (uint64_t)t5->width;
    if (encode_prepare(engine) != 0)
        return error_set(err, ENOMEM, "out of host memory");
    return measure_least_budget(engine, err);
}

/* Not even what operations work in is to be had. */
static int device_full(const struct engine *engine, struct error *err)
{
    struct page_source *pages = engine->backend->pages;
    uint64_t free_bytes = 0, total_bytes = 0;

    (void)pages->ops->memory(pages, &free_bytes, &total_bytes);
    return error_set(err, ENOMEM,
                     "the device has no %s to begin with: of its %s other programs leave %s",
                     size_shown(engine->backend->workspace_bytes).text,
                     size_shown(total_bytes).text, size_shown(free_bytes).text);
}

int engine_reserve(struct engine *engine, const struct engine_options *options, struct error *err)
{
    static const int kinds[] = {MEMORY_TEXT_ENCODERS, MEMORY_TEXT_ENCODERS, MEMORY_WEIGHTS,
                                MEMORY_VAE, MEMORY_WEIGHTS};
    struct arena_options arena = {.evict = offload_evict, .owner = &engine->offload};
    struct arena_request workspace = {engine->backend->workspace_bytes, 0, MEMORY_WORKSPACE};
    struct block_list *list;
    uintptr_t address = 0;
    int result = 0;

    engine->ceiling = UINT64_MAX;
    budget_want(engine, options->vram_budget_bytes);
    engine->budget = budget_wanted(engine);
    if ((engine->planned != NULL ? engine_check(engine, engine->planned, err)
                                 : budget_check(engine, engine->budget, err)) != 0)
        return err->code;
    if (options->trace_path != NULL)
        result = trace_writer_open(&engine->trace, options->trace_path);
    if (result != 0)
        return error_set(err, -result, "trace %s: %s", options->trace_path, strerror(-result));
    arena.budget_bytes = engine->budget;
    arena.trace = engine->trace;
    result = arena_create(&engine->arena, engine->backend->pages, &arena);
    if (result != 0)
        return error_set(err, -result, "addresses for a vram_budget of %s: %s",
                         size_shown(engine->budget).text, strerror(-result));
    memory_charge_context(engine);
    if (workspace.bytes != 0)
        result = arena_alloc(engine->arena, &workspace, &address, NULL);
    if (result == -ENOMEM)
        return device_full(engine, err);
    if (result != 0)
        return error_set(err, -result, "device memory: %s", strerror(-result));
    engine->backend->workspace = (void *)address;
    timeline_init(&engine->timeline, engine->backend);
    offload_init(&engine->offload, engine->backend, engine->arena, &engine->timeline);
    for (size_t l = 0; (list = list_of(engine, l)) != NULL; l++)
        offload_add(&engine->offload, list, kinds[l]);
    return 0;
}

static void describe(struct engine *engine, const char *path)
{
    struct json_reader vae = json_reader_start(checkpoint_config(engine->vae_files));
    size_t length = strlen(path);
    int unit = 2 * vae_enlargement(&engine->vae.config);

    while (length > 1 && path[length - 1] == '/')
        length--;
    size_t first = length;
    while (first > 0 && path[first - 1] != '/')
        first--;
    snprintf(engine->model_name, sizeof engine->model_name, "%.*s", (int)(length - first),
             path + first);
    engine->info.model_name = engine->model_name;
    engine->info.backend = engine->backend->name;
    engine->info.device_name = engine->backend->device_name;
    if (engine->warning[0] != '\0')
        engine->info.warning = engine->warning;
    engine->info.has_guidance = engine->transformer.config.guidance;
    engine->info.native_px = json_get_int_or(&vae, "sample_size", 1024, 1, MAX_SIDE_PX);
    engine->info.native_px -= engine->info.native_px % unit;
    if (engine->info.native_px < unit)
        engine->info.native_px = unit;
    engine->info.default_steps = engine->info.has_guidance ? 28 : 4;
    engine->info.max_side_px = MAX_SIDE_PX;
}

int engine_read(struct engine *engine, const struct engine_options *options, struct error *err)
{
    if (open_model(engine, options->model_path, err) != 0 || measure_weights(engine, err) != 0)
        return err->code;
    describe(engine, options->model_path);
    return 0;
}

int engine_open(struct engine **out, const struct engine_options *options, struct error *err)
{
    struct engine *engine = calloc(1, sizeof *engine);

    if (engine == NULL)
        return error_set(err, ENOMEM, "out of host memory");
    /* (The device is left to others where the model can't be read.) */
    if (engine_open_files(engine, options->model_path, err) != 0 ||
        backend_open(&engine->backend, options, engine->warning, err) != 0 ||
        engine_read(engine, options, err) != 0 || engine_reserve(engine, options, err) != 0) {
        engine_close(engine);
        return err->code;
    }
    *out = engine;
    return 0;
}

void engine_close(struct engine *engine)
{
    struct error ignored;

    if (engine == NULL)
        return;
    while (engine->images != NULL)
        image_finish(engine->images);
    modulations_rest(engine);
    embeddings_finish(&engine->embeddings);
    scratch_finish(&engine->clip_scratch);
    scratch_finish(&engine->t5_scratch);
    if (engine->arena != NULL)
        pass_close(engine);
    offload_finish(&engine->offload);
    if (engine->arena != NULL)
        (void)engine->backend->ops->sync(engine->backend, &ignored);
    arena_destroy(engine->arena);
    trace_writer_close(engine->trace);
    clip_finish(&engine->clip);
    t5_finish(&engine->t5);
    transformer_finish(&engine->transformer);
    vae_finish(&engine->vae);
    clip_tokenizer_close(engine->clip_tokenizer);
    t5_tokenizer_close(engine->t5_tokenizer);
    /* Before the files, which it may be reading. */
    if (engine->backend != NULL)
        engine->backend->ops->destroy(engine->backend);
    checkpoint_close(engine->clip_files);
    checkpoint_close(engine->t5_files);
    checkpoint_close(engine->transformer_files);
    checkpoint_close(engine->vae_files);
    json_file_close(engine->scheduler_file);
    free(engine);
}

const struct engine_info *engine_info(const struct engine *engine)
{
    return &engine->info;
}
