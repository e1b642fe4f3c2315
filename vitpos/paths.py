"""Paths as users write them."""

import os
from pathlib import Path


def expand(path: str | Path) -> Path:
    """Replaces a leading ``~`` by the home folder; that of a user who does not exist stays as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (Path's own raises for an unknown user)
