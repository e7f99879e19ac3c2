/* SPDX-License-Identifier: MIT */
/* Any bytes as a safetensors file: refused with a line of text, or every tensor of it lies inside
 * and overlaps no other. */
#include "engine/safetensors.h"

#include <string.h>

#include "tests/fuzz/as_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int condition)
{
    if (!condition)
        abort();
}

static void check_tensors(const struct safetensors *file, size_t size)
{
    size_t count, sum_bytes = 0;
    const struct stored_tensor *list = safetensors_list(file, &count);
    for (size_t i = 0; i < count; i++) {
        const struct stored_tensor *tensor = &list[i];
        const unsigned char *bytes = tensor->data;
        sum_bytes += tensor->size_bytes;
        require(safetensors_find(file, tensor->name) == tensor);
        require(tensor->rank >= 0 && tensor->rank <= STORED_RANK_MAX);
        uint64_t sum = 0;
        for (size_t at = 0; at < tensor->size_bytes; at++)
            sum += bytes[at];
        require(sum <= 255 * tensor->size_bytes);
        struct error err = {0};
        if (stored_tensor_check(tensor, 1, (int64_t[]){3}, &err) != 0)
            require(err.text[0] != '\0' && strchr(err.text, '\n') == NULL);
    }
    require(sum_bytes <= size - 8);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct as_file input = as_file_open(data, size);
    struct safetensors *file = NULL;
    struct error err = {0};
    if (safetensors_open(input.path, &file, &err) == 0)
        check_tensors(file, size);
    else
        require(err.code < 0 && err.text[0] != '\0' && strchr(err.text, '\n') == NULL);
    safetensors_close(file);
    as_file_close(&input);
    return 0;
}
