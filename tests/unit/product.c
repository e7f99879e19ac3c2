/* SPDX-License-Identifier: MIT */
/* The CPU's products against plain sums, each operand in front of a page that can't be touched:
 * sanitizers do not look into them. */
#include "engine/cpu/product.h"

#include <sys/mman.h>
#include <unistd.h>

#include "tests/test.h"

enum { ROWS_MOST = 13 };
enum { A, WEIGHT, C, BIAS, OPERANDS };

static float *ends[OPERANDS];

static float *end_of_pages(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = 16 * page;
    char *memory =
        mmap(NULL, bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED || mprotect(memory + bytes, page, PROT_NONE) != 0)
        exit(EXIT_FAILURE);
    return (float *)(memory + bytes);
}

/* The last `count` values before the page. */
static float *operand(int which, int64_t count)
{
    float *values = ends[which] - count;

    for (int64_t i = 0; i < count; i++)
        values[i] = (float)((i * 37 + which * 11) % 19 - 9);
    return values;
}

/* Small whole numbers: sums are exact in any order. */
static float sum(const struct product *p, int64_t i, int64_t j, float before)
{
    float result = (p->accumulate ? before : 0) + (p->bias != NULL ? p->bias[j] : 0);

    for (int64_t s = 0; s < p->segments; s++)
        for (int64_t l = 0; l < p->terms; l++)
            result += p->a[i * p->a_row + s * p->a_segment + l * p->a_term] *
                      p->panel[(s * p->terms + l) * PANEL + j];
    return result;
}

static void try(const char *name, product_kernel *kernel, struct product *p)
{
    float expected[ROWS_MOST * PANEL];
    int wrong = 0;

    p->a = operand(A, p->segments * p->rows * p->terms);
    p->panel = operand(WEIGHT, p->segments * p->terms * PANEL);
    p->c = operand(C, p->rows * p->n);
    p->c_row = p->n;
    for (int64_t i = 0; i < p->rows * p->n; i++)
        expected[i] = sum(p, i / p->n, i % p->n, p->c[i]);
    product_run(kernel, p);
    for (int64_t i = 0; i < p->rows * p->n; i++)
        wrong += p->c[i] != expected[i];
    EXPECT(wrong == 0, "%s: %d values of %d rows, %d terms, %d segments, n %d", name, wrong,
           (int)p->rows, (int)p->terms, (int)p->segments, (int)p->n);
}

static void try_shapes(const char *name, product_kernel *kernel, bool transposed)
{
    for (int64_t rows = 1; rows <= ROWS_MOST; rows++)
        for (int64_t terms = 1; terms <= 40; terms += 13)
            for (int variant = 0; variant < 16; variant++) {
                struct product p = {.rows = rows, .terms = terms};

                p.segments = (variant & 1) != 0 ? 3 : 1;
                p.n = (variant & 2) != 0 ? 5 : PANEL;
                p.accumulate = (variant & 4) != 0;
                p.bias = (variant & 8) != 0 ? operand(BIAS, p.n) : NULL;
                p.a_row = transposed ? 1 : terms;
                p.a_term = transposed ? rows : 1;
                p.a_segment = rows * terms;
                try(name, kernel, &p);
            }
}

int main(void)
{
    static const char *const names[] = {"avx512", "avx2", "blas"};

    for (int i = 0; i < OPERANDS; i++)
        ends[i] = end_of_pages();
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        product_kernel *kernel = product_kernel_find(names[i]);

        for (int transposed = 0; kernel != NULL && transposed < 2; transposed++)
            try_shapes(names[i], kernel, transposed != 0);
    }
    return test_finish();
}
