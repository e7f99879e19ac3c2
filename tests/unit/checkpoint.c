/* SPDX-License-Identifier: MIT */
#include "engine/checkpoint.h"

#include <errno.h>
#include <string.h>

#include "tests/test.h"
#include "tests/unit/scratch.h"

static void write_text(const char *name, const char *text)
{
    scratch_write(name, text, strlen(text));
}

/* A safetensors file of one-element F32 tensors with these one-letter names. */
static void write_shard(const char *name, const char *tensors)
{
    char bytes[1024] = {0};
    size_t used = 8;
    for (size_t i = 0; tensors[i] != '\0'; i++)
        used += (size_t)snprintf(bytes + used, sizeof bytes - used,
                                 "%c\"%c\":{\"dtype\":\"F32\",\"shape\":[1],"
                                 "\"data_offsets\":[%zu,%zu]}",
                                 i == 0 ? '{' : ',', tensors[i], 4 * i, 4 * i + 4);
    bytes[used++] = '}';
    bytes[0] = (char)((used - 8) & 0xff);
    bytes[1] = (char)((used - 8) >> 8);
    for (size_t i = 0; tensors[i] != '\0'; i++, used += 4)
        bytes[used] = tensors[i];
    scratch_write(name, bytes, used);
}

static struct checkpoint *open_folder(void)
{
    struct checkpoint *checkpoint = NULL;
    struct error err = {0};
    EXPECT(checkpoint_open(scratch_folder, &checkpoint, &err) == 0, "%s", err.text);
    return checkpoint;
}

static void expect_tensor(const struct checkpoint *checkpoint, const char *name)
{
    const struct stored_tensor *tensor = NULL;
    struct error err = {0};
    if (EXPECT(checkpoint_find(checkpoint, name, &tensor, &err) == 0, "%s", err.text)) {
        EXPECT(strcmp(tensor->name, name) == 0);
        EXPECT(*(const char *)tensor->data == name[0], "the data of %s", name);
    }
}

static void expect_refused(int errnum, const char *why)
{
    struct checkpoint *checkpoint = NULL;
    struct error err = {0};
    int code = checkpoint_open(scratch_folder, &checkpoint, &err);
    EXPECT(code == -errnum && checkpoint == NULL, "%s: %s", why, err.text);
    EXPECT(strstr(err.text, why) != NULL, "%s lacks %s", err.text, why);
}

static void opens_one_file(const char *name)
{
    scratch_clear();
    write_text("config.json", "{\"num_layers\": 2}");
    write_shard(name, "cab");
    struct checkpoint *checkpoint = open_folder();
    if (checkpoint == NULL)
        return;
    expect_tensor(checkpoint, "a");
    expect_tensor(checkpoint, "b");
    expect_tensor(checkpoint, "c");
    const struct stored_tensor *tensor = NULL;
    struct error err = {0};
    EXPECT(checkpoint_find(checkpoint, "d", &tensor, &err) == -ENOENT && tensor == NULL);
    EXPECT(strstr(err.text, "tensor d is missing") != NULL, "%s", err.text);
    struct json_reader reader = json_reader_start(checkpoint_config(checkpoint));
    EXPECT(json_get_int(&reader, "num_layers", 1, 9) == 2);
    EXPECT(strcmp(checkpoint_folder(checkpoint), scratch_folder) == 0);
    checkpoint_close(checkpoint);
}

static void opens_shards(void)
{
    scratch_clear();
    write_text("config.json", "{}");
    write_shard("x-1.safetensors", "dbz");
    write_shard("x-2.safetensors", "acy");
    /* The index lists b and c in turn, so that shards are found again, and leaves out y and z. */
    write_text("model.safetensors.index.json",
               "{\"weight_map\": {\"d\": \"x-1.safetensors\", \"c\": \"x-2.safetensors\","
               " \"b\": \"x-1.safetensors\", \"a\": \"x-2.safetensors\"}}");
    struct checkpoint *checkpoint = open_folder();
    if (checkpoint == NULL)
        return;
    size_t count;
    const struct stored_tensor *const *list = checkpoint_list(checkpoint, &count);
    EXPECT(count == 4 && strcmp(list[0]->name, "a") == 0 && strcmp(list[3]->name, "d") == 0);
    for (int i = 0; i < 4; i++)
        expect_tensor(checkpoint, (const char *[]){"a", "b", "c", "d"}[i]);
    const struct stored_tensor *left_out = NULL;
    EXPECT(checkpoint_find(checkpoint, "y", &left_out, NULL) == -ENOENT);
    checkpoint_close(checkpoint);
}

static void refuses_bad_indices(void)
{
    static const struct {
        int errnum;
        const char *index, *why;
    } bad[] = {
        {EINVAL, "{", "model.safetensors.index.json: broken JSON"},
        {EINVAL, "{}", "\"weight_map\" is missing"},
        {EINVAL, "{\"weight_map\": {}}", "\"weight_map\" is missing or empty"},
        {EINVAL, "{\"weight_map\": []}", "\"weight_map\" is missing"},
        {EINVAL, "{\"weight_map\": {\"a\": 1}}", "file of tensor a is not a string"},
        {EINVAL, "{\"weight_map\": {\"a\": \"../s\"}}", "tensor a: its file is not a plain name"},
        {EINVAL, "{\"weight_map\": {\"a\": \"/etc/s\"}}", "tensor a: its file is not a plain name"},
        {EINVAL, "{\"weight_map\": {\"a\": \"..\"}}", "tensor a: its file is not a plain name"},
        {EINVAL, "{\"weight_map\": {\"a\": \"\"}}", "tensor a: its file is not a plain name"},
        {ENOENT, "{\"weight_map\": {\"a\": \"absent\"}}", "absent: No such file"},
        {ENOENT, "{\"weight_map\": {\"q\": \"s\"}}", "tensor q is not in s"},
        {EINVAL, "{\"weight_map\": {\"a\": \"config.json\"}}", "config.json: truncated"},
    };
    scratch_clear();
    write_text("config.json", "{}");
    write_shard("s", "a");
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        write_text("model.safetensors.index.json", bad[i].index);
        expect_refused(bad[i].errnum, bad[i].why);
    }
}

static void refuses_incomplete_folders(void)
{
    scratch_clear();
    expect_refused(ENOENT, "config.json: No such file");
    write_text("config.json", "{");
    expect_refused(EINVAL, "config.json: broken JSON");
    write_text("config.json", "{}");
    expect_refused(ENOENT, "no weights: neither");
    write_text("model.safetensors", "");
    expect_refused(EINVAL, "model.safetensors: truncated");
    checkpoint_close(NULL);
}

/* The embedded model's folders, the transformer in three shards. */
static void opens_mini(const char *mini)
{
    static const char *const folders[] = {"transformer", "text_encoder", "text_encoder_2", "vae"};
    for (int i = 0; i < 4; i++) {
        char path[512];
        snprintf(path, sizeof path, "%s/%s", mini, folders[i]);
        struct checkpoint *checkpoint = NULL;
        struct error err = {0};
        if (!EXPECT(checkpoint_open(path, &checkpoint, &err) == 0, "%s", err.text))
            continue;
        size_t count;
        checkpoint_list(checkpoint, &count);
        EXPECT(count > 10, "%s has %zu tensors", path, count);
        checkpoint_close(checkpoint);
    }
}

/* Every tensor is there, though no file is. */
static void imagines(void)
{
    struct checkpoint *checkpoint = NULL;
    const struct stored_tensor *tensor = NULL;
    int64_t shape[2] = {123, 45};
    struct error err = {0};

    scratch_clear();
    EXPECT(checkpoint_imagine(scratch_folder, &checkpoint, &err) == -ENOENT &&
           strstr(err.text, "config.json") != NULL);
    write_text("config.json", "{\"n\": 1}");
    if (!EXPECT(checkpoint_imagine(scratch_folder, &checkpoint, &err) == 0, "%s", err.text))
        return;
    EXPECT(checkpoint_find(checkpoint, "whatever", &tensor, &err) == 0);
    EXPECT(stored_tensor_check(tensor, 2, shape, &err) == 0 && tensor->data == NULL);
    EXPECT(checkpoint_config(checkpoint) != NULL && checkpoint_check(checkpoint, &err) == 0);
    checkpoint_close(checkpoint);
}

int main(int argc, char **argv)
{
    scratch_start();
    opens_one_file("model.safetensors");
    opens_one_file("diffusion_pytorch_model.safetensors");
    opens_shards();
    refuses_bad_indices();
    refuses_incomplete_folders();
    imagines();
    if (argc > 1)
        opens_mini(argv[1]);
    scratch_finish();
    return test_finish();
}
