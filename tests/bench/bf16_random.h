/* SPDX-License-Identifier: MIT */
/*
 * Normally distributed bf16 values from a counter: any run of a sequence can be made by itself, at
 * memory speed. 16 random bits choose one of 65,536 quantiles of the normal distribution.
 */
#ifndef FLUXFS_TESTS_BENCH_BF16_RANDOM_H
#define FLUXFS_TESTS_BENCH_BF16_RANDOM_H

#include <stddef.h>
#include <stdint.h>

enum { BF16_QUANTILES = 1 << 16 };

/* Quantiles of the standard normal distribution, ascending; from −4.3 to 4.3. */
struct bf16_normal {
    float quantiles[BF16_QUANTILES];
};

/* The same for one mean and deviation, rounded to bf16. */
struct bf16_table {
    double mean, deviation; /* both 0 before the first bf16_table_set */
    uint16_t values[BF16_QUANTILES];
};

struct bf16_normal *bf16_normal_create(void); /* for free(); NULL if there is no memory */

/* Does nothing if the table is for these already. The deviation is above 0. */
void bf16_table_set(struct bf16_table *table, const struct bf16_normal *normal, double mean,
                    double deviation);

/* The key of a named sequence under a seed. */
uint64_t bf16_key(uint64_t seed, const char *name);

/* Values number `first` … `first + count − 1` of a sequence; `first` is a multiple of 4. */
void bf16_fill(uint16_t *values, size_t count, uint64_t first, uint64_t key,
               const struct bf16_table *table);

#endif
