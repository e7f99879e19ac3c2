/* SPDX-License-Identifier: MIT */
/*
 * The rig that one back end's operations are tried in: random operands in the back end's own
 * memory, often as views of wider matrices, and what must hold after an operation.
 *
 * Every matrix lies in a parent that the rig uploads whole, with guard values around the view.
 * After the operation all parents are downloaded: the view of the output must be within the stated
 * tolerance of the reference, and every other element of every operand must be what it was.
 */
#ifndef FLUXFS_TESTS_KERNELS_RIG_H
#define FLUXFS_TESTS_KERNELS_RIG_H

#include "alloc/arena.h"
#include "engine/backend.h"
#include "tests/kernels/edge.h"
#include "tests/kernels/reference.h"

enum { RIG_OPERANDS = 12 };

struct operand {
    struct tensor view;      /* what the operation is given */
    struct tensor whole;     /* its contiguous parent */
    struct edge edge;        /* the memory, if it is not the arena's */
    void *host;              /* the parent's elements as uploaded: float, int32_t or uint8_t */
    int64_t row, col;        /* place of the view in its parent */
    bool written;            /* the operation may change the view */
    bool work;               /* … and nobody is to look at what it wrote */
    struct reference wanted; /* of the view, if written and not work */
    struct grid values;      /* of a weight, whose memory only the back end understands */
};

struct rig {
    struct backend *backend;
    struct arena *arena;
    uintptr_t workspace;
    uint64_t seed, random; /* of the present case; the generator's state */
    char label[160];       /* the present case, for messages */
    struct operand operands[RIG_OPERANDS];
    int count;
    double worst; /* error ÷ tolerance since the last report */
    int checks, failures;
    const char *only; /* time operations whose name has this in it; NULL: all */
    bool tight;       /* operands have no margins: for timing */
    bool full_rows;   /* they have none left and right, so that they are contiguous */
    bool aligned;     /* sizes and margins of this case are mostly multiples of 8 */
};

/* Opens a back end by name: "cpu" or "cpu:KERNEL" (engine/cpu/product.h) with so many threads,
 * others as modules of `directory`. 0, or ENOENT, ENODEV, ENOTSUP: not there. */
int rig_open(struct rig *rig, const char *name, int threads, const char *directory,
             struct error *err);
void rig_close(struct rig *rig);

/* ---- random numbers ---- */
uint64_t rig_random(struct rig *rig);
int64_t rig_range(struct rig *rig, int64_t first, int64_t last); /* both included */
bool rig_chance(struct rig *rig, int percent);
/* Sizes at which blocked and vectorised loops go wrong: 1, around powers of two, odd; ≤ most. */
int64_t rig_size(struct rig *rig, int64_t most);

/* ---- one case ---- */

/* Starts case `number` of an operation: operands of the one before are gone, and the random numbers
 * depend on seed and number alone. */
void rig_begin(struct rig *rig, const char *operation, uint64_t number);
void rig_describe(struct rig *rig, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* An operand of uniform random values in centre ± spread, representable in its type. */
struct operand *rig_input(struct rig *rig, enum dtype dtype, int64_t rows, int64_t cols,
                          double centre, double spread);
/* A vector [1, n] of fp32. */
struct operand *rig_vector(struct rig *rig, int64_t n, double centre, double spread);
/* A vector [1, n] of the type that biases have. */
struct operand *rig_bias(struct rig *rig, int64_t n);
/* An operand that the operation must fill; holds NaN until then. */
struct operand *rig_output(struct rig *rig, enum dtype dtype, int64_t rows, int64_t cols);
/* An operand for the operation's own use; holds NaN until then. */
struct tensor rig_work(struct rig *rig, enum dtype dtype, int64_t rows, int64_t cols);
/* A weight [rows, cols] of uniform random values in ± spread, as the back end lays them out: copied
 * in up to three parts. */
struct operand *rig_weight(struct rig *rig, int64_t rows, int64_t cols, double spread);
/* Memory for a weight, as many rows of as many columns as it takes, holding NaN. */
struct operand *rig_weight_memory(struct rig *rig, int64_t rows, int64_t cols);
/* An absent operand. */
extern const struct tensor rig_absent;

/* The view's elements, to be freed by the caller with grid_free. */
struct grid rig_values(const struct operand *operand);
/* Sets the view's elements on host and device. */
void rig_set(struct rig *rig, struct operand *operand, const double *values);

/* The operation changes this operand to `wanted`, which the rig then owns. */
void rig_want(struct operand *operand, struct reference wanted);
/* Waits for the device and checks everything. */
void rig_check(struct rig *rig);

/* Counts a check, and reports it with the case's label if it failed. */
void rig_expect(struct rig *rig, bool ok, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Unit roundoff of a type: the largest relative error of rounding to it. */
double rig_roundoff(enum dtype dtype);

#endif
