/* SPDX-License-Identifier: MIT */
/* Any bytes as a config.json, read with all kinds of gets: values stay within their limits. */
#include <stdlib.h>
#include <string.h>

#include "engine/json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int condition)
{
    if (!condition)
        abort();
}

static void read_fields(const struct json_file *file)
{
    static const char *const keys[] = {"num_layers",  "scaling_factor", "guidance_embeds",
                                       "_class_name", "axes_dims_rope", "absent"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        struct json_reader readers[6];
        for (int j = 0; j < 6; j++)
            readers[j] = json_reader_start(file);
        int list[8], number = json_get_int(&readers[0], keys[i], 1, 100);
        double real = json_get_double_or(&readers[1], keys[i], 1.0, 0.5, 1.5);
        int count = json_get_ints(&readers[2], keys[i], list, 8, 1000);
        require(number >= 1 && number <= 100);
        require(real >= 0.5 && real <= 1.5);
        require(count >= 0 && count <= 8);
        for (int j = 0; j < count && readers[2].first.code == 0; j++)
            require(list[j] >= 1 && list[j] <= 1000);
        json_get_bool(&readers[3], keys[i]);
        require(strlen(json_get_string(&readers[4], keys[i])) < SIZE_MAX);
        require(json_get_int_or(&readers[5], keys[i], 7, 1, 100) >= 1);
        for (int j = 0; j < 6; j++) {
            struct error err = {0};
            if (json_reader_finish(&readers[j], &err) != 0)
                require(strstr(err.text, keys[i]) != NULL && strchr(err.text, '\n') == NULL);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct json_file *file = NULL;
    struct error err = {0};
    if (json_file_parse("config.json", data, size, &file, &err) == 0)
        read_fields(file);
    else
        require(err.code < 0 && strchr(err.text, '\n') == NULL);
    json_file_close(file);
    return 0;
}
