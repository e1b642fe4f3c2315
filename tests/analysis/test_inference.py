"""Verdicts, intervals and effect size, against enumeration, a bootstrap by hand, scipy, statsmodels and pingouin."""

import math

import numpy as np
import pandas as pd
import pingouin
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from vitpos.analysis import inference
from vitpos.analysis.inference import indicate, pairing_gain, pigeonhole_interval
from vitpos.analysis.signs import bets, closed_mean, max_t, sign_flip, two_hypotheses
from vitpos.analysis.terms import Terms

OURS = np.array([56.51, 58.02, 57.93, 56.94, 57.25, 57.46, 56.07])
THEIRS = np.array([57.9, 58.3, 57.6, 58.1, 57.4, 57.7, 57.2])
D = OURS - THEIRS
TRUE = np.array([0.0, 0.1, 1.5, 4.0, -4.0])


def study(n, m=5, seed=0, sd=0.4):
    return TRUE[:m, None] + np.random.default_rng([seed, n]).normal(0, sd, (m, n))


def judge(differences, **terms):
    return inference.judge(differences, Terms("first", "", "learned", **terms))


def test_a_judged_study():
    d = study(8)
    found = judge(d, margin=1.0)
    assert found["verdict"].tolist() == ["equivalent", "equivalent", "better", "better", "worse"]
    assert found["beyond"].tolist() == [False, False, bool(found["p_beyond"][2] <= 0.05), True, True]
    assert found["n"].tolist() == [8] * 5
    np.testing.assert_allclose(found["mean"], d.mean(axis=1))
    np.testing.assert_allclose(found["sd"], d.std(axis=1, ddof=1))
    np.testing.assert_array_equal(found["p"], max_t(d))
    np.testing.assert_array_equal(found["p_single"], sign_flip(d))
    near, far = (max_t(two_hypotheses(d, margin), two_sided=False) for margin in (1, -1))
    np.testing.assert_array_equal(found["p_equivalence"], np.maximum(near[:5], near[5:]))
    np.testing.assert_array_equal(found["p_beyond"], np.minimum(far[:5], far[5:]))
    half = stats.t.ppf(0.5 + 0.95 ** (1 / 5) / 2, 7) * found["sd"] / math.sqrt(8)
    np.testing.assert_allclose(found["high"] - found["mean"], half)
    single = stats.ttest_1samp(d, 0, axis=1).confidence_interval(0.95)
    np.testing.assert_allclose(found["single_low"], single.low)
    assert (found["reason"] == "").all()
    assert found["needed_low"].isna().all()


def test_more_than_the_margin_is_a_test_of_its_own():
    d = np.array([[1.4, 0.7, 1.6, 1.2, 0.9, 1.3, 1.5]])
    found = judge(d, margin=1.0)
    assert found["verdict"].tolist() == ["better"]
    assert found["beyond"].tolist() == [False]
    assert judge(d, margin=0.5)["beyond"].tolist() == [True]
    assert judge(-d, margin=0.5)["beyond"].tolist() == [True]
    none = judge(d, margin=0.0)
    assert (none["p_beyond"] == none["p"]).all()
    assert none["p_equivalence"].tolist() == [1]


@pytest.mark.parametrize("options", [{}, {"correction": "holm"}, {"start": 3}, {"family": 7}])
def test_equivalence_holds_from_the_least_margin_on(options):
    d = study(12, sd=0.6)
    least = judge(d, margin=1.0, **options)["least_margin"]
    assert (least > np.abs(d.mean(axis=1))).all()
    for row, margin in enumerate(least):
        assert judge(d, margin=margin, **options)["p_equivalence"][row] <= 0.05
        less = judge(d, margin=margin - 2 * inference.MARGIN_STEP, **options)
        assert less["p_equivalence"][row] > 0.05


def test_too_few_seeds_not_shown_and_not_judged_are_told_apart():
    d = study(6, sd=3.0, seed=2)
    d[1] = np.nan
    d[2, 3:] = np.nan
    found = judge(d, margin=1.0)
    assert found["verdict"].tolist()[:3] == ["undecided"] * 3
    assert found["reason"].tolist()[:3] == ["not shown", "not judged", "too few seeds"]
    numbers = ["mean", "p", "p_equivalence", "p_beyond", "p_single", "low", "least_margin", "g"]
    assert found.loc[1, numbers].isna().all()
    assert found["n"].tolist() == [6, 0, 3, 6, 6]
    assert 6 < found["needed_low"][0] <= found["needed_high"][0]
    assert found["needed_low"][1] is None


@pytest.mark.parametrize("terms", [{}, {"start": 3}, {"correction": "holm"}])
def test_a_study_of_which_nothing_can_be_judged(terms):
    found = judge(np.full((2, 6), np.nan), margin=1.0, **terms)
    assert found["reason"].tolist() == ["not judged"] * 2
    assert found[["mean", "sd", "p", "p_equivalence", "p_beyond", "p_single", "least_margin"]].isna().all(axis=None)
    half = judge(np.vstack((study(8)[3:], np.full((1, 8), np.nan))), margin=1.0, **terms)
    assert half["verdict"].tolist() == ["better", "worse", "undecided"]


def test_what_is_lacking_keeps_its_share_of_alpha():
    d = study(6)[2:]
    alone = judge(d, margin=1.0)
    assert alone["verdict"].tolist() == ["better", "better", "worse"]
    for more in (judge(d, margin=1.0, family=6),
                 judge(np.vstack((d, np.full((3, 6), np.nan))), margin=1.0)[:3]):  # fmt: skip
        np.testing.assert_allclose(more["p"], 2 * alone["p"])
        assert more["verdict"].tolist() == ["undecided"] * 3
        assert more["reason"].tolist() == ["too few seeds"] * 3
        assert (more["high"] > alone["high"]).all()
    d = np.tile(d, 3)
    settled, fewer = (judge(d, margin=1.0, start=3, family=k)["p"] for k in (0, 6))
    np.testing.assert_allclose(fewer, 2 * settled)


@pytest.mark.parametrize(("correction", "floor"), [("max_t", 6), ("holm", 8), ("bonferroni", 8), ("none", 6)])
def test_least_seeds_of_a_correction(correction, floor):
    for n in (floor - 1, floor):
        found = judge(9 * study(n)[3:].repeat(3, axis=0)[:5], margin=1.0, correction=correction)
        assert (found["reason"] == ("too few seeds" if n < floor else "")).all()


def test_holm_judges_each_comparison_by_itself():
    d = study(9)
    found = judge(d, margin=1.0, correction="holm")
    near, far = (sign_flip(two_hypotheses(d, margin), two_sided=False) for margin in (1, -1))
    for column, p in (("p", sign_flip(d)), ("p_equivalence", np.maximum(near[:5], near[5:])),
                      ("p_beyond", np.minimum(1, 2 * np.minimum(far[:5], far[5:])))):  # fmt: skip
        np.testing.assert_allclose(found[column], multipletests(p, method="holm")[1])
    half = stats.t.ppf(1 - 0.05 / 10, 8) * found["sd"] / 3
    np.testing.assert_allclose(found["high"] - found["mean"], half)


def test_seeds_that_were_added_are_judged_by_bets():
    d = study(10)
    found = judge(d, margin=1.0, start=3)
    e = closed_mean(bets(d).T).max(axis=0)
    np.testing.assert_allclose(found["p"], np.minimum(1, 1 / e))
    equal = two_hypotheses(d, 1.0)
    each = np.minimum(bets(equal[:5], two_sided=False), bets(equal[5:], two_sided=False))
    np.testing.assert_allclose(found["p_equivalence"], np.minimum(1, 1 / closed_mean(each.T).max(axis=0)))
    assert found["verdict"].tolist() == ["equivalent", "equivalent", "better", "better", "worse"]
    assert found["needed_low"].isna().all()


def test_what_was_settled_stays_settled():
    d = np.array([[3.0] * 8 + [-3.0] * 3])
    early, late = (judge(x, margin=0.5, start=3) for x in (d[:, :8], d))
    assert early["verdict"].tolist() == late["verdict"].tolist() == ["better"]
    assert bets(d)[0, -1] < 20 <= 1 / late["p"][0]
    few = judge(d[:, :4], margin=0.5, start=3)
    assert few["reason"].tolist() == ["too few seeds"]
    for n, reason in ((5, "too few seeds"), (6, "")):  # the same for any number, if all differ
        assert (judge(np.full((4, n), 3.0), margin=1, start=3)["reason"] == reason).all()


def test_what_three_to_five_seeds_indicate_is_no_verdict():
    d = study(4, sd=0.1)
    found = judge(d, margin=1.0)
    assert found["reason"].tolist() == ["too few seeds"] * 5
    assert found["indicated"].tolist() == ["equivalent", "equivalent", "better", "better", "worse"]
    p = 2 * stats.t.sf(np.abs(d.mean(axis=1)) / stats.sem(d, axis=1), 3)
    adjusted = multipletests(p, method="holm-sidak")[1]
    p_tost = np.array([ttost_paired(row, np.zeros(4), -1.0, 1.0)[0] for row in d])
    equal = multipletests(p_tost, method="holm-sidak")[1]
    differs = np.where(d.mean(axis=1) > 0, "better", "worse")
    for alpha in (1e-4, 1e-3, 1e-2):
        expected = np.where(equal <= alpha, "equivalent", np.where(adjusted <= alpha, differs, ""))
        assert indicate(d, 1.0, alpha).tolist() == expected.tolist()
    for n in (2, 6):
        assert (indicate(study(n, sd=0.1), 1.0, 0.05) == "").all()


def test_nothing_is_indicated_where_differences_do_not_vary():
    d = np.array([[2.0, 2.0, 2.0 + 6e-6, np.nan], [2.0, 2.1, 1.9, 2.05]])
    assert indicate(d, 1.0, 0.05).tolist() == ["", "better"]
    assert judge(d, margin=1.0)["sd"][0] == 0
    assert indicate(np.full((2, 4), np.nan), 1.0, 0.05).tolist() == ["", ""]


def test_a_study_without_effect_or_variance():
    found = judge(np.zeros((2, 8)), margin=1.0)
    assert found["verdict"].tolist() == ["equivalent"] * 2
    assert found["mean"].tolist() == found["sd"].tolist() == [0, 0]
    assert found["low"].isna().all()
    assert judge(np.zeros((2, 8)), margin=0.0)["verdict"].tolist() == ["undecided"] * 2
    assert isinstance(judge(np.zeros(3), margin=0.0), pd.DataFrame)  # one comparison
    assert judge(np.zeros((2, 1)), margin=1.0)["reason"].tolist() == ["too few seeds"] * 2


def flags(n, images, seed=0):
    rng = np.random.default_rng(seed)
    ease = rng.normal(size=images) + rng.normal(size=(2, 1, images))
    able = np.array([1.0, 0.7])[:, None, None] + 0.3 * rng.normal(size=(2, n, 1))
    return able + ease + rng.normal(size=(2, n, images)) > 0


def test_the_pigeonhole_interval_is_that_of_a_bootstrap():
    ours, theirs = flags(7, 150)
    low, high = pigeonhole_interval(ours, theirs)
    d = ours.astype(float) - theirs
    rng = np.random.default_rng(1)
    drawn = [
        (d[rng.integers(0, 7, 6)] @ np.bincount(rng.integers(0, 150, 150), minlength=150)).mean() / 150
        for _ in range(20_000)
    ]
    of_seeds = d.mean(axis=1).var(ddof=1) / 7
    free = 6 * (np.var(drawn) / of_seeds) ** 2
    half = stats.t.ppf(0.975, free) * np.std(drawn)
    assert (low + high) / 2 == pytest.approx(100 * d.mean())
    assert (high - low) / 2 == pytest.approx(100 * half, rel=0.02)  # a deviation of 20,000 draws is good to 0.5 %
    assert half > stats.norm.ppf(0.975) * math.sqrt(of_seeds)


def test_the_pigeonhole_interval_of_many_images_is_that_of_the_seeds():
    ours = np.random.default_rng(0).random((6, 1)) > np.linspace(0, 1, 200_000)  # seeds differ, images do not
    theirs = np.zeros_like(ours)
    d = ours.mean(axis=1)
    low, high = pigeonhole_interval(ours, theirs)
    seeds = inference.t_interval(100 * d.mean(), 100 * d.std(ddof=1), len(d), 0.95)
    assert (low, high) == (pytest.approx(seeds[0], rel=0.02), pytest.approx(seeds[1], rel=0.02))


def test_a_pigeonhole_interval_needs_two_seeds_and_a_difference():
    ours, theirs = flags(4, 30)
    for case in ((ours[:1], theirs[:1]), (ours, ours), (ours[:, :1], theirs[:, :1])):
        assert np.isnan(pigeonhole_interval(*case)).all()
    assert pigeonhole_interval(ours, theirs) == pytest.approx(
        tuple(-x for x in pigeonhole_interval(theirs, ours)[::-1])
    )


def test_what_pairing_bought():
    correlation, unpaired = pairing_gain(OURS, THEIRS)
    assert correlation == pytest.approx(stats.pearsonr(OURS, THEIRS).statistic)
    # the same standard error: (s_a^2 + s_b^2) / unpaired = s_d^2 / n
    assert (OURS.var(ddof=1) + THEIRS.var(ddof=1)) / unpaired == pytest.approx(D.var(ddof=1) / 7)
    assert pairing_gain(OURS, OURS + 1) == (1, math.inf)
    assert np.isnan(pairing_gain(OURS, np.full(7, 50.0))).all()
    assert np.isnan(pairing_gain(OURS[:1], THEIRS[:1])).all()


def test_hedges_g_equals_pingouin_up_to_its_approximation():
    plain = pingouin.compute_effsize(OURS, THEIRS, paired=True, eftype="cohen_dz")
    approximate = pingouin.compute_effsize(D, 0, eftype="hedges")
    g = inference.hedges_g(D.mean(), D.std(ddof=1), len(D))
    assert g == pytest.approx(approximate, rel=2e-3)
    assert approximate == pytest.approx(plain * (1 - 3 / 23), rel=1e-12)
    assert g != pytest.approx(approximate, rel=1e-6)


@pytest.mark.parametrize("n", [3, 5, 20])
def test_hedges_g_has_no_bias(n):
    d = np.random.default_rng(n).normal(size=n)
    correction = inference.hedges_g(d.mean(), d.std(ddof=1), n) / (d.mean() / d.std(ddof=1))
    true = 0.7  # d_z times sqrt(n) is noncentral t
    assert correction * stats.nct.mean(n - 1, true * math.sqrt(n)) / math.sqrt(n) == pytest.approx(true, rel=1e-6)


@pytest.mark.parametrize(("correction", "theirs"), [("holm", "holm"), ("bonferroni", "bonf"), ("max_t", None)])
def test_corrections_equal_statsmodels_and_pingouin(correction, theirs):
    families = np.random.default_rng(0).beta(0.4, 2, (5, 6))
    adjusted = inference.adjust(families, correction)
    for family, ours in zip(families, adjusted, strict=True):
        np.testing.assert_allclose(
            ours, multipletests(family, method={"max_t": "holm-sidak"}.get(correction, correction))[1], rtol=1e-12
        )
        if theirs:
            np.testing.assert_allclose(ours, pingouin.multicomp(family.tolist(), method=theirs)[1], rtol=1e-12)


def test_holm_by_hand():
    # Sorted: .01 x 4 = .04, .02 x 3 = .06, .03 x 2 = .06, .6 x 1; each at least its predecessor, at most 1.
    found = inference.adjust(np.array([0.03, 0.01, 0.6, 0.02]), "holm")
    assert found == pytest.approx([0.06, 0.04, 0.6, 0.06])
    for correction in ("holm", "bonferroni", "none"):
        assert inference.adjust(np.array([]), correction).tolist() == []
    assert inference.adjust(np.array([0.03, 0.01]), "none").tolist() == [0.03, 0.01]
    for correction in ("holm", "max_t", "bonferroni"):  # two that lack count as 1
        more = inference.adjust(np.array([0.03, 0.01, 1, 1]), correction)[:2]
        assert inference.adjust(np.array([0.03, 0.01]), correction, family=4) == pytest.approx(more)


@pytest.mark.parametrize(("correction", "expected"), [("holm", [0.04, 0.03]), ("bonferroni", [0.06, 0.03])])
def test_corrections_count_what_could_not_be_tested(correction, expected):
    adjusted = inference.adjust(np.array([0.02, math.nan, 0.01]), correction)
    assert adjusted[[0, 2]] == pytest.approx(expected)
    assert math.isnan(adjusted[1])
