"""How many seeds a verdict takes: the power of the joint sign-flip tests, and the smallest number of seeds to reach it.

One comparison of a family of m is planned as if the other m - 1 were true null hypotheses with the same deviation, so
its power does not depend on how the others turn out. `per_test` gives the level and the family size of a correction.

All functions take a true mean difference (``effect``), a standard deviation of paired differences (``sd``, above 0)
and a ``margin`` in percentage points. Without a margin they are about showing a difference, with one about showing
equivalence within it.
"""

import bisect
import itertools
import math
from functools import cache, lru_cache

import numpy as np
from scipy import special, stats

from vitpos.analysis.signs import Floats, flips

MOST = 1000  # largest number of seeds that is considered
POWER = 0.80  # for which the seeds of an undecided comparison are counted
CONFIDENCE = 0.80  # one-sided, of the limits of a measured deviation (see `deviation_limits`)
# Up to this many seeds above the minimum, sign flips have less power than t tests, so their power is simulated. Beyond,
# it is that of t tests at Šidák's level, which is within a few points.
COARSE = 2
_STUDIES = 2000  # a power of 80 % comes out within 1.8 points in 19 of 20 simulations
_QUANTILES = (np.arange(2000) + 0.5) / 2000


def per_test(alpha: float, correction: str, comparisons: int) -> tuple[float, int]:
    """Returns the level and the family size with which to plan one of so many comparisons.

    Max-T judges all jointly at alpha. Holm and Bonferroni guarantee each alpha / m by itself.
    """
    if correction == "max_t":
        return alpha, comparisons
    return (alpha if correction == "none" else alpha / max(1, comparisons)), 1


def sidak(alpha: float, family: int) -> float:
    """Returns the level of each of so many independent tests whose family-wise level is alpha."""
    return 1 - float((1 - alpha) ** (1 / max(1, family)))


def flip_power(n: int, effect: float, sd: float, alpha: float, family: int = 1, margin: float | None = None) -> float:
    """Computes the power of `signs.max_t` on n >= 2 seeds with normal differences.

    For equivalence, the other comparisons of the family differ by the margin.
    """
    least = seeds_for_level(alpha, 2 if margin is None else 1)
    if n < least:
        return 0.0
    if n > least + COARSE:
        return t_power(n, effect, sd, sidak(alpha, family), margin)
    x, two_sided = effect / sd + _normal(n, 0), margin is None
    if margin is None:
        t = np.abs(_statistic(x, two_sided=True))
    else:
        above, below = (_statistic(margin / sd + side * x, two_sided=False) for side in (1, -1))
        t = np.where(above[:, :1] < below[:, :1], above, below)  # both must be rejected, so the smaller decides
    largest = np.maximum(t, _others(n, family, two_sided=two_sided))
    return float(np.mean((largest >= t[:, :1]).mean(axis=1) <= alpha))


def t_power(n: int, effect: float, sd: float, alpha: float, margin: float | None = None) -> float:
    """Computes the power of the two-sided paired t test or, with a margin, of two one-sided ones (TOST).

    The sample deviation over the true one is the root of chi-square / (n - 1). The power is the mean over its quantiles
    of ``P(|mean| > t s / sqrt(n))`` or ``P(|mean| < margin - t s / sqrt(n))``. The former equals the noncentral t
    distribution, which scipy does not compute far out.

    Source: Phillips, 1990, "Power of the two one-sided tests procedure in bioequivalence".
    """
    shift = effect * math.sqrt(n) / sd
    if margin is None:
        reach = special.stdtrit(n - 1, 1 - alpha / 2) * _deviations(n)
        return float(np.mean(special.ndtr(shift - reach) + special.ndtr(-shift - reach)))
    reach = margin * math.sqrt(n) / sd - special.stdtrit(n - 1, 1 - alpha) * _deviations(n)
    return float(np.mean(np.maximum(special.ndtr(reach - shift) - special.ndtr(-reach - shift), 0)))


def seeds_for(
    power: float, effect: float, sd: float, alpha: float, family: int = 1, margin: float | None = None
) -> int | None:
    """Returns the smallest number of seeds that reaches a power; None beyond `MOST`, or if none can."""
    least = seeds_for_level(alpha, 2 if margin is None else 1)
    if effect == 0 if margin is None else abs(effect) >= margin:
        return None
    if sd == 0:
        return least
    level = sidak(alpha, family)
    numbers = range(2, MOST + 1)  # power grows with n
    by_t = 2 + bisect.bisect_left(numbers, power, key=lambda n: t_power(n, effect, sd, level, margin))
    if by_t > MOST:
        return None
    # sign flips need a few more or less than the t test
    first = least if by_t <= least + COARSE + 1 else by_t - 1
    return next(n for n in itertools.count(first) if flip_power(n, effect, sd, alpha, family, margin) >= power)


def seeds_for_level(alpha: float, sides: int = 2) -> int:
    """Returns the smallest number of seeds with which sign flips can reach a level: sides / 2^n <= alpha.

    Equivalence takes one side, as both of its tests must reject. Joint flips reach the level for any number of
    comparisons: at 0.05 six seeds can show differences, and five equivalence.
    """
    return next(n for n in itertools.count(1) if sides / 2.0**n <= alpha)


def deviation_limits(sd: float, n: int) -> tuple[float, float]:
    """Returns the lower and upper confidence limits, each at `CONFIDENCE`, of a standard deviation from n >= 2 seeds.

    ``sd * sqrt((n - 1) / quantile of chi-square)``. With three seeds and a true difference of one deviation, half of
    studies are advised a number of seeds with a power below one half if the sample deviation is taken for the true one,
    and 15 % if its upper limit is (see ``results/honesty.md``).

    Source: Browne, 1995, "On the use of a pilot sample for sample size determination".
    """
    low, high = (sd * math.sqrt((n - 1) / stats.chi2.ppf(q, n - 1)) for q in (CONFIDENCE, 1 - CONFIDENCE))
    return low, high


def seeds_to_decide(
    mean: float, sd: float, n: int, *, margin: float, alpha: float, family: int
) -> tuple[int | None, int | None]:
    """Returns the range of seeds in all that would decide a comparison with a power of `POWER`.

    The smaller of what shows a difference and what shows equivalence, if the true mean is as observed on n seeds and
    the true deviation is at its lower or upper limit (`deviation_limits`). At least n + 1; None beyond `MOST`.
    """
    ends = []
    for true in deviation_limits(sd, n):
        ways = [seeds_for(POWER, mean, true, alpha, family, of) for of in (None, margin)]
        ends.append(min((max(way, n + 1) for way in ways if way), default=None))
    return ends[0], ends[1]


def _normal(n: int, row: int) -> Floats:
    """Draws standard normal differences from one reference, (studies, n), for a comparison; the same each time."""
    run, reference = (np.random.default_rng([n, i]).standard_normal((_STUDIES, n)) for i in (row + 1, 0))
    return np.asarray((run - reference) / math.sqrt(2))


def _statistic(x: Floats, *, two_sided: bool) -> Floats:
    """Computes T of `signs.max_t` for each flip: (studies, n) to (studies, flips)."""
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True) @ flips(x.shape[1], two_sided))


@lru_cache(maxsize=16)
def _others(n: int, family: int, *, two_sided: bool) -> Floats:
    """Computes the largest T of the other comparisons, all without effect, for each flip."""
    largest = np.full((1, 1) if family == 1 else (_STUDIES, flips(n, two_sided).shape[1]), -np.inf)
    for row in range(1, family):
        t = _statistic(_normal(n, row), two_sided=two_sided)
        np.maximum(largest, np.abs(t) if two_sided else t, out=largest)
    return largest


@cache
def _deviations(n: int) -> Floats:
    """Returns quantiles of the deviation of n pairs, over the true one."""
    return np.asarray(np.sqrt(stats.chi2.ppf(_QUANTILES, n - 1) / (n - 1)))
