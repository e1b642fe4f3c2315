"""Paired differences by seed, their tests, and the verdict; all accuracies and differences in percentage points."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from statsmodels.stats.multitest import multipletests

from vitpos.analysis.comparison import Comparison
from vitpos.errors import VitposError, unknown

Row = Mapping[str, Any]
Floats = npt.NDArray[np.float64]

VERDICTS = ("falls short", "better", "equivalent", "undecided")
# Accuracies come as float32, so equal differences still differ by some 1e-5 points; one image in a million is 1e-4.
_IDENTICAL = 1e-4


@dataclass(frozen=True, order=True)
class Variant:
    """One cell of a study: a position text and the values of the other axes."""

    position: str
    others: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, axes: Mapping[str, Any]) -> "Variant":
        """Makes the variant of a row's or failure's ``axes``."""
        return cls(str(axes["position"]), tuple(sorted((k, str(v)) for k, v in axes.items() if k != "position")))

    @property
    def label(self) -> str:
        """Position text, then ``, key=value`` for each other axis."""
        return self.position + "".join(f", {key}={value}" for key, value in self.others)

    @property
    def kind(self) -> str:
        """Scheme name or names, without options: ``"a(x=1)+b"`` gives ``"a+b"``."""
        text, count = self.position, 1
        while count:  # innermost parentheses first
            text, count = re.subn(r"\([^()]*\)", "", text)
        return text.replace(" ", "")


Groups = dict[Variant, dict[int, Row]]


def group(rows: Sequence[Row]) -> Groups:
    """Sorts rows by variant and seed.

    Args:
        rows: One mapping per finished run.

    Returns:
        For each variant its rows by seed, both in ascending order.

    Raises:
        VitposError: If there are no rows, or two for one variant and seed.
    """
    if not rows:
        raise VitposError("there are no finished runs to analyse; run the study first")
    groups: Groups = {}
    for row in sorted(rows, key=lambda row: (Variant.of(row["axes"]), row["seed"])):
        variant = Variant.of(row["axes"])
        other = groups.setdefault(variant, {}).setdefault(int(row["seed"]), row)
        if other is not row:
            raise VitposError(
                f"two runs of {variant.label} with seed {row['seed']} (hashes {other['hash']} and {row['hash']}); "
                "keep the rows of one version of the study"
            )
    return groups


def points(row: Row, metric: str) -> float:
    """Gives a row's accuracy in percent; NaN where the row has none."""
    value = row["metrics"].get(metric)
    return math.nan if value is None else 100 * float(value)


@dataclass(frozen=True)
class Summary:
    """An accuracy over the seeds of one variant, in percent: mean, standard deviation, t interval of the mean.

    Runs that are not a number are counted in ``bad`` and in nothing else.
    """

    n: int
    mean: float
    sd: float
    low: float
    high: float
    bad: int


def summarize(values: Sequence[float], level: float) -> Summary:
    """Computes mean, deviation (n - 1) and the t interval of the mean: mean ± t(n - 1) sd / sqrt(n).

    Args:
        values: One value per seed.
        level: Confidence level, such as 0.95.

    Returns:
        The summary; NaN where too few values or no variance leave a number undefined.
    """
    all_values = np.asarray(values, dtype=np.float64)
    x = all_values[np.isfinite(all_values)]
    mean = float(x.mean()) if len(x) else math.nan
    sd = float(x.std(ddof=1)) if len(x) > 1 else math.nan
    half = math.nan
    if len(x) > 1 and np.ptp(x) > _IDENTICAL:
        half = float(stats.t.ppf((1 + level) / 2, len(x) - 1)) * sd / math.sqrt(len(x))
    return Summary(len(x), mean, sd, mean - half, mean + half, len(all_values) - len(x))


@dataclass(frozen=True)
class Difference:
    """Candidate minus reference, paired by seed, in percentage points. Undefined numbers are NaN.

    Attributes:
        candidate: The variant that is judged.
        reference: The variant that it is compared with: the same other axes.
        n: Pairs.
        mean: Mean difference.
        sd: Standard deviation of the differences.
        low: Lower end of the unadjusted (1 - alpha) t interval of the mean.
        high: Its upper end.
        p: Two-sided paired t test of no difference.
        p_equivalence: Two one-sided paired t tests (TOST) of a difference outside the margin.
        p_holm: ``p`` after Holm over the family.
        p_equivalence_holm: ``p_equivalence`` after Holm over the family.
        verdict: One of `VERDICTS`.
        note: What a reader must know beside the verdict; may be empty.
    """

    candidate: Variant
    reference: Variant
    n: int
    mean: float
    sd: float
    low: float
    high: float
    p: float = math.nan
    p_equivalence: float = math.nan
    p_holm: float = math.nan
    p_equivalence_holm: float = math.nan
    verdict: str = "undecided"
    note: str = ""


def equivalence(differences: Floats, margin: float) -> float:
    """Computes the p value of two one-sided one-sample t tests (TOST, Schuirmann 1987) against ±margin.

    Args:
        differences: Paired differences, shape (n,), n >= 2, not all equal.
        margin: In the same unit; at 0 nothing can be shown, so the value is 1.

    Returns:
        The larger of the two one-sided p values.
    """
    if margin == 0:
        return 1.0
    above = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(differences, margin, alternative="less").pvalue
    return float(max(above, below))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p values by Holm (1979). A NaN stays NaN but counts in the family as 1: no test, no easier threshold."""
    if not p_values:
        return []
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = multipletests(np.where(np.isnan(p), 1.0, p), method="holm")[1]
    return [float(a) for a in np.where(np.isnan(p), np.nan, adjusted)]


def difference(
    comparison: Comparison,
    groups: Groups,
    candidate: Variant,
    reference: Variant,
    failed: Collection[tuple[Variant, int]] = (),
) -> Difference:
    """Compares two variants by the seeds that both have, without a verdict (see `compare`).

    A seed whose two runs differ in data, device or precision is no pair. Where a run failed or is not a number, numbers
    are of the other pairs, but no test is made: leaving a run out that diverged would favour its scheme.

    Args:
        comparison: Metric, margin and alpha.
        groups: All rows of the study, from `group`; their seeds say which pairs are missing.
        candidate: The variant that is judged.
        reference: The variant that it is compared with.
        failed: Variant and seed of runs that failed.

    Returns:
        The difference with unadjusted p values.
    """
    ours, theirs = groups.get(candidate, {}), groups.get(reference, {})
    notes, testable = [], True
    for variant, have in ((candidate, ours), (reference, theirs)):
        lost = {seed for other, seed in failed if other == variant} - set(have)
        if lost:
            testable = False
            notes.append(f"the run of {variant.label} failed for {_seeds(sorted(lost))}; no verdict without it")
        lacking = sorted({seed for runs in groups.values() for seed in runs} - set(have) - lost)
        if lacking:
            notes.append(f"no run of {variant.label} for {_seeds(lacking)}")
    both = sorted(set(ours) & set(theirs))
    foreign = [s for s in both if _circumstances(ours[s]) != _circumstances(theirs[s])]
    if foreign:
        notes.append(f"{_seeds(foreign)} no pair: the two runs differ in data, device or precision")
    seeds = [s for s in both if s not in foreign]
    d = np.array([points(ours[s], comparison.metric) - points(theirs[s], comparison.metric) for s in seeds])
    summary = summarize([float(x) for x in d], 1 - comparison.alpha)
    result = Difference(candidate, reference, summary.n, summary.mean, summary.sd, summary.low, summary.high)
    if summary.bad:
        bad = [s for s, x in zip(seeds, d, strict=True) if not np.isfinite(x)]
        notes.append(f"{comparison.metric} is not a number for {_seeds(bad)}; no verdict without it")
    elif summary.n < 2:
        notes.append("one pair of seeds, no variance to judge by" if summary.n else "no pair of seeds")
    elif np.ptp(d) <= _IDENTICAL:
        notes.append("identical differences; no variance to judge by")
    elif testable:
        test = stats.ttest_1samp(d, 0.0)
        result = replace(result, p=float(test.pvalue), p_equivalence=equivalence(d, comparison.margin))
    return replace(result, note="; ".join(notes))


def _circumstances(row: Row) -> tuple[Any, ...]:
    """What two runs must share to be a pair: with another precision or generator, the same seed means another draw."""
    environment = row["environment"]
    return row["data"]["fingerprint"], environment.get("device"), environment.get("precision")


def compare(comparison: Comparison, groups: Groups, failures: Sequence[Row] = ()) -> list[Difference]:
    """Compares every variant with the reference position at the same other axes, and gives verdicts.

    All comparisons are one family: Holm is applied over it, separately for differences and for equivalence.
    ``equivalent``: adjusted TOST p <= alpha (first, since a difference within the margin is declared to count as
    equal); ``falls short`` or ``better``: adjusted paired t p <= alpha, by sign; else ``undecided``.

    Args:
        comparison: What was stated beforehand.
        groups: All rows of the study, from `group`.
        failures: Its failed runs: ``axes`` and ``seed``.

    Returns:
        One difference per candidate, the largest mean first, those without a number last.

    Raises:
        VitposError: If no row has the metric.
    """
    known = {name for runs in groups.values() for row in runs.values() for name in row["metrics"]}
    if comparison.metric not in known:
        raise unknown("metric", comparison.metric, known)
    candidates = [variant for variant in groups if variant.position != comparison.reference]
    failed = {(Variant.of(failure["axes"]), int(failure["seed"])) for failure in failures}
    found = [difference(comparison, groups, v, replace(v, position=comparison.reference), failed) for v in candidates]
    adjusted = zip(found, holm([d.p for d in found]), holm([d.p_equivalence for d in found]), strict=True)
    judged = [_judge(replace(d, p_holm=p, p_equivalence_holm=q), comparison.alpha) for d, p, q in adjusted]
    return sorted(judged, key=lambda d: (math.isnan(d.mean), 0 if math.isnan(d.mean) else -d.mean, d.candidate))


def _judge(d: Difference, alpha: float) -> Difference:
    differs = d.p_holm <= alpha  # NaN compares false: no test, no verdict
    if d.p_equivalence_holm <= alpha:
        small = "a difference, but within the margin" if differs else ""
        return replace(d, verdict="equivalent", note="; ".join(filter(None, (small, d.note))))
    return replace(d, verdict=("falls short" if d.mean < 0 else "better") if differs else "undecided")


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
