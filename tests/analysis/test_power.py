"""Power and numbers of seeds, against statsmodels and simulated studies."""

import math

import numpy as np
import pytest
from statsmodels.stats.power import TTestPower

from vitpos.analysis import inference, power
from vitpos.analysis.comparison import Comparison
from vitpos.errors import VitposError


@pytest.mark.parametrize("n", [3, 8, 30, 200])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 8])
def test_power_of_the_t_test_equals_statsmodels(n, alpha):
    for effect in (0.0, 1.0, -2.0, 4.0):
        expected = TTestPower().power(abs(effect) / math.sqrt(n), n, alpha)
        assert power.difference_power_t(n, effect, math.sqrt(n), alpha) == pytest.approx(expected, rel=0, abs=2e-4)


def test_power_far_out_is_a_number():
    assert math.isnan(TTestPower().power(4.0, 6, 0.05))  # why it is not computed there
    assert power.difference_power_t(6, 4.0, 1.0, 0.05) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("n", "effect", "margin"), [(3, 0, 1.0), (9, 0, 0.6), (9, -0.3, 0.8), (25, 0.4, 0.8)])
def test_power_of_two_one_sided_t_tests(n, effect, margin):
    d = np.random.default_rng(1).normal(effect, 0.5, (20_000, n))
    expected = np.mean(inference.tost(d, margin) <= 0.05)  # good to 0.004
    assert power.equivalence_power_t(n, effect, 0.5, 0.05, margin) == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize("n", [6, 9, 14])
def test_power_of_the_sign_flip_tests_is_what_other_studies_find(n):
    d = np.random.default_rng(99).normal(0.9, 1, (8000, n))
    found = np.mean(inference.sign_flip(d) <= 0.05), np.mean(inference.equivalence(d, 2.0) <= 0.05)
    # both are simulated, each good to 0.006
    assert power.difference_power(n, 0.9, 1, 0.05) == pytest.approx(found[0], abs=0.025)
    assert power.equivalence_power(n, 0.9, 1, 0.05, 2.0) == pytest.approx(found[1], abs=0.025)


def test_few_pairs_have_less_power_than_a_t_test_says():
    assert power.difference_power(6, 1.43, 1, 0.05) < power.difference_power_t(6, 1.43, 1, 0.05) - 0.1


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 5, 0.05 / 30])
def test_beyond_the_simulated_pairs_the_t_test_is_near(alpha, monkeypatch):
    n = power.SIMULATED_PAIRS + 1
    monkeypatch.setattr(power, "SIMULATED_PAIRS", n)
    for effect in (0.7, 0.9, 1.1, 1.4):
        simulated, t = power.difference_power(n, effect, 1, alpha), power.difference_power_t(n, effect, 1, alpha)
        assert simulated == pytest.approx(t, abs=0.02)  # 0.005 of it from the simulation
        simulated = power.equivalence_power(n, 0, 1, alpha, effect)
        assert simulated == pytest.approx(power.equivalence_power_t(n, 0, 1, alpha, effect), abs=0.02)


@pytest.mark.parametrize(("sides", "alpha", "n"), [
    (2, 0.05, 6), (2, 0.05 / 8, 9), (1, 0.05, 5), (1, 0.05 / 8, 8), (2, 0.5, 2), (2, 1 / 32, 6), (1, 0.9, 1),
])  # fmt: skip
def test_least_pairs_for_a_level(sides, alpha, n):
    assert power.seeds_for_level(alpha, sides) == n
    assert inference.least_p(n, sides) <= alpha < inference.least_p(n - 1, sides)


@pytest.mark.parametrize(("effect", "alpha"), [(5.0, 0.05), (1.0, 0.05), (-1.0, 0.01), (0.5, 0.01), (0.12, 0.05)])
@pytest.mark.parametrize("wanted", [0.8, 0.95])
def test_least_seeds_for_a_difference(effect, alpha, wanted):
    n = power.seeds_for_difference(wanted, effect, 1.0, alpha)
    assert power.difference_power(n, effect, 1.0, alpha) >= wanted > power.difference_power(n - 1, effect, 1.0, alpha)


@pytest.mark.parametrize(("effect", "margin"), [(0.0, 3.0), (0.0, 1.0), (0.2, 0.8), (-0.2, 0.8), (0.0, 0.2)])
@pytest.mark.parametrize("wanted", [0.8, 0.95])
def test_least_seeds_for_equivalence(effect, margin, wanted):
    n = power.seeds_for_equivalence(wanted, effect, 1.0, 0.01, margin)
    assert power.equivalence_power(n, effect, 1.0, 0.01, margin) >= wanted
    assert power.equivalence_power(n - 1, effect, 1.0, 0.01, margin) < wanted


def test_what_no_number_of_seeds_shows():
    assert power.seeds_for_difference(0.8, 0.0, 1.0, 0.05) is None
    assert power.seeds_for_difference(0.8, 0.01, 1.0, 0.05) is None  # 78,000
    assert power.seeds_for_equivalence(0.8, 1.0, 1.0, 0.05, 1.0) is None
    assert power.seeds_for_equivalence(0.8, 0.0, 1.0, 0.05, 0.0) is None
    assert power.seeds_for_equivalence(0.8, 0.0, 100.0, 0.05, 1.0) is None


def test_without_deviation_the_level_alone_counts():
    assert power.seeds_for_difference(0.8, 0.3, 0.0, 0.05) == 6
    assert power.seeds_for_equivalence(0.8, 0.3, 0.0, 0.05, 1.0) == 5


def test_pooled_deviation():
    assert power.pooled_sd([1.0, 3.0, math.nan], [3, 2, 5]) == pytest.approx(math.sqrt((2 * 1 + 1 * 9) / 3))
    assert math.isnan(power.pooled_sd([math.nan], [1]))


def test_plan_of_a_study():
    comparison = Comparison("first", "", "learned", margin=1.0)
    plan = power.plan_seeds(comparison, 8, 5, sd=0.6)
    assert (plan.level, plan.seeds) == (0.05 / 8, 5)
    assert (plan.least_for_difference, plan.least_for_equivalence) == (9, 8)
    one, two, equal = plan.goals
    assert one.what == "a difference of the margin (1 points)"
    assert [goal.power for goal in plan.goals] == [0, 0, 0]
    assert one.seeds_80 == power.seeds_for_difference(0.8, 1.0, 0.6, 0.05 / 8)
    assert two.seeds_95 == power.seeds_for_difference(0.95, 2.0, 0.6, 0.05 / 8)
    assert equal.seeds_95 == power.seeds_for_equivalence(0.95, 0.0, 0.6, 0.05 / 8, 1.0)
    assert 9 <= two.seeds_80 <= one.seeds_80 < one.seeds_95
    more = power.plan_seeds(comparison, 8, one.seeds_80, sd=0.6)
    assert more.goals[0].power >= 0.8
    alone = power.plan_seeds(Comparison("first", "", "learned", correction="none"), 8, 6, sd=0.6)
    assert (alone.level, alone.least_for_difference) == (0.05, 6)


def test_plan_without_a_margin_has_no_goals_that_can_be_reached():
    plan = power.plan_seeds(Comparison("first", "", "learned", margin=0.0), 2, 5, sd=0.6)
    assert [(goal.seeds_80, goal.seeds_95, goal.power) for goal in plan.goals] == [(None, None, 0.0)] * 3


@pytest.mark.parametrize(("comparisons", "sd", "message"), [
    (1, 0.0, r"the deviation of paired differences is 0\.0; it must be above 0"), (1, math.nan, "is nan"),
    (0, 1.0, "nothing to compare"),
])  # fmt: skip
def test_plans_that_make_no_sense(comparisons, sd, message):
    with pytest.raises(VitposError, match=message):
        power.plan_seeds(Comparison("first", "", "learned"), comparisons, 5, sd)
