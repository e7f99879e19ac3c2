/* SPDX-License-Identifier: MIT */
/*
 * The matrix product that everything else is made of: a few rows times one panel of weights.
 *
 * A weight [n, k] lies in memory as panels of PANEL rows each, every panel as [k, PANEL]: what a
 * kernel multiplies at a time lies in a row, as the copies of the weights (weights.c) arranged it
 * once. The last panel is filled up with zeros. There is a kernel for each instruction set worth
 * having one; CBLAS is the kernel of all others.
 *
 * The kernels add up an element's products in the order of their terms, whatever rows are computed
 * together: a result depends neither on how work was shared out nor on the number of threads.
 */
#ifndef FLUXFS_ENGINE_CPU_PRODUCT_H
#define FLUXFS_ENGINE_CPU_PRODUCT_H

#include <stdbool.h>
#include <stdint.h>

enum { PANEL = 32 };

/* c = a·panel + bias, or c += that if `accumulate`: c [rows, n], a [rows, segments·terms]. Element
 * [i, s·terms + l] of a is a[i·a_row + s·a_segment + l·a_term]; one of a_row and a_term is 1. The
 * panel is [segments·terms, PANEL], of which the first n columns count. bias [n] or NULL. */
struct product {
    float *c;
    const float *a, *panel, *bias;
    int64_t c_row, a_row, a_term, a_segment;
    int64_t rows, terms, segments;
    int64_t n;
    bool accumulate;
};

/* Computes a product with n = PANEL. */
typedef void product_kernel(const struct product *product);

/* The named kernel ("avx512", "avx2", "blas"), or the fastest if NULL; NULL if this machine
 * can't run it. */
product_kernel *product_kernel_find(const char *name);

void product_run(product_kernel *kernel, const struct product *product);

#endif
