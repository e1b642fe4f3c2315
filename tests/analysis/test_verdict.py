"""From rows to verdicts, and what is said where rows are thin or broken."""

import dataclasses
import math
import re

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from vitpos.analysis import inference, power
from vitpos.analysis.comparison import Comparison
from vitpos.analysis.statistics import group
from vitpos.analysis.verdict import Needed, compare, words
from vitpos.errors import VitposError

PLAN = Comparison("first", "Is it enough?", "learned")
OURS, THEIRS = [56.5, 58.0, 57.9, 56.9, 57.2, 57.4], [57.9, 58.3, 57.6, 58.1, 57.4, 57.7]
NEVER = "2 pairs cannot show equivalence, which takes 5, or a difference, which takes 6"


def pair(row, ours, theirs, **options):
    """Rows of `x` and of the reference, accuracies in percent by seed."""
    rows = [row("x", seed, a if a is None else a / 100, **options) for seed, a in enumerate(ours)]
    return group(rows + [row("learned", seed, a / 100) for seed, a in enumerate(theirs)])


def rows_of(row, differences, seeds=8):
    """Rows of candidates with these mean differences to the reference and a deviation of 0.2 points."""
    noise = np.random.default_rng(0).normal(0, 0.2, (len(differences), seeds))
    rows = [
        row(name, seed, (60 + mean + noise[i, seed]) / 100)
        for i, (name, mean) in enumerate(differences.items())
        for seed in range(seeds)
    ]
    return group([*rows, *(row("learned", seed, 0.6) for seed in range(seeds))])


def test_numbers_equal_scipy_and_statsmodels(row):
    plan = dataclasses.replace(PLAN, margin=1.5, alpha=0.1)
    (d,) = compare(plan, pair(row, OURS, THEIRS))
    x = np.subtract(OURS, THEIRS)
    assert (d.n, d.seeds, d.family) == (6, (0, 1, 2, 3, 4, 5), 1)
    np.testing.assert_allclose(d.differences, x)
    assert (d.mean, d.sd) == (pytest.approx(x.mean()), pytest.approx(x.std(ddof=1)))
    flips = stats.permutation_test((x,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert d.p == d.p_adjusted == pytest.approx(flips.pvalue)
    expected = stats.ttest_rel(OURS, THEIRS)
    interval = expected.confidence_interval(0.9)
    assert d.p_t == pytest.approx(expected.pvalue, rel=1e-9)
    assert (d.low, d.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert d.p_tost == pytest.approx(ttost_paired(np.array(OURS), np.array(THEIRS), -1.5, 1.5)[0], rel=1e-9)
    assert d.p_equivalence == d.p_equivalence_adjusted == inference.equivalence(x, 1.5)
    assert (d.flip_low, d.flip_high) == pytest.approx(inference.sign_flip_interval(x, 0.9))
    assert d.g == pytest.approx(float(inference.hedges_g(x)))
    assert math.isnan(d.bca_low)  # six pairs are too few


def test_bootstrap_of_enough_pairs(row):
    d, *_ = compare(PLAN, rows_of(row, {"x": 0.0}, seeds=10))
    low, high = inference.bca_interval(np.array(d.differences), 0.95)
    assert (d.bca_low, d.bca_high) == (float(low), float(high))


def test_pairs_go_by_seed_not_by_order(row):
    rows = [row("x", s, a) for s, a in ((2, 0.52), (0, 0.50), (1, 0.515))]
    rows += [row("learned", s, a) for s, a in ((1, 0.5), (0, 0.49), (2, 0.5))]
    (d,) = compare(PLAN, group(rows))
    assert d.differences == pytest.approx((1, 1.5, 2))
    assert d.sd == pytest.approx(0.5)


def test_verdicts(row):
    found = compare(PLAN, rows_of(row, {"a": -3.0, "b": 3.0, "c": 0.0, "d": 1.0}))
    assert {d.candidate.label: d.verdict for d in found} == {
        "a": "falls short", "b": "better", "c": "equivalent", "d": "better",
    }  # fmt: skip
    assert [d.candidate.label for d in found] == ["b", "d", "c", "a"]
    assert {d.family for d in found} == {4}
    assert {d.needed for d in found} == {None}


@pytest.mark.parametrize("correction", ["holm", "bonferroni"])
def test_the_correction_is_over_the_family_for_differences_and_equivalence_apart(row, correction):
    plan = dataclasses.replace(PLAN, correction=correction)
    found = compare(plan, rows_of(row, {"a": -0.3, "b": 0.9, "c": 0.05, "d": 0.2}))
    for raw, adjusted in (("p", "p_adjusted"), ("p_equivalence", "p_equivalence_adjusted")):
        expected = multipletests([getattr(d, raw) for d in found], method=correction)[1]
        assert [getattr(d, adjusted) for d in found] == pytest.approx(list(expected))


def test_the_corrected_p_value_decides(row):
    differences = {"a": 2.0, "b": 0.0, "c": 0.05, "d": -0.05}
    groups = rows_of(row, differences, seeds=7)  # least p 2/128: enough alone, not for four
    verdicts = {
        correction: next(d.verdict for d in compare(dataclasses.replace(PLAN, correction=correction), groups)
                         if d.candidate.label == "a")
        for correction in ("holm", "bonferroni", "none")
    }  # fmt: skip
    assert verdicts == {"holm": "undecided", "bonferroni": "undecided", "none": "better"}


def test_equivalent_takes_precedence_and_says_so(row):
    (d,) = compare(PLAN, pair(row, [50.2, 50.25, 50.3, 50.22, 50.21, 50.24], [50] * 6))
    assert d.p_adjusted == 2 / 64
    assert d.verdict == "equivalent"
    assert d.note == "a difference, but within the margin"


def test_a_difference_that_is_shown_only_without_correction_is_not_noted(row):
    x, y = compare(PLAN, rows_of(row, {"x": 0.4, "y": 0.0}, seeds=6))
    assert (x.p, x.p_adjusted) == (2 / 64, 4 / 64)
    assert (x.verdict, x.note) == ("equivalent", "")
    assert y.verdict == "equivalent"


def test_margin_of_zero_is_never_equivalent(row):
    plan = dataclasses.replace(PLAN, margin=0.0, alpha=0.9)
    (d,) = compare(plan, pair(row, [50, 51, 50, 51.1], [51, 50, 51, 50]))
    assert (d.p_equivalence, d.p_tost) == (1, 1)
    assert d.verdict != "equivalent"
    (d,) = compare(dataclasses.replace(PLAN, margin=0.0), pair(row, OURS[:2], THEIRS[:2]))
    assert d.note == "2 pairs cannot show a difference, which takes 6"
    assert d.needed.equivalence is None


@pytest.mark.parametrize(
    ("ours", "theirs", "n", "note"),
    [
        ([50], [51], 1, "one pair of seeds, no variance to judge by"),
        ([50, math.nan, 50.1], [60] * 3, 2, "test/accuracy is not a number for seed 1; no verdict without it"),
        ([50, None, 50.1], [60] * 3, 2, "test/accuracy is not a number for seed 1; no verdict without it"),
        ([math.nan, math.nan], [60] * 2, 0,
         "test/accuracy is not a number for seeds 0, 1; no verdict without it; no pair of seeds"),
    ],
)  # fmt: skip
def test_thin_or_broken_rows_are_not_tested(row, ours, theirs, n, note):
    (d,) = compare(PLAN, pair(row, ours, theirs))
    assert (d.n, d.note, d.verdict, d.needed) == (n, note, "undecided", None)
    assert math.isnan(d.p)
    assert math.isnan(d.p_adjusted)
    assert math.isnan(d.p_equivalence_adjusted)


def test_nan_among_many_is_not_averaged_away(row):
    (d,) = compare(PLAN, pair(row, [*[50.1, 50.2] * 5, math.nan], [60] * 11))
    assert (d.n, d.verdict) == (10, "undecided")
    assert d.mean == pytest.approx(-9.85)
    assert d.note == "test/accuracy is not a number for seed 10; no verdict without it"


def test_missing_runs_are_named(row):
    for ours, theirs, who in (([50, 50.1], [60] * 4, "x"), ([50, 50.1, 50, 50], [60] * 2, "learned")):
        (d,) = compare(PLAN, pair(row, ours, theirs))
        assert (d.n, d.note) == (2, f"no run of {who} for seeds 2, 3; {NEVER}")
    assert compare(PLAN, pair(row, [], [51, 51])) == []


@pytest.mark.parametrize(
    ("ours", "verdict", "note"),
    [
        # 1e-6 points are what float32 leaves of equal accuracies
        ([50, 50.000004, 50, 50, 50, 50], "equivalent",
         "all differences are 0 (the same computation twice?), no variance for an interval"),
        ([46, 46.000003, 46, 46, 46, 46], "falls short", "all differences are -4.00, no variance for an interval"),
        ([46] * 5, "undecided",
         "no run of x for seed 5; all differences are -4.00, no variance for an interval; "
         "5 pairs cannot show a difference, which takes 6"),
    ],
)  # fmt: skip
def test_identical_differences_are_judged_by_signs_alone(row, ours, verdict, note):
    (d,) = compare(PLAN, pair(row, ours, [50] * 6))
    assert (d.verdict, d.note, d.sd) == (verdict, note, 0)
    assert np.isnan([d.low, d.high, d.flip_low, d.bca_low, d.g, d.p_t, d.p_tost]).all()
    assert d.p_equivalence == (1 / 64 if verdict == "equivalent" else 1)
    if verdict == "undecided":
        assert d.needed == Needed(6, None)


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
    (d,) = compare(PLAN, group([*rows, *(row("learned", seed, 0.6 + 0.01 * seed) for seed in range(4))]))
    assert (d.n, d.verdict) == (1, "undecided")
    assert d.note.startswith(f"seeds 1, 2, 3 no pair: the two runs differ in {what}; one pair")


def test_rows_of_another_format_are_no_pairs(row):
    ours = [{**row("x", seed, 0.5), "format": 2} for seed in range(2)]
    (d,) = compare(PLAN, group([*ours, *(row("learned", seed, 0.6) for seed in range(2))]))
    assert d.note == "seeds 0, 1 no pair: the two runs differ in format; no pair of seeds"


def test_mixed_versions_are_said(row):
    ours = [row("x", 0, 0.5, torch="2.13.0"), row("x", 1, 0.51, torch="2.13.0", commit="f"), row("x", 2, 0.53)]
    theirs = [row("learned", seed, 0.6) for seed in range(3)]
    (d,) = compare(PLAN, group([*ours, *theirs]))
    assert d.n == 3
    assert d.note.startswith(
        "the two runs of seed 0 differ in torch; the two runs of seed 1 differ in torch, commit; 3 pairs"
    )


def test_pairs_that_differ_among_themselves_are_said(row):
    def rows(position):
        return [row(position, 0, 0.5), row(position, 1, 0.52, device="cuda", timm="1.1"), row(position, 2, 0.5)]

    (d,) = compare(PLAN, group([*rows("x"), *rows("learned")]))
    assert d.n == 3
    assert d.note.startswith("the pairs differ in device, timm; all differences are 0")


@pytest.mark.parametrize("position", ["x", "learned"])
def test_a_failed_run_leaves_its_scheme_without_a_verdict(row, position):
    rows = rows_of(row, {"x": 3.0})
    (whole,) = compare(PLAN, rows)
    assert whole.verdict == "better"
    (d,) = compare(PLAN, rows, [{"axes": {"position": position}, "seed": 8, "error": "diverged"}])
    assert (d.verdict, d.needed) == ("undecided", None)
    assert math.isnan(d.p_adjusted)
    assert d.mean == whole.mean
    assert d.note == f"the run of {position} failed for seed 8; no verdict without it"
    (d,) = compare(PLAN, rows, [{"axes": {"position": position}, "seed": 3, "error": "diverged, then not"}])
    assert d == whole


def test_a_failed_run_is_not_called_missing_as_well(row):
    failure = {"axes": {"position": "x"}, "seed": 2, "error": "diverged"}
    (d,) = compare(PLAN, pair(row, [50, 50.1], [60] * 3), [failure])
    assert d.note == "the run of x failed for seed 2; no verdict without it"


def test_what_was_not_tested_counts_in_the_family(row):
    groups = rows_of(row, {"a": 2.0, "b": 2.0}, seeds=6)
    found = compare(PLAN, groups, [{"axes": {"position": "b"}, "seed": 9, "error": "diverged"}])
    assert {d.candidate.label: d.p_adjusted for d in found}["a"] == 2 * 2 / 64


def test_no_run_of_the_reference(row):
    (d,) = compare(PLAN, group([row("x", 0, 0.5), row("x", 1, 0.6)]))
    assert (d.verdict, d.note) == ("undecided", "no run of learned for seeds 0, 1; no pair of seeds")
    assert words(PLAN, d) == "is undecided against learned"


def test_reference_is_taken_within_the_other_axes(row):
    rows = [
        row(position, seed, base + 0.001 * seed * bump, axes={"model.depth": depth})
        for depth, shift in ((3, 0.0), (6, 0.2))
        for position, base, bump in (("x", 0.5 + shift, 1), ("learned", 0.4 + 2 * shift, 2))
        for seed in range(3)
    ]
    found = {d.candidate.label: d for d in compare(PLAN, group(rows))}
    assert found["x, model.depth=3"].mean == pytest.approx(9.9)
    assert found["x, model.depth=6"].mean == pytest.approx(-10.1)
    assert found["x, model.depth=6"].reference.label == "learned, model.depth=6"


def test_a_metric_that_no_row_has(row):
    plan = dataclasses.replace(PLAN, metric="train/accuracy")
    with pytest.raises(VitposError, match="unknown metric 'train/accuracy'"):
        compare(plan, group([row("x", 0, 0.5)]))


def test_seeds_that_would_settle_it(row):
    groups = rows_of(row, {"x": 5.0, "y": 0.0}, seeds=4)
    x, y = compare(PLAN, groups)
    level = 0.05 / 2
    assert (x.verdict, y.verdict) == ("undecided", "undecided")
    assert x.needed == Needed(power.seeds_for_difference(0.8, x.mean, x.sd, level), None)
    assert x.needed.seeds == 7  # the least that can reach the level
    assert y.needed.equivalence == power.seeds_for_equivalence(0.8, y.mean, y.sd, level, 1.0) == y.needed.seeds
    assert y.needed.difference == power.seeds_for_difference(0.8, y.mean, y.sd, level)
    assert y.needed.difference > y.needed.equivalence


def test_it_always_takes_more_seeds_than_there_are(row):
    # heavy tails: by normal theory these six would do
    (d,) = compare(PLAN, pair(row, [52, 52, 52, 52, 52, 49.9], [50] * 6))
    assert d.verdict == "undecided"
    assert d.needed.seeds > 6


@pytest.mark.parametrize(
    ("change", "ours", "said"),
    [
        ({}, [46, 46.1, 46.2, 46.1, 46, 46.2],
         r"falls short of learned by 3\.90 points \(95 % interval -4\.00 to -3\.80, 6 pairs, p 0\.031\)"),
        ({"margin": 5.0}, [56, 56.1, 56.2, 56.1, 46, 56.2],
         r"is undecided against learned: \+4\.43 points \(95 % interval -4\.00 to \+6\.20, 6 pairs, p 0\.\d+ for a "
         r"difference, 0\.\d+ for one within ±5\); \d+ seeds in all, \d+ more, would show a difference of this size "
         r"with 80 % power, if mean and deviation are as observed"),
        ({}, [50.9, 51.1, 51.2, 50.9, 50.8, 51.2],
         r"is better than learned by 1\.02 points \(95 % interval \+0\.80 to \+1\.20, 6 pairs, p 0\.031\); it may be "
         r"within the margin of 1"),
        ({}, [50.1, 50.2, 50.3, 50, 49.9, 50],
         r"is equivalent to learned: \+0\.08 points, within ±1 \(95 % interval -0\.10 to \+0\.30, 6 pairs, p 0\.016\)"),
        ({}, [50.1, 50.2, 50.3],
         r"is undecided against learned: \+0\.20 points \(95 % t interval -0\.05 to \+0\.45, 3 pairs, p 0\.250 for a "
         r"difference, 0\.125 for one within ±1\); 5 seeds in all, 2 more, would show equivalence with 80 % power, .*"),
        ({"margin": 0.01}, [50.02, 49.8, 50.2, 50, 49.99, 50],
         r".*; more than 1000 seeds would be needed, if mean and deviation are as observed"),
        ({}, [51], r"is undecided against learned: \+1\.00 points \(1 pair\)"),
    ],
)  # fmt: skip
def test_verdicts_in_words(row, change, ours, said):
    plan = dataclasses.replace(PLAN, **change)
    (d,) = compare(plan, pair(row, ours, [50] * len(ours)))
    assert re.fullmatch(said, words(plan, d)), words(plan, d)


@pytest.mark.parametrize(("correction", "said"), [
    ("holm", ", after Holm over 2)"), ("bonferroni", ", after Bonferroni over 2)"),
    ("none", ", not corrected for 2 comparisons)"),
])  # fmt: skip
def test_words_name_the_correction(row, correction, said):
    plan = dataclasses.replace(PLAN, correction=correction)
    for d in compare(plan, rows_of(row, {"x": 5.0, "y": 0.0})):
        assert said in words(plan, d)
