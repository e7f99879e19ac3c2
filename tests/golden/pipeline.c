/* SPDX-License-Identifier: MIT */
/*
 * The engine's own face against the reference: latents after every step, and the picture.
 * usage: pipeline checkpoint DATA_FOLDER NAME [BACKEND [MODULE_FOLDER]]
 *        pipeline mini MODEL RUNS_FOLDER [BACKEND [MODULE_FOLDER]]
 */
#include <errno.h>
#include <jansson.h>
#include <png.h>

#include "engine/pipeline.h"
#include "tests/golden/golden.h"

#define LEAST_PSNR_DB 45.0
#define BF16_ROOM_DB 1.0 /* below diffusers' own picture in bf16 */

static struct error err;
static struct engine_options options = {.backend = "cpu", .threads = 2};

static void fail_on(int result)
{
    if (result != 0) {
        fprintf(stderr, "%s\n", err.text);
        exit(EXIT_FAILURE);
    }
}

static struct engine *open_engine(const char *model)
{
    struct engine *engine;
    int result;

    options.model_path = model;
    result = engine_open(&engine, &options, &err);
    if (result == -ENODEV || result == -ENOENT)
        exit(test_skip(err.text));
    fail_on(result);
    return engine;
}

/* Advances until the image has done so many steps (or all, and is decoded). */
static void advance_to(struct engine *engine, struct image *image, int step)
{
    while (image_phase(image) < IMAGE_DONE && (image->step < step || step > image->request.steps))
        fail_on(engine_advance(engine, &err));
    fail_on(image_error(image, &err));
}

static double psnr_db(const uint8_t *ours, const uint8_t *theirs, size_t count)
{
    double squares = 0;

    for (size_t i = 0; i < count; i++)
        squares += ((double)ours[i] - theirs[i]) * ((double)ours[i] - theirs[i]);
    return squares == 0 ? 99 : 10 * log10(255.0 * 255.0 * (double)count / squares);
}

static void expect_picture(const char *label, const uint8_t *ours, const uint8_t *theirs,
                           size_t count, double least_db)
{
    double db = psnr_db(ours, theirs, count);

    printf("%-14s picture %.1f dB of %.1f\n", label, db, least_db);
    EXPECT(db >= least_db, "%s: %.1f dB", label, db);
}

static bool computes_in_fp32(const struct engine *engine)
{
    return engine->backend->activation == DTYPE_F32;
}

static struct image *start(struct engine *engine, const struct image_request *request)
{
    struct image *image;

    fail_on(image_start(&image, engine, request, NULL, &err));
    return image;
}

static void expect_latents(struct engine *engine, const struct golden *golden, const char *name,
                           struct tensor latents)
{
    float *values = malloc((size_t)(latents.rows * latents.cols) * sizeof *values);

    engine->backend->ops->download(engine->backend, values, latents);
    fail_on(engine->backend->ops->sync(engine->backend, &err));
    golden_expect_values(
        golden, name, values,
        golden_tolerance(golden, name, engine->backend->activation, FINAL_TOLERANCE));
    free(values);
}

static void expect_steps(struct engine *engine, const struct golden *golden, const char *prefix,
                         struct image_request request, const char *picture)
{
    struct image *image = start(engine, &request);
    const struct stored_tensor *rgb;
    char name[64];

    for (int step = 1; step <= request.steps; step++) {
        advance_to(engine, image, step);
        snprintf(name, sizeof name, "%s.step%d", prefix, step);
        expect_latents(engine, golden, name, image->latents);
    }
    if (picture != NULL) {
        rgb = golden_tensor(golden, picture);
        advance_to(engine, image, request.steps + 1);
        expect_picture(golden->label, image_pixels(image), rgb->data, golden_count(rgb),
                       LEAST_PSNR_DB);
    }
    image_finish(image);
}

static int test_checkpoint(const char *folder, const char *name)
{
    struct golden golden;
    struct json_file *file;
    struct json_reader reader;
    struct image_request request = {.cfg_scale = 1};
    struct engine *engine;
    char path[4096];

    golden_open(&golden, folder, name);
    snprintf(path, sizeof path, "%s/%s.json", folder, name);
    fail_on(json_file_open(path, 1 << 20, &file, &err));
    reader = json_reader_start(file);
    request.prompt = json_get_string(&reader, "prompt");
    request.width_px = json_get_int(&reader, "width", 1, 4096);
    request.height_px = json_get_int(&reader, "height", 1, 4096);
    request.seed = (uint64_t)json_get_int(&reader, "seed", 0, 1 << 30);
    request.guidance = (float)json_get_double_or(&reader, "guidance", 0, 0, 100);
    fail_on(json_reader_finish(&reader, &err));
    snprintf(path, sizeof path, "%s/%s", folder, name);
    engine = open_engine(path);

    request.steps = 3;
    expect_steps(engine, &golden, "euler3", request, NULL);
    request.steps = 4;
    expect_steps(engine, &golden, "euler4", request, "final.rgb8");
    if (golden_has(&golden, "cfg.step1")) {
        request.steps = 3;
        request.cfg_scale = (float)json_get_double(&reader, "cfg_scale", 0, 100);
        request.negative = json_get_string(&reader, "negative_prompt");
        expect_steps(engine, &golden, "cfg", request, NULL);
    }
    engine_close(engine);
    json_file_close(file);
    golden_close(&golden);
    return test_finish();
}

static uint8_t *read_png(const char *path, int width, int height)
{
    png_image png = {.version = PNG_IMAGE_VERSION};
    uint8_t *pixels = malloc((size_t)width * (size_t)height * 3);

    if (!png_image_begin_read_from_file(&png, path) || (int)png.width != width ||
        (int)png.height != height) {
        fprintf(stderr, "%s: %s\n", path, png.message);
        exit(EXIT_FAILURE);
    }
    png.format = PNG_FORMAT_RGB;
    png_image_finish_read(&png, NULL, pixels, 0, NULL);
    return pixels;
}

static void mini_run(struct engine *engine, const char *folder, const json_t *run)
{
    struct image_request request = {
        .prompt = json_string_value(json_object_get(run, "prompt")),
        .width_px = (int)json_integer_value(json_object_get(run, "width")),
        .height_px = (int)json_integer_value(json_object_get(run, "height")),
        .steps = (int)json_integer_value(json_object_get(run, "steps")),
        .guidance = (float)json_number_value(json_object_get(run, "guidance")),
        .seed = (uint64_t)json_integer_value(json_object_get(run, "seed")),
        .cfg_scale = 1,
    };
    const char *picture = json_string_value(json_object_get(run, "picture"));
    const json_t *sigmas = json_object_get(run, "sigmas");
    struct image *image = start(engine, &request);
    char path[4096];
    uint8_t *theirs;

    for (size_t i = 0; i < json_array_size(sigmas); i++)
        EXPECT(fabs(image->sigmas[i] - json_number_value(json_array_get(sigmas, i))) < 1e-6);
    advance_to(engine, image, request.steps + 1);
    snprintf(path, sizeof path, "%s/%s", folder, picture);
    theirs = read_png(path, request.width_px, request.height_px);
    expect_picture(picture, image_pixels(image), theirs,
                   (size_t)request.width_px * (size_t)request.height_px * 3,
                   computes_in_fp32(engine)
                       ? LEAST_PSNR_DB
                       : json_number_value(json_object_get(run, "bf16_db")) - BF16_ROOM_DB);
    free(theirs);
    image_finish(image);
}

static int test_mini(const char *model, const char *folder)
{
    struct engine *engine = open_engine(model);
    json_error_t error;
    json_t *runs;
    char path[4096];

    snprintf(path, sizeof path, "%s/runs.json", folder);
    runs = json_load_file(path, 0, &error);
    EXPECT(json_array_size(runs) == 3);
    for (size_t i = 0; i < json_array_size(runs); i++)
        mini_run(engine, folder, json_array_get(runs, i));
    json_decref(runs);
    engine_close(engine);
    return test_finish();
}

int main(int argc, char **argv)
{
    if (argc < 4 || argc > 6)
        return EXIT_FAILURE;
    if (argc > 4)
        options.backend = argv[4];
    if (argc > 5)
        options.module_dir = argv[5];
    if (strcmp(argv[1], "checkpoint") == 0)
        return test_checkpoint(argv[2], argv[3]);
    if (strcmp(argv[1], "mini") == 0)
        return test_mini(argv[2], argv[3]);
    return EXIT_FAILURE;
}
