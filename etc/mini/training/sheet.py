#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Sixteen fixed prompts, painted through the mounted directory, on one sheet.

usage: sheet.py --fluxfs BINARY [--model FOLDER] [--steps N] [--columns N] [--only N[,N …]]
                OUT.png
"""
import argparse

from PIL import Image

import painter

PROMPTS = [
    'a large red circle on a white background',
    'a small blue star to the left of a large yellow moon in the night sky',
    'a green triangle above a purple square on a gray background',
    'a glossy orange circle at sunset',
    'a small white heart inside a huge red square on a black background',
    'a small red square, a small green circle and a small blue triangle in a row on a white '
    'background',
    'a huge glossy pink heart over a green meadow, lit from the left',
    'a striped blue hexagon on the right on a yellow to pink gradient',
    'three small glossy cyan stars on a purple background, with long shadows',
    'a sign that says OPEN on a blue background',
    'a brown diamond below a white moon in the night sky',
    'a glossy red ring on a white and black checkerboard',
    'a sign that says FLUX above a yellow star at sunset',
    'five tiny orange hearts on a cyan background',
    'a large purple cross, lit from the right with long shadows, on a yellow background',
    'a red sign that says COFFEE over a green meadow']


def assemble(pictures, columns=4, side=192):
    """Pictures of one size on a sheet, each `side` pixels wide."""
    width, height = pictures[0].size
    height = height * side // width
    rows = -(-len(pictures) // columns)
    sheet = Image.new('RGB', (columns * side, rows * height), 'white')
    for number, picture in enumerate(pictures):
        at = number % columns * side, number // columns * height
        sheet.paste(picture.resize((side, height), Image.LANCZOS), at)
    return sheet


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--fluxfs', required=True)
    parser.add_argument('--model')
    parser.add_argument('--steps', type=int, default=20)
    parser.add_argument('--columns', type=int, default=4)
    parser.add_argument('--only', help='numbers of prompts, from 0')
    parser.add_argument('out')
    options = parser.parse_args()
    chosen = range(len(PROMPTS)) if options.only is None else map(int, options.only.split(','))
    prompts = [f'{PROMPTS[number]} --steps {options.steps} --size 256 --seed {number}\n'
               for number in chosen]
    with painter.mounted(options.fluxfs, options.model) as mount:
        pictures = list(painter.paint(mount, prompts))
    assemble(pictures, options.columns).save(options.out, optimize=True)


if __name__ == '__main__':
    main()
