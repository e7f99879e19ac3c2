# SPDX-License-Identifier: MIT
"""Compares what a picture shows (judge.Picture) with what its caption states (scenes.Scene)."""
import itertools

import scenes

APART = .2     # of two things beside one another: at least, in half pictures
LEVEL = .35    # and at most in the other direction


def _place(thing):
    """The nearest of the nine places."""
    x, y = (0 if abs(value) < .25 else .5 if value > 0 else -.5 for value in (thing.x, thing.y))
    return next(name for name, place in scenes.PLACES.items() if place == (x, y))


def _related(first, relation, second):
    dx, dy = second.x - first.x, second.y - first.y
    if relation == 'inside':
        return max(abs(dx), abs(dy)) < .25 and first.radius < second.radius
    level = abs(dy) < LEVEL if relation in ('to the left of', 'to the right of', 'next to') \
        else abs(dx) < LEVEL
    return level and {'to the left of': dx, 'to the right of': -dx, 'above': dy, 'below': -dy,
                      'next to': abs(dx)}[relation] > APART


def _placed(scene, things, sign_y):
    if scene.layout == 'one':
        return _place(things[0]) == scene.where
    if scene.layout == 'two':
        return _related(things[0], scene.where, things[1])
    if scene.layout == 'three':
        along = [thing.x if scene.where == 'row' else thing.y for thing in things]
        return along[1] - along[0] > APART and along[2] - along[1] > APART
    return (things[0].y < sign_y) == (scene.where == 'above')


def _of_things(scene, things, sign_y):
    """What is right about the things, if they are these."""
    pairs = list(zip(scene.things, things))
    right = {'shape': all(a.shape == b.shape for a, b in pairs),
             'colour': all(a.colour == b.colour for a, b in pairs)}
    if any(thing.size for thing in scene.things):
        right['size'] = all(a.size in ('', b.size) for a, b in pairs)
    if any(thing.style for thing in scene.things):
        right['style'] = all(a.style in ('', b.style) for a, b in pairs)
    if scene.where_said:
        right['place'] = _placed(scene, things, sign_y)
    return right


def verdict(scene, picture):
    """Which of the attributes that the caption states are right, as {name: whether}."""
    right = {}
    wanted, seen = scene.things, picture.things
    if wanted:
        right['count'] = len(seen) == len(wanted)
        # With too few or too many, the best that can be said of them is said.
        whole = sorted(seen, key=lambda thing: -thing.radius)[:5]
        whole += [whole[-1]] * (len(wanted) - len(whole)) if whole else []
        every = [_of_things(scene, things, picture.sign_y)
                 for things in itertools.permutations(whole, len(wanted))]
        nothing = {name: False for name in ('shape', 'colour')}
        right |= max(every, key=lambda one: sum(one.values()), default=nothing)
        if scene.light or scene.long_shadows:
            right['light'] = (scene.light, scene.long_shadows) == (picture.light,
                                                                   picture.long_shadows)
    if scene.ground_said:
        right['background'] = picture.ground == scene.ground and \
            picture.colours == scene.colours[:len(picture.colours)]
    if scene.sign:
        right['word'] = picture.sign == scene.sign.word
        right['board'] = picture.board == scene.sign.board
    return right
