"""User errors: one line that says what is wrong, what was given and what is allowed."""

import difflib
import re
from collections.abc import Iterable

# Control characters except tab and line feed, bidirectional marks, invisible characters, lone surrogates.
UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff"
    "\U000e0000-\U000e0fff]"
)


class VitposError(ValueError):
    """A user's mistake; the command line prints only its message and exits with code 2.

    Args:
        message: What is wrong. Unsafe characters are escaped, and long messages are cut in the middle.
    """

    def __init__(self, message: str) -> None:
        super().__init__(short(visible(message)))


def unknown(kind: str, name: str, known: Iterable[str]) -> VitposError:
    """Returns the error for a name that does not exist, with the nearest existing one.

    Args:
        kind: What the name stands for, such as ``"position scheme"``.
        name: The given name.
        known: The existing names.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return VitposError(f"unknown {kind} {name!r}{hint} (known: {', '.join(names) or 'none'})")


def visible(text: str) -> str:
    r"""Escapes control and invisible characters, as ``\x1b``; tabs and line feeds stay."""
    return UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def short(text: str, most: int = 2000) -> str:
    """Cuts the middle out of a long text."""
    return (
        text if len(text) <= most else f"{text[: most - 300]} [... {len(text) - most:,} characters ...] {text[-300:]}"
    )
