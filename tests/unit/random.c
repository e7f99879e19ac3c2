/* SPDX-License-Identifier: MIT */
#include "engine/random.h"

#include <math.h>
#include <string.h>

#include "tests/test.h"

/* torch.randn(count, generator=torch.Generator('cpu').manual_seed(seed))[-4:], PyTorch 2.15. */
static const struct {
    uint64_t seed;
    size_t count;
    float last[4]; /* the last of them, oldest first */
} expected[] = {
    {0, 1, {1.54099607f}},
    {0, 3, {1.54099607f, -0.293428898f, -2.17878938f}},
    {0, 15, {0.182036489f, -0.856674612f, 1.10060418f, -1.07118738f}},
    {0, 16, {0.119841509f, 1.2376579f, 1.11677718f, -0.247278154f}},
    {0, 17, {1.58633423f, 0.946298361f, -0.843676746f, 0.931826591f}},
    {1, 1, {0.661352158f}},
    {1, 3, {0.661352158f, 0.266924113f, 0.0616772585f}},
    {1, 15, {-0.0582501777f, -0.195509583f, -0.965635955f, 0.422415316f}},
    {1, 16, {-0.222270489f, 1.6871134f, 0.228425175f, 0.467635512f}},
    {1, 17, {-0.617744446f, -0.798069835f, -0.131623209f, -0.798439801f}},
    {1, 1000, {-0.100623503f, -1.48000598f, 1.01924753f, 0.0603169799f}},
    {1, 65543, {-0.308512241f, 0.512144327f, -0.776378095f, 0.495417535f}},
    {42, 1, {0.336690366f}},
    {42, 3, {0.336690366f, 0.128809407f, 0.234462366f}},
    {42, 15, {0.809357226f, 1.11029029f, -1.68979895f, -0.988959908f}},
    {42, 16, {-0.727881312f, -0.559430182f, -0.768838882f, 0.76244539f}},
    {42, 17, {0.041759491f, -0.251575291f, 0.859858513f, -0.309726775f}},
    {UINT64_C(4294967338), 1, {0.336690366f}},
    {UINT64_C(4294967338), 3, {0.336690366f, 0.128809407f, 0.234462366f}},
    {UINT64_C(4294967338), 15, {0.809357226f, 1.11029029f, -1.68979895f, -0.988959908f}},
    {UINT64_C(4294967338), 16, {-0.727881312f, -0.559430182f, -0.768838882f, 0.76244539f}},
    {UINT64_C(4294967338), 17, {0.041759491f, -0.251575291f, 0.859858513f, -0.309726775f}},
    {INT64_MAX, 1, {1.21976304f}},
    {INT64_MAX, 3, {1.21976304f, -0.392979473f, 1.0230751f}},
    {INT64_MAX, 15, {0.709757686f, 0.753840387f, -0.180989012f, 0.612868905f}},
    {INT64_MAX, 16, {-2.51588416f, 0.483752221f, 0.841786563f, 0.140909612f}},
    {INT64_MAX, 17, {0.383217037f, -0.160953194f, 1.96789145f, 1.62438321f}},
    {INT64_MAX, 1000, {1.23823631f, 0.054031685f, 0.109151669f, 0.662536681f}},
    {INT64_MAX, 65543, {0.865945101f, 0.795343339f, 0.947445989f, 1.14814937f}},
    {20260101, 1, {1.02960026f}},
    {20260101, 3, {1.02960026f, 0.554633439f, -0.722800791f}},
    {20260101, 15, {-0.982073486f, 1.15484715f, 0.0492853224f, -0.917948008f}},
    {20260101, 16, {-0.0132178525f, 0.943916321f, 0.552895308f, 0.389915764f}},
    {20260101, 17, {0.703392446f, 0.815020263f, 0.275887579f, -1.55008233f}},
};

enum { COUNT_MAX = 65543 };
static float values[COUNT_MAX], others[COUNT_MAX];

static void equals_pytorch(void)
{
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++) {
        size_t count = expected[i].count, shown = count < 4 ? count : 4;
        random_normal(expected[i].seed, values, count);
        for (size_t j = 0; j < shown; j++) {
            float value = values[count - shown + j], wanted = expected[i].last[j];
            EXPECT(fabsf(value - wanted) <= 1e-6f * fmaxf(1.0f, fabsf(wanted)),
                   "seed %llu, %zu values: %.9g, PyTorch has %.9g",
                   (unsigned long long)expected[i].seed, count, (double)value, (double)wanted);
        }
    }
}

static void looks_normal(void)
{
    double sum = 0, squares = 0;
    random_normal(7, values, COUNT_MAX);
    for (size_t i = 0; i < COUNT_MAX; i++) {
        EXPECT(isfinite(values[i]));
        sum += (double)values[i];
        squares += (double)values[i] * (double)values[i];
    }
    EXPECT(fabs(sum / COUNT_MAX) < 0.02 && fabs(squares / COUNT_MAX - 1) < 0.03);
}

static void depends_on_the_seed_alone(void)
{
    random_normal(5, values, COUNT_MAX);
    random_normal(5, others, COUNT_MAX);
    EXPECT(memcmp(values, others, sizeof values) == 0);
    random_normal(6, others, COUNT_MAX);
    EXPECT(memcmp(values, others, sizeof values) != 0);
    others[0] = 123.0f;
    random_normal(5, others, 0);
    EXPECT(others[0] == 123.0f, "nothing is written for no values");
}

int main(void)
{
    equals_pytorch();
    looks_normal();
    depends_on_the_seed_alone();
    return test_finish();
}
