"""Phrases of a report that take code to build. They are Markdown; the prose is in ``templates/report.md.j2``."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from vitpos.analysis.runs import Row
from vitpos.analysis.tables import MOST, setting_label
from vitpos.analysis.terms import Terms
from vitpos.analysis.verdict import conditions
from vitpos.text import code, duration, escape, minus, number, plural, seed_list, span

_LISTED = 6  # a sentence with more names is hard to read


def listing(names: Iterable[object]) -> str:
    """Joins names as code: ```a`, `b```."""
    distinct = list(dict.fromkeys(map(str, names)))
    more = f" and {len(distinct) - MOST:,} more" if len(distinct) > MOST else ""
    return ", ".join(map(code, distinct[:MOST])) + more


def answer(found: pd.DataFrame, terms: Terms) -> list[str]:
    """Answers for each candidate whether it is as good as the reference: one line each for yes, partly, no and open.

    A candidate is as good where it is better or equivalent. One with different verdicts in several settings is partly
    as good, or open if some are undecided.
    """
    if found.empty:
        return [f"There is nothing to compare with {code(terms.reference)} yet."]
    groups: dict[str, dict[str, list[str]]] = {head: {} for head in ("Yes", "Partly", "No", "Not decided")}
    for scheme, own in found.groupby("scheme", sort=False):
        counts = Counter(own["verdict"])
        head = "Not decided" if counts["undecided"] else "No" if counts["worse"] == len(own) else "Yes"
        head = "Partly" if head == "Yes" and counts["worse"] else head
        says = ", ".join(f"{verdict} in {n} of its {len(own)} settings" for verdict, n in counts.items() if n)
        if len(set(own["verdict"])) == 1:
            reasons = own["reason"].map(lambda reason: f" ({reason})" if reason else "")
            says = " and ".join(dict.fromkeys(own["verdict"] + reasons))
        says = says.replace("equivalent", f"equivalent (within {terms.margin_label})")
        ends = dict.fromkeys(minus(number(x, sign=True)) for x in (own["mean"].max(), own["mean"].min()))
        settings = f" in {len(own)} settings" if len(own) > 1 else ""
        groups[head].setdefault(says, []).append(f"{code(scheme)} ({' to '.join(ends)}{settings})")
    lines = []
    for head, verdicts in groups.items():
        clauses = []
        for says, who in verdicts.items():
            names = " and ".join(filter(None, (", ".join(who[:-1]), who[-1])))
            if len(who) > _LISTED:
                names = f"{len(who)} schemes, from {who[0]} to {who[-1]},"
            clauses.append(f"{names} {'is' if len(who) == 1 else 'are'} {says}")
        if clauses:
            lines.append(f"**{head}:** {'; '.join(clauses)}.{_open(found) if head == 'Not decided' else ''}")
    return lines


def _open(found: pd.DataFrame) -> str:
    """Formats what is indicated about undecided comparisons, and how many seeds they would take."""
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


def origins(runs: pd.DataFrame) -> dict[str, Any]:
    """Finds runs made with different sources, with sources that changed half-way, or with uncommitted changes.

    Returns:
        ``states`` of the sources, each with its runs in words; how many of them are ``known``; how many kinds of
        ``hardware``; ``halves``, the runs whose sources changed, in words; ``dirty``, the commit of each run with
        uncommitted changes.
    """
    made = [row["environment"] for row in runs["row"]]
    sources = pd.Series([tuple(e.get("sources") or ()) for e in made], runs.index)
    commits = [str(e.get("commit")) for e in made]
    names = [
        " then ".join(map(code, source)) or f"commit {code(commit)}, sources not recorded"
        for source, commit in zip(sources, commits, strict=True)
    ]
    return {
        "states": {name: _runs(own) for name, own in runs.groupby(pd.Series(names, runs.index), sort=False)},
        "known": len(set(sources) - {()}),
        "hardware": len({str(e.get("hardware")) for e in made}),
        "halves": _runs(runs[sources.map(len) > 1]),
        "dirty": [commit for commit in commits if commit.endswith("+")],
    }


def _runs(runs: pd.DataFrame) -> str:
    """Names runs, or counts them by seed where they are many."""
    if len(runs) <= 4:
        return ", ".join(f"{code(v.label)} seed {seed}" for v, seed in zip(runs["variant"], runs["seed"], strict=True))
    return f"{len(runs)} runs with {seed_list(runs['seed'])}"


def notes(found: pd.DataFrame) -> list[str]:
    """Returns the notes of the verdicts, each once, with the comparisons to which it applies."""
    lines, total = [], Counter(found["scheme"])
    for note, own in found[found["note"] != ""].groupby("note", sort=False):
        count, labels = Counter(own["scheme"]), []
        for d in own.itertuples():
            where = "" if count[d.scheme] == total[d.scheme] else setting_label(d.setting)
            labels.append(", ".join(filter(None, (d.scheme, where))))
        every = len(own) == len(found) > 1
        lines.append(f"{'All comparisons' if every else listing(labels)}: {escape(note)}.")
    return lines


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
    """Describes hardware, software and data of the runs, by heading."""
    environments = [row["environment"] for row in rows]
    versions = [key for key in ("vitpos", *packages, "python") if key in environments[0]]
    sizes = "{name}, {train:,} training, {val:,} validation and {test:,} test images, fingerprint {fingerprint}"
    found = {
        "Hardware": [e.get("hardware") for e in environments],
        "Precision": [e.get("precision") for e in environments],
        "Versions": [", ".join(f"{key} {e.get(key)}" for key in versions) for e in environments],
        "Commit": [e.get("commit") for e in environments],
        "Sources of vitpos": [" then ".join(e.get("sources") or ["unknown"]) for e in environments],
        "Data": [sizes.format(**row["data"]) for row in rows],
        "Training time": [f"{duration(sum(row['seconds'] for row in rows))} in all, {plural(len(rows), 'run')}"],
    }
    return {what: " / ".join(dict.fromkeys(map(str, values))) for what, values in found.items()}
