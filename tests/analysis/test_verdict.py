"""Who is compared with whom, and what is said where rows are thin, broken or made otherwise."""

import itertools
import math
import random

import numpy as np
import pytest

from vitpos.analysis import inference
from vitpos.analysis.runs import Variant, frame
from vitpos.analysis.terms import Terms
from vitpos.analysis.verdict import pairs, verdicts
from vitpos.errors import VitposError

TERMS = Terms("first", "Is it enough?", "learned")


def judge(rows, failures=(), planned=(), terms=TERMS):
    return verdicts(frame(rows, terms.metric), terms, failures, planned)


def pair(row, ours, theirs, **options):
    """Rows of `x` and of the reference, accuracies in percent by seed."""
    rows = [row("x", seed, a if a is None else a / 100, **options) for seed, a in enumerate(ours)]
    return rows + [row("learned", seed, a / 100) for seed, a in enumerate(theirs)]


def rows_of(row, differences, seeds=8):
    """Rows of candidates with these mean differences to the reference and a deviation of 0.2 points."""
    noise = np.random.default_rng(0).normal(0, 0.2, (len(differences), seeds))
    rows = [
        row(name, seed, (60 + mean + noise[i, seed]) / 100)
        for i, (name, mean) in enumerate(differences.items())
        for seed in range(seeds)
    ]
    return [*rows, *(row("learned", seed, 0.6) for seed in range(seeds))]


def v(position, **others):
    return Variant(position, tuple(sorted((k, str(x)) for k, x in others.items())))


def test_pairs_agree_on_every_axis_that_both_have():
    learned = [v("learned", scale=1, depth=3), v("learned", scale=2, depth=3)]
    found = pairs([*learned, v("none", depth=3), v("x", scale=2, depth=3)], "learned")
    assert found == [
        (v("none", depth=3), learned[0]), (v("none", depth=3), learned[1]), (v("x", scale=2, depth=3), learned[1]),
    ]  # fmt: skip
    # the other way round: the reference lacks the option
    found = pairs([v("none"), v("x", scale=1), v("x", scale=2), v("y")], "none")
    assert found == [(v("x", scale=1), v("none")), (v("x", scale=2), v("none")), (v("y"), v("none"))]
    assert pairs([v("x", depth=3)], "learned") == [(v("x", depth=3), v("learned", depth=3))]


def test_pairs_are_those_of_a_study_that_writes_every_combination_out():
    """A scheme that lacks an option is compared at each value of it, but once where the reference lacks it too."""
    draw = random.Random(0)
    for _ in range(300):
        options = [f"option{i}" for i in range(draw.randint(0, 2))]
        values = {key: range(draw.randint(1, 3)) for key in ["config", *options]}
        has = {f"s{i}": ["config", *(o for o in options if draw.random() < 0.6)] for i in range(4)}
        variants = [
            v(name, **dict(zip(keys, point, strict=True)))
            for name, keys in has.items()
            for point in itertools.product(*(values[key] for key in keys))
        ]
        expected = set()
        for name in ("s1", "s2", "s3"):
            keys = list(dict.fromkeys([*has[name], *has["s0"]]))
            for point in itertools.product(*(values[key] for key in keys)):
                whole = dict(zip(keys, point, strict=True))
                expected.add(tuple(v(who, **{k: whole[k] for k in has[who]}) for who in (name, "s0")))
        assert set(pairs(variants, "s0")) == expected


def test_pairs_go_by_seed_not_by_order(row):
    rows = [row("x", s, a) for s, a in ((2, 0.52), (0, 0.50), (1, 0.515))]
    rows += [row("learned", s, a) for s, a in ((1, 0.5), (0, 0.49), (2, 0.5))]
    d = judge(rows).iloc[0]
    assert d["by_seed"] == pytest.approx({0: 1, 1: 1.5, 2: 2})
    assert (d["n"], d["sd"]) == (3, pytest.approx(0.5))


def test_verdicts_are_those_of_the_judge_by_setting_and_size(row):
    found = judge(rows_of(row, {"a": -3.0, "b": 3.0, "c": 0.0, "d": 1.0}))
    assert dict(zip(found["scheme"], found["verdict"], strict=True)) == {
        "b": "better", "d": "better", "c": "equivalent", "a": "worse",
    }  # fmt: skip
    assert found["scheme"].tolist() == ["b", "d", "c", "a"]
    table = np.array([list(values.values()) for values in found["by_seed"]])
    expected = inference.judge(table, TERMS)
    for column in ("p", "p_equivalence", "low", "high", "least_margin", "beyond", "reason"):
        assert found[column].tolist() == pytest.approx(expected[column].tolist()), column
    two = [r | {"axes": {**r["axes"], "k": k}} for k in (10, 9) for r in rows_of(row, {"a": -3.0 * k, "b": 3.0})]
    assert [(d.scheme, d.setting[0][1]) for d in judge(two).itertuples()] == [
        ("b", "9"), ("a", "9"), ("b", "10"), ("a", "10"),
    ]  # fmt: skip


@pytest.mark.parametrize("ours", [[50, math.nan, 50.1], [50, None, 50.1]])
def test_a_run_that_is_not_a_number_is_not_averaged_away(row, ours):
    d = judge(pair(row, ours, [60] * 3)).iloc[0]
    assert (d["n"], d["verdict"], d["reason"]) == (2, "undecided", "not judged")
    assert d["mean"] == pytest.approx(-9.95)
    assert math.isnan(d["p"])
    assert d["note"] == "the scheme failed or diverged with seed 1, so no verdict"


def with_classes(rows, classes=10):
    counts = {"names": [str(i) for i in range(classes)], "count": [10] * classes, "correct": [5] * classes}
    return [{**r, "per_class": counts} for r in rows]


@pytest.mark.parametrize(("position", "scored"), [("x", -50.0), ("learned", 53.0)])
def test_a_failed_run_is_scored_at_chance_and_the_rest_stands_beside(row, position, scored):
    rows = [r for r in with_classes(rows_of(row, {"x": 3.0})) if (r["axes"]["position"], r["seed"]) != (position, 3)]
    failure = {"axes": {"position": position}, "seed": 3, "error": "diverged"}
    d = judge(rows, [failure]).iloc[0]
    assert d["by_seed"][3] == pytest.approx(scored, abs=0.7)
    assert (d["n"], d["scored"], list(d["finished"])) == (8, [3], [0, 1, 2, 4, 5, 6, 7])
    assert (d["mean_without"], d["without"]) == (pytest.approx(3.0, abs=0.3), "better")
    who = "scheme" if position == "x" else "reference"
    assert f"the {who} failed or diverged with seed 3, scored at chance, 10 %" in d["note"]
    assert "without seed 3 the mean is +2.9" in d["note"] or "without seed 3 the mean is +3.0" in d["note"]
    done = judge(with_classes(rows_of(row, {"x": 3.0})), [failure]).iloc[0]  # failed once, then not
    assert (done["verdict"], done["note"]) == ("better", "")


def test_a_scheme_that_mostly_fails_is_not_judged(row):
    rows = [r for r in with_classes(rows_of(row, {"x": 3.0})) if r["axes"]["position"] != "x" or r["seed"] > 3]
    failures = [{"axes": {"position": "x"}, "seed": seed, "error": "out of memory"} for seed in range(4)]
    d = judge(rows, failures).iloc[0]
    assert (d["verdict"], d["reason"], d["n"]) == ("undecided", "not judged", 4)


def test_planned_runs_that_are_missing_are_named_and_keep_the_family(row):
    planned = [{"axes": {"position": p}, "seed": s} for p in ("x", "y", "learned") for s in range(4)]
    found = judge(pair(row, [50, 50.1], [60] * 4), (), planned).set_index("scheme")
    assert found["note"]["x"] == "the scheme has no run with seeds 2, 3"
    assert (found["n"]["y"], found["reason"]["y"]) == (0, "not judged")
    assert judge(pair(row, [], [51, 51])).empty


def test_no_run_of_the_reference(row):
    d = judge([row("x", 0, 0.5), row("x", 1, 0.6)]).iloc[0]
    assert (d["verdict"], d["reason"]) == ("undecided", "not judged")
    assert d["note"] == "the reference has no run with seeds 0, 1; no pair of seeds"


@pytest.mark.parametrize(
    ("ours", "verdict", "note"),
    [
        # 1e-6 points are what float32 leaves of equal accuracies
        ([50, 50.000004, 50, 50, 50, 50], "equivalent", "all differences are 0 (the same computation twice?)"),
        ([46, 46.000003, 46, 46, 46, 46], "worse", "all differences are -4.00, so no variance"),
    ],
)
def test_identical_differences_are_judged_by_signs_alone(row, ours, verdict, note):
    d = judge(pair(row, ours, [50] * 6)).iloc[0]
    assert (d["verdict"], d["sd"]) == (verdict, 0)
    assert note in d["note"]
    assert math.isnan(d["low"])


def test_equivalent_takes_precedence_and_says_so(row):
    d = judge(pair(row, [50.2, 50.25, 50.3, 50.22, 50.21, 50.24], [50] * 6)).iloc[0]
    assert d["p"] == 2 / 64
    assert (d["verdict"], d["note"]) == ("equivalent", "there is a difference, but within the margin")


@pytest.mark.parametrize(
    ("what", "options"),
    [
        ("data", {"fingerprint": "beef"}),
        ("device", {"device": "cuda"}),
        ("precision", {"precision": "bf16-mixed"}),
        ("device, precision", {"device": "cuda", "precision": "bf16-mixed"}),
    ],
)
def test_a_pair_made_otherwise_is_no_pair(row, what, options):
    rows = [row("x", seed, 0.5, **(options if seed else {})) for seed in range(4)]
    d = judge([*rows, *(row("learned", seed, 0.6 + 0.01 * seed) for seed in range(4))]).iloc[0]
    assert (d["n"], d["verdict"]) == (1, "undecided")
    assert d["note"].startswith(f"seeds 1–3 not paired: the runs differ in {what}; only one pair")


def test_rows_of_another_format_are_no_pairs(row):
    ours = [{**row("x", seed, 0.5), "format": 2} for seed in range(2)]
    d = judge([*ours, *(row("learned", seed, 0.6) for seed in range(2))]).iloc[0]
    assert d["note"] == "seeds 0, 1 not paired: the runs differ in format; no pair of seeds"


def test_runs_of_different_training_code_get_no_verdict(row):
    def rows(position, mean):
        return [row(position, s, mean + 0.001 * s, sources=["a"] if s < 4 else ["b"]) for s in range(8)]

    d = judge(rows("x", 0.7) + rows("learned", 0.6)).iloc[0]
    assert (d["n"], d["reason"]) == (8, "not judged")
    assert d["note"].startswith("the runs were trained with 2 versions of the code, so no verdict")
    d = judge([row("x", 0, 0.5, sources=["a"]), row("learned", 0, 0.5, sources=["b"])]).iloc[0]
    assert "seed 0 not paired: the runs differ in training code" in d["note"]
    d = judge([row("x", 0, 0.5, sources=["a"]), row("learned", 0, 0.5)]).iloc[0]  # an earlier row does not say
    assert d["n"] == 1


def test_mixed_versions_are_said(row):
    ours = [row("x", 0, 0.5, torch="2.13.0"), row("x", 1, 0.51, torch="2.13.0", commit="f"), row("x", 2, 0.53)]
    d = judge([*ours, *(row("learned", seed, 0.6) for seed in range(3))]).iloc[0]
    assert d["n"] == 3
    assert d["note"] == (
        "the paired runs with seed 0 differ in torch; the paired runs with seed 1 differ in torch, commit"
    )
    rows = [row(p, s, 0.5 + s / 50, **({"device": "cuda", "timm": "1.1"} if s == 1 else {})) for p in ("x", "learned")
            for s in range(3)]  # fmt: skip
    assert judge(rows).iloc[0]["note"].startswith("the pairs differ in device, timm; all differences are 0")


def test_reference_is_taken_within_the_other_axes(row):
    rows = [
        row(position, seed, base + 0.001 * seed * bump, axes={"model.depth": depth})
        for depth, shift in ((3, 0.0), (6, 0.2))
        for position, base, bump in (("x", 0.5 + shift, 1), ("learned", 0.4 + 2 * shift, 2))
        for seed in range(3)
    ]
    found = judge(rows)
    assert found["mean"].tolist() == pytest.approx([9.9, -10.1])
    assert [r.label for r in found["reference"]] == ["learned, model.depth=3", "learned, model.depth=6"]


def test_a_metric_that_no_row_has(row):
    with pytest.raises(VitposError, match="unknown metric 'train/accuracy'"):
        judge([row("x", 0, 0.5)], terms=Terms("first", "", "learned", metric="train/accuracy"))
