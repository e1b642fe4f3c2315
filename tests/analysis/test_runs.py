"""The table of runs, accuracies over seeds, and what the rows say of images and classes."""

import base64
import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from vitpos.analysis import runs
from vitpos.analysis.runs import Variant
from vitpos.analysis.terms import Terms
from vitpos.errors import VitposError

TERMS = Terms("first", "Is it enough?", "learned")


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
def test_terms_refuse(change, message):
    with pytest.raises(VitposError, match=message) as caught:
        dataclasses.replace(TERMS, **change)
    assert "\n" not in str(caught.value)


def test_terms_in_words():
    assert (TERMS.confidence, TERMS.metric_label) == ("95 %", "test accuracy")
    assert dataclasses.replace(TERMS, metric="val/accuracy", alpha=0.1).metric_label == "validation accuracy"


def test_variant_label_and_kind():
    variant = Variant.of({"position": "a(x=(1, 2), y=3) + b(z=1)", "model.depth": 6, "data.name": "digits"})
    assert variant.label == "a(x=(1, 2), y=3) + b(z=1), data.name=digits, model.depth=6"
    assert variant.kind == "a+b"


def test_frame_has_a_run_a_row_in_order(row):
    found = runs.frame([row("x", 1, 0.5), row("learned", 0, 0.25), row("x", 0, None)], "test/accuracy")
    assert [(v.position, seed) for v, seed in zip(found["variant"], found["seed"], strict=True)] == [
        ("learned", 0), ("x", 0), ("x", 1),
    ]  # fmt: skip
    assert found["accuracy"].tolist() == pytest.approx([25, math.nan, 50], nan_ok=True)
    assert found["rms_start"].tolist() == [0.71] * 3


def test_rows_that_cannot_be_analysed(row):
    with pytest.raises(VitposError, match="no finished runs"):
        runs.frame([], "test/accuracy")
    with pytest.raises(VitposError, match=r"two runs of x with seed 0 \(hashes x-0 and x-0\)"):
        runs.frame([row("x", 0, 0.5), row("x", 0, 0.6)], "test/accuracy")


def test_settings_are_the_widest_in_the_order_of_their_values():
    found = [(("a", "10"),), (("a", "9.5"),), (), (("a", "None"),), (("a", "10"),), (("a", "b"),)]
    assert runs.settings(found) == [(("a", "None"),), (("a", "9.5"),), (("a", "10"),), (("a", "b"),)]
    assert runs.settings([()]) == [()]


def test_a_row_that_lacks_half_does_not_cost_the_others_their_columns():
    nan = math.nan
    table = pd.DataFrame([[1, 2, nan, 4], [1, nan, nan, nan], [1, 1, 1, 1.0]], index=["most", "few", "all"])
    kept = runs.complete(table)
    assert kept.index.tolist() == ["most", "all"]
    assert kept.columns.tolist() == [0, 1, 3]


def test_summary_is_the_t_interval_of_the_mean():
    s = runs.summarize([50.0, 52.0, 51.0, math.nan], 0.95)
    assert (s.n, s.bad, s.mean, s.sd) == (3, 1, 51, 1)
    assert s.high - s.mean == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)  # t(.975, 2) by table
    assert s.mean - s.low == pytest.approx(s.high - s.mean)
    for values in ([], [50.0], [50.0, 50.0]):
        s = runs.summarize(values, 0.95)
        assert (s.n, s.bad) == (len(values), 0)
        assert math.isnan(s.low)


def flagged(flags, fingerprint="f00d"):
    packed = base64.b64encode(np.packbits(np.array(flags, dtype=bool)).tobytes()).decode()
    return {"right": packed, "per_class": {"count": [len(flags)]}, "data": {"fingerprint": fingerprint}}


@pytest.mark.parametrize("count", [1, 7, 8, 9, 1001])
def test_flags_come_back(count):
    flags = np.random.default_rng(count).random(count) < 0.7
    assert runs.right(flagged(flags)).tolist() == flags.tolist()
    assert runs.flags([flagged(flags)] * 2).tolist() == [flags.tolist()] * 2


def test_image_error_of_one_pair_is_that_of_the_paired_differences():
    one, other = np.random.default_rng(0).random((2, 400)) < [[0.6], [0.5]]
    expected = 100 * stats.sem(one.astype(float) - other)
    assert runs.image_error(one[None], other[None]) == pytest.approx(expected, rel=1e-12)
    assert runs.image_error(one[None], one[None]) == 0
    assert math.isnan(runs.image_error(one[None, :1], other[None, :1]))


def test_image_error_is_of_the_mean_over_seeds():
    flags = np.random.default_rng(1).random((4, 300)) < 0.5
    expected = 100 * stats.sem(flags[:2].mean(0) - flags[2:].mean(0))
    assert runs.image_error(flags[:2], flags[2:]) == pytest.approx(expected)


@pytest.mark.parametrize(
    "other", [{"data": {"fingerprint": "f00d"}}, flagged([1, 0, 1], "beef"), flagged([1, 0, 1, 1])]
)
def test_flags_are_of_the_same_images(other):
    assert runs.flags([flagged([1, 0, 1]), other]) is None


def test_error_of_one_accuracy_and_the_bound_for_a_difference():
    right = np.arange(10_000) < 4600
    assert runs.accuracy_error(46.0, 10_000) == pytest.approx(100 * right.std() / 100, rel=1e-9)
    rng = np.random.default_rng(0)
    easy = rng.random(400_000)  # both schemes find the same images hard
    one, other = (rng.random(len(easy)) < easy for _ in range(2))
    found = (100 * (one.reshape(1000, 400).mean(1) - other.reshape(1000, 400).mean(1))).std()
    bound = runs.difference_error_bound(50.0, 50.0, 400)
    assert bound == pytest.approx(100 * math.sqrt(0.5 / 400))
    assert 0.5 * bound < found < 0.95 * bound


def test_history_of_the_epochs_that_every_seed_has(row):
    rows = [row("x", seed, 0.5, epochs=3 + seed) for seed in (0, 1)]
    rows[0]["history"][1]["val/accuracy"] = None
    epochs, values = runs.by_epoch(rows, "val/accuracy")
    assert epochs.tolist() == [1, 3]
    assert values[1].tolist() == [rows[1]["history"][i]["val/accuracy"] for i in (0, 2)]
    found = runs.curves(runs.frame(rows, "test/accuracy"), "val/accuracy")[Variant("x")]
    assert found["high"].tolist() == pytest.approx(100 * values.max(0))
    assert found["n"].tolist() == [2, 2]


def test_similarity_is_a_mosaic_of_the_mean_over_seeds(row):
    rows = [row("x", seed, 0.5) for seed in (0, 1)]
    rows[0]["position"] = {**rows[0]["position"], "similarity": np.zeros((16, 16)).tolist()}
    mosaic = runs.similarity(runs.frame(rows, "test/accuracy"))[Variant("x")]
    assert mosaic.shape == (19, 19)
    assert np.isnan(mosaic[4]).all()
    second = np.array(rows[1]["position"]["similarity"])
    np.testing.assert_allclose(mosaic[5:9, 0:4], second[4].reshape(4, 4) / 2)
    assert runs.similarity(runs.frame([row("none", 0, 0.5)], "test/accuracy")) == {}
