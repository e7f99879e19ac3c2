/* SPDX-License-Identifier: MIT */
/*
 * One component of a checkpoint in the diffusers layout: a folder with its config.json and its
 * weights, in one safetensors file or in several with an index.
 */
#ifndef FLUXFS_ENGINE_CHECKPOINT_H
#define FLUXFS_ENGINE_CHECKPOINT_H

#include <stddef.h>

#include "engine/error.h"
#include "engine/json.h"
#include "engine/safetensors.h"

struct checkpoint;

/* Opens `folder`: config.json, and the first there is of
 *     diffusion_pytorch_model.safetensors.index.json, diffusion_pytorch_model.safetensors,
 *     model.safetensors.index.json, model.safetensors.
 * All files are mapped and checked here, and no tensor's data is read. An index must name files in
 * this folder, and each tensor must be in the file it names. */
int checkpoint_open(const char *folder, struct checkpoint **checkpoint, struct error *err);
/* The same from config.json alone, for who only plans: any tensor is there, of any shape, and has
 * no data. */
int checkpoint_imagine(const char *folder, struct checkpoint **checkpoint, struct error *err);
void checkpoint_close(struct checkpoint *checkpoint);
/* After reading weights: EIO if a file could not give some of them (file_map_check). */
int checkpoint_check(const struct checkpoint *checkpoint, struct error *err);

const char *checkpoint_folder(const struct checkpoint *checkpoint);
const struct json_file *checkpoint_config(const struct checkpoint *checkpoint);

/* All tensors of all files, sorted by name. */
const struct stored_tensor *const *checkpoint_list(const struct checkpoint *checkpoint,
                                                   size_t *count);
/* ENOENT and a line that names folder and tensor if there is none of this name. */
int checkpoint_find(const struct checkpoint *checkpoint, const char *name,
                    const struct stored_tensor **tensor, struct error *err);

#endif
