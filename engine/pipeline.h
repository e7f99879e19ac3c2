/* SPDX-License-Identifier: MIT */
/*
 * The inside of an engine, shared by the files that make it up: engine.c (open, close), memory.c,
 * request.c (what is asked for), room.c (what fits), advance.c (which phase comes next), the phases
 * encode.c, denoise.c and decode.c, pass.c (running blocks under the budget), image.c (one
 * picture's state) and modulation.c (a part of that).
 *
 * What needs memory is few and known beforehand: for each image being denoised one block with its
 * state, for the present pass one workspace and one ring for weights. These are counted in
 * whole pages (room.c), so that what is planned to fit does fit. All else is weights that stay as
 * long as nobody needs their memory.
 */
#ifndef FLUXFS_ENGINE_PIPELINE_H
#define FLUXFS_ENGINE_PIPELINE_H

#include <stdatomic.h>

#include "alloc/arena.h"
#include "engine/backend.h"
#include "engine/checkpoint.h"
#include "engine/embeddings.h"
#include "engine/engine.h"
#include "engine/model/clip.h"
#include "engine/model/clip_tokenizer.h"
#include "engine/model/sampler.h"
#include "engine/model/t5.h"
#include "engine/model/t5_tokenizer.h"
#include "engine/model/transformer.h"
#include "engine/model/vae.h"
#include "engine/offload.h"
#include "engine/ops.h"

/* Steps whose modulations are computed at a time, 4 MB each at full size. */
enum { MODULATION_STEPS = 32 };

/* Where memory is short the device holds those of one step, in two parts: as soon as the double
 * blocks are done, theirs are replaced by the next step's. */
enum { MODULATION_DOUBLE, MODULATION_OTHER, MODULATION_PARTS };

enum { ENGINE_WARNING_BYTES = 320 };

/* Prompts or images that one pass serves. */
enum { PASS_LANES = 8 };

struct engine {
    struct engine_info info;
    char model_name[128], warning[ENGINE_WARNING_BYTES];
    struct backend *backend;
    const struct image_request *planned; /* not NULL: the device is only described (described.h) and
                                            weights are imagined; this is what must fit */
    struct arena *arena;
    struct trace_writer *trace;
    struct offload offload;
    struct timeline timeline;

    struct checkpoint *clip_files, *t5_files, *transformer_files, *vae_files;
    struct json_file *scheduler_file;
    struct clip_tokenizer *clip_tokenizer;
    struct t5_tokenizer *t5_tokenizer;
    struct clip clip;
    struct t5 t5;
    struct transformer transformer;
    struct vae vae;
    struct sampler_config sampler;

    struct embeddings embeddings;
    struct embedding *expected[PASS_LANES]; /* prompts that wait */
    size_t expected_count;
    struct image *images; /* in the order they were started */

    struct scratch clip_scratch, t5_scratch; /* plans */
    uint64_t encode_bytes; /* the least that both encoders need, weights included; fixed */
    uintptr_t workspace;   /* of the present pass, in the arena */
    uint64_t workspace_bytes;

    uint64_t streamed_bytes; /* in each step, as planned */
    double prompt_s;         /* of computing, for one prompt in the text encoders */
    size_t lanes;            /* sides of the guidance of images that the last step served, … */
    double lane_s;           /* … and seconds of computing for one */
    size_t present_lanes;    /* that the present step serves */
    _Atomic uint64_t resident_blocks,
        streamed_blocks;            /* of the step pass, as planned; any thread */
    _Atomic uint64_t wanted_budget; /* as memory.c has it; any thread */
    uint64_t budget;                /* in force; the worker's */
    uint64_t charged_bytes;         /* what the context is known to take; the worker's */
    _Atomic uint64_t spilled_bytes; /* of the host's memory: modulations; any thread */
    float *spare;                   /* the host's, for the next ones; or NULL; the worker's */
    size_t spare_bytes;
    uint64_t ceiling; /* what the device gave when it gave no more; it and the next: the worker's */
    double ceiling_until_s, ceiling_wait_s;
    uint64_t code_bytes;  /* to leave to the device, since it had none for its own affairs; or 0 */
    uint64_t least_bytes; /* beyond fixed_bytes, that a picture of the smallest size needs; fixed */
    _Atomic uint64_t asked_bytes; /* the same of the largest picture that was found possible */
};

/* Text of one side of the guidance: the prompt, and for true CFG the negative prompt. */
struct branch {
    struct embedding *embedding;
    struct tensor text, modulations, hidden, carried, velocity;
    float *spilled; /* host: modulations of the chunk, while the device holds one step's; or NULL */
    size_t spilled_bytes;
};

/* Bytes of device memory that an image needs besides weights. */
struct needs {
    uint64_t state;                   /* while it is denoised */
    uint64_t condition, step, decode; /* workspaces, if it is alone; the least for decoding */
};

struct image {
    struct engine *engine;
    struct image *next;
    struct image_request request; /* strings owned */
    struct image_observer observer;
    enum image_phase phase;
    struct error error;
    atomic_bool cancelled; /* any thread sets it */
    bool served;           /* by the present round */

    int token_rows, token_cols, tokens, text_tokens;
    float *sigmas;                     /* [steps + 1] */
    int step;                          /* steps done */
    int chunk_first, chunk_steps;      /* whose modulations there are */
    int held_steps;                    /* of them on the device */
    int copied_step[MODULATION_PARTS]; /* of those spilled: whose is there, or on its way; or −1 */
    uint64_t tickets[MODULATION_PARTS]; /* of the copies */
    struct branch branches[2];
    int branch_count;

    struct needs needs;
    uintptr_t memory; /* of its state, in the arena; 0: it has none just now */
    struct tensor latents, rope;
    float *kept;   /* host: the latents as it had them without memory; NULL until noise is drawn */
    int kept_step; /* what the next step was then */
    struct scratch step_scratch;
    uint8_t *pixels;

    struct image_timing timing;
    double started_s; /* for progress */
};

/* ---- engine.c ---- */

/* Seconds; on a device that is only described, by its clock. NULL is allowed. */
double engine_now(const struct engine *engine);
/* `warning`, of ENGINE_WARNING_BYTES: stays as it is if there is none. */
int backend_open(struct backend **backend, const struct engine_options *options, char *warning,
                 struct error *err);
/* The parts of opening: the files, and, once there is a back end, what they say, then the device's
 * memory. */
int engine_open_files(struct engine *engine, const char *model, struct error *err);
int engine_read(struct engine *engine, const struct engine_options *options, struct error *err);
int engine_reserve(struct engine *engine, const struct engine_options *options, struct error *err);

/* ---- image.c, for all ---- */

/* A tensor at *at of the memory from `base` on, and *at behind it. Without memory (base 0) it tells
 * how much there must be. */
struct tensor memory_place(uintptr_t base, uint64_t *at, enum dtype dtype, int64_t rows,
                           int64_t cols);

/* ---- memory.c ---- */
/* The budget that is to be in force. Any thread. */
uint64_t budget_wanted(const struct engine *engine);
/* Wants so many bytes; 0: what is free less a margin, from now on watched. Any thread. */
void budget_want(struct engine *engine, uint64_t bytes);
/* What budget_wanted may become at the next look. Any thread. */
uint64_t budget_possible(struct engine *engine);
/* Looks at what is free, if the budget follows it; whether another is wanted now. */
bool budget_watch(struct engine *engine);
/* Takes what the driver and libraries hold from the budget: they load code as they go on. */
void memory_charge_context(struct engine *engine);
/* What the back end may still be granted, to be left free where it can be: by what it then copies
 * faster, all pictures gain. */
uint64_t context_later(const struct engine *engine);
int budget_check(const struct engine *engine, uint64_t bytes, struct error *err);

/* ---- request.c ---- */

/* Sizes of an image of this request, which is borrowed. */
struct image image_of(struct engine *engine, const struct image_request *request);

/* ---- room.c ---- */
uint64_t in_pages(const struct engine *engine, uint64_t bytes); /* rounded up to whole pages */
/* What the budget leaves to workspace and weights of a pass. */
uint64_t engine_room(const struct engine *engine);
/* The most that a pass needs for one of the images that have memory, or for `other` (or NULL). */
uint64_t denoise_most(const struct engine *engine, const struct image *other);

/* Fills in the image's needs, and the plan of the step pass's scratch. */
int image_measure(struct image *image, struct error *err);
/* The smallest budget that it can be made with. */
uint64_t image_budget(const struct image *image);
int measure_least_budget(struct engine *engine, struct error *err);
/* What is there whatever is painted, and what a picture of the smallest size needs, that included.
 */
uint64_t fixed_bytes(const struct engine *engine);
uint64_t least_budget(const struct engine *engine);

/* Takes images' state off the device, the last first, until the others have enough. */
void room_clear(struct engine *engine);
/* Gives memory to images that are embedded, in order, as long as there is enough for all. False:
 * the device had less than the budget allows, so that all is to be looked at again. */
bool room_fill(struct engine *engine);
/* Whether so many bytes find room beside all weights of a step. */
bool room_for_all(const struct engine *engine, uint64_t bytes);
/* Whether the phase finds room beside the images that have memory. */
bool room_for_text(const struct engine *engine);
bool room_for_decoding(const struct image *image);

/* ---- image.c ---- */

/* Places the state in the memory at `base` (0: nowhere); returns its size. */
uint64_t image_place(struct image *image, uintptr_t base);
/* Draws its noise, unless it has been drawn: best while the device is busy. -ENOMEM */
int image_draw(struct image *image);
/* The state goes to the device, and back; the latents are what has to be kept. */
int image_enter(struct image *image, struct error *err);
int image_leave(struct image *image, struct error *err);
/* Gives the state's memory back, whatever is in it: the image goes on where it entered last. */
void image_rewind(struct image *image);
/* Gives back all memory of the device, whatever is in it, and what is held for later phases. */
void image_release(struct image *image);
void image_fail(struct image *image, const struct error *err);
bool image_active(const struct image *image);
/* Of so many images: those that are active, and the steps that they have done together. */
int images_active(struct image *const *images, int count);
int images_steps(struct image *const *images, int count);
void image_report(struct image *image, size_t block, size_t blocks, const char *kind);

/* The operands of the step pass for one branch. */
struct transformer_step image_step_args(const struct image *image, const struct branch *branch);

/* ---- modulation.c ---- */

/* Whether the host keeps the modulations, and the device holds those of one step; never where the
 * device's memory is the host's. */
bool modulations_spill(const struct image *image);
/* While the image has no memory, whose size follows: its state holds one step's; or all, if the
 * weights and workspace of a step find room too. */
void modulations_hold_one(struct image *image);
void modulations_hold_all(struct image *image);
/* Of the present step. */
struct tensor modulations_of(const struct image *image, const struct branch *branch);
/* Those of so many steps are to be computed, from the `first` on. 0, or -ENOMEM (of the host). */
int modulations_begin(struct image *image, int first, int steps);
/* Before block i of the step pass: makes usable what it needs of the present step's, and starts
 * copying the next one's. Before a step is done again, too. */
void modulations_fetch(struct image *image, size_t i);
/* Before the state's memory is given back. What the host kept is kept for the next image. */
void modulations_forget(struct image *image);
/* There is no next image for now. */
void modulations_rest(struct engine *engine);

/* ---- pass.c ---- */

/* Makes `list` the present pass, with a workspace of so many bytes; keeps what is there if it
 * already fits. -EAGAIN: there is less memory than there was, so the round is to be given up and
 * done again with what fits then. The same goes for pass_block. */
int pass_open(struct engine *engine, struct block_list *list, uint64_t workspace_bytes,
              struct error *err);
/* Makes block i usable; `wrap`: the pass will be run again. A budget set meanwhile takes effect. */
int pass_block(struct engine *engine, size_t i, bool wrap, struct error *err);
/* Waits for the device. After an error its contents are forgotten, since they can't be trusted.
 * -EAGAIN: it had no memory for its own affairs, and will be left some. */
int pass_sync(struct engine *engine, struct error *err);
void pass_close(struct engine *engine);
/* Nothing to do: all but weights becomes free memory. */
void pass_rest(struct engine *engine);
/* Between two rounds: puts a budget into force that was set meanwhile. */
void pass_budget(struct engine *engine);
/* Whether the device, which gave less than the budget allows, gives so many bytes now. */
bool pass_obtain(struct engine *engine, uint64_t bytes);
/* Memory for `what`. -EAGAIN as above: the device has less of it than the budget allows. */
int pass_allocate(struct engine *engine, uint64_t bytes, const char *what, uintptr_t *address,
                  struct error *err);

struct compute pass_compute(const struct engine *engine, struct scratch *scratch);
/* To find out what scratch a pass needs: operations do nothing. */
struct compute pass_rehearsal(const struct engine *engine, struct scratch *scratch);
/* A planned scratch placed in the present workspace, at its start. Borrows the plan's buffers. */
struct scratch pass_cursor(const struct engine *engine, const struct scratch *plan);

/* ---- encode.c: prompts through the text encoders ---- */

/* Plans what does not depend on the image, once. */
int encode_prepare(struct engine *engine);
/* Embeds the prompts of active images that are not yet, up to PASS_LANES of them. */
int encode_round(struct engine *engine, struct error *err);
bool encode_needed(const struct image *image);

/* ---- denoise.c: the condition pass and the step pass ---- */
int condition_round(struct engine *engine, struct error *err);
bool condition_needed(const struct image *image);
/* Bytes of the workspace of a condition pass for one image. */
int condition_measure(const struct image *image, uint64_t *bytes);
int denoise_round(struct engine *engine, struct error *err);
int rehearse_step(const struct engine *engine, int tokens, struct scratch *scratch);
/* The start of a seed, as [channels/4, rows·2, cols·2] packed into tokens of 2 × 2 latents. */
int draw_noise(const struct image *image, float *tokens);

/* ---- decode.c ---- */
int decode_image(struct image *image, struct error *err);
/* The least workspace. */
int decode_measure(const struct image *image, uint64_t *bytes);

#endif
