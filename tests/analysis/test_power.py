"""Power and numbers of seeds, against statsmodels and simulated studies."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from vitpos.analysis import power
from vitpos.analysis.inference import flip_tests
from vitpos.analysis.signs import max_t


@pytest.mark.parametrize("n", [3, 8, 30, 200])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 8])
def test_power_of_the_t_test_equals_statsmodels(n, alpha):
    for effect in (0.0, 1.0, -2.0, 4.0):
        expected = TTestPower().power(abs(effect) / math.sqrt(n), n, alpha)
        assert power.t_power(n, effect, math.sqrt(n), alpha) == pytest.approx(expected, rel=0, abs=2e-4)


def test_power_far_out_is_a_number():
    assert math.isnan(TTestPower().power(4.0, 6, 0.05))  # why it is not computed there
    assert power.t_power(6, 4.0, 1.0, 0.05) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("n", "effect", "margin"), [(3, 0, 1.0), (9, 0, 0.6), (9, -0.3, 0.8), (25, 0.4, 0.8)])
def test_power_of_two_one_sided_t_tests(n, effect, margin):
    d = np.random.default_rng(1).normal(effect, 0.5, (20_000, n))
    above, below = (stats.ttest_1samp(margin + side * d, 0, axis=1, alternative="greater").pvalue for side in (1, -1))
    expected = np.mean(np.maximum(above, below) <= 0.05)  # good to 0.004
    assert power.t_power(n, effect, 0.5, 0.05, margin) == pytest.approx(expected, abs=0.015)


def families(n, family, first, others):
    """Draws 2,000 families of differences that share a reference, with a deviation of 1."""
    runs = np.random.default_rng([n, family]).normal(size=(2000, family + 1, n))
    d = (runs[:, 1:] - runs[:, :1]) / math.sqrt(2)
    d[:, 0] += first
    d[:, 1:] += others
    return d


@pytest.mark.parametrize(("n", "family"), [(6, 1), (6, 5), (7, 3), (8, 5), (9, 5), (10, 2)])
def test_power_is_what_joint_tests_find(n, family):
    d = families(n, family, 1.8, 0)
    # both are simulated, each good to 0.02; t tests beyond a few seeds are some points off
    assert power.flip_power(n, 1.8, 1, 0.05, family) == pytest.approx(np.mean(max_t(d)[:, 0] <= 0.05), abs=0.04)
    d = families(n, family, 0.3, 2.0)
    found = flip_tests(d, 2.0).equivalence[:, 0] <= 0.05
    assert power.flip_power(n, 0.3, 1, 0.05, family, 2.0) == pytest.approx(np.mean(found), abs=0.04)


def test_few_seeds_have_less_power_than_a_t_test_says():
    assert power.flip_power(6, 1.43, 1, 0.05) < power.t_power(6, 1.43, 1, 0.05) - 0.1


@pytest.mark.parametrize(("alpha", "tolerance"), [(0.05, 0.05), (0.05 / 5, 0.06), (0.05 / 12, 0.08)])
def test_beyond_the_simulated_seeds_the_t_test_is_near(alpha, tolerance, monkeypatch):
    n = power.seeds_for_level(alpha) + power.COARSE + 1
    by_t = [power.flip_power(n, effect, 1, alpha) for effect in (0.9, 1.1, 1.4)]
    monkeypatch.setattr(power, "COARSE", power.COARSE + 1)
    simulated = [power.flip_power(n, effect, 1, alpha) for effect in (0.9, 1.1, 1.4)]
    assert simulated == pytest.approx(by_t, abs=tolerance)
    assert simulated != by_t


@pytest.mark.parametrize(("sides", "alpha", "n"), [
    (2, 0.05, 6), (2, 0.05 / 8, 9), (1, 0.05, 5), (1, 0.05 / 8, 8), (2, 0.5, 2), (2, 1 / 32, 6), (1, 0.9, 1),
])  # fmt: skip
def test_least_seeds_for_a_level(sides, alpha, n):
    assert power.seeds_for_level(alpha, sides) == n
    assert sides / 2**n <= alpha < sides / 2 ** (n - 1)


@pytest.mark.parametrize("family", [1, 5, 30])
def test_six_seeds_do_for_any_number_of_comparisons(family):
    assert power.seeds_for(0.8, 6.0, 1.0, 0.05, family) == 6
    assert power.seeds_for(0.8, 0.0, 1.0, 0.05, family, 8.0) == 5


def test_level_and_family_of_a_correction():
    assert power.per_test(0.05, "max_t", 8) == (0.05, 8)
    assert power.per_test(0.05, "holm", 8) == power.per_test(0.05, "bonferroni", 8) == (0.05 / 8, 1)
    assert power.per_test(0.05, "none", 8) == (0.05, 1)


def test_limits_of_a_deviation():
    found = np.random.default_rng(0).normal(0, 2, (2000, 5)).std(axis=1, ddof=1)
    low, high = np.array([power.deviation_limits(sd, 5) for sd in found]).T
    assert np.mean(low > 2) == pytest.approx(0.2, abs=0.03)
    assert np.mean(high < 2) == pytest.approx(0.2, abs=0.03)


def test_seeds_to_decide_are_a_range():
    options = {"margin": 1.0, "alpha": 0.05, "family": 5}
    low, high = power.seeds_to_decide(2.0, 1.0, 3, **options)
    limits = power.deviation_limits(1.0, 3)
    assert [low, high] == [power.seeds_for(0.8, 2.0, sd, 0.05, 5) for sd in limits]
    assert low < high
    assert power.seeds_to_decide(0.0, 0.5, 4, **options)[0] == power.seeds_for(
        0.8, 0.0, power.deviation_limits(0.5, 4)[0], 0.05, 5, 1.0
    )
    assert power.seeds_to_decide(0.01, 0.001, 9, **options) == (10, 10)  # at least one more
    assert power.seeds_to_decide(1.0, 1e4, 3, **options) == (None, None)


@pytest.mark.parametrize(("effect", "alpha"), [(5.0, 0.05), (1.0, 0.05), (-1.0, 0.01), (0.5, 0.01), (0.12, 0.05)])
@pytest.mark.parametrize("wanted", [0.8, 0.95])
def test_least_seeds_for_a_difference(effect, alpha, wanted):
    n = power.seeds_for(wanted, effect, 1.0, alpha)
    assert power.flip_power(n, effect, 1.0, alpha) >= wanted > power.flip_power(n - 1, effect, 1.0, alpha)


@pytest.mark.parametrize(("effect", "margin"), [(0.0, 3.0), (0.0, 1.0), (0.2, 0.8), (-0.2, 0.8), (0.0, 0.2)])
@pytest.mark.parametrize("wanted", [0.8, 0.95])
def test_least_seeds_for_equivalence(effect, margin, wanted):
    n = power.seeds_for(wanted, effect, 1.0, 0.01, margin=margin)
    assert power.flip_power(n, effect, 1.0, 0.01, margin=margin) >= wanted
    assert power.flip_power(n - 1, effect, 1.0, 0.01, margin=margin) < wanted


def test_what_no_number_of_seeds_shows():
    assert power.seeds_for(0.8, 0.0, 1.0, 0.05) is None
    assert power.seeds_for(0.8, 0.01, 1.0, 0.05) is None  # 78,000
    assert power.seeds_for(0.8, 1.0, 1.0, 0.05, margin=1.0) is None
    assert power.seeds_for(0.8, 0.0, 1.0, 0.05, margin=0.0) is None
    assert power.seeds_for(0.8, 0.0, 100.0, 0.05, margin=1.0) is None


def test_without_deviation_the_level_alone_counts():
    assert power.seeds_for(0.8, 0.3, 0.0, 0.05) == 6
    assert power.seeds_for(0.8, 0.3, 0.0, 0.05, margin=1.0) == 5
