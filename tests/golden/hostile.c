/* SPDX-License-Identifier: MIT */
/*
 * Damaged checkpoints: each gives one line that names the file and the tensor or key, when it is
 * opened or when the first picture meets the damage, and nothing is left behind.
 * usage: hostile DATA_FOLDER
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "engine/engine.h"
#include "tests/golden/damage.h"
#include "tests/test.h"

#define CLIP "text_encoder/model.safetensors"
#define T5 "text_encoder_2/model.safetensors"
#define FLUX "transformer/diffusion_pytorch_model.safetensors"
#define VAE "vae/diffusion_pytorch_model.safetensors"
#define CLIP_CONFIG "text_encoder/config.json"
#define T5_CONFIG "text_encoder_2/config.json"
#define FLUX_CONFIG "transformer/config.json"
#define VAE_CONFIG "vae/config.json"
#define SCHEDULER "scheduler/scheduler_config.json"
#define LONGEST "tokenizer_2/tokenizer_config.json"
#define INDEX FLUX ".index.json"

/* Refused when the checkpoint is opened. */
static const struct damage refused[] = {
    {REMOVE, "", NULL, NULL, "No such file"},
    {REMOVE, "text_encoder", NULL, NULL, CLIP_CONFIG "|No such file"},
    {REMOVE, VAE_CONFIG, NULL, NULL, NULL},
    {REMOVE, FLUX, NULL, NULL, "/transformer: no weights"},
    {REMOVE, "scheduler", NULL, NULL, SCHEDULER},
    {REMOVE, "tokenizer/vocab.json", NULL, NULL, NULL},
    {REMOVE, "tokenizer/merges.txt", NULL, NULL, NULL},
    {REMOVE, "tokenizer_2", NULL, NULL, "tokenizer_2/spiece.model"},

    {WRITE, FLUX_CONFIG, NULL, "{\"num_layers\": 1,", FLUX_CONFIG "|JSON"},
    {WRITE, FLUX_CONFIG, NULL, "", FLUX_CONFIG "|JSON"},
    {WRITE, FLUX_CONFIG, NULL, "[1]", FLUX_CONFIG "|not an object"},
    {WRITE, VAE_CONFIG, NULL, "{\"latent_channels\": \"\xff\"}", VAE_CONFIG "|JSON"},
    {WRITE, VAE_CONFIG, NULL, "{\"a\": 1, \"a\": 2}", VAE_CONFIG "|duplicate"},
    {WRITE, LONGEST, NULL, "{", LONGEST "|JSON"},
    {WRITE, SCHEDULER, NULL, "{\"shift\": 1e999}", SCHEDULER "|overflow"},
    {WRITE, "tokenizer/vocab.json", NULL, "{}", "tokenizer/vocab.json"},

    {SET, CLIP_CONFIG, "num_attention_heads", "3", CLIP_CONFIG "|divided among 3 heads"},
    {SET, CLIP_CONFIG, "num_attention_heads", "0", NULL},
    {SET, CLIP_CONFIG, "num_hidden_layers", "-1", NULL},
    {SET, CLIP_CONFIG, "num_hidden_layers", "2", "text_encoder|layers.1.|missing"},
    {SET, CLIP_CONFIG, "hidden_size", "1000000000000000000", NULL},
    {SET, CLIP_CONFIG, "hidden_size", "65536", CLIP_CONFIG "|at most 512"},
    {SET, CLIP_CONFIG, "hidden_size", "1000", CLIP "|token_embedding|[704, 1000]"},
    {SET, CLIP_CONFIG, "hidden_size", "20.5", NULL},
    {SET, CLIP_CONFIG, "hidden_size", "null", NULL},
    {SET, CLIP_CONFIG, "vocab_size", "703", CLIP "|token_embedding|[703, 20]"},
    {SET, CLIP_CONFIG, "max_position_embeddings", "4096", CLIP "|position_embedding"},
    {SET, CLIP_CONFIG, "hidden_act", "\"gelu\"", NULL},
    {SET, T5_CONFIG, "d_kv", "\"12\"", NULL},
    {SET, T5_CONFIG, "d_kv", "512", T5 "|SelfAttention.q.weight"},
    {SET, T5_CONFIG, "d_ff", "262144", T5 "|DenseReluDense"},
    {SET, T5_CONFIG, "num_heads", "1024", T5 "|relative_attention_bias"},
    {SET, T5_CONFIG, "relative_attention_num_buckets", "0", NULL},
    {SET, T5_CONFIG, "relative_attention_max_distance", "8", NULL},
    {SET, T5_CONFIG, "layer_norm_epsilon", "-1", NULL},
    {SET, T5_CONFIG, "feed_forward_proj", "\"relu\"", NULL},
    {SET, FLUX_CONFIG, "num_layers", "1024", "/transformer|transformer_blocks.1."},
    {SET, FLUX_CONFIG, "num_layers", "2147483648", NULL},
    {SET, FLUX_CONFIG, "num_attention_heads", "0", NULL},
    {SET, FLUX_CONFIG, "num_attention_heads", "1024", FLUX "|tensor|[16384, "},
    {SET, FLUX_CONFIG, "attention_head_dim", "18", FLUX_CONFIG "|axes_dims_rope"},
    {SET, FLUX_CONFIG, "axes_dims_rope", "[5, 5, 6]", NULL},
    {SET, FLUX_CONFIG, "axes_dims_rope", "[8, 8]", NULL},
    {SET, FLUX_CONFIG, "axes_dims_rope", "[]", NULL},
    {SET, FLUX_CONFIG, "axes_dims_rope", "[-4, 14, 6]", NULL},
    {SET, FLUX_CONFIG, "in_channels", "66", NULL},
    {SET, FLUX_CONFIG, "patch_size", "2", NULL},
    {SET, FLUX_CONFIG, "joint_attention_dim", "32", FLUX "|context_embedder"},
    {SET, FLUX_CONFIG, "guidance_embeds", "1", NULL},
    {SET, VAE_CONFIG, "norm_num_groups", "3", VAE_CONFIG "|groups"},
    {SET, VAE_CONFIG, "norm_num_groups", "0", NULL},
    {SET, VAE_CONFIG, "block_out_channels", "[4, 0, 8, 8]", NULL},
    {SET, VAE_CONFIG, "block_out_channels", "[4, 4, 8, 4294967296]", NULL},
    {SET, VAE_CONFIG, "block_out_channels", "[4, 4, 4, 4, 4, 4, 4, 8, 8]", NULL},
    {SET, VAE_CONFIG, "block_out_channels", "8", NULL},
    {SET, VAE_CONFIG, "layers_per_block", "64", "/vae|resnets.2|missing"},
    {SET, VAE_CONFIG, "scaling_factor", "0", NULL},
    {SET, VAE_CONFIG, "latent_channels", "8", VAE "|decoder.conv_in.weight"},
    {SET, LONGEST, "model_max_length", "-16", NULL},
    {SET, LONGEST, "model_max_length", "0", NULL},
    {SET, SCHEDULER, "max_image_seq_len", "256", NULL},
    {SET, SCHEDULER, "time_shift_type", "\"quadratic\"", NULL},

    {TRUNCATE, FLUX, NULL, "0", FLUX "|truncated"},
    {TRUNCATE, FLUX, NULL, "7", FLUX "|truncated"},
    {TRUNCATE, FLUX, NULL, "300", FLUX "|truncated"},
    {TRUNCATE, FLUX, NULL, "100000", FLUX "|tensor|truncated"},
    {LENGTH, VAE, NULL, "4294967295", VAE "|header of 4294967295 bytes"},
    {LENGTH, VAE, NULL, "18446744073709551615", VAE "|header"},
    {LENGTH, VAE, NULL, "0", VAE "|JSON"},
    {WRITE, T5, NULL, "no safetensors file, but text that somebody put here", T5 "|header"},
    {HEADER, FLUX, "\"data_offsets\":[0,", "\"data_offsets\":[4,", FLUX "|tensor|bytes of data"},
    {HEADER, CLIP, "\"data_offsets\":[0,", "\"data_offsets\":[-4,", CLIP "|tensor"},
    {HEADER, CLIP, "\"shape\":[704,20]", "\"shape\":[704,20,9223372036854775807]",
     CLIP "|tensor|overflow"},
    {HEADER, T5, "\"dtype\":\"F32\"", "\"dtype\":\"F64\"", T5 "|tensor|F64"},
    {HEADER, T5, "\"dtype\":\"F32\"", "\"dtype\":\"I32\"", T5 "|tensor|I32"},
    {HEADER, FLUX, "\"shape\":[16,64]", "\"shape\":[64,16]", FLUX "|tensor|[64, 16]"},
    {HEADER, FLUX, "\"shape\":[16,64]", "\"shape\":[1,16,64]", FLUX "|tensor|[1, 16, 64]"},
    {HEADER, FLUX, "\"x_embedder.weight\"", "\"other\"", "/transformer|x_embedder.weight|missing"},
    {HEADER, FLUX, "guidance_embedder", "guidance", "/transformer|guidance_embedder|missing"},
    {HEADER, VAE, "\"decoder.conv_out.bias\"", "\"other\"", "/vae|decoder.conv_out.bias|missing"},

    {SWAP, "text_encoder", NULL, "text_encoder_2", CLIP_CONFIG},
    {SWAP, "transformer", NULL, "vae", FLUX_CONFIG},
    {SWAP, "tokenizer", NULL, "tokenizer_2", "tokenizer/vocab.json"},
    {GRAFT, "text_encoder", NULL, "sharded-bf16", "pooled_projection_dim of 20|hidden_size of 32"},
    {GRAFT, "text_encoder_2", NULL, "sharded-bf16", "joint_attention_dim of 24|d_model of 32"},
    {GRAFT, "vae", NULL, "mixed", "in_channels|latent_channels"},
    {SET, "tokenizer/vocab.json", "unheard</w>", "65000", ": tokenizer has ids up to 65000"},
    {SET, "tokenizer/vocab.json", "unheard</w>", "-1", "tokenizer/vocab.json"},
    {WRITE, "tokenizer_2/spiece.model", NULL, "no protobuf", "tokenizer_2/spiece.model"},
    {WRITE, "tokenizer_2/spiece.model", NULL, "", "tokenizer_2/spiece.model"},
};

/* The same, of a checkpoint in several files. */
static const struct damage sharded_refused[] = {
    {REMOVE, "transformer/diffusion_pytorch_model-00002-of-00005.safetensors", NULL, NULL, NULL},
    {WRITE, INDEX, NULL, "{\"weight_map\": 3}", INDEX "|weight_map"},
    {WRITE, INDEX, NULL, "{\"weight_map\": {\"a\": 1}}", INDEX "|tensor a"},
    {EDIT, INDEX, "-00002-of-", "-00009-of-", "00009-of-00005|No such file"},
    {EDIT, INDEX, "-00002-of-", "-00001-of-", INDEX "|tensor|00001-of-00005"},
    {EDIT, INDEX, "diffusion_pytorch_model-00002", "../vae/config", INDEX "|tensor"},
};

/* Found when the first picture meets them. */
static const struct damage met[] = {
    {POISON, CLIP, "embeddings.token_embedding.weight", "nan", NULL},
    {POISON, CLIP, "embeddings.position_embedding.weight", "inf", NULL},
    {POISON, CLIP, "encoder.layers.0.mlp.fc1.weight", "nan", NULL},
    {POISON, T5, "shared.weight", "inf", NULL},
    {POISON, T5, "encoder.final_layer_norm.weight", "-inf", NULL},
    {POISON, FLUX, "context_embedder.weight", "nan", NULL},
    {POISON, FLUX, "single_transformer_blocks.1.proj_out.bias", "nan", NULL},
    {POISON, FLUX, "proj_out.weight", "inf", NULL},
    {POISON, VAE, "decoder.conv_in.weight", "nan", NULL},
    {POISON, VAE, "decoder.conv_norm_out.bias", "inf", NULL},
};

/* Weights that are numbers, but too large to compute with. */
static const struct damage overflowing[] = {
    {POISON, FLUX, "x_embedder.weight", "3e38", "latents are NaN"},
    {POISON, FLUX, "proj_out.weight", "1e38", "latents are NaN"},
    {POISON, T5, "encoder.final_layer_norm.weight", "3e38", "latents are NaN"},
    {POISON, VAE, "decoder.conv_in.weight", "3e38", "picture is NaN"},
    {POISON, VAE, "decoder.up_blocks.3.resnets.1.conv2.weight", "3e38", "picture is NaN"},
    {POISON, VAE, "decoder.conv_out.weight", "3e38", "picture is NaN"},
};
/* ---- what the engine says ---- */

static void expect_said(const char *line, const char *what, size_t length)
{
    EXPECT(memmem(line, strlen(line), what, length) != NULL, "\"%s\" does not say %.*s", line,
           (int)length, what);
}

static void check_line(const struct damage *damage, const struct error *err)
{
    const char *says = damage->says;

    printf("%s\n", err->text);
    EXPECT(strlen(err->text) > 10 && strpbrk(err->text, "\n\r\t") == NULL, "\"%s\"", err->text);
    if (says == NULL) {
        expect_said(err->text, damage->file, strlen(damage->file));
        if (damage->from != NULL)
            expect_said(err->text, damage->from, strlen(damage->from));
        return;
    }
    while (*says != '\0') {
        size_t length = strcspn(says, "|");

        expect_said(err->text, says, length);
        says += length + (says[length] == '|');
    }
}

/* Makes a picture until it fails; the engine's answer. */
static int paint(struct engine *engine, struct error *err)
{
    struct image_request request = {.prompt = "a cat with a hat",
                                    .width_px = 32,
                                    .height_px = 16,
                                    .steps = 1,
                                    .guidance = 3.5f,
                                    .cfg_scale = 1};
    struct image *image;
    struct error ignored;
    int result = image_start(&image, engine, &request, NULL, err);

    if (result != 0)
        return result;
    for (int round = 0; round < 20 && image_phase(image) < IMAGE_DONE; round++)
        engine_advance(engine, &ignored);
    result = image_error(image, err);
    EXPECT((image_phase(image) == IMAGE_FAILED) == (result != 0));
    EXPECT(result == 0 || image_pixels(image) == NULL);
    image_finish(image);
    return result;
}

static void expect_refused(const struct damage *damage, const struct engine_options *options)
{
    struct engine *engine = NULL;
    struct error err = {0};
    int result = engine_open(&engine, options, &err);

    if (!EXPECT(result < 0 && err.code == result, "%s, %s to %s: accepted", damage->file,
                damage->from, damage->to))
        engine_close(engine);
    else
        check_line(damage, &err);
}

/* It stays damaged, and the engine stays up. */
static void expect_met_as(const struct damage *damage, const struct engine_options *options,
                          int code)
{
    struct engine *engine = NULL;
    struct error err = {0};

    if (!EXPECT(engine_open(&engine, options, &err) == 0, "%s: %s", damage->file, err.text))
        return;
    for (int i = 0; i < 2; i++) {
        err = (struct error){0};
        EXPECT(paint(engine, &err) == code, "%s %s: %s", damage->file, damage->from, err.text);
        check_line(damage, &err);
    }
    engine_close(engine);
}

static void expect_met(const struct damage *damage, const struct engine_options *options)
{
    expect_met_as(damage, options, -EINVAL);
}

static void expect_overflow(const struct damage *damage, const struct engine_options *options)
{
    expect_met_as(damage, options, -ERANGE);
}

static void try_damages(const struct damage *damages, size_t count, const char *checkpoint,
                        void (*expect)(const struct damage *, const struct engine_options *))
{
    struct engine_options options = {.model_path = root,
                                     .backend = "cpu",
                                     .threads = 2,
                                     .vram_budget_bytes = (uint64_t)256 << 20};
    char source[4096];

    snprintf(source, sizeof source, "%s/%s", originals, checkpoint);
    for (size_t i = 0; i < count; i++) {
        snprintf(root, sizeof root, "/tmp/fluxfs-hostile-XXXXXX");
        if (mkdtemp(root) == NULL || rmdir(root) != 0)
            die(root);
        tree_copy(source, root);
        inflict(&damages[i]);
        expect(&damages[i], &options);
        tree_remove(root);
    }
}

int main(int argc, char **argv)
{
    if (argc != 2)
        return EXIT_FAILURE;
    originals = argv[1];
    try_damages(refused, sizeof refused / sizeof *refused, "single-f32", expect_refused);
    try_damages(sharded_refused, sizeof sharded_refused / sizeof *sharded_refused, "sharded-bf16",
                expect_refused);
    try_damages(met, sizeof met / sizeof *met, "single-f32", expect_met);
    try_damages(overflowing, sizeof overflowing / sizeof *overflowing, "single-f32",
                expect_overflow);
    return test_finish();
}
