"""Tests on the signs of paired differences: joint sign flips for a fixed number of seeds, sign bets for a growing one.

Both assume that seeds are independent and that the vector of differences of a seed, one per comparison, is jointly
symmetric: as likely with the other sign. Runs that are exchangeable within a seed have such differences, whatever the
shape of their distribution. A candidate with skewed runs against a reference that hardly varies does not (see
``results/honesty.md``).

Differences are in percentage points, candidate minus reference, with shape (..., m, n): comparisons by seeds, NaN where
a comparison lacks a seed. Leading axes are studies, so that simulations call the functions that judge a real one.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# Accuracies are stored as float32, so equal differences may differ by 1e-5 points; one image in a million is 1e-4.
RESOLUTION = 1e-4  # points; sums of differences that are closer count as equal
EXACT_SEEDS = 14  # up to so many all flips are enumerated; beyond, 2^14 are drawn, the same each time
_DRAWN = 2**14
_TABLE = 2**17  # numbers held in memory at once, of several studies
_LARGEST = 2**22  # of one study


def max_t(differences: Floats, *, two_sided: bool = True) -> Floats:
    """Computes p values of a family of mean differences, adjusted by the step-down max-T over flips of whole seeds.

    A flip changes the sign of all differences of a seed together, which keeps the correlation of comparisons that
    share their reference. The statistic ``T = sum(d) / sqrt(sum(d^2))`` orders flips as Student's t does and puts rows
    of unequal deviation on one scale. The adjusted p value of the largest T is the share of flips whose largest T is at
    least as large; that of the next is over the rows that remain, and so on. It is exact up to `EXACT_SEEDS`. Drawn
    flips include the observed one, so they keep the level too. The family-wise error is controlled strongly.

    Source: Westfall & Young, 1993, "Resampling-based multiple testing", algorithm 2.8; Romano & Wolf, 2005, "Exact and
    approximate stepdown methods for multiple hypothesis testing"; drawn flips as in Hemerik & Goeman, 2018, "Exact
    testing with random permutations".

    Args:
        differences: Shape (..., m, n). A missing seed (NaN) adds nothing to its row, whatever its sign.
        two_sided: Test a mean of 0; otherwise that it is not above 0.

    Returns:
        Shape (..., m); none is below 1 / 2^n (2 / 2^n if two-sided). A row without a seed gets 1.
    """
    *lead, m, n = np.shape(differences)
    x = _without_noise(differences).reshape(-1, m, n)
    size = np.sqrt((x**2).sum(axis=-1, keepdims=True))
    unit = np.divide(x, size, out=np.zeros_like(x), where=size > 0)
    tie = np.divide(RESOLUTION, size, out=np.zeros_like(size), where=size > 0)
    signs = flips(n, two_sided)
    p = np.empty((len(x), m))
    width = max(1, _LARGEST // max(m, 1))  # flips held at once: all, unless there are hundreds of comparisons
    step = max(1, _TABLE // (max(m, 1) * signs.shape[1]))
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        counts = np.zeros(unit[part].shape[:2])
        for first in range(0, signs.shape[1], width):
            t = unit[part] @ signs[:, first : first + width]  # (studies, m, flips), the observed signs first
            if two_sided:
                np.abs(t, out=t)
            if not first:
                found = t[..., 0].copy()
                order, studies = np.argsort(-found, axis=1, kind="stable"), np.arange(len(t))
            t += tie[part]
            rest = np.full((len(t), t.shape[2]), -np.inf)
            for rank in reversed(range(m)):
                row = order[:, rank]
                np.maximum(rest, t[studies, row], out=rest)  # the largest of those not yet rejected
                counts[studies, row] += np.count_nonzero(rest >= found[studies, row, None], axis=1)
        p[part] = counts / signs.shape[1]
        ranked = np.maximum.accumulate(np.take_along_axis(p[part], order, axis=1), axis=1)
        np.put_along_axis(p[part], order, ranked, axis=1)
    return p.reshape(*lead, m)


def sign_flip(differences: Floats, *, two_sided: bool = True) -> Floats:
    """Computes p values of the sign-flip permutation test, (..., n) to (...): `max_t` of each row by itself.

    Source: Fisher, 1935, "The Design of Experiments", section 21; Pitman, 1937.
    """
    return max_t(np.asarray(differences)[..., None, :], two_sided=two_sided)[..., 0]


def bets(differences: Floats, *, two_sided: bool = True) -> Floats:
    """Computes e-values of "no difference" after each seed, by betting on the sign of the next.

    Given the absolute differences, each sign is a fair coin under the null hypothesis. So a product over seeds of
    ``1 + tanh(size |d| / r) sign(d)``, with r the root mean square so far, has a mean of at most 1 at any stopping
    time: it reaches 1 / alpha with a probability of at most alpha. The e-value is the mean over sizes 1 and infinity,
    and over both directions if two-sided.

    Source: Vovk & Wang, 2024, "Nonparametric e-tests of symmetry"; Ramdas, Ruf, Larsson & Koolen, 2020, "Admissible
    anytime-valid sequential inference must rely on nonnegative martingales".

    Arguments are those of `max_t`, with seeds in the order in which they were added; nothing is bet on a missing one.
    Shape (..., n) to (..., n).
    """
    x = _without_noise(differences)
    scale = np.sqrt((x**2).cumsum(axis=-1) / np.arange(1, x.shape[-1] + 1))
    part = np.tanh(np.divide(x, scale, out=np.zeros_like(x), where=scale > 0))
    up, down = (
        (np.cumprod(1 + side * part, axis=-1) + np.cumprod(1 + side * np.sign(x), axis=-1)) / 2 for side in (1, -1)
    )
    return (up + down) / 2 if two_sided else up


def closed_mean(e_values: Floats) -> Floats:
    """Adjusts the e-values of a family, (..., m): the smallest mean over all sets of hypotheses that contain this one.

    Valid for any dependence: in at most alpha of studies does a true hypothesis reach 1 / alpha.

    Source: Vovk & Wang, 2021, "E-values: calibration, combination and applications", section 4.
    """
    e = np.asarray(e_values, dtype=np.float64)
    order = np.argsort(e, axis=-1)
    ranked = np.take_along_axis(e, order, axis=-1)
    sums, least = ranked.cumsum(axis=-1), ranked.copy()
    for k in range(1, e.shape[-1]):  # the set of a hypothesis and the k smallest others, all of which rank below it
        np.minimum(least[..., k:], (ranked[..., k:] + sums[..., k - 1 : k]) / (k + 1), out=least[..., k:])
    return np.take_along_axis(least, np.argsort(order, axis=-1), axis=-1)


def two_hypotheses(differences: Floats, margin: float) -> Floats:
    """Stacks the two one-sided hypotheses of each comparison, "above -margin" and "below margin": (..., 2 m, n).

    With a negative margin they are "above" and "below" by more than the margin.
    """
    return np.concatenate((differences + margin, margin - differences), axis=-2)


@lru_cache(maxsize=32)
def flips(n: int, two_sided: bool) -> Floats:
    """Returns flips of n seeds, (n, flips), the identity first; half of them where T and -T count the same."""
    if n > EXACT_SEEDS:
        drawn = np.random.default_rng(0).choice(np.array([-1.0, 1.0]), (n, _DRAWN))
        drawn[:, 0] = 1
        return drawn
    free = max(n - two_sided, 0)
    return np.vstack((np.ones((n - free, 2**free)), 1.0 - 2 * ((np.arange(2**free) >> np.arange(free)[:, None]) & 1)))


def _without_noise(differences: Floats) -> Floats:
    x = np.nan_to_num(np.asarray(differences, dtype=np.float64))
    return np.asarray(np.where(np.abs(x) < RESOLUTION, 0.0, x), dtype=np.float64)
