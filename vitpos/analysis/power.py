"""How many seeds a verdict takes: power of the sign-flip tests, and the least number of pairs that reaches it.

A study of m comparisons is planned at the level alpha / m of each. That is Bonferroni's and the first that Holm asks
for, so Holm finds no less; how much more depends on the other comparisons.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import stats

from vitpos.analysis.terms import Terms
from vitpos.analysis.inference import Floats, equivalence, least_p, sign_flip
from vitpos.errors import VitposError

MOST = 1000
"""No more seeds than this are looked for."""
SIMULATED_PAIRS = 16
"""Up to so many pairs power is that of simulated studies; beyond, that of t tests, which is within a point of it."""
_STUDIES = 8000  # a power of 80 % comes out within 0.9 points in 19 of 20 simulations
_QUANTILES = (np.arange(2000) + 0.5) / 2000


def difference_power(n: int, effect: float, sd: float, alpha: float) -> float:
    """Computes the power of `inference.sign_flip` to find a true difference, where differences are normal.

    Args:
        n: Pairs, at least 2.
        effect: True mean of the differences, in points.
        sd: Their standard deviation, in points, above 0.
        alpha: Level of this one comparison.
    """
    if least_p(n) > alpha:
        return 0.0
    if n > SIMULATED_PAIRS:
        return difference_power_t(n, effect, sd, alpha)
    return float(np.mean(sign_flip(effect + sd * _normal(n)) <= alpha))


def equivalence_power(n: int, effect: float, sd: float, alpha: float, margin: float) -> float:
    """Computes the power of `inference.equivalence` to show that a true difference lies within the margin.

    Args:
        n: Pairs, at least 2.
        effect: True mean of the differences, in points.
        sd: Their standard deviation, in points, above 0.
        alpha: Level of this one comparison.
        margin: In points.
    """
    if least_p(n, sides=1) > alpha:
        return 0.0
    if n > SIMULATED_PAIRS:
        return equivalence_power_t(n, effect, sd, alpha, margin)
    return float(np.mean(equivalence(effect + sd * _normal(n), margin) <= alpha))


def difference_power_t(n: int, effect: float, sd: float, alpha: float) -> float:
    """Computes the power of the two-sided paired t test.

    The deviation found, over the true one, is the root of chi-square / (n - 1); this is the mean over its quantiles of
    ``P(|mean| > t s / sqrt(n))``. Equal to the noncentral t distribution, which scipy does not compute far out.
    """
    shift, reach = effect * math.sqrt(n) / sd, stats.t.ppf(1 - alpha / 2, n - 1) * _found(n)
    return float(np.mean(stats.norm.cdf(shift - reach) + stats.norm.cdf(-shift - reach)))


def equivalence_power_t(n: int, effect: float, sd: float, alpha: float, margin: float) -> float:
    """Computes the power of two one-sided paired t tests (TOST): mean of ``P(|mean| < margin - t s / sqrt(n))``.

    Source: Phillips, 1990, "Power of the two one-sided tests procedure in bioequivalence".
    """
    error = sd / math.sqrt(n)
    reach = margin / error - stats.t.ppf(1 - alpha, n - 1) * _found(n)
    inside = stats.norm.cdf(reach - effect / error) - stats.norm.cdf(-reach - effect / error)
    return float(np.mean(np.maximum(inside, 0)))


def seeds_for_difference(power: float, effect: float, sd: float, alpha: float) -> int | None:
    """Gives the least number of seeds that finds a true difference with this power; None beyond `MOST`."""
    floor = seeds_for_level(alpha)
    if effect == 0:
        return None
    if sd == 0:
        return floor
    start = _least(lambda n: difference_power_t(n, effect, sd, alpha), power)
    return _climb(lambda n: difference_power(n, effect, sd, alpha), power, floor, start)


def seeds_for_equivalence(power: float, effect: float, sd: float, alpha: float, margin: float) -> int | None:
    """Gives the least number of seeds that shows equivalence with this power; None beyond `MOST`."""
    floor = seeds_for_level(alpha, sides=1)
    if abs(effect) >= margin:
        return None
    if sd == 0:
        return floor
    start = _least(lambda n: equivalence_power_t(n, effect, sd, alpha, margin), power)
    return _climb(lambda n: equivalence_power(n, effect, sd, alpha, margin), power, floor, start)


def seeds_for_level(alpha: float, sides: int = 2) -> int:
    """Gives the least number of pairs with which a sign-flip test can reach a level: sides / 2^n <= alpha.

    One side is what equivalence takes, whose two tests must both reject.
    """
    n = 1
    while least_p(n, sides) > alpha:
        n += 1
    return n


def pooled_sd(sds: Sequence[float], pairs: Sequence[int]) -> float:
    """Pools the deviations of several comparisons: the root of the mean variance, weighted by n - 1.

    Args:
        sds: Standard deviations of paired differences, such as those of an earlier study; NaN is left out.
        pairs: n of each.

    Returns:
        The deviation; NaN where none is known.
    """
    known = [(sd**2, n - 1) for sd, n in zip(sds, pairs, strict=True) if n > 1 and math.isfinite(sd)]
    freedom = sum(f for _, f in known)
    return math.sqrt(sum(v * f for v, f in known) / freedom) if freedom else math.nan


@dataclass(frozen=True)
class Goal:
    """What a study may want to show of one comparison, and the seeds that this takes.

    Attributes:
        what: In words.
        seeds_80: Least number of seeds with a power of 80 %; None beyond `MOST`, or where it cannot be shown at all.
        seeds_95: The same for 95 %.
        power: Power with the seeds that the study has.
    """

    what: str
    seeds_80: int | None
    seeds_95: int | None
    power: float


@dataclass(frozen=True)
class SeedPlan:
    """How far the seeds of a study go.

    Attributes:
        sd: Standard deviation of paired differences that this is computed for, in points.
        level: Level at which one comparison is planned.
        seeds: Seeds that the study has.
        least_for_difference: With fewer, no difference can be shown, however large.
        least_for_equivalence: With fewer, no equivalence can be shown.
        goals: A difference of the margin, one of twice the margin, and equivalence where there is no difference.
    """

    sd: float
    level: float
    seeds: int
    least_for_difference: int
    least_for_equivalence: int
    goals: tuple[Goal, ...]


def plan_seeds(comparison: Terms, comparisons: int, seeds: int, sd: float) -> SeedPlan:
    """Computes how many seeds the comparisons of a study take.

    Args:
        comparison: Margin, alpha and correction.
        comparisons: How many candidates are compared with the reference.
        seeds: How many seeds the study has.
        sd: Standard deviation of paired differences, in points: stated, or measured (`pooled_sd`).

    Raises:
        VitposError: The deviation is not above 0, or there is nothing to compare.
    """
    if not 0 < sd < math.inf:
        raise VitposError(f"the deviation of paired differences is {sd}; it must be above 0 percentage points")
    if comparisons < 1:
        raise VitposError("there is nothing to compare: the study has no position but the reference")
    level, margin = comparison.per_test_alpha(comparisons), comparison.margin

    def goal(what: str, seeds_for: Callable[[float], int | None], power: float) -> Goal:
        return Goal(what, seeds_for(0.80), seeds_for(0.95), power)

    def difference(what: str, effect: float) -> Goal:
        power = difference_power(seeds, effect, sd, level) if seeds > 1 and effect else 0.0
        return goal(what, lambda p: seeds_for_difference(p, effect, sd, level), power)

    equal = equivalence_power(seeds, 0.0, sd, level, margin) if seeds > 1 and margin else 0.0
    goals = (
        difference(f"a difference of the margin ({margin:g} points)", margin),
        difference(f"a difference of twice the margin ({2 * margin:g} points)", 2 * margin),
        goal(
            f"equivalence within {margin:g} points where there is no difference",
            lambda p: seeds_for_equivalence(p, 0.0, sd, level, margin),
            equal,
        ),
    )
    return SeedPlan(sd, level, seeds, seeds_for_level(level), seeds_for_level(level, sides=1), goals)


@cache
def _normal(n: int) -> Floats:
    """Draws standard normal differences of studies of n pairs, the same each time."""
    return np.random.default_rng(n).standard_normal((_STUDIES, n))


@cache
def _found(n: int) -> Floats:
    """Gives quantiles of the deviation found in n pairs, over the true one."""
    return np.asarray(np.sqrt(stats.chi2.ppf(_QUANTILES, n - 1) / (n - 1)))


def _least(power_of: Callable[[int], float], power: float) -> int | None:
    """Finds the smallest n from 2 to `MOST` that reaches a power, which grows with n."""
    low, high = 1, 2
    while power_of(high) < power:
        if high >= MOST:
            return None
        low, high = high, min(2 * high, MOST)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(middle) >= power else (middle, high)
    return high


def _climb(power_of: Callable[[int], float], power: float, floor: int, start: int | None) -> int | None:
    """Finds the smallest n that reaches a power, from what the t test needs: sign flips need a few more, if any."""
    if start is None:
        return None
    n = max(floor, start - 1)
    while power_of(n) < power:
        n += 1
    return n
