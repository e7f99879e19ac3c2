/* SPDX-License-Identifier: MIT */
/*
 * The noise of a seed, the same as PyTorch's: torch.randn(count, generator=
 * torch.Generator('cpu').manual_seed(seed)) in fp32.
 *
 * The generator is MT19937 (Matsumoto, Nishimura 1998), of which a seed sets the low 32 bits only.
 * Source of the order in which numbers are drawn: pytorch/pytorch
 * aten/src/ATen/native/cpu/DistributionTemplates.h (normal_fill), core/DistributionsHelper.h.
 */
#ifndef FLUXFS_ENGINE_RANDOM_H
#define FLUXFS_ENGINE_RANDOM_H

#include <stddef.h>
#include <stdint.h>

/* Standard normal values. They agree with PyTorch's to a few units in the last place: its vector
 * code has logarithms and sines of its own. */
void random_normal(uint64_t seed, float *values, size_t count);

#endif
