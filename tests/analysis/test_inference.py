"""Tests, intervals and effect size, against enumeration by hand, scipy, statsmodels and pingouin."""

import itertools
import math

import numpy as np
import pingouin
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from vitpos.analysis import inference

OURS = np.array([56.51, 58.02, 57.93, 56.94, 57.25, 57.46, 56.07])
THEIRS = np.array([57.9, 58.3, 57.6, 58.1, 57.4, 57.7, 57.2])
D = OURS - THEIRS


def flips(d):
    """Sums of all 2^n flips of signs."""
    return np.array([np.dot(signs, d) for signs in itertools.product((1, -1), repeat=len(d))])


@pytest.mark.parametrize("n", [1, 2, 3, 6, 9])
@pytest.mark.parametrize("draw", ["normal", "skewed", "ties"])
def test_sign_flip_equals_enumeration(n, draw):
    rng = np.random.default_rng(n)
    d = {"normal": rng.normal(0.4, 1, n), "skewed": rng.exponential(size=n) - 0.7, "ties": rng.integers(-2, 5, n) / 2}
    sums, found = flips(d[draw]), d[draw].sum()
    expected = min(1, 2 * min(np.mean(sums >= found - 1e-9), np.mean(sums <= found + 1e-9)))
    assert inference.sign_flip(d[draw]) == expected


@pytest.mark.parametrize("n", [4, 7, 10])
def test_sign_flip_equals_scipy(n):
    d = np.random.default_rng(n).normal(0.5, 1, n)
    scipy = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert inference.sign_flip(d) == pytest.approx(scipy.pvalue, rel=1e-12)


def test_sign_flip_of_many_pairs_draws_what_it_cannot_count(monkeypatch):
    d = np.random.default_rng(0).normal(0.35, 1, 20)
    exact = float(inference.sign_flip(d))
    assert 0.02 < exact < 0.5
    monkeypatch.setattr(inference, "EXACT_PAIRS", 19)
    drawn = float(inference.sign_flip(d))
    assert drawn != exact
    # a p value is twice a share of 16384 draws: four standard errors
    assert abs(drawn - exact) < 4 * math.sqrt(2 * exact / 2**14)
    assert inference.sign_flip(np.full(40, 0.5)) == 2 / 2**14


def test_sums_that_only_rounding_tells_apart_are_ties():
    accuracy = np.float32([0.454, 0.4613, 0.4482, 0.4551, 0.4562])  # as rows have them
    other = np.float32([0.444, 0.4513, 0.4582, 0.4451, 0.4462])
    d = 100 * accuracy.astype(float) - 100 * other.astype(float)
    assert len(set(np.abs(d))) > 1  # all are 1 point
    assert inference.sign_flip(d) == 2 * 6 / 32  # no or one sign the other way


def test_least_p_is_reached_and_not_undercut():
    assert inference.sign_flip(np.full(6, 0.1)) == inference.least_p(6) == 2 / 64
    assert inference.equivalence(np.zeros(6), 0.1) == inference.least_p(6, sides=1) == 1 / 64
    assert inference.sign_flip(np.zeros(6)) == 1


@pytest.mark.parametrize("margin", [0.3, 0.8, 1.5])
def test_equivalence_is_the_larger_of_two_one_sided_flip_tests(margin):
    above, below = D + margin, margin - D
    expected = max(np.mean(flips(x) >= x.sum() - 1e-9) for x in (above, below))
    assert inference.equivalence(D, margin) == expected
    assert inference.equivalence(-D, margin) == expected


def test_nothing_is_equivalent_within_nothing():
    assert inference.equivalence(np.zeros((2, 9)), 0.0).tolist() == [1, 1]


@pytest.mark.parametrize("level", [0.95, 0.8])
def test_sign_flip_interval_holds_what_the_test_does_not_reject(level):
    low, high = inference.sign_flip_interval(D, level)
    means = sorted(np.mean(part) for k in range(1, 8) for part in itertools.combinations(D, k))
    rank = math.floor((1 - level) / 2 * 2**7)  # Hartigan: order statistics of the means of subsets
    # ends are sought to 1e-5 points, and what is nearer than 1e-4 is a tie
    assert (low, high) == (pytest.approx(means[rank - 1], abs=2e-4), pytest.approx(means[-rank], abs=2e-4))
    for centre, kept in ((low - 1e-3, False), (low + 1e-3, True), (high - 1e-3, True), (high + 1e-3, False)):
        assert (inference.sign_flip(D - centre) > 1 - level) == kept


def test_sign_flip_interval_of_too_few_pairs():
    assert np.isnan(inference.sign_flip_interval(D[:5], 0.95)).all()
    assert inference.sign_flip_interval(D[:6], 0.95) == pytest.approx((D[:6].min(), D[:6].max()), abs=2e-4)


def test_t_tests_equal_scipy_statsmodels_and_pingouin():
    scipy = stats.ttest_rel(OURS, THEIRS)
    interval = scipy.confidence_interval(0.9)
    assert inference.t_test(D) == pytest.approx(scipy.pvalue, rel=1e-9)
    assert inference.t_interval(D, 0.9) == (pytest.approx(interval.low), pytest.approx(interval.high))
    table = pingouin.ttest(OURS, THEIRS, paired=True, confidence=0.95)
    assert inference.t_test(D) == pytest.approx(table["p_val"].item(), rel=1e-9)
    assert inference.t_interval(D, 0.95) == pytest.approx(table["CI95"].item(), abs=0.005)  # rounded there
    for margin in (0.5, 1.5):
        p = inference.tost(D, margin)
        assert p == pytest.approx(ttost_paired(OURS, THEIRS, -margin, margin)[0], rel=1e-9)
        assert p == pytest.approx(pingouin.tost(OURS, THEIRS, margin, paired=True)["pval"].item(), rel=1e-9)


def test_bca_interval_equals_pingouin_up_to_its_own_draws():
    d = np.random.default_rng(0).exponential(size=15)
    ours = inference.bca_interval(d, 0.95, resamples=100_000)
    theirs, percentile = (
        pingouin.compute_bootci(d, func="mean", method=method, n_boot=100_000, decimals=6, seed=1)
        for method in ("bca", "percentile")
    )
    # the upper end is at about 99.4 % of the draws, where one of 100,000 is good to 0.02 deviations of the mean
    tolerance = 4 * 0.02 * stats.sem(d)
    assert ours == (pytest.approx(theirs[0], abs=tolerance), pytest.approx(theirs[1], abs=tolerance))
    assert ours[1] - percentile[1] > tolerance  # skewed data tell the two apart
    assert inference.bca_interval(d, 0.95) == inference.bca_interval(d, 0.95)  # a report repeats


def test_hedges_g_equals_pingouin_up_to_its_approximation():
    plain = pingouin.compute_effsize(OURS, THEIRS, paired=True, eftype="cohen_dz")
    approximate = pingouin.compute_effsize(D, 0, eftype="hedges")
    g = inference.hedges_g(D)
    assert g == pytest.approx(approximate, rel=2e-3)
    assert approximate == pytest.approx(plain * (1 - 3 / 23), rel=1e-12)
    assert g != pytest.approx(approximate, rel=1e-6)


@pytest.mark.parametrize("n", [3, 5, 20])
def test_hedges_g_has_no_bias(n):
    d = np.random.default_rng(n).normal(size=n)
    correction = inference.hedges_g(d) / (d.mean() / d.std(ddof=1))
    true = 0.7  # d_z times sqrt(n) is noncentral t
    assert correction * stats.nct.mean(n - 1, true * math.sqrt(n)) / math.sqrt(n) == pytest.approx(true, rel=1e-6)


@pytest.mark.parametrize(("correction", "theirs"), [("holm", "holm"), ("bonferroni", "bonf")])
def test_corrections_equal_statsmodels_and_pingouin(correction, theirs):
    families = np.random.default_rng(0).beta(0.4, 2, (5, 6))
    adjusted = inference.adjust(families, correction)
    for family, ours in zip(families, adjusted, strict=True):
        np.testing.assert_allclose(ours, multipletests(family, method=correction)[1], rtol=1e-12)
        np.testing.assert_allclose(ours, pingouin.multicomp(family.tolist(), method=theirs)[1], rtol=1e-12)


def test_holm_by_hand():
    # Sorted: .01 x 4 = .04, .02 x 3 = .06, .03 x 2 = .06, .6 x 1; each at least its predecessor, at most 1.
    found = inference.adjust(np.array([0.03, 0.01, 0.6, 0.02]), "holm")
    assert found == pytest.approx([0.06, 0.04, 0.6, 0.06])
    for correction in ("holm", "bonferroni", "none"):
        assert inference.adjust(np.array([]), correction).tolist() == []
    assert inference.adjust(np.array([0.03, 0.01]), "none").tolist() == [0.03, 0.01]


@pytest.mark.parametrize(("correction", "expected"), [("holm", [0.04, 0.03]), ("bonferroni", [0.06, 0.03])])
def test_corrections_count_what_could_not_be_tested(correction, expected):
    adjusted = inference.adjust(np.array([0.02, math.nan, 0.01]), correction)
    assert adjusted[[0, 2]] == pytest.approx(expected)
    assert math.isnan(adjusted[1])


def test_verdicts_follow_from_p_values():
    small, large, none = 0.01, 0.2, math.nan
    cases = {
        (-1.0, small, large): "falls short",
        (1.0, small, large): "better",
        (1.0, 0.05, large): "better",
        (1.0, large, large): "undecided",
        (1.0, large, small): "equivalent",
        (1.0, small, small): "equivalent",
        (1.0, small, none): "better",
        (none, none, none): "undecided",
    }
    assert inference.decide(*np.array(list(cases)).T, 0.05).tolist() == list(cases.values())


@pytest.mark.parametrize("n", [6, 13, 26])
def test_each_row_of_many_is_as_if_it_were_alone(n):
    d = np.random.default_rng(n).normal(0.3, 1, (2, 3, n))
    for name, options in {
        "sign_flip": (), "equivalence": (0.8,), "t_test": (), "tost": (0.8,), "t_interval": (0.9,),
        "bca_interval": (0.9,), "hedges_g": (),
    }.items():  # fmt: skip
        many = np.asarray(getattr(inference, name)(d, *options))
        alone = [[getattr(inference, name)(row, *options) for row in rows] for rows in d]
        np.testing.assert_allclose(many, np.moveaxis(np.asarray(alone), -1, 0) if many.ndim == 3 else alone, rtol=1e-12)
