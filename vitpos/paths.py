"""User-supplied paths."""

import os
from pathlib import Path


def expand(path: str | Path) -> Path:
    """Expands a leading ``~``; for an unknown user it stays unchanged."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (Path's own raises for an unknown user)


def cache() -> Path:
    """The folder of caches: ``$VITPOS_CACHE``, else ``$XDG_CACHE_HOME/vitpos``, else ``~/.cache/vitpos``."""
    if own := os.environ.get("VITPOS_CACHE"):
        return expand(own)
    return expand(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "vitpos"
