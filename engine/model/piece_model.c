/* SPDX-License-Identifier: MIT */
#include "engine/model/piece_model.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define MODEL_MAX_BYTES (64u << 20)

enum { PIECES_MAX = 1 << 24 };

/* Field numbers and values of ModelProto that matter here. */
enum {
    MODEL_PIECES = 1,
    MODEL_TRAINER = 2,
    MODEL_NORMALIZER = 3,
    PIECE_TEXT = 1,
    PIECE_SCORE = 2,
    TRAINER_TYPE = 3,
    TRAINER_TYPE_UNIGRAM = 1,
    NORMALIZER_CHARSMAP = 2,
};

enum wire_type { WIRE_VARINT = 0, WIRE_FIXED64 = 1, WIRE_BYTES = 2, WIRE_FIXED32 = 5 };

/* A message being read; `at` = `end` when it is finished. */
struct wire {
    const unsigned char *at, *end;
};

struct wire_field {
    uint64_t number;
    enum wire_type type;
    uint64_t value;    /* of a varint, or of fixed 32 bits */
    struct wire bytes; /* of WIRE_BYTES */
};

static bool read_varint(struct wire *wire, uint64_t *value)
{
    *value = 0;
    for (int shift = 0; shift < 64 && wire->at < wire->end; shift += 7) {
        unsigned char byte = *wire->at++;
        *value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80)
            return true;
    }
    return false;
}

static bool read_bytes(struct wire *wire, uint64_t count, struct wire *bytes)
{
    if (count > (uint64_t)(wire->end - wire->at))
        return false;
    *bytes = (struct wire){.at = wire->at, .end = wire->at + count};
    wire->at += count;
    return true;
}

/* False if the message is broken here. */
static bool read_field(struct wire *wire, struct wire_field *field)
{
    uint64_t tag, length;
    if (!read_varint(wire, &tag))
        return false;
    *field = (struct wire_field){.number = tag >> 3, .type = (enum wire_type)(tag & 7)};
    switch (field->type) {
    case WIRE_VARINT:
        return read_varint(wire, &field->value);
    case WIRE_FIXED64:
        return read_bytes(wire, 8, &field->bytes);
    case WIRE_BYTES:
        return read_varint(wire, &length) && read_bytes(wire, length, &field->bytes);
    case WIRE_FIXED32:
        if (!read_bytes(wire, 4, &field->bytes))
            return false;
        for (int i = 3; i >= 0; i--)
            field->value = field->value << 8 | field->bytes.at[i];
        return true;
    }
    return false;
}

static int refuse(const char *label, const char *why, struct error *err)
{
    return error_set(err, EINVAL, "%s: %s", label, why);
}

static const char broken[] = "not a SentencePiece model, or a damaged one";

static int read_piece(struct piece_model *model, struct wire message, const char *label,
                      struct error *err)
{
    struct wire text = {0};
    float score = 0;
    while (message.at < message.end) {
        struct wire_field field;
        if (!read_field(&message, &field))
            return refuse(label, broken, err);
        if (field.number == PIECE_TEXT && field.type == WIRE_BYTES) {
            text = field.bytes;
        } else if (field.number == PIECE_SCORE && field.type == WIRE_FIXED32) {
            uint32_t bits = (uint32_t)field.value;
            memcpy(&score, &bits, sizeof score);
        }
    }
    if (text.at == text.end || !isfinite(score))
        return error_set(err, EINVAL, "%s: piece %d is empty or its score is not a number", label,
                         model->piece_count);
    int32_t id = model->piece_count++;
    model->scores[id] = score;
    model->least_score = id == 0 ? score : fminf(model->least_score, score);
    if (string_table_put(&model->pieces, text.at, (size_t)(text.end - text.at), id) != 0)
        return error_set(err, ENOMEM, "%s: out of memory", label);
    return 0;
}

static int read_trainer(struct wire message, const char *label, struct error *err)
{
    while (message.at < message.end) {
        struct wire_field field;
        if (!read_field(&message, &field))
            return refuse(label, broken, err);
        if (field.number == TRAINER_TYPE && field.value != TRAINER_TYPE_UNIGRAM)
            return refuse(label, "its model is not of the unigram type", err);
    }
    return 0;
}

static int read_normalizer(struct piece_model *model, struct wire message, const char *label,
                           struct error *err)
{
    struct wire map = {0};
    while (message.at < message.end) {
        struct wire_field field;
        if (!read_field(&message, &field))
            return refuse(label, broken, err);
        if (field.number == NORMALIZER_CHARSMAP && field.type == WIRE_BYTES)
            map = field.bytes;
    }
    size_t map_bytes = (size_t)(map.end - map.at);
    if (map_bytes == 0)
        return 0;
    uint64_t unit_bytes = 0;
    for (int i = 3; i >= 0 && map_bytes >= 4; i--)
        unit_bytes = unit_bytes << 8 | map.at[i];
    if (map_bytes < 4 || unit_bytes % 4 != 0 || unit_bytes > map_bytes - 4 ||
        unit_bytes == map_bytes - 4 || map.end[-1] != 0)
        return refuse(label, "its table of character replacements is damaged", err);
    model->charsmap = (struct charsmap){
        .units = map.at + 4,
        .unit_count = unit_bytes / 4,
        .replacements = (const char *)map.at + 4 + unit_bytes,
        .replacement_bytes = map_bytes - 4 - unit_bytes,
    };
    return 0;
}

static int read_model(struct piece_model *model, const char *label, struct error *err)
{
    struct wire message = {.at = model->file.data,
                           .end = model->file.data + model->file.size_bytes};
    /* A piece takes at least 5 bytes: two tags, two lengths, one character. */
    model->scores = malloc((model->file.size_bytes / 5 + 1) * sizeof *model->scores);
    if (model->scores == NULL)
        return error_set(err, ENOMEM, "%s: out of memory", label);
    int code = 0;
    while (code == 0 && message.at < message.end) {
        struct wire_field field;
        if (!read_field(&message, &field))
            return refuse(label, broken, err);
        if (field.type != WIRE_BYTES)
            continue;
        if (field.number == MODEL_PIECES)
            code = read_piece(model, field.bytes, label, err);
        else if (field.number == MODEL_TRAINER)
            code = read_trainer(field.bytes, label, err);
        else if (field.number == MODEL_NORMALIZER)
            code = read_normalizer(model, field.bytes, label, err);
    }
    if (code == 0 && model->piece_count == 0)
        return refuse(label, broken, err);
    return code;
}

int piece_model_open(struct piece_model *model, const char *path, struct error *err)
{
    *model = (struct piece_model){0};
    int code = file_map_open(&model->file, path, MODEL_MAX_BYTES, err);
    return code == 0 ? read_model(model, file_label(path), err) : code;
}

void piece_model_finish(struct piece_model *model)
{
    string_table_finish(&model->pieces);
    free(model->scores);
    file_map_close(&model->file);
    *model = (struct piece_model){0};
}

static uint32_t unit_at(const struct charsmap *map, size_t index)
{
    uint32_t unit = 0;
    for (int i = 3; i >= 0; i--)
        unit = unit << 8 | map->units[4 * index + (size_t)i];
    return unit;
}

static uint32_t unit_offset(uint32_t unit)
{
    return (unit >> 10) << ((unit & (1u << 9)) >> 6);
}

const char *charsmap_find(const struct charsmap *map, const char *text, size_t text_bytes,
                          size_t *bytes)
{
    if (map->unit_count == 0)
        return NULL;
    size_t place = unit_offset(unit_at(map, 0));
    for (size_t i = 0; i < text_bytes; i++) {
        unsigned char byte = (unsigned char)text[i];
        place ^= byte;
        if (byte == 0 || place >= map->unit_count)
            return NULL;
        uint32_t unit = unit_at(map, place);
        if ((unit & (1u << 31 | 0xff)) != byte)
            return NULL;
        place ^= unit_offset(unit);
        if ((unit & 1u << 8) == 0)
            continue;
        size_t value = place < map->unit_count ? unit_at(map, place) & ~(1u << 31) : SIZE_MAX;
        if (value >= map->replacement_bytes)
            return NULL;
        *bytes = strlen(map->replacements + value);
        return map->replacements + value;
    }
    return NULL;
}
