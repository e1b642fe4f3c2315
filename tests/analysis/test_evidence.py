import math

import pytest

from vitpos.analysis.comparison import Comparison
from vitpos.analysis.evidence import Background, distinct, gather, mean
from vitpos.analysis.statistics import Variant

PLAN = Comparison("first", "Why?", "learned")


def test_a_run_that_stands_at_several_places_is_one_run(row):
    rows = []
    for scale in (0.1, 0.7):
        for seed in (0, 1):
            axes = {"position.scale": scale}
            lacking = {**row("none", seed, 0.4, axes=axes), "idle": ["position.scale"]}
            rows += [{**row("learned", seed, 0.5 + 0.01 * seed, axes=axes), "hash": f"{scale}{seed}"}, lacking]
    evidence = gather(PLAN, rows, [], Background())
    assert len(evidence.rows) == 6
    assert list(evidence.variants) == [
        Variant("learned", (("position.scale", "0.1"),)), Variant("learned", (("position.scale", "0.7"),)),
        Variant("none"),
    ]  # fmt: skip
    assert len(evidence.places) == 4
    assert [d.candidate.label for d in evidence.differences] == ["none, position.scale=0.1", "none, position.scale=0.7"]
    assert evidence.about(Variant("none")) == ["none", "-"]
    ours, theirs = evidence.pair(evidence.differences[0])
    assert [r["seed"] for r in ours] == [r["seed"] for r in theirs] == [0, 1]


def test_runs_that_differ_stay_apart(row):
    rows = [row("a", 0, 0.5), row("a", 1, 0.5), row("b", 0, 0.5)]
    assert distinct(rows) == rows


def test_words(row):
    evidence = gather(
        Comparison("n", "q", "learned", "val/accuracy", alpha=0.1), [row("learned", 3, 0.5)], [], Background()
    )
    assert (evidence.level, evidence.metric, evidence.split, evidence.seeds) == (
        "90 %",
        "validation accuracy",
        "val",
        [3],
    )


def test_mean_of_what_is_known():
    assert mean([1, None, 3]) == 2
    assert math.isnan(mean([None]))
    assert mean([0.1] * 10) == pytest.approx(0.1)
