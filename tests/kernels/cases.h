/* SPDX-License-Identifier: MIT */
/* Every operation of a back end, tried on one random case and timed at the sizes of FLUX.1. */
#ifndef FLUXFS_TESTS_KERNELS_CASES_H
#define FLUXFS_TESTS_KERNELS_CASES_H

#include "tests/kernels/rig.h"

/* Each begins where rig_begin left off, and ends with rig_check. */
void try_linear(struct rig *rig);
void try_attention(struct rig *rig);
void try_conv(struct rig *rig);
void try_conv_in_place(struct rig *rig);
void try_layer_norm(struct rig *rig);
void try_modulated_norm(struct rig *rig);
void try_rms_norm(struct rig *rig);
void try_head_norm(struct rig *rig);
void try_gated_norm(struct rig *rig);
void try_group_norm(struct rig *rig);
void try_affine(struct rig *rig);
void try_add(struct rig *rig);
void try_gelu_multiply(struct rig *rig);
void try_silu(struct rig *rig);
void try_copy(struct rig *rig);
void try_position_bias(struct rig *rig);
void try_euler(struct rig *rig);
void try_guide(struct rig *rig);
void try_unpatchify(struct rig *rig);
void try_to_rgb(struct rig *rig);
void try_transfer(struct rig *rig);
void try_weights(struct rig *rig);
void try_damaged_weights(struct rig *rig);

/* Prints how long each operation takes at the sizes of FLUX.1 for an image of so many tokens. */
void time_operations(struct rig *rig, int64_t image_tokens);

#endif
