"""Who is compared with whom, the paired differences, and the verdict on each."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from vitpos.analysis import inference
from vitpos.analysis.runs import Row, Variant, setting_order
from vitpos.analysis.terms import Terms
from vitpos.errors import unknown

VERDICTS = ("worse", "better", "equivalent", "undecided")

# What two runs must share to be a pair: with another precision or generator, the same seed means another draw.
_PAIRED = ("data", "device", "precision", "format")


def conditions(row: Row) -> dict[str, Any]:
    """Returns under which conditions a run was made, by name; those of all runs should be the same."""
    made = {key: value for key, value in row["environment"].items() if key != "sources"}
    return {**made, "data": f"{row['data']['name']} {row['data']['fingerprint']}", "format": row.get("format")}


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


def verdicts(
    runs: pd.DataFrame, terms: Terms, failures: Sequence[Row] = (), planned: Sequence[Row] = ()
) -> pd.DataFrame:
    """Compares every candidate with the reference, paired by seed, and judges all comparisons as one family.

    A run that failed or diverged is scored at chance, so that a scheme gains nothing by losing its worst runs; where
    chance is not known, or half of the runs of a variant are lost, its comparisons are not judged.

    Args:
        runs: From `runs.frame`.
        terms: What was stated beforehand.
        failures: Failed runs: ``axes`` and ``seed``.
        planned: All runs of the plan, the same; those that are neither done nor failed are missing.

    Returns:
        One row per comparison, by setting and then the largest mean first. Columns: those of `pair_up`, those of
        `inference.judge`, ``note``, and for comparisons in which a run is scored at chance ``mean_without`` and
        ``without``, the verdict of the same without that seed.

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

    def judge(column: str) -> pd.DataFrame:
        differences = pd.DataFrame(found[column].tolist()).reindex(columns=seeds)
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
    """Pairs the runs of all comparisons of a study, without judging them (see `verdicts`), a row of `pair_up` each."""
    lost = {(Variant.of(f["axes"]), int(f["seed"])) for f in failures}
    wanted = {(Variant.of(p["axes"]), int(p["seed"])) for p in planned} | lost
    variants = {*runs["variant"], *(variant for variant, _ in wanted)}
    seeds = {*runs["seed"], *(seed for _, seed in wanted)}
    classes = {len(row["per_class"]["names"]) for row in runs["row"] if row.get("per_class")}
    chance = 100 / classes.pop() if len(classes) == 1 else math.nan
    by_variant = dict(list(runs.groupby("variant")))
    none = runs[:0]

    def pair(*both: Variant) -> dict[str, Any]:
        own = pd.concat([by_variant.get(variant, none) for variant in both])
        return pair_up(own, *both, seeds, {(v, seed) for v, seed in lost if v in both}, chance)

    return pd.DataFrame([pair(*both) for both in pairs(variants, terms.reference)])


def pair_up(
    runs: pd.DataFrame,
    candidate: Variant,
    reference: Variant,
    seeds: Collection[int],
    lost: Collection[tuple[Variant, int]] = (),
    chance: float = math.nan,
) -> dict[str, Any]:
    """Pairs the runs of two variants by seed.

    Args:
        runs: From `runs.frame`.
        candidate: The variant that is judged.
        reference: The variant that it is compared with.
        seeds: All seeds of the study.
        lost: Variant and seed of runs that failed.
        chance: Accuracy at which a lost run is scored; NaN where that is not known.

    Returns:
        ``candidate``, ``reference``, ``scheme`` (position text), ``setting`` (values of the other axes); ``finished``,
        the difference by seed of the pairs that ran, ``by_seed``, the same with lost runs scored at chance, ``scored``,
        the seeds of which that is so; ``ours`` and ``theirs``, all rows of the two by seed; ``testable`` and ``notes``.
    """
    notes, testable, scores, bad = [], True, [], {}
    both = [runs[runs["variant"] == v].set_index("seed") for v in (candidate, reference)]
    for variant, own in zip((candidate, reference), both, strict=True):
        failed = {s for v, s in lost if v == variant} - set(own.index)
        bad[variant] = sorted(failed | set(own.index[own["accuracy"].isna()]))
    scored = math.isfinite(chance) and all(2 * len(which) < len(seeds) for which in bad.values())
    for who, which, own in zip(("the scheme", "the reference"), bad.values(), both, strict=True):
        if which:
            testable = scored
            how = f"scored at chance, {chance:g} %" if scored else "no verdict without it"
            notes.append(f"{who} failed or diverged with {_seeds(which)}: {how}")
        if missing := sorted(set(seeds) - set(own.index) - set(which)):
            notes.append(f"no run of {who} with {_seeds(missing)}")
        known = own["accuracy"].dropna()
        scores.append(pd.concat([known, pd.Series(chance, which)]) if scored and which else known)
    a, b = (own["row"].to_dict() for own in both)
    foreign = {s: _foreign(a[s], b[s]) for s in sorted(a.keys() & b.keys())}
    if unpaired := [s for s, what in foreign.items() if what]:
        what = dict.fromkeys(key for s in unpaired for key in foreign[s])
        notes.append(f"{_seeds(unpaired)} not paired: the two runs differ in {', '.join(what)}")
    finished, differences = (
        {int(s): float(x) for s, x in (ours - theirs).dropna().sort_index().items() if not foreign.get(s)}
        for ours, theirs in ([own["accuracy"] for own in both], scores)
    )
    made = {_sources(own[s]) for s in finished for own in (a, b)} - {""}
    if len(made) > 1:
        testable = False
        notes.append(f"the runs were trained by {len(made)} versions of the code: no verdict over them")
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
    """Names what keeps two runs of one seed from being a pair."""
    a, b = conditions(ours), conditions(theirs)
    differ = [key for key in _PAIRED if a.get(key) != b.get(key)]
    made = {_sources(ours), _sources(theirs)} - {""}
    return [*differ, *(["training code"] if len(made) > 1 else [])]


def _sources(row: Row) -> str:
    """Returns the digests of the sources that trained a run, joined; empty for a row that does not say."""
    return " ".join(row["environment"].get("sources") or ())


def _note(terms: Terms, d: pd.Series) -> str:
    notes = list(d["notes"])
    if d["scored"]:
        notes.append(
            f"without {_seeds(d['scored'])} the mean is {d['mean_without']:+.2f} and the verdict {d['without']}"
        )
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
    pairs_ = [(seed, conditions(a), conditions(b)) for seed, a, b in made]
    keys = list(dict.fromkeys(key for _, a, b in pairs_ for key in (*a, *b)))
    within: dict[tuple[str, ...], list[int]] = {}
    for seed, a, b in pairs_:
        if differ := tuple(key for key in keys if a.get(key) != b.get(key)):
            within.setdefault(differ, []).append(seed)
    notes = [f"the two runs of {_seeds(seeds)} differ in {', '.join(what)}" for what, seeds in within.items()]
    changed = {key for what in within for key in what}
    varied = [key for key in keys if key not in changed and len({str(a.get(key)) for _, a, _ in pairs_}) > 1]
    return [*notes, f"the pairs differ in {', '.join(varied)}"] if varied else notes


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
