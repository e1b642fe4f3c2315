"""Tests, intervals and effect size of one sample of paired differences. scipy and statsmodels compute."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

Floats = npt.NDArray[np.float64]

# Up to 2^13 flips of signs are all tried; for more pairs as many are drawn, with a seed, so that a report repeats.
_FLIPS = 2**13
_RESAMPLES = 9999
# The bootstrap of fewer values has too few distinct samples for an interval: at 3 it has 10.
BOOTSTRAP_PAIRS = 5


def sign_flip(differences: Floats) -> Floats:
    """Computes the two-sided p value of the sign-flip permutation test of a mean of 0 (Fisher 1935).

    Where the two schemes do not differ, each paired difference is as likely with the other sign, whatever the
    distribution of the runs. Exact up to 13 pairs; from 14 on over 8192 drawn flips.

    Args:
        differences: Paired differences along the last axis, shape (..., n).

    Returns:
        p values, shape (...); none is below 2 / 2^n.
    """
    result = stats.permutation_test(
        (np.asarray(differences, dtype=np.float64),),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=_FLIPS,
        axis=-1,
        batch=64,
        rng=np.random.default_rng(0),
    )
    return np.asarray(result.pvalue, dtype=np.float64)


def least_p(pairs: int) -> float:
    """Gives the smallest p value that `sign_flip` can reach with so many pairs: 2 / 2^n."""
    return 2.0 ** (1 - pairs)


def equivalence(differences: Floats, margin: float) -> float:
    """Computes the p value of two one-sided paired t tests (TOST, Schuirmann 1987) against ±margin.

    Args:
        differences: Paired differences, shape (n,), n >= 2, not all equal.
        margin: In the same unit; at 0 nothing can be shown, so the value is 1.

    Returns:
        The larger of the two one-sided p values.
    """
    return 1.0 if margin == 0 else float(DescrStatsW(differences).ttost_mean(-margin, margin)[0])


def t_half(n: int, sd: float, level: float) -> float:
    """Gives half the width of the t interval of a mean: t(n - 1) sd / sqrt(n)."""
    return float(stats.t.ppf((1 + level) / 2, n - 1)) * sd / math.sqrt(n)


def bca(values: Floats, level: float) -> tuple[float, float]:
    """Computes the bias-corrected and accelerated bootstrap interval of the mean (Efron 1987).

    Args:
        values: Shape (n,), not all equal.
        level: Confidence level, such as 0.95.

    Returns:
        Its ends; NaN for fewer than `BOOTSTRAP_PAIRS` values.
    """
    if len(values) < BOOTSTRAP_PAIRS:
        return math.nan, math.nan
    found = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=level,
        n_resamples=_RESAMPLES,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def effect_size(differences: Floats) -> float:
    """Computes Hedges' g of paired differences: mean / sd * (1 - 3 / (4 (n - 1) - 1)) (Hedges 1981, d_z corrected).

    Args:
        differences: Shape (n,), n >= 2, not all equal.
    """
    n = len(differences)
    return float(differences.mean() / differences.std(ddof=1)) * (1 - 3 / (4 * (n - 1) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p values by Holm (1979). A NaN stays NaN but counts in the family as 1: no test, no easier threshold."""
    if not p_values:
        return []
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = multipletests(np.where(np.isnan(p), 1.0, p), method="holm")[1]
    return [float(a) for a in np.where(np.isnan(p), np.nan, adjusted)]
