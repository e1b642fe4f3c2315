"""Verdicts of paired differences, and the intervals and effect sizes beside them.

Differences are in percentage points, candidate minus reference, seeds along the last axis. What decides are tests by
signs (`vitpos.analysis.signs`). t tests and t intervals, which assume normal differences, are for information, and for
what three to five seeds indicate. Functions take leading axes, one a study, so that ``scripts/honesty.py`` measures the
error rates of the very functions that judge a real study.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special, stats

from vitpos.analysis.power import per_test, seeds_to_decide, sidak
from vitpos.analysis.signs import RESOLUTION, Floats, bets, closed_mean, least_p, max_t, sign_flip, two_hypotheses

Flags = npt.NDArray[np.bool_]
SECOND_TIER = (3, 5)
"""From so many to so many seeds, which sign flips cannot judge, t tests indicate what is no verdict."""
MARGIN_STEP = 0.01
"""Points; how exactly the least margin is found, from above."""


@dataclass(frozen=True)
class Tests:
    """p values of a family, adjusted for their number, each of shape (..., m); NaN for a comparison without a seed.

    Attributes:
        difference: Of "the mean is 0".
        equivalence: Of "the mean is outside the margin".
        beyond: Of "the mean is within the margin".
    """

    difference: Floats
    equivalence: Floats
    beyond: Floats


def flip_tests(differences: Floats, margin: float, correction: str = "max_t", family: int | None = None) -> Tests:
    """Judges studies with a fixed number of seeds, by sign flips.

    A comparison is equivalent where both one-sided hypotheses, "at most -margin" and "at least margin", are rejected
    (Schuirmann, 1987), and differs by more than the margin where "at most margin" or "at least -margin" is. With max-T
    the 2 m one-sided hypotheses are one family.

    Args:
        differences: Shape (..., m, n); NaN where a comparison lacks a seed.
        margin: In points; at 0 nothing can be shown to be equivalent.
        correction: ``max_t`` (see `signs.max_t`), else that of `adjust` for p values of each comparison by itself.
        family: Comparisons that were stated, if more than m. Each that is lacking or without a seed keeps its share of
            alpha.
    """
    d = np.asarray(differences, dtype=np.float64)
    m = d.shape[-2]
    near = _flip_family(two_hypotheses(d, margin), correction, two_sided=False) if margin else np.ones(2 * m)
    far = _flip_family(two_hypotheses(d, -margin), correction, two_sided=False)
    near, far = np.maximum(near[..., :m], near[..., m:]), np.minimum(far[..., :m], far[..., m:])
    p = (_flip_family(d, correction), near, far if correction == "max_t" else 2 * far)
    return Tests(*(_for_family(d, x, correction, family) for x in p))


def _flip_family(d: Floats, correction: str, *, two_sided: bool = True) -> Floats:
    return (max_t if correction == "max_t" else sign_flip)(d, two_sided=two_sided)


def _for_family(d: Floats, p: Floats, correction: str, family: int | None) -> Floats:
    """Adjusts p values of single tests, or those of max-T for comparisons that are lacking or without a seed."""
    tested = np.isfinite(d).any(axis=-1)
    if correction == "max_t":
        total = max(family or 0, d.shape[-2])
        return np.where(tested, np.minimum(1, p * total / np.maximum(tested.sum(axis=-1, keepdims=True), 1)), np.nan)
    return adjust(np.where(tested, np.minimum(1, p), np.nan), correction, family)


def bet_tests(differences: Floats, margin: float, family: int | None = None) -> Tests:
    """Judges studies that may stop after any seed, by sign bets: e-values after each seed, (..., m, n).

    They are closed over the family (`signs.closed_mean`), and the largest so far: what was decided stays decided.
    1 / e is a p value whenever one looks.

    Args:
        differences: Shape (..., m, n), seeds in the order in which they were added; NaN where a comparison lacks one.
        margin: In points; at 0 nothing can be shown to be equivalent.
        family: As for `flip_tests`.
    """
    d = np.asarray(differences, dtype=np.float64)
    m = d.shape[-2]
    near, far = (bets(two_hypotheses(d, side * margin), two_sided=False) for side in (1, -1))
    near = np.minimum(near[..., :m, :], near[..., m:, :]) if margin else np.zeros_like(d)
    tested = np.isfinite(d).any(axis=-1, keepdims=True)
    share = np.maximum(tested.sum(axis=-2, keepdims=True), 1) / max(family or m, m)

    def closed(e: Floats) -> Floats:
        # a comparison without a seed is left out of the mean of all by an e-value that no mean is lowered by
        e = np.where(tested, e, np.inf)
        e = np.moveaxis(closed_mean(np.moveaxis(e, -2, -1)), -1, -2)
        return np.where(tested, np.maximum.accumulate(share * e, axis=-1), np.nan)

    return Tests(closed(bets(d)), closed(near), closed((far[..., :m, :] + far[..., m:, :]) / 2))


def decide(mean: Floats, tests: Tests, alpha: float) -> npt.NDArray[np.str_]:
    """Returns verdicts: ``equivalent``, ``better``, ``worse`` or ``undecided``.

    Equivalence comes first: a difference within the margin was stated to count as none. A NaN shows nothing.
    """
    shown = np.where(tests.difference <= alpha, np.where(mean < 0, "worse", "better"), "undecided")
    return np.where(tests.equivalence <= alpha, "equivalent", shown)


def indicate(
    differences: Floats, margin: float, alpha: float, correction: str = "max_t", family: int | None = None
) -> npt.NDArray[np.str_]:
    """Returns what three to five seeds indicate if differences are normal; it is no verdict.

    t tests of each comparison by its own deviation; a pooled one is wrong too often where deviations are unequal. With
    max-T they are judged by the step-down maximum of independent |t| (`adjust`). A reference that is shared makes the
    maximum smaller, by an amount that Dunnett (1955) computed for runs that all vary alike; not counting on that costs
    little power. Withheld where all differences of a comparison are equal, as happens with few test images.

    Args:
        differences: Shape (..., m, n); NaN where a comparison lacks a seed.
        margin: In points.
        alpha: Error rate of the family.
        correction: As for `flip_tests`.
        family: As for `flip_tests`.

    Returns:
        ``""``, ``better``, ``worse`` or ``equivalent``, shape (..., m).
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


def judge(
    differences: Floats,
    *,
    margin: float,
    alpha: float,
    correction: str = "max_t",
    family: int | None = None,
    rule: str = "fixed",
) -> pd.DataFrame:
    """Judges the comparisons of a study.

    Args:
        differences: (m, n) in points, candidate minus reference: a row a comparison, a column a seed, in the order in
            which seeds were added. NaN where a comparison lacks a seed; a row of NaN is not judged.
        margin: Points within which two schemes count as equal.
        alpha: Error rate of the family, separately for differences and for equivalence.
        correction: ``max_t``, ``holm``, ``bonferroni`` or ``none``. Seeds that are added until settled are always
            judged by the closed mean of e-values.
        family: Comparisons that were stated, if more than m.
        rule: ``fixed`` if the seeds were stated beforehand; ``settled`` if they were added until all is decided.

    Returns:
        One row a comparison, in order. ``n`` seeds, ``mean``, ``sd``; ``p`` (no difference), ``p_equivalence``,
        ``p_beyond`` (a difference larger than the margin), adjusted; ``p_single``, the unadjusted p of no difference;
        ``low`` and ``high``, t intervals that hold together at 1 - alpha, ``single_low`` and ``single_high``, each by
        itself; ``least_margin``, the least margin at which equivalence would be shown; Hedges' ``g``; ``e`` and
        ``e_equivalence``, the largest e-values so far (``settled`` only, where p is 1 / e); ``verdict``
        (`decide`); ``reason`` for ``undecided``: ``too few seeds`` to show any difference, ``not shown``, or
        ``not judged``; ``beyond``, whether it is better or worse by more than the margin; ``indicated`` (`indicate`);
        ``needed_low`` and ``needed_high``, a range of seeds in all that would decide it (`power.seeds_to_decide`), None
        where that cannot be said.
    """
    d = np.atleast_2d(np.asarray(differences, dtype=np.float64))
    m = len(d)
    stated = max(family or m, m)
    e = Tests(*[np.full(m, np.nan)] * 3)
    if rule == "settled":
        reached = bet_tests(d, margin, family)
        e = Tests(reached.difference[:, -1], reached.equivalence[:, -1], reached.beyond[:, -1])
        tests = Tests(*(1 / np.maximum(x, 1) for x in (e.difference, e.equivalence, e.beyond)))
        single = 1 / np.maximum(bets(d).max(axis=-1, initial=1), 1)
    else:
        tests, single = flip_tests(d, margin, correction, family), sign_flip(d)
    level, joint = per_test(alpha, correction, stated)
    records = []
    for x in (row[np.isfinite(row)] for row in d):
        n, varied = len(x), len(x) > 1 and np.ptp(x) > RESOLUTION
        mean = float(x.mean()) if n else math.nan
        low, high = t_interval(x, 1 - sidak(level, joint)) if varied else (math.nan, math.nan)
        single_low, single_high = t_interval(x, 1 - alpha) if varied else (math.nan, math.nan)
        records.append({
            "n": n,
            "mean": 0.0 if not varied and abs(mean) < RESOLUTION else mean,
            "sd": float(x.std(ddof=1)) if varied else 0.0 if n > 1 else math.nan,
            "low": low, "high": high, "single_low": single_low, "single_high": single_high,
            "g": float(hedges_g(x)) if varied and n > 2 else math.nan,
        })  # fmt: skip
    found = pd.DataFrame(records)
    found["p"], found["p_equivalence"], found["p_beyond"] = tests.difference, tests.equivalence, tests.beyond
    found["p_single"] = np.where(found["n"] > 0, single, np.nan)
    found["e"], found["e_equivalence"] = e.difference, e.equivalence
    found["least_margin"] = least_margins(d, alpha, correction, family, rule)
    found["verdict"] = decide(found["mean"].to_numpy(), tests, alpha)
    floor = _least_seeds(alpha, correction, stated / max(1, int((found["n"] > 0).sum())), stated, rule)
    open_ = found["verdict"] == "undecided"
    reasons = np.select([found["n"] == 0, found["n"] < floor], ["not judged", "too few seeds"], "not shown")
    found["reason"] = np.where(open_, reasons, "")
    found["beyond"] = found["verdict"].isin(["better", "worse"]) & (found["p_beyond"] <= alpha)
    indicated = indicate(d, margin, alpha, correction, family) if rule == "fixed" else np.full(m, "")
    found["indicated"] = np.where(open_, indicated, "")
    needed = [
        seeds_to_decide(row.mean, row.sd, row.n, margin=margin, alpha=level, family=joint)
        if row.verdict == "undecided" and row.n > 1 and rule == "fixed" else (None, None)
        for row in found[["mean", "sd", "n", "verdict"]].itertuples(index=False)
    ]  # fmt: skip
    for column, values in zip(("needed_low", "needed_high"), zip(*needed, strict=True), strict=True):
        found[column] = pd.Series(values, dtype=object)
    return found


def _least_seeds(alpha: float, correction: str, lacking: float, stated: int, rule: str) -> int:
    """Returns how many seeds it takes to show a difference, however large."""
    if rule == "settled":
        return int(np.argmax(bets(np.ones(64)) >= lacking / alpha)) + 1
    times = {"max_t": lacking, "none": 1.0}.get(correction, float(stated))
    return next(n for n in range(1, 64) if times * least_p(n) <= alpha)


def least_margins(
    differences: Floats, alpha: float, correction: str = "max_t", family: int | None = None, rule: str = "fixed"
) -> Floats:
    """Finds the least margin at which each comparison would have been shown to be equivalent, to `MARGIN_STEP`.

    Args:
        differences: (m, n), as for `judge`.
        alpha: Error rate of the family.
        correction: As for `judge`.
        family: As for `judge`.
        rule: As for `judge`.

    Returns:
        (m,); NaN where too few seeds cannot show equivalence within any margin.
    """
    d = np.asarray(differences, dtype=np.float64)

    m = len(d)

    def hold(margin: float) -> npt.NDArray[np.bool_]:
        if rule == "settled":
            return np.asarray(bet_tests(d, margin, family).equivalence[:, -1] >= 1 / alpha)
        near = _flip_family(two_hypotheses(d, margin), correction, two_sided=False)
        return np.asarray(_for_family(d, np.maximum(near[:m], near[m:]), correction, family) <= alpha)

    widest = 8 * (float(np.max(np.abs(d), where=np.isfinite(d), initial=0)) + 1)  # any difference is as good as 0
    low, high = np.zeros(m), np.where(hold(widest), widest, np.nan)
    while (row := int(np.argmax(np.nan_to_num(high - low)))) >= 0 and high[row] - low[row] > MARGIN_STEP:
        middle = (low[row] + high[row]) / 2
        held = hold(middle)  # tells something of every comparison
        high = np.where(held & (middle < high), middle, high)
        low = np.where(~held & (middle > low) & (middle < high), middle, low)
    return high


def pigeonhole_interval(right_a: Flags, right_b: Flags, level: float = 0.95) -> tuple[float, float]:
    """Computes an interval of a difference of accuracies that holds for other seeds and other test images.

    The pigeonhole bootstrap resamples seeds and images independently. Only its variance is needed, which has a closed
    form, so nothing is drawn: with n - 1 of n seeds (which makes the share of the seeds unbiased) and N of N images it
    is the expectation of the square of the resampled mean, minus the square of the mean. It is somewhat too large where
    seeds and images interact. The interval is that of t with the degrees of freedom of Satterthwaite, the share of the
    seeds having n - 1 and that of the images any number.

    Source: Owen, 2007, "The pigeonhole bootstrap".

    Args:
        right_a: (n, N), whether the candidate's run of each seed gets each test image right.
        right_b: The same for the reference, seeds and images in the same order.
        level: Confidence level.

    Returns:
        Its ends in points; NaN for fewer than two seeds or images, or where no run differs from its partner.
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
    """Computes what pairing by seed bought.

    Args:
        candidate: (n,) accuracies, one a seed, n >= 2.
        reference: Those of the reference for the same seeds.

    Returns:
        The correlation over seeds, and the seeds of each scheme that unpaired runs would need for a difference as
        precise: ``n (s_a^2 + s_b^2) / s_d^2``, fewer than n where the correlation is negative. NaN where one scheme
        does not vary; the seeds are infinite where the difference does not.
    """
    a, b = np.asarray(candidate, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if len(a) < 2 or min(np.ptp(a), np.ptp(b)) <= RESOLUTION:
        return math.nan, math.nan
    if np.ptp(a - b) <= RESOLUTION:
        return 1.0, math.inf
    return float(np.corrcoef(a, b)[0, 1]), len(a) * float((a.var() + b.var()) / (a - b).var())


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


def adjust(p_values: Floats, correction: str, family: int | None = None) -> Floats:
    """Adjusts the p values of a family for their number.

    Source: Holm, 1979, "A simple sequentially rejective multiple test procedure": the k-th smallest of m times
    m - k + 1, and at least as large as those before. ``max_t`` is the same with ``1 - (1 - p)^(m - k + 1)``, the
    step-down maximum of independent statistics (Šidák, 1967). Bonferroni: all times m.

    Args:
        p_values: The family along the last axis, (..., m). A NaN stays one but counts as 1: no test, no easier
            threshold for the others.
        correction: ``max_t``, ``holm``, ``bonferroni`` or ``none``.
        family: Size of the family, if more than m; the p values that are lacking count as 1.

    Returns:
        Adjusted p values, (..., m).
    """
    p = np.asarray(p_values, dtype=np.float64)
    total = max(family or 0, p.shape[-1])
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
