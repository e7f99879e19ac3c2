# SPDX-License-Identifier: MIT
"""The world that the embedded model knows: scenes drawn by chance, and what they are called.

A Scene says what is to be seen, `caption` puts it into words in one of many ways, and `row` makes
the numbers that draw.render() paints it from.

Some combinations of colour, shape and place, and some words, are held out: Sampler() never makes
them, Sampler(held_out=True) makes nothing else.
"""
import functools
import random
import zlib
from dataclasses import dataclass, field

import numpy as np

import draw

SIZES = {'tiny': .14, 'small': .22, '': .34, 'large': .45, 'huge': .62}
PLACES = {'in the center': (0, 0), 'on the left': (-.5, 0), 'on the right': (.5, 0),
          'at the top': (0, -.5), 'at the bottom': (0, .5), 'in the top left corner': (-.5, -.5),
          'in the top right corner': (.5, -.5), 'in the bottom left corner': (-.5, .5),
          'in the bottom right corner': (.5, .5)}
# Where the first of two stands; the second stands opposite.
RELATIONS = {'to the left of': (-.5, 0), 'to the right of': (.5, 0), 'above': (0, -.5),
             'below': (0, .5), 'next to': (-.5, 0), 'inside': (0, 0)}
OUTER = ['circle', 'square', 'hexagon', 'diamond']  # what another thing fits into
ALIKE = {2: [[(-.5, 0), (.5, 0)]],
         3: [[(-.6, 0), (0, 0), (.6, 0)], [(0, -.5), (-.5, .5), (.5, .5)]],
         4: [[(-.5, -.5), (.5, -.5), (-.5, .5), (.5, .5)]],
         5: [[(-.6, -.6), (.6, -.6), (0, 0), (-.6, .6), (.6, .6)]]}
NUMBERS = {2: 'two', 3: 'three', 4: 'four', 5: 'five'}
SIZES_PX = [(256, 256), (192, 192), (384, 384), (192, 256), (256, 192), (192, 320), (320, 192),
            (256, 384), (384, 256), (192, 384), (384, 192), (320, 256), (256, 320)]
WORDS = '''ART AIR ARM BAKERY BANK BAR BEACH BED BEER BEST BIKES BIRD BLUE BOAT BOOKS BREAD BUS BUY
CAFE CAKE CAMP CAR CASH CAT CITY CLOSED CLUB COFFEE COLD COW DAY DEAL DEEP DOG DOOR DOWN DRINK DUCK
EAST EAT EGG END ENTER EXIT FARM FAST FILM FIRE FISH FLUX FOOD FOX FREE FROG FUN GAME GARDEN GIFT
GO GOLD GOOD GREEN GYM HALL HAPPY HAT HELLO HELP HOME HORSE HOT HOTEL HOUSE ICE INN JAZZ JOB JOY
JUICE KEY KIDS KING KIWI LAKE LEFT LIGHT LOVE LUCK LUNCH MAGIC MAP MARKET MENU MILK MOON MUSIC NEW
NEWS NEXT NIGHT NO NORTH OAK OIL OK OLD ONE OPEN PARK PASTA PAUSE PAY PEACE PIE PIZZA PLAY POOL
POST PUB PULL PUSH QUEEN QUICK QUIET RED REST RICE RIGHT ROAD ROOM ROSE SALE SALT SCHOOL SEA SHOES
SHOP SLOW SNOW SOUP SOUTH SPA STAR STAY STOP SUGAR SUN SWIM TAXI TEA TENT TEST TIME TO TOP TOYS
TRAIN TREE TURN TWO UP VAN VIEW VOTE WALK WARM WATER WAY WEST WILD WIND WINE WOOD YARD YES YOGA
YOU ZEBRA ZEN ZERO ZONE ZOO'''.split()
HELD_OUT = 8  # one combination in so many


def held_out(*what):
    """Whether a combination (colour, shape, place) or a word stays out of training."""
    return zlib.crc32(' '.join(map(str, what)).encode()) % HELD_OUT == 0


@dataclass
class Thing:
    colour: str
    shape: str
    size: str = ''
    style: str = ''
    x: float = 0.   # in half pictures from the middle
    y: float = 0.
    radius: float = 0.
    casts: bool = True


@dataclass
class Sign:
    word: str
    board: str = 'white'
    x: float = 0.
    y: float = 0.

    @property
    def ink(self):
        return 'black' if sum(draw.COLOURS[self.board]) > 1.8 else 'white'

    @property
    def half_width(self):
        return max(.46, .12 + len(self.word) * .135)


@dataclass
class Scene:
    """`layout` is one of one, two, three, alike, sign, with sign; `where` is its place, relation,
    'row' or 'column', or None."""
    layout: str
    where: str | None
    ground: str
    colours: tuple
    things: list = field(default_factory=list)
    sign: Sign | None = None
    light: str = ''      # left, right or nothing said
    long_shadows: bool = False
    seed: float = 0.
    ground_said: bool = True
    where_said: bool = True


@functools.cache
def ground_shades(ground, colours):
    """Colours [N, 3] that a ground is made of."""
    scene = Scene('one', None, ground, colours)
    return draw.render(row(scene, 24, 24)[None], 24, 24)[0].reshape(3, -1).T


@functools.cache
def stands_out(ground, colours, how=''):
    """The named colours in which a thing can be told from a ground: plain, in a style, or lit."""
    shades = ground_shades(ground, colours)
    tones = draw.PALETTE[None]
    if how == 'striped':
        tones = draw.second_stripe(np, draw.PALETTE)[None]
        shades = np.concatenate([shades, shades * draw.SHADOW])
    if how == 'glossy':  # where it shines, it has all shades between its colour's and white
        shades = np.concatenate([shades * share for share in (1, .9, .8, .7, .6, .5)])
    if how == 'lit':  # its bright and its dark side, not to be taken for a shadow either
        shades = np.concatenate([shades, shades * .84, shades * draw.SHADOW])
        tones = np.stack([draw.PALETTE * .65 + .35, draw.PALETTE * .6, draw.PALETTE])
    def far(shades, least):
        return np.abs(tones[:, :, None] - shades).max(-1).min((0, 2)) > least
    is_far = far(shades, .12 if how == 'lit' else .2) & far(shades * draw.SHADOW, .1)
    return frozenset(name for name, is_one in zip(draw.COLOURS, is_far) if is_one)


class NothingFits(Exception):
    """On this ground, no colour and shape may be combined."""


class Sampler:
    """Scenes by chance."""

    def __init__(self, seed, held_out=False, layouts=None):
        self.random = random.Random(seed)
        self.held_out = held_out
        self.layouts = layouts or dict(one=26, two=27, three=6, alike=9, sign=24, with_sign=8)

    def pick(self, weights):
        return self.random.choices(list(weights), list(weights.values()))[0]

    def scene(self):
        while True:
            try:
                return self.attempt()
            except NothingFits:
                pass

    def attempt(self):
        layout = self.pick(self.layouts)
        ground = self.pick({'plain': 8, 'gradient': 2, 'checkerboard': 1, 'night sky': 2,
                            'sunset': 2, 'meadow': 2})
        colours = tuple(self.random.sample(list(draw.COLOURS), 2))
        scene = Scene(layout.replace('_', ' '), None, ground, colours, seed=self.random.random())
        self.taken = set(draw.COLOURS) - stands_out(ground, colours)
        self.stands_out = {style: stands_out(ground, colours, style)
                           for style in ('striped', 'glossy')}
        if 'sign' not in layout:
            self.light(scene)
        getattr(self, layout)(scene)
        if self.random.random() < .06:
            scene.ground_said = False
        return scene

    def light(self, scene):
        scene.light = self.pick({'': 7, 'left': 1.5, 'right': 1.5})
        dark = scene.ground == 'night sky' or 'black' in self.taken
        scene.long_shadows = not dark and self.random.random() < .15
        if scene.light:
            self.taken |= set(draw.COLOURS) - stands_out(scene.ground, scene.colours, 'lit')

    def thing(self, where, sizes, shapes=None, styles=True, taken=()):
        size = self.pick(sizes)
        fine = 1 if self.held_out else 1.6  # what is hard is practised more
        styles = {'': 6, 'glossy': 2, 'striped': fine, 'outlined': fine} if styles else {'': 1}
        style = self.pick(styles)
        if style in ('outlined', 'striped') and size == 'tiny':
            style = ''
        shapes = shapes or draw.SHAPES
        colours = [c for c in draw.COLOURS if c not in self.taken and c not in taken]
        if not any(held_out(colour, shape, where) == self.held_out
                   for colour in colours for shape in shapes):
            raise NothingFits
        while True:
            colour, shape = self.random.choice(colours), self.random.choice(shapes)
            if held_out(colour, shape, where) == self.held_out:
                break
        if colour not in self.stands_out.get(style, [colour]):
            style = ''
        radius = SIZES[size] * self.random.uniform(.95, 1.04)
        return Thing(colour, shape, size, style, radius=radius)

    def put(self, scene, thing, x, y, jitter=.03):
        thing.x = x + self.random.uniform(-jitter, jitter)
        thing.y = y + self.random.uniform(-jitter, jitter)
        scene.things.append(thing)

    def one(self, scene):
        scene.where = self.random.choice(list(PLACES))
        sizes = {'tiny': 1, 'small': 3, '': 5, 'large': 3}
        if scene.where == 'in the center':
            sizes['huge'] = 3
            scene.where_said = self.random.random() < .6
        self.put(scene, self.thing(scene.where, sizes), *PLACES[scene.where])

    def two(self, scene):
        scene.where = self.random.choice(list(RELATIONS))
        if scene.where == 'inside':
            outer = self.thing('outside', {'huge': 1}, OUTER, styles=False)
            inner = self.thing('inside', {'small': 1}, styles=False, taken=[outer.colour])
            inner.casts = False
            self.put(scene, inner, 0, 0)
            self.put(scene, outer, 0, 0)
            return
        x, y = RELATIONS[scene.where]
        sizes = {'tiny': 1, 'small': 3, '': 5, 'large': 2}
        for turn, sign in enumerate((1, -1)):
            self.put(scene, self.thing(f'{scene.where} {turn}', sizes), sign * x, sign * y, .02)

    def three(self, scene):
        scene.where = self.pick({'row': 7, 'column': 3})
        for place in (-.6, 0, .6):
            thing = self.thing(scene.where, {'small': 1}, styles=False)
            self.put(scene, thing, *((place, 0) if scene.where == 'row' else (0, place)))

    def alike(self, scene):
        count = self.random.choice(list(ALIKE))
        places = self.random.choice(ALIKE[count])
        scene.where_said = False
        model = self.thing(NUMBERS[count], {'tiny': 1, 'small': 2, '': 4 if count == 2 else 0})
        for x, y in places:
            self.put(scene, Thing(**vars(model)), x, y)

    def word(self):
        letters = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'
        while True:
            word = self.random.choice(WORDS)
            if self.random.random() < .35 and not self.held_out:
                word = ''.join(self.random.choices(letters, k=self.random.randint(2, 6)))
            if held_out(word) == self.held_out:
                return word

    def sign(self, scene, y=0.):
        boards = {c: 1 for c in draw.COLOURS if c not in self.taken | {'gray', 'brown'}}
        if 'white' in boards:
            boards['white'] = 8
        scene.sign = Sign(self.word(), self.pick(boards), self.random.uniform(-.02, .02),
                          y + self.random.uniform(-.03, .03))
        if not y:
            scene.where_said = False

    def with_sign(self, scene):
        scene.where = self.pick({'above': 1, 'below': 1})
        self.sign(scene, .5 if scene.where == 'above' else -.5)
        thing = self.thing('sign', {'tiny': 1, 'small': 3, '': 4}, taken=[scene.sign.board])
        self.put(scene, thing, 0, RELATIONS[scene.where][1])


# Words for the same; the first is the canonical one.
SIZE_WORDS = {'large': ['large', 'large', 'big'], 'huge': ['huge', 'huge', 'giant']}
PLACE_WORDS = {'in the center': ['in the center', 'in the center', 'in the middle'],
               'on the left': ['on the left', 'on the left', 'on the left side'],
               'on the right': ['on the right', 'on the right', 'on the right side'],
               'at the top': ['at the top', 'at the top', 'near the top'],
               'at the bottom': ['at the bottom', 'at the bottom', 'near the bottom']}
RELATION_WORDS = {'to the left of': ['to the left of', 'to the left of', 'left of'],
                  'to the right of': ['to the right of', 'to the right of', 'right of'],
                  'below': ['below', 'below', 'under'], 'next to': ['next to', 'beside'],
                  'inside': ['inside', 'inside', 'in']}
COLOUR_WORDS = {'gray': ['gray', 'gray', 'grey']}


class Speaker:
    """Captions for scenes, in words by chance; a plain speaker takes the canonical ones."""

    def __init__(self, seed, plain=False):
        self.random = random.Random(seed)
        self.plain = plain

    def word(self, table, key):
        words = table.get(key, [key])
        return words[0] if self.plain else self.random.choice(words)

    def chance(self, share):
        return not self.plain and self.random.random() < share

    def name(self, thing, count=1):
        colour = self.word(COLOUR_WORDS, thing.colour)
        shape = thing.shape
        if count > 1:
            shape += 'es' if shape == 'cross' else 's'
        words = [self.word(SIZE_WORDS, thing.size), thing.style]
        if self.chance(.06):
            words += [shape, 'in', colour]
        else:
            words += [colour, shape]
        text = ' '.join(word for word in words if word)
        return f'{NUMBERS[count]} {text}' if count > 1 else article(text)

    def sign(self, scene):
        board = '' if scene.sign.board == 'white' else self.word(COLOUR_WORDS, scene.sign.board)
        text = article(f'{board} sign'.strip())
        says = 'with the word' if self.chance(.15) else 'that says'
        word = f'"{scene.sign.word}"' if self.chance(.3) else scene.sign.word
        return f'{text} {says} {word}'

    def body(self, scene):
        things = scene.things
        if scene.layout == 'one':
            place = ' ' + self.word(PLACE_WORDS, scene.where) if scene.where_said else ''
            return self.name(things[0]) + place
        if scene.layout == 'two':
            relation = self.word(RELATION_WORDS, scene.where)
            return f'{self.name(things[0])} {relation} {self.name(things[1])}'
        if scene.layout == 'three':
            first, second, third = map(self.name, things)
            return f'{first}, {second} and {third} in a {scene.where}'
        if scene.layout == 'alike':
            return self.name(things[0], len(things))
        if scene.layout == 'sign':
            return self.sign(scene)
        if self.chance(.4):
            turned = {'above': 'below', 'below': 'above'}[scene.where]
            return f'{self.sign(scene)} {turned} {self.name(things[0])}'
        relation = self.word(RELATION_WORDS, scene.where)
        return f'{self.name(things[0])} {relation} {self.sign(scene)}'

    def ground(self, scene):
        first, second = (self.word(COLOUR_WORDS, colour) for colour in scene.colours)
        on = 'against' if self.chance(.1) else 'on'
        return {'plain': f'{on} {article(first)} background',
                'gradient': f'{on} {article(first)} to {second} gradient',
                'checkerboard': f'{on} {article(first)} and {second} checkerboard',
                'night sky': 'at night' if self.chance(.2) else 'in the night sky',
                'sunset': 'at sunset', 'meadow': 'over a green meadow'}[scene.ground]

    def light(self, scene):
        lit = f'lit from the {scene.light}' if scene.light else ''
        if not scene.long_shadows:
            return lit
        return f'{lit} with long shadows' if lit else 'with long shadows'

    def caption(self, scene):
        parts = [self.body(scene)]
        ground = self.ground(scene) if scene.ground_said else ''
        light = self.light(scene)
        turned = ground and self.chance(.1)
        if turned:
            parts[0] = f'{ground}, {parts[0]}'
        elif ground:
            parts[0] += f' {ground}'
        if light:
            parts.append(light)
        text = ', '.join(parts)
        if not turned and self.chance(.3):
            kind = self.random.choice(['picture', 'image', 'painting', 'drawing'])
            text = f'{article(kind)} of {text}'
        if self.chance(.15):
            text = text[0].upper() + text[1:]
        return text + '.' if self.chance(.1) else text


def article(text):
    return ('an ' if text[0] in 'aeiou' else 'a ') + text


def row(scene, width, height):
    """The numbers that draw.render() paints the scene from, in a picture of this size."""
    colours = list(draw.COLOURS)
    half_width, half_height = width / min(width, height), height / min(width, height)
    numbers = np.zeros(draw.NUMBERS, np.float32)
    numbers[:6] = (draw.GROUNDS.index(scene.ground), *map(colours.index, scene.colours), scene.seed,
                   {'left': 1, 'right': -1, '': 0}[scene.light], scene.long_shadows)
    # What lies behind is painted first: of two, one inside the other, the second.
    for slot, thing in enumerate(reversed(scene.things)):
        at = draw.FIRST_THING + slot * draw.THING_NUMBERS
        numbers[at:at + draw.THING_NUMBERS] = (
            1, draw.SHAPES.index(thing.shape), draw.STYLES.index(thing.style), thing.x * half_width,
            thing.y * half_height, thing.radius, colours.index(thing.colour), thing.casts)
    numbers[draw.SIGN + 6:] = -1
    if scene.sign:
        sign = scene.sign
        numbers[draw.SIGN:draw.SIGN + 6] = (
            1, sign.x * half_width, sign.y * half_height, sign.half_width,
            colours.index(sign.board), colours.index(sign.ink))
        word = [ord(letter) - ord('A') for letter in sign.word]
        numbers[draw.SIGN + 6:draw.SIGN + 6 + len(word)] = word
    return numbers
