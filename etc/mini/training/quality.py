#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Measures how well a model paints what it is told: held-out prompts, painted through the mounted
directory, judged from the pixels.

usage: quality.py --fluxfs BINARY [--model FOLDER] [--prompts N] [--steps N[,N …]] [--guidance G]
                  [--keep FOLDER] [--vae]
       quality.py --truth [--prompts N]

Prints a table in Markdown. --truth judges the scenes as draw.py paints them instead: what the judge
itself is worth. --vae measures the autoencoder too (needs PyTorch). --keep saves the pictures, those
with a fault under their fault's name.
"""
import argparse
import os
import re
import sys

import numpy as np
from PIL import Image

import draw
import judge
import painter
import scenes
from verdict import verdict

# Of 200 prompts, how many of each layout.
LAYOUTS = {'one': 80, 'two': 60, 'sign': 25, 'with_sign': 5, 'alike': 15, 'three': 15}
ROWS = {'one object': ['one'], 'two objects': ['two'], 'three objects': ['three'],
        'two to five alike': ['alike'], 'signs': ['sign', 'with sign']}
SIZE = 256


def held_out_scenes(count, seed=7):
    """Scenes never made in training, with their captions, layout after layout."""
    total, found = sum(LAYOUTS.values()), []
    speaker = scenes.Speaker(seed)
    for name, share in LAYOUTS.items():
        sampler = scenes.Sampler(f'{seed} {name}', held_out=True, layouts={name: 1})
        for _ in range(round(count * share / total)):
            scene = sampler.scene()
            found.append((scene, speaker.caption(scene)))
    return found


def painted_by_hand(scene, size=SIZE):
    """A scene as it should look, an RGB image of bytes."""
    picture = draw.render(scenes.row(scene, size, size)[None], size, size)[0]
    return (picture.transpose(1, 2, 0) * 255 + .5).astype(np.uint8)


def share(rights):
    return f'{100 * sum(rights) / len(rights):.0f} % of {len(rights)}' if rights else '–'


def table(columns):
    """Columns {title: [(scene, verdict)]} as Markdown."""
    lines = [' | '.join(['', *columns]), ' | '.join(['---'] * (len(columns) + 1))]
    for title, layouts in ROWS.items():
        cells = [share([all(right.values()) for scene, right in column if scene.layout in layouts])
                 for column in columns.values()]
        lines.append(' | '.join([f'{title}: everything right', *cells]))
    names = dict.fromkeys(name for column in columns.values() for _, right in column
                          for name in right)
    for name in names:
        cells = [share([right[name] for _, right in column if name in right])
                 for column in columns.values()]
        lines.append(' | '.join([f'{name} right', *cells]))
    return '\n'.join(f'| {line} |' for line in lines)


def judge_all(tests, pictures, keep=None):
    results = []
    for number, ((scene, caption), picture) in enumerate(zip(tests, pictures)):
        right = verdict(scene, judge.look(np.asarray(picture)))
        results.append((scene, right))
        if keep:
            os.makedirs(keep, exist_ok=True)
            wrong = '-'.join(name for name, is_right in right.items() if not is_right) or 'right'
            name = re.sub('[^a-zA-Z0-9]+', '-', caption)[:100]
            Image.fromarray(np.asarray(picture)).save(f'{keep}/{number:03}-{wrong}-{name}.png')
    return results


def with_options(options, tests, steps):
    return [f'{caption} --steps {steps} --guidance {options.guidance} --size {SIZE} --seed {seed}\n'
            for seed, (_, caption) in enumerate(tests)]


def vae_psnr(folder, tests):
    """Of the autoencoder's reconstructions, over all pixels of all scenes, in dB."""
    import torch
    import model
    import store
    weights, config = store.load_part(folder, 'vae')
    error = []
    with torch.no_grad():
        for scene, _ in tests:
            picture = torch.from_numpy(draw.render(scenes.row(scene, SIZE, SIZE)[None], SIZE, SIZE))
            mean, _ = model.encode(weights, config, picture * 2 - 1)
            again = (model.decode(weights, config, mean) / 2 + .5).clamp(0, 1)
            error.append((again - picture).square().mean().item())
    return -10 * np.log10(np.mean(error))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--fluxfs')
    parser.add_argument('--model', default=f'{os.path.dirname(os.path.abspath(__file__))}/..')
    parser.add_argument('--prompts', type=int, default=200)
    parser.add_argument('--steps', default='20,8')
    parser.add_argument('--guidance', default='3.5')
    parser.add_argument('--keep')
    parser.add_argument('--vae', action='store_true')
    parser.add_argument('--truth', action='store_true')
    options = parser.parse_args()
    tests = held_out_scenes(options.prompts)
    columns = {}
    if options.truth:
        columns['the truth'] = judge_all(tests, map(painted_by_hand, [scene for scene, _ in tests]),
                                         options.keep)
    elif not options.fluxfs:
        sys.exit('quality.py: --fluxfs BINARY says what to paint with (or --truth)')
    else:
        with painter.mounted(options.fluxfs, options.model) as mount:
            for steps in options.steps.split(','):
                keep = f'{options.keep}/{steps}' if options.keep else None
                pictures = painter.paint(mount, with_options(options, tests, steps))
                columns[f'{steps} steps'] = judge_all(tests, pictures, keep)
    print(table(columns))
    if options.vae:
        print(f'\nautoencoder: {vae_psnr(options.model, tests[::5]):.1f} dB PSNR')


if __name__ == '__main__':
    main()
