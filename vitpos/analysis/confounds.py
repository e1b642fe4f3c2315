"""Confounders: what differs between two variants of a comparison besides the kind of their positions."""

from collections.abc import Mapping, Sequence
from typing import Any

from vitpos import positions
from vitpos.analysis.runs import Row
from vitpos.configs import flatten

_SAME = 1.1  # amplitudes within this factor count as equal: tables drawn for each seed vary by a few percent
_COMPARED = ("position", "seed_everything")  # what is compared is no confounder

Part = tuple[str, Mapping[str, Any]]


def confounds(candidate: Sequence[Row], reference: Sequence[Row]) -> list[str]:
    """Lists everything besides the kind of positions that may cause a difference between the rows of two variants.

    These are settings and axes (see `settings`), the amplitude of the table at the start, temperature, other options
    if the kinds are the same, and tuned values. The number of position parameters follows from the kind and is not a
    confounder. Phrases name the candidate first: ``"starts at RMS 0.71 against 0.02"``.

    Raises:
        VitposError: A position text in the rows cannot be read.
    """
    if not candidate or not reference:
        return []
    ours, theirs = candidate[0], reference[0]
    amplitude = _amplitude(candidate, reference)
    options = _options(_parts(ours), _parts(theirs))
    tuned = _differing(_most_chosen(candidate), _most_chosen(reference))
    return [
        *settings(ours, theirs),
        *amplitude,
        *(phrase for option, phrase in options if option != "scale" or not amplitude),
        *(f"{key} tuned, mostly to {values}" for key, values in tuned.items()),
    ]


def settings(candidate: Row, reference: Row) -> list[str]:
    """Lists the config keys and axes, other than position, seed and what was tuned, in which two rows differ."""
    rows = (candidate, reference)
    given = [{**flatten(row["config"]), **row["axes"]} for row in rows]
    # an option that one of the two schemes does not have
    lacking = {key for key in candidate["axes"].keys() ^ reference["axes"].keys() if key.startswith("position.")}
    ignored = {*_COMPARED, *lacking, *(key for row in rows for key in row.get("tuned") or {})}
    keys = [key for key in dict.fromkeys([*given[0], *given[1]]) if key not in ignored]
    whole = [{**flatten(row.get("resolved", {})), **own} for row, own in zip(rows, given, strict=True)]
    differing = _differing(*({key: own.get(key) for key in keys} for own in whole))
    return [f"{key} {values}" for key, values in differing.items()]


def _most_chosen(rows: Sequence[Row]) -> dict[str, Any]:
    choices = {key: [(row.get("tuned") or {}).get(key) for row in rows] for key in rows[0].get("tuned") or {}}
    return {key: max(values, key=values.count) for key, values in choices.items()}


def _differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, str]:
    keys = [key for key in dict.fromkeys([*ours, *theirs]) if ours.get(key) != theirs.get(key)]
    return {key: f"{_text(ours.get(key))} against {_text(theirs.get(key))}" for key in keys}


def _amplitude(candidate: Sequence[Row], reference: Sequence[Row]) -> list[str]:
    """Compares the amplitude of what is added to the tokens; adding nothing is another kind, not a confounder."""
    tables = [[row["position"] for row in rows if row["position"]] for rows in (candidate, reference)]
    if not all(tables):
        return []
    (a, b), ends = (
        [sum(table[key] or 0 for table in group) / len(group) for group in tables] for key in ("rms_start", "rms_end")
    )
    if max(a, b) <= _SAME * min(a, b):
        return []
    moved = any(max(pair) > _SAME * min(pair) for pair in ((a, ends[0]), (b, ends[1])))
    later = f" (ends at {ends[0]:.2g} against {ends[1]:.2g})" if moved else ""
    return [f"starts at RMS {a:.2g} against {b:.2g}{later}"]


def _options(ours: Sequence[Part], theirs: Sequence[Part]) -> list[tuple[str, str]]:
    """Compares the options of schemes of one kind; of two kinds the temperature, which means the same in both."""
    if [name for name, _ in ours] != [name for name, _ in theirs]:
        one, other = (list(dict.fromkeys(filter(None, map(_temperature, parts)))) for parts in (ours, theirs))
        values = " against ".join(" and ".join(map(_text, each)) for each in (one, other))
        return [("temperature", f"temperature {values}")] if one and other and one != other else []
    return [
        (option, f"{option} of {name} {values}" if len(ours) > 1 else f"{option} {values}")
        for (name, mine), (_, others) in zip(ours, theirs, strict=True)
        for option, values in _differing(mine, others).items()
    ]


def _temperature(part: Part) -> float | None:
    name, options = part
    if name == "learned" and options.get("init") == "normal":  # it has the option but does not use it
        return None
    return options.get("temperature")


def _parts(row: Row) -> list[Part]:
    """Reads names and options of a row's scheme, defaults included, also from rows without ``resolved``.

    A row is data: defaults come only from vitpos's own schemes, and no file or package that a row names is imported.
    """
    if found := row.get("resolved", {}).get("position"):
        return [(part["name"], part["options"]) for part in found]
    parts = positions.parse(row["config"].get("position") or row["axes"]["position"])
    known = positions.registered()
    return [(name, {**(positions.options(name) if name in known else {}), **given}) for name, given in parts]


def _text(value: Any) -> str:
    return "default" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
