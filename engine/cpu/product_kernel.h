/* SPDX-License-Identifier: MIT */
/*
 * The body of one instruction set's kernel: sums of a tile of c stay in registers while rows of the
 * panel pass. product.c includes this once for each with
 *   KERNEL, TILE   names of the two functions
 *   TARGET         the instruction set as the compiler calls it
 *   LANES          floats in a vector
 *   VECTORS        in a row of the tile: a divisor of PANEL / LANES
 *   ROWS           of the tile: 6 or 12
 * Sanitizers leave it alone: they would check every term, and whatever paints would take several
 * times as long. tests/unit/product.c shows that it stays within its operands.
 */
#define UNCHECKED no_sanitize("address", "undefined")

static inline __attribute__((always_inline, target(TARGET), UNCHECKED)) void
TILE(const struct product *p, int64_t row, int64_t column, const int rows)
{
    /* As aligned as the floats in it. */
    typedef float vector __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));
    const float *b = p->panel + column;
    int64_t stride = p->a_row, stride3 = 3 * p->a_row;
    vector sums[ROWS][VECTORS];

    for (int v = 0; v < VECTORS; v++)
        sums[0][v] =
            p->bias != NULL ? *(const vector *)(p->bias + column + v * LANES) : (vector){0};
    for (int i = 1; i < rows; i++)
        for (int v = 0; v < VECTORS; v++)
            sums[i][v] = sums[0][v];
    for (int64_t segment = 0; segment < p->segments; segment++) {
        /* Four rows from each pointer: twelve pointers would be more than there are registers. */
        const float *a0 = p->a + row * stride + segment * p->a_segment;
        const float *a4 = a0 + 4 * stride, *a8 = a4 + 4 * stride;

        for (int64_t l = 0; l < p->terms; l++, b += PANEL) {
            vector panel[VECTORS];

            for (int v = 0; v < VECTORS; v++)
                panel[v] = *(const vector *)(b + v * LANES);
#pragma GCC unroll 12
            for (int i = 0; i < rows; i++) {
                const float *a = i < 4 ? a0 : i < 8 ? a4 : a8;
                float x = a[i % 4 == 3 ? stride3 : i % 4 * stride];

                for (int v = 0; v < VECTORS; v++)
                    sums[i][v] += x * panel[v];
            }
            a0 += p->a_term;
            a4 += p->a_term;
            a8 += p->a_term;
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < VECTORS; v++) {
            vector *c = (vector *)(p->c + (row + i) * p->c_row + column + v * LANES);

            *c = p->accumulate ? *c + sums[i][v] : sums[i][v];
        }
}

static __attribute__((target(TARGET), UNCHECKED)) void KERNEL(const struct product *p)
{
    int64_t blocks = (p->rows + ROWS - 1) / ROWS;

    for (int64_t column = 0; column < PANEL; column += (int64_t)LANES * VECTORS)
        for (int64_t block = 0; block < blocks; block++) {
            int64_t row = p->rows * block / blocks;

            switch (p->rows * (block + 1) / blocks - row) {
#if ROWS > 6
            case 12:
                TILE(p, row, column, 12);
                break;
            case 11:
                TILE(p, row, column, 11);
                break;
            case 10:
                TILE(p, row, column, 10);
                break;
            case 9:
                TILE(p, row, column, 9);
                break;
            case 8:
                TILE(p, row, column, 8);
                break;
            case 7:
                TILE(p, row, column, 7);
                break;
#endif
            case 6:
                TILE(p, row, column, 6);
                break;
            case 5:
                TILE(p, row, column, 5);
                break;
            case 4:
                TILE(p, row, column, 4);
                break;
            case 3:
                TILE(p, row, column, 3);
                break;
            case 2:
                TILE(p, row, column, 2);
                break;
            default:
                TILE(p, row, column, 1);
                break;
            }
        }
}

#undef KERNEL
#undef TILE
#undef TARGET
#undef LANES
#undef VECTORS
#undef ROWS
#undef UNCHECKED
