"""Who is compared with whom, the paired differences, and the verdict on each."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from vitpos.analysis import inference
from vitpos.analysis.runs import Row, Setting, Variant, by_seed, level_order
from vitpos.analysis.terms import Terms
from vitpos.errors import unknown

VERDICTS = ("worse", "better", "equivalent", "undecided")

# What two runs must share to be a pair: with another precision or generator, the same seed means another draw.
_PAIRED: dict[str, Callable[[Row], Any]] = {
    "data": lambda row: row["data"]["fingerprint"],
    "device": lambda row: row["environment"].get("device"),
    "precision": lambda row: row["environment"].get("precision"),
    "format": lambda row: row.get("format"),
}


def pairs(variants: Iterable[Variant], reference: str) -> list[tuple[Variant, Variant]]:
    """Returns the comparisons of a study, (candidate, reference) each.

    A candidate is compared with every variant of the reference position that agrees with it on all axes that both have:
    a scheme that lacks an option is compared at each value that the reference has of it, and the other way round.

    Args:
        variants: All variants of the study, planned or run.
        reference: Position text of the reference.
    """
    distinct = sorted(set(variants))
    references = [v for v in distinct if v.position == reference]
    return [
        (candidate, matching)
        for candidate in distinct
        if candidate.position != reference
        for matching in [r for r in references if candidate.agrees(r)] or [replace(candidate, position=reference)]
    ]


def setting(candidate: Variant, reference: Variant) -> Setting:
    """Returns the values of the other axes at which two variants are compared: those of either."""
    return tuple(sorted({**dict(reference.others), **dict(candidate.others)}.items()))


def verdicts(
    runs: pd.DataFrame, terms: Terms, failures: Sequence[Row] = (), planned: Sequence[Row] = ()
) -> pd.DataFrame:
    """Compares every candidate with the reference, paired by seed, and judges all comparisons as one family.

    A run that failed or diverged is scored at chance, so that a scheme gains nothing by its worst runs being lost; where
    chance is not known, or half of the runs of a variant are lost, its comparisons are not judged.

    Args:
        runs: From `runs.frame`.
        terms: What was stated beforehand.
        failures: Failed runs: ``axes`` and ``seed``.
        planned: All runs of the plan, the same; those that are neither done nor failed are missing.

    Returns:
        One row per comparison, by setting and then the largest mean first. Columns: those of `compare`, those of `inference.judge`, and for those in
        which a run is scored at chance ``without``, the verdict of the same without that seed.

    Raises:
        VitposError: If no row has the metric.
    """
    known = {name for row in runs["row"] for name in row["metrics"]}
    if terms.metric not in known:
        raise unknown("metric", terms.metric, known)
    found = compare(runs, terms, failures, planned)
    if found.empty:
        return found
    seeds = sorted({seed for values in found["by_seed"] for seed in values}) or [0]

    def judge(column: str, testable: pd.Series) -> pd.DataFrame:
        table = np.array([[values.get(s, math.nan) for s in seeds] for values in found[column]], dtype=float)
        options = {"margin": terms.margin, "alpha": terms.alpha, "correction": terms.correction}
        judged = inference.judge(np.where(testable.to_numpy()[:, None], table, math.nan), **options)
        shown = inference.judge(table, **options)  # what is not judged still has a mean
        for name in ("n", "mean", "sd", "single_low", "single_high", "g"):
            judged[name] = shown[name].to_numpy()
        judged.loc[~testable.to_numpy(), "reason"] = "not judged"
        return judged.set_index(found.index)

    result = found.join(judge("by_seed", found["testable"]))
    result["without"] = ""
    if (scored := found["scored"].map(len) > 0).any():
        other = judge("finished", found["testable"])
        result.loc[scored, "without"] = other["verdict"]
        result.loc[scored, "mean_without"] = other["mean"]
    result["note"] = [_note(terms, d) for _, d in result.iterrows()]
    def place(i: int) -> tuple[Any, ...]:
        mean = result["mean"][i]
        at = [(axis, level_order(value)) for axis, value in result["setting"][i]]
        return (at, math.isnan(mean), 0 if math.isnan(mean) else -mean, result["candidate"][i])

    return result.loc[sorted(result.index, key=place)].reset_index(drop=True)


def compare(runs: pd.DataFrame, terms: Terms, failures: Sequence[Row], planned: Sequence[Row]) -> pd.DataFrame:
    """Computes the paired differences of all comparisons of a study, without judging them (see `verdicts`)."""
    lost = {(Variant.of(f["axes"]), int(f["seed"])) for f in failures}
    wanted = {(Variant.of(p["axes"]), int(p["seed"])) for p in planned} | lost
    variants = {*runs["variant"], *(variant for variant, _ in wanted)}
    seeds = sorted({*runs["seed"].tolist(), *(seed for _, seed in wanted)})
    chance = chance_accuracy(runs)
    return pd.DataFrame(
        [pair_up(runs, c, r, seeds, lost, chance) for c, r in pairs(variants, terms.reference)]
    )


def chance_accuracy(runs: pd.DataFrame) -> float:
    """Returns the accuracy of guessing, in percent; NaN where no row names its classes."""
    counts = {len(row["per_class"]["names"]) for row in runs["row"] if row.get("per_class")}
    return 100 / counts.pop() if len(counts) == 1 else math.nan


def pair_up(
    runs: pd.DataFrame,
    candidate: Variant,
    reference: Variant,
    seeds: Sequence[int],
    lost: Iterable[tuple[Variant, int]] = (),
    chance: float = math.nan,
) -> dict[str, Any]:
    """Pairs the runs of two variants by seed.

    Args:
        runs: From `runs.frame`.
        candidate: The variant that is judged.
        reference: The variant that it is compared with.
        seeds: All seeds of the study; a seed without a run is missing.
        lost: Variant and seed of runs that failed.
        chance: Accuracy at which a lost run is scored; NaN where that is not known.

    Returns:
        ``candidate``, ``reference``, ``scheme`` (position text), ``setting`` (values of the other axes), ``seeds`` of
        the pairs that ran, ``finished`` (difference by seed, of these), ``by_seed`` (the same with lost runs scored at
        chance), ``scored`` (seeds of which that is so), ``ours`` and ``theirs`` (accuracies of the pairs that ran),
        ``testable`` and ``notes``.
    """
    rows = {v: by_seed(runs, v) for v in (candidate, reference)}
    values = {v: dict(zip(own["seed"].tolist(), own["accuracy"], strict=True))
              for v in (candidate, reference) for own in [runs[runs["variant"] == v]]}  # fmt: skip
    both = [s for s in seeds if s in rows[candidate] and s in rows[reference]]
    foreign = {s: _foreign(rows[candidate][s], rows[reference][s]) for s in both}
    notes = []
    bad = {v: [s for s in seeds if (s in values[v] and not math.isfinite(values[v][s])) or
               (s not in values[v] and (v, s) in lost)] for v in (candidate, reference)}  # fmt: skip
    few = all(2 * len(bad[v]) < len(seeds) for v in bad)
    scored, testable = math.isfinite(chance) and few, True
    for variant, which in bad.items():
        if which:
            testable = scored
            how = f"scored at chance, {chance:g} %" if scored else "no verdict without it"
            notes.append(f"{variant.label} failed or diverged with {_seeds(which)}: {how}")
        if missing := [s for s in seeds if s not in rows[variant] and s not in which]:
            notes.append(f"no run of {variant.label} with {_seeds(missing)}")
    if unpaired := [s for s in both if foreign[s]]:
        what = dict.fromkeys(key for s in unpaired for key in foreign[s])
        notes.append(f"{_seeds(unpaired)} not paired: the two runs differ in {', '.join(what)}")
    finished = {s: values[candidate][s] - values[reference][s] for s in both if not foreign[s]
                and math.isfinite(values[candidate][s] - values[reference][s])}  # fmt: skip
    if len(made := {_sources(rows[v][s]) for s in finished for v in rows} - {""}) > 1:
        testable = False
        notes.append(f"the runs were trained by {len(made)} versions of the code: no verdict over them")
    notes += _mixed([(s, rows[candidate][s], rows[reference][s]) for s in finished])
    by = dict(finished)
    if scored:
        at = {v: {**{s: x for s, x in values[v].items() if math.isfinite(x)}, **dict.fromkeys(bad[v], chance)}
              for v in values}  # fmt: skip
        for s in sorted({*bad[candidate], *bad[reference]}):
            if s in at[candidate] and s in at[reference] and not foreign.get(s):
                by[s] = at[candidate][s] - at[reference][s]
    return {
        "candidate": candidate,
        "reference": reference,
        "scheme": candidate.position,
        "setting": setting(candidate, reference),
        "seeds": list(finished),
        "finished": finished,
        "by_seed": dict(sorted(by.items())),
        "scored": sorted(set(by) - set(finished)),
        "ours": [values[candidate][s] for s in finished],
        "theirs": [values[reference][s] for s in finished],
        "testable": testable,
        "notes": notes,
    }


def _foreign(ours: Row, theirs: Row) -> list[str]:
    """Names what keeps two runs of one seed from being a pair."""
    differ = [key for key, get in _PAIRED.items() if get(ours) != get(theirs)]
    made = {_sources(ours), _sources(theirs)} - {""}
    return [*differ, *(["training code"] if len(made) > 1 else [])]


def _sources(row: Row) -> str:
    """Returns the digests of the sources that trained a run, joined; empty for a row that does not say."""
    return " ".join(row["environment"].get("sources") or ())


def _note(terms: Terms, d: pd.Series) -> str:
    notes = list(d["notes"])
    if len(d["scored"]):
        notes.append(f"without {_seeds(d['scored'])} the mean is {d['mean_without']:+.2f} and the verdict {d['without']}")
    if d["n"] < 2:
        notes.append("one pair of seeds, no variance to judge by" if d["n"] else "no pair of seeds")
    elif not d["sd"]:
        same = "0 (the same computation twice?)" if d["mean"] == 0 else f"{d['mean']:+.2f}"
        notes.append(f"all differences are {same}, no variance for an interval")
    if d["verdict"] == "equivalent" and d["p"] <= terms.alpha:
        notes.append("a difference, but within the margin")
    return "; ".join(notes)


def _mixed(made: Sequence[tuple[int, Row, Row]]) -> list[str]:
    """Says where the two runs of a pair, or the pairs, were made under conditions that differ."""
    keys = [k for k in dict.fromkeys(k for _, *pair in made for row in pair for k in row["environment"]) if k != "sources"]
    within: dict[tuple[str, ...], list[int]] = {}
    for seed, a, b in made:
        if differ := tuple(k for k in keys if a["environment"].get(k) != b["environment"].get(k)):
            within.setdefault(differ, []).append(seed)
    notes = [f"the two runs of {_seeds(seeds)} differ in {', '.join(what)}" for what, seeds in within.items()]
    changed = {key for what in within for key in what}
    getters = {**_PAIRED, **{k: lambda row, k=k: row["environment"].get(k) for k in keys if k not in changed}}
    varied = [key for key, get in getters.items() if len({str(get(a)) for _, a, _ in made}) > 1]
    return [*notes, f"the pairs differ in {', '.join(varied)}"] if varied else notes


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
