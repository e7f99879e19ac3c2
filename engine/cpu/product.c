/* SPDX-License-Identifier: MIT */
#include "engine/cpu/product.h"

#include <cblas.h>
#include <stddef.h>
#include <string.h>

#if defined(__x86_64__)

#define KERNEL product_avx512
#define TILE tile_avx512
#define TARGET "avx512f"
#define LANES 16
#define VECTORS 2
#define ROWS 12
#include "engine/cpu/product_kernel.h"

#define KERNEL product_avx2
#define TILE tile_avx2
#define TARGET "avx2,fma"
#define LANES 8
#define VECTORS 2
#define ROWS 6
#include "engine/cpu/product_kernel.h"

#endif

/* Rows of a may overlap, as the windows of a convolution do, which CBLAS doesn't take: then the
 * terms from one row to the next are multiplied first, then those to the row after it … */
static void product_blas(const struct product *p)
{
    bool overlap = p->a_term == 1 && p->rows > 1 && p->a_row < p->terms;
    int64_t most = overlap ? p->a_row : p->terms;
    const float *panel = p->panel;
    float keep = p->accumulate ? 1.0f : 0.0f;

    for (int64_t segment = 0; segment < p->segments; segment++)
        for (int64_t l = 0; l < p->terms; l += most) {
            int64_t terms = p->terms - l < most ? p->terms - l : most;
            const float *a = p->a + segment * p->a_segment + l * p->a_term;

            if (p->a_term == 1)
                cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)p->rows, PANEL,
                            (int)terms, 1.0f, a, (int)(p->rows > 1 ? p->a_row : terms), panel,
                            PANEL, keep, p->c, (int)p->c_row);
            else
                cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (int)p->rows, PANEL,
                            (int)terms, 1.0f, a, (int)p->a_term, panel, PANEL, keep, p->c,
                            (int)p->c_row);
            panel += terms * PANEL;
            keep = 1.0f;
        }
    for (int64_t i = 0; p->bias != NULL && i < p->rows; i++)
        for (int j = 0; j < PANEL; j++)
            p->c[i * p->c_row + j] += p->bias[j];
}

static bool always(void)
{
    return true;
}

#if defined(__x86_64__)
static bool has_avx512(void)
{
    return __builtin_cpu_supports("avx512f");
}

static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif

/* The fastest first. */
static const struct {
    const char *name;
    product_kernel *kernel;
    bool (*available)(void);
} kernels[] = {
#if defined(__x86_64__)
    {"avx512", product_avx512, has_avx512},
    {"avx2", product_avx2, has_avx2},
#endif
    {"blas", product_blas, always},
};

product_kernel *product_kernel_find(const char *name)
{
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++)
        if ((name == NULL || strcmp(kernels[i].name, name) == 0) && kernels[i].available())
            return kernels[i].kernel;
    return NULL;
}

/* The kernels know whole panels only: c is computed aside, some rows at a time. */
static void product_narrow(product_kernel *kernel, const struct product *p)
{
    enum { ROWS = 48 };
    float result[ROWS * PANEL], bias[PANEL] = {0};
    struct product part = *p;

    if (p->bias != NULL)
        part.bias = memcpy(bias, p->bias, (size_t)p->n * sizeof *bias);
    part.c = result;
    part.c_row = PANEL;
    part.n = PANEL;
    part.accumulate = false;
    for (int64_t row = 0; row < p->rows; row += ROWS) {
        part.rows = p->rows - row < ROWS ? p->rows - row : ROWS;
        part.a = p->a + row * p->a_row;
        kernel(&part);
        for (int64_t i = 0; i < part.rows; i++) {
            float *c = p->c + (row + i) * p->c_row;

            for (int64_t j = 0; j < p->n; j++)
                c[j] = p->accumulate ? c[j] + result[i * PANEL + j] : result[i * PANEL + j];
        }
    }
}

void product_run(product_kernel *kernel, const struct product *product)
{
    if (product->n == PANEL)
        kernel(product);
    else
        product_narrow(kernel, product);
}
