/* SPDX-License-Identifier: MIT */
/*
 * The engine's face: open a checkpoint, start images, advance them, take their pixels.
 *
 * One thread (the worker) owns an engine and calls everything here, except the functions marked
 * "any thread". Several images can be active at once: each pass over the weights serves all of
 * them. All memory of the device comes from one arena under one budget.
 */
#ifndef FLUXFS_ENGINE_ENGINE_H
#define FLUXFS_ENGINE_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/error.h"

struct engine;
struct image;

struct engine_options {
    const char *model_path;     /* a checkpoint folder in the diffusers layout */
    const char *backend;        /* "auto" (NULL), "cpu" or "cuda" */
    const char *module_dir;     /* where fluxfs-cuda.so lies; NULL: beside nothing, CPU only */
    const char *trace_path;     /* record every allocation there (alloc/trace.h); NULL: don't */
    uint64_t vram_budget_bytes; /* all memory the device may use for us; 0: automatic */
    int threads;                /* CPU back end; 0: one for each core */
};

/* What is fixed once a checkpoint is open. Strings live as long as the engine. */
struct engine_info {
    const char *model_name;  /* last component of the path */
    const char *backend;     /* "cpu" or "cuda" */
    const char *device_name; /* "AMD EPYC, 2 threads", "NVIDIA GeForce RTX 4090" */
    const char *warning;     /* one line (e.g. why "auto" fell back to the CPU), or NULL */
    uint64_t parameters;     /* of all components */
    uint64_t weight_bytes;   /* as held in device memory if everything were resident */
    bool has_guidance; /* distilled guidance is an input of this model (dev), or not (schnell) */
    int native_px;     /* default width and height */
    int default_steps;
    int max_side_px; /* largest width or height accepted */
    int max_tokens;  /* T5 tokens a prompt may have; longer ones are cut */
};

struct image_request {
    const char *prompt;   /* UTF-8 */
    const char *negative; /* for true CFG; NULL or "" is the empty prompt */
    int width_px;         /* multiples of 16 */
    int height_px;
    int steps;       /* 1 … 1000 */
    float guidance;  /* distilled guidance; ignored if the model has none */
    float cfg_scale; /* true CFG: 1 is off and costs nothing */
    uint64_t seed;   /* below 2⁶³; noise as torch.Generator('cpu').manual_seed(seed) draws it */
};

enum image_phase {
    IMAGE_WAITING, /* started, nothing computed yet */
    IMAGE_TEXT,    /* text encoders */
    IMAGE_DENOISE, /* transformer steps */
    IMAGE_DECODE,  /* VAE */
    IMAGE_DONE,    /* pixels can be taken */
    IMAGE_CANCELLED,
    IMAGE_FAILED, /* see image_error */
};

struct image_progress {
    enum image_phase phase;
    int step, steps;        /* step counts from 1 within IMAGE_DENOISE, else 0 */
    int block, blocks;      /* within the present pass, from 1 */
    const char *block_kind; /* "double attention", "single MLP", "T5 attention", … (static) */
    double fraction;        /* of the whole image, 0 … 1 */
    double remaining_s;     /* estimate; negative while unknown */
};

struct image_timing {
    double text_s, condition_s, denoise_s, decode_s; /* wall time in each phase */
    double compute_s, copy_s, wait_s; /* computing, copying weights, waiting for them */
    double step_s;                    /* mean of the denoising steps */
};

/* Called on the worker's thread, after each block; must return quickly and must not call back. */
struct image_observer {
    void *owner;
    void (*progress)(void *owner, struct image *image, const struct image_progress *progress);
};

/* Any thread: whether both text encoders, the transformer and the VAE are in this folder, with
 * configs and weights that can be read as far as their headers say. What else is needed, and
 * whether it all fits together, shows when the engine is opened. Errors name the file. */
int engine_check_model(const char *path, struct error *err);
/* Reads the configs and headers, checks every tensor's type, shape and place, and builds the back
 * end; weights are read later, as they are needed. Errors name the file and the tensor. */
int engine_open(struct engine **engine, const struct engine_options *options, struct error *err);
void engine_close(struct engine *engine); /* finishes images still active; NULL is allowed */
const struct engine_info *engine_info(const struct engine *engine);

/* Any thread. EINVAL with a reason when this engine can't make such an image (size, steps,
 * guidance, …), ENOMEM when it can't under the present budget: the text then gives the smallest
 * budget. */
int engine_check(const struct engine *engine, const struct image_request *request,
                 struct error *err);

/* Adds an image to the active ones. The request's strings are copied. */
int image_start(struct image **image, struct engine *engine, const struct image_request *request,
                const struct image_observer *observer, struct error *err);

/* One round for all active images: text encoders for those that need them, else one denoising step
 * of each, else decoding. As many take part as there is memory for, in the order in which they were
 * started; others wait. If the round fails, the images that it served are marked with the error,
 * which is returned too: EINVAL if the model's files are to blame (damaged weights), else the
 * device is (it is lost, say); others go on with the next call. What is wrong with one image (there
 * is no memory for it alone, its numbers overflow) is that image's error, and 0 is returned.
 * -EAGAIN: nothing could be done, for the device has not the memory that the budget allows, be it
 * that other programs took it; all images go on where they were once a later call finds some. With
 * nothing to do, all memory but that of weights becomes free. A new budget is applied in any case.
 */
int engine_advance(struct engine *engine, struct error *err);

/* How many images it is best to have active, as things stand, when so many more wait to be started.
 * More than one only where weights pass through memory and that takes longer than computing with
 * them: then as many as make each one's step take least, of those that remain at the end, too,
 * since each pass serves all of them; more memory for images leaves less for weights. */
int engine_wanted_images(const struct engine *engine, size_t waiting);

/* How many prompts of those that wait the text encoders had best serve too when they run next,
 * which they will soon; 0 if they won't. More than none only where their weights have to come
 * anyway and computing takes less time than that. */
size_t engine_wanted_prompts(const struct engine *engine);
/* Whether the model leaves out a part of the prompt, since it is longer than max_tokens. */
bool engine_cuts(const struct engine *engine, const char *prompt);

/* Prompts that pictures will be started with soon, the next first; those told before are forgotten.
 * Their embeddings are remembered if the text encoders run meanwhile; a picture is the same. */
void engine_expect(struct engine *engine, const char *const *prompts, size_t count);

enum image_phase image_phase(const struct image *image);
int image_error(const struct image *image, struct error *err); /* why it is IMAGE_FAILED */
const uint8_t *
image_pixels(const struct image *image); /* RGB8, rows × width × 3; while IMAGE_DONE */
void image_timing(const struct image *image, struct image_timing *timing);
void image_cancel(struct image *image); /* any thread; takes effect after the present block */
void image_finish(struct image *image); /* leaves the engine and is freed; NULL is allowed */

/* ---- Memory. Words as in alloc/arena.h. ---- */

enum memory_component {
    MEMORY_WEIGHTS, /* of the transformer */
    MEMORY_TEXT_ENCODERS,
    MEMORY_VAE,
    MEMORY_ACTIVATIONS,
    MEMORY_WORKSPACE, /* of libraries */
    MEMORY_CONTEXT,   /* the driver's own */
    MEMORY_COMPONENTS
};

struct engine_memory {
    uint64_t budget, reserved, allocated, requested, peak_reserved; /* bytes */
    uint64_t component[MEMORY_COMPONENTS];                          /* allocated, bytes */
    uint64_t free_bytes, largest_free_bytes; /* pages held and unused; the longest run of them */
    uint64_t slack_bytes;                    /* unused within pages, for small blocks only */
    double fragmentation;                    /* 1 − largest free run ÷ all free bytes held */
    double fragmentation_merged;             /* the same after merging by remapping */
    double waste;                            /* 1 − peak requested ÷ peak reserved */
    uint64_t page_bytes, pages_mapped, pages_spare;
    uint64_t resident_blocks, streamed_blocks; /* of the transformer, by the present plan */
    uint64_t device_free, device_total;        /* all processes, as the device reports them */
    uint64_t pinned_bytes;                     /* host memory pinned for the link … */
    uint64_t spilled_bytes;                    /* … and with what the device had no room for */
    uint64_t allocations, merges, evictions;   /* since the start */
};

/* Any thread: how things stand now. */
void engine_memory(struct engine *engine, struct engine_memory *memory);

/* Any thread: the host's memory, or what the lowest limit of our control groups leaves of it, and
 * how much of it could be had. */
void engine_host_memory(uint64_t *total_bytes, uint64_t *available_bytes);

struct memory_run {
    uint64_t offset_bytes, bytes;
    bool used;
    enum memory_component component; /* if used */
};

/* Any thread: up to `capacity` runs of the arena's map in address order; returns how many there
 * are. */
size_t engine_memory_map(struct engine *engine, struct memory_run *runs, size_t capacity);

/* Any thread; 0 is automatic: what is free less a margin, looked at again before each round, so
 * that it goes down when others take memory and up when they give it back. Takes effect at the next
 * block, while images are painted: those that have no room any more wait for the others, and their
 * pictures stay the same. EINVAL when not even the smallest picture fits: the text gives the
 * smallest budget that works. */
int engine_set_budget(struct engine *engine, uint64_t bytes, struct error *err);

/* ---- what would be, without painting ---- */

/* A device to plan for. */
struct engine_device {
    uint64_t memory_bytes; /* 0: as much as this machine's has */
    /* What it does in a second: multiplications and additions in bf16, bytes of weights to the
     * device, bytes of its own memory. All 0: this machine's device, which is measured. */
    double flops, link_bytes, memory_bytes_s;
};

struct forecast_blocks {
    const char *kind; /* static */
    int count, resident;
    uint64_t bytes; /* of one */
};

enum { FORECAST_KINDS = 16 };

struct engine_forecast {
    char device[160], model[128];
    struct engine_device rates; /* as described, or as measured */
    struct image_request image; /* what was asked for, with the model's own size and steps */
    uint64_t device_bytes, budget, least_budget; /* the least for this picture */
    uint64_t component[MEMORY_COMPONENTS];       /* allocated during a step */
    uint64_t peak_bytes;                         /* reserved, of all phases */

    struct forecast_blocks blocks[FORECAST_KINDS]; /* of the step pass, by kind */
    char *map;             /* a letter for each of its blocks: '#' stays, '.' passes; to be freed */
    uint64_t weight_bytes; /* of the step pass */
    uint64_t ring_bytes;   /* that others pass through */
    uint64_t link_bytes;   /* over the link in each step */

    double step_s, step_compute_s, step_copy_s;                 /* of one picture alone */
    double text_s, condition_s, denoise_s, decode_s, picture_s; /* the second picture … */
    double first_s;                     /* … and the first, when nothing is loaded */
    int together;                       /* of `jobs` pictures, go in step */
    double together_step_s, together_s; /* per picture */
};

/* Plans as an engine would, and paints pictures on a device that only counts and keeps a clock.
 * Only config.json is read of each component. `request`: its size and steps may be 0, the model's
 * own; prompt and seed don't matter. `jobs`: so many pictures wait. Errors as of engine_open,
 * engine_check (a budget that is too small, and the smallest), or EINVAL: of an impossible device;
 * ERANGE: it is so slow that nobody counts the years. On failure there is nothing to free. */
int engine_forecast(struct engine_forecast *forecast, const struct engine_options *options,
                    const struct engine_device *device, const struct image_request *request,
                    int jobs, struct error *err);

/* The name of a phase and of a component, in lower case, for status files. */
const char *image_phase_name(enum image_phase phase);
const char *memory_component_name(enum memory_component component);

#endif
