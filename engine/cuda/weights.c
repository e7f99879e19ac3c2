/* SPDX-License-Identifier: MIT */
#include "engine/cuda/weights.h"

#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

/* Elements converted at a time, in a buffer that stays in the first-level cache. */
#define RUN 2048

static inline float from_bits(uint32_t bits)
{
    union {
        uint32_t bits;
        float value;
    } u = {bits};
    return u.value;
}

static inline uint32_t to_bits(float value)
{
    union {
        float value;
        uint32_t bits;
    } u = {value};
    return u.bits;
}

/* The loops below have no branches, so that compilers vectorise them; `bad` gathers what is not
 * finite. Sources are read through memcpy because a file may place a tensor at any byte. */

static uint32_t widen_bf16(float *restrict y, const char *restrict x, int64_t n)
{
    uint32_t bad = 0;

    for (int64_t i = 0; i < n; i++) {
        uint16_t half;
        memcpy(&half, x + 2 * i, sizeof half);
        bad |= (half & 0x7f80u) == 0x7f80u;
        y[i] = from_bits((uint32_t)half << 16);
    }
    return bad;
}

/* Exponent and mantissa moved to their places and rebiased by a multiplication, which makes
 * subnormal numbers come out right too. */
static uint32_t widen_f16(float *restrict y, const char *restrict x, int64_t n)
{
    uint32_t bad = 0;

    for (int64_t i = 0; i < n; i++) {
        uint16_t half;
        memcpy(&half, x + 2 * i, sizeof half);
        float magnitude = from_bits((uint32_t)(half & 0x7fffu) << 13) * 0x1p112f;
        bad |= (half & 0x7c00u) == 0x7c00u;
        y[i] = (half & 0x8000u) != 0 ? -magnitude : magnitude;
    }
    return bad;
}

static uint32_t take_f32(float *restrict y, const char *restrict x, int64_t n)
{
    uint32_t bad = 0;

    memcpy(y, x, (size_t)n * sizeof *y);
    for (int64_t i = 0; i < n; i++)
        bad |= (to_bits(y[i]) & 0x7f800000u) == 0x7f800000u;
    return bad;
}

static uint32_t narrow(uint16_t *restrict y, const float *restrict x, int64_t n)
{
    uint32_t bad = 0;

    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = to_bits(x[i]);
        uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
        bad |= (rounded & 0x7f80u) == 0x7f80u;
        y[i] = (uint16_t)rounded;
    }
    return bad;
}

/* bf16 weights of a bf16 file, the case that matters: copied and looked at in one go. Only the
 * device will read them, so they go past the caches where that can be said. Returns how many it
 * copied: all but a few, or none. */
static int64_t stream_bf16(uint16_t *y, const char *x, int64_t n, uint32_t *bad)
{
    int64_t i = 0;
#ifdef __SSE2__
    const __m128i mask = _mm_set1_epi16(0x7f80);
    __m128i seen = _mm_setzero_si128();

    if ((uintptr_t)y % sizeof mask != 0)
        return 0;
    for (; i + 8 <= n; i += 8) {
        __m128i eight = _mm_loadu_si128((const __m128i *)(const void *)(x + 2 * i));

        seen = _mm_or_si128(seen, _mm_cmpeq_epi16(_mm_and_si128(eight, mask), mask));
        _mm_stream_si128((__m128i *)(void *)(y + i), eight);
    }
    _mm_sfence();
    *bad |= _mm_movemask_epi8(seen) != 0;
#endif
    return i;
}

static uint32_t copy_bf16(uint16_t *restrict y, const char *restrict x, int64_t n)
{
    uint32_t bad = 0;

    for (int64_t i = stream_bf16(y, x, n, &bad); i < n; i++) {
        uint16_t half;
        memcpy(&half, x + 2 * i, sizeof half);
        bad |= (half & 0x7f80u) == 0x7f80u;
        y[i] = half;
    }
    return bad;
}

static const char *source_at(const struct weight_copy *copy, int64_t element)
{
    return (const char *)copy->source + (size_t)element * dtype_bytes(copy->source_dtype);
}

static uint32_t widen(const struct weight_copy *copy, int64_t first, int64_t n, float *y)
{
    const char *x = source_at(copy, first);

    if (copy->source_dtype == DTYPE_BF16)
        return widen_bf16(y, x, n);
    if (copy->source_dtype == DTYPE_F16)
        return widen_f16(y, x, n);
    return take_f32(y, x, n);
}

static uint32_t fill_matrix(const struct weight_copy *copy, int64_t first, int64_t n, uint16_t *y)
{
    float run[RUN];
    uint32_t bad = 0;

    if (copy->source_dtype == DTYPE_BF16)
        return copy_bf16(y, source_at(copy, first), n);
    for (int64_t i = 0; i < n; i += RUN) {
        int64_t count = n - i < RUN ? n - i : RUN;

        bad |= widen(copy, first + i, count, run);
        bad |= narrow(y + i, run, count);
    }
    return bad;
}

/* [in, window] → [window, in] of one output channel. */
static uint32_t fill_channel(const struct weight_copy *copy, int64_t first, uint16_t *y)
{
    float run[RUN];
    uint16_t narrowed[RUN] = {0};
    int window = copy->window, each = RUN / window;
    uint32_t bad = 0;

    for (int in = 0; in < copy->channels_in; in += each) {
        int count = copy->channels_in - in < each ? copy->channels_in - in : each;
        int64_t n = (int64_t)count * window;

        bad |= widen(copy, first + (int64_t)in * window, n, run);
        bad |= narrow(narrowed, run, n);
        for (int c = 0; c < count; c++)
            for (int w = 0; w < window; w++)
                y[w * copy->channels_in + in + c] = narrowed[c * window + w];
    }
    return bad;
}

bool weights_fill(const struct weight_copy *copy, int64_t first, int64_t count, void *piece)
{
    uint32_t bad = 0;

    if (copy->layout == WEIGHT_VECTOR)
        return widen(copy, first, count, piece) == 0;
    if (copy->layout != WEIGHT_CONV)
        return fill_matrix(copy, first, count, piece) == 0;
    for (int64_t i = 0; i < count; i += copy->cols)
        bad |= fill_channel(copy, first + i, (uint16_t *)piece + i);
    return bad == 0;
}
