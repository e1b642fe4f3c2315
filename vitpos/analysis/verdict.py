"""Who is compared with whom, the paired differences, and the verdict on each."""

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from vitpos.analysis import inference
from vitpos.analysis.runs import Row, Variant, setting_order
from vitpos.analysis.terms import Terms
from vitpos.errors import unknown
from vitpos.text import seed_list

VERDICTS = ("worse", "better", "equivalent", "undecided")

# What two runs must share to be a pair: with another precision or generator, the same seed gives other draws.
_PAIRED = ("data", "device", "precision", "format")


def conditions(row: Row) -> dict[str, Any]:
    """Returns the conditions of a run, by name; those of all runs should be the same."""
    made = {key: value for key, value in row["environment"].items() if key != "sources"}
    return {**made, "data": f"{row['data']['name']} {row['data']['fingerprint']}", "format": row.get("format")}


def pairs(variants: Iterable[Variant], reference: str) -> list[tuple[Variant, Variant]]:
    """Returns the comparisons, (candidate, reference) each, of all variants of a study, planned or run.

    A candidate is compared with every variant of the reference position that agrees with it on all axes that both have:
    a scheme that lacks an option is compared at each value that the reference has of it, and vice versa.
    """
    distinct = sorted(set(variants))
    references = [v for v in distinct if v.position == reference]
    return [
        (candidate, matching)
        for candidate in distinct
        if candidate.position != reference
        for matching in [r for r in references if candidate.agrees(r)] or [replace(candidate, position=reference)]
    ]


def verdicts(
    runs: pd.DataFrame, terms: Terms, failures: Sequence[Row] = (), planned: Sequence[Row] = ()
) -> pd.DataFrame:
    """Compares every candidate with the reference, paired by seed, and judges all comparisons as one family.

    A run that failed or diverged is scored at chance, so that a scheme gains nothing by losing its worst runs. If
    chance is unknown, or half of the runs of a variant are lost, its comparisons are not judged.

    Args:
        runs: From `runs.frame`.
        terms: What was stated beforehand.
        failures: Failed runs: ``axes`` and ``seed``.
        planned: All planned runs, likewise; those that neither finished nor failed are missing.

    Returns:
        One row per comparison, by setting and then by mean, the largest first. Columns: those of `pair_up` and of
        `inference.judge`, ``note``, and where a run is scored at chance ``mean_without`` and ``without``, the mean and
        the verdict without that seed.

    Raises:
        VitposError: No row has the metric.
    """
    known = {name for row in runs["row"] for name in row["metrics"]}
    if terms.metric not in known:
        raise unknown("metric", terms.metric, known)
    found = compare(runs, terms, failures, planned)
    if found.empty:
        return found
    run = sorted({seed for values in found["by_seed"] for seed in values}) or [0]

    def judge(column: str) -> pd.DataFrame:
        differences = pd.DataFrame(found[column].tolist()).reindex(columns=run)
        return inference.judge(differences.to_numpy(dtype=float), terms, found["testable"].to_numpy())

    result = found.join(judge("by_seed"))
    if (scored := found["scored"].map(len) > 0).any():
        other = judge("finished")
        result[["mean_without", "without"]] = other.loc[scored, ["mean", "verdict"]]
    result["note"] = [_note(terms, d) for _, d in result.iterrows()]
    order = sorted(
        result.itertuples(),
        key=lambda d: (setting_order(d.setting), -np.nan_to_num(d.mean, nan=-math.inf), d.candidate),
    )
    return result.loc[[d.Index for d in order]].reset_index(drop=True)


def compare(runs: pd.DataFrame, terms: Terms, failures: Sequence[Row], planned: Sequence[Row]) -> pd.DataFrame:
    """Pairs the runs of all comparisons of a study without judging them (see `verdicts`): one row of `pair_up` each."""
    lost: dict[Variant, set[int]] = {}
    for failure in failures:
        lost.setdefault(Variant.of(failure["axes"]), set()).add(int(failure["seed"]))
    variants = {*runs["variant"], *lost, *(Variant.of(p["axes"]) for p in planned)}
    seeds = {*runs["seed"].tolist(), *(int(run["seed"]) for run in (*failures, *planned))}
    classes = {len(row["per_class"]["names"]) for row in runs["row"] if row.get("per_class")}
    chance = 100 / classes.pop() if len(classes) == 1 else math.nan
    grouped = by_seed(runs)
    return pd.DataFrame([pair_up(grouped, *pair, seeds, lost, chance) for pair in pairs(variants, terms.reference)])


def by_seed(runs: pd.DataFrame) -> dict[Variant, tuple[dict[int, Row], dict[int, float]]]:
    """Returns by variant its rows and its accuracies, both by seed; runs without an accuracy have only a row."""
    found: dict[Variant, tuple[dict[int, Row], dict[int, float]]] = {}
    for run in runs.itertuples():
        rows, accuracies = found.setdefault(run.variant, ({}, {}))
        rows[run.seed] = run.row
        if math.isfinite(run.accuracy):
            accuracies[run.seed] = run.accuracy
    return found


def pair_up(
    runs: Mapping[Variant, tuple[dict[int, Row], dict[int, float]]],
    candidate: Variant,
    reference: Variant,
    seeds: Set[int],
    lost: Mapping[Variant, Set[int]],
    chance: float,
) -> dict[str, Any]:
    """Pairs the runs of two variants by seed.

    Args:
        runs: From `by_seed`.
        candidate: The variant that is judged.
        reference: The variant that it is compared with.
        seeds: All seeds of the study.
        lost: Seeds of runs that failed, by variant.
        chance: Accuracy at which a lost run is scored; NaN if unknown.

    Returns:
        ``candidate``, ``reference``, ``scheme`` (position text), ``setting`` (values of the other axes); ``finished``,
        the difference by seed of pairs that ran; ``by_seed``, the same with lost runs scored at chance; ``scored``, the
        seeds for which they are; ``ours`` and ``theirs``, all rows of the two by seed; ``testable`` and ``notes``.
    """
    notes, testable, both = [], True, (candidate, reference)
    (a, b), finite = zip(*(runs.get(v, ({}, {})) for v in both), strict=True)
    bad = [
        sorted((lost.get(v, set()) | own.keys()) - ran.keys()) for v, own, ran in zip(both, (a, b), finite, strict=True)
    ]
    scored = math.isfinite(chance) and all(2 * len(which) < len(seeds) for which in bad)
    for who, which, own in zip(("the scheme", "the reference"), bad, (a, b), strict=True):
        if which:
            testable = scored
            how = f"scored at chance, {chance:g} %" if scored else "so no verdict"
            notes.append(f"{who} failed or diverged with {seed_list(which)}, {how}")
        if missing := seeds - own.keys() - set(which):
            notes.append(f"{who} has no run with {seed_list(missing)}")
    foreign = {s: _foreign(a[s], b[s]) for s in sorted(a.keys() & b.keys())}
    if unpaired := [s for s, what in foreign.items() if what]:
        what = dict.fromkeys(key for s in unpaired for key in foreign[s])
        notes.append(f"{seed_list(unpaired)} not paired: the runs differ in {', '.join(what)}")
    scores = [dict.fromkeys(which, chance) | ran if scored else ran for which, ran in zip(bad, finite, strict=True)]
    finished, differences = (
        {s: ours[s] - theirs[s] for s in sorted(ours.keys() & theirs.keys()) if not foreign.get(s)}
        for ours, theirs in (finite, scores)
    )
    made = {_sources(own[s]) for s in finished for own in (a, b)} - {""}
    if len(made) > 1:
        testable = False
        notes.append(f"the runs were trained with {len(made)} versions of the code, so no verdict")
    notes += _mixed([(s, a[s], b[s]) for s in finished])
    return {
        "candidate": candidate,
        "reference": reference,
        "scheme": candidate.position,
        "setting": tuple(sorted({**dict(reference.others), **dict(candidate.others)}.items())),
        "finished": finished,
        "by_seed": differences,
        "scored": sorted(set(differences) - set(finished)),
        "ours": a,
        "theirs": b,
        "testable": testable,
        "notes": notes,
    }


def _foreign(ours: Row, theirs: Row) -> list[str]:
    a, b = conditions(ours), conditions(theirs)
    differ = [key for key in _PAIRED if a.get(key) != b.get(key)]
    return differ + (["training code"] if len({_sources(ours), _sources(theirs)} - {""}) > 1 else [])


def _sources(row: Row) -> str:
    """Returns the digests of the sources that trained a run, joined; empty if not recorded."""
    return " ".join(row["environment"].get("sources") or ())


def _note(terms: Terms, d: pd.Series) -> str:
    notes = list(d["notes"])
    if d["scored"]:
        without = f"the mean is {d['mean_without']:+.2f} and the verdict {d['without']}"
        notes.append(f"without {seed_list(d['scored'])} {without}")
    if d["n"] < 2:
        notes.append("only one pair of seeds, so no variance" if d["n"] else "no pair of seeds")
    elif not d["sd"]:
        same = "0 (the same computation twice?)" if d["mean"] == 0 else f"{d['mean']:+.2f}"
        notes.append(f"all differences are {same}, so no variance")
    if d["verdict"] == "equivalent" and d["p"] <= terms.alpha:
        notes.append("there is a difference, but within the margin")
    return "; ".join(notes)


def _mixed(made: Sequence[tuple[int, Row, Row]]) -> list[str]:
    """Notes conditions that differ between the two runs of a pair, or between pairs."""
    ours, theirs = ({seed: conditions(pair[i]) for seed, *pair in made} for i in (0, 1))
    keys = list(dict.fromkeys(key for seed in ours for key in (*ours[seed], *theirs[seed])))
    within: dict[tuple[str, ...], list[int]] = {}
    for seed in ours:
        if differ := tuple(key for key in keys if ours[seed].get(key) != theirs[seed].get(key)):
            within.setdefault(differ, []).append(seed)
    notes = [f"the paired runs with {seed_list(seeds)} differ in {', '.join(what)}" for what, seeds in within.items()]
    same = [key for key in keys if not any(key in what for what in within)]
    varied = [key for key in same if len({str(own.get(key)) for own in ours.values()}) > 1]
    return [*notes, f"the pairs differ in {', '.join(varied)}"] if varied else notes
