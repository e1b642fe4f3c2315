"""Generated images whose label is a place."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from vitpos.data import where
from vitpos.data.sources import load
from vitpos.errors import VitposError

EVERY = pytest.mark.parametrize("task", where.TASKS)


def objects(image):
    """Finds the cells that hold an object: they are brighter than noise can be."""
    height, width = image.shape[1:]
    cells = image.max(0).reshape(height // 4, 4, width // 4, 4).max((1, 3))
    return [tuple(map(int, cell)) for cell in np.argwhere(cells >= 160)]


@EVERY
def test_images_follow_from_the_arguments_alone(task):
    images, labels = where.generate(task, 50)
    again, same = where.generate(task, 50)
    assert np.array_equal(images, again)
    assert np.array_equal(labels, same)
    assert not np.array_equal(images, where.generate(task, 50, seed=1)[0])


@EVERY
@pytest.mark.parametrize("grid", [(8, 8), (6, 6), (16, 12)])
def test_classes_are_balanced_on_any_grid(task, grid):
    images, labels = where.generate(task, 160, grid)
    assert images.shape == (160, 3, 4 * grid[0], 4 * grid[1])
    counts = np.bincount(labels, minlength=len(where.TASKS[task]))
    assert counts.max() - counts.min() <= 1


def test_a_label_of_place_is_the_region():
    for image, label in zip(*where.generate("place", 64), strict=True):
        [(row, column)] = objects(image)
        assert label == row // 2 * 4 + column // 2


def test_a_label_of_relation_is_seen_from_the_ring():
    for image, label in zip(*where.generate("relation", 64), strict=True):
        red = {
            cell
            for cell in objects(image)
            if image[0, 4 * cell[0] : 4 * cell[0] + 4, 4 * cell[1] : 4 * cell[1] + 4].max() >= 160
        }
        [cross], [ring] = red, set(objects(image)) - red
        down, right = cross[0] - ring[0], cross[1] - ring[1]
        ways = {
            "left": -right > abs(down),
            "right": right > abs(down),
            "above": -down > abs(right),
            "below": down > abs(right),
        }
        assert ways[where.TASKS["relation"][label]]


def test_a_label_of_distance_or_count_is_that():
    for image, label in zip(*where.generate("distance", 40), strict=True):
        (a, b), (c, d) = objects(image)
        assert max(abs(a - c), abs(b - d)) == label + 1
    for image, label in zip(*where.generate("count", 40), strict=True):
        assert len(objects(image)) == label + 1


@pytest.mark.parametrize("task", ["place", "relation"])
def test_a_linear_model_on_pooled_pixels_is_at_chance(task):
    images, labels = where.generate(task, 2400)
    x = images.astype(float) / 255
    pooled = np.concatenate([x.mean((2, 3)), x.std((2, 3)), (x > 0.3).mean((2, 3))], 1)
    pooled = (pooled - pooled.mean(0)) / (pooled.std(0) + 1e-9)
    fitted = LogisticRegression(max_iter=300).fit(pooled[:1200], labels[:1200])
    chance = 1 / len(where.TASKS[task])
    assert abs(fitted.score(pooled[1200:], labels[1200:]) - chance) < 4 * np.sqrt(chance * (1 - chance) / 1200)


def test_it_is_a_data_set_with_a_task():
    data = load("where", task="count")
    assert data.classes == tuple("12345678")
    assert [len(part) for part in (data.train, data.val, data.test)] == [7200, 800, 2000]
    assert data.repeated == (0, 0)
    assert load("where", task="count") is data


@pytest.mark.parametrize(
    ("name", "task", "line"),
    [("where", None, "needs data.task, one of place, relation"), ("where", "plaice", "did you mean 'place'"),
     ("digits", "place", "digits takes none")],
)  # fmt: skip
def test_a_task_that_cannot_be_is_named(name, task, line):
    with pytest.raises(VitposError, match=line):
        load(name, task=task)


def test_a_grid_that_is_too_small_is_refused():
    with pytest.raises(VitposError, match="5 x 8 cells is too small"):
        where.generate("distance", 5, (5, 8))
