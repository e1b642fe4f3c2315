import dataclasses
import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.weightstats import ttost_paired

from vitpos.analysis.comparison import Comparison
from vitpos.analysis.statistics import Variant, compare, equivalence, group, holm, summarize
from vitpos.errors import VitposError

PLAN = Comparison("first", "Is it enough?", "learned")


def pair(row, ours, theirs, **options):
    """Rows of `x` and of the reference, accuracies in percent by seed."""
    rows = [row("x", seed, a if a is None else a / 100, **options) for seed, a in enumerate(ours)]
    return group(rows + [row("learned", seed, a / 100) for seed, a in enumerate(theirs)])


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
    ],
)
def test_comparison_refuses(change, message):
    with pytest.raises(VitposError, match=message) as caught:
        dataclasses.replace(PLAN, **change)
    assert "\n" not in str(caught.value)


def test_variant_label_and_kind():
    variant = Variant.of({"position": "a(x=(1, 2), y=3) + b(z=1)", "model.depth": 6, "data.name": "digits"})
    assert variant.label == "a(x=(1, 2), y=3) + b(z=1), data.name=digits, model.depth=6"
    assert variant.kind == "a+b"


def test_paired_numbers_equal_scipy_and_statsmodels(row):
    ours, theirs = [56.5, 58.0, 57.9, 56.9, 57.2], [57.9, 58.3, 57.6, 58.1, 57.4]
    plan = dataclasses.replace(PLAN, margin=1.5, alpha=0.1)
    (d,) = compare(plan, pair(row, ours, theirs))
    expected = stats.ttest_rel(ours, theirs)
    interval = expected.confidence_interval(0.9)
    assert (d.n, d.mean, d.sd) == (5, pytest.approx(-0.56), pytest.approx(np.std(np.subtract(ours, theirs), ddof=1)))
    assert d.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (d.low, d.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    p_equal = ttost_paired(np.array(ours), np.array(theirs), -1.5, 1.5)[0]
    assert d.p_equivalence == pytest.approx(p_equal, rel=1e-9)


def test_pairs_go_by_seed_not_by_order(row):
    rows = [row("x", s, a) for s, a in ((2, 0.52), (0, 0.50), (1, 0.515))]
    rows += [row("learned", s, a) for s, a in ((1, 0.5), (0, 0.49), (2, 0.5))]
    (d,) = compare(PLAN, group(rows))
    assert d.mean == pytest.approx((2 + 1 + 1.5) / 3)
    assert d.sd == pytest.approx(0.5)


def test_holm_by_hand():
    # Sorted: .01 x 4 = .04, .02 x 3 = .06, .03 x 2 = .06, .6 x 1; each at least its predecessor, at most 1.
    assert holm([0.03, 0.01, 0.6, 0.02]) == pytest.approx([0.06, 0.04, 0.6, 0.06])
    assert holm([]) == []


def test_holm_counts_what_could_not_be_tested():
    adjusted = holm([0.02, math.nan, 0.01])
    assert adjusted[0] == pytest.approx(0.04)
    assert adjusted[2] == pytest.approx(0.03)
    assert math.isnan(adjusted[1])


def test_verdicts(study):
    verdicts = {d.candidate.label: d.verdict for d in compare(PLAN, group(study))}
    assert verdicts == {
        "sinusoidal_2d(temperature=100)": "better",
        "sinusoidal_2d": "equivalent",
        "sinusoidal_1d": "undecided",
        "sinusoidal_2d(scale=0.02)": "falls short",
        "none": "falls short",
    }


def test_holm_decides_not_the_raw_p_value(study):
    (d,) = (d for d in compare(PLAN, group(study)) if d.candidate.label == "sinusoidal_1d")
    assert d.p < 0.05 < d.p_holm
    assert d.verdict == "undecided"
    alone = [row for row in study if row["axes"]["position"] in ("learned", "sinusoidal_1d")]
    (d,) = compare(PLAN, group(alone))
    assert d.p_holm == d.p
    assert d.verdict == "falls short"


def test_equivalent_takes_precedence_and_says_so(row):
    (d,) = compare(PLAN, pair(row, [50.2, 50.25, 50.3, 50.22], [50, 50, 50, 50]))
    assert d.p_holm < 0.01
    assert d.verdict == "equivalent"
    assert d.note == "a difference, but within the margin"


def test_margin_of_zero_is_never_equivalent(row):
    plan = dataclasses.replace(PLAN, margin=0.0, alpha=0.99)
    (d,) = compare(plan, pair(row, [50, 51, 50, 51.1], [51, 50, 51, 50]))
    assert d.p_equivalence == 1
    assert d.verdict != "equivalent"
    assert equivalence(np.array([0.1, -0.1]), 0.0) == 1


@pytest.mark.parametrize(
    ("ours", "theirs", "n", "note"),
    [
        ([50], [51], 1, "one pair of seeds, no variance to judge by"),
        ([], [51, 51], 0, None),
        ([50, 51, 52], [51, 52, 53], 3, "identical differences; no variance to judge by"),
        ([50, 51, 52], [50, 51, 52], 3, "identical differences; no variance to judge by"),
        ([50, 50.000004, 50], [54, 54, 54.000003], 3, "identical differences; no variance to judge by"),
        ([50, math.nan, 50.1], [60, 60, 60], 2, "test/accuracy is not a number for seed 1; no verdict without it"),
        ([50, None, 50.1], [60, 60, 60], 2, "test/accuracy is not a number for seed 1; no verdict without it"),
        ([50, 50.1], [60, 60, 60, 60], 2, "no run of x for seeds 2, 3"),
        ([50, 50.1, 50, 50], [60, 60], 2, "no run of learned for seeds 2, 3"),
    ],
)
def test_thin_or_broken_rows_never_decide_by_accident(row, ours, theirs, n, note):
    found = compare(PLAN, pair(row, ours, theirs))
    if note is None:
        assert found == []
        return
    (d,) = found
    assert d.n == n
    assert d.note == note
    if "no run" not in note:
        assert d.verdict == "undecided"
        assert math.isnan(d.p_holm)
    else:
        assert d.verdict == "falls short"


def test_a_pair_on_different_data_is_no_pair(row):
    (d,) = compare(PLAN, pair(row, [50, 51.2], [60, 60], fingerprint="beef"))
    assert d.n == 0
    assert d.verdict == "undecided"
    assert d.note == "seeds 0, 1 no pair: the two runs differ in data, device or precision; no pair of seeds"


@pytest.mark.parametrize("other", [{"device": "cuda"}, {"precision": "bf16-mixed"}])
def test_a_pair_of_another_device_or_precision_is_no_pair(row, other):
    rows = [row("x", seed, 0.5, **(other if seed else {})) for seed in range(4)]
    (d,) = compare(PLAN, group([*rows, *(row("learned", seed, 0.6 + 0.01 * seed) for seed in range(4))]))
    assert d.n == 1
    assert d.note.startswith("seeds 1, 2, 3 no pair: the two runs differ in data, device or precision")


def test_a_failed_run_leaves_its_scheme_without_a_verdict(row):
    rows = pair(row, [70, 71, 70.5, 71.5], [50, 50.2, 50.1, 50.4])
    (whole,) = compare(PLAN, rows)
    assert whole.verdict == "better"
    (d,) = compare(PLAN, rows, [{"axes": {"position": "x"}, "seed": 4, "error": "diverged"}])
    assert d.verdict == "undecided"
    assert math.isnan(d.p_holm)
    assert d.note == "the run of x failed for seed 4; no verdict without it"


def test_no_run_of_the_reference(row):
    (d,) = compare(PLAN, group([row("x", 0, 0.5), row("x", 1, 0.6)]))
    assert d.verdict == "undecided"
    assert d.note == "no run of learned for seeds 0, 1; no pair of seeds"


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


def test_rows_that_cannot_be_analysed(row):
    with pytest.raises(VitposError, match="no finished runs"):
        group([])
    with pytest.raises(VitposError, match=r"two runs of x with seed 0 \(hashes x-0 and x-0\)"):
        group([row("x", 0, 0.5), row("x", 0, 0.6)])
    plan = dataclasses.replace(PLAN, metric="train/accuracy")
    with pytest.raises(VitposError, match="unknown metric 'train/accuracy'"):
        compare(plan, group([row("x", 0, 0.5)]))


def test_summary_is_the_t_interval_of_the_mean():
    s = summarize([50.0, 52.0, 51.0, math.nan], 0.95)
    assert (s.n, s.bad, s.mean, s.sd) == (3, 1, 51, 1)
    assert s.high - s.mean == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)  # t(.975, 2) by table
