"""Whether a report is up to date: made of the same rows, by the same code, and there as it was written."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitpos.provenance import reporting
from vitpos.study.reading import write

NOTE = "runs/.report.json"


def origin(digests: list[bytes], *others: Any) -> str:
    """Returns a digest of what a report is made of: its rows' digests and all else, and the code."""
    text = json.dumps([reporting(), others], default=str)
    return hashlib.sha256(b"".join(digests) + text.encode()).hexdigest()


def said(folder: Path, origin: str) -> str | None:
    """Returns what was printed with the report in a folder, or None where it is not of this origin, or changed."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        if note["origin"] == origin and note["files"] == dict(_files(folder)):
            return str(note["said"])
    return None


def keep(folder: Path, origin: str, said: str) -> None:
    """Notes that the report in a folder is of an origin."""
    write(folder / NOTE, json.dumps({"origin": origin, "said": said, "files": dict(_files(folder))}))


def _files(folder: Path) -> Iterator[tuple[str, list[int]]]:
    for pattern in ("report.*", "figures/*", "tables/*", "tensorboard/*/*"):
        for file in sorted(folder.glob(pattern)):
            state = file.stat()
            yield str(file.relative_to(folder)), [state.st_size, state.st_mtime_ns]
