"""Small pieces of text that several folders write alike, and files that are written whole or not at all."""

import re
from pathlib import Path


def duration(seconds: float) -> str:
    """Formats seconds for people: ``45 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def plural(count: int, noun: str) -> str:
    """Formats a count with its noun: ``1 seed``, ``1,200 seeds``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def slug(text: str) -> str:
    """Returns text with everything but letters, digits and ``._=+-`` replaced, for use as a file name."""
    return re.sub(r"[^A-Za-z0-9._=+-]+", "_", text).strip("_")


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file so that readers see the old content or all of the new one; makes the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    part.replace(path)
