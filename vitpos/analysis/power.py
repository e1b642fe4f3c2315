"""How many seeds a verdict takes: power of the joint sign-flip tests, and the least number of seeds that reaches it.

A comparison of a family of m is planned as if the other m - 1 were true null hypotheses with the same deviation, so its
power does not count on what the others turn out to be. `per_test` says which level and family a correction comes to.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from scipy import stats

from vitpos.analysis.signs import Floats, flips, least_p
from vitpos.analysis.terms import Terms
from vitpos.errors import VitposError

MOST = 1000
"""No more seeds than this are looked for."""
POWER = 0.80
"""Power with which the seeds for an undecided comparison are counted."""
CONFIDENCE = 0.80
"""One-sided confidence of the limits of a measured deviation (see `deviation_limits`)."""
COARSE = 2
"""With up to so many seeds more than the least possible, sign flips have less power than t tests, and it is simulated.

Beyond, power is that of t tests at Šidák's level, which is within some points.
"""
_STUDIES = 2000  # a power of 80 % comes out within 1.8 points in 19 of 20 simulations
_QUANTILES = (np.arange(2000) + 0.5) / 2000


def per_test(alpha: float, correction: str, comparisons: int) -> tuple[float, int]:
    """Returns the level and the size of the family to plan one of so many comparisons with.

    Max-T judges all jointly at alpha. Holm and Bonferroni are sure to grant each alpha / m by itself.
    """
    if correction == "max_t":
        return alpha, comparisons
    return (alpha if correction == "none" else alpha / max(1, comparisons)), 1


def difference_power(n: int, effect: float, sd: float, alpha: float, family: int = 1) -> float:
    """Computes the power of `signs.max_t` to find a true difference, where differences are normal.

    Args:
        n: Seeds, at least 2.
        effect: True mean of the differences, in points.
        sd: Their standard deviation, in points, above 0.
        alpha: Level of the family.
        family: Comparisons that are judged jointly, this one included.
    """
    least = seeds_for_level(alpha)
    if n < least:
        return 0.0
    if n > least + COARSE:
        return difference_power_t(n, effect, sd, sidak(alpha, family))
    t = np.abs(_statistic(effect / sd + _normal(n, 1)[:, 0], two_sided=True))
    return _rejected(t, _others(n, family, two_sided=True), alpha)


def equivalence_power(n: int, effect: float, sd: float, alpha: float, margin: float, family: int = 1) -> float:
    """Computes the power to show that a true difference lies within the margin, by max-T over one-sided tests.

    Args:
        n: Seeds, at least 2.
        effect: True mean of the differences, in points.
        sd: Their standard deviation, in points, above 0.
        alpha: Level of the family.
        margin: In points.
        family: Comparisons that are judged jointly, this one included; the others differ by the margin.
    """
    least = seeds_for_level(alpha, sides=1)
    if n < least:
        return 0.0
    if n > least + COARSE:
        return equivalence_power_t(n, effect, sd, sidak(alpha, family), margin)
    x = effect / sd + _normal(n, 1)[:, 0]
    above, below = (_statistic(margin / sd + side * x, two_sided=False) for side in (1, -1))
    harder = np.where(above[:, :1] < below[:, :1], above, below)  # both must be rejected
    return _rejected(harder, _others(n, family, two_sided=False), alpha)


def sidak(alpha: float, family: int) -> float:
    """Returns the level of each of so many independent tests whose family-wise level is alpha."""
    return 1 - float((1 - alpha) ** (1 / max(1, family)))


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


def seeds_for_difference(power: float, effect: float, sd: float, alpha: float, family: int = 1) -> int | None:
    """Returns the least number of seeds that finds a true difference with this power; None beyond `MOST`."""
    floor = seeds_for_level(alpha)
    if effect == 0:
        return None
    if sd == 0:
        return floor
    start = _least(lambda n: difference_power_t(n, effect, sd, sidak(alpha, family)), power)
    return _climb(lambda n: difference_power(n, effect, sd, alpha, family), power, floor, start)


def seeds_for_equivalence(
    power: float, effect: float, sd: float, alpha: float, margin: float, family: int = 1
) -> int | None:
    """Returns the least number of seeds that shows equivalence with this power; None beyond `MOST`."""
    floor = seeds_for_level(alpha, sides=1)
    if abs(effect) >= margin:
        return None
    if sd == 0:
        return floor
    start = _least(lambda n: equivalence_power_t(n, effect, sd, sidak(alpha, family), margin), power)
    return _climb(lambda n: equivalence_power(n, effect, sd, alpha, margin, family), power, floor, start)


def seeds_for_level(alpha: float, sides: int = 2) -> int:
    """Returns the least number of seeds with which sign flips can reach a level: sides / 2^n <= alpha.

    One side is what equivalence takes, whose two tests must both reject. Joint flips reach it for any number of
    comparisons: at 0.05 six seeds can show differences, and five equivalence.
    """
    n = 1
    while least_p(n, sides) > alpha:
        n += 1
    return n


def deviation_limits(sd: float, n: int) -> tuple[float, float]:
    """Returns the lower and the upper confidence limit of a standard deviation, each at `CONFIDENCE`.

    ``sd * sqrt((n - 1) / quantile of chi-square)``. From three seeds and a true difference of one deviation, half of
    studies are advised a number of seeds with a power below one half if the deviation found is taken for the true one,
    and 15 % if its upper limit is (see ``results/honesty.md``).

    Source: Browne, 1995, "On the use of a pilot sample for sample size determination".

    Args:
        sd: Standard deviation found.
        n: Seeds that it was found on, at least 2.
    """
    low, high = (sd * math.sqrt((n - 1) / stats.chi2.ppf(q, n - 1)) for q in (CONFIDENCE, 1 - CONFIDENCE))
    return low, high


def seeds_to_decide(
    mean: float, sd: float, n: int, *, margin: float, alpha: float, family: int
) -> tuple[int | None, int | None]:
    """Returns how many seeds in all would decide a comparison with a power of `POWER`, as a range.

    The lesser of what shows a difference and what shows equivalence, if the true mean is as observed, and the true
    deviation at its lower or upper limit (`deviation_limits`). At least one seed more than there are.

    Args:
        mean: Mean difference found, in points.
        sd: Standard deviation found, in points.
        n: Seeds that they were found on, at least 2.
        margin: In points.
        alpha: Level of the family.
        family: Comparisons that are judged jointly.

    Returns:
        For the lower and for the upper limit; None beyond `MOST`.
    """

    def least(sd: float) -> int | None:
        ways = (
            seeds_for_difference(POWER, mean, sd, alpha, family),
            seeds_for_equivalence(POWER, mean, sd, alpha, margin, family),
        )
        return min((max(way, n + 1) for way in ways if way is not None), default=None)

    low, high = deviation_limits(sd, n)
    return least(low), least(high)


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


def plan_seeds(terms: Terms, comparisons: int, seeds: int, sd: float) -> SeedPlan:
    """Computes how many seeds the comparisons of a study take.

    Args:
        terms: Margin, alpha and correction.
        comparisons: How many candidates are compared with the reference.
        seeds: How many seeds the study has.
        sd: Standard deviation of paired differences, in points: stated, or a limit of one that was measured.

    Raises:
        VitposError: The deviation is not above 0, or there is nothing to compare.
    """
    if not 0 < sd < math.inf:
        raise VitposError(f"the deviation of paired differences is {sd}; it must be above 0 percentage points")
    if comparisons < 1:
        raise VitposError("there is nothing to compare: the study has no position but the reference")
    margin = terms.margin
    level, family = per_test(terms.alpha, terms.correction, comparisons)

    def goal(what: str, seeds_for: Callable[[float], int | None], power: float) -> Goal:
        return Goal(what, seeds_for(0.80), seeds_for(0.95), power)

    def difference(what: str, effect: float) -> Goal:
        power = difference_power(seeds, effect, sd, level, family) if seeds > 1 and effect else 0.0
        return goal(what, lambda p: seeds_for_difference(p, effect, sd, level, family), power)

    equal = equivalence_power(seeds, 0.0, sd, level, margin, family) if seeds > 1 and margin else 0.0
    goals = (
        difference(f"a difference of the margin ({margin:g} points)", margin),
        difference(f"a difference of twice the margin ({2 * margin:g} points)", 2 * margin),
        goal(
            f"equivalence within {margin:g} points where there is no difference",
            lambda p: seeds_for_equivalence(p, 0.0, sd, level, margin, family),
            equal,
        ),
    )
    return SeedPlan(sd, level, seeds, seeds_for_level(level), seeds_for_level(level, sides=1), goals)


@cache
def _normal(n: int, rows: int) -> Floats:
    """Draws standard normal differences from one reference, (studies, rows, n), the same each time; row by row."""
    runs = [np.random.default_rng([n, row]).standard_normal((_STUDIES, n)) for row in range(rows + 1)]
    return np.stack([(run - runs[0]) / math.sqrt(2) for run in runs[1:]], axis=1)


def _statistic(x: Floats, *, two_sided: bool) -> Floats:
    """Computes T of `signs.max_t` for each flip: (studies, n) to (studies, flips)."""
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True) @ flips(x.shape[1], two_sided))


@lru_cache(maxsize=16)
def _others(n: int, family: int, *, two_sided: bool) -> Floats:
    """Computes the largest T of the other comparisons, all without effect, for each flip."""
    largest = np.full((1, 1) if family == 1 else (_STUDIES, flips(n, two_sided).shape[1]), -np.inf)
    for row in range(1, family):
        t = _statistic(_normal(n, family)[:, row], two_sided=two_sided)
        np.maximum(largest, np.abs(t) if two_sided else t, out=largest)
    return largest


def _rejected(t: Floats, others: Floats, alpha: float) -> float:
    return float(np.mean((np.maximum(t, others) >= t[:, :1]).mean(axis=1) <= alpha))


@cache
def _found(n: int) -> Floats:
    """Returns quantiles of the deviation found in n pairs, over the true one."""
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
    """Finds the smallest n that reaches a power, from what the t test needs: sign flips need a few more or less."""
    if start is None:
        return None
    n = floor if start <= floor + COARSE + 1 else start - 1
    while power_of(n) < power:
        n += 1
    return n
