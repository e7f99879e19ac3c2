/* SPDX-License-Identifier: MIT */
#include "tests/kernels/reference.h"

#include <math.h>
#include <stdlib.h>

#define U 0x1p-24 /* unit roundoff of fp32 */
#define PI 3.14159265358979323846
#define FORMULA (12 * U) /* for a handful of operations, an exponential among them */
/* What lies below the range of normal fp32 numbers may be flushed to zero. */
#define TINY 2e-38

struct grid grid_create(int64_t rows, int64_t cols)
{
    struct grid grid = {calloc((size_t)(rows * cols) + 1, sizeof(double)), rows, cols};

    if (grid.at == NULL)
        abort();
    return grid;
}

void grid_free(struct grid *grid)
{
    free(grid->at);
    *grid = (struct grid){0};
}

void reference_free(struct reference *reference)
{
    grid_free(&reference->value);
    grid_free(&reference->error);
}

static struct reference reference_create(int64_t rows, int64_t cols)
{
    return (struct reference){grid_create(rows, cols), grid_create(rows, cols)};
}

static double get(struct grid grid, int64_t i, int64_t j)
{
    return grid.at[i * grid.cols + j];
}

static void put(struct reference *r, int64_t i, int64_t j, double value, double error)
{
    r->value.at[i * r->value.cols + j] = value;
    r->error.at[i * r->error.cols + j] = error + TINY;
}

/* Relative to the sum of the magnitudes of n terms. */
static double sum_error(double n)
{
    return (4 + 2 * sqrt(n)) * U;
}

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

static double gelu_tanh(double x)
{
    return x * 0.5 * (1 + tanh(sqrt(2 / PI) * (x + 0.044715 * x * x * x)));
}

static double activate(double x, enum activation activation)
{
    switch (activation) {
    case ACTIVATION_GELU_TANH:
        return gelu_tanh(x);
    case ACTIVATION_QUICK_GELU:
        return x * sigmoid(1.702 * x);
    case ACTIVATION_SILU:
        return x * sigmoid(x);
    default:
        return x;
    }
}

/* Of an activation of an argument that itself is off by `error`. An exponential of z errs by |z|·u
 * since its argument does; the tails of what is written with tanh by some u·|x| as well. */
static double activate_error(double x, double error, enum activation activation)
{
    double z = activation == ACTIVATION_GELU_TANH ? 1.6 * (fabs(x) + 0.045 * fabs(x * x * x))
                                                  : 1.702 * fabs(x);

    if (activation == ACTIVATION_NONE)
        return error;
    /* No slope of these curves exceeds 1.13. */
    return 1.13 * error + (FORMULA + 4 * U * z) * fabs(activate(x, activation)) + 8 * U * fabs(x);
}

struct reference reference_linear(struct grid x, struct grid weight, struct grid bias,
                                  enum activation activation)
{
    struct reference y = reference_create(x.rows, weight.rows);

    for (int64_t i = 0; i < x.rows; i++)
        for (int64_t j = 0; j < weight.rows; j++) {
            double sum = bias.at != NULL ? bias.at[j] : 0, magnitude = fabs(sum);

            for (int64_t l = 0; l < x.cols; l++) {
                double term = get(x, i, l) * get(weight, j, l);

                sum += term;
                magnitude += fabs(term);
            }
            put(&y, i, j, activate(sum, activation),
                activate_error(sum, sum_error((double)x.cols) * magnitude, activation));
        }
    return y;
}

/* Scores of one query against all keys it sees, their number and the greatest error of one. */
static int64_t score(const struct attention_case *args, int head, int64_t query, double *scores,
                     double *error)
{
    int64_t size = args->q.cols / args->heads, first = head * size;
    int64_t keys = args->k.rows;

    if (args->causal && query + 1 < keys)
        keys = query + 1;
    *error = 0;
    for (int64_t key = 0; key < keys; key++) {
        double sum = 0, magnitude = 0, bias = 0, off;

        for (int64_t l = 0; l < size; l++) {
            double term = get(args->q, query, first + l) * get(args->k, key, first + l);

            sum += term;
            magnitude += fabs(term);
        }
        if (args->bias.at != NULL)
            bias = get(args->bias, head * args->q.rows + query, key);
        scores[key] = args->scale * sum + bias;
        off = sum_error((double)size) * magnitude * fabs(args->scale) +
              2 * U * (fabs(bias) + fabs(scores[key]));
        *error = off > *error ? off : *error;
    }
    return keys;
}

/* Scores to probabilities. */
static void softmax(double *scores, int64_t n)
{
    double maximum = -INFINITY, sum = 0;

    for (int64_t i = 0; i < n; i++)
        maximum = scores[i] > maximum ? scores[i] : maximum;
    for (int64_t i = 0; i < n; i++)
        sum += scores[i] = exp(scores[i] - maximum);
    for (int64_t i = 0; i < n; i++)
        scores[i] /= sum;
}

struct reference reference_attention(const struct attention_case *args)
{
    struct reference y = reference_create(args->q.rows, args->q.cols);
    struct grid scores = grid_create(1, args->k.rows);
    int64_t size = args->q.cols / args->heads;

    for (int head = 0; head < args->heads; head++)
        for (int64_t query = 0; query < args->q.rows; query++) {
            double score_error, off;
            int64_t keys = score(args, head, query, scores.at, &score_error);

            softmax(scores.at, keys);
            /* A score off by δ makes a weight wrong by the factor e^δ, and so may the sum be. */
            off = 2 * expm1(score_error) + 2 * args->weight_roundoff + FORMULA +
                  2 * sum_error((double)keys);
            for (int64_t l = 0; l < size; l++) {
                double sum = 0, magnitude = 0;

                for (int64_t key = 0; key < keys; key++) {
                    double term = scores.at[key] * get(args->v, key, head * size + l);

                    sum += term;
                    magnitude += fabs(term);
                }
                put(&y, query, head * size + l, sum, off * magnitude);
            }
        }
    grid_free(&scores);
    return y;
}

/* The pixel of x that lies under a window's place, or -1 outside of the image. */
static int64_t source_pixel(const struct conv_case *args, int64_t y, int64_t x)
{
    int enlarge = args->upsample ? 2 : 1;

    if (y < 0 || x < 0 || y >= (int64_t)args->height * enlarge ||
        x >= (int64_t)args->width * enlarge)
        return -1;
    return y / enlarge * args->width + x / enlarge;
}

/* One input of a convolution, and how far off it may be. */
static double conv_input(const struct conv_case *args, int64_t pixel, int64_t channel,
                         double *error)
{
    double x = get(args->x, pixel, channel), factor, offset;

    *error = 0;
    if (args->affine.at == NULL)
        return x;
    factor = get(args->affine, 0, channel);
    offset = get(args->affine, 1, channel);
    *error = 2 * U * (fabs(x * factor) + fabs(offset));
    x = x * factor + offset;
    *error = activate_error(x, *error, ACTIVATION_SILU) + args->input_roundoff * fabs(x);
    return activate(x, ACTIVATION_SILU);
}

static void convolve_at(const struct conv_case *args, struct reference *y, int64_t pixel,
                        int64_t out)
{
    int64_t width = (int64_t)args->width * (args->upsample ? 2 : 1), channels = args->x.cols;
    int64_t row = args->first + pixel / width;
    double before = args->before.at != NULL ? get(args->before, pixel, out) : 0;
    double sum = args->bias.at[out] + before, magnitude = fabs(args->bias.at[out]) + fabs(before);
    double inherited = 0;
    int reach = args->size / 2;

    for (int dy = 0; dy < args->size; dy++)
        for (int dx = 0; dx < args->size; dx++) {
            int64_t from = source_pixel(args, row + dy - reach, pixel % width + dx - reach);

            for (int64_t in = 0; from >= 0 && in < channels; in++) {
                double error,
                    weight = get(args->weight, out, (dy * args->size + dx) * channels + in);
                double term = conv_input(args, from, in, &error) * weight;

                sum += term;
                magnitude += fabs(term);
                inherited += error * fabs(weight);
            }
        }
    put(y, pixel, out, sum, sum_error((double)args->weight.cols) * magnitude + inherited);
}

struct reference reference_conv(const struct conv_case *args)
{
    int64_t pixels = args->rows * args->width * (args->upsample ? 2 : 1);
    struct reference y = reference_create(pixels, args->weight.rows);

    for (int64_t pixel = 0; pixel < pixels; pixel++)
        for (int64_t out = 0; out < args->weight.rows; out++)
            convolve_at(args, &y, pixel, out);
    return y;
}

struct statistics {
    double mean, inverse; /* 1/√(variance + eps) */
    double magnitude;     /* mean of |x| */
};

/* Of rows × cols elements of x that begin at [row, col]. */
static struct statistics measure(struct grid x, int64_t row, int64_t rows, int64_t col,
                                 int64_t cols, double eps, bool centred)
{
    struct statistics s = {0};
    double count = (double)rows * (double)cols, squares = 0;

    for (int64_t i = row; i < row + rows; i++)
        for (int64_t j = col; j < col + cols; j++) {
            s.mean += get(x, i, j) / count;
            s.magnitude += fabs(get(x, i, j)) / count;
        }
    if (!centred)
        s.mean = 0;
    for (int64_t i = row; i < row + rows; i++)
        for (int64_t j = col; j < col + cols; j++)
            squares += (get(x, i, j) - s.mean) * (get(x, i, j) - s.mean) / count;
    s.inverse = 1 / sqrt(squares + eps);
    return s;
}

/* (x − mean)·inverse·weight + bias with its error: the mean is off by that of a sum of n terms. */
static double normalise(const struct statistics *s, double x, double weight, double bias, double n,
                        double *error)
{
    double value = (x - s->mean) * s->inverse * weight;
    double magnitude = (fabs(x) + s->magnitude) * s->inverse * fabs(weight);

    *error = sum_error(n) * magnitude + 4 * U * fabs(bias);
    return value + bias;
}

struct reference reference_norm(const struct norm_case *args)
{
    struct reference y = reference_create(args->x.rows, args->x.cols);

    for (int64_t i = 0; i < args->x.rows; i++) {
        struct statistics s = measure(args->x, i, 1, 0, args->x.cols, args->eps, args->centred);

        for (int64_t j = 0; j < args->x.cols; j++) {
            double weight = args->weight.at != NULL ? args->weight.at[j] : 1, error;
            double bias = args->bias.at != NULL ? args->bias.at[j] : 0;
            double value =
                normalise(&s, get(args->x, i, j), weight, bias, (double)args->x.cols, &error);

            put(&y, i, j, value, error);
        }
    }
    return y;
}

struct reference reference_head_norm(const struct head_case *args)
{
    struct grid x = args->x, rope = args->rope;
    struct reference y = reference_create(x.rows, x.cols);
    int64_t size = rope.cols;

    for (int64_t i = 0; i < x.rows; i++)
        for (int64_t first = 0; first < x.cols; first += size) {
            struct statistics s = measure(x, i, 1, first, size, args->eps, false);
            const double *weight = args->weight[i >= args->split].at;

            for (int64_t j = 0; j < size; j += 2) {
                double a = get(x, i, first + j) * s.inverse * weight[j];
                double b = get(x, i, first + j + 1) * s.inverse * weight[j + 1];
                double cosine = get(rope, i, j), sine = get(rope, i, j + 1);
                double error = sum_error((double)size) * (fabs(a) + fabs(b));

                put(&y, i, first + j, a * cosine - b * sine, error);
                put(&y, i, first + j + 1, b * cosine + a * sine, error);
            }
        }
    return y;
}

/* Row i of y; x has been changed already, and is stored with a roundoff that the norm inherits. */
static void norm_gated(const struct gated_case *args, struct grid x, struct reference *y, int64_t i)
{
    int kind = i >= args->split;
    struct statistics s = measure(x, i, 1, 0, x.cols, args->eps, true);

    for (int64_t j = 0; j < x.cols; j++) {
        double weight = 1 + args->scale[kind].at[j], error, stored = get(x, i, j);
        double value =
            normalise(&s, stored, weight, args->shift[kind].at[j], (double)x.cols, &error);
        double inherited = fabs(stored) + s.magnitude * (1 + fabs(stored - s.mean) * s.inverse);

        put(y, i, j, value, error + args->roundoff * inherited * s.inverse * fabs(weight));
    }
}

void reference_gated_norm(const struct gated_case *args, struct reference *x, struct reference *y)
{
    *x = reference_create(args->x.rows, args->x.cols);
    *y = reference_create(args->x.rows, args->x.cols);
    for (int64_t i = 0; i < args->x.rows; i++) {
        for (int64_t j = 0; j < args->x.cols; j++) {
            double term = get(args->y, i, j) * args->gate[i >= args->split].at[j];
            double before = get(args->x, i, j);

            put(x, i, j, before + term, 2 * U * (fabs(before) + fabs(term)));
        }
        norm_gated(args, x->value, y, i);
    }
}

struct reference reference_group_norm(const struct norm_case *args, int groups)
{
    int64_t each = args->x.cols / groups;
    struct reference y = reference_create(2, args->x.cols);
    /* The sums of a part are rounded to fp32. */
    double bound = sum_error((double)(each * args->x.rows)) + 4 * U;

    for (int64_t first = 0; first < args->x.cols; first += each) {
        struct statistics s = measure(args->x, 0, args->x.rows, first, each, args->eps, true);
        /* A mean off by δ makes the variance wrong by δ². */
        double off = bound * s.magnitude * s.inverse;
        double inverse_error = bound + off * off;

        for (int64_t j = first; j < first + each; j++) {
            double factor = s.inverse * args->weight.at[j], bias = args->bias.at[j];

            put(&y, 0, j, factor, inverse_error * fabs(factor));
            put(&y, 1, j, bias - s.mean * factor,
                (bound + inverse_error) * s.magnitude * fabs(factor) + 4 * U * fabs(bias));
        }
    }
    return y;
}

struct reference reference_affine(struct grid x, struct grid affine)
{
    struct reference y = reference_create(x.rows, x.cols);

    for (int64_t i = 0; i < x.rows; i++)
        for (int64_t j = 0; j < x.cols; j++) {
            double term = get(x, i, j) * get(affine, 0, j), offset = get(affine, 1, j);

            put(&y, i, j, term + offset, 2 * U * (fabs(term) + fabs(offset)));
        }
    return y;
}

struct reference reference_add(struct grid y, struct grid x, double factor)
{
    struct reference r = reference_create(y.rows, y.cols);

    for (int64_t i = 0; i < y.rows; i++)
        for (int64_t j = 0; j < y.cols; j++) {
            double term = get(x, i, j) * factor;

            put(&r, i, j, get(y, i, j) + term, 2 * U * (fabs(get(y, i, j)) + fabs(term)));
        }
    return r;
}

struct reference reference_gelu_multiply(struct grid y, struct grid x)
{
    struct reference r = reference_create(y.rows, y.cols);

    for (int64_t i = 0; i < y.rows; i++)
        for (int64_t j = 0; j < y.cols; j++)
            put(&r, i, j, gelu_tanh(get(y, i, j)) * get(x, i, j),
                activate_error(get(y, i, j), 0, ACTIVATION_GELU_TANH) * fabs(get(x, i, j)));
    return r;
}

struct reference reference_silu(struct grid x)
{
    struct reference r = reference_create(x.rows, x.cols);

    for (int64_t i = 0; i < x.rows; i++)
        for (int64_t j = 0; j < x.cols; j++)
            put(&r, i, j, activate(get(x, i, j), ACTIVATION_SILU),
                activate_error(get(x, i, j), 0, ACTIVATION_SILU));
    return r;
}

struct reference reference_copy(struct grid x)
{
    struct reference r = reference_create(x.rows, x.cols);

    for (int64_t i = 0; i < x.rows; i++)
        for (int64_t j = 0; j < x.cols; j++)
            put(&r, i, j, get(x, i, j), 0);
    return r;
}

struct reference reference_position_bias(struct grid table, struct grid buckets)
{
    struct reference r = reference_create(table.cols * buckets.rows, buckets.cols);

    for (int64_t head = 0; head < table.cols; head++)
        for (int64_t i = 0; i < buckets.rows; i++)
            for (int64_t j = 0; j < buckets.cols; j++)
                put(&r, head * buckets.rows + i, j, get(table, (int64_t)get(buckets, i, j), head),
                    0);
    return r;
}

struct reference reference_guide(struct grid v, struct grid negative, double scale)
{
    struct reference r = reference_create(v.rows, v.cols);

    for (int64_t i = 0; i < v.rows; i++)
        for (int64_t j = 0; j < v.cols; j++) {
            double from = get(negative, i, j), difference = get(v, i, j) - from;

            put(&r, i, j, from + scale * difference,
                3 * U * (fabs(from) + fabs(scale) * (fabs(from) + fabs(get(v, i, j)))));
        }
    return r;
}

struct reference reference_unpatchify(struct grid tokens, int width, double multiply, double shift)
{
    struct reference r = reference_create(4 * tokens.rows, tokens.cols / 4);

    for (int64_t pixel = 0; pixel < r.value.rows; pixel++)
        for (int64_t c = 0; c < r.value.cols; c++) {
            int64_t row = pixel / width, col = pixel % width;
            double term = multiply * get(tokens, row / 2 * (width / 2) + col / 2,
                                         4 * c + 2 * (row % 2) + col % 2);

            put(&r, pixel, c, term + shift, 2 * U * (fabs(term) + fabs(shift)));
        }
    return r;
}

struct reference reference_to_rgb(struct grid x)
{
    struct reference r = reference_create(x.rows, x.cols);

    for (int64_t i = 0; i < x.rows; i++)
        for (int64_t j = 0; j < x.cols; j++) {
            double v = get(x, i, j) / 2 + 0.5, error = 4 * U * 255;

            v = 255 * (v < 0 ? 0 : v > 1 ? 1 : v);
            /* Next to a half both neighbours are right. */
            put(&r, i, j, nearbyint(v), nearbyint(v - error) != nearbyint(v + error) ? 1 : 0.25);
        }
    return r;
}
