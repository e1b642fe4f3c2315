"""How many seeds a verdict takes: power of the tests of paired differences, and the smallest number that reaches it."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from scipy import stats
from statsmodels.stats.power import TTestPower

from vitpos.analysis.inference import least_p

MOST = 1000
"""No more seeds than this are looked for."""


def difference_power(n: int, effect: float, sd: float, alpha: float) -> float:
    """Computes the power of a two-sided paired test to find a true difference.

    That of the t test (noncentral t), which the sign-flip test approaches; 0 where `n` pairs cannot give a sign-flip
    p value of `alpha`.

    Args:
        n: Pairs, at least 2.
        effect: True mean of the differences, in points.
        sd: Their standard deviation, in points, above 0.
        alpha: Level of this one comparison.
    """
    if least_p(n) > alpha:
        return 0.0
    return float(TTestPower().power(abs(effect) / sd, n, alpha))


def equivalence_power(n: int, effect: float, sd: float, alpha: float, margin: float) -> float:
    """Computes the power of two one-sided paired t tests to show that a true difference lies within the margin.

    The integral over the deviation s found, with s^2 (n - 1) / sd^2 chi-square and the mean found normal, of
    ``P(-margin + t s / sqrt(n) < mean < margin - t s / sqrt(n))`` (Phillips 1990), by the midpoints of 2000 quantiles.

    Args:
        n: Pairs, at least 2.
        effect: True mean of the differences, in points.
        sd: Their standard deviation, in points, above 0.
        alpha: Level of this one comparison.
        margin: In points.
    """
    error = sd / math.sqrt(n)
    quantiles = (np.arange(2000) + 0.5) / 2000
    found = error * np.sqrt(stats.chi2.ppf(quantiles, n - 1) / (n - 1))
    reach = margin - float(stats.t.ppf(1 - alpha, n - 1)) * found
    inside = stats.norm.cdf((reach - effect) / error) - stats.norm.cdf((-reach - effect) / error)
    return float(np.clip(inside, 0, None).mean())


def seeds_for_difference(power: float, effect: float, sd: float, alpha: float) -> int | None:
    """Gives the least number of seeds that finds a true difference with this power; None beyond `MOST`."""
    return _least(partial(difference_power, effect=effect, sd=sd, alpha=alpha), power) if effect else None


def seeds_for_equivalence(power: float, effect: float, sd: float, alpha: float, margin: float) -> int | None:
    """Gives the least number of seeds that shows equivalence with this power; None beyond `MOST`."""
    if abs(effect) >= margin:
        return None
    return _least(partial(equivalence_power, effect=effect, sd=sd, alpha=alpha, margin=margin), power)


def seeds_for_level(alpha: float) -> int:
    """Gives the least number of pairs with which a sign-flip test can reach a level: 2 / 2^n <= alpha."""
    return math.ceil(1 - math.log2(alpha) - 1e-12)


def _least(power_of: Callable[[int], float], power: float) -> int | None:
    """Finds the smallest n that reaches a power, which grows with n; from below, for scipy's fails far above 1."""
    low, high = 1, 2
    while power_of(high) < power:
        if high >= MOST:
            return None
        low, high = high, min(2 * high, MOST)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(middle) >= power else (middle, high)
    return high
