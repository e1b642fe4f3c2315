"""Errors that a user can mend: one line that says what is wrong, what was given and what is allowed."""

import difflib
import re
from collections.abc import Iterable

# Control characters but tab and line feed, marks that turn the direction of writing, invisible ones, half characters.
UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff"
    "\U000e0000-\U000e0fff]"
)


class VitposError(ValueError):
    """A user's mistake; the command line prints its message alone and exits with code 2.

    Args:
        message: What is wrong. What it repeats of a user's words is made fit for a terminal and cut where it is long.
    """

    def __init__(self, message: str) -> None:
        super().__init__(short(visible(message)))


def unknown(kind: str, name: str, known: Iterable[str]) -> VitposError:
    """Makes the error for a name that does not exist, with the nearest one that does.

    Args:
        kind: What the name should have been, such as ``"position scheme"``.
        name: What was given.
        known: The names that exist.

    Returns:
        The error, to be raised by the caller.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return VitposError(f"unknown {kind} {name!r}{hint} (known: {', '.join(names) or 'none'})")


def visible(text: str) -> str:
    r"""Shows characters that steer a terminal or hide text as escapes such as ``\x1b``; tabs and line ends stay."""
    return UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def short(text: str, most: int = 2000) -> str:
    """Cuts the middle out of a text that nobody would read to its end."""
    return (
        text if len(text) <= most else f"{text[: most - 300]} [... {len(text) - most:,} characters ...] {text[-300:]}"
    )
