"""Verdicts on paired differences, with the intervals and effect sizes beside them.

Differences are in percentage points, candidate minus reference, seeds along the last axis. Sign tests decide
(`vitpos.analysis.signs`). t tests and t intervals, which assume normal differences, are for information and for what
three to five seeds indicate. Functions accept leading axes, one entry per study, so that ``scripts/honesty.py``
measures the error rates of the very functions that judge a real study.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special, stats

from vitpos.analysis.power import per_test, seeds_for_level, seeds_to_decide, sidak
from vitpos.analysis.signs import RESOLUTION, Floats, bets, closed_mean, max_t, sign_flip, two_hypotheses
from vitpos.analysis.terms import Terms

Flags = npt.NDArray[np.bool_]
SECOND_TIER = (3, 5)  # range of seeds, too few for sign flips, on which t tests give an indication
MARGIN_STEP = 0.01  # points; resolution of the least margin, which is rounded up


class Tests(NamedTuple):
    """p values, adjusted for the size of the family, each of shape (..., m); NaN for a comparison without a seed.

    Null hypotheses: the mean is 0 (``difference``), outside the margin (``equivalence``), within it (``beyond``).
    """

    difference: Floats
    equivalence: Floats
    beyond: Floats


def flip_tests(differences: Floats, margin: float, correction: str = "max_t", family: int = 0) -> Tests:
    """Judges studies with a fixed number of seeds, by sign flips.

    A comparison is equivalent if both one-sided hypotheses, "at most -margin" and "at least margin", are rejected
    (Schuirmann, 1987). It differs by more than the margin if "at most margin" or "at least -margin" is rejected. With
    max-T the 2 m one-sided hypotheses form one family.

    Args:
        differences: Shape (..., m, n); NaN where a comparison lacks a seed.
        margin: In points; with 0 nothing can be shown to be equivalent.
        correction: ``max_t`` (see `signs.max_t`), or one of `adjust` for p values of separate tests.
        family: Number of comparisons that were stated, if more than m. One that is missing or has no seed keeps its
            share of alpha.
    """
    d = np.asarray(differences, dtype=np.float64)
    test = max_t if correction == "max_t" else sign_flip
    above, below = np.split(test(two_hypotheses(d, -margin), two_sided=False), 2, axis=-1)
    beyond = np.minimum(above, below) * (1 if correction == "max_t" else 2)
    difference, beyond = (_for_family(d, p, correction, family) for p in (test(d), beyond))
    return Tests(difference, _flip_equivalence(d, margin, correction, family), beyond)


def _flip_equivalence(d: Floats, margin: float, correction: str, family: int) -> Floats:
    test = max_t if correction == "max_t" else sign_flip
    above, below = np.split(test(two_hypotheses(d, margin), two_sided=False), 2, axis=-1)
    return _for_family(d, np.maximum(above, below) if margin else np.ones_like(above), correction, family)


def _for_family(d: Floats, p: Floats, correction: str, family: int) -> Floats:
    """Adjusts p values of separate tests, or those of max-T for comparisons that are missing or have no seed."""
    tested = np.isfinite(d).any(axis=-1)
    p = np.where(tested, np.minimum(1, p), np.nan)
    if correction != "max_t":
        return adjust(p, correction, family)
    lacking = max(family, d.shape[-2]) / np.maximum(tested.sum(axis=-1, keepdims=True), 1)
    return np.asarray(np.minimum(1, p * lacking))


def bet_tests(differences: Floats, margin: float, family: int = 0) -> Tests:
    """Judges studies that may stop after any seed, by sign bets: p values after each seed, (..., m, n).

    They are 1 / e, with e the largest e-value so far, so what is decided stays decided. E-values are closed over the
    family (`signs.closed_mean`). Arguments are those of `flip_tests`, with seeds in the order in which they were added.
    """
    d = np.asarray(differences, dtype=np.float64)
    m = d.shape[-2]
    near, far = (np.split(bets(two_hypotheses(d, side * margin), two_sided=False), 2, axis=-2) for side in (1, -1))
    tested = np.isfinite(d).any(axis=-1, keepdims=True)
    share = np.maximum(tested.sum(axis=-2, keepdims=True), 1) / max(family, m)

    def closed(e: Floats) -> Floats:
        e = np.where(tested, e, np.inf)  # lowers no mean, so a comparison without a seed is left out
        e = np.moveaxis(closed_mean(np.moveaxis(e, -2, -1)), -1, -2)
        return np.where(tested, 1 / np.maximum(np.maximum.accumulate(share * e, axis=-1), 1), np.nan)

    equal = np.minimum(*near) if margin else np.zeros_like(d)
    return Tests(closed(bets(d)), closed(equal), closed((far[0] + far[1]) / 2))


def decide(mean: Floats, tests: Tests, alpha: float) -> npt.NDArray[np.str_]:
    """Returns verdicts: ``equivalent``, ``better``, ``worse`` or ``undecided``.

    Equivalence comes first: a difference within the margin was stated to count as none. NaN decides nothing.
    """
    shown = np.where(tests.difference <= alpha, np.where(mean < 0, "worse", "better"), "undecided")
    return np.where(tests.equivalence <= alpha, "equivalent", shown)


def indicate(
    differences: Floats, margin: float, alpha: float, correction: str = "max_t", family: int = 0
) -> npt.NDArray[np.str_]:
    """Returns what three to five seeds indicate if differences are normal, which is not a verdict.

    These are t tests with the deviation of each comparison; a pooled deviation errs too often where deviations are
    unequal. With max-T they are judged by the step-down maximum of independent |t| (`adjust`). A shared reference makes
    the maximum smaller, by an amount that Dunnett (1955) computed for runs of equal variance; ignoring that costs
    little power. Withheld if all differences of a comparison are equal, as happens with few test images.

    Returns:
        ``""``, ``better``, ``worse`` or ``equivalent``, shape (..., m). Arguments are those of `flip_tests`.
    """
    d = np.asarray(differences, dtype=np.float64)
    n = np.isfinite(d).sum(axis=-1)
    mean = np.nansum(d, axis=-1) / np.maximum(n, 1)
    free = np.maximum(n - 1, 1)
    error = np.sqrt(np.nansum((d - mean[..., None]) ** 2, axis=-1) / free / np.maximum(n, 1))
    usable = (n >= SECOND_TIER[0]) & (n <= SECOND_TIER[1]) & (error > RESOLUTION)
    error = np.where(usable, error, 1)
    p, q = 2 * stats.t.sf(np.abs(mean) / error, free), stats.t.sf((margin - np.abs(mean)) / error, free)
    p, q = (adjust(np.where(usable, x, np.nan), correction, family) for x in (p, q if margin else np.ones_like(q)))
    found = decide(mean, Tests(p, q, p), alpha)
    return np.where(found == "undecided", "", found)


def describe(table: pd.DataFrame) -> pd.DataFrame:
    """Returns how many numbers each row has, their mean and their deviation: ``n``, ``mean``, ``sd``."""
    n, alike = table.count(axis=1), table.max(axis=1) - table.min(axis=1) <= RESOLUTION
    mean = table.mean(axis=1).mask(lambda x: alike & (x.abs() < RESOLUTION), 0.0)
    return pd.DataFrame({"n": n, "mean": mean, "sd": table.std(axis=1).mask(alike & (n > 1), 0.0)})


def judge(differences: Floats, terms: Terms, testable: Flags | bool = True) -> pd.DataFrame:
    """Judges the comparisons of a study.

    Args:
        differences: (m, n) in points: one row per comparison, one column per seed, in the order in which seeds were
            added. NaN where a comparison lacks a seed.
        terms: Margin, alpha, correction, family and seed rule. Seeds that are added until settled are always judged by
            the closed mean of e-values.
        testable: (m,), which comparisons may be judged; of the others only mean and deviation are computed.

    Returns:
        One row per comparison, in order. ``n`` seeds, ``mean``, ``sd``; t intervals ``single_low`` to ``single_high``,
        each by itself, and ``low`` to ``high``, which hold together at 1 - alpha; Hedges' ``g``; ``p`` (no difference),
        ``p_equivalence``, ``p_beyond`` (a difference larger than the margin), adjusted; ``p_single``, the unadjusted p
        of no difference; ``least_margin``; ``verdict`` (`decide`); ``reason`` for ``undecided``: ``too few seeds`` to
        show any difference, ``not shown``, or ``not judged``; ``beyond``, whether it is better or worse by more than
        the margin; ``indicated`` (`indicate`); ``needed_low`` and ``needed_high``, the range of seeds in all that would
        decide it (`power.seeds_to_decide`), None where unknown.
    """
    table = pd.DataFrame(np.atleast_2d(np.asarray(differences, dtype=np.float64)))
    d = table.where(pd.Series(testable, table.index), axis=0).to_numpy()
    m, tested, settled, alpha = len(d), np.isfinite(d).any(axis=1), terms.start > 0, terms.alpha
    n, stated = table.count(axis=1), max(terms.family, m)
    level, joint = per_test(alpha, terms.correction, stated)
    lacking = stated / max(1, tested.sum())
    if settled:
        tests = Tests(*(p[:, -1] for p in bet_tests(d, terms.margin, terms.family)))
        single = 1 / np.maximum(bets(d).max(axis=1, initial=1), 1)
        least = int(np.argmax(bets(np.ones(64)) >= lacking / alpha)) + 1
    else:
        tests, single = flip_tests(d, terms.margin, terms.correction, terms.family), sign_flip(d)
        least = seeds_for_level(alpha / {"max_t": lacking, "none": 1}.get(terms.correction, stated))
    found = describe(table)
    mean = found["mean"]
    found["single_low"], found["single_high"] = t_interval(mean, found["sd"], n, 1 - alpha)
    found["low"], found["high"] = t_interval(mean, found["sd"].where(tested), n, 1 - sidak(level, joint))
    found["g"] = hedges_g(mean, found["sd"], n)
    found["p"], found["p_equivalence"], found["p_beyond"] = tests
    found["p_single"] = np.where(tested, single, np.nan)
    found["least_margin"] = least_margins(d, terms)
    found["verdict"] = decide(mean.to_numpy(), tests, alpha)
    undecided = found["verdict"] == "undecided"
    reasons = np.select([~tested, n < least], ["not judged", "too few seeds"], "not shown")
    found["reason"] = np.where(undecided, reasons, "")
    found["beyond"] = found["verdict"].isin(["better", "worse"]) & (found["p_beyond"] <= alpha)
    indicated = "" if settled else indicate(d, terms.margin, alpha, terms.correction, terms.family)
    found["indicated"] = np.where(undecided, indicated, "")
    ends: list[tuple[int | None, int | None]] = [(None, None)] * m
    if not settled:
        for i in np.flatnonzero(undecided & tested & (n > 1)):
            x = found.loc[i]
            ends[i] = seeds_to_decide(x["mean"], x["sd"], x["n"], margin=terms.margin, alpha=level, family=joint)
    found["needed_low"], found["needed_high"] = (pd.Series(end, dtype=object) for end in zip(*ends, strict=True))
    return found


def least_margins(differences: Floats, terms: Terms) -> Floats:
    """Finds the smallest margin at which each comparison would have been equivalent, to `MARGIN_STEP`: (m, n) to (m,).

    NaN where too few seeds cannot show equivalence within any margin.
    """
    d = np.asarray(differences, dtype=np.float64)

    def hold(margin: float) -> Flags:
        if terms.start:
            p = bet_tests(d, margin, terms.family).equivalence[:, -1]
        else:
            p = _flip_equivalence(d, margin, terms.correction, terms.family)
        return np.asarray(p <= terms.alpha)

    widest = 8 * (float(np.max(np.abs(d), where=np.isfinite(d), initial=0)) + 1)  # any difference is as good as 0
    low, high = np.zeros(len(d)), np.where(hold(widest), widest, np.nan)
    while np.nanmax(gap := high - low, initial=0) > MARGIN_STEP:
        middle = (low + high)[np.nanargmax(gap)] / 2
        held = hold(middle)  # narrows the range of every comparison
        high = np.where(held & (middle < high), middle, high)
        low = np.where(~held & (middle > low) & (middle < high), middle, low)
    return high


def pigeonhole_interval(right_a: Flags, right_b: Flags, level: float = 0.95) -> tuple[float, float]:
    """Computes an interval of a difference of accuracies that accounts for other seeds and other test images.

    The pigeonhole bootstrap resamples seeds and images independently. Only its variance is needed, which has a closed
    form, so nothing is drawn: with n - 1 of n seeds (which makes the share of the seeds unbiased) and N of N images it
    is the expectation of the squared resampled mean, minus the square of the mean. It is somewhat too large where seeds
    and images interact. The interval is that of t with Satterthwaite's degrees of freedom: n - 1 for the share of the
    seeds, infinite for that of the images.

    Source: Owen, 2007, "The pigeonhole bootstrap".

    Args:
        right_a: (n, N), whether the candidate's run of each seed classifies each test image correctly.
        right_b: The same for the reference, seeds and images in the same order.
        level: Confidence level.

    Returns:
        Its ends in points; NaN for fewer than two seeds or images, or if no run differs from its partner.
    """
    d = right_a.astype(np.float64) - right_b.astype(np.float64)
    n, images = d.shape
    if n < 2 or images < 2 or not d.any():
        return math.nan, math.nan
    k = n - 1  # seeds drawn
    # E[w_s w_t] / k^2 = one + same [s = t] for multinomial weights, and likewise for images
    one_s, same_s = (k - 1) / (k * n**2), 1 / (k * n)
    one_i, same_i = (images - 1) / images**3, 1 / images**2
    seeds, columns, mean = d.sum(axis=1), d.sum(axis=0), float(d.mean())
    square = one_s * one_i * d.sum() ** 2 + same_s * one_i * (seeds**2).sum()
    square += one_s * same_i * (columns**2).sum() + same_s * same_i * (d**2).sum()
    variance = square - mean**2
    of_seeds = d.mean(axis=1).var(ddof=1) / n
    free = k * (variance / of_seeds) ** 2 if of_seeds > 0 else math.inf
    half = float(stats.t.ppf((1 + level) / 2, free)) * math.sqrt(variance)
    return 100 * (mean - half), 100 * (mean + half)


def pairing_gain(candidate: Floats, reference: Floats) -> tuple[float, float]:
    """Computes what pairing by seed bought, from (n,) accuracies of each scheme, one per seed.

    Returns:
        The correlation over seeds, and the seeds of each scheme that unpaired runs would need for the same precision:
        ``n (s_a^2 + s_b^2) / s_d^2``, fewer than n if the correlation is negative. NaN if one scheme does not vary; the
        seeds are infinite if the difference does not.
    """
    a, b = np.asarray(candidate, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if len(a) < 2 or min(np.ptp(a), np.ptp(b)) <= RESOLUTION:
        return math.nan, math.nan
    if np.ptp(a - b) <= RESOLUTION:
        return 1.0, math.inf
    return float(np.corrcoef(a, b)[0, 1]), len(a) * float((a.var() + b.var()) / (a - b).var())


def t_interval(mean: Any, sd: Any, n: Any, level: float) -> tuple[Any, Any]:
    """Computes t intervals of means, mean ± t(n - 1) sd / sqrt(n); NaN where there is no variance."""
    half = stats.t.ppf((1 + level) / 2, n - 1) * np.where(sd > 0, sd, np.nan) / np.sqrt(n)
    return mean - half, mean + half


def hedges_g(mean: Any, sd: Any, n: Any) -> Floats:
    """Computes Hedges' g_z: mean / sd of the differences (Cohen's d_z), corrected for its bias with few pairs.

    d_z times ``J(n - 1)``, with ``J(f) = gamma(f / 2) / (sqrt(f / 2) gamma((f - 1) / 2))``, about 1 - 3 / (4 f - 1).
    For normal differences its expectation is the true mean / sd. NaN for fewer than three, where that does not exist,
    and where there is no variance.

    Source: Hedges, 1981, "Distribution theory for Glass's estimator of effect size and related estimators", equation
    6e; d_z as in Lakens, 2013, "Calculating and reporting effect sizes", equation 6. The n - 1 degrees of freedom are
    those of the one sample of differences.
    """
    f = np.where(np.asarray(n) > 2, np.asarray(n) - 1.0, np.nan)
    j = np.exp(special.gammaln(f / 2) - special.gammaln((f - 1) / 2)) / np.sqrt(f / 2)
    return np.asarray(j * mean / np.where(sd > 0, sd, np.nan))


def adjust(p_values: Floats, correction: str, family: int = 0) -> Floats:
    """Adjusts the p values of a family for their number.

    Source: Holm, 1979, "A simple sequentially rejective multiple test procedure": the k-th smallest of m times
    m - k + 1, and at least as large as those before. ``max_t`` is the same with ``1 - (1 - p)^(m - k + 1)``, the
    step-down maximum of independent statistics (Šidák, 1967). Bonferroni: all times m.

    Args:
        p_values: The family along the last axis, (..., m). NaN stays NaN but counts as 1: without a test, the
            thresholds of the others do not relax.
        correction: ``max_t``, ``holm``, ``bonferroni`` or ``none``.
        family: Size of the family, if more than m; missing p values count as 1.
    """
    p = np.asarray(p_values, dtype=np.float64)
    total = max(family, p.shape[-1])
    if correction == "none" or p.shape[-1] == 0:
        return p
    if correction == "bonferroni":
        return np.asarray(np.minimum(1.0, total * p))
    order = np.argsort(p, axis=-1)  # NaN last, as 1 would be
    ranked, times = np.take_along_axis(p, order, axis=-1), total - np.arange(p.shape[-1])
    raised = 1 - (1 - ranked) ** times if correction == "max_t" else ranked * times
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(1.0, np.maximum.accumulate(raised, axis=-1)), axis=-1)
    return adjusted
