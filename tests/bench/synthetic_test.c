/* SPDX-License-Identifier: MIT */
/*
 * What synthetic-checkpoint writes, against checkpoints that diffusers wrote.
 * usage: test_synthetic TOOL CHECKPOINT…    (the first checkpoint is the one looked at closely)
 */
#include <errno.h>
#include <ftw.h>
#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>

#include "engine/checkpoint.h"
#include "tests/test.h"
#include "tests/unit/scratch.h"

static const char *tool;
static const char *const components[] = {"text_encoder", "text_encoder_2", "transformer", "vae"};

/* Exit status of the tool, with what it prints in scratch "out" and "err". */
__attribute__((format(printf, 1, 2))) static int run(const char *format, ...)
{
    char arguments[2 * PATH_MAX], command[4 * PATH_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(arguments, sizeof arguments, format, args);
    va_end(args);
    snprintf(command, sizeof command, "'%s' %s >'%s/out' 2>'%s/err'", tool, arguments,
             scratch_folder, scratch_folder);
    return system(command);
}

/* What the last run printed; valid until the next call. */
static const char *printed(const char *name)
{
    static char text[1 << 20];
    FILE *file = fopen(scratch_path(name), "rb");
    size_t bytes = file == NULL ? 0 : fread(text, 1, sizeof text - 1, file);
    text[bytes] = '\0';
    if (file != NULL)
        fclose(file);
    return text;
}

static int remove_entry(const char *path, const struct stat *status, int type, struct FTW *walk)
{
    return remove(path);
}

static void remove_folder(const char *name)
{
    nftw(scratch_path(name), remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static struct checkpoint *open_component(const char *folder, const char *component)
{
    char path[2 * PATH_MAX];
    struct checkpoint *checkpoint = NULL;
    struct error err = {0};
    snprintf(path, sizeof path, "%s/%s", folder, component);
    EXPECT(checkpoint_open(path, &checkpoint, &err) == 0, "%s", err.text);
    return checkpoint;
}

/* Published CLIP models have this prefix, those saved by newer libraries don't. */
static const char *plain_name(const char *name)
{
    static const char prefix[] = "text_model.";
    return strncmp(name, prefix, sizeof prefix - 1) == 0 ? name + sizeof prefix - 1 : name;
}

static const struct stored_tensor *find(const struct checkpoint *checkpoint, const char *name)
{
    size_t count;
    const struct stored_tensor *const *list = checkpoint_list(checkpoint, &count);
    for (size_t i = 0; i < count; i++) {
        if (strcmp(plain_name(list[i]->name), plain_name(name)) == 0)
            return list[i];
    }
    return NULL;
}

/* Every tensor of `real` but bookkeeping is in `synthetic` with its shape, as BF16, and no other.
 */
static void compare_tensors(const struct checkpoint *synthetic, const struct checkpoint *real)
{
    size_t real_count, count, compared = 0;
    const struct stored_tensor *const *list = checkpoint_list(real, &real_count);
    checkpoint_list(synthetic, &count);
    for (size_t i = 0; i < real_count; i++) {
        if (list[i]->type == STORED_I64)
            continue;
        const struct stored_tensor *tensor = find(synthetic, list[i]->name);
        compared++;
        EXPECT(tensor != NULL, "%s", list[i]->name);
        if (tensor != NULL)
            EXPECT(tensor->type == STORED_BF16 && tensor->rank == list[i]->rank &&
                       memcmp(tensor->shape, list[i]->shape,
                              (size_t)tensor->rank * sizeof tensor->shape[0]) == 0,
                   "%s", tensor->name);
    }
    EXPECT(compared == count, "%zu tensors instead of %zu", count, compared);
}

static void has_the_tensors_of(const char *real)
{
    if (!EXPECT(run("'%s/made' --like '%s' --threads 2", scratch_folder, real) == 0, "%s: %s", real,
                printed("err")))
        return;
    char made[PATH_MAX];
    snprintf(made, sizeof made, "%s", scratch_path("made"));
    for (int i = 0; i < 4; i++) {
        struct checkpoint *a = open_component(made, components[i]);
        struct checkpoint *b = open_component(real, components[i]);
        if (a != NULL && b != NULL)
            compare_tensors(a, b);
        checkpoint_close(a);
        checkpoint_close(b);
    }
    static const char *const files[] = {
        "made/model_index.json",        "made/scheduler/scheduler_config.json",
        "made/vae/config.json",         "made/tokenizer/vocab.json",
        "made/tokenizer/merges.txt",    "made/tokenizer/tokenizer_config.json",
        "made/tokenizer_2/spiece.model"};
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++)
        EXPECT(access(scratch_path(files[i]), R_OK) == 0, "%s of %s", files[i], real);
    remove_folder("made");
}

static double bf16_value(const struct stored_tensor *tensor, uint64_t index)
{
    uint16_t half;
    float value;
    memcpy(&half, (const char *)tensor->data + 2 * index, sizeof half);
    uint32_t bits = (uint32_t)half << 16;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void expect_spread(const struct checkpoint *checkpoint, const char *name, double mean,
                          double deviation)
{
    const struct stored_tensor *tensor = find(checkpoint, name);
    if (!EXPECT(tensor != NULL && tensor->type == STORED_BF16, "%s", name))
        return;
    uint64_t count = tensor->size_bytes / 2;
    double sum = 0, squares = 0, cubes = 0, neighbours = 0, previous = 0;
    for (uint64_t i = 0; i < count; i++) {
        double value = (bf16_value(tensor, i) - mean) / deviation;
        sum += value;
        squares += value * value;
        cubes += value * value * value;
        neighbours += value * previous;
        previous = value;
    }
    /* Five standard errors of each estimate, and what rounding to bf16 adds. */
    double slack = 5 / sqrt((double)count);
    EXPECT(fabs(sum / (double)count) < slack, "%s: mean %g", name, sum / (double)count);
    EXPECT(fabs(squares / (double)count - 1) < 1.5 * slack + 0.01, "%s: variance %g", name,
           squares / (double)count);
    EXPECT(fabs(cubes / (double)count) < 4 * slack, "%s: skewed by %g", name,
           cubes / (double)count);
    EXPECT(fabs(neighbours / (double)count) < slack, "%s: correlated by %g", name,
           neighbours / (double)count);
}

static void spreads_its_values(const char *like)
{
    if (!EXPECT(run("'%s/made' --like '%s'", scratch_folder, like) == 0, "%s", printed("err")))
        return;
    char made[PATH_MAX];
    snprintf(made, sizeof made, "%s", scratch_path("made"));
    struct checkpoint *transformer = open_component(made, "transformer");
    struct checkpoint *t5 = open_component(made, "text_encoder_2");
    if (transformer != NULL && t5 != NULL) {
        /* The embedded model's streams are 256 wide, T5's 192 and its heads 64. */
        expect_spread(transformer, "transformer_blocks.0.ff.net.0.proj.weight", 0, 1 / 16.0);
        expect_spread(transformer, "transformer_blocks.0.norm1.linear.weight", 0, 0.7 / 16);
        expect_spread(transformer, "transformer_blocks.0.attn.norm_q.weight", 1, 0.1);
        expect_spread(t5, "shared.weight", 0, 1);
        expect_spread(t5, "encoder.block.1.layer.0.SelfAttention.q.weight", 0, 1 / (8 * sqrt(192)));
    }
    checkpoint_close(transformer);
    checkpoint_close(t5);
    remove_folder("made");
}

/* Whether all values of two transformers are the same. */
static bool same_values(const char *one, const char *other)
{
    char folder[PATH_MAX];
    snprintf(folder, sizeof folder, "%s/%s", scratch_folder, one);
    struct checkpoint *a = open_component(folder, "transformer");
    snprintf(folder, sizeof folder, "%s/%s", scratch_folder, other);
    struct checkpoint *b = open_component(folder, "transformer");
    bool same = a != NULL && b != NULL;
    size_t count = 0;
    const struct stored_tensor *const *list = same ? checkpoint_list(a, &count) : NULL;
    for (size_t i = 0; same && i < count; i++) {
        const struct stored_tensor *tensor = find(b, list[i]->name);
        same = tensor != NULL && tensor->size_bytes == list[i]->size_bytes &&
               memcmp(tensor->data, list[i]->data, tensor->size_bytes) == 0;
    }
    checkpoint_close(a);
    checkpoint_close(b);
    return same;
}

static void depends_on_the_seed_only(const char *like)
{
    char rest[PATH_MAX];
    snprintf(rest, sizeof rest,
             "--like '%s' --without vae --without text_encoder --without text_encoder_2", like);
    EXPECT(run("'%s/a' --seed 7 --threads 3 --shard-mb 5 %s", scratch_folder, rest) == 0);
    EXPECT(run("'%s/b' --seed 7 --threads 1 %s", scratch_folder, rest) == 0);
    EXPECT(run("'%s/c' --seed 8 --threads 2 %s", scratch_folder, rest) == 0);
    static const char stem[] = "a/transformer/diffusion_pytorch_model";
    char index[128];
    snprintf(index, sizeof index, "%s.safetensors.index.json", stem);
    EXPECT(access(scratch_path(index), R_OK) == 0);
    EXPECT(access(scratch_path("b/transformer/diffusion_pytorch_model.safetensors"), R_OK) == 0);
    EXPECT(access(scratch_path("a/vae"), F_OK) != 0);
    EXPECT(same_values("a", "b"));
    EXPECT(!same_values("a", "c"));
    remove_folder("a");
    remove_folder("b");
    remove_folder("c");
}

/* The published models' numbers of parameters, as diffusers and transformers count them. */
static void lists_the_published_shapes(void)
{
    EXPECT(run("--list") == 0);
    const char *text = printed("out");
    EXPECT(strstr(text, "\ntransformer: 1160 tensors, 11901408320 parameters\n") != NULL);
    EXPECT(strstr(text, "\ntext_encoder: 196 tensors, 123060480 parameters\n") != NULL);
    EXPECT(strstr(text, "\ntext_encoder_2: 219 tensors, 4762310656 parameters\n") != NULL);
    EXPECT(strstr(text, "\nvae: 244 tensors, 83819683 parameters\n") != NULL);
    EXPECT(run("--list --like flux1-schnell --without vae") == 0);
    text = printed("out");
    EXPECT(strstr(text, "\ntransformer: 1156 tensors, 11891178560 parameters\n") != NULL);
    EXPECT(strstr(text, "vae") == NULL);
}

/* Files as long as the others, whose weights take no disk and are zeros. */
static void can_be_hollow(void)
{
    struct stat status;
    EXPECT(run("'%s/a' --like flux1-dev --without text_encoder_2 --without transformer --hollow",
               scratch_folder) == 0);
    EXPECT(stat(scratch_path("a/vae/diffusion_pytorch_model.safetensors"), &status) == 0);
    EXPECT(status.st_size > 2 * 83819683 && status.st_blocks * 512 < 1 << 20);
    struct checkpoint *vae = open_component(scratch_path("a"), "vae");
    const struct stored_tensor *tensor = find(vae, "decoder.conv_out.weight");
    const unsigned char *bytes = tensor == NULL ? NULL : tensor->data;
    EXPECT(bytes != NULL && tensor->size_bytes == 2 * 3 * 128 * 9);
    for (size_t i = 0; bytes != NULL && i < tensor->size_bytes; i++)
        EXPECT(bytes[i] == 0);
    checkpoint_close(vae);
    remove_folder("a");
}

static void expect_refused(const char *why)
{
    EXPECT(strstr(printed("err"), why) != NULL, "%s lacks %s", printed("err"), why);
}

static void refuses_what_it_cannot_do(void)
{
    scratch_write("kept", "x", 1);
    EXPECT(run("'%s'", scratch_folder) != 0);
    expect_refused("give a folder that is empty or doesn't exist");
    EXPECT(access(scratch_path("kept"), R_OK) == 0);
    EXPECT(run("'%s/made' --without unet", scratch_folder) != 0);
    expect_refused("no component is called unet");
    EXPECT(run("'%s/made' --seed -1", scratch_folder) != 0);
    expect_refused("--seed: -1 is no number from 0 to");
    EXPECT(run("'%s/made' --like '%s/absent'", scratch_folder, scratch_folder) != 0);
    expect_refused("absent/./text_encoder/config.json: No such file");
    EXPECT(run("--seed 1") != 0);
    expect_refused("one OUT is needed");
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return EXIT_FAILURE;
    tool = argv[1];
    scratch_start();
    lists_the_published_shapes();
    for (int i = 2; i < argc; i++)
        has_the_tensors_of(argv[i]);
    spreads_its_values(argv[2]);
    depends_on_the_seed_only(argv[2]);
    can_be_hollow();
    refuses_what_it_cannot_do();
    remove_folder("made");
    scratch_finish();
    return test_finish();
}
