"""Confounders: what differs between two variants of a comparison besides the kind of their positions."""

from collections.abc import Mapping, Sequence
from typing import Any

from vitpos import positions
from vitpos.analysis.runs import Row

# Amplitudes that differ by less are one: a table drawn anew for each seed moves by a few percent.
_SAME = 1.1
# The scheme and the seed are what is compared, not a confound of it.
_COMPARED = ("position", "seed_everything")

Part = tuple[str, Mapping[str, Any]]


def confounds(candidate: Sequence[Row], reference: Sequence[Row]) -> list[str]:
    """Names all that may move a difference besides the kind of positions.

    These are settings and axes (see `settings`), the amplitude of the table at the start, temperature, other options
    where the kinds are the same, and tuned values. The number of position parameters follows from the kind and is no
    confounder.

    Args:
        candidate: Rows of the variant that is judged, one a seed.
        reference: Rows of the one that it is compared with.

    Returns:
        Phrases, candidate first, such as ``"starts at RMS 0.71 against 0.02"``; none where only the kind differs.

    Raises:
        VitposError: A position text in the rows cannot be read.
    """
    if not candidate or not reference:
        return []
    ours, theirs = candidate[0], reference[0]
    amplitude = _amplitude(candidate, reference)
    found = [*settings(ours, theirs), *amplitude]
    found += [phrase for option, phrase in _options(_parts(ours), _parts(theirs)) if option != "scale" or not amplitude]
    tuned = [row.get("tuned") or {} for row in (ours, theirs)]
    for key in dict.fromkeys([*tuned[0], *tuned[1]]):
        if tuned[0].get(key) != tuned[1].get(key):
            found.append(f"{key} tuned to {_text(tuned[0].get(key))} against {_text(tuned[1].get(key))}")
    return found


def settings(candidate: Row, reference: Row) -> list[str]:
    """Names the config keys and axes, other than position and seed and what was tuned, in which two rows differ."""
    tuned = {**(candidate.get("tuned") or {}), **(reference.get("tuned") or {})}
    given = [{**_flat(row["config"]), **row["axes"]} for row in (candidate, reference)]
    defaults = [_flat(row.get("resolved", {})) for row in (candidate, reference)]
    # an option that one of the two schemes does not have
    lacking = {key for key in candidate["axes"].keys() ^ reference["axes"].keys() if key.startswith("position.")}
    found = []
    for key in dict.fromkeys([*given[0], *given[1]]):
        if key in _COMPARED or key in tuned or key in lacking:
            continue
        ours, theirs = ({**default, **values}.get(key) for values, default in zip(given, defaults, strict=True))
        if ours != theirs:
            found.append(f"{key} {_text(ours)} against {_text(theirs)}")
    return found


def _amplitude(candidate: Sequence[Row], reference: Sequence[Row]) -> list[str]:
    """Compares what the schemes add to the tokens; one that adds nothing is of another kind, not confounded."""
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
        differ = one and other and one != other
        return [("temperature", f"temperature {_list(one)} against {_list(other)}")] if differ else []
    found = []
    for (name, mine), (_, other_options) in zip(ours, theirs, strict=True):
        for option in dict.fromkeys([*mine, *other_options]):
            a, b = mine.get(option), other_options.get(option)
            if a != b:
                whose = f"{option} of {name}" if len(ours) > 1 else option
                found.append((option, f"{whose} {_text(a)} against {_text(b)}"))
    return found


def _temperature(part: Part) -> float | None:
    name, options = part
    if name == "learned" and options.get("init") == "normal":  # it has the option and does not use it
        return None
    return options.get("temperature")


def _parts(row: Row) -> list[Part]:
    """Reads names and options of a row's scheme, defaults included, also from rows that have no ``resolved``.

    A row is data: defaults come from vitpos's own schemes alone, and no file or package that a row names is imported.
    """
    if found := row.get("resolved", {}).get("position"):
        return [(part["name"], part["options"]) for part in found]
    parts: list[Part] = []
    for name, given in positions.parse(row["config"].get("position") or row["axes"]["position"]):
        parts.append((name, {**(positions.options(name) if name in positions.registered() else {}), **given}))
    return parts


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turns nested keys into dotted ones."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _list(values: Sequence[Any]) -> str:
    return " and ".join(map(_text, values))


def _text(value: Any) -> str:
    return "default" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
