"""Sentences of a report that take code: the answer, what to know before quoting it, notes, and shared settings.

All return Markdown. The rest of the report's prose is in ``templates/report.md.j2``.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from vitpos.analysis.runs import Row
from vitpos.analysis.terms import Terms
from vitpos.text import number, plural, span

_LISTED = 6  # a sentence with more names is not read
_SPECIAL = re.compile(r"([\\`*\[\]]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")


def escape(text: object) -> str:
    """Escapes text so that Markdown shows it as it stands, in one line."""
    line = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", line)


def paragraph(text: object) -> str:
    """Escapes text that begins a line, where a mark or number might also begin a heading or a list."""
    return re.sub(r"^(\d*)([#+.)-])", r"\1\\\2", escape(text))


def code(text: object) -> str:
    """Marks text as code; line breaks become spaces, and backticks, which would end it, apostrophes."""
    return f"`{' '.join(str(text).split()).replace('`', chr(39)) or ' '}`"


def minus(text: str) -> str:
    """Writes hyphens before digits as minus signs."""
    return re.sub(r"-(?=\d)", "\N{MINUS SIGN}", text)


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
        head = "Not decided" if "undecided" in kinds else "No" if not good else "Yes" if "worse" not in kinds else "Partly"
        says = " and ".join(dict.fromkeys(reasons)) if len(kinds) == 1 else ", ".join(_share(own, kind) for kind in kinds)
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
        more = f"{min(ends)} or more" if needed["needed_high"].isna().any() else span(ends)
        parts.append(f" About {more} seeds would be needed in all; there are {span(own['n'])}.")
    return "".join(parts)


def _share(own: pd.DataFrame, kind: str) -> str:
    return f"{kind} in {int((own['verdict'] == kind).sum())} of {len(own)} settings"


def _range(own: pd.DataFrame) -> str:
    ends = dict.fromkeys(number(x, sign=True) for x in (own["mean"].max(), own["mean"].min()))
    return minus(" to ".join(ends)) + (f" in {len(own)} settings" if len(own) > 1 else "")


def _and(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _said(verdict: str, terms: Terms) -> str:
    return verdict.replace("equivalent", f"equivalent (within {terms.margin:g} points)")


def warnings(runs: pd.DataFrame, found: pd.DataFrame, terms: Terms, failed: int, missing: int) -> list[str]:
    """Returns what a reader must know before quoting the answer, as far as it follows from runs and verdicts."""
    lines = []
    if runs["seed"].nunique() == 1:
        lines.append("There is only one seed: no verdict is possible, and nothing here shows how much seeds vary.")
    elif len(few := found[found["reason"] == "too few seeds"]) if len(found) else False:
        lines.append(
            f"{plural(int(few['n'].max()), 'pair')} of seeds cannot decide {plural(len(found), 'comparison')}, whatever "
            "the result: the smallest p value that the test can give is above alpha."
        )
    if failed:
        lines.append(f"{plural(failed, 'run')} failed (see Caveats).")
    if missing:
        lines.append(f"{plural(missing, 'planned run')} {'is' if missing == 1 else 'are'} missing.")
    if bad := int(runs["accuracy"].isna().sum()):
        lines.append(f"{plural(bad, 'run')} {'has' if bad == 1 else 'have'} no finite {terms.metric_label}.")
    if len(found) and len(same := found[(found["n"] > 1) & (found["sd"] == 0)]):
        who = listing(same["scheme"])
        lines.append(f"The difference is the same for every seed, so there is no variance to judge by: {who}.")
    if not terms.margin:
        lines.append("The margin is 0, so equivalence cannot be shown.")
    for key, what in (("commit", "versions of the code"), ("hardware", "kinds of hardware")):
        values = {str(row["environment"].get(key)) for row in runs["row"]}
        if len(values) > 1:
            lines.append(
                f"Runs were made with {len(values)} {what}. If schemes react to it differently, verdicts are wrong more "
                "often than alpha says."
            )
    return lines


def confounded(found: pd.DataFrame, phrases: Sequence[Sequence[str]]) -> str:
    """Says in how many comparisons more differs than the kind of positions, with the first of them; may be empty."""
    which = [(d["scheme"], differ) for (_, d), differ in zip(found.iterrows(), phrases, strict=True) if differ]
    if not which:
        return ""
    scheme, differ = which[0]
    example = f"{code(scheme)}: {escape('; '.join(differ))}"
    count = f"{len(which)} of {plural(len(found), 'comparison')}"
    return f"Confounders: in {count} the scheme also differs from the reference in something else, e.g. {example}."


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


def mixed(rows: Iterable[Row]) -> dict[str, dict[str, int]]:
    """Finds what should be the same in all rows and is not, with the count of rows for each value."""
    rows = list(rows)
    getters: dict[str, Callable[[Row], Any]] = {
        key: lambda row, key=key: row["environment"].get(key)  # type: ignore[misc]
        for key in dict.fromkeys(key for row in rows for key in row["environment"])
    }
    getters["data"] = lambda row: f"{row['data']['name']} {row['data']['fingerprint']}"
    getters["format of the rows"] = lambda row: row.get("format")
    counts = {what: pd.Series([str(get(row)) for row in rows]).value_counts(sort=False) for what, get in getters.items()}
    return {what: {str(k): int(n) for k, n in found.items()} for what, found in counts.items() if len(found) > 1}


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
