"""Fixed biases by the papers' formulas, pair by pair."""

import math

import torch

from references import Pairs, reference
from vitpos.positions import Geometry, build

GRIDS = [(4, 4), (4, 6), (7, 3)]
DEPTH = 3


def compared(text, heads, expected) -> Pairs:
    """A scheme's bias, and that of a formula ``expected(layer, head, rows, columns)``, key minus query.

    What is hidden is given a bias of -100, so that differences are numbers.
    """
    for home in GRIDS:
        scheme = build(text, Geometry(home, heads, heads, DEPTH))
        for grid in GRIDS:
            patches = [(r, c) for r in range(grid[0]) for c in range(grid[1])]
            q = torch.zeros(1, heads, len(patches), 1)
            for layer in range(DEPTH):
                by_hand = [
                    [[max(expected(layer, h, y - r, x - c), -100) for y, x in patches] for r, c in patches]
                    for h in range(heads)
                ]
                yield scheme.bias(q, q, grid, layer).clamp(min=-100), torch.tensor(by_hand)


# Press et al. 2022, section 3, for 8 heads 1/2, 1/4, ..., 1/256; and for 3 and 6 heads by its rule.
SLOPES = {
    8: [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256],
    3: [1 / 16, 1 / 256, 1 / 4],
    6: [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8],
}


@reference("alibi_2d", "Fuller et al. (CROMA), pair by pair", 1e-6)  # float32 distances up to 7.2
def alibi_2d_by_hand() -> Pairs:
    for heads, slopes in SLOPES.items():
        for factor in (1, 3):

            def expected(layer, head, rows, columns, slopes=slopes, factor=factor):
                return -factor * slopes[head] * math.hypot(rows, columns)

            yield from compared(f"alibi_2d(slope={factor})", heads, expected)


# Where the 8 directed heads of 12 look, in degrees from right towards up.
LOOKS = {
    180: [90, 270, 180, 0, 45, 135, 315, 225],
    90: [135, 45, 225, 315, 90, 270, 180, 0],
    45: [112.5, 247.5, 157.5, 22.5, 67.5, 292.5, 202.5, 337.5],
}


@reference("lookhere", "Fuller et al. (LookHere), 12 heads, pair by pair", 2e-6)  # float32 biases up to 10.8
def lookhere_by_hand() -> Pairs:
    slopes = [1 / 2] * 8 + [1 / 4, 1 / 16, 1 / 64, 1 / 256]
    layers = [1.5, 1.0, 0.5]
    for view, looks in LOOKS.items():

        def expected(layer, head, rows, columns, view=view, looks=looks):
            if head < 8 and (rows or columns):
                aside = (math.degrees(math.atan2(-rows, columns)) - looks[head] + 180) % 360 - 180
                if abs(aside) > view / 2 + 1e-6:
                    return -math.inf
            return -2 * layers[layer] * slopes[head] * math.hypot(rows, columns)

        yield from compared(f"lookhere(view={view})", 12, expected)
