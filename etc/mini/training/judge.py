# SPDX-License-Identifier: MIT
"""Says what a picture shows, from its pixels alone, in the words of scenes.py.

It explains the picture: of all grounds the one that most pixels agree with; what is neither that
ground nor its shadow are things; each is compared with the outlines of all shapes, then with all
colours, styles and lights as draw.py would paint them; what a huge thing leaves unexplained lies
inside it; a sign is read letter by letter.
"""
import functools
import itertools
from dataclasses import dataclass

import numpy as np
from PIL import Image

import draw
import letters
import scenes

COLOURS = list(draw.COLOURS)
SMALLEST = .17       # of a thing, from side to side
UNLIKE = .10         # a pixel's distance from the ground that makes it a thing's
SHADE = (.60, 1.02)  # what shadows leave of the ground's light
DEEP_SHADE = .50     # the same where no thing's colour could be taken for a shadow
MASK = 40            # pixels a side of the masks that shapes are compared by


@dataclass
class Seen:
    colour: str
    shape: str
    size: str
    style: str
    x: float     # in half pictures from the middle
    y: float
    radius: float
    inside: bool = False


@dataclass
class Picture:
    ground: str
    colours: tuple       # of the ground, as many as it has
    things: list
    sign: str | None
    board: str | None
    sign_y: float
    light: str
    long_shadows: bool


def components(mask):
    """Connected regions of a mask, as a label for each pixel (0: none) and their number."""
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    line, start = np.nonzero(edges == 1)
    end = np.nonzero(edges == -1)[1]
    parent = list(range(len(line)))

    def root(run):
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run
    above, here = 0, 0
    for run in range(len(line)):
        if run and line[run] != line[run - 1]:
            above, here = (here, run) if line[run] == line[run - 1] + 1 else (run, run)
        for other in range(above, here):
            if start[other] <= end[run] and start[run] <= end[other]:
                parent[root(other)] = root(run)
    number, labels = {}, np.zeros(mask.shape, np.int32)
    for run in range(len(line)):
        label = number.setdefault(root(run), len(number) + 1)
        labels[line[run], start[run]:end[run]] = label
    return labels, len(number)


def without_holes(mask, largest=1.):
    """A mask with those holes filled that take at most this share of it."""
    labels, count = components(~np.pad(mask, 1))
    labels = labels[1:-1, 1:-1]
    outside = labels[0, 0] if not mask[0, 0] else 0
    edge = set(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])) | {outside}
    filled = mask.copy()
    for label in range(1, count + 1):
        if label not in edge:
            filled |= labels == label
    if largest == 1:
        return filled
    kept = mask.copy()
    for label in range(1, count + 1):
        hole = labels == label
        if label not in edge and hole.sum() <= largest * filled.sum():
            kept |= hole
    return kept


@functools.cache
def _grounds(width, height):
    """Every ground that there is, small: names, colours, rows and pictures [N, 3, h, w]."""
    found = [('plain', (c, c)) for c in COLOURS]
    found += [(kind, pair) for kind in ('gradient', 'checkerboard')
              for pair in itertools.permutations(COLOURS, 2)]
    found += [('night sky', ('black', 'white')), ('sunset', ('black', 'white'))]
    seeds = [0.] * len(found) + list(np.arange(24) / 24)
    found += [('meadow', ('black', 'white'))] * 24
    rows = np.stack([scenes.row(scenes.Scene('one', None, kind, pair, seed=seed), width, height)
                     for (kind, pair), seed in zip(found, seeds)])
    return found, rows, draw.render(rows, width // 4, height // 4)


def _shrunk(picture, times):
    channels, height, width = picture.shape
    return picture.reshape(channels, height // times, times, width // times, times).mean((2, 4))


def find_ground(picture):
    """Kind, colours, its row of numbers, and the ground alone: pictures [N, 3, h, w], of which each
    pixel may be any (a horizon and a board's edges are not always where they should be)."""
    _, height, width = picture.shape
    found, rows, grounds = _grounds(width, height)
    error = np.abs(grounds - _shrunk(picture, 4)).max(1)
    agree = np.clip(1 - error / .12, 0, 1)
    ring = np.ones(agree.shape[1:], bool)
    ring[2:-2, 2:-2] = False
    best = int((agree.mean((1, 2)) + agree[:, ring].mean(1)).argmax())
    kind, colours = found[best]
    shown = {'plain': 1, 'gradient': 2, 'checkerboard': 2}.get(kind, 0)
    best_row = rows[best]
    rows = rows[[found[i][0] == 'meadow' for i in range(len(found))]] if kind == 'meadow' \
        else rows[best:best + 1]
    ground = draw.render(rows, width, height)
    if kind == 'meadow':  # between the highest horizon and the lowest: grass, sky, or a blend
        blue = ground[:, 2]
        sky, grass = (np.take_along_axis(ground, best(blue, 0)[None, None], 0)[0]
                      for best in (np.argmax, np.argmin))
        ground = np.stack([sky + t * (grass - sky) for t in np.linspace(0, 1, 9)])
    if kind == 'checkerboard':  # near its squares' edges, either colour or a blend
        moved = np.stack([np.roll(ground[0], shift, (1, 2))
                          for shift in itertools.product((-3, 0, 3), repeat=2)])
        near = np.ptp(moved, 0).max(0) > .1
        first, second = (draw.PALETTE[COLOURS.index(colour)][:, None, None] for colour in colours)
        ground = np.stack([np.where(near, first + t * (second - first), ground[0])
                           for t in np.linspace(0, 1, 9)])
    return kind, colours[:shown], best_row, ground


def darkest_shade(ground):
    """The least that a shadow leaves of the light of each pixel of a ground [3, h, w]."""
    _, height, width = ground.shape
    some = ground[:, None, ::4, ::4]
    colours = draw.PALETTE.T[..., None, None]
    stand_out = np.abs(colours - some).max(0) > .2  # the others are never things here
    alike = False
    for tone in (1, .8, .6):  # as lit things have
        share = (colours * tone * some).sum(0) / np.maximum((some * some).sum(0), 1e-3)
        shaded = np.clip(share, DEEP_SHADE, SHADE[0]) * some
        alike |= (stand_out & (np.abs(colours * tone - shaded).max(0) < .09)).any(0)
    return np.where(alike, SHADE[0], DEEP_SHADE).repeat(4, 0).repeat(4, 1)[:height, :width]


def things_mask(picture, grounds):
    """What is neither ground nor its shadow."""
    is_ground = np.zeros(picture.shape[1:], bool)
    for ground in grounds:
        share = (picture * ground).sum(0) / np.maximum((ground * ground).sum(0), 1e-3)
        shaded = np.abs(picture - share * ground).max(0) < .06
        shaded &= (share > darkest_shade(ground)) & (share < SHADE[1])
        is_ground |= shaded | (np.abs(picture - ground).max(0) <= UNLIKE)
    return ~is_ground


def _eroded(mask):
    inner = np.pad(mask, 1)
    return (inner[1:-1, 1:-1] & inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2]
            & inner[1:-1, 2:])


def _dilated(mask):
    return ~_eroded(~mask)


def without_stars(mask, difference, pixel):
    """Without colourless specks, be it at the edge of something larger."""
    large = mask
    for step in (_eroded, _eroded, _dilated, _dilated):
        large = step(large)
    colourless = difference.max(0) - difference.min(0) < .08
    labels, count = components(mask & ~large & colourless)
    kept = mask.copy()
    for label in range(1, count + 1):
        box, own = _mask_of(labels, label)
        if max(box[2:]) * pixel <= .08:
            kept[labels == label] = False
    return kept


def _mask_of(labels, label):
    """The bounding box of a region (x, y, width, height) and its mask."""
    lines, columns = np.nonzero(labels == label)
    x, y = columns.min(), lines.min()
    width, height = columns.max() + 1 - x, lines.max() + 1 - y
    return (x, y, width, height), labels[y:y + height, x:x + width] == label


def _resized(mask, size=(MASK, MASK)):
    image = Image.fromarray(mask.astype(np.float32), mode='F')
    return np.asarray(image.resize(size, Image.BOX if min(mask.shape) >= MASK else Image.BILINEAR))


@functools.cache
def _outlines():
    """(shape, style, mask, width, height, centre x, centre y) of every shape, filled, and outlined
    sharply and blurred; lengths in radii."""
    on, found = draw.NumPy(None), []
    grid = (np.arange(400) / 400 * 2.4 - 1.2).astype(np.float32)
    x, y, s = grid[None, None], grid[None, :, None], np.ones(1, np.float32)
    for number, shape in enumerate(draw.SHAPES):
        d = draw.distances(on, np.array([number]), x, y, s)
        band = draw.outline(d, s)
        for style, inside in (('', d < 0), ('outlined', band < 0), ('outlined', band < .04)):
            lines, columns = np.nonzero(inside[0])
            box = [grid[columns.min()], grid[columns.max()], grid[lines.min()], grid[lines.max()]]
            mask = inside[0][lines.min():lines.max() + 1, columns.min():columns.max() + 1]
            found.append((shape, style, _resized(mask), box[1] - box[0], box[3] - box[2],
                          (box[0] + box[1]) / 2, (box[2] + box[3]) / 2))
    return found


def find_shape(box, mask, pixel):
    """Shape, '' or outlined, radius and centre (in pixels) that explain a mask best."""
    x, y, width, height = box
    filled = without_holes(mask, .2)
    masks = {'': _resized(filled), 'outlined': _resized(mask)}
    holes = {'': 1 - mask.sum() / filled.sum(), 'outlined': 0}
    best = None
    for shape, style, outline, wide, high, middle_x, middle_y in _outlines():
        seen = masks[style]
        score = np.minimum(seen, outline).sum() / np.maximum(seen, outline).sum()
        score -= abs(np.log(width / height * high / wide)) * .8 + holes[style] / 2
        if best is None or score > best[0]:
            radius = np.sqrt(width / wide * height / high)
            best = (score, shape, style, radius * pixel,
                    x + width / 2 - middle_x * radius, y + height / 2 - middle_y * radius)
    return best[1:]


@functools.cache
def _inks(outlined):
    """Every colour, style and light that a thing can have, as rows of things and sides."""
    styles = ['outlined'] if outlined else ['', 'glossy', 'striped']
    every = list(itertools.product(COLOURS, styles, (0, 1, -1)))
    things = np.zeros((len(every), draw.THING_NUMBERS), np.float32)
    things[:, 2] = [draw.STYLES.index(style) for _, style, _ in every]
    things[:, 6] = [COLOURS.index(colour) for colour, _, _ in every]
    return every, things, np.array([side for *_, side in every], np.float32)


def _offsets(lines, columns, centre, pixel):
    """Of pixels from a centre, as draw.ink wants points."""
    x = ((columns + .5 - centre[0]) * pixel).astype(np.float32)[None, None]
    y = ((lines + .5 - centre[1]) * pixel).astype(np.float32)[None, None]
    return x, y


def find_ink(picture, region, centre, radius, outlined, pixel):
    """Colour, style and light that explain a region best."""
    inner = _eroded(region)
    lines, columns = np.nonzero(inner if inner.sum() >= 40 else region)
    some = slice(None, None, max(1, len(lines) // 500))
    lines, columns = lines[some], columns[some]
    every, things, sides = _inks(outlined)
    things = things.copy()
    things[:, 5] = radius
    seen = picture[:, lines, columns]
    errors = []
    turn = 2 * np.pi / draw.STRIPES * radius / pixel  # after which stripes come again
    for shift in (-1.5, 0, 1.5, *np.arange(1, 6) / 6 * turn):
        some = slice(None) if abs(shift) <= 1.5 else things[:, 2] == draw.STYLES.index('striped')
        x, y = _offsets(lines, columns, (centre[0] + shift, centre[1]), pixel)
        painted = draw.ink(draw.NumPy(None), things[some], sides[some], x, y, pixel)[:, :, 0]
        error = np.full(len(things), np.inf)
        error[some] = np.minimum(np.abs(painted - seen).max(1), .35).mean(1)
        errors.append(error)
    return every[int(np.min(errors, 0).argmin())]


def _unexplained(picture, region, thing, centre, side, pixel):
    """Mask of the pixels within a thing that it wouldn't have by itself."""
    lines, columns = np.nonzero(region)
    row = np.zeros((1, draw.THING_NUMBERS), np.float32)
    row[0, [2, 5, 6]] = draw.STYLES.index(thing.style), thing.radius, COLOURS.index(thing.colour)
    painted = draw.ink(draw.NumPy(None), row, np.array([side], np.float32),
                       *_offsets(lines, columns, centre, pixel), pixel)
    mask = np.zeros(region.shape, bool)
    mask[lines, columns] = np.abs(painted[0, :, 0] - picture[:, lines, columns]).max(0) > .16
    return _eroded(mask)


def _size(radius):
    return min(scenes.SIZES, key=lambda size: abs(np.log(radius / scenes.SIZES[size])))


def _regions(mask):
    """Boxes and masks of connected regions, each with all that lies within its box."""
    labels, count = components(mask)
    boxes = sorted((_mask_of(labels, label)[0] for label in range(1, count + 1)),
                   key=lambda box: -box[2] * box[3])
    taken = []
    for x, y, width, height in boxes:
        if any(left <= x and top <= y and x + width <= left + wide and y + height <= top + high
               for left, top, wide, high in taken):
            continue
        taken.append((x, y, width, height))
        part = labels[y:y + height, x:x + width]
        reaching = set(np.unique(part))
        whole = [label for label in reaching if label
                 and (part == label).sum() == (labels == label).sum()]
        yield (x, y, width, height), np.isin(part, whole)


def find_things(picture, mask, pixel, inside=False):
    """Things in a mask, and in the huge ones what lies inside."""
    _, height, width = picture.shape
    for box, own in _regions(mask):
        if max(box[2:]) * pixel < SMALLEST or own.sum() * pixel ** 2 < .005:
            continue
        shape, style, radius, x, y = find_shape(box, own, pixel)
        region = np.zeros(mask.shape, bool)
        region[box[1]:box[1] + box[3], box[0]:box[0] + box[2]] = \
            own if style else without_holes(own, .2)
        colour, ink_style, side = find_ink(picture, region, (x, y), radius, bool(style), pixel)
        thing = Seen(colour, shape, _size(radius), style or ink_style, (x / width - .5) * 2,
                     (y / height - .5) * 2, radius, inside)
        yield thing
        if _size(radius) == 'huge' and not inside:
            rest = _unexplained(picture, region, thing, (x, y), side, pixel)
            yield from find_things(picture, rest, pixel, inside=True)


@functools.cache
def _letter_masks():
    """How much ink each part of a letter's box has, [26, 32, 24]: 4 parts a grid unit."""
    distance = letters.atlas()[:, :-1, :-1].reshape(26, 32, 2, 24, 2).mean((2, 4))
    return np.clip(.5 - distance * 2, 0, 1)


def read_sign(picture, box, pixel):
    """The word on a sign in a box of pixels, and the board's colour."""
    x, y, width, height = box
    margin = max(2, round(.065 / pixel))
    crop = picture[:, y + margin:y + height - margin, x + margin:x + width - margin]
    board = np.median(crop.reshape(3, -1), 1)
    name = COLOURS[int(np.abs(draw.PALETTE - board).max(1).argmin())]
    away = np.full(3, .05 if draw.PALETTE[COLOURS.index(name)].sum() > 1.8 else .97) - board
    ink = ((crop - board[:, None, None]) * away[:, None, None]).sum(0) / (away @ away)
    ink = np.clip(ink, 0, 1)
    rows = np.nonzero((ink > .5).sum(1) >= 2)[0]
    if not len(rows):
        return '', name
    unit = (rows[-1] + 1 - rows[0]) / (letters.HEIGHT + 2 * letters.STROKE)
    middle = (rows[-1] + 1 + rows[0]) / 2
    columns = np.diff(np.pad(((ink > .5).sum(0) > 0).astype(np.int8), 1))
    pad = int(5 * unit) + 2
    image = Image.fromarray(np.pad(ink, pad).astype(np.float32), mode='F')
    word = ''
    for start, end in zip(np.nonzero(columns == 1)[0], np.nonzero(columns == -1)[0]):
        if end - start < .6 * unit:
            continue
        centre = (start + end) / 2
        area = [pad + centre - 3 * unit, pad + middle - 4 * unit, pad + centre + 3 * unit,
                pad + middle + 4 * unit]
        seen = np.asarray(image.resize((24, 32), Image.BILINEAR, box=area))
        word += letters.ALPHABET[int(((_letter_masks() - seen) ** 2).sum((1, 2)).argmin())]
    return word, name


def _dense(box, mask):
    """The part of a box whose lines and columns the mask fills for the greater part."""
    lines, columns = (np.nonzero(mask.mean(axis) > .4)[0] for axis in (1, 0))
    if not len(lines) or not len(columns):
        return box
    return (box[0] + columns[0], box[1] + lines[0], columns[-1] + 1 - columns[0],
            lines[-1] + 1 - lines[0])


def _find_sign(picture, mask, pixel):
    """Word, board's colour, place, and the mask without the sign; or None."""
    labels, count = components(mask)
    for label in range(1, count + 1):
        box, own = _mask_of(labels, label)
        left, top = box[:2]
        x, y, width, height = box = _dense(box, without_holes(own))
        if width >= 1.5 * height and height * pixel > .35 and \
                without_holes(own[y - top:y - top + height, x - left:x - left + width]).mean() > .9:
            rest = mask.copy()
            rest[y:y + height, x:x + width] = False
            return *read_sign(picture, box, pixel), (y + height / 2) / mask.shape[0] * 2 - 1, rest
    return None, None, 0., mask


def find_light(picture, row, things):
    """The light, and whether shadows are long, with which the things would look most like this."""
    _, height, width = picture.shape
    hypotheses = list(itertools.product((0, 1, -1), (0, 1)))
    rows = np.repeat(row[None], len(hypotheses), 0)
    rows[:, 4:6] = hypotheses
    for slot, thing in enumerate(things[:draw.THINGS]):
        at = draw.FIRST_THING + slot * draw.THING_NUMBERS
        rows[:, at:at + draw.THING_NUMBERS] = (
            1, draw.SHAPES.index(thing.shape), draw.STYLES.index(thing.style),
            thing.x * width / min(width, height), thing.y * height / min(width, height),
            thing.radius, COLOURS.index(thing.colour), not thing.inside)
    painted = draw.render(rows, width // 2, height // 2)
    error = np.abs(painted - _shrunk(picture, 2)).max(1)
    error = np.minimum(error, .35).mean((1, 2))
    # Where shadows can't be seen, long ones are not claimed.
    side, long = hypotheses[int((error + [1e-4 * long for _, long in hypotheses]).argmin())]
    return {0: '', 1: 'left', -1: 'right'}[side], bool(long)


def look(image):
    """An RGB image [height, width, 3] of bytes -> Picture."""
    picture = np.asarray(image, np.float32).transpose(2, 0, 1) / 255
    pixel = 2 / min(picture.shape[1:])
    kind, colours, row, grounds = find_ground(picture)
    mask = things_mask(picture, grounds)
    if kind == 'night sky':
        mask = without_stars(mask, picture - grounds[0], pixel)
    word, board, sign_y, mask = _find_sign(picture, mask, pixel)
    things = list(find_things(picture, mask, pixel))
    light, long_shadows = find_light(picture, row, things) if things else ('', False)
    return Picture(kind, colours, things, word, board, sign_y, light, long_shadows)
