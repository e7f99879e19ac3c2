/* SPDX-License-Identifier: MIT */
#include "engine/safetensors.h"

#include <errno.h>
#include <string.h>

#include "engine/file.h"
#include "tests/test.h"
#include "tests/unit/scratch.h"

/* Writes a file of this header, `data_bytes` bytes 0, 1, 2, … after it. */
static const char *write_file(const char *header, size_t data_bytes)
{
    static unsigned char bytes[4096];
    size_t header_bytes = strlen(header);
    memset(bytes, 0, sizeof bytes);
    bytes[0] = (unsigned char)header_bytes;
    bytes[1] = (unsigned char)(header_bytes >> 8);
    memcpy(bytes + 8, header, header_bytes);
    for (size_t i = 0; i < data_bytes; i++)
        bytes[8 + header_bytes + i] = (unsigned char)i;
    return scratch_write("weights.safetensors", bytes, 8 + header_bytes + data_bytes);
}

static void views_tensors(void)
{
    struct safetensors *file = NULL;
    struct error err = {0};
    /* Out of order, a hole before the last, an empty one, a scalar and a type unknown here. */
    const char *path =
        write_file("{\"__metadata__\":{\"format\":\"pt\"},"
                   "\"w\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[4,16]},"
                   "\"b\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"
                   "\"none\":{\"dtype\":\"F16\",\"shape\":[4,0],\"data_offsets\":[4,4]},"
                   "\"q\":{\"dtype\":\"F4\",\"shape\":[7],\"data_offsets\":[20,24]}}   ",
                   24);
    if (!EXPECT(safetensors_open(path, &file, &err) == 0, "%s", err.text))
        return;
    size_t count;
    const struct stored_tensor *list = safetensors_list(file, &count);
    EXPECT(count == 4);
    EXPECT(strcmp(list[0].name, "b") == 0 && strcmp(list[3].name, "w") == 0);

    const struct stored_tensor *w = safetensors_find(file, "w");
    EXPECT(w != NULL && w->type == STORED_BF16 && w->rank == 2);
    EXPECT(w->shape[0] == 2 && w->shape[1] == 3 && w->size_bytes == 12);
    EXPECT(((const unsigned char *)w->data)[0] == 4 && ((const unsigned char *)w->data)[11] == 15);
    EXPECT(strcmp(w->path, path) == 0);
    EXPECT(safetensors_find(file, "b")->rank == 0);
    EXPECT(safetensors_find(file, "none")->size_bytes == 0);
    EXPECT(safetensors_find(file, "q")->type == STORED_OTHER);
    EXPECT(safetensors_find(file, "__metadata__") == NULL);
    EXPECT(safetensors_find(file, "x") == NULL);
    file_bytes_prefetch(w->data, w->size_bytes);
    file_bytes_release(w->data, w->size_bytes);
    EXPECT(((const unsigned char *)w->data)[0] == 4, "released pages come back");
    safetensors_close(file);
}

static void checks_weights(void)
{
    struct safetensors *file = NULL;
    struct error err = {0};
    const char *path =
        write_file("{\"w\":{\"dtype\":\"F16\",\"shape\":[2,3],\"data_offsets\":[0,12]},"
                   "\"i\":{\"dtype\":\"I8\",\"shape\":[2],\"data_offsets\":[12,14]}}",
                   14);
    if (!EXPECT(safetensors_open(path, &file, &err) == 0, "%s", err.text))
        return;
    const struct stored_tensor *w = safetensors_find(file, "w");
    const struct stored_tensor *i = safetensors_find(file, "i");
    EXPECT(stored_tensor_check(w, 2, (int64_t[]){2, 3}, &err) == 0);
    EXPECT(stored_tensor_check(w, 2, (int64_t[]){3, 2}, &err) == -EINVAL);
    EXPECT(strstr(err.text, "tensor w: its shape is [2, 3], the config asks for [3, 2]") != NULL,
           "%s", err.text);
    EXPECT(stored_tensor_check(w, 1, (int64_t[]){2}, &err) == -EINVAL);
    EXPECT(stored_tensor_check(w, 3, (int64_t[]){2, 3, 1}, &err) == -EINVAL);
    EXPECT(stored_tensor_check(i, 1, (int64_t[]){2}, &err) == -ENOTSUP);
    EXPECT(strstr(err.text, "tensor i: its type is I8") != NULL, "%s", err.text);
    safetensors_close(file);
}

#define TENSOR(name, type, shape, offsets)                                                         \
    "\"" name "\":{\"dtype\":\"" type "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

static void refuses_hostile_headers(void)
{
    static const struct {
        const char *header, *why;
    } hostile[] = {
        {"{" TENSOR("a", "F32", "[4]", "[0,17]") "}", "tensor a: 17 bytes of data, its shape and "
                                                      "F32 need 16"},
        {"{" TENSOR("a", "F32", "[4]", "[0,12]") "}", "tensor a: 12 bytes of data"},
        {"{" TENSOR("a", "F32", "[8]", "[0,32]") "}", "tensor a: its data ends at byte 32 of 24"},
        {"{" TENSOR("a", "F32", "[0]", "[25,25]") "}", "tensor a: its data ends at byte 25 of 24"},
        {"{" TENSOR("a", "F4", "[8]", "[0,32]") "}", "tensor a: its data ends at byte 32 of 24"},
        {"{" TENSOR("a", "F32", "[1]", "[8,4]") "}", "tensor a: its data ends before it begins"},
        {"{" TENSOR("a", "F32", "[1]", "[-4,0]") "}", "tensor a: its data ends before it begins"},
        {"{" TENSOR("a", "F32", "[1]", "[0.0,4]") "}", "tensor a: \"data_offsets\""},
        {"{" TENSOR("a", "F32", "[1]", "[0,4,8]") "}", "tensor a: \"data_offsets\""},
        {"{" TENSOR("a", "F32", "[1]", "4") "}", "tensor a: \"data_offsets\""},
        {"{" TENSOR("a", "F32", "[-1]", "[0,4]") "}", "tensor a: a dimension is not"},
        {"{" TENSOR("a", "F32", "[1.5]", "[0,4]") "}", "tensor a: a dimension is not"},
        {"{" TENSOR("a", "F32", "{}", "[0,4]") "}", "tensor a: \"shape\""},
        {"{" TENSOR("a", "F32", "[4294967296,4294967296]", "[0,4]") "}", "overflows"},
        {"{" TENSOR("a", "F32", "[4611686018427387904]", "[0,0]") "}", "overflows"},
        {"{" TENSOR("a", "I8", "[1,1,1,1,1,1,1,1,1]", "[0,1]") "}", "more than 8 dimensions"},
        {"{" TENSOR("a", "F32", "[2]", "[0,8]") "," TENSOR("b", "F32", "[2]", "[4,12]") "}",
         "tensor b: its data overlaps that of tensor a"},
        {"{" TENSOR("a", "F32", "[4]", "[0,16]") "," TENSOR("b", "I8", "[2]", "[4,6]") "}",
         "tensor b: its data overlaps that of tensor a"},
        {"{" TENSOR("a", "F32", "[2]", "[0,8]") "," TENSOR("b", "F32", "[2]", "[0,8]") "}",
         "overlaps"},
        {"{" TENSOR("a", "F32", "[2]", "[0,8]") "," TENSOR("a", "F32", "[2]", "[8,16]") "}",
         "duplicate"},
        {"{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}}", "tensor a: \"dtype\""},
        {"{\"a\":{\"dtype\":2,\"shape\":[2],\"data_offsets\":[0,8]}}", "tensor a: \"dtype\""},
        {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", "tensor a: \"shape\""},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", "tensor a: \"data_offsets\""},
        {"{\"a\":7}", "tensor a: its header entry is not an object"},
        {"[]", "not an object"},
        {"{\"a\"", "broken JSON"},
        {"{\"\xc3\":{}}", "broken JSON"},
    };
    for (size_t i = 0; i < sizeof hostile / sizeof hostile[0]; i++) {
        struct safetensors *file = NULL;
        struct error err = {0};
        int code = safetensors_open(write_file(hostile[i].header, 24), &file, &err);
        EXPECT(code == -EINVAL && file == NULL, "%s", hostile[i].header);
        EXPECT(strstr(err.text, "weights.safetensors: ") != NULL, "%s", err.text);
        EXPECT(strstr(err.text, hostile[i].why) != NULL, "%s lacks %s", err.text, hostile[i].why);
    }
}

static void refuses_hostile_lengths(void)
{
    static const struct {
        const char *bytes;
        size_t count;
        const char *why;
    } hostile[] = {
        {"", 0, "truncated: 0 bytes"},
        {"\1\0\0\0\0\0\0", 7, "truncated: 7 bytes"},
        {"\0\0\0\0\0\0\0\0", 8, "broken JSON"},
        {"version https://git-lfs.github.com/spec/v1\n", 43, "a Git LFS pointer"},
        {"\3\0\0\0\0\0\0\0{}", 10, "truncated: a header of 3 bytes, but only 2 follow"},
        {"\0\0\0\0\1\0\0\0{}", 10, "a header of 4294967296 bytes"},
        {"\xff\xff\xff\xff\xff\xff\xff\xff{}", 10, "a header of 18446744073709551615 bytes"},
    };
    for (size_t i = 0; i < sizeof hostile / sizeof hostile[0]; i++) {
        struct safetensors *file = NULL;
        struct error err = {0};
        const char *path = scratch_write("length.safetensors", hostile[i].bytes, hostile[i].count);
        EXPECT(safetensors_open(path, &file, &err) == -EINVAL, "%s", hostile[i].why);
        EXPECT(strstr(err.text, hostile[i].why) != NULL, "%s lacks %s", err.text, hostile[i].why);
    }
    struct safetensors *file = NULL;
    struct error err = {0};
    const char *path = scratch_write("empty.safetensors", "\2\0\0\0\0\0\0\0{}", 10);
    EXPECT(safetensors_open(path, &file, &err) == 0, "no tensors at all: %s", err.text);
    safetensors_close(file);
    EXPECT(safetensors_open(scratch_path("absent"), &file, &err) == -ENOENT);
    EXPECT(safetensors_open(scratch_folder, &file, &err) == -EINVAL);
}

/* A real header cut anywhere, and with any byte changed, is refused or read; it never crashes. */
static void survives_damage(void)
{
    const char *header =
        "{" TENSOR("a", "F32", "[2,2]", "[0,16]") "," TENSOR("b", "BF16", "[4]", "[16,24]") "}";
    unsigned char bytes[512] = {(unsigned char)strlen(header)};
    size_t count = 8 + strlen(header) + 24;
    memcpy(bytes + 8, header, strlen(header));
    for (size_t cut = 0; cut < count; cut++) {
        struct safetensors *file = NULL;
        const char *path = scratch_write("cut", bytes, cut);
        EXPECT(safetensors_open(path, &file, NULL) == -EINVAL, "cut to %zu bytes", cut);
    }
    for (size_t at = 0; at < 8 + strlen(header); at++) {
        for (int change = 1; change < 256; change *= 2) {
            bytes[at] ^= (unsigned char)change;
            struct safetensors *file = NULL;
            safetensors_open(scratch_write("flip", bytes, count), &file, NULL);
            safetensors_close(file);
            bytes[at] ^= (unsigned char)change;
        }
    }
}

int main(void)
{
    scratch_start();
    views_tensors();
    checks_weights();
    refuses_hostile_headers();
    refuses_hostile_lengths();
    survives_damage();
    scratch_finish();
    return test_finish();
}
