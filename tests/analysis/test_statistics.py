"""Rows by variant and seed, accuracies over seeds, and the sampling error of the test images."""

import dataclasses
import math

import numpy as np
import pytest

from vitpos.analysis.comparison import Comparison
from vitpos.analysis.statistics import Variant, difference_sampling_error, group, sampling_error, summarize
from vitpos.errors import VitposError

PLAN = Comparison("first", "Is it enough?", "learned")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"margin": -1.0}, r"margin is -1\.0; it must be from 0 to 100"),
        ({"margin": math.nan}, "margin is nan"),
        ({"alpha": 0.0}, r"alpha is 0\.0; it must be above 0 and below 1"),
        ({"alpha": 1.0}, "alpha is 1"),
        ({"metric": "tst/accuracy"}, r"unknown metric 'tst/accuracy'; did you mean 'test/accuracy'"),
        ({"metric": "test/loss"}, r"unknown metric 'test/loss'"),
        ({"reference": " "}, r"comparison\.reference is empty"),
        ({"correction": "bonferoni"}, r"unknown correction 'bonferoni'; did you mean 'bonferroni'"),
    ],
)
def test_comparison_refuses(change, message):
    with pytest.raises(VitposError, match=message) as caught:
        dataclasses.replace(PLAN, **change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("correction", "level"), [("holm", 0.01), ("bonferroni", 0.01), ("none", 0.05)])
def test_level_of_one_comparison(correction, level):
    assert dataclasses.replace(PLAN, correction=correction).level(5) == level


def test_variant_label_and_kind():
    variant = Variant.of({"position": "a(x=(1, 2), y=3) + b(z=1)", "model.depth": 6, "data.name": "digits"})
    assert variant.label == "a(x=(1, 2), y=3) + b(z=1), data.name=digits, model.depth=6"
    assert variant.kind == "a+b"


def test_rows_that_cannot_be_analysed(row):
    with pytest.raises(VitposError, match="no finished runs"):
        group([])
    with pytest.raises(VitposError, match=r"two runs of x with seed 0 \(hashes x-0 and x-0\)"):
        group([row("x", 0, 0.5), row("x", 0, 0.6)])


def test_summary_is_the_t_interval_of_the_mean():
    s = summarize([50.0, 52.0, 51.0, math.nan], 0.95)
    assert (s.n, s.bad, s.mean, s.sd) == (3, 1, 51, 1)
    assert s.high - s.mean == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)  # t(.975, 2) by table
    assert s.mean - s.low == pytest.approx(s.high - s.mean)


@pytest.mark.parametrize("values", [[], [50.0], [50.0, 50.0]])
def test_summary_without_an_interval(values):
    s = summarize(values, 0.95)
    assert (s.n, s.bad) == (len(values), 0)
    assert math.isnan(s.low)


def test_sampling_error_is_that_of_a_share_of_images():
    right = np.arange(10_000) < 4600
    assert sampling_error(46.0, 10_000) == pytest.approx(100 * right.std() / 100, rel=1e-9)
    drawn = np.random.default_rng(0).binomial(400, 0.9, 20_000) / 4
    assert sampling_error(90.0, 400) == pytest.approx(drawn.std(), rel=0.02)


def test_sampling_error_of_a_difference_is_at_most_that_of_images_of_their_own():
    rng = np.random.default_rng(0)
    easy = rng.random(400_000)  # both schemes find the same images hard
    one, other = (rng.random(len(easy)) < easy for _ in range(2))
    found = (100 * (one.reshape(1000, 400).mean(1) - other.reshape(1000, 400).mean(1))).std()
    bound = difference_sampling_error(50.0, 50.0, 400)
    assert bound == pytest.approx(100 * math.sqrt(0.5 / 400))
    assert 0.5 * bound < found < 0.95 * bound
    apart = (100 * (rng.binomial(400, 0.5, 20_000) - rng.binomial(400, 0.5, 20_000)) / 400).std()
    assert apart == pytest.approx(bound, rel=0.02)  # reached where being right is not related
