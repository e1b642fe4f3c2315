import base64
import math

import numpy as np
import pytest
from scipy import stats

from vitpos.analysis import images


def row(flags, fingerprint="f00d"):
    return {
        "right": images.pack(np.array(flags, dtype=bool)),
        "per_class": {"count": [len(flags)]},
        "data": {"fingerprint": fingerprint},
    }


@pytest.mark.parametrize("count", [1, 7, 8, 9, 1001])
def test_flags_come_back(count):
    flags = np.random.default_rng(count).random(count) < 0.7
    assert images.right(row(flags)).tolist() == flags.tolist()


def test_bits_are_as_the_text_says():
    assert base64.b64decode(images.pack(np.array([1, 0, 0, 0, 0, 0, 0, 1, 1], dtype=bool))) == bytes([0b10000001, 128])


def test_a_row_that_does_not_say():
    assert images.right({"data": {}}) is None
    assert math.isnan(images.sampling_error([{"data": {"fingerprint": "f00d"}}], [row([1, 0])]))


def test_error_of_one_pair_is_that_of_the_paired_differences():
    one, other = np.random.default_rng(0).random((2, 400)) < [[0.6], [0.5]]
    expected = 100 * stats.sem(one.astype(float) - other)
    assert images.sampling_error([row(one)], [row(other)]) == pytest.approx(expected, rel=1e-12)
    assert images.sampling_error([row(one)], [row(one)]) == 0


def test_error_is_of_the_mean_over_seeds_and_moves_as_a_difference_on_other_images_does():
    rng = np.random.default_rng(1)
    hard = rng.random(20_000)  # images differ; both schemes find the same ones hard
    ours, theirs = ((rng.random((3, len(hard))) < np.clip(hard + shift, 0, 1)) for shift in (0.05, 0.0))
    n, means, errors = 500, [], []
    for start in range(0, len(hard), n):
        part = slice(start, start + n)
        means.append(100 * (ours[:, part].mean() - theirs[:, part].mean()))
        errors.append(images.sampling_error([row(f[part]) for f in ours], [row(f[part]) for f in theirs]))
    # a deviation from 40 means is itself good to 100 / sqrt(2 * 39) = 11 percent
    assert np.std(means, ddof=1) == pytest.approx(np.mean(errors), rel=0.3)


def test_other_images_have_no_paired_error():
    assert math.isnan(images.sampling_error([row([1, 0, 1])], [row([1, 0])]))
    assert math.isnan(images.sampling_error([row([1, 0])], [row([1, 0], "beef")]))
    assert math.isnan(images.sampling_error([], [row([1, 0])]))
    assert math.isnan(images.sampling_error([row([1])], [row([1])]))
