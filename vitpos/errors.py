"""Errors that a user can mend: one line that says what is wrong, what was given and what is allowed."""

import difflib
from collections.abc import Iterable


class VitposError(ValueError):
    """A user's mistake; the command line prints its message alone and exits with code 2."""


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
