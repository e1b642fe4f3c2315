"""Each candidate's difference from the reference, paired by seed, its verdict, and what would settle it."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vitpos.analysis import inference
from vitpos.analysis.comparison import Comparison
from vitpos.analysis.power import MOST, seeds_for_difference, seeds_for_equivalence, seeds_for_level
from vitpos.analysis.signs import RESOLUTION, sign_flip
from vitpos.analysis.statistics import Groups, Row, Variant, points
from vitpos.analysis.tables import number, p_value
from vitpos.errors import unknown

VERDICTS = ("falls short", "better", "equivalent", "undecided")
POWER = 0.80
"""Power with which seeds for an undecided comparison are counted."""

# What two runs must share to be a pair: with another precision or generator, the same seed means another draw.
_PAIRED: dict[str, Callable[[Row], Any]] = {
    "data": lambda row: row["data"]["fingerprint"],
    "device": lambda row: row["environment"].get("device"),
    "precision": lambda row: row["environment"].get("precision"),
    "format": lambda row: row.get("format"),
}


@dataclass(frozen=True)
class Needed:
    """Seeds in all that would settle an undecided comparison with a power of `POWER`.

    They are for a true difference and deviation as observed, at the level `Comparison.level`. Both are estimates from
    few pairs, so this is an order of magnitude. Seeds that are added because a verdict is missing are a second look at
    the same data, which raises the error rate (see ``results/honesty.md``); a new study with seeds of its own does not.

    Attributes:
        difference: To show a difference; None beyond `power.MOST`.
        equivalence: To show equivalence; None beyond `power.MOST` and where the observed mean is not within the margin.
    """

    difference: int | None
    equivalence: int | None

    @property
    def seeds(self) -> int | None:
        """The lesser of the two."""
        return min((n for n in (self.difference, self.equivalence) if n is not None), default=None)


@dataclass(frozen=True)
class Difference:
    """Candidate minus reference, paired by seed, in percentage points. Undefined numbers are NaN.

    Attributes:
        candidate: The variant that is judged.
        reference: The variant that it is compared with: the same other axes.
        seeds: Those of the pairs, ascending.
        differences: One per seed.
        mean: Their mean.
        sd: Their standard deviation (n - 1).
        low: Lower end of the t interval of the mean, 1 - alpha, not adjusted for the number of comparisons.
        high: Its upper end.
        flip_low: Lower end of the sign-flip interval, 1 - alpha, not adjusted: it leaves 0 out where ``p`` <= alpha.
        flip_high: Its upper end.
        bca_low: Lower end of the BCa bootstrap interval, 1 - alpha; from `inference.BCA_PAIRS` pairs on.
        bca_high: Its upper end.
        g: Hedges' g_z, the mean in standard deviations of the differences.
        p: Two-sided sign-flip test of no difference: it decides.
        p_equivalence: Two one-sided sign-flip tests of a difference outside the margin: it decides.
        p_t: Two-sided paired t test, for information.
        p_tost: Two one-sided paired t tests, for information.
        p_adjusted: ``p`` after the correction over the family.
        p_equivalence_adjusted: ``p_equivalence`` after the correction over the family.
        family: How many comparisons the correction is over.
        verdict: One of `VERDICTS`.
        needed: What would settle it where it is undecided; None where that cannot be said (see the note).
        note: What a reader must know beside the verdict; may be empty.
    """

    candidate: Variant
    reference: Variant
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    mean: float = math.nan
    sd: float = math.nan
    low: float = math.nan
    high: float = math.nan
    flip_low: float = math.nan
    flip_high: float = math.nan
    bca_low: float = math.nan
    bca_high: float = math.nan
    g: float = math.nan
    p: float = math.nan
    p_equivalence: float = math.nan
    p_t: float = math.nan
    p_tost: float = math.nan
    p_adjusted: float = math.nan
    p_equivalence_adjusted: float = math.nan
    family: int = 1
    verdict: str = "undecided"
    needed: Needed | None = None
    note: str = ""

    @property
    def n(self) -> int:
        """Pairs."""
        return len(self.seeds)


def difference(
    comparison: Comparison,
    groups: Groups,
    candidate: Variant,
    reference: Variant,
    failed: Collection[tuple[Variant, int]] = (),
) -> Difference:
    """Compares two variants by the seeds that both have, without a verdict (see `compare`).

    A seed whose two runs differ in data, device, precision or format is no pair. Where a run failed or is not a number,
    numbers are of the other pairs, but no test is made: leaving a run out that diverged would favour its scheme.

    Args:
        comparison: Metric, margin and alpha.
        groups: All rows of the study, from `statistics.group`; their seeds say which pairs are missing.
        candidate: The variant that is judged.
        reference: The variant that it is compared with.
        failed: Variant and seed of runs that failed.

    Returns:
        The difference with p values that are not adjusted.
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
    foreign = {s: [k for k, get in _PAIRED.items() if get(ours[s]) != get(theirs[s])] for s in both}
    if unpaired := [s for s in both if foreign[s]]:
        what = dict.fromkeys(key for s in unpaired for key in foreign[s])
        notes.append(f"{_seeds(unpaired)} no pair: the two runs differ in {', '.join(what)}")
    paired = [s for s in both if not foreign[s]]
    notes += _mixed({s: (ours[s], theirs[s]) for s in paired})
    found = {s: points(ours[s], comparison.metric) - points(theirs[s], comparison.metric) for s in paired}
    if bad := [s for s, x in found.items() if not math.isfinite(x)]:
        testable = False
        notes.append(f"{comparison.metric} is not a number for {_seeds(bad)}; no verdict without it")
    known = {s: x for s, x in found.items() if math.isfinite(x)}
    result = _measure(Difference(candidate, reference, tuple(known), tuple(known.values())), 1 - comparison.alpha)
    if result.n < 2:
        notes.append("one pair of seeds, no variance to judge by" if result.n else "no pair of seeds")
    elif testable:
        d = np.array(result.differences)
        result = replace(
            result,
            p=float(sign_flip(d)),
            p_equivalence=float(inference.equivalence(d, comparison.margin)),
        )
        if np.ptp(d) > RESOLUTION:
            p_tost = inference.tost(d, comparison.margin) if comparison.margin else 1.0
            result = replace(result, p_t=float(inference.t_test(d)), p_tost=float(p_tost))
    if result.n > 1 and not result.sd:
        same = "0 (the same computation twice?)" if result.mean == 0 else f"{number(result.mean, sign=True)}"
        notes.append(f"all differences are {same}, no variance for an interval")
    return replace(result, note="; ".join(notes))


def compare(comparison: Comparison, groups: Groups, failures: Sequence[Row] = ()) -> list[Difference]:
    """Compares every variant with the reference position at the same other axes, and gives verdicts.

    All comparisons are one family: p values are corrected over it, separately for differences and for equivalence. A
    comparison without a test counts as one with p = 1. `inference.old_decide` says how verdicts follow.

    Args:
        comparison: What was stated beforehand.
        groups: All rows of the study, from `statistics.group`.
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
    p = inference.adjust(np.array([d.p for d in found]), comparison.correction)
    q = inference.adjust(np.array([d.p_equivalence for d in found]), comparison.correction)
    verdicts = inference.old_decide(np.array([d.mean for d in found]), p, q, comparison.alpha)
    judged = [
        _advise(
            comparison,
            replace(
                d,
                p_adjusted=float(p[i]),
                p_equivalence_adjusted=float(q[i]),
                family=len(found),
                verdict=str(verdicts[i]),
            ),
        )
        for i, d in enumerate(found)
    ]
    return sorted(judged, key=lambda d: (math.isnan(d.mean), 0 if math.isnan(d.mean) else -d.mean, d.candidate))


def words(comparison: Comparison, d: Difference) -> str:
    """Says a verdict in a clause with its numbers: ``falls short of learned by 1.47 points (95 % interval ...)``."""
    level, low, high = f"{100 * (1 - comparison.alpha):g} %", d.flip_low, d.flip_high
    kind = "interval"
    if math.isnan(low):
        low, high, kind = d.low, d.high, "t interval"
    corrected = {"holm": "after Holm", "bonferroni": "after Bonferroni", "none": "uncorrected"}[comparison.correction]
    over = f", {corrected} over {d.family}" if d.family > 1 and comparison.correction != "none" else ""
    if comparison.correction == "none" and d.family > 1:
        over = f", not corrected for {d.family} comparisons"
    facts = [f"{level} {kind} {number(low, sign=True)} to {number(high, sign=True)}"] if math.isfinite(low) else []
    facts.append(f"{d.n} pair{'' if d.n == 1 else 's'}")
    name, margin = d.reference.position, f"{comparison.margin:g}"
    if d.verdict in ("falls short", "better"):
        verb = f"falls short of {name}" if d.mean < 0 else f"is better than {name}"
        inside = math.isfinite(low) and low < comparison.margin and high > -comparison.margin
        doubt = f"; it may be within the margin of {margin}" if inside else ""
        return f"{verb} by {number(abs(d.mean))} points ({', '.join(facts)}, p {p_value(d.p_adjusted)}{over}){doubt}"
    if d.verdict == "equivalent":
        facts.append(f"p {p_value(d.p_equivalence_adjusted)}{over}")
        return f"is equivalent to {name}: {number(d.mean, sign=True)} points, within ±{margin} ({', '.join(facts)})"
    if math.isnan(d.mean):
        return f"is undecided against {name}"
    tests = f"p {p_value(d.p_adjusted)} for a difference, {p_value(d.p_equivalence_adjusted)} for one within ±{margin}"
    facts += [tests + over] if math.isfinite(d.p_adjusted) else []
    advice = f"; {_advice(d, d.needed)}" if d.needed else ""
    return f"is undecided against {name}: {number(d.mean, sign=True)} points ({', '.join(facts)}){advice}"


def _advice(d: Difference, needed: Needed) -> str:
    if needed.seeds is None:
        return f"more than {MOST} seeds would be needed, if mean and deviation are as observed"
    aim = "equivalence" if needed.seeds == needed.equivalence else "a difference of this size"
    return (
        f"{needed.seeds} seeds in all, {needed.seeds - d.n} more, would show {aim} with {100 * POWER:g} % power, "
        "if mean and deviation are as observed"
    )


def _measure(d: Difference, level: float) -> Difference:
    """Computes what needs no test: mean, deviation, intervals and effect size, as far as there are pairs for them."""
    if not d.n:
        return d
    x = np.array(d.differences)
    if d.n == 1 or np.ptp(x) <= RESOLUTION:
        mean = float(x.mean())
        return replace(d, mean=mean if abs(mean) > RESOLUTION else 0.0, sd=math.nan if d.n == 1 else 0.0)
    low, high = map(float, inference.t_interval(x, level))
    flip_low, flip_high = inference.sign_flip_interval(x, level)
    bca_low, bca_high = map(float, inference.bca_interval(x, level)) if d.n >= inference.BCA_PAIRS else (math.nan,) * 2
    return replace(
        d,
        mean=float(x.mean()),
        sd=float(x.std(ddof=1)),
        low=low,
        high=high,
        flip_low=flip_low,
        flip_high=flip_high,
        bca_low=bca_low,
        bca_high=bca_high,
        g=float(inference.hedges_g(x)) if d.n > 2 else math.nan,
    )


def _advise(comparison: Comparison, d: Difference) -> Difference:
    """Adds what a verdict leaves open: seeds that would settle it, and where these pairs cannot."""
    if d.verdict == "equivalent" and d.p_adjusted <= comparison.alpha:
        return replace(d, note="; ".join(filter(None, ("a difference, but within the margin", d.note))))
    if d.verdict != "undecided" or math.isnan(d.p):
        return d
    level = comparison.level(d.family)
    for_difference, for_equivalence = (seeds_for_level(level, sides) for sides in (2, 1))
    floors = [f"equivalence, which takes {for_equivalence}"] if comparison.margin and d.n < for_equivalence else []
    floors += [f"a difference, which takes {for_difference}"] if d.n < for_difference else []
    floor = [f"{d.n} pairs cannot show {', or '.join(floors)}"] if floors else []
    more = [
        seeds_for_difference(POWER, d.mean, d.sd, level),
        seeds_for_equivalence(POWER, d.mean, d.sd, level, comparison.margin),
    ]
    needed = Needed(*(None if n is None else max(n, d.n + 1) for n in more))
    return replace(d, needed=needed, note="; ".join(filter(None, (d.note, *floor))))


def _mixed(pairs: Mapping[int, tuple[Row, Row]]) -> list[str]:
    """Says where runs of a pair, or the pairs, were made under conditions that differ."""
    notes = []
    keys = dict.fromkeys(key for pair in pairs.values() for row in pair for key in row["environment"])
    within: dict[tuple[str, ...], list[int]] = {}
    for seed, (a, b) in pairs.items():
        differ = tuple(key for key in keys if a["environment"].get(key) != b["environment"].get(key))
        if differ:
            within.setdefault(differ, []).append(seed)
    notes += [f"the two runs of {_seeds(seeds)} differ in {', '.join(what)}" for what, seeds in within.items()]
    varied = [key for key, get in _PAIRED.items() if len({str(get(a)) for a, _ in pairs.values()}) > 1]
    changed = {key for what in within for key in what} | set(varied)
    varied += [
        key
        for key in keys
        if key not in changed and len({str(a["environment"].get(key)) for a, _ in pairs.values()}) > 1
    ]
    return [*notes, f"the pairs differ in {', '.join(varied)}"] if varied else notes


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
