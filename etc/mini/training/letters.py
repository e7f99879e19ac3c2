# SPDX-License-Identifier: MIT
"""An alphabet of our own: capitals as strokes on a grid, and the atlas they are painted from."""
import numpy as np

# Strokes as corners "xy" on a grid 4 wide and 6 high, y downwards; '/' lifts the pen.
STROKES = {
    'A': '06 20 46/14 34', 'B': '00 06 36 45 44 33 03/00 30 41 42 33',
    'C': '41 30 10 01 05 16 36 45',
    'D': '00 06 26 44 42 20 00', 'E': '40 00 06 46/03 33', 'F': '40 00 06/03 33',
    'G': '41 30 10 01 05 16 36 45 43 23', 'H': '00 06/40 46/03 43', 'I': '10 30/20 26/16 36',
    'J': '40 45 36 16 05', 'K': '00 06/40 03 46', 'L': '00 06 46', 'M': '06 00 23 40 46',
    'N': '06 00 46 40', 'O': '10 30 41 45 36 16 05 01 10', 'P': '06 00 30 41 42 33 03',
    'Q': '10 30 41 45 36 16 05 01 10/24 46', 'R': '06 00 30 41 42 33 03/23 46',
    'S': '41 30 10 01 02 13 33 44 45 36 16 05', 'T': '00 40/20 26', 'U': '00 05 16 36 45 40',
    'V': '00 26 40', 'W': '00 16 23 36 40', 'X': '00 46/40 06', 'Y': '00 23 40/23 26',
    'Z': '00 40 06 46'}
ALPHABET = ''.join(STROKES)
WIDTH, HEIGHT = 4, 6   # of a letter, in grid units
ADVANCE = 6            # from one letter to the next
STROKE = .55           # half the thickness of a stroke
MARGIN = 1             # grid units around a letter in the atlas
PER_UNIT = 8           # atlas samples a grid unit


def _distance(strokes, x, y):
    """Distance of points to the nearest stroke, in grid units."""
    nearest = np.full(x.shape, 99.)
    for stroke in strokes.split('/'):
        corners = [(int(c[0]), int(c[1])) for c in stroke.split()]
        for (ax, ay), (bx, by) in zip(corners, corners[1:]):
            dx, dy = bx - ax, by - ay
            along = np.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy), 0, 1)
            nearest = np.minimum(nearest, np.hypot(x - ax - along * dx, y - ay - along * dy))
    return nearest


def atlas():
    """[26, rows, columns] float32: signed distance to each letter's ink, negative inside, in grid
    units. Sample (i, j) lies at x = j / PER_UNIT - MARGIN, y = i / PER_UNIT - MARGIN."""
    columns = (WIDTH + 2 * MARGIN) * PER_UNIT + 1
    rows = (HEIGHT + 2 * MARGIN) * PER_UNIT + 1
    y, x = np.meshgrid(np.arange(rows) / PER_UNIT - MARGIN, np.arange(columns) / PER_UNIT - MARGIN,
                       indexing='ij')
    return np.stack([_distance(s, x, y) - STROKE for s in STROKES.values()]).astype(np.float32)
