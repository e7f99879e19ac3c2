/* SPDX-License-Identifier: MIT */
#include "engine/blocks.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/file.h"

static void out_of_memory(struct block_builder *builder)
{
    if (builder->error.code == 0)
        error_set(&builder->error, ENOMEM, "out of host memory while reading a checkpoint");
}

void block_begin(struct block_builder *builder, const char *kind, int index)
{
    struct block_list *list = builder->list;
    struct block *block = calloc(1, sizeof *block);

    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? 2 * list->capacity : 64;
        struct block **grown = realloc(list->blocks, capacity * sizeof(struct block *));

        if (grown != NULL) {
            list->blocks = grown;
            list->capacity = capacity;
        }
    }
    builder->block = NULL;
    if (block == NULL || list->count == list->capacity) {
        free(block);
        out_of_memory(builder);
        return;
    }
    block->kind = kind;
    block->index = index;
    list->blocks[list->count++] = builder->block = block;
}

void block_prefix(struct block_builder *builder, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(builder->prefix, sizeof builder->prefix, format, args);
    va_end(args);
}

static struct weight *weight_append(struct block_builder *builder)
{
    struct block *block = builder->block;

    if (block == NULL || builder->error.code != 0)
        return NULL;
    if (block->count == block->capacity) {
        size_t capacity = block->capacity ? 2 * block->capacity : 16;
        struct weight *grown = realloc(block->weights, capacity * sizeof *grown);

        if (grown == NULL) {
            out_of_memory(builder);
            return NULL;
        }
        block->weights = grown;
        block->capacity = capacity;
    }
    block->weights[block->count] = (struct weight){0};
    return &block->weights[block->count++];
}

/* Looks up the tensors named and checks their shape; returns how many there are. */
static int find_parts(struct block_builder *builder, struct weight *weight, const char *names,
                      int rank, const int64_t *shape)
{
    char name[256];

    while (*names != '\0') {
        size_t length = strcspn(names, " ");

        assert(weight->parts < WEIGHT_PARTS);
        snprintf(name, sizeof name, "%s%.*s", builder->prefix, (int)length, names);
        if (checkpoint_find(builder->checkpoint, name, &weight->part[weight->parts],
                            &builder->error) != 0 ||
            stored_tensor_check(weight->part[weight->parts], rank, shape, &builder->error) != 0)
            return -1;
        weight->parts++;
        names += length + (names[length] == ' ');
    }
    return 0;
}

static int count_names(const char *names)
{
    int count = 1;

    for (; *names != '\0'; names++)
        count += *names == ' ';
    return count;
}

/* Gives the weight its place at the block's end. */
static void weight_place(struct block_builder *builder, struct weight *weight,
                         struct tensor *target)
{
    struct block *block = builder->block;

    weight->target = target;
    weight->offset_bytes = block->bytes;
    block->parameters += (uint64_t)target->rows * (uint64_t)target->cols;
    block->bytes +=
        backend_weight_bytes(builder->backend, weight->layout, target->rows, target->cols);
    block->bytes += BLOCK_ALIGNMENT - 1;
    block->bytes -= block->bytes % BLOCK_ALIGNMENT;
}

void block_matrix(struct block_builder *builder, struct tensor *target, int64_t rows, int64_t cols,
                  const char *names)
{
    struct weight *weight = weight_append(builder);
    int64_t shape[2] = {rows / count_names(names), cols};

    if (weight == NULL || find_parts(builder, weight, names, 2, shape) != 0)
        return;
    weight->layout = WEIGHT_MATRIX;
    *target = tensor_of(NULL, builder->backend->weight, rows, cols);
    weight_place(builder, weight, target);
}

static void vector_place(struct block_builder *builder, struct tensor *target, const char *names,
                         enum weight_layout layout)
{
    struct weight *weight = weight_append(builder);
    int64_t shape[1] = {target->cols / count_names(names)};

    if (weight == NULL || find_parts(builder, weight, names, 1, shape) != 0)
        return;
    weight->layout = layout;
    weight_place(builder, weight, target);
}

void block_vector(struct block_builder *builder, struct tensor *target, int64_t n,
                  const char *names)
{
    *target = tensor_of(NULL, DTYPE_F32, 1, n);
    vector_place(builder, target, names, WEIGHT_VECTOR);
}

void block_bias(struct block_builder *builder, struct tensor *target, int64_t n, const char *names)
{
    *target = tensor_of(NULL, builder->backend->bias, 1, n);
    vector_place(builder, target, names, WEIGHT_BIAS);
}

void block_conv(struct block_builder *builder, struct tensor *target, int64_t out, int64_t in,
                int size, const char *name)
{
    struct weight *weight = weight_append(builder);
    int64_t shape[4] = {out, in, size, size};

    if (weight == NULL || find_parts(builder, weight, name, 4, shape) != 0)
        return;
    weight->layout = WEIGHT_CONV;
    weight->channels_in = (int)in;
    weight->window = size * size;
    *target = tensor_of(NULL, builder->backend->weight, out, in * size * size);
    weight_place(builder, weight, target);
}

int block_end(struct block_builder *builder, struct error *err)
{
    const struct error *first = &builder->error;

    return first->code == 0 ? 0 : error_set(err, -first->code, "%s", first->text);
}

void block_list_finish(struct block_list *list)
{
    for (size_t i = 0; i < list->count; i++) {
        free(list->blocks[i]->weights);
        free(list->blocks[i]);
    }
    free(list->blocks);
    *list = (struct block_list){0};
}

uint64_t block_list_present_bytes(const struct block_list *list)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < list->count; i++)
        if (list->blocks[i]->memory != NULL)
            bytes += list->blocks[i]->bytes;
    return bytes;
}

void block_bind(struct block *block, void *memory)
{
    block->memory = memory;
    for (size_t i = 0; i < block->count; i++)
        block->weights[i].target->data =
            memory == NULL ? NULL : (char *)memory + block->weights[i].offset_bytes;
}

static enum dtype stored_dtype(const struct stored_tensor *tensor)
{
    return tensor->type == STORED_BF16  ? DTYPE_BF16
           : tensor->type == STORED_F16 ? DTYPE_F16
                                        : DTYPE_F32;
}

void block_fill(const struct block *block, struct backend *backend)
{
    for (size_t i = 0; i < block->count; i++) {
        const struct weight *weight = &block->weights[i];
        struct weight_copy copies[WEIGHT_PARTS];
        bool vector = weight_is_vector(weight->layout);
        int64_t rows = vector ? 1 : weight->target->rows / weight->parts;
        int64_t cols = vector ? weight->target->cols / weight->parts : weight->target->cols;

        for (int p = 0; p < weight->parts; p++) {
            copies[p] = (struct weight_copy){
                .target = weight->target->data,
                .first = p * (vector ? cols : rows),
                .source = weight->part[p]->data,
                .source_dtype = stored_dtype(weight->part[p]),
                .layout = weight->layout,
                .rows = rows,
                .cols = cols,
                .channels_in = weight->channels_in,
                .window = weight->window,
                .lasting = true,
                .name = weight->part[p]->name,
                .path = file_label(weight->part[p]->path),
            };
        }
        backend->ops->copy_weights(backend, copies, (size_t)weight->parts);
    }
}
