/* SPDX-License-Identifier: MIT */
#include "engine/stored.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "engine/file.h"

static float value_at(const struct stored_tensor *tensor, int64_t index)
{
    const char *at = (const char *)tensor->data + (size_t)index * stored_type_bytes(tensor->type);
    union {
        uint32_t bits;
        float value;
    } u = {0};
    uint16_t half;

    if (tensor->type == STORED_F32) {
        memcpy(&u.value, at, sizeof u.value);
        return u.value;
    }
    memcpy(&half, at, sizeof half);
    if (tensor->type == STORED_BF16) {
        u.bits = (uint32_t)half << 16;
        return u.value;
    }
    if ((half & 0x7c00) == 0x7c00)
        return NAN;
    u.bits = (uint32_t)(half & 0x7fff) << 13;
    return half & 0x8000 ? -u.value * 0x1p112f : u.value * 0x1p112f;
}

static bool row_read(const struct stored_tensor *tensor, int64_t row, int64_t cols, float *y)
{
    bool finite = true;

    for (int64_t j = 0; j < cols; j++) {
        y[j] = value_at(tensor, row * cols + j);
        finite &= (bool)isfinite(y[j]);
    }
    return finite;
}

int stored_rows_read(const struct stored_tensor *tensor, const int32_t *rows, int count, float *y,
                     struct error *err)
{
    int64_t cols = tensor->shape[1];

    for (int i = 0; i < count; i++, y += cols) {
        if (rows[i] < 0 || rows[i] >= tensor->shape[0])
            return error_set(err, EINVAL,
                             "%s: tensor %s has %lld rows, but the tokenizer gives id %d; are "
                             "both of one model?",
                             file_label(tensor->path), tensor->name, (long long)tensor->shape[0],
                             (int)rows[i]);
        if (i > 0 && rows[i] == rows[i - 1]) /* padding, most of it */
            memcpy(y, y - cols, (size_t)cols * sizeof *y);
        else if (!row_read(tensor, rows[i], cols, y))
            return error_set(err, EINVAL,
                             "%s: tensor %s: NaN or infinite weights; the file is damaged, "
                             "fetch it again",
                             file_label(tensor->path), tensor->name);
    }
    return 0;
}
