/* SPDX-License-Identifier: MIT */
/*
 * The tensors that a component of a FLUX.1 checkpoint in the diffusers layout is made of, and how
 * random values for them have to be spread so that activations stay near 1.
 */
#ifndef FLUXFS_TESTS_BENCH_WEIGHT_LIST_H
#define FLUXFS_TESTS_BENCH_WEIGHT_LIST_H

#include <stddef.h>
#include <stdint.h>

#include "engine/error.h"
#include "engine/json.h"

enum { WEIGHT_RANK_MAX = 4 };

struct weight {
    char name[128];
    int rank;
    int64_t shape[WEIGHT_RANK_MAX];
    double mean, deviation; /* of its values, normally distributed */
};

/* In the order in which they are stored; names are those of published checkpoints. */
struct weight_list {
    struct weight *items;
    size_t count, capacity;
};

/* Fills an empty list for a component ("transformer", "text_encoder", "text_encoder_2", "vae") of
 * the sizes that its config.json gives. Failure: EINVAL for a config that lacks a size or has an
 * absurd one, ENOMEM; the list then needs no finishing. */
int weight_list_build(struct weight_list *list, const char *component,
                      const struct json_file *config, struct error *err);
void weight_list_finish(struct weight_list *list);

uint64_t weight_count(const struct weight *weight); /* values */
uint64_t weight_list_count(const struct weight_list *list);

#endif
