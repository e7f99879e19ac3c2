/* SPDX-License-Identifier: MIT */
#include "engine/random.h"

#include <math.h>

enum { STATE_WORDS = 624, SHIFT_WORDS = 397, BLOCK = 16 };

struct mt19937 {
    uint32_t state[STATE_WORDS];
    int next;
};

static void generator_seed(struct mt19937 *generator, uint64_t seed)
{
    generator->state[0] = (uint32_t)seed;
    for (uint32_t i = 1; i < STATE_WORDS; i++) {
        uint32_t last = generator->state[i - 1];
        generator->state[i] = 1812433253u * (last ^ last >> 30) + i;
    }
    generator->next = STATE_WORDS;
}

static void generator_advance(struct mt19937 *generator)
{
    uint32_t *state = generator->state;
    for (int i = 0; i < STATE_WORDS; i++) {
        uint32_t mixed = (state[i] & 0x80000000u) | (state[(i + 1) % STATE_WORDS] & 0x7fffffffu);
        uint32_t twist = (mixed & 1) != 0 ? 0x9908b0dfu : 0;
        state[i] = state[(i + SHIFT_WORDS) % STATE_WORDS] ^ mixed >> 1 ^ twist;
    }
    generator->next = 0;
}

static uint32_t generator_draw(struct mt19937 *generator)
{
    if (generator->next == STATE_WORDS)
        generator_advance(generator);
    uint32_t word = generator->state[generator->next++];
    word ^= word >> 11;
    word ^= word << 7 & 0x9d2c5680u;
    word ^= word << 15 & 0xefc60000u;
    return word ^ word >> 18;
}

/* Uniform in [0, 1), as many bits as the type holds. */
static float draw_float(struct mt19937 *generator)
{
    return (float)(generator_draw(generator) & 0xffffffu) * 0x1p-24f;
}

static double draw_double(struct mt19937 *generator)
{
    uint64_t high = generator_draw(generator);
    uint64_t word = high << 32 | generator_draw(generator);
    return (double)(word & ((UINT64_C(1) << 53) - 1)) * 0x1p-53;
}

/* Box–Muller: the first half of a block gives radii, the second half angles. */
static void transform_block(float *values)
{
    for (int i = 0; i < BLOCK / 2; i++) {
        float radius = sqrtf(-2.0f * logf(1.0f - values[i]));
        float angle = (float)(2.0 * M_PI) * values[i + BLOCK / 2];
        values[i] = radius * cosf(angle);
        values[i + BLOCK / 2] = radius * sinf(angle);
    }
}

static void fill_blocks(struct mt19937 *generator, float *values, size_t count)
{
    for (size_t i = 0; i < count; i++)
        values[i] = draw_float(generator);
    for (size_t i = 0; i + BLOCK <= count; i += BLOCK)
        transform_block(values + i);
    if (count % BLOCK == 0)
        return;
    /* The last whole block's worth is drawn anew, over values already made. */
    float *last = values + count - BLOCK;
    for (size_t i = 0; i < BLOCK; i++)
        last[i] = draw_float(generator);
    transform_block(last);
}

/* Fewer values than a block are drawn in pairs, in double. */
static void fill_pairs(struct mt19937 *generator, float *values, size_t count)
{
    for (size_t i = 0; i < count; i += 2) {
        double angle = 2.0 * M_PI * draw_double(generator);
        double radius = sqrt(-2.0 * log1p(-draw_double(generator)));
        values[i] = (float)(radius * cos(angle));
        if (i + 1 < count)
            values[i + 1] = (float)(radius * sin(angle));
    }
}

void random_normal(uint64_t seed, float *values, size_t count)
{
    struct mt19937 generator;
    generator_seed(&generator, seed);
    if (count >= BLOCK)
        fill_blocks(&generator, values, count);
    else
        fill_pairs(&generator, values, count);
}
