"""Tests, intervals and effect size of paired differences, and the verdict that follows from them.

Differences are in percentage points, candidate minus reference, the pairs (seeds) along the last axis. Functions that
take leading axes give the same numbers for each row as for that row alone: `vitpos.analysis.simulation` judges
thousands of studies by the very functions that judge a real one.
"""

import math

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import optimize, special, stats

Floats = npt.NDArray[np.float64]

# Accuracies come as float32, so equal differences still differ by some 1e-5 points; one image in a million is 1e-4.
RESOLUTION = 1e-4
"""Points; sums of differences that are closer count as equal."""
EXACT_PAIRS = 24
"""All flips of signs are counted for up to so many pairs; for more, as many are drawn as there are of 14 pairs."""
BCA_PAIRS = 10
"""Fewer pairs get no BCa interval: of 5 normal differences, one of 95 % holds the true mean in 84 % of studies."""
_DRAWN = 2**14
_RESAMPLES = 9999
_TABLE = 2**20  # sums held at once


def least_p(pairs: int, sides: int = 2) -> float:
    """Gives the smallest p value that so many pairs can give: sides / 2^n."""
    return sides / 2.0**pairs


def sign_flip(differences: Floats) -> Floats:
    """Computes the two-sided p value of the sign-flip permutation test of a mean of 0.

    Where the two schemes do not differ, each paired difference is as likely with the other sign, whatever the
    distribution of the runs. So p is twice the share of the 2^n flips of signs that give a sum as large as the one
    found, or as small, whichever are fewer. Exact up to `EXACT_PAIRS`. It assumes independent seeds and differences
    that are symmetric about 0, which exchangeable runs have; where the runs of only one of two equally good schemes are
    skewed, they are not, and it rejects too often (see ``results/honesty.md``).

    Source: Fisher, 1935, The Design of Experiments, section 21; Pitman, 1937.

    Args:
        differences: Shape (..., n).

    Returns:
        p values, shape (...); none is below 2 / 2^n.
    """
    return np.asarray(np.minimum(1.0, 2 * np.minimum(_one_sided(differences), _one_sided(-differences))))


def equivalence(differences: Floats, margin: float) -> Floats:
    """Computes the p value of two one-sided sign-flip tests against ±margin: the larger of the two.

    The two one-sided tests of Schuirmann (1987), each by flips of signs of ``d + margin`` and ``margin - d`` instead of
    Student's t. Assumes differences that are symmetric about their centre, as they are where a scheme shifts its runs.
    With t (see `tost`) three pairs may be enough, but only if they are normal: light tails make it wrong too often.

    Args:
        differences: Shape (..., n).
        margin: In points; at 0 nothing can be shown, so the value is 1.

    Returns:
        p values, shape (...); none is below 1 / 2^n.
    """
    if margin == 0:
        return np.ones(differences.shape[:-1])
    return np.asarray(np.maximum(_one_sided(differences + margin), _one_sided(margin - differences)))


def sign_flip_interval(differences: Floats, level: float) -> tuple[float, float]:
    """Computes the interval of all centres that `sign_flip` does not reject at 1 - level.

    It leaves 0 out exactly where the p value is at most 1 - level. Its ends are order statistics of the means of all
    subsets of the differences.

    Source: Hartigan, 1969, "Using subsample values as typical values", theorem 1.

    Args:
        differences: Shape (n,).
        level: Confidence level, such as 0.95.

    Returns:
        Its ends; NaN where too few pairs cannot reject anything.
    """
    tail = (1 - level) / 2
    if least_p(differences.shape[-1], sides=1) > tail:
        return math.nan, math.nan

    def end(d: Floats) -> float:
        def kept(centre: float) -> float:
            return 1.0 if float(_one_sided(d - centre)) > tail else -1.0

        return float(optimize.bisect(kept, float(d.min()) - 1.0, float(d.max()) + 1.0, xtol=RESOLUTION / 10))

    return end(differences), -end(-differences)


def _one_sided(differences: Floats) -> Floats:
    """Computes the p value of "the centre is at most 0": the share of flips with as large a sum as was found.

    Flipping the signs of a subset changes the sum by minus twice the subset's, so these are the subsets, the empty one
    among them, whose sum is at most 0. Sums of subsets are a sum over the first half of the pairs plus one over the
    second, so 2^(n/2) sums and a binary search in as many count all 2^n.
    """
    d = np.asarray(differences, dtype=np.float64)
    n = d.shape[-1]
    flat = d.reshape(-1, n)
    if n > EXACT_PAIRS:
        subsets = np.random.default_rng(0).integers(0, 2, (n, _DRAWN - 1)).astype(np.float64)
        found = [(1 + np.count_nonzero(row @ subsets <= RESOLUTION)) / _DRAWN for row in flat]
        return np.array(found).reshape(d.shape[:-1])
    share = np.empty(len(flat))
    step = max(1, _TABLE >> (n - n // 2))
    for start in range(0, len(flat), step):
        part = flat[start : start + step]
        bounds = RESOLUTION - _subset_sums(part[:, : n // 2])
        others = np.sort(_subset_sums(part[:, n // 2 :]), axis=1)
        share[start : start + step] = [
            other.searchsorted(bound, "right").sum() for other, bound in zip(others, bounds, strict=True)
        ]
    return np.asarray(share / 2.0**n).reshape(d.shape[:-1])


def _subset_sums(values: Floats) -> Floats:
    """Sums every subset of the columns, (T, k) to (T, 2^k)."""
    sums = np.zeros((len(values), 1))
    for column in values.T:
        sums = np.concatenate((sums, sums + column[:, None]), axis=1)
    return sums


def t_test(differences: Floats) -> Floats:
    """Computes the p value of the two-sided paired t test; shape (..., n), n >= 2, not all equal, to (...)."""
    return np.asarray(stats.ttest_1samp(differences, 0.0, axis=-1).pvalue)


def tost(differences: Floats, margin: float) -> Floats:
    """Computes the p value of two one-sided paired t tests against ±margin (TOST).

    Source: Schuirmann, 1987, "A comparison of the two one-sided tests procedure and the power approach".

    Args:
        differences: Shape (..., n), n >= 2, not all equal.
        margin: In points.

    Returns:
        The larger of the two p values, shape (...).
    """
    above = stats.ttest_1samp(differences, -margin, axis=-1, alternative="greater").pvalue
    below = stats.ttest_1samp(differences, margin, axis=-1, alternative="less").pvalue
    return np.asarray(np.maximum(above, below))


def t_interval(values: Floats, level: float) -> tuple[Floats, Floats]:
    """Computes the t interval of the mean, mean ± t(n - 1) sd / sqrt(n).

    Args:
        values: Shape (..., n), n >= 2.
        level: Confidence level, such as 0.95.

    Returns:
        Its ends, shape (...).
    """
    n = values.shape[-1]
    half = stats.t.ppf((1 + level) / 2, n - 1) * values.std(axis=-1, ddof=1) / math.sqrt(n)
    return values.mean(axis=-1) - half, values.mean(axis=-1) + half


def bca_interval(values: Floats, level: float, resamples: int = _RESAMPLES) -> tuple[Floats, Floats]:
    """Computes the bias-corrected and accelerated bootstrap interval of the mean.

    Too narrow where pairs are few (see ``results/honesty.md``); the t and the sign-flip interval are not.

    Source: Efron, 1987, "Better bootstrap confidence intervals".

    Args:
        values: Shape (..., n), not all equal.
        level: Confidence level, such as 0.95.
        resamples: How many bootstrap samples are drawn, with a fixed seed.

    Returns:
        Its ends, shape (...).
    """
    found = stats.bootstrap(
        (values,),
        np.mean,
        axis=-1,
        confidence_level=level,
        n_resamples=resamples,
        batch=100,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return np.asarray(found.low), np.asarray(found.high)


def hedges_g(differences: Floats) -> Floats:
    """Computes Hedges' g_z: mean / sd of the differences (Cohen's d_z), without its bias for few pairs.

    d_z times ``J(n - 1)``, with ``J(f) = gamma(f / 2) / (sqrt(f / 2) gamma((f - 1) / 2))``, about 1 - 3 / (4 f - 1).
    For normal differences its expectation is the true mean / sd.

    Source: Hedges, 1981, "Distribution theory for Glass's estimator of effect size and related estimators", equation
    6e; d_z as in Lakens, 2013, "Calculating and reporting effect sizes", equation 6. The n - 1 degrees of freedom are
    those of the one sample of differences.

    Args:
        differences: Shape (..., n), n >= 3, not all equal; of two the expectation does not exist.

    Returns:
        Shape (...).
    """
    f = differences.shape[-1] - 1
    j = math.exp(special.gammaln(f / 2) - special.gammaln((f - 1) / 2)) / math.sqrt(f / 2)
    return np.asarray(j * differences.mean(axis=-1) / differences.std(axis=-1, ddof=1))


def adjust(p_values: Floats, correction: str) -> Floats:
    """Adjusts the p values of a family for their number.

    Source: Holm, 1979, "A simple sequentially rejective multiple test procedure": the k-th smallest of m times
    m - k + 1, and at least as large as those before. Bonferroni: all times m.

    Args:
        p_values: The family along the last axis, (..., m). A NaN stays one but counts as 1: no test, no easier
            threshold for the others.
        correction: ``holm``, ``bonferroni`` or ``none``.

    Returns:
        Adjusted p values, (..., m).
    """
    p = np.asarray(p_values, dtype=np.float64)
    m = p.shape[-1]
    if correction == "none" or m == 0:
        return p
    if correction == "bonferroni":
        return np.asarray(np.minimum(1.0, m * p))
    order = np.argsort(p, axis=-1)  # NaN last, as 1 would be
    times = np.take_along_axis(p, order, axis=-1) * np.arange(m, 0, -1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(1.0, np.maximum.accumulate(times, axis=-1)), axis=-1)
    return adjusted


def decide(mean: Floats, p_adjusted: Floats, p_equivalence_adjusted: Floats, alpha: float) -> npt.NDArray[np.str_]:
    """Gives verdicts from adjusted p values, all arrays of one shape.

    ``equivalent`` where that is shown, also where a difference is: one within the margin was declared beforehand to
    count as equal. Else ``falls short`` or ``better`` by the sign of the mean where a difference is shown, else
    ``undecided``. A NaN shows nothing.
    """
    differs = np.where(mean < 0, "falls short", "better")
    shown = np.where(p_adjusted <= alpha, differs, "undecided")
    return np.where(p_equivalence_adjusted <= alpha, "equivalent", shown)


def judge(
    differences: Floats, *, margin: float, alpha: float, correction: str = "holm", family: int | None = None
) -> pd.DataFrame:
    """Judges the comparisons of a study.

    Args:
        differences: (m, n) in points, a row a comparison, a column a seed; NaN where a comparison lacks the seed.
        margin: In points.
        alpha: Error rate of the family, separately for differences and for equivalence.
        correction: How p values are adjusted.
        family: How many comparisons the correction is over; m by default.
    """
    records = []
    for d in (row[np.isfinite(row)] for row in np.atleast_2d(differences)):
        n, varied = len(d), len(d) > 1 and np.ptp(d) > RESOLUTION
        mean = float(d.mean()) if n else math.nan
        low, high = t_interval(d, 1 - alpha) if varied else (math.nan, math.nan)
        records.append({
            "n": n,
            "mean": 0.0 if abs(mean) <= RESOLUTION and not varied else mean,
            "sd": math.nan if n < 2 else float(d.std(ddof=1)) if varied else 0.0,
            "p_single": float(sign_flip(d)) if n > 1 else math.nan,
            "p_equal": float(equivalence(d, margin)) if n > 1 else math.nan,
            "low": low, "high": high, "single_low": low, "single_high": high,
            "g": float(hedges_g(d)) if n > 2 and varied else math.nan,
        })  # fmt: skip
    found = pd.DataFrame(records)
    found["p"] = adjust(found["p_single"].to_numpy(), correction)
    found["p_equivalence"] = adjust(found["p_equal"].to_numpy(), correction)
    found["p_beyond"] = found["least_margin"] = math.nan
    decided = decide(
        found["mean"].to_numpy(), found["p"].to_numpy(), found["p_equivalence"].to_numpy(), alpha
    )
    found["verdict"] = [str(v).replace("falls short", "worse") for v in decided]
    few = least_p(int(found["n"].max())) * (1 if correction == "none" else len(found)) > alpha
    found["reason"] = [
        "" if v != "undecided" else "not judged" if math.isnan(p) else "too few seeds" if few else "not shown"
        for v, p in zip(found["verdict"], found["p"], strict=True)
    ]
    found["beyond"] = False
    found["indicated"] = ""
    found["needed_low"] = found["needed_high"] = None
    return found
