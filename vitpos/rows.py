"""Validation of result rows. Anybody may have written a row, so it is checked before it is used."""

import base64
import binascii
import fnmatch
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

from vitpos.errors import UNSAFE, VitposError

# Takes a value and its path, such as ``metrics.test/accuracy``; raises `VitposError` if it is invalid.
Check = Callable[[Any, str], None]
_DEEPEST = 20
_LINE, _LONGEST = 10_000, 100_000  # maximum length of a line, such as a scheme, and of a text
_MOST = 10**15  # maximum of any count


def check_row(row: object) -> None:
    """Checks the result of a run.

    Raises:
        VitposError: With one field, its value and what is allowed.
    """
    _ROW(row, "")
    assert isinstance(row, dict)  # noqa: S101 (for mypy; checked by _ROW)
    config, data = row["config"], row["data"]
    if config.get("seed_everything", row["seed"]) != row["seed"]:
        raise wrong("seed", row["seed"], "seed_everything of its config")
    if row["position"]:
        (height, width), matrix = row["position"]["grid"], row["position"]["similarity"]
        if {len(matrix), *map(len, matrix)} != {height * width}:
            raise wrong("position.similarity", f"of {len(matrix)} lines", f"{height * width} x {height * width} values")
    images = 0
    if counts := row.get("per_class"):
        images = sum(counts["count"])
        if len({len(counts[key]) for key in ("names", "count", "correct")}) > 1:
            raise wrong("per_class", "lists of several lengths", "lists of one length")
        if any(right > all_ for right, all_ in zip(counts["correct"], counts["count"], strict=True)):
            raise wrong("per_class.correct", counts["correct"], f"at most per_class.count, {counts['count']}")
        if images > data["test"]:
            raise wrong("per_class.count", f"{images} in all", f"at most data.test, {data['test']}")
    if "right" in row:
        try:
            size = len(base64.b64decode(row["right"], validate=True))
        except (ValueError, binascii.Error):
            size = -1
        if size != math.ceil(images / 8):
            raise wrong("right", row["right"], f"base64 of a bit for each of the {images} images of per_class")


def check_failure(row: object) -> None:
    """Checks the record of a failed run; raises like `check_row`."""
    _FAILURE(row, "")


def wrong(where: str, value: object, allowed: str) -> VitposError:
    """Returns the error for a value that is not allowed."""
    shown = repr(value)
    return VitposError(f"{where or 'it'} is {shown if len(shown) <= 80 else shown[:60] + '...'}; allowed: {allowed}")


def _rule(allowed: str, holds: Callable[[Any], bool]) -> Check:
    """Returns a check of a condition."""

    def check(value: Any, where: str) -> None:
        if not holds(value):
            raise wrong(where, value, allowed)

    return check


def _whole(low: int, high: int = _MOST) -> Check:
    return _rule(f"a whole number from {low:,} to {high:,}", lambda x: type(x) is int and low <= x <= high)


def _number(low: float, high: float) -> Check:
    # the tolerance allows for rounding in float32 means
    return _rule(
        f"a number from {low:g} to {high:g}",
        lambda x: type(x) in (int, float) and low - 1e-6 <= x <= high + 1e-6,  # false for NaN
    )


def _none_or(inner: Check) -> Check:
    return lambda value, where: None if value is None else inner(value, where)


def _each(inner: Check, least: int = 0, most: int = 1_000_000) -> Check:
    """Returns a check of a list from a check of its items."""
    length = _rule(f"a list of {least:,} to {most:,}", lambda x: isinstance(x, list) and least <= len(x) <= most)

    def check(value: Any, where: str) -> None:
        length(value, where)
        for index, item in enumerate(value):
            inner(item, f"{where}[{index}]")

    return check


def _table(fields: Mapping[str, Check]) -> Check:
    """Returns a check of a mapping from checks of its fields.

    A ``?`` after a name marks an optional field. A pattern such as ``*/accuracy`` applies to keys that no earlier name
    matches; other keys may hold anything that `check_tree` allows.
    """
    needed = [name for name in fields if "*" not in name and not name.endswith("?")]
    checks = {name.removesuffix("?"): inner for name, inner in fields.items()}

    @functools.lru_cache(1000)  # the same keys, row after row
    def check_of(key: str) -> Check:
        _line(key, "")
        patterns = (inner for name, inner in checks.items() if fnmatch.fnmatchcase(key, name))
        return checks.get(key) or next(patterns, check_tree)

    def check(value: Any, where: str) -> None:
        _mapping(value, where)
        inside = f"{where}." if where else ""
        for name in needed:
            if name not in value:
                raise VitposError(f"{inside}{name} is missing")
        for key, item in value.items():
            try:
                inner = check_of(key)
            except VitposError:
                _line(key, f"a key of {where or 'the row'}")
                raise
            inner(item, f"{inside}{key}")

    return check


def check_tree(value: Any, where: str, depth: int = 0) -> None:
    """Limits the depth, text length and integer size of nested data; raises like `check_row`."""
    if isinstance(value, dict | list):
        if depth > _DEEPEST:
            raise wrong(where, "nested deeper", f"{_DEEPEST} levels")
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(key, str):
                _line(key, f"a key of {where}")
            check_tree(item, f"{where}.{key}", depth + 1)
    elif isinstance(value, str):
        _text(value, where)
    elif type(value) is int:
        _integer(value, where)


def check_value(value: Any, where: str) -> None:
    """Checks the value of an axis, which is shown in one line; raises like `check_row`."""
    (_line if isinstance(value, str) and value else check_tree)(value, where)


_matrix = _rule(
    "lists of numbers from -1 to 1",
    lambda rows: (
        isinstance(rows, list)
        and all(
            # built-in functions for speed; NaN (a table that diverged) passes both comparisons
            isinstance(row, list) and set(map(type, row)) <= {int, float} and not (min(row) < -1.01 or max(row) > 1.01)
            for row in rows
            if row != []
        )
    ),
)
_mapping = _rule("keys and values", lambda x: isinstance(x, dict))
_text = _rule(
    f"text of at most {_LONGEST:,} characters, no control characters",
    lambda x: isinstance(x, str) and len(x) <= _LONGEST and not UNSAFE.search(x),
)
_line = _rule(
    f"one line of 1 to {_LINE:,} characters, no control characters",
    lambda x: isinstance(x, str) and 1 <= len(x) <= _LINE and not UNSAFE.search(x) and x.splitlines() == [x],
)
_integer = _rule("a whole number of 64 bits", lambda x: -(2**63) <= x < 2**63)
_hash = _rule("12 hex digits", lambda x: isinstance(x, str) and len(x) == 12 and not set(x) - set("0123456789abcdef"))
_share = _number(0, 1)
_finite = _number(-1e38, 1e38)
_float32 = _rule(  # training may diverge
    "a number up to 1e38, or NaN or infinite",
    lambda x: type(x) in (int, float) and (not -math.inf < x < math.inf or -1e38 <= x <= 1e38),
)
_nothing_wrong: Check = lambda value, where: None  # noqa: E731

_RUN = {
    "format": _whole(0),
    "hash": _hash,
    "axes": _table({"position": _line, "*": check_value}),
    "seed": _whole(0, 2**32 - 1),
    "trial?": _table({}),
}
_FAILURE = _table({**_RUN, "error": _text, "traceback?": _nothing_wrong})
_ROW = _table(
    {
        **_RUN,
        "config": _table({"position?": _line}),
        "files?": _table({"*": _line}),
        "resolved?": _table({"position?": _each(_table({"name": _line, "options": _table({})}))}),
        "data": _table({"name": _line, "fingerprint": _line, **dict.fromkeys(("train", "val", "test"), _whole(0))}),
        "metrics": _table({"*/accuracy": _share, "*": _finite}),
        "tested?": _rule("true or false", lambda x: isinstance(x, bool)),
        "tuned?": _none_or(_table({})),
        "tuned_edge?": _each(_line),
        "per_class?": _table({"names": _each(_text, 1), "count": _each(_whole(0)), "correct": _each(_whole(0))}),
        "right?": _rule("text", lambda x: isinstance(x, str)),
        "history": _each(_table({"epoch": _whole(1, 10**7), "*/accuracy": _none_or(_share), "*": _none_or(_float32)})),
        **dict.fromkeys(("parameters", "position_parameters", "flops"), _whole(0)),
        **dict.fromkeys(("images_per_second", "seconds", "peak_memory_mb"), _number(0, _MOST)),
        "position": _none_or(
            _table(
                {
                    "grid": _each(_whole(1, 10_000), 2, 2),
                    "rms_start": _none_or(_float32),
                    "rms_end": _none_or(_float32),
                    "similarity": _matrix,
                }
            )
        ),
        "environment": _table({"device": _line, "hardware": _line, "sources?": _each(_line, 1, 1000), "*": _text}),
        "finished?": _line,
    }
)
