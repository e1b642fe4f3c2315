"""User-supplied paths."""

import os
from pathlib import Path


def expand(path: str | Path) -> Path:
    """Expands a leading ``~``; for an unknown user it stays unchanged."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (Path's own raises for an unknown user)
