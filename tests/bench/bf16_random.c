/* SPDX-License-Identifier: MIT */
#include "tests/bench/bf16_random.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The x below which a normal value lies with this probability (at most a half), by halving. */
static double quantile(double probability)
{
    double low = -9, high = 0;
    for (int i = 0; i < 50; i++) {
        double middle = (low + high) / 2;
        if (0.5 * erfc(-middle * M_SQRT1_2) < probability)
            low = middle;
        else
            high = middle;
    }
    return low;
}

struct bf16_normal *bf16_normal_create(void)
{
    struct bf16_normal *normal = malloc(sizeof *normal);
    if (normal == NULL)
        return NULL;
    for (int i = 0; i < BF16_QUANTILES / 2; i++) {
        double x = quantile((i + 0.5) / BF16_QUANTILES);
        normal->quantiles[i] = (float)x;
        normal->quantiles[BF16_QUANTILES - 1 - i] = (float)-x;
    }
    return normal;
}

/* To the nearest, ties to even; the value is finite. */
static uint16_t bf16_round(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void bf16_table_set(struct bf16_table *table, const struct bf16_normal *normal, double mean,
                    double deviation)
{
    assert(deviation > 0);
    if (table->mean == mean && table->deviation == deviation)
        return;
    table->mean = mean;
    table->deviation = deviation;
    for (int i = 0; i < BF16_QUANTILES; i++)
        table->values[i] = bf16_round((float)(mean + deviation * normal->quantiles[i]));
}

/* A bijection in which every bit of the input reaches every bit of the output: shifts fold the
 * high half onto the low one, odd factors carry it up again. (The factor is one that C. Degski
 * found to mix well.) */
static uint64_t scramble(uint64_t x)
{
    x ^= x >> 32;
    x *= UINT64_C(0xd6e8feb86659fd93);
    x ^= x >> 32;
    x *= UINT64_C(0xd6e8feb86659fd93);
    x ^= x >> 32;
    return x;
}

uint64_t bf16_key(uint64_t seed, const char *name)
{
    uint64_t key = scramble(seed + 1);
    for (; *name != '\0'; name++)
        key = scramble(key + (unsigned char)*name);
    return key;
}

/* One scrambled word gives four values. */
static uint64_t random_word(uint64_t key, uint64_t number)
{
    return scramble(key ^ scramble(number + UINT64_C(0x9e3779b97f4a7c15)));
}

void bf16_fill(uint16_t *values, size_t count, uint64_t first, uint64_t key,
               const struct bf16_table *table)
{
    assert(first % 4 == 0);
    size_t whole = count / 4;
    for (size_t i = 0; i < whole; i++) {
        uint64_t word = random_word(key, first / 4 + i);
        for (int j = 0; j < 4; j++)
            values[4 * i + j] = table->values[word >> 16 * j & 0xffff];
    }
    uint64_t word = random_word(key, first / 4 + whole);
    for (size_t i = 4 * whole; i < count; i++, word >>= 16)
        values[i] = table->values[word & 0xffff];
}
