"""Generated images whose label is a place, a relation, a distance, a count, or does not depend on place at all.

An image is a grid of cells of 4 x 4 pixels. Every pixel is dark noise, and some cells hold a bright object: one of six
shapes, each in its own colour. Objects fill whole cells, so a ViT with patches of 4 (or 2 or 1) pixels sees an object
as the same patch wherever it is: the multiset of patches says nothing about place.

| task | objects | label |
| --- | --- | --- |
| ``place`` | one of any shape | which of 4 x 4 equal regions of the image it is in |
| ``relation`` | a cross and a ring | whether the cross is left of, right of, above or below the ring |
| ``distance`` | two of one shape | the larger of their distances in rows and columns, 1 to 5 cells |
| ``count`` | 1 to 8 of one shape | how many |
| ``shape`` | one of any shape | its shape, wherever it is |

``place`` is absolute, ``relation`` and ``distance`` are relative: a model without positions is at chance on them.
``count`` and ``shape`` need no positions, so a scheme that loses them does harm.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from vitpos.data.images import Images, Raw, canonical
from vitpos.errors import VitposError, unknown

CELL = 4
"""Pixels of the side of a cell."""
TASKS = {
    "place": tuple(f"row {row}, column {column}" for row in range(4) for column in range(4)),
    "relation": ("left", "right", "above", "below"),
    "distance": ("1", "2", "3", "4", "5"),
    "count": tuple(map(str, range(1, 9))),
    "shape": ("cross", "ring", "bar", "slash", "dots", "block"),
}
"""The classes of each task."""
_SHAPES = np.array(
    [
        [[1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1]],
        [[0, 1, 1, 0], [1, 0, 0, 1], [1, 0, 0, 1], [0, 1, 1, 0]],
        [[0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]],
        [[0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 0]],
        [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]],
        [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]],
    ],
    dtype=np.uint8,
)
_COLOURS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]], dtype=np.uint8)
_NOISE, _BRIGHT, _IMAGES = 64, 160, 10_000


@lru_cache
def load(task: str) -> Images:
    """Returns the images of a task: 10,000 of 32 x 32 pixels, the same for everybody, split into 72 / 8 / 20 %.

    Raises:
        VitposError: There is no such task.
    """
    images, labels = generate(task, _IMAGES)
    return canonical(f"where/{task}", Raw(TASKS[task], images, labels))


def generate(
    task: str, count: int, grid: tuple[int, int] = (8, 8), seed: int = 0
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Generates images of a task; they follow from the arguments alone.

    Args:
        task: One of `TASKS`.
        count: How many. Classes are equally frequent, or differ by one.
        grid: Rows and columns of cells.
        seed: Seed of the images.

    Returns:
        Images (count, 3, 4 rows, 4 columns) and labels (count,).

    Raises:
        VitposError: There is no such task, or the grid is too small for it.
    """
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    rows, columns = grid
    if min(rows, columns) < 6:
        raise VitposError(f"a grid of {rows} x {columns} cells is too small for the tasks of where; use 6 x 6 or more")
    draws = np.random.default_rng([seed, list(TASKS).index(task), rows, columns])
    images = draws.integers(0, _NOISE, (count, 3, CELL * rows, CELL * columns), dtype=np.uint8)
    labels = draws.permutation(np.arange(count) % len(TASKS[task]))
    for image, label in zip(images, labels, strict=True):
        cells, shapes = _objects(task, int(label), grid, draws)
        for (row, column), shape in zip(cells, shapes, strict=True):
            mask = _COLOURS[shape][:, None, None] * _SHAPES[shape]  # (3, 4, 4)
            part = image[:, CELL * row : CELL * (row + 1), CELL * column : CELL * (column + 1)]
            part += np.uint8(_BRIGHT) * mask
    return images, labels.astype(np.int64)


def _objects(
    task: str, label: int, grid: tuple[int, int], draws: np.random.Generator
) -> tuple[list[tuple[int, int]], list[int]]:
    """Draws the cells and the shapes of the objects of one image."""
    places = np.argwhere(np.ones(grid, dtype=bool))  # (cells, 2)
    shape = int(draws.integers(len(_SHAPES)))
    if task == "place":
        regions = places[:, 0] * 4 // grid[0] * 4 + places[:, 1] * 4 // grid[1]
        return [_any(places[regions == label], draws)], [shape]
    if task in ("relation", "distance"):
        while True:  # the first cell is drawn until the second has a cell to be in
            first = draws.integers(grid)
            down, right = (places - first).T
            if task == "distance":
                fits = np.maximum(np.abs(down), np.abs(right)) == label + 1
            else:  # of the first, seen from the second
                fits = (right > np.abs(down), -right > np.abs(down), down > np.abs(right), -down > np.abs(right))[label]
            if fits.any():
                cells = [(int(first[0]), int(first[1])), _any(places[fits], draws)]
                return cells, [shape, shape] if task == "distance" else [0, 1]
    if task == "count":
        chosen = draws.choice(places, label + 1, replace=False)
        return [(int(row), int(column)) for row, column in chosen], [shape] * (label + 1)
    return [_any(places, draws)], [label]


def _any(places: npt.NDArray[np.intp], draws: np.random.Generator) -> tuple[int, int]:
    row, column = draws.choice(places)
    return int(row), int(column)
