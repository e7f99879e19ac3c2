# SPDX-License-Identifier: MIT
"""Draws scenes from rows of numbers (scenes.row), many at once.

The same code runs in NumPy and in PyTorch on a GPU: `rows` decides. Coordinates: the picture's
shorter side runs from -1 to 1, the longer one further; x to the right, y downwards. Everything
is a signed distance (negative inside), and an edge is one pixel soft.
"""
import math

import numpy as np

import letters

COLOURS = {
    'red': (.86, .12, .14), 'green': (.12, .62, .22), 'blue': (.13, .30, .86),
    'yellow': (.97, .84, .13), 'orange': (.97, .52, .08), 'purple': (.50, .16, .66),
    'pink': (.98, .56, .72), 'cyan': (.15, .80, .86), 'white': (.97, .97, .97),
    'black': (.05, .05, .06), 'gray': (.52, .53, .55), 'brown': (.46, .28, .14)}
SHAPES = ['circle', 'square', 'triangle', 'star', 'ring', 'heart', 'hexagon', 'cross', 'diamond',
          'moon']
STYLES = ['', 'glossy', 'outlined', 'striped']
GROUNDS = ['plain', 'gradient', 'checkerboard', 'night sky', 'sunset', 'meadow']
THINGS, WORD = 5, 6             # at most, in a picture and on a sign
THING_NUMBERS = 8               # on, shape, style, x, y, radius, colour, casts a shadow
FIRST_THING = 6                 # ground, two colours, seed, side of the light, long shadows
SIGN = FIRST_THING + THINGS * THING_NUMBERS  # on, x, y, half width, board, ink, letters
NUMBERS = SIGN + 6 + WORD
SIGN_HALF_HEIGHT = .27
LETTER_UNIT = .045              # a grid unit of the alphabet in the picture
STRIPES = 9.                    # radians of their wave in a radius
BAND = .075                     # half the width of an outline, in radii
SHADOW = .68                    # what a shadow leaves of the ground's light
PALETTE = np.array(list(COLOURS.values()), np.float32)


class NumPy:
    """What differs between the two libraries, the NumPy side."""
    lib = np

    def __init__(self, rows):
        self.rows = rows

    def array(self, values):
        return np.asarray(values)

    def empty(self, *shape):
        return np.empty(shape, np.float32)

    def where(self, condition):
        return np.flatnonzero(condition)

    def whole(self, values):
        return values.astype(np.int64)


class Torch:
    """And the PyTorch side."""

    def __init__(self, rows):
        import torch
        self.lib, self.rows = torch, rows

    def array(self, values):
        return self.lib.as_tensor(values, device=self.rows.device)

    def empty(self, *shape):
        return self.lib.empty(shape, device=self.rows.device)

    def where(self, condition):
        return self.lib.nonzero(condition).flatten()

    def whole(self, values):
        return values.long()


def library(rows):
    return NumPy(rows) if isinstance(rows, np.ndarray) else Torch(rows)


def _tall(values):
    """[B] -> [B, 1, 1], to meet pixels."""
    return values[:, None, None]


def _box(lib, x, y, width, height):
    return lib.maximum(abs(x) - width, abs(y) - height)


def _circle(lib, x, y, s):
    return lib.hypot(x, y) - s


def _square(lib, x, y, s):
    return _box(lib, x, y, .84 * s, .84 * s)


def _triangle(lib, x, y, s):
    return lib.maximum(y - .62 * s, (1.52 * abs(x) - .95 * (y + .9 * s)) / math.hypot(1.52, .95))


def _star(lib, x, y, s):
    fifth = 2 * math.pi / 5
    angle = lib.remainder(lib.arctan2(x, -y) + fifth / 2, fifth) - fifth / 2
    radius = lib.hypot(x, y)
    inner_x, inner_y = .45 * math.sin(fifth / 2), .45 * math.cos(fifth / 2)
    across, along = radius * abs(lib.sin(angle)), radius * lib.cos(angle)
    return (across * (1 - inner_y) + (along - s) * inner_x) / math.hypot(inner_x, 1 - inner_y)


def _ring(lib, x, y, s):
    return abs(lib.hypot(x, y) - .77 * s) - .2 * s


def _heart(lib, x, y, s):
    """A square on its corner, and a circle on each of its upper edges."""
    side = 1.136 * s
    x, y = abs(x), y - .1 * s
    lobe = lib.hypot(x - side * .3536, y + side * .3536) - side / 2
    return lib.minimum((x + abs(y) - side * .7071) * .7071, lobe)


def _hexagon(lib, x, y, s):
    return lib.maximum(abs(y), .866 * abs(x) + .5 * abs(y)) - .84 * s


def _cross(lib, x, y, s):
    return lib.minimum(_box(lib, x, y, .92 * s, .3 * s), _box(lib, x, y, .3 * s, .92 * s))


def _diamond(lib, x, y, s):
    return (abs(x) / .7 + abs(y) - s) / math.hypot(1 / .7, 1)


def _moon(lib, x, y, s):
    return lib.maximum(lib.hypot(x, y) - .96 * s, .82 * s - lib.hypot(x - .48 * s, y + .12 * s))


DISTANCES = [_circle, _square, _triangle, _star, _ring, _heart, _hexagon, _cross, _diamond, _moon]


def distances(on, shape, x, y, s):
    """Of things of various shapes [M] at points [M, h, w] relative to their centres, [M, h, w]."""
    height, width = max(x.shape[1], y.shape[1]), max(x.shape[2], y.shape[2])
    d = on.empty(x.shape[0], height, width)
    for number, distance in enumerate(DISTANCES):
        some = on.where(shape == number)
        if len(some):
            d[some] = distance(on.lib, x[some], y[some], _tall(s[some]))
    return d


def _cover(on, d, pixel):
    return on.lib.clip(.5 - d / pixel, 0, 1)


def outline(d, s):
    """The band inside an edge that is left of an outlined thing."""
    return abs(d + BAND * _tall(s)) - BAND * _tall(s)


def second_stripe(lib, base):
    """What alternates with the colours [M, 3] of striped things."""
    return lib.where((base.sum(1) > 1.8)[:, None], base * .55, base * .35 + .6)


def ink(on, thing, side, x, y, pixel):
    """Colour of things [M, 3, h, w] at points relative to their centres."""
    lib, s = on.lib, _tall(thing[:, 5])
    base = on.array(PALETTE)[on.whole(thing[:, 6])]
    other = second_stripe(lib, base)[:, :, None, None]
    base = base[:, :, None, None]
    style = _tall(thing[:, 2])[:, None]
    # Glossy: a rim in shade, and a window's light on the upper left.
    rim = 1.08 - .42 * lib.clip((x * x + y * y) / (s * s), 0, 1.3)
    spot = lib.exp(-5 * ((x + .35 * s) ** 2 + (y + .4 * s) ** 2) / (s * s))
    glossy = lib.clip(base * rim[:, None] + .8 * spot[:, None], 0, 1)
    wave = lib.sin((x + y) / s * STRIPES) * s / (STRIPES * 2 ** .5 * pixel)
    stripe = lib.clip(.5 + wave, 0, 1)[:, None]
    colour = lib.where(style == 1, glossy, base)
    colour = lib.where(style == 3, base * stripe + other * (1 - stripe), colour)
    toward = lib.clip(-x / s * _tall(side), -1, 1)[:, None]
    dark, bright = lib.clip(toward, -1, 0), lib.clip(toward, 0, 1)
    return colour * (1 + .45 * dark) + (1 - colour) * .35 * bright


def paint_things(on, thing, side, x, y, pixel):
    """Colour [M, 3, h, w] and cover [M, h, w] of things [M, 8] at points [M or 1, h or 1, w or 1],
    each lit from the side [M]: -1 the right, 1 the left, 0 neither."""
    x, y = x - _tall(thing[:, 3]), y - _tall(thing[:, 4])
    d = distances(on, thing[:, 1], x, y, thing[:, 5])
    d = on.lib.where(_tall(thing[:, 2]) == 2, outline(d, thing[:, 5]), d)
    return ink(on, thing, side, x, y, pixel), _cover(on, d, pixel)


def shadow_lengths(on, side, long, s):
    """Direction (x, y) of shadows, and how far they reach beyond what casts them."""
    slanted = abs(side)
    return side * .9, 1 - slanted * .56, .06 + slanted * .1 + long * (.1 + 1.6 * s)


def _shadows(on, thing, side, long, x, y):
    """How much of the ground's light each thing takes [M, h, w]: its silhouette, drawn out."""
    lib, s = on.lib, thing[:, 5]
    u, v, length = (_tall(value) for value in shadow_lengths(on, side, long, s))
    norm = lib.hypot(u, v)
    u, v = u / norm, v / norm
    x, y = x - _tall(thing[:, 3]), y - _tall(thing[:, 4])
    along, across = x * u + y * v, y * u - x * v
    stretch = 1 + length / (2 * _tall(s))
    along = (along - length / 2) / stretch
    d = distances(on, thing[:, 1], along * u - across * v, along * v + across * u, s)
    return (1 - SHADOW) * lib.clip(.5 - d / .04, 0, 1) * _tall(thing[:, 7])


def _fraction(lib, value):
    return value - lib.floor(value)


def _stars(on, x, y, seed):
    """A star in some cells of a grid, somewhere in the cell, of some brightness."""
    lib, cell = on.lib, .1
    column, line = lib.floor(x / cell), lib.floor(y / cell)
    noise = _fraction(lib, abs(lib.sin(column * 12.99 + line * 78.23 + seed * 91.7)) * 4375.85)
    shift_x, shift_y = _fraction(lib, noise * 173.), _fraction(lib, noise * 977.)
    u = _fraction(lib, x / cell) - .25 - .5 * shift_x
    v = _fraction(lib, y / cell) - .25 - .5 * shift_y
    bright = (noise > .86) * (.35 + .65 * _fraction(lib, noise * 57.))
    return bright * lib.exp(-60 * (u * u + v * v))


def _ground(on, kind, c1, c2, seed, x, y, half_height):
    """One kind of ground [M, 3, h, w]; c1 and c2 are [M, 3, 1, 1]."""
    lib = on.lib

    def colour(*rgb):
        return on.array(np.array(rgb, np.float32))[None, :, None, None]
    t = ((y / half_height + 1) / 2)[:, None]
    if kind == 'plain':
        return c1 + 0 * t
    if kind == 'gradient':
        return c1 * (1 - t) + c2 * t
    if kind == 'checkerboard':
        odd = lib.remainder(lib.floor(x * 4) + lib.floor(y * 4), 2)[:, None]
        return c1 * (1 - odd) + c2 * odd
    if kind == 'night sky':
        dark = colour(.03, .04, .13) * (1 - t) + colour(.10, .09, .27) * t
        return lib.clip(dark + _stars(on, x, y, seed)[:, None], 0, 1)
    if kind == 'sunset':
        return (colour(.28, .16, .42) * (1 - t) ** 2 + colour(.90, .36, .34) * (2 * t * (1 - t))
                + colour(.99, .80, .40) * t ** 2)
    horizon = .42 * half_height + .08 * lib.sin(x * 2.3 + seed * 6.28)
    grass = lib.clip(.5 + (y - horizon) * 60, 0, 1)[:, None]
    sky = colour(.50, .74, .95) * (1 - t) + colour(.82, .92, .98) * t
    return sky * (1 - grass) + colour(.42, .62, .26) * (1.15 - .3 * t) * grass


def paint_ground(on, rows, x, y, half_height):
    """The backgrounds of rows, [B, 3, h, w]."""
    palette = on.array(PALETTE)
    picture = on.empty(len(rows), 3, y.shape[1], x.shape[2])
    each = len(x) > 1
    for number, kind in enumerate(GROUNDS):
        some = on.where(rows[:, 0] == number)
        if len(some):
            c1, c2 = (palette[on.whole(rows[some, i])][:, :, None, None] for i in (1, 2))
            picture[some] = _ground(on, kind, c1, c2, _tall(rows[some, 3]),
                                    x[some] if each else x, y[some] if each else y, half_height)
    return picture


_atlases = {}


def _letter_atlas(on):
    key = type(on), str(getattr(on.rows, 'device', ''))
    if key not in _atlases:
        _atlases[key] = on.array(letters.atlas())
    return _atlases[key]


def _letter_places(on, sign, x, y):
    """Of points relative to signs' middles: whether they lie in a letter's box, which letter that is,
    and where in its box, in letter units."""
    lib, unit = on.lib, LETTER_UNIT
    count = (sign[:, 6:] >= 0).sum(1)
    start = -(count * letters.ADVANCE - (letters.ADVANCE - letters.WIDTH)) / 2
    u, v = x / unit - _tall(start), y / unit + letters.HEIGHT / 2
    place = lib.floor((u + letters.MARGIN) / letters.ADVANCE)
    inside = (place >= 0) & (place < _tall(count)) & (abs(v - letters.HEIGHT / 2)
                                                      <= letters.HEIGHT / 2 + letters.MARGIN)
    place = lib.clip(place, 0, WORD - 1)
    which = on.whole(place)
    index = on.array(np.arange(len(sign)))[:, None, None]
    letter = on.whole(lib.clip(sign[:, 6:][index, which + 0 * on.whole(v)], 0, 25))
    return inside, letter, u - place * letters.ADVANCE, v


def _text(on, sign, x, y):
    """Distance to the ink of signs' words, in letter units."""
    lib = on.lib
    inside, letter, u, v = _letter_places(on, sign, x, y)
    table = _letter_atlas(on)
    i = lib.clip((v + letters.MARGIN) * letters.PER_UNIT, 0, table.shape[1] - 1.001)
    j = lib.clip((u + letters.MARGIN) * letters.PER_UNIT, 0, table.shape[2] - 1.001)
    i0, j0 = on.whole(i), on.whole(j)
    a, b = i - i0, j - j0
    d = ((table[letter, i0, j0] * (1 - b) + table[letter, i0, j0 + 1] * b) * (1 - a)
         + (table[letter, i0 + 1, j0] * (1 - b) + table[letter, i0 + 1, j0 + 1] * b) * a)
    return lib.where(inside, d, 9 + 0 * d)


def _paint_signs(on, picture, rows, x, y, pixel):
    some = on.where(rows[:, SIGN] > 0)
    if not len(some):
        return
    lib, sign, each = on.lib, rows[some, SIGN:], len(x) > 1
    x = (x[some] if each else x) - _tall(sign[:, 1])
    y = (y[some] if each else y) - _tall(sign[:, 2])
    palette = on.array(PALETTE)
    board, ink = (palette[on.whole(sign[:, i])][:, :, None, None] for i in (4, 5))
    width = _tall(sign[:, 3])
    corner = .05
    u, v = abs(x) - width + corner, abs(y) - SIGN_HALF_HEIGHT + corner
    d = (lib.hypot(lib.clip(u, 0, 9), lib.clip(v, 0, 9))
         + lib.clip(lib.maximum(u, v), -9, 0) - corner)
    back = picture[some] * (1 - (1 - SHADOW) * lib.clip(
        .5 - _box(lib, x, y - .04, width - .02, SIGN_HALF_HEIGHT) / .04, 0, 1))[:, None]
    cover = _cover(on, d, pixel)[:, None]
    back = back * (1 - cover) + board * cover
    frame = _cover(on, abs(d + .035) - .012, pixel)
    text = _cover(on, _text(on, sign, x, y) * LETTER_UNIT, pixel)
    cover = lib.maximum(frame, text)[:, None]
    picture[some] = back * (1 - cover) + ink * cover


def axes(on, width, height, corner=None, crop=None):
    """Pixel centres: x [1 or B, 1, w], y [1 or B, h, 1], and a pixel's size. With `corner`, [B, 2]
    whole numbers (column, line), those of a window of `crop` pixels in each picture."""
    pixel = 2 / min(width, height)
    if corner is None:
        columns, lines = np.arange(width)[None], np.arange(height)[None]
    else:
        steps = on.array(np.arange(crop))[None]
        columns, lines = corner[:, :1] + steps, corner[:, 1:] + steps
    x = on.array((columns + .5 - width / 2) * pixel)[:, None, :]
    y = on.array((lines + .5 - height / 2) * pixel)[:, :, None]
    if isinstance(on, NumPy):
        return x.astype(np.float32), y.astype(np.float32), pixel
    return x.float(), y.float(), pixel


def render(rows, width, height, corner=None, crop=None):
    """Rows [B, NUMBERS] float32 of pictures of one size -> [B, 3, h, w], 0 … 1."""
    on = library(rows)
    x, y, pixel = axes(on, width, height, corner, crop)
    picture = paint_ground(on, rows, x, y, height * pixel / 2)
    each = len(x) > 1
    things = rows[:, FIRST_THING:SIGN].reshape(len(rows), THINGS, THING_NUMBERS)
    # The casters' shadows all fall on the ground, never on another thing.
    for paints in (False, True):
        for slot in range(THINGS):
            some = on.where(things[:, slot, 0] > 0)
            if not len(some):
                continue
            thing, side, long = things[some, slot], rows[some, 4], rows[some, 5]
            at = (x[some], y[some]) if each else (x, y)
            if paints:
                colour, cover = paint_things(on, thing, side, *at, pixel)
                cover = cover[:, None]
                picture[some] = picture[some] * (1 - cover) + colour * cover
            else:
                picture[some] = picture[some] * (1 - _shadows(on, thing, side, long, *at))[:, None]
    _paint_signs(on, picture, rows, x, y, pixel)
    return on.lib.clip(picture, 0, 1)


def labels(rows, width, height, cell=16):
    """What the middle of each cell of `cell` pixels shows: [B, h, w, 3] whole numbers, the shape
    (0 ground, 1 … shapes, last a sign), the colour (0 ground, 1 … colours) and the letter (0 none,
    1 … 26)."""
    on = library(rows)
    x, y, _ = axes(on, width // cell, height // cell)
    shape = on.whole(0 * rows[:, :1, None] + 0 * (x + y))
    colour = shape + 0
    for slot in range(THINGS):
        thing = rows[:, FIRST_THING + slot * THING_NUMBERS:][:, :THING_NUMBERS]
        s = on.lib.clip(thing[:, 5], .01, 9)
        d = distances(on, thing[:, 1], x - _tall(thing[:, 3]), y - _tall(thing[:, 4]), s)
        # A cell counts as the thing's when most of it lies inside.
        inside = (d < 0) & (_tall(thing[:, 0]) > 0)
        shape = on.lib.where(inside, on.whole(_tall(thing[:, 1]) + 1), shape)
        colour = on.lib.where(inside, on.whole(_tall(thing[:, 6]) + 1), colour)
    sign = rows[:, SIGN:]
    x, y = x - _tall(sign[:, 1]), y - _tall(sign[:, 2])
    signed = _tall(sign[:, 0]) > 0
    inside = (_box(on.lib, x, y, _tall(sign[:, 3]), SIGN_HALF_HEIGHT) < 0) & signed
    shape = on.lib.where(inside, 0 * shape + len(SHAPES) + 1, shape)
    colour = on.lib.where(inside, on.whole(_tall(sign[:, 4]) + 1), colour)
    spelled, letter, *_ = _letter_places(on, sign, x, y)
    letter = on.lib.where(spelled & signed, letter + 1, 0 * shape)
    return on.lib.stack([shape, colour, letter], -1)
