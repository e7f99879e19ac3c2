/* SPDX-License-Identifier: MIT */
/* Weights for the device against what their bits mean, element by element. */
#include <math.h>
#include <string.h>

#include "engine/cuda/weights.h"
#include "tests/test.h"

static double value_of(uint32_t bits, int mantissa_bits, int exponent_bits)
{
    int bias = (1 << (exponent_bits - 1)) - 1;
    int exponent = (int)(bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
    double mantissa = bits & ((1u << mantissa_bits) - 1);
    double value = exponent == 0
                       ? ldexp(mantissa, 1 - bias - mantissa_bits)
                       : ldexp(mantissa + ldexp(1, mantissa_bits), exponent - bias - mantissa_bits);

    return bits >> (mantissa_bits + exponent_bits) & 1 ? -value : value;
}

static struct weight_copy copy_of(const void *source, enum dtype dtype, enum weight_layout layout,
                                  int64_t n)
{
    return (struct weight_copy){
        .source = source, .source_dtype = dtype, .layout = layout, .rows = 1, .cols = n};
}

/* Every bf16 and every fp16 number, as fp32. */
static void test_all_halves(enum dtype dtype, int mantissa_bits, int exponent_bits)
{
    for (uint32_t bits = 0; bits < 65536; bits++) {
        char source[3] = {0};
        uint16_t half = (uint16_t)bits;
        bool finite =
            (bits >> mantissa_bits & ((1u << exponent_bits) - 1)) != (1u << exponent_bits) - 1;
        float value;

        memcpy(source + 1, &half, sizeof half); /* at an odd address */
        struct weight_copy copy = copy_of(source + 1, dtype, WEIGHT_VECTOR, 1);
        bool good = weights_fill(&copy, 0, 1, &value);
        if (good != finite ||
            (finite && (double)value != value_of(bits, mantissa_bits, exponent_bits)))
            EXPECT(false, "type %d, %04x: %g", dtype, bits, (double)value);
    }
    EXPECT(true);
}

/* fp32 to bf16: the nearest one, the even one of two as near. */
static void test_rounding(void)
{
    static const struct {
        uint32_t from;
        uint16_t to;
        bool finite;
    } cases[] = {
        {0x3f800000, 0x3f80, true}, {0x3f808000, 0x3f80, true},  {0x3f808001, 0x3f81, true},
        {0x3f818000, 0x3f82, true}, {0x3f817fff, 0x3f81, true},  {0xbf808001, 0xbf81, true},
        {0x00000000, 0x0000, true}, {0x80000000, 0x8000, true},  {0x00008001, 0x0001, true},
        {0x7f7f0000, 0x7f7f, true}, {0x7f7f8000, 0x7f80, false}, {0x7f800000, 0, false},
        {0x7fffffff, 0, false},     {0xff800000, 0, false},      {0x3fffffff, 0x4000, true},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct weight_copy copy = copy_of(&cases[i].from, DTYPE_F32, WEIGHT_MATRIX, 1);
        uint16_t half = 0;
        bool good = weights_fill(&copy, 0, 1, &half);

        EXPECT(good == cases[i].finite, "%08x", cases[i].from);
        EXPECT(!good || half == cases[i].to, "%08x: %04x", cases[i].from, half);
    }
}

/* [out, in, window] → [out, window, in], whole and from the second channel on, with more input
 * channels than are converted at a time. */
static void test_conv(int in, int window)
{
    enum { OUT = 3, MAX = 3 * 700 * 9 };
    static uint16_t source[MAX], target[MAX];
    struct weight_copy copy = {.source = source,
                               .source_dtype = DTYPE_BF16,
                               .layout = WEIGHT_CONV,
                               .rows = OUT,
                               .cols = (int64_t)in * window,
                               .channels_in = in,
                               .window = window};
    int64_t each = copy.cols;

    for (int i = 0; i < OUT * each; i++)
        source[i] = (uint16_t)(i % 0x7f80);
    for (int first = 0; first < 2; first++) {
        memset(target, 0xff, sizeof target);
        EXPECT(weights_grain(&copy) == each && weights_element_bytes(&copy) == 2);
        EXPECT(weights_fill(&copy, first * each, (OUT - first) * each, target));
        for (int64_t o = first; o < OUT; o++)
            for (int c = 0; c < in; c++)
                for (int w = 0; w < window; w++)
                    if (target[(o - first) * each + w * in + c] !=
                        source[o * each + c * window + w]) {
                        EXPECT(false, "out %d, in %d, window %d", (int)o, c, w);
                        return;
                    }
    }
}

/* A bad element anywhere in a long run is seen, in every type. */
static void test_bad(void)
{
    enum { N = 5000 };
    static float floats[N];
    static uint16_t halves[N], target[N];
    static float wide[N];

    for (int at = 0; at < N; at += 1249) {
        struct weight_copy f32 = copy_of(floats, DTYPE_F32, WEIGHT_MATRIX, N);
        struct weight_copy bf16 = copy_of(halves, DTYPE_BF16, WEIGHT_MATRIX, N);
        struct weight_copy f16 = copy_of(halves, DTYPE_F16, WEIGHT_VECTOR, N);

        EXPECT(weights_fill(&f32, 0, N, target) && weights_fill(&bf16, 0, N, target) &&
               weights_fill(&f16, 0, N, wide));
        floats[at] = INFINITY;
        halves[at] = 0xffc0;
        EXPECT(!weights_fill(&f32, 0, N, target) && !weights_fill(&bf16, 0, N, target) &&
               !weights_fill(&f16, 0, N, wide));
        EXPECT(at == 0 || weights_fill(&f32, 0, at, target));
        floats[at] = 0;
        halves[at] = 0;
    }
}

int main(void)
{
    test_all_halves(DTYPE_BF16, 7, 8);
    test_all_halves(DTYPE_F16, 10, 5);
    test_rounding();
    test_conv(1, 9);
    test_conv(5, 1);
    test_conv(700, 9);
    test_bad();
    return test_finish();
}
