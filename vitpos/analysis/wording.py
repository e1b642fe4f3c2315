"""Sentences of a report that take code: the answer, what to know before quoting it, notes, and shared settings.

All return Markdown. The rest of the report's prose is in ``templates/report.md.j2``.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from vitpos.analysis.runs import Row
from vitpos.analysis.tables import Table, setting_label
from vitpos.analysis.terms import Terms
from vitpos.analysis.verdict import conditions
from vitpos.text import code, duration, escape, minus, number, plural, span

_LISTED = 6  # a sentence with more names is not read


def listing(names: Iterable[object]) -> str:
    """Joins names as code: ```a`, `b```."""
    return ", ".join(map(code, dict.fromkeys(map(str, names))))


def answer(found: pd.DataFrame, terms: Terms) -> list[str]:
    """Answers for each candidate whether it is as good as the reference: a line for yes, partly, no and open each.

    A candidate is as good where it is better or equivalent; one that was compared in several settings and is not the
    same in all of them is partly so, or open where some are undecided.
    """
    if found.empty:
        return [f"There is nothing to compare with {code(terms.reference)} yet."]
    groups: dict[tuple[str, str], list[str]] = {}
    for scheme, own in found.groupby("scheme", sort=False):
        reasons = own["verdict"] + own["reason"].map(lambda reason: f" ({reason})" if reason else "")
        kinds = list(dict.fromkeys(own["verdict"]))
        good = {"better", "equivalent"} & set(kinds)
        head = "No" if not good else "Yes" if "worse" not in kinds else "Partly"
        head = "Not decided" if "undecided" in kinds else head
        says = (
            ", ".join(_share(own, kind) for kind in kinds) if len(kinds) > 1 else " and ".join(dict.fromkeys(reasons))
        )
        groups.setdefault((head, says), []).append(f"{code(scheme)} ({_range(own)})")
    lines = []
    for head in ("Yes", "Partly", "No", "Not decided"):
        clauses = []
        for (which, says), who in groups.items():
            if which == head:
                names = f"{len(who)} schemes, from {who[0]} to {who[-1]}," if len(who) > _LISTED else _and(who)
                clauses.append(f"{names} {'is' if len(who) == 1 else 'are'} {_said(says, terms)}")
        if clauses:
            more = _open(found) if head == "Not decided" else ""
            lines.append(f"**{head}:** {'; '.join(clauses)}.{more}")
    return lines


def _open(found: pd.DataFrame) -> str:
    """Says what is indicated about undecided comparisons, and how many seeds they take."""
    own = found[found["verdict"] == "undecided"]
    parts = [
        f" Indicated, if differences are normal: {listing(own[own['indicated'] == what]['scheme'])} {what}."
        for what in ("better", "worse", "equivalent")
        if (own["indicated"] == what).any()
    ]
    needed = own[["needed_low", "needed_high"]].dropna(how="all")
    if len(needed):
        ends = [int(needed["needed_low"].min()), *needed["needed_high"].dropna().astype(int).tolist()]
        more = f"At least {min(ends)}" if needed["needed_high"].isna().any() else f"About {span(ends)}"
        parts.append(f" {more} seeds would be needed in all; there are {span(own['n'])}.")
    return "".join(parts)


def _share(own: pd.DataFrame, kind: str) -> str:
    return f"{kind} in {int((own['verdict'] == kind).sum())} of its {len(own)} settings"


def _range(own: pd.DataFrame) -> str:
    ends = dict.fromkeys(number(x, sign=True) for x in (own["mean"].max(), own["mean"].min()))
    return minus(" to ".join(ends)) + (f" in {len(own)} settings" if len(own) > 1 else "")


def _and(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _said(verdict: str, terms: Terms) -> str:
    return verdict.replace("equivalent", f"equivalent (within {terms.margin_label})")


def warnings(
    runs: pd.DataFrame,
    found: pd.DataFrame,
    terms: Terms,
    failures: Sequence[Row],
    missing: int,
    written: Mapping[str, Table],
) -> list[str]:
    """Returns what a reader must know before quoting the answer."""
    lines, few = [], found[found["reason"] == "too few seeds"] if len(found) else found
    if runs["seed"].nunique() == 1:
        lines.append("There is only one seed: no verdict is possible, and nothing here shows how much seeds vary.")
    elif len(few):
        lines.append(
            f"{plural(int(few['n'].max()), 'pair')} of seeds cannot decide {plural(len(found), 'comparison')}, "
            "whatever the result: the smallest p value that the test can give is above alpha."
        )
    if failures:
        lines.append(f"{plural(len(failures), 'run')} failed (see Caveats).")
    if missing:
        lines.append(
            f"{plural(missing, 'planned run')} {'is' if missing == 1 else 'are'} missing: verdicts are preliminary."
        )
    if bad := int(runs["accuracy"].isna().sum()):
        lines.append(f"{plural(bad, 'run')} {'has' if bad == 1 else 'have'} no finite {terms.metric_label}.")
    if len(found) and len(same := found[(found["n"] > 1) & (found["sd"] == 0)]):
        who = listing(same["scheme"])
        lines.append(f"The difference is the same for every seed, so there is no variance to judge by: {who}.")
    if not terms.margin:
        lines.append("The margin is 0, so equivalence cannot be shown.")
    lines += origins(runs)
    differing = [(d.scheme, phrases) for d, phrases in
                 zip(found.itertuples(), written["confounds"].facts["phrases"], strict=True) if phrases]  # fmt: skip
    if differing:
        lines.append(
            f"Confounders: in {len(differing)} of {plural(len(found), 'comparison')} the scheme also differs from the "
            f"reference in something else, e.g. {code(differing[0][0])}: {escape('; '.join(differing[0][1]))}."
        )
    if edges := written["tuning"].facts["edges"]:
        lines.append(f"Tuning chose the edge of its grid for {plural(len(edges), 'variant')} (see Tuning).")
    return lines


def amended(changes: Sequence[str]) -> list[str]:
    """Says that the study is not what was stated at first, which its error rate holds for."""
    return [
        f"{escape(change[0].upper() + change[1:])}. The error rate that was stated is then not guaranteed."
        for change in changes
    ]


def origins(runs: pd.DataFrame) -> list[str]:
    """Says where runs were made by sources that differ, that changed half-way or that no commit holds."""
    made = [row["environment"] for row in runs["row"]]
    names = [
        " then ".join(map(code, e["sources"])) if e.get("sources") else f"unknown at commit {code(e.get('commit'))}"
        for e in made
    ]
    lines, states = [], list(dict.fromkeys(names))
    known = {tuple(e["sources"]) for e in made if e.get("sources")}
    if len(states) > 1:
        whose = "; ".join(f"{state}: {_runs(runs[[name == state for name in names]])}" for state in states)
        lines.append(
            f"The runs come from {len(states)} states of vitpos's sources ({whose}). If schemes react differently to "
            "that, verdicts are wrong more often than alpha says."
            + (" Comparisons over several known states are not judged." if len(known) > 1 else "")
        )
    if len(kinds := {str(e.get("hardware")) for e in made}) > 1:
        lines.append(f"The runs were made on {len(kinds)} kinds of hardware, to which the same applies.")
    if any(halves := [len(e.get("sources") or ()) > 1 for e in made]):
        lines.append(
            f"The sources changed half-way, between an interruption and its resumption, in {_runs(runs[halves])}."
        )
    if any(dirty := [str(e.get("commit", "")).endswith("+") for e in made]):
        commits = listing(e["commit"] for e, changed in zip(made, dirty, strict=True) if changed)
        lines.append(
            f"{plural(sum(dirty), 'run')} used sources with changes that no commit holds ({commits}): the commit alone "
            "does not bring them back."
        )
    return lines


def _runs(runs: pd.DataFrame) -> str:
    """Names runs, or counts them by seed where they are many."""
    if len(runs) <= 4:
        return ", ".join(f"{code(v.label)} seed {seed}" for v, seed in zip(runs["variant"], runs["seed"], strict=True))
    seeds = sorted(set(runs["seed"]))
    shown = ", ".join(map(str, seeds[:8])) + (", ..." if len(seeds) > 8 else "")
    return f"{len(runs)} runs of seed{'s' if len(seeds) > 1 else ''} {shown}"


def forest_alt(found: pd.DataFrame) -> str:
    """Says in short what the forest plot shows, as far as a sentence may."""
    return "; ".join(
        f"{', '.join(filter(None, [d.scheme, setting_label(d.setting)]))} {number(d.mean, sign=True)}, {d.verdict}"
        for d in found.head(2 * _LISTED).itertuples()
    )


def corrected(terms: Terms, family: int) -> str:
    """Says how p values are corrected over the family."""
    if terms.start:
        return f"judged jointly by sign bets (closed mean of e-values) for {plural(family, 'comparison')}"
    how = {"max_t": "judged jointly (max-T)", "holm": "corrected by Holm's method", "none": "not corrected"}
    return f"{how.get(terms.correction, 'corrected by the method of Bonferroni')} for {plural(family, 'comparison')}"


def notes(found: pd.DataFrame) -> list[str]:
    """Returns the notes of the verdicts, each once, with those to whom it belongs."""
    lines = []
    by_note = found.groupby("note", sort=False) if len(found) else ()
    for note, own in by_note:
        if note:
            every = len(own) == len(found) > 1
            lines.append(f"{'All comparisons' if every else listing(_whose(own, found))}: {escape(note)}.")
    return lines


def _whose(own: pd.DataFrame, found: pd.DataFrame) -> list[str]:
    names = []
    for _, d in own.iterrows():
        all_of_them = (own["scheme"] == d["scheme"]).sum() == (found["scheme"] == d["scheme"]).sum()
        names.append(d["scheme"] if all_of_them else ", ".join([d["scheme"], *(f"{k}={v}" for k, v in d["setting"])]))
    return names


def mixed(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Finds conditions that should be the same in all rows and are not, with the count of rows for each value."""
    made = [conditions(row) for row in rows]
    counts = {key: Counter(str(c.get(key)) for c in made) for key in dict.fromkeys(key for c in made for key in c)}
    return {key: dict(found) for key, found in counts.items() if len(found) > 1}


def common(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Keeps what is the same in all configurations, nested."""
    result: dict[str, Any] = {}
    for key, first in configs[0].items():
        values = [config.get(key) for config in configs]
        if all(isinstance(value, Mapping) for value in values):
            if nested := common([value for value in values if isinstance(value, Mapping)]):
                result[key] = nested
        elif all(key in config for config in configs) and all(value == first for value in values):
            result[key] = first
    return result


def ran_on(rows: Sequence[Row], packages: Sequence[str]) -> dict[str, str]:
    """Says on what the runs were made."""

    def either(values: Iterable[Any]) -> str:
        return " / ".join(dict.fromkeys(map(str, values)))

    environments, data = [row["environment"] for row in rows], [row["data"] for row in rows]
    versions = [key for key in ("vitpos", *packages, "python") if key in environments[0]]
    sizes = "{name}, {train:,} training, {val:,} validation and {test:,} test images, fingerprint {fingerprint}"
    return {
        "Hardware": either(e.get("hardware") for e in environments),
        "Precision": either(e.get("precision") for e in environments),
        "Versions": either(", ".join(f"{key} {e.get(key)}" for key in versions) for e in environments),
        "Commit": either(e.get("commit") for e in environments),
        "Sources of vitpos": either(" then ".join(e.get("sources") or ["unknown"]) for e in environments),
        "Data": either(sizes.format(**d) for d in data),
        "Training time": f"{duration(sum(row['seconds'] for row in rows))} in all, {plural(len(rows), 'run')}",
    }
